"""The VAE's convolutions with fewer multiplications: the same function, only rounding differs.

Letters besides the package's: f frames, h height, w width, c channels of the tensor at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch
from torch import Tensor, nn

# Elements one convolution may see. Larger inputs go in windows of frames: a window that is not contiguous is copied,
# and cuDNN never meets 2^31 elements.
CONV_ELEMENTS = 2**28
UPCAST_ELEMENTS = 2**24  # the same where a window becomes float32 first

# Output positions from which transforming a kernel costs less than the multiplications it saves (about 1000 on an
# AVX-512 CPU: 6 ns for each weight against 6 ps for each weight and position).
WINOGRAD_POSITIONS = 4096
# Channels in and out from which the gain is above the cost of adding frames (about 16 on that CPU: 1 ns an addition).
WINOGRAD_CHANNELS = 32

Kernel = tuple[Tensor, Tensor]  # weight, bias
Lend = Callable[[nn.Module, Tensor], AbstractContextManager[Kernel]]


@contextmanager
def own_weights(layer: nn.Module, x: Tensor) -> Iterator[Kernel]:
    """Lend the weight and bias of `layer` for an input like `x`; a host that keeps weights elsewhere brings its own."""
    yield layer.weight, layer.bias


@cache
def bfloat16_is_native() -> bool:
    """Say whether this CPU multiplies bfloat16 by itself; PyTorch emulates it elsewhere."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # since PyTorch 2.10
    return capabilities.get("architecture") != "x86_64" or capabilities["avx512_bf16"] or capabilities["amx_bf16"]


def _arithmetic(x: Tensor) -> torch.dtype:
    """Return the type to multiply in: float32 where a CPU only emulates bfloat16, which takes three times as long."""
    emulated = x.device.type == "cpu" and x.dtype == torch.bfloat16 and not bfloat16_is_native()
    return torch.float32 if emulated else x.dtype


