"""Tora: objects follow drawn paths (arXiv 2407.21705, github.com/alibaba/Tora).

Paths become optical flow, the flow a video of colours, the video latents. An extractor makes one map of features for
each block of the transformer, and a fuser modulates with it what goes into the block's attention. Module names are
those of the published files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from .positions import Grid
from .variants import LATENT_CHANNELS

FUSER_GROUPS = 32  # of flow_cond_norm
NARROWING = 4  # a fuser's 2D convolutions make a fourth of the tokens' width, its 1D convolutions all of it
PATCH = 2  # latents per token along height and width

CANVAS = 256  # the square on which the authors' paths are drawn
BLUR_SIZE, BLUR_SIGMA = 99, 10  # `size` and `sigma` of traj_utils.py
# The colour wheel of Baker et al., "A Database and Evaluation Methodology for Optical Flow" (ICCV 2007): steps from one
# of these colours to the next, red, yellow, green, cyan, blue, magenta and back.
WHEEL_STEPS = (15, 6, 4, 11, 13, 6)
WHEEL_COLOURS = ((1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1), (1, 0, 0))

Path = list[tuple[float, float]]


@dataclass(frozen=True)
class ToraConfig:
    """Shape of Tora's extractor and fusers; `blocks` is the number of transformer blocks they serve."""

    inner_dim: int
    blocks: int
    channels: int = 128
    blocks_each: int = 2  # residual blocks of the extractor behind each other for one map of features


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with its trained statistics, in the number type and on the device of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = (t.to(x) for t in (self.running_mean, self.running_var, self.weight, self.bias))
        return F.batch_norm(x, *values, eps=self.eps)


