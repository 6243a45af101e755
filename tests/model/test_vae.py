"""The VAE against diffusers, same weights, float32."""

from contextlib import contextmanager

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX as Reference
from pack.cogvideox import chunk, convolution, slabs
from pack.cogvideox import vae as vae_module
from pack.cogvideox.latents import latent_frames, pixel_frames
from pack.cogvideox.vae import AutoencoderKLCogVideoX, Posterior, time_chunks
from pack.cogvideox.variants import VAEConfig

from .test_transformer import relative_error

TOLERANCE = 1e-5
TINY = VAEConfig(block_out_channels=(8, 8, 12, 16), layers_per_block=1, norm_num_groups=4)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # thousands of tiny convolutions: waiting for other threads would take ten times as long
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models() -> tuple[AutoencoderKLCogVideoX, Reference]:
    torch.manual_seed(0)
    reference = Reference(**TINY.__dict__).eval()
    for name, parameter in reference.named_parameters():
        if parameter.ndim == 1:  # start values of 1 and 0 would hide a norm or a bias that is left out
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.3)
    ours = AutoencoderKLCogVideoX(TINY).eval()
    ours.load_state_dict(reference.state_dict(), strict=True)
    return ours, reference


def report(case: str, *errors: float) -> None:
    print(f"{case}: {max(errors):.1e}")  # noqa: T201  (pytest -s)
    assert max(errors) <= TOLERANCE


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pixels(frames: int, height: int = 16, width: int = 24, batch: int = 1) -> torch.Tensor:
    return random(batch, 3, frames, height, width).clamp(-1, 1)


def latents(frames: int, height: int = 2, width: int = 3, batch: int = 1, seed: int = 1) -> torch.Tensor:
    return random(batch, 16, frames, height, width, seed=seed)


def test_official_keys_and_shapes_are_those_of_diffusers():
    with torch.device("meta"):
        theirs = Reference(block_out_channels=VAEConfig().block_out_channels).state_dict()
    ours = AutoencoderKLCogVideoX(device="meta", dtype=torch.bfloat16).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    assert {value.dtype for value in ours.values()} == {torch.bfloat16}
    assert ours["encoder.conv_out.conv.weight"].shape == (32, 512, 3, 3, 3)


def test_time_chunks_join_the_remainder_to_the_first():
    lengths = [[span.stop - span.start for span in time_chunks(frames, 2)] for frames in (1, 2, 3, 4, 13)]
    assert lengths == [[1], [2], [3], [2, 2], [3, 2, 2, 2, 2, 2]]
    assert time_chunks(49, 8)[:2] == [slice(0, 9), slice(9, 17)]