class Kernels:
    """What layers lend during one call, and the kernels derived from it.

    Derived kernels live as long as the call, never on the layers: a host may patch or unload those in between.
    """

    def __init__(self, lend: Lend = own_weights):
        self.lend = lend
        self._derived: dict[nn.Module, list[Kernel]] = {}

    def derived(self, conv: nn.Module, x: Tensor, derive: Callable[[Tensor], Sequence[Tensor]]) -> list[Kernel]:
        """Return the kernels `derive` makes of the weight of `conv` in float32, for inputs like `x`."""
        if conv not in self._derived:
            with self.lend(conv, x) as (weight, bias):
                weights = [part.to(_arithmetic(x)) for part in derive(weight.float())]
                self._derived[conv] = [(part, bias.repeat(len(part) // len(bias))) for part in weights]
        return self._derived[conv]


def _apply(conv: nn.Module, x: Tensor, kernels: Kernels, kernel: Kernel | None) -> Tensor:
    dtype = _arithmetic(x)
    if kernel is None and dtype == x.dtype:
        return conv(x)
    with kernels.lend(conv, x) if kernel is None else nullcontext(kernel) as (weight, bias):
        # The layer's own call, so that a host's ways around faults of a library are taken with other kernels too.
        return conv._conv_forward(x.to(dtype), weight.to(dtype), bias.to(dtype)).to(x.dtype)


def empty_like(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return an empty tensor of `shape` in the memory format of `x`."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def convolve(
    conv: nn.Module, x: Tensor, kernels: Kernels, kernel: Kernel | None = None, repeated: bool = False
) -> Tensor:
    """Convolve [B, c, taps - 1 + f, h, w] to [B, c', f, h, w] with the kernel of `conv`, or with `kernel`.

    `repeated` says that the first `taps` frames are equal.
    """
    taps = conv.kernel_size[0] if kernel is None else kernel[0].shape[2]
    frames, dtype = x.shape[2] - taps + 1, _arithmetic(x)
    pays = taps == 3 and frames * x[0, 0, 0].numel() >= WINOGRAD_POSITIONS
    pays = pays and min(conv.in_channels, conv.out_channels) >= WINOGRAD_CHANNELS
    if pays and x.device.type == "cpu" and dtype == torch.float32 and not torch.is_grad_enabled():
        with kernels.lend(conv, x) as (weight, bias):
            return _convolve_winograd(conv, x, weight.float(), bias.float(), repeated)
    limit = CONV_ELEMENTS if dtype == x.dtype else UPCAST_ELEMENTS
    step = max(limit // x[:, :, 0].numel() - taps + 1, 1)
    if step >= frames:
        return _apply(conv, x, kernels, kernel)
    out = None
    for start in range(0, frames, step):
        piece = _apply(conv, x[:, :, start : start + step + taps - 1], kernels, kernel)
        if out is None:
            out = empty_like(piece, (*piece.shape[:2], frames, *piece.shape[3:]))
        out[:, :, start : start + step] = piece
        del piece  # before the next one is made
    return out


def _convolve_winograd(conv: nn.Module, x: Tensor, weight: Tensor, bias: Tensor, repeated: bool) -> Tensor:
    """Convolve as `convolve` does, with 6 in place of 12 planar convolutions for four frames, in float32.

    Winograd's F(4, 3) along time, F(2, 3) for two frames that are left (Lavin and Gray, arXiv 1509.09308). In float32
    they double the rounding error (1.4e-6 for one layer); in 16 bits their differences of frames would be rounded too.
    """
    first, middle, last = weight.unbind(2)  # [c', c, 3, 3]
    padding, frames = conv.padding[1:], x.shape[2] - 2

    def planar(frame: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
        return nn.functional.conv2d(frame, kernel, bias, padding=padding)

    out = empty_like(x, (x.shape[0], weight.shape[0], frames, *x.shape[3:]))
    start = frames % 2
    if start and repeated:
        out[:, :, 0] = planar(x[:, :, 0].float(), weight.sum(2), bias)
    elif start:
        out[:, :, 0] = conv._conv_forward(x[:, :, :3].float(), weight, bias)[:, :, 0]
    if frames % 4 >= 2:
        half, ends = middle / 2, (first + last) / 2
        x0, x1, x2, x3 = x[:, :, start : start + 4].float().unbind(2)  # [B, c, h, w]
        both, apart = planar(x1 + x2, ends + half, bias), planar(x2 - x1, ends - half)
        torch.add(planar(x0 - x2, first.contiguous()).add_(both), apart, out=out[:, :, start])
        torch.sub(both.sub_(apart), planar(x1 - x3, last.contiguous()), out=out[:, :, start + 1])
    if frames < 4:
        return out
    ends, wide = -(first + last) / 6, first / 24 + last / 6
    k0, k1, k2 = first / 4, ends - middle / 6, ends + middle / 6
    k3, k4, k5 = wide + middle / 12, wide - middle / 12, last.contiguous()
    buffers = [torch.empty_like(x[:, :, 0], dtype=weight.dtype) for _ in range(3)]
    for start in range(frames % 4, frames, 4):
        x0, x1, x2, x3, x4, x5 = x[:, :, start : start + 6].float().unbind(2)  # [B, c, h, w]
        even, odd, z = buffers
        torch.sub(x4, x2, alpha=4, out=even)
        torch.sub(x3, x1, alpha=4, out=odd)
        sums, y = planar(torch.add(even, odd, out=z), k1, bias), planar(even.sub_(odd), k2)
        differences, sums = sums - y, sums.add_(y)
        torch.sub(x4, x2, out=even)
        torch.sub(x3, x1, out=odd)
        wide_sums, y = planar(torch.add(even, odd, alpha=2, out=z), k3), planar(even.sub_(odd, alpha=2), k4)
        wide_differences, wide_sums = wide_sums - y, wide_sums.add_(y)
        y = planar(torch.add(x4, x0, alpha=4, out=z).sub_(x2, alpha=5), k0).add_(sums)
        torch.add(y, wide_sums, out=out[:, :, start])
        torch.add(differences, wide_differences, alpha=2, out=out[:, :, start + 1])
        torch.add(sums, wide_sums, alpha=4, out=out[:, :, start + 2])
        y = planar(torch.add(x5, x1, alpha=4, out=z).sub_(x3, alpha=5), k5).add_(differences)
        torch.add(y, wide_differences, alpha=8, out=out[:, :, start + 3])
    return out


def _double(weight: Tensor) -> list[Tensor]:
    """Of taps a, b, c make (a + b, c) and (a, b + c): what a frame and its double see of [.., x0, x0, x1, x1, ..]."""
    a, b, c = weight.unbind(2)
    return [torch.stack((a + b, c), dim=2), torch.stack((a, b + c), dim=2)]


def convolve_doubled(conv: nn.Module, x: Tensor, kernels: Kernels) -> Tensor:
    """Convolve frames that count twice, given once: [B, c, 1 + n, h, w] -> [B, c', 2n - n % 2, h, w].

    An odd first frame counts once. Of three taps two always fall on equal frames, so 2 in place of 3 are left.
    """
    alone, n = (x.shape[2] - 1) % 2, x.shape[2] - 1
    first, second = kernels.derived(conv, x, _double)
    piece = convolve(conv, x, kernels, first)  # [B, c', n, h, w]
    out = empty_like(piece, (*piece.shape[:2], 2 * n - alone, *piece.shape[3:]))
    out[:, :, :alone] = piece[:, :, :alone]
    out[:, :, alone::2] = piece[:, :, alone:]
    if n > alone:
        out[:, :, alone + 1 :: 2] = convolve(conv, x[:, :, alone:], kernels, second)
    return out


def _quarter(weight: Tensor) -> list[Tensor]:
    """Of 3 x 3 taps make the 2 x 2 that each of the four pixels sees of the one it was enlarged from and its peers."""
    phase = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # [even or odd, 2 taps, 3 taps]
    return [torch.einsum("pax,qby,ocxy->pqocab", phase, phase, weight).flatten(0, 2)]  # [4c', c, 2, 2]


def _windows(frames: int, frame: Tensor) -> list[slice]:
    """Cut `frames` into windows that may be in float32 at once, by the size of one `frame`."""
    step = max(UPCAST_ELEMENTS // frame.numel(), 1)
    return [slice(start, min(start + step, frames)) for start in range(0, frames, step)]


def upsample(conv: nn.Module, x: Tensor, kernels: Kernels) -> Tensor:
    """Enlarge to twice the size by nearest neighbour, then convolve: [B, c, f, h, w] -> [B, c', f, 2h, 2w].

    Of 3 x 3 taps on enlarged pixels several fall on the same one: 2 x 2 on the small grid are left, a kernel for each
    of the four pixels.
    """
    batch, _, frames, height, width = x.shape
    (kernel,) = kernels.derived(conv, x, _quarter)
    channels = len(kernel[0]) // 4
    out = empty_like(x, (batch, channels, frames, 2 * height, 2 * width))
    for window in _windows(frames, x[:, :, 0]):
        planes = x[:, :, window].transpose(1, 2).flatten(0, 1)  # [B * f, c, h, w]
        quarters = _apply(conv, planes, kernels, kernel).unflatten(1, (2, 2, channels))  # [B * f, 2, 2, c', h+1, w+1]
        for row in (0, 1):
            for column in (0, 1):
                pixels = quarters[:, row, column, :, row : row + height, column : column + width]
                out[:, :, window, row::2, column::2] = pixels.unflatten(0, (batch, -1)).transpose(1, 2)
    return out


def downsample(conv: nn.Module, x: Tensor, kernels: Kernels, size: int) -> Tensor:
    """Convolve at half the size: [B, c, f, h, w] -> [B, c', ceil(f / size), h // 2, w // 2], padded below and right.

    Each `size` frames become their mean first, an odd first one stays alone.
    """
    batch, channels, frames, height, width = x.shape
    alone, out = frames % size, None
    total = alone + frames // size
    for window in _windows(total, x[:, :, 0]):
        padded = empty_like(x, (batch, channels, window.stop - window.start, height + 1, width + 1))
        padded[..., height, :] = padded[..., width] = 0
        inside = padded[..., :height, :width]
        if alone and window.start == 0:
            inside[:, :, 0], inside = x[:, :, 0], inside[:, :, 1:]
        source = x[:, :, max(window.start * size - alone, alone) : window.stop * size - alone]
        inside.copy_(source.unflatten(2, (-1, size)).mean(dim=3) if size > 1 else source)
        planes = _apply(conv, padded.transpose(1, 2).flatten(0, 1), kernels, None)  # [B * f, c', h // 2, w // 2]
        if out is None:
            out = empty_like(x, (batch, planes.shape[1], total, *planes.shape[2:]))
        out[:, :, window] = planes.unflatten(0, (batch, -1)).transpose(1, 2)
    return out
