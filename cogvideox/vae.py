"""The 3D causal VAE of CogVideoX: pixels [B, 3, F, 8H, 8W] in -1..1 to latents [B, 16, T, H, W] and back, unscaled.

Paper: arXiv 2408.06072 section 2.1; the decoder's norm is that of MoVQ (arXiv 2209.09002). Module names are the keys of
the published files, those of models/autoencoders/autoencoder_kl_cogvideox.py in huggingface/diffusers (58eb52c,
Apache-2.0). Letters besides the package's: f frames, h height, w width, c channels of the tensor at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import slabs
from .chunk import Activation, ChunkState, Moments, behind, group_norm
from .convolution import Lend, convolve, convolve_doubled, downsample, own_weights, upsample
from .latents import FRAME_STEP, latent_frames, pixel_frames
from .variants import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION, VAEConfig

# The chunk is part of the function: group norms take their statistics over it, so another chunk length is another
# picture (diffusers `num_latent_frames_batch_size`, `num_sample_frames_batch_size`).
DECODE_CHUNK = FRAME_STEP // TEMPORAL_COMPRESSION  # latent frames
ENCODE_CHUNK = FRAME_STEP  # pixel frames

# diffusers' tile in latents: half of 480 x 720 px (`sample_height // 2`), overlap 1/6, 1/5 (`tile_overlap_factor_*`).
TILE_HEIGHT, TILE_WIDTH = 30, 45
OVERLAP_HEIGHT, OVERLAP_WIDTH = 5, 9

SPATIAL_NORM_EPS = 1e-6  # fixed in the reference, whatever `norm_eps` says
LOGVAR_RANGE = (-30.0, 20.0)  # diffusers DiagonalGaussianDistribution

Progress = Callable[[int, int], None]


def time_chunks(frames: int, size: int) -> list[slice]:
    """Cut `frames` into chunks of `size`, the remainder joined to the first: 13 by 2 gives 3, 2, 2, 2, 2, 2."""
    stops = range(frames % size + size, frames + 1, size) or (frames,)
    return [slice(start, stop) for start, stop in zip((0, *stops), stops, strict=False)]


class CogVideoXCausalConv3d(nn.Module):
    """3D convolution whose time padding is the past: the previous chunk's last frames, or the first frame repeated.

    With `doubles` it also doubles the frames: each one given, but an odd first one, stands for two equal ones.
    """

    def __init__(self, in_channels, out_channels, kernel_size=3, doubles=False, *, operations, **kwargs):
        super().__init__()
        self.doubles = doubles
        self.past_frames = 1 if doubles else kernel_size - 1
        padding = (0, kernel_size // 2, kernel_size // 2)
        self.conv = operations.Conv3d(in_channels, out_channels, kernel_size, padding=padding, **kwargs)

    def enter(self, x: Tensor, state: ChunkState, activation: Activation | None = None) -> Tensor:
        """[B, c, n, h, w] -> [B, c, past + n, h, w]: what to convolve, activated behind the past."""
        past = state.take(self)
        x = behind(None if past is None else past.to(x.device), self.past_frames, x, activation)
        state.keep(self, x[:, :, -self.past_frames :])
        return x

    def forward(self, x: Tensor, state: ChunkState) -> Tensor:
        """[B, c, past + n, h, w] -> [B, c', f, h, w]; f is n, or 2n - n % 2 where it doubles."""
        if self.doubles:
            return convolve_doubled(self.conv, x, state.kernels)
        return convolve(self.conv, x, state.kernels, repeated=state.first_chunk)


def _group_norm(groups: int, channels: int, eps: float, *, operations, **kwargs) -> nn.Module:
    return operations.GroupNorm(groups, channels, eps=eps, **kwargs)


class CogVideoXSpatialNorm3D(nn.Module):
    """Group norm whose scale and shift come from the latents, nearest neighbour in space and time (MoVQ)."""

    def __init__(self, channels, latent_channels, groups, **kwargs):
        super().__init__()
        self.norm_layer = _group_norm(groups, channels, SPATIAL_NORM_EPS, **kwargs)
        self.conv_y = CogVideoXCausalConv3d(latent_channels, channels, 1, **kwargs)
        self.conv_b = CogVideoXCausalConv3d(latent_channels, channels, 1, **kwargs)

    def forward(self, moments: Moments, state: ChunkState, latents: Tensor) -> Activation:
        """Return norm, modulation and SiLU as one: scale and shift at the size of `latents` [B, 16, T, H, W]."""
        # The reference enlarges the latents, then convolves. A 1x1x1 convolution commutes with nearest neighbour, and
        # at the last level the latents have 1/256 of the positions.
        scale, shift = (conv(latents, state).float() for conv in (self.conv_y, self.conv_b))  # [B, c, T, H, W]
        gain, offset = group_norm(self.norm_layer, moments, latents, state.kernels)
        return Activation(gain * scale, torch.addcmul(shift, offset, scale))


class CogVideoXResnetBlock3D(nn.Module):
    """Two causal convolutions and a shortcut; with `latent_channels` the norms are spatial norms (decoder).

    The first one after an upsampler of time `doubles` the frames: all it does before its first convolution, it does
    once for two equal frames.
    """

    def __init__(
        self, in_channels, out_channels, groups, eps, latent_channels=None, doubles=False, *, operations, dtype, device
    ):
        super().__init__()
        kwargs = dict(operations=operations, dtype=dtype, device=device)

        def norm(channels):
            if latent_channels is None:
                return _group_norm(groups, channels, eps, **kwargs)
            return CogVideoXSpatialNorm3D(channels, latent_channels, groups, **kwargs)

        self.doubles = doubles
        self.norm1 = norm(in_channels)
        self.conv1 = CogVideoXCausalConv3d(in_channels, out_channels, doubles=doubles, **kwargs)
        self.norm2 = norm(out_channels)
        self.conv2 = CogVideoXCausalConv3d(out_channels, out_channels, **kwargs)
        self.conv_shortcut = None
        if in_channels != out_channels:
            self.conv_shortcut = operations.Conv3d(in_channels, out_channels, 1, dtype=dtype, device=device)

    def activation(self, norm: nn.Module, moments: Moments, state: ChunkState, latents: Tensor) -> Activation:
        """Return `norm` by `moments` with its SiLU; `latents` modulate it, or only name device and type (encoder)."""
        if isinstance(norm, CogVideoXSpatialNorm3D):
            return norm(moments, state, latents)
        return Activation(*group_norm(norm, moments, latents, state.kernels))

    def add_shortcut(self, y: Tensor, x: Tensor, state: ChunkState) -> Tensor:
        """Add the shortcut of x [B, c, n, h, w] to y [B, c', f, h, w], in place."""
        if self.conv_shortcut is not None:
            x = convolve(self.conv_shortcut, x, state.kernels)  # [B, c', n, h, w]
        if not self.doubles:
            return y.add_(x)
        alone = x.shape[2] % 2
        y[:, :, :alone] += x[:, :, :alone]
        y[:, :, alone:].unflatten(2, (-1, 2)).add_(x[:, :, alone:, None])
        return y

    def forward(self, x: Tensor, state: ChunkState, latents: Tensor | None = None) -> Tensor:
        """[B, c, n, h, w] -> [B, c', f, h, w]; f is n, or 2n - n % 2 where it doubles."""
        context = x if latents is None else latents
        norm1 = self.activation(self.norm1, Moments().add(x, self.doubles), state, context)
        y = self.conv1.enter(x, state, norm1)  # [B, c, past + n, h, w]
        y = self.conv1(y, state)  # [B, c', f, h, w]
        norm2 = self.activation(self.norm2, Moments().add(y), state, context)
        y = self.conv2.enter(y, state, norm2)  # [B, c', past + f, h, w]
        y = self.conv2(y, state)  # [B, c', f, h, w]
        return self.add_shortcut(y, x, state)


class CogVideoXDownsample3D(nn.Module):
    """Halve height and width, and frames by the mean of pairs where `compress_time`; an odd first frame stays alone."""

    def __init__(self, channels, compress_time, *, operations, **kwargs):
        super().__init__()
        self.compress_time = compress_time
        self.conv = operations.Conv2d(channels, channels, 3, stride=2, **kwargs)

    def forward(self, x: Tensor, state: ChunkState) -> Tensor:
        """[B, c, f, h, w] -> [B, c, ceil(f/2) or f, h/2, w/2]."""
        return downsample(self.conv, x, state.kernels, 2 if self.compress_time else 1)


class CogVideoXUpsample3D(nn.Module):
    """Double height and width by nearest neighbour; where time doubles too, the resnet that follows does it."""

    def __init__(self, channels, *, operations, **kwargs):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, padding=1, **kwargs)

    def forward(self, x: Tensor, state: ChunkState) -> Tensor:
        """[B, c, f, h, w] -> [B, c, f, 2h, 2w]."""
        return upsample(self.conv, x, state.kernels)


