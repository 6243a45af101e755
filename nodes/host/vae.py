"""VAE: the 3D causal VAE inside the host's own VAE object, streaming in time and tiling by itself."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch

from ...cogvideox import slabs
from ...cogvideox import vae as model
from ...cogvideox.latents import latent_frames, pixel_frames
from ...cogvideox.variants import LATENT_CHANNELS, SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION, VAEConfig
from .progress import host_progress

# Working memory of the coders, in elements per pixel of the largest chunk of a video. Counted as the tensors alive at
# once, released shape, 240 x 160 px: decode 741 (3 latents), 954 (5) and 1112 (13), encode 413 (9 frames), 634 (17) and
# 691 (49). A quarter is added for copies inside PyTorch, of which a CPU was once seen to make that much. Not measured
# on a graphics card.
DECODE_ELEMENTS = 1400
ENCODE_ELEMENTS = 870
# Of the first, what convolutions keep between chunks: in slabs it waits in main memory. Counted: 441.
KEPT_ELEMENTS = 450
# In slabs, counted in bfloat16 without what is kept: 1.5 GB at 720 x 480 px, 3.0 GB at 1360 x 768 px. Those are the
# last level's result, 128 channels, and some slabs; or else three activations of a level that is not cut.
SLAB_RESULT_ELEMENTS, SLABS_AT_ONCE, WHOLE_AT_ONCE = 150, 10, 3.5


@contextmanager
def lent_weights(layer, x: torch.Tensor):
    """Lend weight and bias of a host's layer as its own forward would take them: patched, cast, on the device of x."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, x, offloadable=True)
    try:
        yield weight, bias
    finally:
        comfy.ops.uncast_bias_weight(layer, weight, bias, stream)


