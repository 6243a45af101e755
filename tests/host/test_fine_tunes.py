"""Fine-tunes of CogVideoX: each is recognised, gets its images as its authors give them and computes as theirs."""

import json
import shutil
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import diffusers
import node_helpers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import (
    BasicGuider,
    CFGGuider,
    DisableNoise,
    RandomNoise,
    SamplerCustomAdvanced,
)
from comfy_extras.nodes_void import (
    VOIDInpaintConditioning,
    VOIDQuadmaskPreprocess,
    VOIDSampler,
    VOIDWarpedNoiseSource,
)
from pack.cogvideox import detection, schedule
from pack.cogvideox.transformer import CogVideoXTransformer3DModel
from pack.demo import tiny_pipeline
from pack.nodes.host import coding, loading
from pack.nodes.host.conditioning import empty_latent, image_to_video
from pack.nodes.sampling import CogVideoXSamplerSelect, CogVideoXScheduler
from pack.tests.data.make_key_lists import load
from PIL import Image
from safetensors.torch import load_file, save_file

import nodes

from . import pipelines
from .pipelines import FRAMES, HEIGHT, WIDTH, relative_error

SEED, STEPS, CFG = 5, 10, 6.0
WEIGHTS = "diffusion_pytorch_model.safetensors"
TOLERANCE = 1e-3  # of a run: the host starts at a finite noise level
TEN_STEPS = 3e-5  # of our own ddim
ONE_PASS = 1.5e-6  # of one pass, three to eight times what these weights give

pytestmark = pytest.mark.usefixtures("inference")


