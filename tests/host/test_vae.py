"""Our VAE in the stock VAE nodes: diffusers' frames, tiles, memory, progress and what happens when memory runs out."""

import json
from functools import cache
from itertools import pairwise
from pathlib import Path

import comfy.model_management
import comfy.sd
import comfy.utils
import diffusers
import folder_paths
import pytest
import torch
from comfy_extras.nodes_model_merging import VAESave
from pack.benchmarks.counting import peak_of
from pack.cogvideox import slabs
from pack.cogvideox.latents import latent_frames, pixel_frames
from pack.cogvideox.vae import AutoencoderKLCogVideoX
from pack.cogvideox.variants import VAEConfig
from pack.demo import tiny_pipeline
from pack.nodes.host import coding, loading
from pack.nodes.host.vae import decode_memory, encode_memory, require_cogvideox_vae, slab_memory
from safetensors.torch import load_file, save_file

import nodes

from . import pipelines
from .pipelines import HEIGHT, WIDTH, relative_error

WEIGHTS = "diffusion_pytorch_model.safetensors"
TOLERANCE = 1e-3
LATENT_HEIGHT, LATENT_WIDTH = HEIGHT // 8, WIDTH // 8
WIDE = 40  # latents; wider than the 32 of the host's tiles when memory has run out

pytestmark = pytest.mark.usefixtures("inference")


@cache
def source() -> Path:
    """Return a component folder as a pipeline holds it, of a VAE so narrow that every test takes a moment."""
    path = pipelines.folder("5b").parent / "narrow" / "vae"
    path.mkdir(parents=True)
    values = tiny_pipeline.vae_config("5b") | dict(block_out_channels=(8, 8, 16, 16), norm_num_groups=4)
    (path / "config.json").write_text(json.dumps(values))
    shapes = tiny_pipeline.module_shapes(AutoencoderKLCogVideoX(VAEConfig.from_json(values)))
    save_file(tiny_pipeline.random_weights(shapes, 0), path / WEIGHTS)
    return path


@pytest.fixture
def vae():
    """Return a VAE of our own, for a test to tamper with."""
    return loading.load_vae(str(source()), "fp32")


@pytest.fixture(scope="module")
def reference():
    model = diffusers.AutoencoderKLCogVideoX.from_pretrained(source())
    yield model.eval().requires_grad_(False)


@pytest.fixture
def tiled_reference(reference):
    """Return diffusers' VAE with tiles of 8 x 8 latents, a quarter of which overlap."""
    reference.enable_tiling(64, 64, 0.25, 0.25)
    yield reference
    reference.disable_tiling()


def latents(frames: int, batch: int = 1, height: int = LATENT_HEIGHT, width: int = LATENT_WIDTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randn(batch, 16, frames, height, width, generator=generator)


def images(frames: int, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    """IMAGE [F, H, W, 3] in 0..1."""
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(frames))


def decoded_by(reference, z: torch.Tensor) -> torch.Tensor:
    """Decode as diffusers and postprocess to IMAGE [B * F, H, W, 3]."""
    return (reference.decode(z).sample / 2 + 0.5).clamp(0, 1).movedim(1, -1).flatten(0, 1)


def encoded_by(reference, pixels: torch.Tensor) -> torch.Tensor:
    return reference.encode((pixels * 2 - 1).movedim(-1, 0)[None]).latent_dist.mode()


def decode(vae, z: torch.Tensor) -> torch.Tensor:
    return nodes.VAEDecode().decode(vae, {"samples": z})[0]


def decode_tiled(vae, z: torch.Tensor, tile: int, overlap: int = 16) -> torch.Tensor:
    return nodes.VAEDecodeTiled().decode(vae, {"samples": z}, tile, overlap)[0]


def encode(vae, pixels: torch.Tensor) -> torch.Tensor:
    return nodes.VAEEncode().encode(vae, pixels)[0]["samples"]


def encode_tiled(vae, pixels: torch.Tensor, tile: int, overlap: int = 16) -> torch.Tensor:
    return nodes.VAEEncodeTiled().encode(vae, pixels, tile, overlap)[0]["samples"]


# --- against diffusers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "count"), [(1, 1), (2, 8), (3, 9), (4, 16), (5, 17)])
def test_stock_decode_gives_the_frames_of_diffusers(vae, reference, frames, count):
    z = latents(frames)
    before = z.clone()
    actual, expected = decode(vae, z), decoded_by(reference, z)
    assert actual.shape == expected.shape == (count, HEIGHT, WIDTH, 3)
    assert (actual - expected).abs().max() <= TOLERANCE
    assert expected.std() > 0.1  # not a grey picture, which would hide anything
    assert torch.equal(z, before)


@pytest.mark.parametrize(("frames", "count"), [(1, 1), (8, 2), (9, 3), (16, 4), (17, 5)])
def test_stock_encode_gives_the_latents_of_diffusers(vae, reference, frames, count):
    pixels = images(frames)
    before = pixels.clone()
    actual, expected = encode(vae, pixels), encoded_by(reference, pixels)
    assert actual.shape == expected.shape == (1, 16, count, LATENT_HEIGHT, LATENT_WIDTH)
    assert relative_error(actual, expected) <= TOLERANCE
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5])
def test_tiles_larger_than_the_frame_are_no_tiles(vae, frames):
    assert torch.equal(decode_tiled(vae, latents(frames), 512, 64), decode(vae, latents(frames)))
    pixels = images(pixel_frames(frames))
    assert torch.equal(encode_tiled(vae, pixels, 512, 64), encode(vae, pixels))


