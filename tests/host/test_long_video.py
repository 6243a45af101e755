"""Longer videos: context windows, RIFLEx, pieces that go on, decoding into a file."""

import glob
import os

import av
import comfy.context_windows
import comfy.model_management
import comfy.sample
import comfy.samplers
import folder_paths
import pytest
import torch
from comfy_extras.nodes_context_windows import ContextWindowsManualNode, WanContextWindowsManualNode
from comfy_extras.nodes_rope import ScaleROPE
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from pack.benchmarks.counting import peak_of
from pack.cogvideox.positions import rope_positions, rope_table
from pack.nodes.host import long_video
from pack.nodes.host.conditioning import empty_latent
from pack.nodes.host.windows import VideoWindows, windows_of

import nodes

from . import pipelines
from .pipelines import HEIGHT, WIDTH, relative_error
from .test_chain import CFG, SEED, conditioned, run

pytestmark = pytest.mark.usefixtures("inference")


def windowed(variant, length=9, overlap=5, schedule="standard_static", freenoise=False, fuse="pyramid"):
    model = pipelines.ours(variant)[0]
    return WanContextWindowsManualNode.execute(model, length, overlap, schedule, 1, False, fuse, freenoise).result[0]


def seen_windows(model, variant, length):
    """Return the latent count of each pass of the network in one step, and the frames the host says it ran."""
    sizes, frames = [], []
    network = model.model.diffusion_model

    def look(module, args, kwargs):
        sizes.append(args[0].shape[2])

    def note(options):
        frames.append(list(options["context_window"].index_list))

    hook = network.register_forward_pre_hook(look, with_kwargs=True)
    block = network.transformer_blocks[0].register_forward_pre_hook(lambda _, args: note(args[-1]))
    try:
        out = run(model, variant, steps=1, length=length)
    finally:
        hook.remove()
        block.remove()
    return sizes, frames, out


# --- context windows --------------------------------------------------------------------------------------------------


def test_no_window_of_10_is_longer_than_asked_and_each_later_one_sees_the_frame_before_it():
    sizes, frames, out = seen_windows(windowed("5b"), "5b", 25)
    assert sizes == [3] * len(sizes)
    assert frames[0] == [0, 1, 2] and all(len(window) == 2 for window in frames[1:])
    assert sorted({frame for window in frames for frame in window}) == list(range(7))
    assert out.shape[2] == 7 and torch.isfinite(out).all()


def test_windows_of_15_are_even_and_the_first_begins_with_the_extra_latent():
    sizes, frames, out = seen_windows(windowed("1.5"), "1.5", 25)
    assert sizes == [4] * len(sizes)
    assert frames[0] == [0, 1, 2, 3] and all(len(window) == 3 for window in frames[1:])
    assert sorted({frame for window in frames for frame in window}) == list(range(8))
    assert out.shape[2] == 7 and torch.isfinite(out).all()


@pytest.mark.parametrize("variant", ["5b-i2v", "1.5", "1.5-i2v"])
@pytest.mark.parametrize(
    "schedule, overlap, fuse",
    [
        ("standard_static", 5, "relative"),
        ("standard_static", 0, "flat"),
        ("standard_uniform", 5, "overlap-linear"),
        ("looped_uniform", 5, "pyramid"),
        ("batched", 0, "pyramid"),
    ],
)
def test_every_schedule_covers_every_frame(variant, schedule, overlap, fuse):
    model = windowed(variant, overlap=overlap, schedule=schedule, freenoise=overlap > 0, fuse=fuse)
    out = run(model, variant, steps=2, length=33)
    assert out.shape[2] == 9 and torch.isfinite(out).all()


def first_noise(model, variant, noise):
    """Return what the sampler begins with, [B, C, T, H, W], the extra latent included."""
    seen = []
    sampler = comfy.samplers.KSAMPLER(lambda model, x, *_, **__: seen.append(x) or x)
    sigmas = torch.tensor([model.get_model_object("model_sampling").sigma_max, 0.0])
    positive, negative = pipelines.prompts(variant)
    latent = torch.zeros_like(noise)
    comfy.sample.sample_custom(model, noise, CFG, sampler, sigmas, positive, negative, latent, seed=SEED)
    return seen[0]