def _resnets(channels: Sequence[int], *args, **kwargs) -> nn.ModuleList:
    """Chain resnet blocks through the widths `channels`."""
    widths = zip(channels, channels[1:], strict=False)
    return nn.ModuleList(CogVideoXResnetBlock3D(before, after, *args, **kwargs) for before, after in widths)


class CogVideoXDownBlock3D(nn.Module):
    """Resnets, then a downsampler on all levels but the last."""

    def __init__(self, in_channels, out_channels, layers, groups, eps, downsample, compress_time, **kwargs):
        super().__init__()
        self.resnets = _resnets([in_channels] + [out_channels] * layers, groups, eps, **kwargs)
        self.downsamplers = nn.ModuleList(
            [CogVideoXDownsample3D(out_channels, compress_time, **kwargs)] if downsample else []
        )


class CogVideoXMidBlock3D(nn.Module):
    """Two resnets at the lowest resolution."""

    def __init__(self, channels, groups, eps, latent_channels=None, **kwargs):
        super().__init__()
        self.resnets = _resnets([channels] * 3, groups, eps, latent_channels, **kwargs)

    def forward(self, x: Tensor, state: ChunkState, latents: Tensor | None = None) -> Tensor:
        """[B, c, f, h, w] -> the same shape."""
        for resnet in self.resnets:
            x = resnet(x, state, latents)
        return x