@pytest.mark.parametrize("frames", [1, 4, 5])
def test_stock_tiled_decode_gives_the_tiles_of_diffusers(vae, tiled_reference, frames):
    z = latents(frames)
    actual, expected = decode_tiled(vae, z, 64), decoded_by(tiled_reference, z)
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= TOLERANCE
    assert relative_error(actual, decode(vae, z)) > 10 * TOLERANCE  # tiles indeed


@pytest.mark.parametrize("frames", [1, 9, 16])
def test_stock_tiled_encode_gives_the_tiles_of_diffusers(vae, tiled_reference, frames):
    pixels = images(frames)
    actual, expected = encode_tiled(vae, pixels, 64), encoded_by(tiled_reference, pixels)
    assert relative_error(actual, expected) <= TOLERANCE
    assert relative_error(actual, encode(vae, pixels)) > 10 * TOLERANCE


@pytest.mark.parametrize("overlap", [0, 32, 4096])
def test_any_overlap_of_the_stock_node_gives_a_whole_picture(vae, overlap):
    z = latents(1, height=10, width=22)
    frames = decode_tiled(vae, z, 64, overlap)
    assert frames.shape == (1, 80, 176, 3)
    assert torch.isfinite(frames).all()
    assert relative_error(frames, decode(vae, z)) < 0.5
    back = encode_tiled(vae, frames, 64, overlap)
    assert back.shape == z.shape
    assert torch.isfinite(back).all()


# --- batches, types, devices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("free", [None, 1])
def test_a_batch_decodes_to_its_videos_one_after_the_other(vae, monkeypatch, free):
    if free is not None:  # no memory for two at once: the host feeds them singly
        monkeypatch.setattr(vae.patcher, "get_free_memory", lambda device: free)
    z = latents(3, batch=2)
    frames = decode(vae, z)
    singles = [decode(vae, video) for video in z.split(1)]
    assert frames.shape == (18, HEIGHT, WIDTH, 3)
    assert (frames - torch.cat(singles)).abs().max() <= TOLERANCE
    assert relative_error(singles[1], singles[0]) > 0.1
    assert (decode_tiled(vae, z, 64)[9:] - decode_tiled(vae, z[1:], 64)).abs().max() <= TOLERANCE


def test_a_batch_of_videos_encodes_to_a_batch(vae):
    videos = torch.stack((images(9), images(9).flip(0)))
    encoded = vae.encode(videos)
    assert encoded.shape == (2, 16, 3, LATENT_HEIGHT, LATENT_WIDTH)
    assert relative_error(encoded[1:], encode(vae, videos[1])) <= TOLERANCE
    assert relative_error(vae.encode_tiled(videos, 512, 512, 64), encoded) <= TOLERANCE


