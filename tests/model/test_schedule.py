"""The schedule against the schedulers of diffusers, and against numbers of the host written down here."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler
from pack.cogvideox import schedule


def reference(snr_shift_scale=1.0, kind=CogVideoXDDIMScheduler):
    return kind(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        snr_shift_scale=snr_shift_scale,
    )


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_alphas_cumprod_equal_diffusers(scale):
    ours = schedule.alphas_cumprod(scale)
    assert ours.dtype == torch.float64 and ours.shape == (1000,)
    torch.testing.assert_close(ours, reference(scale).alphas_cumprod, rtol=1e-12, atol=0)


def test_snr_shift_of_one_is_identity():
    alphas = torch.linspace(0.001, 0.999, 50, dtype=torch.float64)
    assert torch.equal(schedule.shift_snr(alphas, 1.0), alphas)


def test_snr_shift_divides_the_signal_to_noise_ratio():
    alphas = torch.linspace(0.001, 0.999, 50, dtype=torch.float64)
    shifted = schedule.shift_snr(alphas, 3.0)
    torch.testing.assert_close(shifted / (1 - shifted) * 3.0, alphas / (1 - alphas))


def test_zero_terminal_snr_keeps_the_first_level_and_zeroes_the_last():
    alphas = torch.cumprod(1 - schedule.scaled_linear_betas(), dim=0)
    rescaled = schedule.rescale_to_zero_terminal_snr(alphas)
    assert rescaled[-1] == 0
    torch.testing.assert_close(rescaled[0], alphas[0], rtol=1e-12, atol=0)
    assert alphas[-1] > 0.004  # what "zero" mends


# ComfyUI 0.30.0: comfy.model_sampling.ModelSamplingDiscrete(zsnr=True).sigmas at t = 0, 19, 500, 979, 998, 999, and the
# same after its alphas went through a / (3 - 2a).
HOST_SIGMAS = {
    1.0: [2.91671585e-02, 1.39129892e-01, 1.77455747e00, 1.07961395e02, 2.25423804e03, 4.51876367e03],
    3.0: [5.05190007e-02, 2.37576470e-01, 3.08059835e00, 1.91758514e02, 4.00616187e03, 4.51876367e03],
}


@pytest.mark.parametrize("scale", HOST_SIGMAS)
def test_sigmas_equal_the_hosts(scale):
    table = schedule.sigmas(scale)
    assert table.dtype == torch.float32 and table.isfinite().all() and (table.diff() > 0).all()
    # The host computes its terminal rescale from sigmas, which costs it digits where sigma is large.
    torch.testing.assert_close(table[[0, 19, 500, 979, 998, 999]], torch.tensor(HOST_SIGMAS[scale]), rtol=2e-6, atol=0)
    assert table[-1].item() == pytest.approx(schedule.TERMINAL_SIGMA, rel=1e-6)


def test_trailing_timesteps_equal_diffusers_for_every_step_count():
    scheduler = reference()
    surplus = []
    for steps in range(1, 1001):
        scheduler.set_timesteps(steps)
        ours = schedule.trailing_timesteps(steps)
        assert len(ours) == steps
        assert torch.equal(ours, scheduler.timesteps[:steps]), steps
        if len(scheduler.timesteps) > steps:
            assert scheduler.timesteps[steps:].tolist() == [-1]
            surplus.append(steps)
    assert surplus[:3] == [61, 103, 121] and len(surplus) == 62


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_step_counts_without_a_schedule_are_refused(steps):
    with pytest.raises(ValueError, match="1 to 1000 steps"):
        schedule.trailing_timesteps(steps)


def test_trailing_sigmas_visit_the_timesteps_and_end_without_noise():
    table = schedule.sigmas(1.0)
    run = schedule.trailing_sigmas(table, 4)
    assert torch.equal(run, torch.cat((table[[999, 749, 499, 249]], torch.zeros(1))))


@pytest.mark.parametrize(("steps", "denoise", "total"), [(20, 0.5, 40), (20, 0.6, 33), (7, 0.99, 7), (1, 0.1, 10)])
def test_denoise_runs_the_last_steps_of_a_longer_schedule(steps, denoise, total):
    table = schedule.sigmas(1.0)
    run = schedule.trailing_sigmas(table, steps, denoise)
    assert len(run) == steps + 1
    assert torch.equal(run, schedule.trailing_sigmas(table, total)[-(steps + 1) :])


def test_denoise_reaches_the_levels_of_diffusers_strength():
    scheduler = reference()
    scheduler.set_timesteps(50)
    kept = scheduler.timesteps[50 - int(50 * 0.8) :]
    table = schedule.sigmas(1.0)
    assert torch.equal(schedule.trailing_sigmas(table, 40, 0.8)[:-1], table[kept])


def test_denoise_zero_leaves_nothing_to_do():
    table = schedule.sigmas(1.0)
    assert schedule.trailing_sigmas(table, 20, 0.0).shape == (0,)


def test_more_levels_than_exist_are_refused_with_a_count_that_fits():
    with pytest.raises(ValueError, match="at most 300 steps"):
        schedule.trailing_sigmas(schedule.sigmas(1.0), 400, 0.3)
    assert len(schedule.trailing_sigmas(schedule.sigmas(1.0), 300, 0.3)) == 301


def test_reference_dynamic_cfg_has_the_references_numbers():
    values = [schedule.dynamic_cfg_reference(6.0, 50, t) for t in schedule.trailing_timesteps(50).tolist()]
    assert values[:7] == pytest.approx([2.29, 2.54, 6.97, 6.42, 2.79, 4.27, 1.04], abs=0.005)
    assert values[-5:] == pytest.approx([6.86, 1.06, 1.00, 1.00, 1.12], abs=0.005)


def test_reference_dynamic_cfg_equals_the_expression_of_the_pipeline():
    guidance_scale = 6
    for num_inference_steps in (1, 7, 30, 50):
        for t in schedule.trailing_timesteps(num_inference_steps):
            expected = 1 + guidance_scale * (
                (1 - math.cos(math.pi * ((num_inference_steps - t.item()) / num_inference_steps) ** 5.0)) / 2
            )
            ours = schedule.dynamic_cfg_reference(guidance_scale, num_inference_steps, t.item())
            assert ours == pytest.approx(expected, rel=1e-12)


def test_cosine_dynamic_cfg_rises_from_one_towards_one_plus_cfg():
    values = [schedule.dynamic_cfg_cosine(6.0, 50, i) for i in range(50)]
    assert values[0] == 1.0
    assert all(a <= b for a, b in pairwise(values))
    assert values[25] == pytest.approx(1 + 3 * (1 - math.cos(math.pi / 32)), rel=1e-12)
    assert 6.8 < values[-1] < 7.0
    assert schedule.dynamic_cfg_cosine(6.0, 50, 50) == pytest.approx(7.0)


def test_cosine_dynamic_cfg_is_the_reference_with_time_counted_in_steps_left():
    for i in range(30):
        intended = schedule.dynamic_cfg_reference(6.0, 30, 30 - i)
        assert schedule.dynamic_cfg_cosine(6.0, 30, i) == pytest.approx(intended, rel=1e-12)
