"""What the VAE computes one chunk of frames with: the state carried from chunk to chunk, group norm, modulation, SiLU.

Letters besides the package's: f frames, h height, w width, c channels of the tensor at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolution import Kernels, Lend, empty_like, own_weights

# Elements taken at once where float32 copies are made: on a CPU what stays in its cache, elsewhere few large kernels.
CPU_PIECE, PIECE = 2**18, 2**24


class ChunkState:
    """What one call carries from time chunk to time chunk: the last frames each causal convolution has seen, kernels.

    Never kept on the modules: two decodes may be interleaved, and one that was interrupted must leave nothing behind.
    The frames wait on `cache_device`, by default where they are made.
    """

    def __init__(self, lend: Lend = own_weights, slabs: bool = False, cache_device: torch.device | None = None):
        self.kernels = Kernels(lend)
        self.slabs = slabs
        self.cache_device = cache_device
        self.first_chunk = self.last_chunk = False
        self._frames: dict[nn.Module, Tensor] = {}

    def take(self, conv: nn.Module) -> Tensor | None:
        """Hand over what `conv` kept, so that it is freed before the successor is made."""
        return self._frames.pop(conv, None)

    def keep(self, conv: nn.Module, frames: Tensor) -> None:
        """Keep a copy of `frames` (a view would keep the whole activation alive); nothing follows the last chunk."""
        if not self.last_chunk:
            self._frames[conv] = frames.to(self.cache_device or frames.device, copy=True)

    def keep_rows(self, conv: nn.Module, frames: Tensor, top: int, height: int) -> None:
        """Keep a copy of the rows `frames` [B, c, f, rows, w], which begin at `top` of `height`."""
        if self.last_chunk:
            return
        if conv not in self._frames:
            shape = (*frames.shape[:3], height, frames.shape[4])
            self._frames[conv] = torch.empty(shape, dtype=frames.dtype, device=self.cache_device or frames.device)
        self._frames[conv][:, :, :, top : top + frames.shape[3]] = frames


def _pieces(x: Tensor) -> Iterator[tuple[int, slice]]:
    """Cut [B, c, f, h, w] into bands of rows: yield the index of a frame and the rows."""
    frames, height = x.shape[2:4]
    step = max((CPU_PIECE if x.device.type == "cpu" else PIECE) // x[:, :, 0, :1].numel(), 1)
    for frame in range(frames):
        for top in range(0, height, step):
            yield frame, slice(top, min(top + step, height))


class Moments:
    """Mean and variance of each channel of what is added, piece by piece, in float32.

    Each piece has its own mean, and pieces are merged by theirs (Chan, Golub and LeVeque 1979): no large sums cancel.
    """

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._means: list[Tensor] = []
        self._variances: list[Tensor] = []

    def add(self, x: Tensor, doubled: bool = False) -> Moments:
        """Add [B, c, f, h, w]; where frames come `doubled` each counts twice, an odd first one once."""
        alone = x.shape[2] % 2 if doubled else 0
        for frames, repeat in ((x[:, :, :alone], 1), (x[:, :, alone:], 2 if doubled else 1)):
            if torch.is_grad_enabled() and frames.shape[2]:  # the gradient of a piece would be as large as x
                self._add(frames, repeat)
            elif frames.shape[2]:
                for frame, rows in _pieces(frames):
                    self._add(frames[:, :, frame : frame + 1, rows], repeat)
        return self

    def _add(self, piece: Tensor, repeat: int) -> None:
        piece, dims = piece.float(), (2, 3, 4)
        if piece.device.type == "cpu":  # var_mean takes five times as long there
            mean = piece.mean(dims, keepdim=True)
            variance, mean = (piece - mean).square().mean(dims), mean.flatten(1)
        else:
            variance, mean = torch.var_mean(piece, dims, correction=0)
        self._counts.append(piece[0, 0].numel() * repeat)
        self._means.append(mean)  # [B, c]
        self._variances.append(variance)

    def of_groups(self, groups: int) -> tuple[Tensor, Tensor]:
        """Return mean and variance of `groups` groups of channels, each [B, groups, 1]."""
        means = torch.stack(self._means).unflatten(2, (groups, -1))  # [pieces, B, groups, c / groups]
        variances = torch.stack(self._variances).unflatten(2, (groups, -1))
        weights = means.new_tensor(self._counts)[:, None, None, None] / sum(self._counts)
        mean = (weights * means).sum(0).mean(-1, keepdim=True)
        variance = (weights * (variances + (means - mean).square())).sum(0).mean(-1, keepdim=True)
        return mean, variance


def group_norm(norm: nn.Module, moments: Moments, x: Tensor, kernels: Kernels) -> tuple[Tensor, Tensor]:
    """Return gain and offset, each [B, c, 1, 1, 1] in float32, that normalise by `moments`: x * gain + offset."""
    mean, variance = moments.of_groups(norm.num_groups)
    with kernels.lend(norm, x) as (weight, bias):
        gain = torch.rsqrt(variance + norm.eps) * weight.float().unflatten(0, (norm.num_groups, -1))
        offset = bias.float().unflatten(0, (norm.num_groups, -1)) - mean * gain  # [B, groups, c / groups]
    return tuple(part.flatten(1)[..., None, None, None] for part in (gain, offset))


def _latent_of_frame(frames: int, latents: int) -> list[int]:
    """Return the latent frame each of `frames` belongs to: an odd chunk's first stands for one, the others share."""
    alone = 1 if frames > 1 and frames % 2 and latents > 1 else 0
    return [0] * alone + [alone + index * (latents - alone) // (frames - alone) for index in range(frames - alone)]


@dataclass(frozen=True, eq=False)
class Activation:
    """silu(x * scale + shift): scale and shift [B, c, T, H, W] in float32, nearest neighbour in space and time."""

    scale: Tensor
    shift: Tensor

    def _at(self, part: Tensor, frames: int | list[int], rows: slice, height: int) -> Tensor:
        """Pick frames and pixel rows of `height`: [B, c, f, rows, W, 1]."""
        index = torch.arange(rows.start, rows.stop, device=part.device) // (height // part.shape[3])
        return part[:, :, frames][..., index, :].unsqueeze(-1)

    def __call__(self, x: Tensor) -> Tensor:
        """[B, c, f, h, w] -> the same shape, for gradients to flow through."""
        frames = _latent_of_frame(x.shape[2], self.scale.shape[2])
        scale, shift = (self._at(part, frames, slice(0, x.shape[3]), x.shape[3]) for part in (self.scale, self.shift))
        y = torch.addcmul(shift, x.unflatten(4, (self.scale.shape[4], -1)).float(), scale)
        return F.silu(y).flatten(4).to(x.dtype)

    def write(self, x: Tensor, out: Tensor, top: int = 0, height: int | None = None) -> None:
        """Write what becomes of x [B, c, f, h, w] to `out`; x may be the rows from `top` on of a larger `height`."""
        frames, width = _latent_of_frame(x.shape[2], self.scale.shape[2]), self.scale.shape[4]
        for frame, rows in _pieces(x):
            place = (frames[frame], slice(top + rows.start, top + rows.stop), height or x.shape[3])
            scale, shift = self._at(self.scale, *place), self._at(self.shift, *place)  # [B, c, rows, W, 1]
            piece = x[:, :, frame, rows].unflatten(3, (width, -1))
            target = out[:, :, frame, rows].unflatten(3, (width, -1))
            if x.device.type == "cpu" and x.dtype != torch.float32:  # mixed types take three times as long there
                target.copy_(F.silu(torch.addcmul(shift, piece.float(), scale), inplace=True))
            else:
                F.silu(torch.addcmul(shift, piece, scale, out=target), inplace=True)


def behind(
    past: Tensor | None,
    reach: int,
    x: Tensor,
    activation: Activation | None,
    top: int = 0,
    height: int | None = None,
) -> Tensor:
    """Put the `activation` of x [B, c, f, h, w] behind `reach` frames: `past`, or its own first one where none is.

    Returns [B, c, reach + f, h, w]. x may be the rows from `top` on of a larger `height`.
    """
    if torch.is_grad_enabled():
        y = x if activation is None else activation(x)
        return torch.cat((y[:, :, :1].expand(-1, -1, reach, -1, -1) if past is None else past, y), dim=2)
    out = empty_like(x, (*x.shape[:2], reach + x.shape[2], *x.shape[3:]))
    present = out[:, :, reach:]
    if activation is None:
        present.copy_(x)
    else:
        activation.write(x, present, top, height)
    out[:, :, :reach] = present[:, :, :1] if past is None else past
    return out