class ResnetBlock(nn.Module):
    """Norm, ReLU and convolution, twice, beside the identity."""

    def __init__(self, channels: int, *, operations, **factory):
        super().__init__()
        self.bn1 = BatchNorm2d(channels, **factory)
        self.block1 = operations.Conv2d(channels, channels, 3, padding=1, **factory)
        self.bn2 = BatchNorm2d(channels, **factory)
        self.block2 = operations.Conv2d(channels, channels, 3, padding=1, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.block1(F.relu(self.bn1(x)))
        return x + self.block2(F.relu(self.bn2(h)))


class TrajExtractor(nn.Module):
    """Maps of features [B * T, channels, H/2, W/2], one for each block, from flow latents [B, 16, T, H, W]."""

    def __init__(self, config: ToraConfig, *, operations, **factory):
        super().__init__()
        self.blocks_each = config.blocks_each
        self.conv_in = operations.Conv2d(LATENT_CHANNELS * PATCH**2, config.channels, 3, padding=1, **factory)
        self.body = nn.ModuleList(
            [
                ResnetBlock(config.channels, operations=operations, **factory)
                for _ in range(config.blocks * config.blocks_each)
            ]
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.conv_in(rearrange(x, "b c t (h p) (w q) -> (b t) (c p q) h w", p=PATCH, q=PATCH))
        features = []
        for index, block in enumerate(self.body, start=1):
            x = block(x)
            if index % self.blocks_each == 0:
                features.append(x)
        return features


class MGF(nn.Module):
    """The fuser of one block: scale and shift from features, first across the picture, then across frames."""

    def __init__(self, config: ToraConfig, *, operations, **factory):
        super().__init__()
        narrow, wide = config.inner_dim // NARROWING, config.inner_dim
        for name in ("gamma", "beta"):
            spatial = operations.Conv2d(config.channels, narrow, 3, padding=1, **factory)
            temporal = operations.Conv1d(narrow, wide, 3, padding=1, padding_mode="replicate", **factory)
            setattr(self, f"flow_{name}_spatial", spatial)
            setattr(self, f"flow_{name}_temporal", temporal)
        self.flow_cond_norm = operations.GroupNorm(FUSER_GROUPS, wide, **factory)

    def forward(self, x: torch.Tensor, features: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Fuse features [B * T, channels, H, W], or [T, ...] of all videos, into video tokens x [B, T * H * W, D]."""
        t, h, w = grid
        x = rearrange(x, "b (t h w) d -> (b t) d h w", t=t, h=h, w=w)
        gamma, beta = (
            rearrange(
                temporal(rearrange(spatial(features), "(b t) d h w -> (b h w) d t", t=t)),
                "(b h w) d t -> b t d h w",
                h=h,
                w=w,
            )
            for spatial, temporal in (
                (self.flow_gamma_spatial, self.flow_gamma_temporal),
                (self.flow_beta_spatial, self.flow_beta_temporal),
            )
        )
        x, normed = (part.unflatten(0, (-1, t)) for part in (x, self.flow_cond_norm(x)))
        return rearrange(x + normed * gamma + beta, "b t d h w -> b (t h w) d")


class Tora(nn.Module):
    """Extractor and fusers of one model, as the published files hold them."""

    def __init__(self, config: ToraConfig, *, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        factory = dict(dtype=dtype, device=device, operations=operations)
        self.config, self.dtype = config, dtype
        self.traj_extractor = TrajExtractor(config, **factory)
        self.fuser = nn.ModuleList([MGF(config, **factory) for _ in range(config.blocks)])


# --- paths to flow -------------------------------------------------------------------------------------------------


def spread_points(points: Path, frames: int) -> Path:
    """Return one point for each frame: every so manieth of many points, or points between few, as Tora spreads them."""
    points = [(int(x), int(y)) for x, y in points]
    if len(points) == 1:
        return points * frames
    if len(points) >= frames:
        if frames == 1:
            return points[-1:]
        return points[:: len(points) // frames][: frames - 1] + points[-1:]
    pieces = len(points) - 1
    each, more = divmod(frames - len(points), pieces)
    spread: Path = []
    for index, ((x0, y0), (x1, y1)) in enumerate(zip(points, points[1:], strict=False)):
        count = each + (index < more) + 1
        spread += [
            (x0, y0) if step == 0 else (int(x0 + step / count * (x1 - x0)), int(y0 + step / count * (y1 - y0)))
            for step in range(count)
        ]
    return spread + points[-1:]


def place_path(points: Path, size: tuple[int, int], frames: int) -> list[tuple[int, int]]:
    """Return the pixel (x, y) of each frame for points on the canvas; what lies outside moves to the edge."""
    height, width = size
    placed = []
    for x, y in spread_points(points, frames):
        x, y = int(width * x / CANVAS), int(height * y / CANVAS)
        placed.append((min(max(x, 0), width - 1), min(max(y, 0), height - 1)))
    return placed


def path_flow(paths: list[list[tuple[int, int]]], size: tuple[int, int], frames: int) -> torch.Tensor:
    """Return the flow [F, 2, H, W] of objects that go along `paths` (a pixel for each frame), spread by the blur."""
    height, width = size
    flow = torch.zeros(frames, 2, height, width)
    for path in paths:
        for frame in range(frames - 1):
            (x0, y0), (x1, y1) = path[frame : frame + 2]
            flow[frame + 1, :, y0, x0] = torch.tensor([x1 - x0, y1 - y0], dtype=flow.dtype)
    down, across = (blur_matrix(side) for side in size)
    return down @ flow @ across.T


def blur_matrix(side: int) -> torch.Tensor:
    """Return the Gaussian blur, 1 at its centre, as a matrix [side, side]; the picture is mirrored at its edges."""
    reach = BLUR_SIZE // 2
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets / BLUR_SIGMA) ** 2)
    period = max(2 * (side - 1), 1)
    source = (torch.arange(side)[:, None] + offsets).remainder(period)
    source = torch.minimum(source, period - source) if side > 1 else torch.zeros_like(source)
    return torch.zeros(side, side).scatter_add_(1, source, weights.expand(side, -1))


def flow_picture(flow: torch.Tensor) -> torch.Tensor:
    """Return flow [F, 2, H, W] as colours [F, 3, H, W] in 0..1: hue for direction, white for rest, in 255 levels."""
    reach = flow.square().sum(dim=1).sqrt().max()
    flow = flow / (reach + torch.finfo(flow.dtype).eps)
    wheel = colour_wheel()
    count = len(wheel)
    position = (torch.atan2(-flow[:, 1], -flow[:, 0]) / math.pi + 1) / 2 * (count - 1)
    lower = position.floor().long()
    share = (position - lower).unsqueeze(-1)
    colour = (1 - share) * wheel[lower] + share * wheel[(lower + 1) % count]  # [F, H, W, 3]
    colour = 1 - flow.square().sum(dim=1).sqrt().unsqueeze(-1) * (1 - colour)
    return (255 * colour).floor().movedim(-1, 1) / 255


def colour_wheel() -> torch.Tensor:
    """Return the colours of directions [55, 3] in 0..1, in 255 levels."""
    parts = []
    for steps, start, stop in zip(WHEEL_STEPS, WHEEL_COLOURS, WHEEL_COLOURS[1:], strict=False):
        ramp = (255 * torch.arange(steps) / steps).floor()[:, None]
        start, stop = torch.tensor(start) * 255.0, torch.tensor(stop) * 255.0
        # A falling channel is 255 less the rounded ramp, as in the original code.
        parts.append(start + (stop - start).sign() * ramp * (stop != start))
    return torch.cat(parts) / 255