def test_edges_that_make_no_latent_are_cropped(vae):
    pixels = images(9, height=HEIGHT + 5, width=WIDTH + 2)
    inside = pixels[:, 2 : 2 + HEIGHT, 1 : 1 + WIDTH]
    assert torch.equal(encode(vae, pixels), encode(vae, inside))
    assert torch.equal(encode_tiled(vae, pixels, 64), encode_tiled(vae, inside, 64))
    assert torch.equal(vae.encode(pixels[None]), encode(vae, inside))


def test_frames_come_as_floats_on_the_device_for_results(vae):
    for frames in (decode(vae, latents(3)), decode_tiled(vae, latents(3), 64)):
        assert frames.dtype == comfy.model_management.intermediate_dtype() == torch.float32
        assert frames.device == comfy.model_management.intermediate_device()
        assert 0 <= frames.min() and frames.max() <= 1
    assert encode(vae, images(9)).dtype == torch.float32


def test_bf16_is_near_the_exact_numbers(vae):
    half = loading.load_vae(str(source()), "bf16")
    assert {tensor.dtype for tensor in half.get_sd().values()} == {torch.bfloat16}
    frames, exact = decode(half, latents(5)), decode(vae, latents(5))
    assert frames.dtype == torch.float32
    assert 0 < relative_error(frames, exact) < 0.03
    assert 0 < relative_error(encode(half, exact), encode(vae, exact)) < 0.03


def test_the_stock_node_saves_the_keys_of_the_file(vae):
    content = load_file(source() / WEIGHTS)
    VAESave().save(vae, "vae/saved")
    saved = load_file(max(Path(folder_paths.get_output_directory()).glob("vae/saved_*.safetensors")))
    for state_dict in (vae.get_sd(), saved):
        assert state_dict.keys() == content.keys()
        assert all(torch.equal(state_dict[key], content[key]) for key in content)


# --- our own nodes' way ---------------------------------------------------------------------------------------------


def test_a_drawn_posterior_depends_on_the_seed_alone(vae):
    pixels = images(9)
    first, again, other = (coding.encode(vae, pixels, seed) for seed in (1, 1, 2))
    mode = coding.encode(vae, pixels)
    assert torch.equal(first, again)
    assert relative_error(first, other) > 1e-3
    assert relative_error(first, mode) > 1e-3
    assert torch.equal(encode(vae, pixels), mode)  # drawing leaves the VAE as it was


@pytest.mark.parametrize("total", [0, 2**40])
def test_auto_decodes_in_tiles_where_the_card_is_too_small(vae, monkeypatch, total):
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda *args: total)
    z = latents(1, height=32, width=48)
    expected = coding.decode(vae, z, coding.WHOLE if total else coding.TILES)
    assert torch.equal(coding.decode(vae, z, coding.AUTO), expected)
    assert not torch.equal(coding.decode(vae, z, coding.WHOLE), coding.decode(vae, z, coding.TILES))


def test_slabs_are_whole_frames_in_less_memory(vae, monkeypatch):
    monkeypatch.setattr(slabs, "WHOLE_ELEMENTS", 0)
    monkeypatch.setattr(slabs, "SLAB_ELEMENTS", 2**16)
    stage, z = vae.first_stage_model, latents(3, height=24)
    output = torch.empty(stage.decode_output_shape(z.shape))
    known = (*stage.parameters(), z, output)
    whole = peak_of(lambda: stage.decode(z, output), *known)
    assert peak_of(lambda: stage.decode(z, output, slabs=True), *known) < 0.6 * whole
    expected = coding.decode(vae, z, coding.WHOLE)
    assert (coding.decode(vae, z, coding.SLABS) - expected).abs().max() <= TOLERANCE
    assert vae.memory_used_decode is decode_memory  # decoding in slabs leaves the VAE as it was


def test_slabs_fall_back_to_tiles(vae, monkeypatch):
    z = latents(2, width=WIDE)
    tiles = decode_tiled(vae, z, 256, 64)
    assert fail_once(monkeypatch, vae.first_stage_model, "decode") == []
    assert torch.equal(coding.decode(vae, z, coding.SLABS), tiles)


