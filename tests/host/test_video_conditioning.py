"""Images at frames, masked videos, control videos and VOID against the arithmetic of their authors, on tiny weights."""

import copy
from dataclasses import replace

import comfy.utils
import diffusers
import pytest
import torch
import torch.nn.functional as F
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode
from comfy_extras.nodes_mask import ImageCompositeMasked
from comfy_extras.nodes_void import VOIDInpaintConditioning, VOIDQuadmaskPreprocess
from pack.cogvideox.latents import repeat_last_frame
from pack.demo import tiny_pipeline
from pack.nodes.conditioning import CogVideoXImageToVideo
from pack.nodes.host import sampling
from pack.nodes.host.conditioning import CONTROL_VIDEO, MASKED_VIDEO, empty_latent
from pack.nodes.video_conditioning import CogVideoXControlToVideo, CogVideoXInpaintVideo, CogVideoXVOIDConditioning

import nodes

from . import pipelines
from .pipelines import FRAMES, HEIGHT, WIDTH, relative_error, tensors

SEED, STEPS, CFG = 11, 5, 6.0  # 5 steps divide 1000: the reference's own spacing
SIZE = (WIDTH, HEIGHT, FRAMES, 1)
# Measured: concatenated channels at most 1.3e-6 off, all of it the VAE's, and latents 2.0e-5.
CONCAT_TOLERANCE, LATENT_TOLERANCE, FRAME_TOLERANCE = 4e-6, 1e-4, 1e-3
FUN = ("fun-inp", "fun-inp-1.5")

pytestmark = pytest.mark.usefixtures("inference")


def clip(frames=FRAMES, seed=0, width=WIDTH, height=HEIGHT) -> torch.Tensor:
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(seed))


def blobs(frames=FRAMES, seed=1) -> torch.Tensor:
    """MASK [frames, H, W]: rectangles that differ from frame to frame."""
    mask = torch.zeros(frames, HEIGHT, WIDTH)
    for frame, at in enumerate(torch.randint(4, 40, (frames, 2), generator=torch.Generator().manual_seed(seed))):
        mask[frame, at[0] : at[0] + 22, at[1] : at[1] + 35] = 1
    return mask


def common(variant):
    return *pipelines.prompts(variant), pipelines.ours(variant)[2], *SIZE


def inpaint(variant, video=None, mask=None, strength=1.0, start=0.0, end=1.0, **options):
    video, mask = clip() if video is None else video, blobs() if mask is None else mask
    return CogVideoXInpaintVideo.execute(*common(variant), video, mask, strength, start, end, **options).result


def control(variant="fun-control", video=None, strength=1.0, start=0.0, end=1.0, **options):
    video = clip() if video is None else video
    return CogVideoXControlToVideo.execute(*common(variant), video, strength, start, end, **options).result


def images(variant, **options):
    return CogVideoXImageToVideo.execute(*common(variant), **options).result


def void(void_pass="pass 1", mask=None):
    mask = blobs() if mask is None else mask
    return CogVideoXVOIDConditioning.execute(*common("void"), clip(), mask, void_pass).result


def sample(variant, made, steps=STEPS, model=None, name="ddim", denoise=1.0):
    model = model or pipelines.ours(variant)[0]
    return sampling.sample(model, *made[:2], made[2], SEED, steps, CFG, name, denoise)["samples"]


def seen(variant, made, steps=1, model=None) -> list[torch.Tensor]:
    """Return the channels behind the noisy latents as the transformer gets them in each pass of a run."""
    passes = []
    network = pipelines.ours(variant)[0].model.diffusion_model
    hook = network.register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0][:, 16:].clone()))
    try:
        sample(variant, made, steps, model)
    finally:
        hook.remove()
    return passes


# --- the authors' arithmetic ---------------------------------------------------------------------------------------


def encode(variant, pixels: torch.Tensor) -> torch.Tensor:
    """diffusers' VAE on pixels [B, 3, F, H, W] in -1..1: mode, scaled."""
    vae = pipelines.theirs(variant).vae
    return vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor


def pixels_of(video: torch.Tensor) -> torch.Tensor:
    return video.movedim(-1, 0)[None] * 2 - 1