@pytest.mark.parametrize("variant, extra", [("5b", 0), ("1.5", 1)])
def test_freenoise_shuffles_the_video_and_not_the_extra_latent(variant, extra):
    noise = torch.randn(1, 16, 7, 4, 4)
    given = noise.clone()
    plain, free = (first_noise(windowed(variant, freenoise=on), variant, given) for on in (False, True))
    assert free.shape[2] == 7 + extra
    assert torch.equal(free[:, :, :extra], plain[:, :, :extra])
    assert not torch.equal(free[:, :, extra:], plain[:, :, extra:])
    assert torch.equal(
        free[:, :, extra:], comfy.context_windows.apply_freenoise(plain[:, :, extra:].clone(), 2, 3, 1, SEED)
    )
    assert torch.equal(given, noise)


def test_the_hosts_own_handler_is_left_alone():
    model = windowed("1.5")
    handler = model.model_options["context_handler"]
    before = dict(vars(handler))
    run(model, "1.5", steps=1, length=25)
    assert model.model_options["context_handler"] is handler and type(handler) is not VideoWindows
    assert vars(handler) == before


@pytest.mark.parametrize(
    "length, overlap, dim, message",
    [(4, 4, 2, "never get on"), (4, 2, 0, "run along dim 0")],
)
def test_windows_that_cannot_work_are_refused_before_sampling(length, overlap, dim, message):
    model = pipelines.ours("5b")[0]
    model = ContextWindowsManualNode.execute(
        model, length, overlap, "standard_static", 1, False, "pyramid", dim, False
    ).result[0]
    with pytest.raises(ValueError, match=message):
        run(model, "5b", length=25)


def test_another_packs_handler_is_passed_on():
    handler = object()
    assert windows_of(handler, 1) is handler


# --- RIFLEx -----------------------------------------------------------------------------------------------------------


def authors_table(frames, k, share=0.9):
    """Return the temporal cosines by the authors' formula: theta_k = 0.9 * 2 pi / L, the others as they were."""
    theta = 1.0 / 10000 ** (torch.arange(0, 16, 2).float() / 16)
    theta[k - 1] = share * 2 * torch.pi / frames
    return torch.outer(torch.arange(frames).float(), theta).repeat_interleave(2, dim=1)


@pytest.mark.parametrize("frames, k", [(25, 2), (41, 2), (41, 3)])
def test_the_table_is_that_of_the_authors(frames, k):
    options = {"riflex_k": k, "riflex_share": 0.9, "riflex_tokens": 0}
    if k == 3:
        options["riflex_tokens"] = frames  # its period, 63, is longer than the video
    positions = rope_positions((frames, 4, 6), None)
    ours = rope_table(positions, 64, 7, options)
    cos, sin = get_3d_rotary_pos_embed(64, None, (4, 6), frames, grid_type="slice", max_size=(4, 6))
    time = authors_table(frames, k)[:, None, None].expand(frames, 4, 6, 16).flatten(0, 2)
    expected = torch.stack((torch.cat((time.cos(), cos[:, 16:]), 1), torch.cat((time.sin(), sin[:, 16:]), 1)))
    torch.testing.assert_close(ours[:, 7:], expected, rtol=0, atol=1e-5)


def test_within_one_period_nothing_changes():
    positions = rope_positions((20, 4, 6), None)
    options = {"riflex_k": 2, "riflex_share": 0.9, "riflex_tokens": 0}
    assert torch.equal(rope_table(positions, 64, 7, options), rope_table(positions, 64, 7))


@pytest.mark.parametrize("variant", ["5b", "1.5", "1.5-i2v"])
def test_riflex_changes_long_videos_alone_and_stays_on_its_clone(variant):
    model = pipelines.ours(variant)[0]
    patched, _ = long_video.with_riflex(model, 1, 0.9, 0)  # frequency 1 has a period of 6 tokens
    assert torch.equal(run(patched, variant, steps=1), run(model, variant, steps=1))
    long = 65 if variant.startswith("1.5") else 33
    plain = run(model, variant, steps=1, length=long)
    assert relative_error(run(patched, variant, steps=1, length=long), plain) > 1e-4
    assert torch.equal(run(model, variant, steps=1, length=long), plain)
    assert "rope_options" not in model.model_options["transformer_options"]