def test_weights_the_host_changes_on_the_way_count(vae):
    """A host patches weights as it casts them; kernels made of weights must see that too."""
    decoder, z = vae.first_stage_model.decoder, latents(3)
    resnet = decoder.up_blocks[1].resnets[0]
    layers = [decoder.up_blocks[0].upsamplers[0].conv, resnet.conv1.conv, resnet.norm1.norm_layer, resnet.conv2.conv]
    plain = decode(vae, z)
    for layer in layers:
        layer.weight_function = [lambda weight: weight * 1.5]
    on_the_way = decode(vae, z)
    for layer in layers:
        layer.weight_function = []
        layer.weight.data.mul_(1.5)
    assert torch.equal(on_the_way, decode(vae, z))
    assert relative_error(on_the_way, plain) > 10 * TOLERANCE


def test_another_vae_is_refused(vae):
    assert require_cogvideox_vae(vae) is vae
    assert require_cogvideox_vae(vae.sampled(1))
    other = comfy.sd.VAE(sd={})
    other.first_stage_model = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"needs CogVideoX's VAE and got another one \(Identity\)"):
        require_cogvideox_vae(other)


@pytest.mark.parametrize("shape", [(1, 16, 8, 12), (1, 4, 3, 8, 12)])
def test_latents_of_another_model_are_refused_by_the_stock_nodes(vae, shape):
    for run in (lambda z: decode(vae, z), lambda z: decode_tiled(vae, z, 64)):
        with pytest.raises(ValueError, match="decodes video latents with 16 channels"):
            run(torch.zeros(shape))


# --- when memory runs out -------------------------------------------------------------------------------------------


def fail_once(monkeypatch, owner, name: str) -> list[int]:
    """Let a method run out of memory at its first call; return the list that call is noted in."""
    calls, method = [], getattr(owner, name)

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise comfy.model_management.OOM_EXCEPTION("out of memory")
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)
    return calls


def test_decode_falls_back_to_tiles(vae, monkeypatch):
    z = latents(2, width=WIDE)
    whole, tiles = decode(vae, z), decode_tiled(vae, z, 256, 64)
    calls = fail_once(monkeypatch, vae.first_stage_model, "decode")
    frames = decode(vae, z)
    assert calls == [1]
    assert frames.shape == whole.shape == (8, HEIGHT, WIDE * 8, 3)
    assert torch.equal(frames, tiles)
    assert not torch.equal(frames, whole)
    assert torch.equal(decode(vae, z), whole)  # the next run is a whole one again


@pytest.mark.parametrize("seed", [None, 3])
def test_encode_falls_back_to_tiles(vae, monkeypatch, seed):
    pixels = images(4, width=WIDE * 8)
    encoder = vae if seed is None else vae.sampled(seed)
    whole = encode(encoder, pixels)
    encoder = vae if seed is None else vae.sampled(seed)
    calls = fail_once(monkeypatch, encoder.first_stage_model, "encode")
    encoded = encode(encoder, pixels)
    assert calls == [1]
    assert encoded.shape == whole.shape == (1, 16, 1, LATENT_HEIGHT, WIDE)
    assert torch.isfinite(encoded).all()
    assert 0 < relative_error(encoded, whole) < 0.5


def test_another_failure_is_not_hidden(vae, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("something else")

    monkeypatch.setattr(vae.first_stage_model, "decode", broken)
    with pytest.raises(RuntimeError, match="something else"):
        decode(vae, latents(3))


# --- progress -------------------------------------------------------------------------------------------------------

CODERS = {
    "decode": (lambda vae: decode(vae, latents(7)), 3),
    "decode a batch": (lambda vae: decode(vae, latents(7, batch=2)), 3),
    "decode in slabs": (lambda vae: vae.decode_in_slabs(latents(7)), 3),
    "tiled decode": (lambda vae: decode_tiled(vae, latents(7), 64), 4 * 3),
    "encode": (lambda vae: encode(vae, images(25)), 3),
    "tiled encode": (lambda vae: encode_tiled(vae, images(25), 64), 4 * 3),
}


@pytest.mark.parametrize("name", CODERS)
def test_the_progress_bar_moves_forward_to_its_end(vae, monkeypatch, name):
    run, chunks = CODERS[name]
    seen = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *args, **kwargs: seen.append((value, total))
    )
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0)
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_PERCENT", 0)
    run(vae)
    values, totals = zip(*seen, strict=True)
    assert len(values) == chunks
    assert 0 < values[0] and all(before < after for before, after in pairwise(values))
    assert set(totals) == {values[-1]}


