"""The samplers, step by step, with one fixed velocity network in float64.

Against the schedulers of diffusers where the number of steps divides 1000, and against the original's arithmetic, in
unit-variance space, for any number.
"""

import math

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler
from diffusers.schedulers import scheduling_dpm_cogvideox
from pack.cogvideox import schedule
from pack.cogvideox.samplers import SAMPLERS, sample_cogvideox_ddim, sample_cogvideox_dpm, step_noise

from .test_schedule import reference

SHAPE = (1, 16, 3, 4, 6)
# Measured: 5.8e-6. The reference's terminal level is sigma = infinity, the host's 4518.76, so the first x0 is off by
# y / 4518.
TOLERANCE = 1e-5


class Velocity:
    """A small random MLP over channels and time: v(y, t) for the unit-variance latent y at timestep t."""

    def __init__(self, dtype=torch.float64):
        generator = torch.Generator().manual_seed(7)
        channels, hidden = SHAPE[1], 64
        self.inward = torch.randn(hidden, channels, generator=generator, dtype=torch.float64).to(dtype) / channels**0.5
        self.time = torch.randn(hidden, generator=generator, dtype=torch.float64).to(dtype)
        self.outward = torch.randn(channels, hidden, generator=generator, dtype=torch.float64).to(dtype) / hidden**0.5

    def __call__(self, y, timestep):
        hidden = torch.einsum("hc,bcdef->bhdef", self.inward, y)
        phase = (self.time * (timestep / 250)).view(1, -1, 1, 1, 1)
        return torch.einsum("ch,bhdef->bcdef", self.outward, torch.tanh(hidden + phase))


class Denoiser:
    """x0 of `velocity`, as the host computes it: c_in = 1 / sqrt(1 + sigma^2), timestep from the nearest sigma."""

    def __init__(self, velocity, table):
        self.velocity, self.table, self.calls = velocity, table, []

    def __call__(self, x, sigma, **extra_args):
        assert sigma.shape == x.shape[:1]
        timestep = (self.table - sigma[0]).abs().argmin().item()
        self.calls.append(timestep)
        level = self.table[timestep].to(x)
        y = x / (1 + level**2).sqrt()
        return y / (1 + level**2).sqrt() - self.velocity(y, timestep) * level / (1 + level**2).sqrt()


def noise_of(index, dtype=torch.float64):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(100 + index), dtype=torch.float64).to(dtype)


def run_reference(name, scale, steps, first=0, start=None, monkeypatch=None, dtype=torch.float64):
    """Return the latent after each step of the diffusers scheduler, as its pipelines drive it."""
    scheduler = reference(scale, {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}[name])
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps[first:]
    velocity, old = Velocity(dtype), None
    x = noise_of(-1, dtype) if start is None else scheduler.add_noise(start, noise_of(-1, dtype), timesteps[:1])
    trace = []
    for i, t in enumerate(timesteps):
        v = velocity(x, t.item())
        if name == "ddim":
            x = scheduler.step(v, t, x, return_dict=False)[0]
        else:
            noise = noise_of(i, dtype)
            monkeypatch.setattr(scheduling_dpm_cogvideox, "randn_tensor", lambda *a, _noise=noise, **k: _noise)
            x, old = scheduler.step(v, old, t, timesteps[i - 1] if i > 0 else None, x, return_dict=False)
        trace.append(x)
    return trace


def run_ours(name, scale, steps, denoise=1.0, start=None, dtype=torch.float64):
    """Return the latent after each step, in the reference's unit-variance space, and the timesteps that were asked."""
    table = schedule.sigmas(scale)
    sigmas = schedule.trailing_sigmas(table, steps, denoise)
    options = {}
    if name == "dpm":
        draws = iter(range(steps))
        options["noise_sampler"] = lambda *levels: noise_of(next(draws), dtype)
    states = []
    model = Denoiser(Velocity(dtype), table)
    noise = noise_of(-1, dtype)
    # KSAMPLER.sample of the host: sqrt(1 + sigma^2) at the highest level, sigma below it.
    x = noise * (1 + sigmas[0].to(dtype) ** 2).sqrt() if start is None else start + noise * sigmas[0].to(dtype)
    final = SAMPLERS[name](model, x, sigmas, {}, lambda s: states.append((s["x"], s["sigma"].to(dtype))), **options)
    states.append((final, sigmas[-1].to(dtype)))
    return [x / (1 + sigma**2).sqrt() for x, sigma in states[1:]], model.calls


def largest_error(ours, theirs):
    assert len(ours) == len(theirs)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 20, 50])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_step_equals_diffusers_where_steps_divide_1000(name, steps, scale, monkeypatch):
    expected = run_reference(name, scale, steps, monkeypatch=monkeypatch)
    ours, timesteps = run_ours(name, scale, steps)
    assert timesteps == schedule.trailing_timesteps(steps).tolist()
    # One step is the x0 of the terminal level itself, undiluted: y / 4518 at |y| up to 4.
    assert largest_error(ours, expected) < (1e-3 if steps == 1 else TOLERANCE)