def videox_fun(variant, video: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mask and masked video as VideoX-Fun concatenates them, [1, 17, T, h, w]: IMAGE [F, H, W, 3], MASK [F, H, W]."""
    unknown = (mask >= 0.5).float()[None, None]
    init = pixels_of(video)
    masked = init * (unknown < 0.5) + torch.ones_like(init) * (unknown > 0.5) * -1
    latents = encode(variant, masked)
    t, h, w = latents.shape[2:]
    options = dict(mode="trilinear", align_corners=False)
    first = F.interpolate(1 - unknown[:, :, :1], size=(1, h, w), **options)
    rest = F.interpolate(1 - unknown[:, :, 1:], size=(t - 1, h, w), **options)
    scale = pipelines.theirs(variant).vae.config.scaling_factor
    return torch.cat((torch.cat((first, rest), dim=2) * scale, latents), dim=1)


def denoised(variant, latent, channels) -> torch.Tensor:
    """The reference's latents after STEPS of DDIM with `channels` behind the noise, unscaled."""
    pipe = pipelines.theirs(variant)
    scheduler, frames = pipe.scheduler, latent["samples"].shape[2]
    scheduler.set_timesteps(STEPS)
    x = pipelines.noise_of(latent["samples"], SEED, channels.shape[2] - frames)
    x = torch.cat((x[:, -frames:], x[:, :-frames]), dim=1)  # what VideoX-Fun has more lies behind
    embeds = pipelines.embeddings(variant)
    text = torch.cat((embeds["negative_prompt_embeds"], embeds["prompt_embeds"]))
    rotary = pipe._prepare_rotary_positional_embeddings(HEIGHT, WIDTH, x.shape[1], "cpu")
    for timestep in scheduler.timesteps:
        both = torch.cat((x, channels.movedim(1, 2)), dim=2).repeat(2, 1, 1, 1, 1)
        negative, positive = pipe.transformer(
            both, text, timestep.expand(2), image_rotary_emb=rotary, return_dict=False
        )[0].chunk(2)
        x = scheduler.step(negative + CFG * (positive - negative), timestep, x, return_dict=False)[0]
    return x.movedim(1, 2)[:, :, :frames] / pipe.vae.config.scaling_factor


# --- inpainting ----------------------------------------------------------------------------------------------------

MASKS = {
    "each frame": blobs(),
    "one for all": blobs(1),
    "soft": blobs() * torch.linspace(0.2, 1, WIDTH),
    "the end": torch.cat((torch.zeros(5, HEIGHT, WIDTH), torch.ones(4, HEIGHT, WIDTH))),
    "nothing": torch.zeros(FRAMES, HEIGHT, WIDTH),
}


@pytest.mark.parametrize("kind", MASKS)
def test_mask_and_masked_video_are_those_of_videox_fun(kind, record_property):
    mask = MASKS[kind]
    (channels,) = seen("fun-inp", inpaint("fun-inp", mask=mask))
    expected = videox_fun("fun-inp", clip(), mask.expand(FRAMES, -1, -1))
    for part in channels:
        error = relative_error(part[None], expected)
        record_property("relative_error", error)
        assert error <= CONCAT_TOLERANCE
        assert relative_error(part[None, :1], expected[:, :1]) <= CONCAT_TOLERANCE


def test_a_mask_over_everything_is_text_to_video():
    (channels,) = seen("fun-inp", inpaint("fun-inp", mask=torch.ones(1, HEIGHT, WIDTH)))
    assert not channels.any()
    text = (*pipelines.prompts("fun-inp"), empty_latent(*SIZE))
    assert torch.equal(
        sample("fun-inp", inpaint("fun-inp", mask=torch.ones(1, HEIGHT, WIDTH))), sample("fun-inp", text)
    )


@pytest.mark.parametrize("variant", FUN)
def test_inpainting_equals_the_reference(variant, record_property):
    made = inpaint(variant)
    channels = videox_fun(variant, clip(), blobs())
    behind = channels.shape[2] % 2 if variant.endswith("1.5") else 0
    channels = repeat_last_frame(channels, behind)
    assert relative_error(seen(variant, made)[0][:1], channels) <= CONCAT_TOLERANCE
    error = relative_error(sample(variant, made), denoised(variant, made[2], channels))
    record_property("latents_relative_error", error)
    assert error <= LATENT_TOLERANCE


def test_the_latent_may_start_from_the_video():
    _, _, latent = inpaint("fun-inp", start_from_video=True)
    assert relative_error(latent["samples"], encode("fun-inp", pixels_of(clip())) / 0.7) <= CONCAT_TOLERANCE
    empty = inpaint("fun-inp")
    assert not empty[2]["samples"].any()
    made = (*empty[:2], latent)
    little, much = (sample("fun-inp", made, steps=2, denoise=value) for value in (0.1, 0.9))
    assert relative_error(little, latent["samples"]) < relative_error(much, latent["samples"])


def test_noise_is_added_to_what_is_known_only():
    videos = []
    vae = copy.copy(pipelines.ours("fun-inp")[2])
    encode = vae.encode
    vae.encode = lambda pixels: videos.append(pixels[0]) or encode(pixels)
    inputs = (*pipelines.prompts("fun-inp"), vae, *SIZE, torch.full_like(clip(), 0.5), blobs(), 1.0, 0.0, 1.0)
    for seed in (3, 3, 4):
        CogVideoXInpaintVideo.execute(*inputs, noise_augmentation=0.2, noise_seed=seed)
    covered = blobs() == 1
    assert not videos[0][covered].any()
    noise = (videos[0][~covered] - 0.5) * 2  # on the VAE's scale of -1 to 1
    assert abs(noise.std() / 0.2 - 1) < 0.02 and abs(noise.mean()) < 0.01
    assert torch.equal(videos[0], videos[1]) and not torch.equal(videos[0], videos[2])


@pytest.mark.parametrize("videos", [1, 2])
def test_unmasked_pixels_come_back_exactly(videos):
    """The stock composite after decoding; a batch needs the video as often."""
    positive, negative, latent = inpaint("fun-inp")
    latent = {"samples": latent["samples"].repeat(videos, 1, 1, 1, 1)}
    frames = nodes.VAEDecode().decode(
        pipelines.ours("fun-inp")[2], {"samples": sample("fun-inp", (positive, negative, latent), steps=1)}
    )[0]
    originals = clip().repeat(videos, 1, 1, 1)
    out = ImageCompositeMasked.execute(originals, frames, 0, 0, False, blobs().repeat(videos, 1, 1)).result[0]
    covered = (blobs() == 1).repeat(videos, 1, 1)
    assert torch.equal(out[~covered], originals[~covered])
    assert torch.equal(out[covered], frames[covered])


# --- images at frames ----------------------------------------------------------------------------------------------

PLACES = {
    "start": dict(start_image=clip(1, 2)),
    "end": dict(end_image=clip(1, 3)),
    "both": dict(start_image=clip(1, 2), end_image=clip(1, 3)),
    "keyframes": dict(keyframes=clip(3, 4), keyframe_positions="0, 3 -1"),
}
FRAMES_OF = {"start": [0], "end": [8], "both": [0, 8], "keyframes": [0, 3, 8]}


def pictures(kind) -> torch.Tensor:
    given = PLACES[kind]
    return torch.cat([given[name] for name in ("start_image", "end_image", "keyframes") if name in given])


@pytest.mark.parametrize("variant", FUN)
@pytest.mark.parametrize("kind", PLACES)
def test_fun_sees_images_as_videox_fun_shows_them(kind, variant, record_property):
    """Beside 1.5's odd count lies unknown video, so that VideoX-Fun's 13 frames are what is asked for as 9."""
    length = FRAMES + (4 if variant.endswith("1.5") else 0)
    video, mask = torch.zeros(length, HEIGHT, WIDTH, 3), torch.ones(length, HEIGHT, WIDTH)
    video[FRAMES_OF[kind]], mask[FRAMES_OF[kind]] = pictures(kind), 0
    expected, made = videox_fun(variant, video, mask), images(variant, **PLACES[kind])
    error = relative_error(seen(variant, made)[0][:1], expected)
    record_property("relative_error", error)
    assert error <= CONCAT_TOLERANCE
    if kind == "both":
        assert relative_error(sample(variant, made), denoised(variant, made[2], expected)) <= LATENT_TOLERANCE


def test_an_end_frame_marks_the_mask_as_resizing_does():
    """VideoX-Fun takes the second and third of four frames: the last one leaves no mark, three do."""
    last = seen("fun-inp", images("fun-inp", end_image=clip(1)))[0]
    assert not last[:, 0].any() and last[:, 1:, -1].any()
    mask = torch.ones(FRAMES, HEIGHT, WIDTH)
    mask[-3:] = 0
    three = seen("fun-inp", inpaint("fun-inp", mask=mask))[0]
    assert (three[:, 0, -1] == torch.tensor(0.7)).all() and not three[:, 0, :-1].any()


@pytest.mark.parametrize("kind", PLACES)
def test_the_2b_of_nimvideo_sees_each_image_held(kind, record_property):
    at = [0, *FRAMES_OF[kind][1:], FRAMES]
    held = torch.cat([pictures(kind)[[n]].expand(at[n + 1] - at[n], -1, -1, -1) for n in range(len(at) - 1)])
    error = relative_error(seen("2b-i2v", images("2b-i2v", **PLACES[kind]))[0][:1], encode("2b-i2v", pixels_of(held)))
    record_property("relative_error", error)
    assert error <= CONCAT_TOLERANCE


@pytest.mark.parametrize("variant", pipelines.IMAGE_TO_VIDEO)
def test_keyframes_lie_at_their_latents(variant):
    scale = {"5b-i2v": 0.7, "1.5-i2v": 1.0}[variant]
    channels = seen(variant, images(variant, **PLACES["keyframes"]))[0][:1]
    leading = channels.shape[2] - 3
    for picture, index in zip(PLACES["keyframes"]["keyframes"], (0, 1 + leading, 2 + leading), strict=True):
        expected = encode(variant, pixels_of(picture[None])) / 0.7 * scale
        assert relative_error(channels[:, :, [index]], expected) <= CONCAT_TOLERANCE


def test_a_first_and_last_keyframe_are_a_start_and_an_end_image():
    both = PLACES["both"]
    keyframes = torch.cat((both["end_image"], both["start_image"]))
    for variant in ("5b-i2v", "fun-inp", "2b-i2v"):
        ours = images(variant, keyframes=keyframes, keyframe_positions="-1,0")
        assert torch.equal(seen(variant, ours)[0], seen(variant, images(variant, **both))[0])


def test_known_frames_are_encoded_once_for_many_runs():
    made = images("fun-inp", start_image=clip(1))
    frames = made[0][0][1]["cogvideox_known_frames"]
    first = frames.masked_video(0)
    seen("fun-inp", made)
    assert frames.masked_video(0) is first and len(frames.encoded) == 1
    assert made[0][0][1].get(MASKED_VIDEO) is None, "the run wrote into its input"


def test_images_of_another_length_are_refused_by_fun_too():
    made = images("fun-inp", start_image=clip(1))
    with pytest.raises(ValueError, match="image conditioning is 96x64 px, 9 frames and the video 96x64 px, 17 frames"):
        sample("fun-inp", (*made[:2], empty_latent(WIDTH, HEIGHT, 17, 1)))


# --- control -------------------------------------------------------------------------------------------------------


def test_control_equals_diffusers(record_property):
    made = control()
    pipe = pipelines.theirs("fun-control", kind=diffusers.CogVideoXFunControlPipeline)
    noise = pipelines.noise_of(made[2]["samples"], SEED, 0)
    video = [list(clip().movedim(-1, 1))]
    expected = pipelines.sampled(pipe, "fun-control", STEPS, CFG, latents=noise, control_video=video)
    actual = sample("fun-control", made)
    error = relative_error(actual, expected)
    record_property("latents_relative_error", error)
    assert error <= LATENT_TOLERANCE
    frames = nodes.VAEDecode().decode(pipelines.ours("fun-control")[2], {"samples": actual})[0]
    video = (pipe.vae.decode(expected).sample / 2 + 0.5).clamp(0, 1)[0].movedim(0, -1)
    difference = (frames - video).abs().max().item()
    record_property("frames_max_difference", difference)
    assert difference <= FRAME_TOLERANCE
    assert relative_error(sample("fun-control", control(video=clip(seed=5))), actual) > 0.01


def test_a_control_video_of_another_size_is_fitted_like_an_image():
    large = clip(width=2 * WIDTH, height=3 * HEIGHT)
    (channels,) = seen("fun-control", control(video=large))
    fitted = comfy.utils.common_upscale(large.movedim(-1, 1), WIDTH, HEIGHT, "lanczos", "center").movedim(1, -1)
    assert relative_error(channels[:1], encode("fun-control", pixels_of(fitted))) <= CONCAT_TOLERANCE


# --- VOID ----------------------------------------------------------------------------------------------------------


def greys() -> torch.Tensor:
    """A quadmask video as its tools write it, [F, H, W] in 0..255, with the blur of a codec at its edges."""
    grey = torch.full((FRAMES, HEIGHT, WIDTH), 255.0)
    grey[:, 8:40, 16:80], grey[:, 16:32, 40:70], grey[:, 20:30, 24:56] = 127, 63, 0
    return (grey + torch.randn(grey.shape, generator=torch.Generator().manual_seed(2)) * 8).clamp(0, 255)


def netflix(void_pass, grey: torch.Tensor) -> torch.Tensor:
    """Mask and video as netflix/void-model concatenates them, [1, 32, T, h, w]."""
    mask = torch.where(grey <= 31, 0, grey)
    mask = torch.where((mask > 31) * (mask <= 95), 63, mask)
    mask = torch.where((mask > 95) * (mask <= 191), 127, mask)
    mask = (255 - torch.where(mask > 191, 255, mask))[None, None] / 255.0
    if void_pass == "pass 1":
        mask = torch.where(mask > 0.75, 1.0, mask)
        mask = torch.where((mask <= 0.75) * (mask >= 0.25), 127.0 / 255.0, mask)
        mask = torch.where(mask < 0.25, 0.0, mask)
    else:
        mask = torch.where(mask > 0.5, 1.0, 0.0)
    tiled = torch.tile(mask, [1, 3, 1, 1, 1])
    return torch.cat((encode("void", 1 - tiled), encode("void", pixels_of(clip()))), dim=1)


@pytest.mark.parametrize("void_pass", ["pass 1", "pass 2"])
@pytest.mark.parametrize("preprocessed", [False, True])
def test_void_equals_its_authors(void_pass, preprocessed, record_property):
    mask = VOIDQuadmaskPreprocess.execute(greys()).result[0] if preprocessed else 1 - greys() / 255
    made, expected = void(void_pass, mask), repeat_last_frame(netflix(void_pass, greys()), 1)
    error = relative_error(seen("void", made)[0][:1], expected)
    record_property("relative_error", error)
    assert error <= CONCAT_TOLERANCE
    assert relative_error(sample("void", made), denoised("void", made[2], expected)) <= LATENT_TOLERANCE


def test_the_stock_void_node_differs(record_property):
    """It blackens the video under the mask and puts the mask on the VAE's whole scale. On noise: 0.68, 0.72."""
    mask = VOIDQuadmaskPreprocess.execute(greys()).result[0]
    expected = netflix("pass 1", greys())
    positive = VOIDInpaintConditioning.execute(*common("void")[:3], clip(), mask, *SIZE).result[0]
    stock = positive[0][1]["concat_latent_image"] * 0.7  # 9 frames are cut to 5, so the first latents are compared
    for name, part in (("mask", slice(16)), ("video", slice(16, None))):
        error = relative_error(stock[:, part, :1], expected[:, part, :1])
        record_property(f"stock_{name}_relative_error", error)
        assert error > 0.1


# --- strength, part of the sampling, batches, windows --------------------------------------------------------------

KINDS = {
    "inpaint": ("fun-inp", lambda **span: inpaint("fun-inp", **span)),
    "control": ("fun-control", lambda **span: control("fun-control", **span)),
    "image": ("5b-i2v", lambda **span: images("5b-i2v", start_image=clip(1), **of_images(span))),
    "image of 1.5": ("1.5-i2v", lambda **span: images("1.5-i2v", start_image=clip(1), **of_images(span))),
    "image in Fun": ("fun-inp-1.5", lambda **span: images("fun-inp-1.5", start_image=clip(1), **of_images(span))),
    "image in NimVideo": ("2b-i2v", lambda **span: images("2b-i2v", start_image=clip(1), **of_images(span))),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def of_images(span):
    names = {"strength": "image_strength", "start": "image_start_percent", "end": "image_end_percent"}
    return {names[name]: value for name, value in span.items()}


@every_kind
def test_strength_scales_the_channels(kind):
    variant, make = KINDS[kind]
    (whole,), (half,), (none,) = (seen(variant, make(strength=value)) for value in (1.0, 0.5, 0.0))
    assert relative_error(half, whole / 2) <= CONCAT_TOLERANCE
    assert whole.any() and not none.any()


@every_kind
@pytest.mark.parametrize(("start", "end", "active"), [(0.0, 0.5, [0, 1]), (0.5, 1.0, [2, 3]), (0.25, 0.75, [1, 2])])
def test_the_channels_are_there_for_part_of_the_sampling(kind, start, end, active):
    variant, make = KINDS[kind]
    always, part = seen(variant, make(), steps=4), seen(variant, make(start=start, end=end), steps=4)
    assert len(part) == 4
    for step, (whole, now) in enumerate(zip(always, part, strict=True)):
        assert torch.equal(now, whole if step in active else torch.zeros_like(whole))


@every_kind
def test_a_span_the_wrong_way_round_is_refused(kind):
    with pytest.raises(ValueError, match="start percent 0.5 is not below the end percent 0.5. The image or video"):
        KINDS[kind][1](start=0.5, end=0.5)


BATCHES = {**KINDS, "void": ("void", lambda: void())}


@pytest.mark.parametrize("kind", BATCHES)
def test_two_videos_at_once_are_two_videos(kind):
    variant, make = BATCHES[kind]
    positive, negative, latent = make()
    two = {"samples": torch.zeros_like(latent["samples"]).repeat(2, 1, 1, 1, 1)}
    for channels in seen(variant, (positive, negative, two)):
        assert len(channels) == 4 and all(torch.equal(part, channels[0]) for part in channels)
    out = sample(variant, (positive, negative, two), steps=2)
    assert out.shape == (2, 16, 3, HEIGHT // 8, WIDTH // 8) and relative_error(out[1], out[0]) > 0.1


@pytest.mark.parametrize("variant", ["fun-inp", "2b-i2v"])
def test_two_start_images_are_two_videos(variant):
    two = images(variant, start_image=clip(2))
    (channels,) = seen(variant, two)
    for index in range(2):
        (one,) = seen(variant, images(variant, start_image=clip(2)[[index]]))
        assert relative_error(channels[[index]], one[:1]) <= CONCAT_TOLERANCE


def test_batch_size_makes_that_many():
    inputs = (*common("fun-inp")[:-1], 2)
    for options in (dict(), dict(start_from_video=True)):
        made = CogVideoXInpaintVideo.execute(*inputs, clip(), blobs(), 1.0, 0.0, 1.0, **options).result
        assert len(made[2]["samples"]) == 2
        assert len(sample("fun-inp", made, steps=1)) == 2


@pytest.mark.parametrize("kind", BATCHES)
def test_context_windows_cut_the_channels(kind):
    """Each window gets the channels of its own latents, and of the first where the host adds that."""
    variant, make = BATCHES[kind]
    whole, windows = seen(variant, make())[0], []
    model = WanContextWindowsManualNode.execute(
        pipelines.ours(variant)[0], 5, 1, "standard_static", 1, False, "pyramid", False
    ).result[0]

    def record(_, inputs, options):
        window = options["transformer_options"]["context_window"]
        first = getattr(window, "causal_anchor_index", None)
        windows.append(([] if first is None or first < 0 else [first]) + list(window.index_list))
        assert torch.equal(inputs[0][:, 16:], whole[:, :, windows[-1]])

    hook = model.model.diffusion_model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        sample(variant, make(), 1, model)
    finally:
        hook.remove()
    assert len(windows) > 1 and len(windows[0]) < whole.shape[2]


@pytest.mark.parametrize("kind", BATCHES)
def test_nothing_given_is_changed(kind):
    variant, make = BATCHES[kind]
    prompts = copy.deepcopy(pipelines.prompts(variant))
    made = make()
    for ((text, values),), ((given, before),) in zip(prompts, pipelines.prompts(variant), strict=True):
        assert torch.equal(text, given) and values.keys() == before.keys()
    before = copy.deepcopy(made)
    sample(variant, made, steps=1)
    for old, new in zip(tensors(before), tensors(made), strict=True):
        assert torch.equal(old, new)
    assert [values.keys() for _, values in made[0]] == [values.keys() for _, values in before[0]]


def test_nodes_leave_videos_and_masks_alone():
    video, mask, picture = clip(width=128), blobs(1), clip(1, width=128)
    given = [tensor.clone() for tensor in (video, mask, picture)]
    inpaint("fun-inp", video=video, mask=mask, noise_augmentation=0.1)
    control(video=video)
    images("fun-inp", start_image=picture, keyframes=picture, keyframe_positions="4", noise_augmentation=0.1)
    CogVideoXVOIDConditioning.execute(*common("void"), video, mask, "pass 1")
    for old, new in zip(given, (video, mask, picture), strict=True):
        assert torch.equal(old, new)


# --- what does not fit ---------------------------------------------------------------------------------------------

WRONG_INPUTS = {
    "frames of the video": (lambda: inpaint("fun-inp", video=clip(10)), "video has 10 frames and length is 9. Set"),
    "frames of the control": (lambda: control(video=clip(8)), "control video has 8 frames and length is 9. Set"),
    "frames of the mask": (lambda: inpaint("fun-inp", mask=blobs(4)), "The mask has 4 frames and the video 9. Give"),
    "frames of VOID's mask": (lambda: void(mask=blobs(4)), "The mask has 4 frames and the video 9. Give"),
    "no mask": (lambda: inpaint("fun-inp", mask=torch.zeros(0, 8, 8)), "The mask is empty or none"),
    "a bad mask": (lambda: inpaint("fun-inp", mask=blobs() * float("nan")), "The mask holds invalid numbers"),
    "a bad video": (lambda: inpaint("fun-inp", video=clip() * float("nan")), "The video holds invalid numbers"),
    "a keyframe outside": (
        lambda: images("5b-i2v", keyframes=clip(1), keyframe_positions="9"),
        "The keyframe position 9 is outside the video of 9 frames. Use 0 to 8",
    ),
    "a keyframe before": (
        lambda: images("5b-i2v", keyframes=clip(1), keyframe_positions="-10"),
        "The keyframe position -10 is outside the video of 9 frames",
    ),
    "a word": (
        lambda: images("5b-i2v", keyframes=clip(1), keyframe_positions="first"),
        'The keyframe position "first" is no frame number',
    ),
    "too few positions": (
        lambda: images("5b-i2v", keyframes=clip(2), keyframe_positions="0"),
        "There are 2 keyframes and 1 keyframe positions",
    ),
    "positions alone": (
        lambda: images("5b-i2v", start_image=clip(1), keyframe_positions="0"),
        "There are keyframe positions (0) and no keyframes",
    ),
    "one group": (
        lambda: images("5b-i2v", keyframes=clip(2), keyframe_positions="1 4"),
        "The keyframe 1 and keyframe 4 lie in the same group of 4 frames",
    ),
    "twice": (
        lambda: images("5b-i2v", start_image=clip(1), keyframes=clip(1), keyframe_positions="0"),
        "The start image and keyframe 0 lie in the same group of 4 frames",
    ),
}


@pytest.mark.parametrize("kind", WRONG_INPUTS)
def test_what_does_not_fit_is_told(kind):
    make, message = WRONG_INPUTS[kind]
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)


WRONG_MODELS = {
    ("5b", "control"): "cannot take the control video in this conditioning. Load a control model",
    ("5b", "inpaint"): "cannot take the masked video in this conditioning. Load an inpainting model",
    ("5b", "image"): "cannot take the image in this conditioning. Load an image-to-video model",
    ("5b-i2v", "control"): "has no channels for a control video. Load CogVideoX-Fun Control",
    ("1.5-i2v", "control"): "has no channels for a control video",
    ("fun-inp", "control"): "has no channels for a control video",
    ("5b-i2v", "inpaint"): "has no channel for a mask",
    ("fun-control", "inpaint"): "has no channel for a mask",
    ("void", "inpaint"): "has no channel for a mask",
    ("void", "image"): "takes 32 conditioning channels and got 16",
    ("5b-i2v", "void"): "takes 16 conditioning channels and got 32",
}


@pytest.mark.parametrize(("variant", "kind"), WRONG_MODELS)
def test_a_model_without_such_channels_is_told(variant, kind):
    made = BATCHES[kind][1]()
    prompts = pipelines.prompts(variant)
    made = *([[prompts[n][0][0], made[n][0][1]]] for n in range(2)), made[2]
    with pytest.raises(ValueError) as error:
        sample(variant, made)
    assert WRONG_MODELS[variant, kind] in str(error.value)


@pytest.mark.parametrize(
    ("variant", "node"),
    [("fun-control", "Control to Video"), ("2b-i2v", "or Image to Video"), ("void", "VOID Conditioning")],
)
def test_a_prompt_alone_is_told_what_it_lacks(variant, node):
    with pytest.raises(
        ValueError, match=f"from another video and this conditioning holds none. Put CogVideoX .*{node}"
    ):
        sample(variant, (*pipelines.prompts(variant), empty_latent(*SIZE)))


def test_control_with_a_start_image_needs_channels_for_both():
    made = control(start_image=clip(1))
    assert made[0][0][1][CONTROL_VIDEO].shape == made[2]["samples"].shape
    with pytest.raises(ValueError, match="takes a control video and no start image beside it"):
        sample("fun-control", made)


def ksampler(variant, made):
    """Run the stock KSampler on what a node made."""
    args = (pipelines.ours(variant)[0], SEED, STEPS, CFG, "euler", "simple", *made)
    return nodes.KSampler().sample(*args, 1.0)[0]["samples"]


@pytest.fixture
def both(monkeypatch):
    """Return the name of a tiny model with 48 channels: noise, start image and control, in VideoX-Fun's order."""
    config = replace(tiny_pipeline.VARIANTS["fun-control"], in_channels=48)
    monkeypatch.setitem(tiny_pipeline.VARIANTS, "control-and-image", config)
    return "control-and-image"


def test_a_control_video_and_a_start_image_reach_a_model_of_48_channels(both, record_property):
    """Whole runs: each in its own channels, the image known in the first latent, and the result the reference's."""
    image, video = clip(1, seed=4), clip()
    made = control(both, video=video, start_image=image)
    passes = []
    network = pipelines.ours(both)[0].model.diffusion_model
    hook = network.register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0][:, 16:].clone()))
    try:
        actual = ksampler(both, made)
    finally:
        hook.remove()
    expected = torch.zeros(1, 32, *made[2]["samples"].shape[2:])
    expected[:, :16, :1] = encode(both, pixels_of(image))
    expected[:, 16:] = encode(both, pixels_of(video))
    assert len(passes) == STEPS
    for channels in passes:  # of both prompts
        assert max(relative_error(part, expected) for part in channels.split(1)) <= CONCAT_TOLERANCE
    error = relative_error(actual, denoised(both, made[2], expected))
    record_property("latents_relative_error", error)
    assert error <= 1e-3  # measured 2.4e-4: the host starts at a finite noise level
    for other in (control(both, video=video), control(both, video=clip(seed=5), start_image=image)):
        assert relative_error(ksampler(both, other), actual) > 0.01


def test_a_control_video_may_end_where_the_start_image_stays(both):
    made = control(both, end=0.5, start_image=clip(1, seed=4))
    early, *_, late = seen(both, made, steps=4)
    assert torch.equal(late[:, :16], early[:, :16]) and early[:, :16].any()
    assert early[:, 16:].any() and not late[:, 16:].any()