@pytest.mark.parametrize("name", CODERS)
def test_cancel_stops_between_chunks_and_the_next_run_is_right(vae, name):
    run, _ = CODERS[name]
    expected = run(vae)
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(vae)
    assert torch.equal(run(vae), expected)


# --- memory ---------------------------------------------------------------------------------------------------------


def test_the_memory_of_a_decode_does_not_grow_with_its_length(vae):
    stage, peaks = vae.first_stage_model, {}
    for frames in (3, 9, 25):
        z = latents(frames)
        output = torch.empty(stage.decode_output_shape(z.shape))
        peaks[frames] = peak_of(lambda z=z, output=output: stage.decode(z, output), *stage.parameters(), z, output)
    assert peaks[25] == peaks[9]
    assert peaks[9] < 2 * peaks[3]  # from the second chunk on, the ends of the one before are kept


def test_the_memory_of_an_encode_grows_only_by_its_latents(vae):
    stage, peaks = vae.first_stage_model, {}
    for frames in (33, 97):
        pixels = images(frames).movedim(-1, 0)[None]
        peaks[frames] = peak_of(lambda pixels=pixels: stage.encode(pixels), *stage.parameters(), pixels)
    added = (latent_frames(97) - latent_frames(33)) * LATENT_HEIGHT * LATENT_WIDTH * 32 * 4
    assert peaks[97] <= peaks[33] + added
    assert added < 0.05 * peaks[33]


@pytest.fixture(scope="module")
def released():
    """Return the released VAE without weights: operators on it compute shapes only."""
    return AutoencoderKLCogVideoX(VAEConfig(), dtype=torch.bfloat16, device="meta")


SIZES = [(20, 30), (40, 60), (60, 90)]  # latents


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("frames", [3, 5, 13])
def test_the_estimate_for_decoding_covers_what_it_takes(released, frames, size):
    z = torch.empty(1, 16, frames, *size, dtype=torch.bfloat16, device="meta")
    output = torch.empty(released.decode_shape(z.shape), device="meta")
    peak = peak_of(lambda: released.decode(z, output), *released.parameters(), z, output)
    assert peak <= decode_memory(z.shape, z.dtype) <= 2.2 * peak


def test_the_estimate_for_slabs_covers_what_it_takes(released):
    z = torch.empty(1, 16, 5, 60, 90, dtype=torch.bfloat16, device="meta")
    output = torch.empty(released.decode_shape(z.shape), device="meta")
    peak = peak_of(lambda: released.decode(z, output, slabs=True), *released.parameters(), z, output)
    assert peak <= slab_memory(z.shape, z.dtype) <= 1.5 * peak  # on a CPU, where main memory is all there is


@pytest.mark.parametrize("kept_elsewhere", [False, True])
def test_slabs_need_less_than_whole_frames(monkeypatch, kept_elsewhere):
    if kept_elsewhere:
        monkeypatch.setattr(comfy.model_management, "vae_offload_device", lambda: "main memory")
    for size in SIZES:
        shape = (1, 16, 5, *size)
        assert slab_memory(shape, torch.bfloat16) <= decode_memory(shape, torch.bfloat16)
    assert slab_memory((1, 16, 5, 60, 90), torch.bfloat16) < (2e9 if kept_elsewhere else 5e9)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("frames", [9, 15, 17, 49])
def test_the_estimate_for_encoding_covers_what_it_takes(released, frames, size):
    pixels = torch.empty(1, 3, frames, *(8 * length for length in size), dtype=torch.bfloat16, device="meta")
    peak = peak_of(lambda: released.encode(pixels), *released.parameters(), pixels)
    assert peak <= encode_memory(pixels.shape, pixels.dtype) <= 2.2 * peak


def test_the_estimates_grow_with_the_batch_and_not_with_the_length():
    for memory, long, longer in ((decode_memory, 5, 25), (encode_memory, 17, 97)):
        shape = (1, 16, long, 60, 90)
        assert memory(shape, torch.float32) == 2 * memory(shape, torch.bfloat16)
        assert memory((2, *shape[1:]), torch.bfloat16) == 2 * memory(shape, torch.bfloat16)
        assert memory((1, 16, longer, 60, 90), torch.bfloat16) == memory(shape, torch.bfloat16)