@pytest.mark.parametrize(
    ("frames", "size", "batch"),
    [
        (1, (16, 24), 1),
        (2, (16, 16), 1),
        (4, (16, 16), 1),
        (5, (16, 24), 1),
        (8, (16, 16), 1),
        (9, (24, 16), 2),
        (12, (16, 16), 1),
        (13, (24, 40), 1),
        (16, (16, 16), 1),
        (17, (16, 24), 1),
        (9, (21, 30), 1),
        (49, (16, 16), 1),
    ],
)
def test_encode_equals_diffusers(models, frames, size, batch):
    ours, reference = models
    video = pixels(frames, *size, batch=batch)
    posterior, theirs = ours.encode(video), reference.encode(video).latent_dist
    assert posterior.mean.shape == (batch, 16, latent_frames(frames), size[0] // 8, size[1] // 8)
    report(
        f"encode {frames} frames {size} batch {batch}",
        relative_error(posterior.mean, theirs.mean),
        relative_error(posterior.logvar, theirs.logvar),
    )


@pytest.mark.parametrize(
    ("frames", "size", "batch"),
    [
        (1, (2, 3), 1),
        (2, (2, 3), 1),
        (3, (3, 5), 1),
        (4, (3, 2), 2),
        (5, (1, 3), 2),
        (13, (1, 2), 1),
    ],
)
def test_decode_equals_diffusers(models, frames, size, batch):
    ours, reference = models
    z = latents(frames, *size, batch=batch)
    decoded = ours.decode(z)
    assert decoded.shape == ours.decode_shape(z.shape)
    assert decoded.shape == (batch, 3, pixel_frames(frames), size[0] * 8, size[1] * 8)
    report(f"decode {frames} latents {size} batch {batch}", relative_error(decoded, reference.decode(z).sample))


def test_decode_streams_what_decode_returns(models):
    ours, _ = models
    z = latents(7)
    chunks = list(ours.decode_chunks(z))
    assert [chunk.shape[2] for chunk in chunks] == [9, 8, 8]
    assert torch.equal(torch.cat(chunks, dim=2), ours.decode(z))


def test_interleaved_decodes_do_not_share_a_cache(models):
    ours, _ = models
    first, second = latents(5, seed=1), latents(5, seed=2)
    pairs = list(zip(ours.decode_chunks(first), ours.decode_chunks(second), strict=True))
    assert torch.equal(torch.cat([pair[0] for pair in pairs], dim=2), ours.decode(first))
    assert torch.equal(torch.cat([pair[1] for pair in pairs], dim=2), ours.decode(second))


def test_abandoned_decode_leaves_nothing_behind(models):
    ours, _ = models
    z = latents(5)
    whole = ours.decode(z)
    next(ours.decode_chunks(latents(5, seed=2)))
    assert torch.equal(ours.decode(z), whole)


@pytest.mark.parametrize("limit", [1, 20_000, 30_000])
def test_convolving_in_windows_changes_nothing(models, monkeypatch, limit):
    ours, _ = models
    z, video = latents(5), pixels(9)
    decoded, encoded = ours.decode(z), ours.encode(video).mean
    calls = []
    handle = ours.decoder.up_blocks[-1].resnets[0].conv1.conv.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(convolution, "CONV_ELEMENTS", limit)
    monkeypatch.setattr(convolution, "UPCAST_ELEMENTS", limit)
    in_windows = ours.decode(z)
    handle.remove()
    assert len(calls) > 2  # of the two chunks at least one was cut
    report(
        f"windows of {limit} elements",
        relative_error(in_windows, decoded),
        relative_error(ours.encode(video).mean, encoded),
    )


def test_frames_in_pairs_change_nothing(models, monkeypatch):
    ours, reference = models
    z, video = latents(5), pixels(17)  # chunks of 9 and 8 frames
    decoded, encoded = ours.decode(z), ours.encode(video).mean
    monkeypatch.setattr(convolution, "WINOGRAD_POSITIONS", 0)
    monkeypatch.setattr(convolution, "WINOGRAD_CHANNELS", 0)
    in_pairs = ours.decode(z)
    assert not torch.equal(in_pairs, decoded)
    report(
        "frames in pairs",
        relative_error(in_pairs, reference.decode(z).sample),
        relative_error(ours.encode(video).mean, encoded),
    )


def test_bf16_is_no_further_from_the_truth_than_diffusers(monkeypatch):
    config = VAEConfig(layers_per_block=1)  # the released widths
    torch.manual_seed(0)
    reference = Reference(**config.__dict__).eval()
    ours = AutoencoderKLCogVideoX(config, device="meta").eval()
    ours.load_state_dict(reference.state_dict(), assign=True)
    z, video = latents(3, 2, 2), pixels(9, 16, 16)
    exact = [reference.decode(z).sample, reference.encode(video).latent_dist.mean]
    reference.bfloat16(), ours.bfloat16()
    z, video = z.bfloat16(), video.bfloat16()
    theirs = [reference.decode(z).sample, reference.encode(video).latent_dist.mean]
    for native in (True, False):
        monkeypatch.setattr(convolution, "bfloat16_is_native", lambda native=native: native)
        for got, expected, truth in zip((ours.decode(z), ours.encode(video).mean), theirs, exact, strict=True):
            assert got.dtype == torch.bfloat16
            errors = [relative_error(result.float(), truth) for result in (got, expected)]
            print(f"bf16, native {native}: ours {errors[0]:.2e}, diffusers {errors[1]:.2e}")  # noqa: T201
            assert 0 < errors[0] <= errors[1]


@pytest.fixture
def everything_in_slabs(monkeypatch):
    """Cut every level but the first, into slabs of one to a few rows."""
    monkeypatch.setattr(slabs, "WHOLE_ELEMENTS", 0)
    monkeypatch.setattr(slabs, "SLAB_ELEMENTS", 2_000)


@pytest.mark.parametrize(("frames", "size", "batch"), [(1, (2, 3), 1), (2, (3, 2), 1), (5, (3, 4), 2)])
def test_slabs_give_the_whole_frame(models, everything_in_slabs, monkeypatch, frames, size, batch):
    ours, _ = models
    z = latents(frames, *size, batch=batch)
    calls, made = [], []
    whole, append = ours.decode(z), slabs.Slabs.append
    monkeypatch.setattr(slabs.Slabs, "append", lambda self, slab: made.append(slab.shape[3]) or append(self, slab))
    in_slabs = ours.decode(z, None, lambda *call: calls.append(call), slabs=True)
    assert len(made) > 12  # more than one of each of the resnets behind the first level
    report(f"slabs {frames} latents {size} batch {batch}", relative_error(in_slabs, whole))
    assert calls[-1] == (pixel_frames(frames), pixel_frames(frames))


@pytest.mark.parametrize("limit", [2**13, 2**14, 2**15, 2**16])
def test_slabs_may_begin_at_any_level(models, monkeypatch, limit):
    ours, _ = models
    z = latents(4, 3, 2)
    monkeypatch.setattr(slabs, "WHOLE_ELEMENTS", limit)
    monkeypatch.setattr(slabs, "SLAB_ELEMENTS", 20_000)
    report(f"slabs above {limit} elements", relative_error(ours.decode(z, slabs=True), ours.decode(z)))


def test_slabs_in_bf16_are_as_near_as_whole_frames(everything_in_slabs):
    config = VAEConfig(block_out_channels=(16, 16, 32, 32), layers_per_block=1, norm_num_groups=8)
    torch.manual_seed(0)
    ours = AutoencoderKLCogVideoX(config).eval()
    z = latents(3, 2, 2)
    exact = ours.decode(z)
    ours.bfloat16()
    whole, in_slabs = ours.decode(z.bfloat16()).float(), ours.decode(z.bfloat16(), slabs=True).float()
    assert relative_error(in_slabs, exact) <= 1.1 * relative_error(whole, exact)  # the same roundings at other places


def test_frames_kept_wait_on_the_device_named():
    state, conv = chunk.ChunkState(cache_device=torch.device("meta")), torch.nn.Identity()
    state.keep(conv, random(1, 4, 2, 5, 3))
    assert state.take(conv).device.type == "meta"
    state.keep_rows(conv, random(1, 4, 2, 2, 3), 1, 5)
    kept = state.take(conv)
    assert kept.device.type == "meta" and kept.shape == (1, 4, 2, 5, 3)
    assert state.take(conv) is None


def test_statistics_survive_a_mean_far_from_zero():
    x = random(1, 8, 3, 40, 50) + 300
    mean, variance = chunk.Moments().add(x).of_groups(4)
    grouped = x.double().unflatten(1, (4, -1)).flatten(2)
    assert (mean[..., 0] - grouped.mean(2)).abs().max() < 1e-4
    assert (variance[..., 0] / grouped.var(2, correction=0) - 1).abs().max() < 1e-5


def test_weights_are_lent_by_the_host_alone(models):
    ours, _ = models
    z, lent = latents(5), []

    @contextmanager
    def lend(layer, x):
        lent.append(layer)
        yield layer.weight, layer.bias
        lent.remove(layer)

    host = AutoencoderKLCogVideoX(TINY, lend=lend).eval()
    host.load_state_dict(ours.state_dict())
    assert torch.equal(host.decode(z), ours.decode(z))
    assert lent == []  # what was lent has been given back


def test_a_weight_changed_between_decodes_counts(models):
    ours, reference = models
    copy = AutoencoderKLCogVideoX(TINY).eval()
    copy.load_state_dict(ours.state_dict())
    z = latents(2)
    copy.decode(z)
    for parameter in copy.decoder.up_blocks[0].upsamplers.parameters():
        parameter.zero_()
    for parameter in copy.decoder.up_blocks[1].resnets[0].conv1.parameters():
        parameter.zero_()
    changed = AutoencoderKLCogVideoX(TINY).eval()
    changed.load_state_dict(copy.state_dict())
    assert torch.equal(copy.decode(z), changed.decode(z))


def test_decode_fills_a_given_output_and_reports_frames(models):
    ours, _ = models
    z = latents(5)
    images = torch.full((1, 17, 16, 24, 3), 9.0, dtype=torch.float64)  # the host's layout: channels last
    calls = []
    output = images.movedim(-1, 1)
    result = ours.decode(z, output, lambda *call: calls.append(call))
    assert result is output
    assert torch.equal(images, ours.decode(z).movedim(1, -1).double())
    assert calls == [(9, 17), (17, 17)]
    images.fill_(9.0)
    calls.clear()
    ours.decode_tiled(z, 2, 2, 0, 1, output, lambda *call: calls.append(call))
    assert torch.equal(images, ours.decode_tiled(z, 2, 2, 0, 1).movedim(1, -1).double())
    assert calls == [(done, 51) for done in (9, 17, 26, 34, 43, 51)]


def test_output_of_another_shape_is_refused(models):
    ours, _ = models
    with pytest.raises(ValueError, match=r"\(1, 3, 17, 16, 24\)"):
        ours.decode(latents(5), torch.empty(1, 3, 18, 16, 24))


TILINGS = [  # latent size, tile, overlap
    ((4, 6), (2, 4), (1, 1)),
    ((5, 5), (4, 4), (1, 2)),
    ((3, 9), (4, 5), (2, 1)),  # one direction fits, an end tile of one latent
    ((4, 4), (4, 4), (1, 1)),  # all fits: one tile
]


def reference_tiled(reference: Reference, tile: tuple[int, int], overlap: tuple[int, int]) -> Reference:
    reference.enable_tiling(tile[0] * 8, tile[1] * 8, overlap[0] / tile[0], overlap[1] / tile[1])
    return reference


@pytest.mark.parametrize(("size", "tile", "overlap"), TILINGS)
def test_tiled_decode_equals_diffusers(models, size, tile, overlap):
    ours, reference = models
    z = latents(5, *size)
    try:
        expected = reference_tiled(reference, tile, overlap).decode(z).sample
    finally:
        reference.use_tiling = False
    decoded = ours.decode_tiled(z, *tile, *overlap)
    report(f"tiled decode {size} tile {tile} overlap {overlap}", relative_error(decoded, expected))
    assert (relative_error(decoded, ours.decode(z)) > 1e-3) == (size != tile)


@pytest.mark.parametrize(("size", "tile", "overlap"), TILINGS)
def test_tiled_encode_equals_diffusers(models, size, tile, overlap):
    ours, reference = models
    odd = 3 if size == (5, 5) else 0  # pixels that make no latent
    video = pixels(10, size[0] * 8 + odd, size[1] * 8)
    try:
        expected = reference_tiled(reference, tile, overlap).encode(video).latent_dist
    finally:
        reference.use_tiling = False
    posterior = ours.encode_tiled(video, *(length * 8 for length in (*tile, *overlap)))
    report(
        f"tiled encode {size} tile {tile} overlap {overlap}",
        relative_error(posterior.mean, expected.mean),
        relative_error(posterior.logvar, expected.logvar),
    )
    assert (relative_error(posterior.mean, ours.encode(video).mean) > 1e-3) == (size != tile)


def test_tiled_encode_leaves_no_gap_where_diffusers_fails(models):
    ours, _ = models
    video = pixels(1, 19, 16)  # the third tile row would be 3 px high
    posterior = ours.encode_tiled(video, 16, 16, 8, 8)
    assert posterior.mean.shape == (1, 16, 1, 2, 2)
    assert relative_error(posterior.mean, ours.encode(video).mean) < 0.5


def test_default_tiles_are_those_of_diffusers():
    reference = Reference(block_out_channels=(4, 4, 4, 4), norm_num_groups=2, layers_per_block=1)
    tile = (vae_module.TILE_HEIGHT, vae_module.TILE_WIDTH)
    overlap = (vae_module.OVERLAP_HEIGHT, vae_module.OVERLAP_WIDTH)
    assert tile == (reference.tile_latent_min_height, reference.tile_latent_min_width)
    assert overlap == pytest.approx(
        (tile[0] * reference.tile_overlap_factor_height, tile[1] * reference.tile_overlap_factor_width)
    )


@pytest.mark.parametrize(("tile", "overlap"), [((2, 2), (2, 1)), ((2, 2), (1, -1))])
def test_impossible_overlap_is_refused(models, tile, overlap):
    ours, _ = models
    with pytest.raises(ValueError, match="overlap from 0 to 1"):
        ours.decode_tiled(latents(1), *tile, *overlap)
    with pytest.raises(ValueError, match="overlap from 0 to 1"):
        ours.encode_tiled(pixels(1), *(length * 8 for length in (*tile, *overlap)))


def test_tile_that_cuts_through_a_latent_is_refused(models):
    ours, _ = models
    with pytest.raises(ValueError, match="divide by 8 px"):
        ours.encode_tiled(pixels(1), 20, 16, 8, 8)


def test_sample_draws_as_diffusers(models):
    ours, reference = models
    video = pixels(9)
    posterior = ours.encode(video)
    drawn = posterior.sample(torch.Generator().manual_seed(7))
    expected = reference.encode(video).latent_dist.sample(torch.Generator().manual_seed(7))
    report("sample", relative_error(drawn, expected))
    assert relative_error(posterior.sample(torch.Generator().manual_seed(8)), expected) > 1e-3
    assert posterior.mode() is posterior.mean


def test_posterior_clamps_the_log_variance():
    moments = torch.cat((torch.zeros(1, 16, 1, 1, 1), torch.full((1, 16, 1, 1, 1), 99.0)), dim=1)
    assert Posterior.from_moments(moments).logvar.unique().tolist() == [20.0]
    assert Posterior.from_moments(-moments).logvar.unique().tolist() == [-30.0]


def test_encode_moves_chunks_to_the_dtype_asked_for(models):
    ours, _ = models
    video = pixels(17).double()
    calls = []
    posterior = ours.encode(video, lambda *call: calls.append(call), device="cpu", dtype=torch.float32)
    assert posterior.mean.dtype == torch.float32
    assert torch.equal(posterior.mean, ours.encode(video.float()).mean)
    assert calls == [(3, 5), (5, 5)]
    tiled = ours.encode_tiled(video, 16, 16, 8, 8, device="cpu", dtype=torch.float32)
    assert torch.equal(tiled.mean, ours.encode_tiled(video.float(), 16, 16, 8, 8).mean)


def test_first_frame_reaches_everything_after_it(models):
    ours, _ = models
    video, z = pixels(17), latents(5)
    encoded, decoded = ours.encode(video).mean, ours.decode(z)
    video[:, :, 0] *= -1
    z[:, :, 0] *= -1
    assert (ours.encode(video).mean != encoded).flatten(3).any(3).all()
    assert (ours.decode(z) != decoded).flatten(3).any(3).all()


def test_last_frame_does_not_reach_earlier_chunks(models):
    ours, _ = models
    video, z = pixels(25), latents(7)
    encoded, decoded = ours.encode(video).mean, ours.decode(z)
    video[:, :, -1] *= -1
    z[:, :, -1] *= -1
    changed_latents = (ours.encode(video).mean != encoded).any(1).flatten(2).any(2)[0].tolist()
    changed_frames = (ours.decode(z) != decoded).any(1).flatten(2).any(2)[0].tolist()
    assert changed_latents == [False] * 5 + [True] * 2
    assert changed_frames == [False] * 17 + [True] * 8


def test_gradients_survive_the_in_place_steps():
    """Against float64, in which diffusers' own float32 gradients are off as well: by rounding, through 30 layers."""
    config = VAEConfig(block_out_channels=(4, 4, 4, 8), layers_per_block=1, norm_num_groups=2)
    torch.manual_seed(0)
    ours, reference = AutoencoderKLCogVideoX(config), Reference(**config.__dict__)
    reference.load_state_dict(ours.state_dict())
    exact = Reference(**config.__dict__).double()
    exact.load_state_dict(ours.state_dict())
    inputs = {model: latents(3, 1, 2).to(model.dtype).requires_grad_() for model in (reference, exact)}
    inputs[ours] = latents(3, 1, 2).requires_grad_()
    gradients = {}
    with torch.enable_grad():
        for model, z in inputs.items():
            frames = torch.cat(list(ours.decode_chunks(z)), dim=2) if model is ours else model.decode(z).sample
            frames.square().mean().backward()
            gradients[model] = {name: weight.grad for name, weight in model.decoder.named_parameters()} | {"z": z.grad}
    errors = {
        model: max(relative_error(gradients[model][name].double(), right) for name, right in gradients[exact].items())
        for model in (ours, reference)
    }
    print(f"gradients: ours {errors[ours]:.1e}, diffusers {errors[reference]:.1e}")  # noqa: T201
    assert errors[ours] <= max(2 * errors[reference], TOLERANCE)