class FirstStage(torch.nn.Module):
    """The VAE behind the calls the host makes on a `first_stage_model`."""

    comfy_has_chunked_io = True  # decode writes into the host's buffer, encode moves chunk by chunk

    def __init__(self, vae: model.AutoencoderKLCogVideoX):
        super().__init__()
        object.__setattr__(self, "vae", vae)  # not a submodule: the keys stay those of the checkpoint
        self.encoder, self.decoder = vae.encoder, vae.decoder

    def decode_output_shape(self, shape) -> tuple[int, ...]:
        return self.vae.decode_shape(shape)

    def decode(self, latents, output_buffer=None, slabs=False):
        """Decode whole frames, or the same in `slabs`, where what waits between chunks waits in main memory."""
        progress = host_progress(pixel_frames(latents.shape[2]))
        cache_device = comfy.model_management.vae_offload_device() if slabs else None
        return self.vae.decode(latents, output_buffer, progress, slabs=slabs, cache_device=cache_device)

    def decode_tiled(self, latents, tile_x=model.TILE_WIDTH, tile_y=model.TILE_HEIGHT, overlap=None, **temporal):
        """Decode in tiles of `tile_y` x `tile_x` latents; time needs none, so the host's `tile_t` is not used."""
        tile_y, tile_x = min(tile_y, latents.shape[3]), min(tile_x, latents.shape[4])
        overlap_y, overlap_x = overlaps(overlap, (tile_y, tile_x), (model.OVERLAP_HEIGHT, model.OVERLAP_WIDTH))
        output = torch.empty(
            self.vae.decode_shape(latents.shape),
            device=comfy.model_management.intermediate_device(),
            dtype=comfy.model_management.intermediate_dtype(),
        )
        progress = host_progress(pixel_frames(latents.shape[2]))
        return self.vae.decode_tiled(latents, tile_y, tile_x, overlap_y, overlap_x, output, progress)

    def posterior(self, pixels, device=None) -> model.Posterior:
        """Encode pixels [B, 3, F, H, W] in -1..1, held anywhere, chunk by chunk on `device`."""
        progress = host_progress(latent_frames(pixels.shape[2]))
        return self.vae.encode(pixels, progress, device=device, dtype=pixels.dtype)

    def posterior_tiled(self, pixels, tile_x=None, tile_y=None, overlap=None, **temporal) -> model.Posterior:
        """Encode in tiles of `tile_y` x `tile_x` pixels."""
        scale = SPATIAL_COMPRESSION
        tile_y = min((tile_y or model.TILE_HEIGHT * scale) // scale, pixels.shape[3] // scale)
        tile_x = min((tile_x or model.TILE_WIDTH * scale) // scale, pixels.shape[4] // scale)
        overlap = None if overlap is None else overlap // scale
        overlap_y, overlap_x = overlaps(overlap, (tile_y, tile_x), (model.OVERLAP_HEIGHT, model.OVERLAP_WIDTH))
        lengths = [length * scale for length in (tile_y, tile_x, overlap_y, overlap_x)]
        return self.vae.encode_tiled(pixels, *lengths, host_progress(latent_frames(pixels.shape[2])))

    def encode(self, pixels, device=None):
        return self.posterior(pixels, device).mode()

    def encode_tiled(self, pixels, **tiles):
        return self.posterior_tiled(pixels, **tiles).mode()


def overlaps(asked: int | None, tile: tuple[int, int], default: tuple[int, int]) -> tuple[int, ...]:
    """Return the overlap along h and w in latents, always smaller than the tile."""
    wanted = default if asked is None else (asked, asked)
    return tuple(min(overlap, length - 1) for overlap, length in zip(wanted, tile, strict=True))


class Sampled:
    """The first stage with latents drawn from the posterior in place of its mode."""

    comfy_has_chunked_io = True

    def __init__(self, first_stage: FirstStage, seed: int):
        self.first_stage = first_stage
        self.generator = torch.Generator().manual_seed(seed)

    def encode(self, pixels, device=None):
        return self.first_stage.posterior(pixels, device).sample(self.generator)

    def encode_tiled(self, pixels, **tiles):
        return self.first_stage.posterior_tiled(pixels, **tiles).sample(self.generator)


@contextmanager
def _without_empty_vae_warning():
    """Keep the host from warning about the VAE without weights that the base class is made as."""
    root = logging.getLogger()

    def keep(record: logging.LogRecord) -> bool:
        return "No VAE weights detected" not in record.getMessage()

    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)


class VAE(comfy.sd.VAE):
    """The host's VAE around CogVideoX's, so that every stock VAE node works on it."""

    def __init__(
        self,
        state_dict: dict[str, torch.Tensor],
        config: VAEConfig,
        dtype: torch.dtype | None = None,
        disable_dynamic: bool = False,
    ):
        with _without_empty_vae_warning():
            super().__init__(sd={})
        self.latent_channels = config.latent_channels
        self.latent_dim = 3
        self.output_channels = config.out_channels
        self.handles_tiling = True
        self.upscale_ratio = (pixel_frames, SPATIAL_COMPRESSION, SPATIAL_COMPRESSION)
        self.upscale_index_formula = (TEMPORAL_COMPRESSION, SPATIAL_COMPRESSION, SPATIAL_COMPRESSION)
        self.downscale_ratio = (latent_frames, SPATIAL_COMPRESSION, SPATIAL_COMPRESSION)
        self.downscale_index_formula = self.upscale_index_formula
        self.working_dtypes = [torch.bfloat16, torch.float32]
        self.memory_used_decode = decode_memory
        self.memory_used_encode = encode_memory

        self.device = comfy.model_management.vae_device()
        self.vae_dtype = dtype or comfy.model_management.vae_dtype(self.device, self.working_dtypes)
        self.output_device = comfy.model_management.intermediate_device()
        operations = comfy.ops.disable_weight_init
        vae = model.AutoencoderKLCogVideoX(config, dtype=self.vae_dtype, operations=operations, lend=lent_weights)
        stage = FirstStage(vae)
        self.first_stage_model = stage.eval().requires_grad_(False)
        comfy.model_management.archive_model_dtypes(stage)
        offload_device = comfy.model_management.vae_offload_device()
        patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
        self.patcher = patcher_class(stage, load_device=self.device, offload_device=offload_device)
        stage.load_state_dict(state_dict, strict=True, assign=self.patcher.is_dynamic())
        self.model_size()

    def decode(self, samples_in, vae_options={}):  # noqa: B006
        check_latents(samples_in)
        return super().decode(samples_in, vae_options)

    def decode_in_slabs(self, samples):
        """Decode as `decode` does, in less memory and more time."""
        vae = copy.copy(self)
        vae.memory_used_decode = slab_memory
        return vae.decode(samples, {"slabs": True})

    @torch.inference_mode()
    def decode_stream(self, samples, slabs: bool = False) -> Iterator[torch.Tensor]:
        """Yield the frames of one video's latents [1, 16, T, H, W] as they are decoded: float32 [f, 8H, 8W, 3], 0 to 1.

        Nothing but the latents grows with T. With `slabs` the same frames come in less memory and more time.
        """
        check_latents(samples)
        memory = (slab_memory if slabs else decode_memory)(samples.shape, self.vae_dtype)
        comfy.model_management.load_models_gpu([self.patcher], memory_required=memory)
        cache_device = comfy.model_management.vae_offload_device() if slabs else None
        latents = samples.to(device=self.device, dtype=self.vae_dtype)
        for chunk in self.first_stage_model.vae.decode_chunks(latents, slabs, cache_device):
            yield self.process_output(chunk[0].movedim(0, -1).float().to("cpu", copy=True))

    def decode_tiled(self, samples, **tiles):
        check_latents(samples)
        return super().decode_tiled(samples, **tiles)

    def encode_tiled(self, pixel_samples, *args, **tiles):
        if pixel_samples.ndim < 5:
            return super().encode_tiled(pixel_samples, *args, **tiles)
        # A batch of videos [B, F, H, W, 3], of which older hosts (0.24.1) take one.
        return torch.cat([super(VAE, self).encode_tiled(video, *args, **tiles) for video in pixel_samples])

    def decode_tiled_3d(self, samples, overlap, tile_t=None, **tiles):
        """Decode in the model's own tiles, for hosts that know no `handles_tiling` (0.24.1) and ask for theirs here."""
        latents = samples.to(device=self.device, dtype=self.vae_dtype)
        frames = self.first_stage_model.decode_tiled(latents, overlap=overlap[-1], **tiles)
        return self.process_output(frames.to(device=self.output_device, dtype=self.vae_output_dtype(), copy=True))

    def encode_tiled_3d(self, pixels, overlap, tile_t=None, **tiles):
        """Encode in the model's own tiles, as above."""
        pixels = self.process_input(pixels).to(device=self.device, dtype=self.vae_dtype)
        latents = self.first_stage_model.encode_tiled(pixels, overlap=overlap[-1], **tiles)
        return latents.to(device=self.output_device, dtype=self.vae_output_dtype())

    def vae_encode_crop_pixels(self, pixels):
        if pixels.ndim < 5:
            return super().vae_encode_crop_pixels(pixels)
        # The host would crop the frames of a batch of videos [B, F, H, W, 3] to a multiple of 8 as well.
        return super().vae_encode_crop_pixels(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])

    def sampled(self, seed: int) -> VAE:
        """Return this VAE with an encoder that draws latents from the posterior, the draw fixed by `seed`."""
        vae = copy.copy(self)
        vae.first_stage_model = Sampled(self.first_stage_model, seed)
        return vae