class CogVideoXUpBlock3D(nn.Module):
    """Resnets conditioned on the latents, the first of which may double time, and an upsampler on all but the last."""

    def __init__(self, in_channels, out_channels, layers, groups, eps, latent_channels, doubles, upsample, **kwargs):
        super().__init__()
        shape = (groups, eps, latent_channels)
        first = CogVideoXResnetBlock3D(in_channels, out_channels, *shape, doubles, **kwargs)
        self.resnets = nn.ModuleList([first, *_resnets([out_channels] * layers, *shape, **kwargs)])
        self.upsamplers = nn.ModuleList([CogVideoXUpsample3D(out_channels, **kwargs)] if upsample else [])


class CogVideoXEncoder3D(nn.Module):
    """Pixels of one time chunk to the mean and log variance of its latents."""

    def __init__(self, config: VAEConfig, **kwargs):
        super().__init__()
        widths, groups, eps = config.block_out_channels, config.norm_num_groups, config.norm_eps
        last, time_levels = len(widths) - 1, config.temporal_compression_ratio.bit_length() - 1
        self.conv_in = CogVideoXCausalConv3d(config.in_channels, widths[0], **kwargs)
        self.down_blocks = nn.ModuleList()
        for level, (before, after) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            shape = (before, after, config.layers_per_block, groups, eps)
            self.down_blocks.append(CogVideoXDownBlock3D(*shape, level < last, level < time_levels, **kwargs))
        self.mid_block = CogVideoXMidBlock3D(widths[-1], groups, eps, **kwargs)
        self.norm_out = _group_norm(groups, widths[-1], SPATIAL_NORM_EPS, **kwargs)
        self.conv_out = CogVideoXCausalConv3d(widths[-1], 2 * config.latent_channels, **kwargs)

    def forward(self, pixels: Tensor, state: ChunkState) -> Tensor:
        """[B, 3, F, 8H, 8W] -> [B, 2 * 16, T, H, W]."""
        x = self.conv_in(self.conv_in.enter(pixels, state), state)  # [B, c, F, 8H, 8W]
        for block in self.down_blocks:  # their layers are run here: a call would keep its input, the largest, alive
            for resnet in block.resnets:
                x = resnet(x, state)
            for downsampler in block.downsamplers:
                x = downsampler(x, state)  # [B, c', f', h/2, w/2]
        x = self.mid_block(x, state)  # [B, c, T, H, W]
        activation = Activation(*group_norm(self.norm_out, Moments().add(x), x, state.kernels))
        return self.conv_out(self.conv_out.enter(x, state, activation), state)