def noise(*shape, seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def video(frames=FRAMES, seed=0) -> torch.Tensor:
    """IMAGE [F, H, W, 3] in bytes, so that diffusers' way through pictures loses nothing."""
    drawn = torch.randint(0, 256, (frames, HEIGHT, WIDTH, 3), generator=torch.Generator().manual_seed(seed))
    return drawn.float() / 255


def pictures(frames: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray((frame * 255).round().byte().numpy()) for frame in frames]


@cache
def folder(base: str, channels: int) -> Path:
    """Return the tiny pipeline of `base` with a transformer of other input channels."""
    path = pipelines.folder(base).parent / f"{base}-{channels}"
    shutil.copytree(pipelines.folder(base), path)
    config = replace(tiny_pipeline.VARIANTS[base], in_channels=channels)
    shapes = tiny_pipeline.module_shapes(CogVideoXTransformer3DModel(config))
    save_file(tiny_pipeline.random_weights(shapes, 0), path / "transformer" / WEIGHTS)
    values = json.loads((path / "transformer" / "config.json").read_text()) | asdict(config)
    (path / "transformer" / "config.json").write_text(json.dumps(values))
    return path


@cache
def ours(base: str, channels: int):
    return loading.load_model(str(folder(base, channels)), "fp32")


@cache
def their_transformer(base: str, channels: int):
    if channels == tiny_pipeline.VARIANTS[base].in_channels:
        return pipelines.theirs(base).transformer
    return diffusers.CogVideoXTransformer3DModel.from_pretrained(folder(base, channels) / "transformer")


@cache
def their_schedule(base: str):
    """Return sqrt(alpha_bar) and sqrt(1 - alpha_bar) of diffusers' scheduler."""
    alphas = pipelines.theirs(base).scheduler.alphas_cumprod
    return alphas.sqrt(), (1 - alphas).sqrt()


def their_pipeline(kind, base: str, channels: int):
    pipe = kind.from_pretrained(folder(base, channels), tokenizer=None, text_encoder=None)
    pipe.scheduler = diffusers.CogVideoXDDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def their_pass(base: str, channels: int, latents: torch.Tensor, timestep: int, ofs=None) -> torch.Tensor:
    """Return v predicted by diffusers' transformer: latents [B, C, T, H, W] -> [B, 16, T, H, W]."""
    model, pipe = their_transformer(base, channels), pipelines.theirs(base)
    rotary = None
    if model.config.use_rotary_positional_embeddings:
        rotary = pipe._prepare_rotary_positional_embeddings(HEIGHT, WIDTH, latents.shape[2], torch.device("cpu"))
    text = pipelines.prompts(base)[0][0][0]
    out = model(latents.movedim(1, 2), text, torch.tensor([timestep]), image_rotary_emb=rotary, ofs=ofs)
    return out.sample.movedim(1, 2)


def our_pass(patcher, base: str, conds: dict, x: torch.Tensor, timestep: int) -> torch.Tensor:
    """Return v predicted by our MODEL as the host's samplers ask for it, with conditioning `conds`."""
    model = patcher.model
    sigma = model.model_sampling.sigmas[timestep].view(1)
    text = pipelines.prompts(base)[0][0][0]
    made = model.extra_conds(cross_attn=text, noise=x, device=x.device, **conds)
    made = {name: cond.cond for name, cond in made.items()}
    scale = (1 + sigma**2).sqrt()
    x0 = model.apply_model(x * scale, sigma, transformer_options={}, **made)
    return (x / scale - x0) * scale / sigma  # undo x0 = x / scale - sigma / scale * v for the latent x


# --- CogVideoX-Fun --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_video", [True, False])
@pytest.mark.parametrize("base", ["2b", "5b", "1.5"])
def test_fun_inpainting_computes_as_the_transformer_of_diffusers(base, with_video):
    """33 channels: noise, what is known, the known video; all zero for text alone, as VideoX-Fun has it."""
    patcher, frames = ours(base, 33), 4
    x, image = noise(1, 16, frames, 8, 12, seed=1), noise(1, 16, frames, 8, 12, seed=2)
    mask = torch.zeros(1, 1, frames, 8, 12)
    mask[:, :, 1:3] = 1
    scale = pipelines.theirs(base).vae.config.scaling_factor
    extra = torch.cat(((1 - mask) * scale, image * scale), dim=1)
    conds = dict(concat_latent_image=image, concat_mask=mask)
    if not with_video:
        extra, conds = torch.zeros_like(extra), {}
    actual = our_pass(patcher, base, conds, x, 499)
    assert relative_error(actual, their_pass(base, 33, torch.cat((x, extra), dim=1), 499)) <= ONE_PASS


@pytest.mark.parametrize("base", ["2b", "5b"])
def test_fun_control_equals_diffusers(base):
    control, latent = video(seed=3), empty_latent(WIDTH, HEIGHT, FRAMES, 1)
    latents = coding.encode(pipelines.ours(base)[2], control)
    conds = [node_helpers.conditioning_set_values(c, {"concat_latent_image": latents}) for c in pipelines.prompts(base)]
    actual = nodes.KSampler().sample(ours(base, 32), SEED, STEPS, CFG, "euler", "simple", *conds, latent, 1.0)[0]
    pipe = their_pipeline(diffusers.CogVideoXFunControlPipeline, base, 32)
    noise = pipelines.noise_of(latent["samples"], SEED, 0)
    expected = pipelines.sampled(pipe, base, STEPS, CFG, latents=noise, control_video=pictures(control))
    assert relative_error(actual["samples"], expected) <= TOLERANCE


# --- image-to-video relatives ---------------------------------------------------------------------------------------


def given_images(latents: torch.Tensor):
    """Let diffusers' image-to-video take these image latents [B, T, C, H, W] as they are."""

    def prepare(self, image, *args, latents=None, **kwargs):
        given = args[-1] if latents is None else latents
        return given, image_latents

    image_latents = latents
    return prepare


def image_run(base: str, channels: int, image_latents: torch.Tensor, latent, monkeypatch) -> torch.Tensor:
    kind = diffusers.CogVideoXImageToVideoPipeline
    monkeypatch.setattr(kind, "prepare_latents", given_images(image_latents.movedim(1, 2)))
    pipe = their_pipeline(kind, base, channels)
    noise = pipelines.noise_of(latent["samples"], SEED, 0)
    image = pictures(video(1))[0]
    return pipelines.sampled(pipe, base, STEPS, CFG, latents=noise, image=image, num_frames=FRAMES)


def our_image_run(base: str, channels: int, **images):
    vae = pipelines.ours(base)[2]
    made = image_to_video(*pipelines.prompts(base), vae, WIDTH, HEIGHT, FRAMES, 1, **images)
    inputs = (ours(base, channels), SEED, STEPS, CFG, "euler", "simple", made.positive, made.negative, made.latent, 1.0)
    return nodes.KSampler().sample(*inputs)[0]["samples"], made.latent


def test_nimvideo_has_its_image_in_every_frame(monkeypatch):
    """Its authors encode a still video of the image, which is the latent of the image in every frame."""
    image = video(1, seed=4)
    vae = pipelines.ours("2b")[2]
    still = coding.encode(vae, image.expand(FRAMES, -1, -1, -1))
    assert relative_error(still, coding.encode(vae, image).expand_as(still)) <= 1e-5
    actual, latent = our_image_run("2b", 32, start_image=image)
    scale = pipelines.theirs("2b").vae.config.scaling_factor
    assert relative_error(actual, image_run("2b", 32, still * scale, latent, monkeypatch)) <= TOLERANCE
    zeros = torch.cat((still[:, :, :1], torch.zeros_like(still[:, :, 1:])), dim=2)
    assert relative_error(actual, image_run("2b", 32, zeros * scale, latent, monkeypatch)) > 10 * TOLERANCE


def latent_scale(base: str) -> float:
    return pipelines.theirs(base).vae.config.scaling_factor


def test_interpolation_has_the_first_and_the_last_image(monkeypatch):
    """feizhengcong/CogvideoX-Interpolation: the shape of 5B-I2V, its image latents [first, zeros, last]."""
    first, last = video(1, seed=5), video(1, seed=6)
    actual, latent = our_image_run("5b-i2v", 32, start_image=first, end_image=last)
    vae, scale = pipelines.ours("5b-i2v")[2], latent_scale("5b-i2v")
    ends = [coding.encode(vae, image) * scale for image in (first, last)]
    images = torch.cat((ends[0], torch.zeros_like(ends[0]), ends[1]), dim=2)
    expected = image_run("5b-i2v", 32, images, latent, monkeypatch)
    assert relative_error(actual, expected) <= TOLERANCE


# --- bases of research models ---------------------------------------------------------------------------------------

ADD_ONS = {
    "ConsisID": ("5b-i2v", ["local_facial_extractor.proj_out", "perceiver_cross_attention.0.to_q.weight"]),
    "TrajectoryCrafter": ("5b", ["ref_patch_embed.proj.weight", "perceiver_cross_attention.0.to_q.weight"]),
    "Diffusion as Shader": (
        "5b-i2v",
        ["transformer_blocks_copy.0.attn1.to_q.weight", "combine_linears.0.weight", "initial_combine_linear.bias"],
    ),
    "Tora": ("5b", ["fuser_list.0.flow_conv.weight", "traj_extractor.conv_in.weight"]),
}


@pytest.mark.parametrize("name", ADD_ONS)
def test_a_research_model_loads_as_its_base_and_the_node_says_so(name, tmp_path):
    base, extra = ADD_ONS[name]
    shutil.copytree(pipelines.folder(base), tmp_path / "model")
    file = tmp_path / "model" / "transformer" / WEIGHTS
    weights = load_file(file)
    save_file(weights | {key: torch.ones(2) for key in extra}, file)
    patcher = loading.load_model(str(tmp_path / "model"))
    loaded = patcher.model.diffusion_model.state_dict()
    assert loaded.keys() == weights.keys() and all(torch.equal(loaded[key], weights[key]) for key in weights)
    assert patcher.model.variant == pipelines.ours(base)[0].model.variant
    note = f"This is the base of {name} alone: the layers that {name} adds to it are left out."
    note += "" if name == "TrajectoryCrafter" else f" Load CogVideoX {name} loads them too."
    assert loading.describe(patcher).split("\n")[1:] == [note]
    assert "\n" not in loading.describe(pipelines.ours(base)[0])


# --- VOID -----------------------------------------------------------------------------------------------------------

VOID_FRAMES = 13  # 4 latents


@cache
def void_conditioning():
    """Return what the stock VOID nodes make of a video and a mask of a square to take out."""
    mask = torch.ones(VOID_FRAMES, HEIGHT, WIDTH)
    mask[:, 16:48, 32:64] = 0
    quadmask = VOIDQuadmaskPreprocess.execute(mask, 0).result[0]
    vae, prompts = pipelines.ours("1.5")[2], pipelines.prompts("1.5")
    return VOIDInpaintConditioning.execute(
        *prompts, vae, video(VOID_FRAMES, seed=7), quadmask, WIDTH, HEIGHT, VOID_FRAMES, 1
    ).result


def void_reference(start: torch.Tensor) -> torch.Tensor:
    """Run diffusers' DDIM on its transformer, with the conditioning as ComfyUI's own model scales it."""
    positive, negative, _ = void_conditioning()
    scheduler = diffusers.CogVideoXDDIMScheduler.from_config(pipelines.theirs("1.5").scheduler.config)
    scheduler.set_timesteps(STEPS)
    model, pipe = their_transformer("1.5", 48), pipelines.theirs("1.5")
    images = (positive[0][1]["concat_latent_image"] * 0.7).movedim(1, 2).expand(2, -1, -1, -1, -1)
    text = torch.cat((negative[0][0], positive[0][0]))
    rotary = pipe._prepare_rotary_positional_embeddings(HEIGHT, WIDTH, start.shape[2], torch.device("cpu"))
    latents = start.movedim(1, 2)
    for t in scheduler.timesteps:
        both = torch.cat((latents.expand(2, -1, -1, -1, -1), images), dim=2)
        v = model(both, text, t.expand(2), image_rotary_emb=rotary).sample
        v = v[:1] + CFG * (v[1:] - v[:1])
        latents = scheduler.step(v, t, latents, return_dict=False)[0]
    return latents.movedim(1, 2) / 0.7


def void_run(sampler, noise_source) -> torch.Tensor:
    positive, negative, latent = void_conditioning()
    model = ours("1.5", 48)
    guider = CFGGuider.execute(model, positive, negative, CFG).result[0]
    sigmas = CogVideoXScheduler.execute(model, STEPS, 1.0).result[0]
    return SamplerCustomAdvanced.execute(noise_source, guider, sampler, sigmas, latent).result[0]["samples"]


def test_void_runs_behind_the_stock_void_nodes():
    positive, _, latent = void_conditioning()
    assert positive[0][1]["concat_latent_image"].shape == (1, 32, 4, 8, 12)
    source = RandomNoise.execute(SEED).result[0]
    expected = void_reference(source.generate_noise(latent))
    results = [
        void_run(sampler, source)
        for sampler in (VOIDSampler.execute().result[0], CogVideoXSamplerSelect.execute("ddim").result[0])
    ]
    assert torch.equal(*results)  # the stock sampler is written for the space of ComfyUI's own class
    assert relative_error(results[0], expected) <= TEN_STEPS


def test_void_takes_the_stock_warped_noise():
    """Its second pass starts from noise that moves with the video."""
    warped = {"samples": noise(1, 16, 4, 8, 12, seed=8)}
    source = VOIDWarpedNoiseSource.execute(warped).result[0]
    actual = void_run(VOIDSampler.execute().result[0], source)
    assert relative_error(actual, void_reference(warped["samples"])) <= TEN_STEPS


def test_void_with_stacked_masks_takes_its_20_channels():
    x, stacked = noise(1, 16, 4, 8, 12, seed=1), noise(1, 20, 4, 8, 12, seed=2)
    actual = our_pass(ours("1.5", 36), "1.5", dict(concat_latent_image=stacked), x, 499)
    expected = their_pass("1.5", 36, torch.cat((x, stacked * 0.7), dim=1), 499)
    assert relative_error(actual, expected) <= ONE_PASS


# --- one-step restoration -------------------------------------------------------------------------------------------

RESTORE_TIMESTEP = 399


def restored(patcher, latent: torch.Tensor, guider) -> torch.Tensor:
    """Sample as the template restore_dove does."""
    sigmas = CogVideoXScheduler.execute(patcher, 2, 0.4).result[0]
    assert sigmas[0] == patcher.model.model_sampling.sigmas[RESTORE_TIMESTEP]
    sampler, quiet = CogVideoXSamplerSelect.execute("one step").result[0], DisableNoise.execute().result[0]
    return SamplerCustomAdvanced.execute(quiet, guider, sampler, sigmas, {"samples": latent}).result[0]["samples"]


def one_step(base: str, channels: int, latents: torch.Tensor, image=None, ofs=None) -> torch.Tensor:
    """Restore as DOVE and SparkVSR write it out: x0 = sqrt(a) x - sqrt(1 - a) v, the first of odd latents copied."""
    leading = latents.shape[2] % 2 if base.startswith("1.5") else 0
    parts = [latents] if image is None else [latents, image]
    x = torch.cat([torch.cat((part[:, :, :1],) * leading + (part,), dim=2) for part in parts], dim=1)
    v = their_pass(base, channels, x, RESTORE_TIMESTEP, ofs)
    signal, spread = (table[RESTORE_TIMESTEP] for table in their_schedule(base))
    return (signal * x[:, :16] - spread * v)[:, :, leading:]


@pytest.mark.parametrize(("base", "frames"), [("1.5", 9), ("1.5", 13), ("2b", 9)])
def test_dove_restores_in_one_step(base, frames):
    """DOVE has the shapes of 1.5-5B (DOVE-2B of 2B); odd and even latent counts."""
    patcher, _, vae = pipelines.ours(base)
    latent = vae.encode(video(frames, seed=9))
    before = latent.clone()
    actual = restored(patcher, latent, BasicGuider.execute(patcher, pipelines.prompts(base)[0]).result[0])
    scale = pipelines.theirs(base).vae.config.scaling_factor
    expected = one_step(base, 16, latent * scale) / scale
    assert relative_error(actual, expected) <= ONE_PASS
    assert relative_error(actual, latent) > 0.1
    assert torch.equal(latent, before)


@pytest.mark.parametrize("frames", [9, 13])
@pytest.mark.parametrize("keyframes", ["start", "both", "none"])
def test_sparkvsr_restores_in_one_step(keyframes, frames):
    """The shapes of 1.5-I2V: keyframes scaled like the video, zeros elsewhere, both held in the extra latent; ofs 2."""
    base = "1.5-i2v"
    patcher = loading.load_model(str(pipelines.folder(base)), "fp32", "sparkvsr")
    vae, prompt = pipelines.ours(base)[2], pipelines.prompts(base)[0]
    latent = vae.encode(video(frames, seed=9))
    scale = pipelines.theirs(base).vae.config.scaling_factor
    images, known = {}, torch.zeros_like(latent)
    for name, index in (("start_image", 0), ("end_image", latent.shape[2] - 1)):
        if keyframes == "both" or keyframes == name.removesuffix("_image"):
            images[name] = video(1, seed=10 + index)
            still = vae.encode(images[name].expand(4, -1, -1, -1))  # as its authors encode a keyframe
            known[:, :, index] = still[:, :, 0]
    if images:
        mask = torch.ones_like(known[:, :1])
        mask[:, :, [0] if keyframes == "start" else [0, -1]] = 0
        prompt = node_helpers.conditioning_set_values(prompt, {"concat_latent_image": known, "concat_mask": mask})
    if images and frames == FRAMES:  # the node makes the same
        made = image_to_video(*pipelines.prompts(base), vae, WIDTH, HEIGHT, frames, 1, **images)
        assert relative_error(made.positive[0][1]["concat_latent_image"], known) <= 1e-5
        prompt = made.positive
    actual = restored(patcher, latent, BasicGuider.execute(patcher, prompt).result[0])
    expected = one_step(base, 32, latent * scale, known * scale, torch.tensor([2.0])) / scale
    assert relative_error(actual, expected) <= ONE_PASS


@pytest.mark.parametrize("positions", ["4", "0, 4, 8"])
def test_keyframes_of_image_to_video_lie_where_sparkvsr_has_them(positions):
    """Its authors put a keyframe at latent frame // 4, encoded as four still frames: for multiples of 4 as the node."""
    base, frames = "1.5-i2v", [int(word) for word in positions.split(",")]
    patcher = loading.load_model(str(pipelines.folder(base)), "fp32", "sparkvsr")
    vae, pictures = pipelines.ours(base)[2], video(len(frames), seed=20)
    latent, scale = vae.encode(video(9, seed=9)), pipelines.theirs(base).vae.config.scaling_factor
    known = torch.zeros_like(latent)
    for frame, picture in zip(frames, pictures, strict=True):
        known[:, :, frame // 4] = vae.encode(picture.expand(4, -1, -1, -1))[:, :, 0]
    prompts = pipelines.prompts(base)
    made = image_to_video(*prompts, vae, WIDTH, HEIGHT, 9, 1, keyframes=pictures, keyframe_positions=positions)
    assert relative_error(made.positive[0][1]["concat_latent_image"], known) <= 1e-5
    actual = restored(patcher, latent, BasicGuider.execute(patcher, made.positive).result[0])
    parts = [one_step(base, 32, latent * scale, image * scale, torch.tensor([2.0])) for image in (known, known.flip(2))]
    assert relative_error(actual, parts[0] / scale) <= ONE_PASS
    if positions != "4":  # the middle is where it is from both ends
        assert relative_error(actual, parts[1] / scale) > 10 * ONE_PASS


def test_sparkvsr_is_guided_by_its_keyframes():
    """Its reference guidance: the same prompt without keyframes as the negative."""
    base = "1.5-i2v"
    patcher = loading.load_model(str(pipelines.folder(base)), "fp32", "sparkvsr")
    vae, prompt = pipelines.ours(base)[2], pipelines.prompts(base)[0]
    latent, scale = vae.encode(video(9, seed=9)), pipelines.theirs(base).vae.config.scaling_factor
    made = image_to_video(prompt, prompt, vae, WIDTH, HEIGHT, 9, 1, start_image=video(1, seed=10))
    known = made.positive[0][1]["concat_latent_image"]
    actual = restored(patcher, latent, CFGGuider.execute(patcher, made.positive, prompt, 1.5).result[0])
    with_image, without = (
        one_step(base, 32, latent * scale, image * scale, torch.tensor([2.0])) / scale
        for image in (known, torch.zeros_like(known))
    )
    assert relative_error(actual, without + 1.5 * (with_image - without)) <= ONE_PASS


# --- what the loader shows ------------------------------------------------------------------------------------------

SHOWN = {
    "2b": "CogVideoX-2B, bf16, 3.4 GB",
    "5b": "CogVideoX-5B, bf16, 11.1 GB",
    "5b-i2v": "CogVideoX-5B-I2V, bf16, 11.3 GB",
    "1.5-5b": "CogVideoX1.5-5B, bf16, 11.1 GB",
    "1.5-5b-i2v": "CogVideoX1.5-5B-I2V, bf16, 11.1 GB",
    "fun-2b-inp": "CogVideoX-Fun 2B InP (V1.0, V1.1), bf16, 3.4 GB",
    "fun-5b-inp": "CogVideoX-Fun 5B InP (V1.0, V1.1), bf16, 11.1 GB",
    "fun-1.5-5b-inp": "CogVideoX-Fun V1.5 InP, bf16, 11.1 GB",
    "fun-2b-control": "CogVideoX-2B image-to-video (NimVideo) or CogVideoX-Fun 2B Control/Pose, bf16, 3.4 GB",
    "fun-5b-control": "CogVideoX-Fun 5B Control/Pose, bf16, 11.1 GB",
    "void": "VOID, bf16, 11.1 GB",
    "void-stacked": "VOID (stacked masks), bf16, 11.1 GB",
    "consisid": "CogVideoX-5B-I2V, bf16, 11.3 GB\nThis is the base of ConsisID alone",
    "das": "CogVideoX-5B-I2V, bf16, 11.3 GB\nThis is the base of Diffusion as Shader alone",
    "trajectorycrafter": "CogVideoX-Fun 5B InP (V1.0, V1.1), bf16, 11.1 GB\nThis is the base of TrajectoryCrafter",
}


@pytest.mark.parametrize("name", SHOWN)
def test_the_node_shows_what_was_recognised(name, monkeypatch):
    """Released names, shapes and sizes; one number stands for every tensor, so nothing of that size is held."""
    one = torch.zeros(1, dtype=torch.bfloat16)
    tensors = {key: one.expand(shape) for key, shape in load(name).items()}
    monkeypatch.setattr(loading, "read_state_dict", lambda path: (tensors, {}))
    monkeypatch.setattr(loading, "check_numbers", lambda state_dict: None)
    assert loading.describe(loading.load_model("a.safetensors")).startswith(SHOWN[name])


def test_the_overrides_of_this_file_are_offered():
    assert {"sparkvsr", "image_repeated"} <= set(detection.VARIANT_OVERRIDES)
    assert schedule.trailing_timesteps(5)[3] == RESTORE_TIMESTEP  # what 2 steps at denoise 0.4 begin at