def run_original(name, scale, steps):
    """Return the latent after each step from one entry of the timestep list to the next, as the original steps."""
    alphas = schedule.alphas_cumprod(scale)[schedule.trailing_timesteps(steps)].tolist() + [1.0]
    velocity, x, old, trace = Velocity(), noise_of(-1), None, []
    for i, t in enumerate(schedule.trailing_timesteps(steps).tolist()):
        a, b = alphas[i : i + 2]
        denoised = a**0.5 * x - (1 - a) ** 0.5 * velocity(x, t)
        if name == "ddim":
            x = b**0.5 * denoised + (1 - b) ** 0.5 * (x - a**0.5 * denoised) / (1 - a) ** 0.5
        elif b == 1.0:
            x = denoised
        else:
            target, decay = denoised, (a * (1 - b) / (b * (1 - a))) ** 0.5  # e^-h
            if i > 1:  # in step 1 the step before began without signal: 1 / 2r is 0
                before = alphas[i - 1]
                decay_before = (before * (1 - a) / (a * (1 - before))) ** 0.5
                target = denoised + math.log(decay) / math.log(decay_before) / 2 * (denoised - old)
            x = ((1 - b) / (1 - a)) ** 0.5 * decay * x + b**0.5 * (1 - decay**2) * target
            x = x + (1 - b) ** 0.5 * (1 - decay**2) ** 0.5 * noise_of(i)
        old = denoised
        trace.append(x)
    return trace


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("steps", [7, 30, 33, 50, 61])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_step_equals_the_original_for_any_count(name, steps, scale):
    ours, timesteps = run_ours(name, scale, steps)
    assert timesteps == schedule.trailing_timesteps(steps).tolist()
    assert largest_error(ours, run_original(name, scale, steps)) < 3 * TOLERANCE


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("steps", [30, 33])
@pytest.mark.parametrize("name", SAMPLERS)
def test_diffusers_departs_where_steps_do_not_divide_1000(name, steps, scale, monkeypatch):
    # It steps to t - 1000 // N, up to one timestep above the next t of its list, and takes the result for that next t.
    expected = run_reference(name, scale, steps, monkeypatch=monkeypatch)
    ours, _ = run_ours(name, scale, steps)
    assert 5e-3 < largest_error(ours, expected) < 2e-2  # measured: 7.7e-3 to 1.42e-2; 4e-6 to the original


@pytest.mark.parametrize("name", SAMPLERS)
def test_video_to_video_equals_diffusers(name, monkeypatch):
    start = noise_of(50)
    expected = run_reference(name, 1.0, 50, first=10, start=start, monkeypatch=monkeypatch)
    ours, _ = run_ours(name, 1.0, 40, denoise=0.8, start=start)
    assert largest_error(ours, expected) < TOLERANCE


@pytest.mark.parametrize("name", SAMPLERS)
def test_float32_equals_diffusers(name, monkeypatch):
    expected = run_reference(name, 1.0, 20, monkeypatch=monkeypatch, dtype=torch.float32)
    ours, _ = run_ours(name, 1.0, 20, dtype=torch.float32)
    assert ours[-1].dtype == torch.float32
    assert largest_error(ours, expected) < 2 * TOLERANCE


def test_ddim_below_the_terminal_level_is_euler():
    table = schedule.sigmas(1.0)
    sigmas = table[[700, 400, 100]]
    model = Denoiser(Velocity(), table)
    x = noise_of(0) * sigmas[0]
    euler = x
    for sigma, following in ((sigmas[0], sigmas[1]), (sigmas[1], sigmas[2])):
        euler = euler + (euler - model(euler, sigma[None])) / sigma * (following - sigma)
    torch.testing.assert_close(sample_cogvideox_ddim(model, x, sigmas), euler, rtol=1e-6, atol=1e-6)


def test_ddim_forth_and_back_finds_the_noise_it_came_from():
    table = schedule.sigmas(1.0)
    model = Denoiser(Velocity(), table)
    falling = table[torch.arange(600, 99, -2)]
    x = noise_of(0) * (1 + falling[0] ** 2).sqrt()
    back = sample_cogvideox_ddim(model, sample_cogvideox_ddim(model, x, falling), falling.flip(0))
    assert (back - x).abs().max() / x.abs().max() < 0.02


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", SAMPLERS)
def test_few_steps_from_the_highest_level_stay_finite(name, steps):
    table = schedule.sigmas(1.0)
    model = Denoiser(Velocity(torch.float32), table)
    x = noise_of(0, torch.float32) * table[-1]
    result = SAMPLERS[name](model, x, schedule.trailing_sigmas(table, steps), {"seed": 1})
    assert result.isfinite().all() and result.std() < 3


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_that_ends_before_zero_keeps_the_noise_of_its_last_level(name):
    table = schedule.sigmas(1.0)
    sigmas = schedule.trailing_sigmas(table, 20)[:11]
    x = noise_of(0) * (1 + sigmas[0] ** 2).sqrt()
    result = SAMPLERS[name](Denoiser(Velocity(), table), x, sigmas, {"seed": 1})
    unit = result / (1 + sigmas[-1] ** 2).sqrt()
    assert result.isfinite().all() and 0.6 < unit.std() < 1.4


