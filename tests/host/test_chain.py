"""Stock nodes around our MODEL, VAE and CONDITIONING, and nothing left behind by a run."""

import copy
import functools
import json
import shutil

import comfy.ldm.modules.attention as host_attention
import comfy.sample
import comfy.samplers
import node_helpers
import pytest
import torch
from comfy.cli_args import args
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import BasicScheduler, CFGGuider, RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_model_merging import ModelMergeSimple
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from comfy_extras.nodes_torch_compile import TorchCompileModel
from pack.nodes.host import loading, sampling
from pack.nodes.host.conditioning import empty_latent, image_to_video

import nodes

from . import pipelines
from .pipelines import FRAMES, HEIGHT, WIDTH, relative_error, tensors

SEED, STEPS, CFG = 3, 4, 6.0

pytestmark = pytest.mark.usefixtures("inference")


def conditioned(variant, length=FRAMES):
    """Return positive, negative and LATENT for a run of any variant."""
    conds = pipelines.prompts(variant)
    if variant in pipelines.TEXT_TO_VIDEO:
        return *conds, empty_latent(WIDTH, HEIGHT, length, 1)
    image = torch.linspace(0, 1, HEIGHT * WIDTH * 3).view(1, HEIGHT, WIDTH, 3)
    made = image_to_video(*conds, pipelines.ours(variant)[2], WIDTH, HEIGHT, length, 1, start_image=image)
    return made.positive, made.negative, made.latent


def run(model, variant, sampler="euler", scheduler="simple", steps=STEPS, latent=None, denoise=1.0, length=FRAMES):
    positive, negative, empty = conditioned(variant, length)
    out = nodes.KSampler().sample(
        model, SEED, steps, CFG, sampler, scheduler, positive, negative, latent or empty, denoise
    )
    return out[0]["samples"]


@pytest.mark.parametrize("variant", pipelines.VARIANTS)
def test_every_variant_runs_through_the_advanced_sampler_as_through_ksampler(variant):
    model = pipelines.ours(variant)[0]
    positive, negative, latent = conditioned(variant)
    guider = CFGGuider.execute(model, positive, negative, CFG).result[0]
    sigmas = BasicScheduler.execute(model, "simple", STEPS, 1.0).result[0]
    assert torch.equal(sigmas, sampling.scheduler_sigmas(model, STEPS))  # 4 divides 1000
    noise = RandomNoise.execute(SEED).result[0]
    sampler = comfy.samplers.sampler_object("euler")
    output, denoised = SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).result
    assert torch.equal(output["samples"], run(model, variant))
    assert denoised["samples"].shape == output["samples"].shape
    # The last step of euler lands on its own prediction of the clean video.
    assert relative_error(denoised["samples"], output["samples"]) <= 1e-5


def test_ddim_is_euler_and_the_node_runs_what_the_sockets_run():
    model = pipelines.ours("5b")[0]
    positive, negative, latent = conditioned("5b")
    ours = sampling.sample(model, positive, negative, latent, SEED, STEPS, CFG, "ddim", 1.0)["samples"]
    assert relative_error(run(model, "5b"), ours) <= 1e-3


@pytest.mark.parametrize("scheduler", comfy.samplers.SCHEDULER_NAMES)
def test_every_stock_scheduler_finishes(scheduler):
    assert torch.isfinite(run(pipelines.ours("5b")[0], "5b", scheduler=scheduler)).all()