class CogVideoXDecoder3D(nn.Module):
    """Latents of one time chunk to pixels."""

    def __init__(self, config: VAEConfig, **kwargs):
        super().__init__()
        widths, groups, eps = config.block_out_channels[::-1], config.norm_num_groups, config.norm_eps
        last, time_levels = len(widths) - 1, config.temporal_compression_ratio.bit_length() - 1
        self.conv_in = CogVideoXCausalConv3d(config.latent_channels, widths[0], **kwargs)
        self.mid_block = CogVideoXMidBlock3D(widths[0], groups, eps, config.latent_channels, **kwargs)
        self.up_blocks = nn.ModuleList()
        for level, (before, after) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            shape = (before, after, config.layers_per_block + 1, groups, eps, config.latent_channels)
            self.up_blocks.append(CogVideoXUpBlock3D(*shape, 0 < level <= time_levels, level < last, **kwargs))
        self.norm_out = CogVideoXSpatialNorm3D(widths[-1], config.latent_channels, groups, **kwargs)
        self.conv_out = CogVideoXCausalConv3d(widths[-1], config.out_channels, **kwargs)

    def forward(self, latents: Tensor, state: ChunkState) -> Tensor:
        """[B, 16, T, H, W] -> [B, 3, F, 8H, 8W]."""
        x = self.conv_in(self.conv_in.enter(latents, state), state)  # [B, c, T, H, W]
        x = self.mid_block(x, state, latents)
        if state.slabs:
            return slabs.decode(self, x, state, latents)
        for block in self.up_blocks:  # their layers are run here: a call would keep its input, the largest, alive
            for resnet in block.resnets:
                x = resnet(x, state, latents)  # [B, c', f, h, w], f up to 2n
            for upsampler in block.upsamplers:
                x = upsampler(x, state)  # [B, c', f, 2h, 2w]
        x = self.conv_out.enter(x, state, self.norm_out(Moments().add(x), state, latents))  # [B, c, 2 + F, 8H, 8W]
        return self.conv_out(x, state)


@dataclass(frozen=True, eq=False)
class Posterior:
    """What the encoder knows of the latents: `mean` and `logvar`, each [B, 16, T, H, W], unscaled."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> Posterior:
        """Split the encoder's [B, 2 * 16, T, H, W] and clamp the log variance as diffusers does."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(*LOGVAR_RANGE))

    def mode(self) -> Tensor:
        """Return the most likely latents [B, 16, T, H, W]."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw latents [B, 16, T, H, W]; a CPU generator draws on the CPU, so a seed gives one result on any device."""
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean.device)


def _by_chunk(
    coder: nn.Module, x: Tensor, size: int, state: ChunkState | None = None, device=None, dtype=None
) -> Iterator[Tensor]:
    state = ChunkState() if state is None else state
    for span in time_chunks(x.shape[2], size):
        state.first_chunk, state.last_chunk = span.start == 0, span.stop == x.shape[2]
        chunk = x[:, :, span].to(device=device, dtype=dtype)
        # Channels last is a fifth faster on a CPU, and there frames behind each other are contiguous.
        layout = torch.channels_last_3d if chunk.device.type == "cpu" else torch.contiguous_format
        yield coder(chunk.contiguous(memory_format=layout), state)


def _ending(x: Tensor, dim: int, length: int) -> Tensor:
    length = min(length, x.shape[dim])
    return x.narrow(dim, x.shape[dim] - length, length)


def _blend_start_(x: Tensor, before: Tensor, dim: int) -> None:
    """Fade in place from the end of `before` into the start of `x` along `dim`, linearly and in fp32."""
    length = min(before.shape[dim], x.shape[dim])
    shape = [length if axis == dim else 1 for axis in range(x.ndim)]
    weight = (torch.arange(length, device=x.device, dtype=torch.float32) / max(length, 1)).view(shape)
    start = x.narrow(dim, 0, length)
    start.copy_(torch.lerp(_ending(before, dim, length).to(start.device).float(), start.float(), weight))


