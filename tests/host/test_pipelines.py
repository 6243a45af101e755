"""Whole runs through the stock nodes against the diffusers pipelines: same weights, embeddings and noise."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.cogvideo import pipeline_cogvideox_image2video, pipeline_cogvideox_video2video
from diffusers.schedulers import scheduling_dpm_cogvideox
from pack.cogvideox.samplers import step_noise
from pack.nodes.host import coding, sampling
from pack.nodes.host.conditioning import empty_latent, image_to_video
from PIL import Image

import nodes

from . import pipelines
from .pipelines import FRAMES, HEIGHT, WIDTH, relative_error

SEED, STEPS, CFG = 7, 10, 6.0
LATENT_TOLERANCE, FRAME_TOLERANCE = 1e-3, 1e-3
V2V_STEPS, V2V_DENOISE = 6, 0.6  # the last 6 of the reference's 10

pytestmark = pytest.mark.usefixtures("inference")


def picture(seed=0) -> torch.Tensor:
    """IMAGE [1, H, W, 3] in eighths of a byte, so that diffusers' way through 8 bits loses nothing."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (1, HEIGHT, WIDTH, 3)).astype("f4") / 255)


def pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((image[0] * 255).round().byte().numpy())


def ksampler(variant, latent, sampler="euler", conds=None, override="auto", denoise=1.0, steps=STEPS):
    model = pipelines.ours(variant, override)[0]
    conds = conds or pipelines.prompts(variant)
    out = nodes.KSampler().sample(model, SEED, steps, CFG, sampler, "simple", *conds, latent, denoise)
    return out[0]["samples"]


def reference(variant, latent, pipe=None, **kwargs):
    """diffusers' final latents [B, 16, T, H, W], unscaled and without the leading one."""
    pipe = pipe or pipelines.theirs(variant)
    leading = 1 if variant.startswith("1.5") else 0
    noise = pipelines.noise_of(latent["samples"], SEED, leading)
    return pipelines.sampled(pipe, variant, STEPS, CFG, latents=noise, num_frames=FRAMES, **kwargs)[:, :, leading:]


@pytest.fixture
def assert_same(record_property):
    """Compare latents, and what stock VAE Decode makes of ours with what diffusers' VAE makes of its own."""

    def check(variant, actual, expected):
        error = relative_error(actual, expected)
        record_property("latents_relative_error", error)
        assert error <= LATENT_TOLERANCE
        record_property("frames_max_difference", frame_difference(variant, actual, expected))

    return check


def frame_difference(variant, actual, expected):
    frames = nodes.VAEDecode().decode(pipelines.ours(variant)[2], {"samples": actual})[0]
    pipe = pipelines.theirs(variant)
    video = pipe.video_processor.postprocess_video(pipe.vae.decode(expected).sample, output_type="pt")
    assert frames.shape == (FRAMES * len(actual), HEIGHT, WIDTH, 3)
    difference = (frames - video.flatten(0, 1).movedim(1, -1)).abs().max().item()
    assert difference <= FRAME_TOLERANCE
    return difference


@pytest.mark.parametrize("variant", pipelines.TEXT_TO_VIDEO)
def test_text_to_video_equals_diffusers(variant, assert_same):
    latent = empty_latent(WIDTH, HEIGHT, FRAMES, 1)
    actual, expected = ksampler(variant, latent), reference(variant, latent)
    assert_same(variant, actual, expected)
    assert not latent["samples"].any()


@pytest.fixture
def mode(monkeypatch):
    """Let diffusers take the posterior's mode, as our conditioning does, where it would draw a sample."""
    for module in (pipeline_cogvideox_image2video, pipeline_cogvideox_video2video):
        retrieve = module.retrieve_latents
        monkeypatch.setattr(module, "retrieve_latents", lambda out, generator=None, r=retrieve: r(out, None, "argmax"))


IMAGE_CASES = [
    # variant, our override, scale diffusers gives the raw image latents (None: its own)
    ("5b-i2v", "auto", None),
    ("1.5-i2v", "auto", 1.0),
    ("1.5-i2v", "image_diffusers", None),
]


@pytest.mark.parametrize(("variant", "override", "scale"), IMAGE_CASES)
def test_image_to_video_equals_diffusers(variant, override, scale, mode, assert_same, monkeypatch):
    vae = pipelines.ours(variant)[2]
    made = image_to_video(*pipelines.prompts(variant), vae, WIDTH, HEIGHT, FRAMES, 1, start_image=picture())
    actual = ksampler(variant, made.latent, conds=(made.positive, made.negative), override=override)
    pipe = pipelines.theirs(variant)
    if scale is not None:
        monkeypatch.setattr(pipe, "vae_scaling_factor_image", scale)
    expected = reference(variant, made.latent, pipe=pipe, image=pil(picture()))
    assert_same(variant, actual, expected)