def test_ddim_in_two_parts_equals_the_whole():
    table = schedule.sigmas(1.0)
    sigmas = schedule.trailing_sigmas(table, 20)
    model = Denoiser(Velocity(), table)
    x = noise_of(0) * (1 + sigmas[0] ** 2).sqrt()
    parts = sample_cogvideox_ddim(model, sample_cogvideox_ddim(model, x, sigmas[:9]), sigmas[8:])
    assert torch.equal(parts, sample_cogvideox_ddim(model, x, sigmas))


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("name", SAMPLERS)
def test_no_steps_return_the_input(name, count):
    x = noise_of(0)
    assert SAMPLERS[name](None, x, torch.ones(count)) is x


def test_dpm_refuses_rising_levels():
    with pytest.raises(ValueError, match="falling sigmas"):
        sample_cogvideox_dpm(None, noise_of(0), torch.tensor([1.0, 2.0]))


def test_dpm_passes_over_a_level_that_repeats():
    table = schedule.sigmas(1.0)
    model = Denoiser(Velocity(), table)
    x = noise_of(0) * table[600]
    once, twice = table[[600, 400, 200]], table[[600, 400, 400, 200]]
    assert sample_cogvideox_dpm(model, x, once, {"seed": 1}).isfinite().all()
    assert sample_cogvideox_dpm(model, x, twice, {"seed": 1}).isfinite().all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_model_gets_the_extra_arguments_and_the_callback_every_step(name):
    table = schedule.sigmas(1.0)
    sigmas = schedule.trailing_sigmas(table, 4)
    seen, states = [], []

    def model(x, sigma, **extra_args):
        seen.append((sigma.tolist(), extra_args))
        return x * 0

    extra_args = {"seed": 3, "model_options": {}}
    SAMPLERS[name](model, torch.ones(2, 16, 1, 2, 2), sigmas, extra_args, states.append)
    assert seen == [([sigma, sigma], extra_args) for sigma in sigmas[:-1].tolist()]
    assert [state["i"] for state in states] == [0, 1, 2, 3]
    assert all(set(state) == {"x", "i", "sigma", "sigma_hat", "denoised"} for state in states)
    assert [state["sigma"].item() for state in states] == sigmas[:-1].tolist()


def test_step_noise_is_normal_and_repeats_for_the_same_seed_and_level():
    x = torch.zeros(2, 16, 8, 16, 16)
    first, second = torch.tensor(108.0), torch.tensor(50.0)
    noise = step_noise(x, 5)(first, second)
    assert noise.shape == x.shape and noise.dtype == x.dtype
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert torch.equal(noise, step_noise(x, 5)(first, second))
    assert not torch.equal(noise, step_noise(x, 6)(first, second))
    assert not torch.equal(noise, step_noise(x, 5)(second, first))
    assert not torch.equal(noise[0], noise[1])


def test_step_noise_is_not_the_initial_noise_of_the_same_seed():
    x = torch.zeros(SHAPE)
    seed = 5
    initial = torch.randn(SHAPE, generator=torch.manual_seed(seed))
    for sigma in schedule.trailing_sigmas(schedule.sigmas(1.0), 50)[:-1]:
        noise = step_noise(x, seed)(sigma, sigma)
        assert (noise * initial).mean().abs() < 0.2


def test_step_noise_takes_every_seed_of_the_host_and_none():
    x = torch.zeros(SHAPE)
    sigma = torch.tensor(1.0)
    largest = step_noise(x, 0xFFFFFFFFFFFFFFFF)(sigma, sigma)
    assert not torch.equal(largest, step_noise(x, 0xFFFFFFFF)(sigma, sigma))
    torch.manual_seed(11)
    unseeded = step_noise(x, None)(sigma, sigma)
    torch.manual_seed(11)
    assert torch.equal(unseeded, step_noise(x, None)(sigma, sigma))


def test_step_noise_does_not_change_between_versions():
    # Users share seeds: a change here changes every video made with dpm.
    x, sigma = torch.zeros(1, 1, 1, 1, 4), torch.tensor(2.5)
    expected = torch.tensor([-0.020016, -0.700196, 0.811191, 1.499704])
    torch.testing.assert_close(step_noise(x, 42)(sigma, sigma).flatten(), expected, rtol=0, atol=1e-5)