def test_riflex_and_the_hosts_scale_rope_go_together():
    model = pipelines.ours("5b")[0]
    scaled = ScaleROPE.execute(model, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0).result[0]
    both, _ = long_video.with_riflex(scaled, 1, 0.9, 0)
    other = ScaleROPE.execute(long_video.with_riflex(model, 1, 0.9, 0)[0], 1.0, 0.0, 1.0, 0.0, 1.0, 0.0).result[0]
    options = [m.model_options["transformer_options"]["rope_options"] for m in (both, other)]
    assert options[0] == options[1] and options[0]["riflex_k"] == 1


def test_riflex_names_the_length_it_begins_at_and_refuses_what_it_cannot():
    notes = {variant: long_video.with_riflex(pipelines.ours(variant)[0], 1, 0.9, 0)[1] for variant in ("5b", "1.5")}
    assert "more than 17 frames" in notes["5b"] and "more than 41 frames" in notes["1.5"]
    with pytest.raises(ValueError, match="fixed positions"):
        long_video.with_riflex(pipelines.ours("2b")[0], 2, 0.9, 0)
    with pytest.raises(ValueError, match="k is 8"):
        long_video.with_riflex(pipelines.ours("5b")[0], 8, 0.9, 0)


# --- going on ---------------------------------------------------------------------------------------------------------


def clip(frames=17, height=HEIGHT, width=WIDTH):
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(SEED))


@pytest.mark.parametrize("variant", pipelines.VARIANTS)
@pytest.mark.parametrize("overlap", [1, 9])
def test_the_known_frames_come_back_and_the_rest_is_new(variant, overlap):
    model, _, vae = pipelines.ours(variant)
    video = clip()
    image = variant in pipelines.IMAGE_TO_VIDEO
    made = long_video.continue_video(*pipelines.prompts(variant), vae, video, 25, overlap, image)
    known = vae.encode(video[-overlap:])
    count = known.shape[2]
    assert made.latent["samples"].shape[2] == 7 and count == (overlap - 1) // 4 + 1
    out = nodes.KSampler().sample(
        model, SEED, 2, CFG, "euler", "simple", made.positive, made.negative, made.latent, 1.0
    )[0]["samples"]
    firm = max(count - 1, 1)  # the last of several latents is held by half
    assert relative_error(out[:, :, :firm], known[:, :, :firm]) <= 1e-3
    if count > firm:
        free = {**made.latent, "noise_mask": made.latent["noise_mask"].clone()}
        free["noise_mask"][:, :, firm:] = 1
        free = nodes.KSampler().sample(model, SEED, 2, CFG, "euler", "simple", made.positive, made.negative, free, 1.0)[
            0
        ]["samples"]
        last, free = (relative_error(video[:, :, firm:count], known[:, :, firm:]) for video in (out, free))
        assert 0.3 * free < last < 0.7 * free
    assert torch.isfinite(out).all() and out[:, :, count:].std() > 0.01
    assert ("concat_latent_image" in made.positive[0][1]) == image


@pytest.mark.parametrize(
    "frames, length, overlap, message",
    [
        (17, 9, 9, "nothing new is made"),
        (9, 49, 17, "has 9"),
        (17, 49, 5, "Set overlap to 1 or 9"),
        (17, 48, 9, "Set length to 41 or 49"),
    ],
)
def test_a_piece_that_cannot_go_on_is_refused(frames, length, overlap, message):
    vae = pipelines.ours("5b")[2]
    with pytest.raises(ValueError, match=message):
        long_video.continue_video(*pipelines.prompts("5b"), vae, clip(frames), length, overlap, False)