@pytest.mark.parametrize("variant", ["5b", "1.5"])
@pytest.mark.parametrize("sampler", comfy.samplers.SAMPLER_NAMES)
def test_every_stock_sampler_finishes(sampler, variant):
    out = run(pipelines.ours(variant)[0], variant, sampler=sampler, steps=3)
    assert out.shape == (1, 16, 3, HEIGHT // 8, WIDTH // 8)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("variant", ["2b", "1.5"])
def test_a_noise_mask_keeps_what_it_covers(variant):
    model = pipelines.ours(variant)[0]
    kept = torch.randn(1, 16, 3, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[:, :, : WIDTH // 2] = 1  # paint the left half
    latent = nodes.SetLatentNoiseMask().set_mask({"samples": kept}, mask)[0]
    out = run(model, variant, latent=latent)
    half = WIDTH // 16
    assert relative_error(out[..., half + 1 :], kept[..., half + 1 :]) <= 1e-3
    assert relative_error(out[..., : half - 1], kept[..., : half - 1]) > 0.1


@pytest.mark.parametrize("variant", pipelines.VARIANTS)
def test_easycache_reuses_steps_and_stays_in_shape(variant):
    model = pipelines.ours(variant)[0]
    exact = run(model, variant, steps=10)
    calls = []
    diffusion_model = model.model.diffusion_model
    hook = diffusion_model.proj_out.register_forward_hook(lambda *_: calls.append(1))
    try:
        cached = EasyCacheNode.execute(model, 0.5, 0.1, 0.95, False).result[0]
        out = run(cached, variant, steps=10)
    finally:
        hook.remove()
    assert out.shape == exact.shape
    assert torch.isfinite(out).all()
    assert 0 < len(calls) < 10  # positive and negative run as one batch
    assert torch.equal(run(model, variant, steps=10), exact)


@pytest.mark.parametrize("variant", pipelines.VARIANTS)
@pytest.mark.parametrize("freenoise", [False, True])
def test_context_windows_make_a_longer_video(variant, freenoise):
    model = pipelines.ours(variant)[0]
    windowed = WanContextWindowsManualNode.execute(
        model, 9, 5, "standard_static", 1, False, "pyramid", freenoise
    ).result[0]
    out = run(windowed, variant, length=25)
    assert out.shape == (1, 16, 7, HEIGHT // 8, WIDTH // 8)
    assert torch.isfinite(out).all()
    assert relative_error(out, run(model, variant, length=25)) > 1e-4  # the windows are at work


def test_a_window_as_long_as_the_video_changes_nothing():
    model = pipelines.ours("1.5")[0]
    windowed = WanContextWindowsManualNode.execute(model, 81, 0, "standard_static", 1, False, "pyramid", False).result[
        0
    ]
    assert torch.equal(run(windowed, "1.5"), run(model, "1.5"))


def test_model_merge_mixes_and_leaves_both_models_alone():
    model = pipelines.ours("5b")[0]
    before = run(model, "5b")
    other = pipelines.ours("5b", "snr_shift_3")[0].clone()  # the same shapes, a second copy of the weights
    key = "diffusion_model.proj_out.weight"
    other.add_patches({key: (torch.full_like(other.model.diffusion_model.proj_out.weight, 0.01),)}, 1.0)
    merged = ModelMergeSimple().merge(model, other, 0.5)[0]
    assert relative_error(run(merged, "5b"), before) > 1e-4
    assert torch.equal(run(model, "5b"), before)


def test_skip_layer_guidance_reaches_our_blocks():
    model = pipelines.ours("5b")[0]
    skipped = SkipLayerGuidanceDiT.execute(model, 3.0, 0.0, 1.0, double_layers="1", single_layers="").result[0]
    assert relative_error(run(skipped, "5b"), run(model, "5b")) > 1e-4


def test_an_attention_override_is_used():
    model = pipelines.ours("5b")[0].clone()
    seen = []

    def override(func, *call, **kwargs):
        seen.append(kwargs["transformer_options"]["block_index"])
        return func(*call, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    assert torch.equal(run(model, "5b", steps=1), run(pipelines.ours("5b")[0], "5b", steps=1))
    assert seen == [0, 1]


@pytest.mark.parametrize("chosen", [False, True])
def test_the_attention_of_a_cpu_is_pytorchs_unless_the_artist_chose(chosen, monkeypatch):
    used = []
    for name in ("attention_sub_quad", "attention_pytorch"):
        kernel = getattr(host_attention, name)
        spy = functools.wraps(kernel)(
            lambda *call, name=name, kernel=kernel, **kw: used.append(name) or kernel(*call, **kw)
        )
        monkeypatch.setattr(host_attention, name, spy)
        if host_attention.optimized_attention is kernel:
            monkeypatch.setattr(host_attention, "optimized_attention", spy)
    monkeypatch.setattr(args, "use_quad_cross_attention", chosen)
    run(pipelines.ours("5b")[0], "5b", steps=1)
    assert set(used) == {"attention_sub_quad" if chosen else "attention_pytorch"}


def test_position_tables_live_as_long_as_a_run():
    model = pipelines.ours("2b")[0]
    held = []
    hook = model.model.diffusion_model.proj_out.register_forward_hook(
        lambda *_: held.append(model.model.diffusion_model.held_tables)
    )
    try:
        run(model, "2b")
    finally:
        hook.remove()
    assert len(held) == STEPS and all(tables is held[0] for tables in held[1:])
    assert model.model.diffusion_model.held_tables is None


@pytest.mark.parametrize("variant", pipelines.VARIANTS)
def test_the_compile_node_finds_one_graph(variant):
    model = pipelines.ours(variant)[0]
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    try:
        compiled = TorchCompileModel.execute(model, "eager").result[0]
        assert relative_error(run(compiled, variant, steps=2), run(model, variant, steps=2)) <= 1e-5
        counters = torch._dynamo.utils.counters
        assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    finally:
        torch.compiler.reset()


def test_torch_compile_gives_the_same_video():
    model = pipelines.ours("1.5")[0]
    compiled = TorchCompileModel.execute(model, "inductor").result[0]
    assert relative_error(run(compiled, "1.5", steps=2), run(model, "1.5", steps=2)) <= 1e-3


@pytest.mark.parametrize("variant", pipelines.IMAGE_TO_VIDEO)
def test_a_text_to_video_folder_with_image_channels_needs_no_image(variant, tmp_path):
    folder = shutil.copytree(pipelines.folder(variant), tmp_path / variant)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "CogVideoXPipeline"}))
    model = loading.load_model(str(folder), "fp32")
    latent = empty_latent(WIDTH, HEIGHT, FRAMES, 1)
    values = {"concat_latent_image": torch.zeros_like(latent["samples"])}
    zeros = [node_helpers.conditioning_set_values(cond, values) for cond in pipelines.prompts(variant)]

    def sample(model, conds):
        return nodes.KSampler().sample(model, SEED, STEPS, CFG, "euler", "simple", *conds, latent, 1.0)[0]["samples"]

    assert torch.equal(sample(model, pipelines.prompts(variant)), sample(pipelines.ours(variant)[0], zeros))
    with pytest.raises(ValueError, match="makes video from an image"):
        sample(pipelines.ours(variant)[0], pipelines.prompts(variant))


def test_two_variants_in_one_graph_do_not_disturb_each_other():
    alone = {variant: run(pipelines.ours(variant)[0], variant) for variant in pipelines.VARIANTS}
    for variant in reversed(pipelines.VARIANTS):
        assert torch.equal(run(pipelines.ours(variant)[0], variant), alone[variant])


@pytest.mark.parametrize("variant", pipelines.VARIANTS)
def test_a_run_does_not_change_its_inputs(variant):
    positive, negative, latent = conditioned(variant)
    before = copy.deepcopy((positive, negative, latent))
    model = pipelines.ours(variant)[0]
    nodes.KSampler().sample(model, SEED, 2, CFG, "euler", "simple", positive, negative, latent, 1.0)
    for old, new in zip(tensors(before), tensors((positive, negative, latent)), strict=True):
        assert torch.equal(old, new)


def test_a_patch_on_a_clone_stays_on_the_clone():
    model = pipelines.ours("5b")[0]
    clone = sampling.with_dynamic_cfg(model, "reference")
    assert "sampler_cfg_function" in clone.model_options
    assert "sampler_cfg_function" not in model.model_options


def test_the_leading_latent_of_15_is_seen_by_nobody():
    """Callbacks and previews get the frames that were asked for; the run depends on the seed alone."""
    model = pipelines.ours("1.5")[0]
    positive, negative, latent = conditioned("1.5")
    shapes = set()

    def callback(step, x0, x, total):
        shapes.update((tuple(x0.shape), tuple(x.shape)))

    sigmas = sampling.scheduler_sigmas(model, STEPS)
    noise = comfy.sample.prepare_noise(latent["samples"], SEED)
    sampler = comfy.samplers.sampler_object("euler")

    def sample(seed):
        return comfy.sample.sample_custom(
            model, noise, CFG, sampler, sigmas, positive, negative, latent["samples"], callback=callback, seed=seed
        )

    out = sample(SEED)
    assert shapes == {(1, 16, 3, HEIGHT // 8, WIDTH // 8)}
    assert torch.equal(sample(SEED), out)
    assert not torch.equal(sample(SEED + 1), out)  # the leading latent has noise of its own