def _tile_starts(size: Sequence[int], tile: tuple[int, int], overlap: tuple[int, int]) -> list[range]:
    """Return where tiles begin along height and width, in latents; a frame that fits one tile is one tile."""
    for length, shared in zip(tile, overlap, strict=True):
        if not 0 <= shared < length:
            raise ValueError(f"A tile of {length} needs an overlap from 0 to {length - 1}, not {shared} (in latents).")
    if all(total <= length for total, length in zip(size, tile, strict=True)):
        return [range(1), range(1)]
    return [range(0, size[axis], tile[axis] - overlap[axis]) for axis in (0, 1)]


def _tiled(
    run: Callable[[Tensor], Iterator[Tensor]],
    x: Tensor,
    output: Tensor,
    tile: tuple[int, int],
    overlap: tuple[int, int],
    units: tuple[int, int],
    progress: Progress | None,
) -> Tensor:
    """Run overlapping tiles of x [B, c, f, h, w] through `run`, blend its chunks into `output` [B, c', f', h', w'].

    `tile` and `overlap` (height, width) are in latents, of which one is `units` (in x, in output) long.

    Tiles are the outer loop, time the inner one: a tile is finished over all its chunks before the next begins, so the
    device holds the working set and convolution cache of one tile only. Chunk by chunk over all tiles would finish
    frames in order, but keep the cache of every tile at once, as large as that of the whole frame.

    A tile fades in from the tile above, then from the one on the left, both as already blended (diffusers). Where four
    tiles meet that is no separable weighting: it needs the neighbours' own edges, kept as strips beside `output`.
    """
    unit, out_unit = units
    rows, columns = _tile_starts([length // unit for length in x.shape[3:]], tile, overlap)
    total, done = output.shape[2] * len(rows) * len(columns), 0
    above: dict[int, list[Tensor]] = {}  # by column: the bottom strip of each chunk
    for row in rows:
        left: list[Tensor] = []  # the right strip of each chunk
        for column in columns:
            bottom, right, stop = [], [], 0
            top_left = x[..., row * unit :, column * unit :]
            for index, chunk in enumerate(run(top_left[..., : tile[0] * unit, : tile[1] * unit])):
                if row > 0:
                    _blend_start_(chunk, above[column][index], dim=3)
                if column > 0:
                    _blend_start_(chunk, left[index], dim=4)
                bottom.append(_ending(chunk, 3, overlap[0] * out_unit).to(output.device, copy=True))
                right.append(_ending(chunk, 4, overlap[1] * out_unit).to(output.device, copy=True))
                start, stop = stop, stop + chunk.shape[2]
                region = output[:, :, start:stop, row * out_unit :, column * out_unit :]
                # To the tile's end: the next tile fades in there and overwrites it.
                region[..., : chunk.shape[3], : chunk.shape[4]].copy_(chunk)
                done += chunk.shape[2]
                if progress is not None:
                    progress(done, total)
            above[column], left = bottom, right
    return output


class AutoencoderKLCogVideoX(nn.Module):
    """The VAE every CogVideoX model shares; its latents are unscaled, multiply with the variant's `latent_scale`.

    `operations` builds every layer and `lend` gives their weights where those are needed by themselves; the defaults
    are plain PyTorch.
    """

    def __init__(
        self,
        config: VAEConfig = VAEConfig(),  # noqa: B008
        *,
        dtype=None,
        device=None,
        operations=nn,
        lend: Lend = own_weights,
    ):
        super().__init__()
        self.config, self.lend = config, lend
        kwargs = dict(dtype=dtype, device=device, operations=operations)
        self.encoder = CogVideoXEncoder3D(config, **kwargs)
        self.decoder = CogVideoXDecoder3D(config, **kwargs)

    def decode_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape [B, 3, F, 8H, 8W] that latents of `shape` [B, 16, T, H, W] decode to."""
        batch, _, frames, height, width = shape
        scale = self.config.spatial_compression
        return batch, self.config.out_channels, pixel_frames(frames), height * scale, width * scale

    def decode_chunks(self, latents: Tensor, slabs: bool = False, cache_device=None) -> Iterator[Tensor]:
        """Decode [B, 16, T, H, W] as a stream of [B, 3, f, 8H, 8W] in -1..1; memory does not grow with T."""
        return _by_chunk(self.decoder, latents, DECODE_CHUNK, ChunkState(self.lend, slabs, cache_device))

    def decode(
        self,
        latents: Tensor,
        output: Tensor | None = None,
        progress: Progress | None = None,
        *,
        slabs: bool = False,
        cache_device=None,
    ) -> Tensor:
        """Decode [B, 16, T, H, W] to [B, 3, F, 8H, 8W] in -1..1, into `output` (any device, dtype, strides) if given.

        `progress(done, total)` is called after each chunk, in frames. With `slabs` large frames are decoded in slabs of
        rows, the same result in less memory and more time. What convolutions keep between chunks can wait on another
        `cache_device`.
        """
        output = self._output(latents, output)
        stop = 0
        for chunk in self.decode_chunks(latents, slabs, cache_device):
            start, stop = stop, stop + chunk.shape[2]
            output[:, :, start:stop] = chunk
            if progress is not None:
                progress(stop, output.shape[2])
        return output

    def _output(self, latents: Tensor, output: Tensor | None) -> Tensor:
        shape = self.decode_shape(latents.shape)
        if output is None:
            return latents.new_empty(shape)
        if tuple(output.shape) != shape:
            raise ValueError(f"These latents decode to {shape}, but the output given is {tuple(output.shape)}.")
        return output

    def decode_tiled(
        self,
        latents: Tensor,
        tile_height: int = TILE_HEIGHT,
        tile_width: int = TILE_WIDTH,
        overlap_height: int = OVERLAP_HEIGHT,
        overlap_width: int = OVERLAP_WIDTH,
        output: Tensor | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Decode as `decode` does but in overlapping tiles (lengths in latents), blended as in diffusers.

        `progress(done, total)` counts the frames of every tile.
        """
        output = self._output(latents, output)
        tile, overlap = (tile_height, tile_width), (overlap_height, overlap_width)
        units = (1, self.config.spatial_compression)
        return _tiled(self.decode_chunks, latents, output, tile, overlap, units, progress)

    def encode(self, pixels: Tensor, progress: Progress | None = None, *, device=None, dtype=None) -> Posterior:
        """Encode [B, 3, F, 8H, 8W] in -1..1 to the posterior of [B, 16, T, H, W].

        Each chunk is moved to `device` and `dtype` on its own, so a long video can stay elsewhere; `progress(done,
        total)` is called after each, in latent frames.
        """
        scale = self.config.spatial_compression
        height, width = (-(-length // scale) * scale for length in pixels.shape[3:])
        return self.encode_tiled(pixels, height, width, 0, 0, progress, device=device, dtype=dtype)

    def encode_tiled(
        self,
        pixels: Tensor,
        tile_height: int = TILE_HEIGHT * SPATIAL_COMPRESSION,
        tile_width: int = TILE_WIDTH * SPATIAL_COMPRESSION,
        overlap_height: int = OVERLAP_HEIGHT * SPATIAL_COMPRESSION,
        overlap_width: int = OVERLAP_WIDTH * SPATIAL_COMPRESSION,
        progress: Progress | None = None,
        *,
        device=None,
        dtype=None,
    ) -> Posterior:
        """Encode as `encode` does but in overlapping tiles (lengths in pixels), blended as in diffusers.

        `progress(done, total)` counts the latent frames of every tile.
        """
        scale = self.config.spatial_compression
        lengths = (tile_height, tile_width, overlap_height, overlap_width)
        if any(length % scale for length in lengths):
            raise ValueError(f"Tile sizes and overlaps must divide by {scale} px, but {lengths} were given.")
        tile, overlap = (tile_height // scale, tile_width // scale), (overlap_height // scale, overlap_width // scale)
        batch, _, frames, height, width = pixels.shape
        shape = (batch, 2 * self.config.latent_channels, latent_frames(frames), height // scale, width // scale)
        moments = torch.empty(shape, device=device or pixels.device, dtype=dtype or pixels.dtype)

        def run(pixels: Tensor) -> Iterator[Tensor]:
            return _by_chunk(self.encoder, pixels, ENCODE_CHUNK, ChunkState(self.lend), device, dtype)

        return Posterior.from_moments(_tiled(run, pixels, moments, tile, overlap, (scale, 1), progress))
