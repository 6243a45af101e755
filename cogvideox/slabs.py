"""The decoder's last levels by horizontal slabs: the result of whole frames in a fraction of their memory.

What needs whole frames is only the statistics of the group norms. So a level runs in passes from top to bottom, each
holding little more than a slab: one for each norm's statistics, one for the result. What a pass needs is computed
again from the level's input: the enlarged frames of an upsampler, and the first convolution of each resnet.

Letters besides the package's: f frames, h height, w width, c channels of the tensor at hand.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .chunk import Activation, ChunkState, Moments, behind

# Elements from which an activation is cut, and of one slab of the widest input. Whole, a resnet holds three
# activations; in slabs it holds one, the result, and some five slabs.
WHOLE_ELEMENTS = 2**28
SLAB_ELEMENTS = 3 * 2**24

HALO = 1  # rows a 3 x 3 convolution needs above and below


class Slabs:
    """An activation [B, c, f, h, w] as slabs of rows, top to bottom."""

    def __init__(self, *slabs: Tensor) -> None:
        self._slabs: list[Tensor | None] = []
        self._stops: list[int] = []
        for slab in slabs:
            self.append(slab)

    @classmethod
    def cut(cls, x: Tensor, step: int) -> Slabs:
        """Copy x [B, c, f, h, w] into slabs of `step` rows, so that each can be let go."""
        return cls(*(slab.clone() for slab in x.split(step, dim=3)))

    def append(self, slab: Tensor) -> None:
        self._slabs.append(slab)
        self._stops.append(self.height + slab.shape[3])

    @property
    def height(self) -> int:
        return self._stops[-1] if self._stops else 0

    def rows(self, top: int, stop: int) -> Tensor:
        """Return rows [B, c, f, stop - top, w]."""
        parts = []
        for slab, end in zip(self._slabs, self._stops, strict=True):
            start = end if slab is None else end - slab.shape[3]
            if slab is not None and start < stop and top < end:
                parts.append(slab[:, :, :, max(top - start, 0) : stop - start])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=3)

    def release(self, top: int) -> None:
        """Let go of the slabs that end above row `top`."""
        self._slabs = [None if end <= top else slab for slab, end in zip(self._slabs, self._stops, strict=True)]


class Upsampled:
    """What an upsampler makes of slabs, computed each time it is asked for."""

    def __init__(self, upsampler: nn.Module, source: Slabs, state: ChunkState):
        self.upsampler, self.source, self.state = upsampler, source, state
        self.height = 2 * source.height

    def rows(self, top: int, stop: int) -> Tensor:
        """Return rows [B, c, f, stop - top, 2w]."""
        first, last = max(top // 2 - HALO, 0), min((stop + 1) // 2 + HALO, self.source.height)
        return _inner(self.upsampler(self.source.rows(first, last), self.state), 2 * first, top, stop)

    def release(self, top: int) -> None:
        self.source.release(top // 2 - HALO)


def _inner(x: Tensor, first: int, top: int, stop: int) -> Tensor:
    """Of rows that begin at `first` return those from `top` to `stop`."""
    return x[:, :, :, top - first : stop - first]


def _spans(height: int, step: int) -> list[tuple[int, int]]:
    return [(top, min(top + step, height)) for top in range(0, height, step)]


class CausalConv:
    """An activation and the causal convolution behind it, run on rows of a larger `height`."""

    def __init__(self, conv: nn.Module, activation: Activation, height: int, state: ChunkState):
        self.conv, self.activation, self.height, self.state = conv, activation, height, state
        self.past = state.take(conv)  # [B, c, past, h, w] where it was kept

    def around(self, top: int, stop: int) -> tuple[int, int]:
        """Return the rows of the input that rows of the output come from."""
        return max(top - HALO, 0), min(stop + HALO, self.height)

    def run(self, x: Tensor, top: int, stop: int, keep: tuple[int, int] | None = None) -> Tensor:
        """Turn the rows `around` these, x [B, c, n, rows, w], into [B, c', f, stop - top, w].

        Of the rows `keep` the last frames are kept for the next chunk.
        """
        first, last = self.around(top, stop)
        past, reach = None if self.past is None else self.past[:, :, :, first:last].to(x.device), self.conv.past_frames
        x = behind(past, reach, x, self.activation, first, self.height)  # [B, c, past + n, rows, w]
        if keep is not None:
            self.state.keep_rows(self.conv, _inner(x[:, :, -reach:], first, *keep), keep[0], self.height)
        # The convolution pads with zeros: right at the frame's edges, and elsewhere in rows that are not returned.
        return _inner(self.conv(x, self.state), first, top, stop)


def _resnet(block: nn.Module, x: Slabs | Upsampled, state: ChunkState, latents: Tensor, step: int) -> Slabs:
    """Run a resnet of the decoder in three passes; `x` is let go from top to bottom as the last one leaves it."""
    spans, moments = _spans(x.height, step), Moments()
    for span in spans:
        moments.add(x.rows(*span), block.doubles)
    conv1 = CausalConv(block.conv1, block.norm1(moments, state, latents), x.height, state)
    moments = Moments()
    for span in spans:
        moments.add(conv1.run(x.rows(*conv1.around(*span)), *span))
    conv2 = CausalConv(block.conv2, block.norm2(moments, state, latents), x.height, state)

    def result(top: int, stop: int) -> Tensor:
        middle = conv2.around(top, stop)
        first, last = conv1.around(*middle)
        rows = x.rows(first, last)  # [B, c, n, rows, w]
        y = conv1.run(rows, *middle, keep=(top, stop))  # [B, c', f, rows, w]
        y = conv2.run(y, top, stop, keep=(top, stop)).clone()  # without the rows around it
        return block.add_shortcut(y, _inner(rows, first, top, stop), state)

    out = Slabs()
    for top, stop in spans:
        out.append(result(top, stop))
        x.release(stop - 2 * HALO)
    return out


def _frames(block: nn.Module, x: Tensor) -> int:
    """Return the frames that `block` makes of those of x [B, c, n, h, w]."""
    return 2 * x.shape[2] - x.shape[2] % 2 if block.resnets[0].doubles else x.shape[2]


def decode(decoder: nn.Module, x: Tensor, state: ChunkState, latents: Tensor) -> Tensor:
    """Run the decoder's up blocks and all behind them: [B, c, T, H, W] -> [B, 3, F, 8H, 8W]."""
    row = 0  # elements of one row of the widest input of a level, for each channel
    for block, following in zip(decoder.up_blocks, (*decoder.up_blocks[1:], None), strict=True):
        for resnet in block.resnets:
            if isinstance(x, Tensor):
                x = resnet(x, state, latents)
            else:
                x = _resnet(resnet, x, state, latents, max(SLAB_ELEMENTS // (row * resnet.conv1.conv.in_channels), 1))
        for upsampler in block.upsamplers:
            if isinstance(x, Tensor):
                batch, channels, _, height, width = x.shape
                row = batch * _frames(following, x) * 2 * width
                if row * channels * 2 * height <= WHOLE_ELEMENTS:
                    x = upsampler(x, state)
                    continue
                x = Slabs.cut(x, max(SLAB_ELEMENTS // (row * channels), 1))
            else:
                row *= 2 * (2 if following.resnets[0].doubles else 1)
            x = Upsampled(upsampler, x, state)
    if isinstance(x, Tensor):
        x = Slabs(x)
    step = max(SLAB_ELEMENTS // (row * decoder.conv_out.conv.in_channels), 1)
    spans, moments = _spans(x.height, step), Moments()
    for span in spans:
        moments.add(x.rows(*span))
    conv_out, out = CausalConv(decoder.conv_out, decoder.norm_out(moments, state, latents), x.height, state), []
    for span in spans:
        out.append(conv_out.run(x.rows(*conv_out.around(*span)), *span, keep=span))
        x.release(span[1] - HALO)
    return torch.cat(out, dim=3)