def _chunk_pixels(shape) -> int:
    """Return the pixels of the largest chunk that latents [B, 16, T, H, W] decode in, the first one."""
    frames = pixel_frames(model.time_chunks(shape[2], model.DECODE_CHUNK)[0].stop)
    return shape[0] * frames * shape[3] * shape[4] * SPATIAL_COMPRESSION**2


def decode_memory(shape, dtype: torch.dtype) -> int:
    """Return the bytes decoding latents [B, 16, T, H, W] works in; it does not grow with T."""
    return _chunk_pixels(shape) * DECODE_ELEMENTS * comfy.model_management.dtype_size(dtype)


def slab_memory(shape, dtype: torch.dtype) -> int:
    """Return the bytes decoding in slabs works in on the VAE's device; it does not grow with T."""
    pixels = _chunk_pixels(shape)
    in_slabs = max(
        pixels * SLAB_RESULT_ELEMENTS + SLABS_AT_ONCE * slabs.SLAB_ELEMENTS, WHOLE_AT_ONCE * slabs.WHOLE_ELEMENTS
    )
    elements = min(in_slabs, pixels * (DECODE_ELEMENTS - KEPT_ELEMENTS))
    if comfy.model_management.vae_offload_device() == comfy.model_management.vae_device():
        elements += pixels * KEPT_ELEMENTS
    return int(elements) * comfy.model_management.dtype_size(dtype)


def encode_memory(shape, dtype: torch.dtype) -> int:
    """Return the bytes encoding pixels [B, 3, F, H, W] works in; it does not grow with F."""
    frames = model.time_chunks(shape[2], model.ENCODE_CHUNK)[0].stop  # the first chunk is the largest
    return shape[0] * frames * shape[3] * shape[4] * ENCODE_ELEMENTS * comfy.model_management.dtype_size(dtype)


def check_latents(latents: torch.Tensor) -> None:
    """Raise unless latents are [B, 16, T, H, W], what CogVideoX's VAE decodes."""
    if latents.ndim != 5 or latents.shape[1] != LATENT_CHANNELS:
        raise ValueError(
            f"CogVideoX's VAE decodes video latents with {LATENT_CHANNELS} channels and got {list(latents.shape)}. "
            "Connect the LATENT of a sampler that ran a CogVideoX model."
        )


def require_cogvideox_vae(vae) -> VAE:
    """Return `vae`, or raise where it is not CogVideoX's own."""
    if not isinstance(vae, VAE):
        stage = getattr(vae, "first_stage_model", None)
        got = "none" if stage is None else f"another one ({type(stage).__name__})"
        raise ValueError(
            f"This node needs CogVideoX's VAE and got {got}. "
            "Connect the VAE of Load CogVideoX VAE or Load CogVideoX Pipeline."
        )
    return vae
