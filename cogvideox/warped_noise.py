"""Gaussian noise that moves with a video: Go-with-the-Flow (arXiv 2501.08331), warped along an optical flow.

Noise is kept finer than the latents. From frame to frame each pixel goes where the flow takes it; where several meet
they are summed, weighted by how much of the first frame's area each holds (its density), and scaled back to unit
variance. What stretches is split into independent parts that sum to what was there. What enters is new. So every frame
by itself is white noise.

The order of things, rounding and the density of new pixels are those of the authors' code, which the LoRAs were trained
with. Letters besides the package's: P the pixels of a frame of fine noise, E edges from an old pixel to a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

NEAREST, BLEND, BLEND_NORM = DOWNSAMPLINGS = ("nearest", "blend", "blend_norm")
# The authors' frames at half size, flow enlarged 8 times: 4 x 4 pixels of noise for each of the video, so 32 x 32 for
# each of the latents.
DETAIL = 32

# Keep densities above 0 and let them tend to 1 (the authors' warp_xyωc).
LEAST_DENSITY, DENSITY_POWER = 1e-5, 0.9999

Progress = Callable[[int, int], None]


def scale_flow(flow: Tensor, height: int, width: int) -> Tensor:
    """Resize a flow [2, h, w] in its own pixels (right, down) to [2, height, width], its vectors with it."""
    resized = F.interpolate(flow[None], (height, width), mode="bilinear", align_corners=False)[0]
    factors = resized.new_tensor((width / flow.shape[2], height / flow.shape[1]))
    return resized * factors[:, None, None]


def edges(flow: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor, Tensor]:
    """Return who goes where under a flow [2, h, w]: (old, new) that move, (old, new) that stretch, who leaves, enters.

    A pixel moves to where its vector ends; if that is outside it leaves, and new noise takes its place. A pixel that
    nobody moved to is stretched from where its own vector, turned round, points; if that is outside, it enters.
    """
    height, width = flow.shape[1:]
    y, x = torch.meshgrid(*(torch.arange(n, device=flow.device) for n in (height, width)), indexing="ij")

    def pixels(sign: int) -> tuple[Tensor, Tensor]:
        column, row = (x + sign * flow[0]).round().long(), (y + sign * flow[1]).round().long()
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        return (row * width + column).flatten(), inside.flatten()

    everyone = torch.arange(height * width, device=flow.device)
    new, inside = pixels(1)
    moving, leaving = everyone[inside], everyone[~inside]
    moves = moving, new[inside]
    empty = torch.ones_like(inside).index_fill_(0, torch.cat((moves[1], leaving)), False)
    old, inside = pixels(-1)
    stretched = everyone[inside & empty]
    return moves, (old[stretched], stretched), leaving, everyone[~inside & empty]


def warp(noise: Tensor, density: Tensor, flow: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Carry unit noise [C, h, w] and its density [h, w] along a flow [2, h, w] to the next frame."""
    shape, pixels = noise.shape, density.numel()
    noise, density = noise.flatten(1), density.flatten()  # [C, P], [P]
    (moving, reached), (stretching, grown), leaving, entering = edges(flow)

    # Split: n edges from one pixel share its noise. Fresh noise less its mean over them makes them independent.
    old = torch.cat((moving, stretching))
    count = torch.bincount(old, minlength=pixels)
    parts = noise[:, old] * count[old].rsqrt()  # [C, E]
    several = (count[old] > 1).nonzero()[:, 0]
    sharing = old[several]
    fresh = randn((len(noise), len(several)), generator, noise)
    mean = torch.zeros_like(noise).index_add_(1, sharing, fresh)[:, sharing] / count[sharing]
    parts[:, several] += fresh - mean
    share = density[old] / count[old]

    # New noise, where pixels leave and where they enter. The authors share one pixel's density among all of it, and
    # among the places where nothing had to be stretched.
    unneeded = pixels - len(grown) - len(entering)
    thin = 1 / max(len(leaving) + unneeded + len(entering), 1)
    reached = torch.cat((reached, leaving))
    moved = torch.cat((parts[:, : len(moving)], randn((len(noise), len(leaving)), generator, noise)), dim=1)
    weight = torch.cat((share[: len(moving)], torch.full_like(leaving, thin, dtype=share.dtype)))

    # Merge: what meets is summed by density.
    total = torch.zeros_like(density).index_add_(0, reached, weight)
    square = torch.zeros_like(density).index_add_(0, reached, weight**2)
    out = torch.zeros_like(noise).index_add_(1, reached, moved * weight) / square.sqrt()
    out[:, grown], total[grown] = parts[:, len(moving) :], share[len(moving) :]
    out[:, entering], total[entering] = randn((len(noise), len(entering)), generator, noise), thin
    total = (total / total.mean() + LEAST_DENSITY) ** DENSITY_POWER
    return out.view(shape), total.view(shape[1:])


def randn(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Draw on the CPU, where a seed gives the same numbers on every machine."""
    return torch.randn(shape, generator=generator).to(like)


def warped_frames(
    flows: Tensor, height: int, width: int, channels: int, detail: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield noise [C, height, width] of each frame, for flows [F - 1, 2, h, w] in pixels of their own size."""
    fine = height * detail, width * detail
    noise = randn((channels, *fine), generator, flows)
    density = torch.ones(fine, device=flows.device)
    for index in range(len(flows) + 1):
        if index:
            noise, density = warp(noise, density, scale_flow(flows[index - 1], *fine), generator)
        # The mean of detail^2 independent numbers, scaled back to unit variance.
        yield F.avg_pool2d(noise, detail) * detail


def downsample(frames: Tensor, count: int, method: str) -> Tensor:
    """Bring noise of F frames [F, C, H, W] to `count` latent frames: by nearest frame, mean, or mean at unit deviation.

    The mean of frames that move is less than unit noise; so the authors trained "blend". "blend_norm" divides each
    column by its deviation.
    """
    total = len(frames)
    if method == NEAREST:
        step = (total - 1) / max(count - 1, 1)
        return frames[[round(index * step) for index in range(count)]]
    bounds = [index * total // count for index in range(count + 1)]
    means = torch.stack([frames[start:stop].mean(0) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)])
    return means if method == BLEND else means / means.std(dim=2, keepdim=True)


def degrade(noise: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Mix in fresh noise: share 0 keeps `noise`, 1 forgets it, and the variance stays."""
    fresh = randn(noise.shape, generator, noise)
    return (fresh * share + noise * (1 - share)) / (share**2 + (1 - share) ** 2) ** 0.5


def warped_noise(
    flows: Tensor,
    size: tuple[int, int, int, int],
    method: str = NEAREST,
    degradation: float = 0.0,
    *,
    seed: int,
    detail: int = DETAIL,
    progress: Progress | None = None,
) -> Tensor:
    """Return noise of latent `size` (C, T, H, W) that follows flows [F - 1, 2, h, w] of a video's F frames."""
    channels, count, height, width = size
    generator = torch.Generator().manual_seed(seed)
    frames = []
    for frame in warped_frames(flows, height, width, channels, detail, generator):
        frames.append(frame)
        if progress is not None:
            progress(len(frames), len(flows) + 1)
    noise = downsample(torch.stack(frames), count, method)
    return degrade(noise, degradation, generator).movedim(0, 1)  # [C, T, H, W]