def test_the_two_image_scales_of_15_differ():
    """Guards the cases above: with equal results they would prove nothing about the scale."""
    variant = "1.5-i2v"
    vae = pipelines.ours(variant)[2]
    made = image_to_video(*pipelines.prompts(variant), vae, WIDTH, HEIGHT, FRAMES, 1, start_image=picture())
    conds = made.positive, made.negative
    a, b = (ksampler(variant, made.latent, conds=conds, override=name) for name in ("auto", "image_diffusers"))
    assert relative_error(a, b) > 10 * LATENT_TOLERANCE


@pytest.mark.parametrize("variant", pipelines.TEXT_TO_VIDEO)
@pytest.mark.parametrize("dynamic", [False, True])
def test_dpm_and_dynamic_cfg_equal_diffusers(variant, dynamic, assert_same, monkeypatch):
    latent = empty_latent(WIDTH, HEIGHT, FRAMES, 1)
    model = pipelines.ours(variant)[0]
    if dynamic:
        model = sampling.with_dynamic_cfg(model, "reference")
    actual = sampling.sample(model, *pipelines.prompts(variant), latent, SEED, STEPS, CFG, "dpm", 1.0)["samples"]

    pipe = pipelines.theirs(variant, scheduler=diffusers.CogVideoXDPMScheduler)
    leading = 1 if variant.startswith("1.5") else 0
    sigmas = sampling.scheduler_sigmas(model, STEPS)
    draw = step_noise(torch.empty(1, 16, 3 + leading, HEIGHT // 8, WIDTH // 8), SEED)
    noises = [draw(sigmas[i], sigmas[i + 1]).movedim(1, 2) for i in range(STEPS)]
    step, index = pipe.scheduler.step, iter(range(STEPS))
    current = []

    def counted(*args, **kwargs):
        current[:] = [next(index)]
        return step(*args, **kwargs)

    monkeypatch.setattr(pipe.scheduler, "step", counted)
    monkeypatch.setattr(scheduling_dpm_cogvideox, "randn_tensor", lambda *a, **k: noises[current[0]])
    assert_same(variant, actual, reference(variant, latent, pipe=pipe, use_dynamic_cfg=dynamic))


@pytest.mark.parametrize("variant", ["2b", "5b"])
def test_video_to_video_equals_diffusers(variant, mode, assert_same, monkeypatch):
    video = torch.cat([picture(i) for i in range(FRAMES)])
    latents = coding.encode(pipelines.ours(variant)[2], video)
    actual = ksampler(variant, {"samples": latents}, denoise=V2V_DENOISE, steps=V2V_STEPS)

    pipe = pipelines.theirs(variant, kind=diffusers.CogVideoXVideoToVideoPipeline)
    noise = pipelines.noise_of(latents, SEED, 0)
    monkeypatch.setattr(pipeline_cogvideox_video2video, "randn_tensor", lambda *a, **k: noise)
    frames = [pil(video[i : i + 1]) for i in range(FRAMES)]
    assert_same(variant, actual, pipelines.sampled(pipe, variant, STEPS, CFG, video=frames, strength=V2V_DENOISE))


@pytest.mark.parametrize("variant", pipelines.VARIANTS)
def test_a_batch_of_two_is_two_videos(variant):
    conds = pipelines.prompts(variant)
    latent = empty_latent(WIDTH, HEIGHT, FRAMES, 2)
    if variant in pipelines.IMAGE_TO_VIDEO:
        images = torch.cat((picture(0), picture(1)))
        made = image_to_video(*conds, pipelines.ours(variant)[2], WIDTH, HEIGHT, FRAMES, 1, start_image=images)
        conds, latent = (made.positive, made.negative), made.latent
    both = ksampler(variant, latent, conds=conds)
    assert both.shape == (2, 16, 3, HEIGHT // 8, WIDTH // 8)
    assert relative_error(both[1:], both[:1]) > 0.1
    frames = nodes.VAEDecode().decode(pipelines.ours(variant)[2], {"samples": both})[0]
    assert frames.shape == (2 * FRAMES, HEIGHT, WIDTH, 3)
    if not variant.startswith("1.5"):  # its leading noise is drawn for the batch at once
        one = ksampler(variant, {"samples": latent["samples"][:1], "batch_index": [0]}, conds=pick(conds, 0))
        assert relative_error(both[:1], one) <= LATENT_TOLERANCE


def pick(conds, index):
    """Return the conditioning of one video of a batch."""
    return tuple(
        [
            [tensor, {k: v[index : index + 1] if k.startswith("concat_") else v for k, v in values.items()}]
            for tensor, values in cond
        ]
        for cond in conds
    )