def test_joining_fades_over_the_frames_shared():
    first, second = torch.zeros(10, 4, 6, 3), torch.ones(8, 4, 6, 3)
    out = long_video.join_videos(first, second, 3)
    torch.testing.assert_close(out[:, 0, 0, 0], torch.tensor([0.0] * 7 + [0.25, 0.5, 0.75] + [1.0] * 5))
    assert torch.equal(long_video.join_videos(first, second, 0), torch.cat((first, second)))
    shared = torch.rand(3, 4, 6, 3)
    out = long_video.join_videos(torch.cat((first, shared)), torch.cat((shared, second)), 3)
    torch.testing.assert_close(out, torch.cat((first, shared, second)))


def test_videos_that_do_not_join_are_refused():
    with pytest.raises(ValueError, match="Scale one to the size"):
        long_video.join_videos(clip(9), clip(9, width=WIDTH + 16), 1)
    with pytest.raises(ValueError, match="the shorter video has 9"):
        long_video.join_videos(clip(17), clip(9), 17)


# --- to a file --------------------------------------------------------------------------------------------------------


def latents(count):
    return torch.randn(1, 16, count, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(SEED))


def temporary():
    return set(glob.glob(os.path.join(folder_paths.get_temp_directory(), "cogvideox-*")))


@pytest.mark.parametrize("memory", ["auto", "whole frame", "slabs"])
def test_the_file_holds_the_decoded_frames(memory):
    vae, samples = pipelines.ours("5b")[2], latents(5)
    expected = vae.decode(samples)[0]
    stream = torch.cat(list(vae.decode_stream(samples, memory == "slabs")))
    torch.testing.assert_close(stream, expected, rtol=1e-4, atol=1e-5)
    video = long_video.decode_to_video(vae, samples, 8.0, 0.0, memory)
    assert video.get_dimensions() == (WIDTH, HEIGHT)
    parts = video.get_components()
    assert parts.images.shape == expected.shape and float(parts.frame_rate) == 8
    smooth = torch.nn.functional.avg_pool2d(expected.movedim(-1, 1) - parts.images.movedim(-1, 1), 8)
    assert smooth.abs().mean() < 0.02  # H.264 halves the colours' resolution


def test_saving_copies_the_stream_as_it_is():
    video = long_video.decode_to_video(pipelines.ours("5b")[2], latents(3), 16.0, 18.0, "auto")
    source = video.get_stream_source()

    def packets(path):
        with av.open(path) as file:
            return [bytes(packet) for packet in file.demux(video=0) if packet.size]

    target = os.path.join(folder_paths.get_output_directory(), "streamed.mp4")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    video.save_to(target)
    assert packets(target) == packets(source)


def test_a_cancelled_run_leaves_no_file():
    before = temporary()
    vae = pipelines.ours("5b")[2]
    comfy.model_management.interrupt_current_processing()
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            long_video.decode_to_video(vae, latents(5), 8.0, 18.0, "auto")
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert temporary() == before


def test_two_videos_are_not_put_into_one_file():
    with pytest.raises(ValueError, match="holds one video and the LATENT 2"):
        long_video.decode_to_video(pipelines.ours("5b")[2], latents(3).repeat(2, 1, 1, 1, 1), 8.0, 18.0, "auto")


def test_memory_does_not_grow_with_length():
    """From windows to file: beside the latents themselves the most that is alive at once is the same."""
    vae = pipelines.ours("5b")[2]
    known = list(vae.first_stage_model.parameters())
    model = windowed("5b", length=17, overlap=9)
    weights = list(model.model.diffusion_model.parameters())
    conds = conditioned("5b")[:2]

    def sample(frames):
        latent = empty_latent(WIDTH, HEIGHT, frames, 1)
        nodes.KSampler().sample(model, SEED, 1, CFG, "euler", "simple", *conds, latent, 1.0)

    def decode(count):
        long_video.decode_to_video(vae, latents(count), 8.0, 18.0, "auto")

    decoded = [peak_of(lambda n=n: decode(n), *known) for n in (9, 33)]
    assert decoded[1] - decoded[0] <= 1.5 * latents(33).nbytes, decoded
    sampled = [peak_of(lambda n=n: sample(n), *weights) for n in (33, 129)]
    # The sampler keeps some copies of the whole latents; nothing with the width of the network grows.
    assert sampled[1] - sampled[0] <= 8 * latents(33).nbytes, sampled
