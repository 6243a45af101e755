"""Areas and masks on text conditioning, fitted to a video before the host resolves them.

The host reads areas of pictures (height, width) and masks of pictures [H, W] or of exactly the latents' frames. Here an
area may also be a share or the bounds of a mask, a mask may follow the frames of the video, and both land on whole
patches, in front of which the extra leading latent of 1.5 is counted.
"""

from __future__ import annotations

from typing import Any

import comfy.utils
import torch

from ...cogvideox.latents import pixel_frames, repeat_first_frame, repeat_last_frame
from ...cogvideox.variants import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION

# Under which name a forward gets where its latents lie in the whole video, where something is cut like them.
PLACES = "cogvideox_places"
EVERY_FRAME = 2**31 - 1  # the host's number for "as far as it goes", cut to the window at hand
LEAST_BOUNDS = 8  # latents: the host's least side of an area made from a mask


def fit_regions(
    conds: list[dict[str, Any]], size: tuple[int, int, int], extra: tuple[int, int], patch: int
) -> list[dict]:
    """Return the run's conditioning with areas and masks fitted to latents of `size` (T, H, W).

    `extra` counts the latents that are put in front of and behind the video.
    """
    return [fit_region(cond, size, extra, patch) if {"area", "mask"} & cond.keys() else cond for cond in conds]


def fit_region(cond: dict[str, Any], size: tuple[int, int, int], extra: tuple[int, int], patch: int) -> dict[str, Any]:
    cond = dict(cond)
    if cond.get("mask") is not None:
        mask = cond["mask"] = fit_mask(cond["mask"], size, extra)
        if cond.pop("set_area_to_bounds", False):
            cond["area"] = bounds(mask[0])
    if cond.get("area") is not None:
        cond["area"] = fit_area(cond["area"], size, extra, patch)
    return cond


def fit_mask(mask: torch.Tensor, size: tuple[int, int, int], extra: tuple[int, int]) -> torch.Tensor:
    """Turn MASK [N, H, W], one for all frames or one for each frame or latent, into [1, T with the extra, H, W]."""
    count, height, width = size
    if mask.ndim == 2:
        mask = mask[None]
    frames = pixel_frames(count)
    if mask.ndim != 3 or len(mask) not in (1, count, frames):
        raise ValueError(
            f"The mask of a prompt has the shape {list(mask.shape)} and the video {frames} frames. "
            "Give one mask for the whole video, or one for each frame."
        )
    mask = comfy.utils.common_upscale(mask[None].float(), width, height, "bilinear", "none")[0]
    if len(mask) == frames != count:
        alone = frames % TEMPORAL_COMPRESSION  # the first latent of an odd count is one frame, every other four
        mask = torch.cat((mask[:alone], mask[alone:].unflatten(0, (-1, TEMPORAL_COMPRESSION)).mean(dim=1)))
    mask = mask.expand(count, height, width)[None, None]
    return repeat_last_frame(repeat_first_frame(mask, extra[0]), extra[1])[0]


def places(size: tuple[int, int, int], device: torch.device) -> torch.Tensor:
    """Return the t, y and x of each latent of a video (T, H, W), [1, 3, T, H, W], for the host to cut as it cuts it."""
    return torch.stack(torch.meshgrid(*(torch.arange(length, device=device) for length in size), indexing="ij"))[None]


def cut(whole: torch.Tensor, places: torch.Tensor, patch: int = 1) -> torch.Tensor:
    """Return the part of `whole` [B, C, T, H / patch, W / patch] that an area or a context window has left.

    `places` [B, 3, t, h, w] is what has become of those of the whole video.
    """
    t, h, w = places.shape[2:]
    if (t, h // patch, w // patch) == whole.shape[2:]:
        return whole
    frames, rows, columns = places[0, 0, :, 0, 0], places[0, 1, 0, ::patch, 0], places[0, 2, 0, 0, ::patch]
    return whole.index_select(2, frames).index_select(3, rows // patch).index_select(4, columns // patch)


def bounds(mask: torch.Tensor) -> tuple[int, ...]:
    """Return the area (height, width, y, x) around what a mask [T, H, W] marks in any frame."""
    marked = (mask != 0).any(dim=0)
    if not marked.any():
        return LEAST_BOUNDS, LEAST_BOUNDS, 0, 0  # of no weight, so as small as the host makes it
    rows, columns = (marked.any(dim=axis).nonzero() for axis in (1, 0))
    sides = (max(int(line[-1] - line[0]) + 1, LEAST_BOUNDS) for line in (rows, columns))
    return *sides, int(rows[0]), int(columns[0])


def fit_area(area: tuple, size: tuple[int, int, int], extra: tuple[int, int], patch: int) -> tuple[int, ...]:
    """Turn an area of latents, or of shares, into (T, H, W, t, y, x) on whole patches."""
    share = area[0] == "percentage"
    values = list(area[1:] if share else area)
    if len(values) == 4:
        values = [1.0 if share else EVERY_FRAME, *values[:2], 0, *values[2:]]
    if share:
        values = [round(value * length) for value, length in zip(values, [*size] * 2, strict=True)]
    (frames, *sides), (first, *starts) = values[:3], values[3:]
    fitted = []
    for side, start, length, name in zip(sides, starts, size[1:], ("y", "x"), strict=True):
        if not 0 <= start < length:
            raise ValueError(
                f"The area of a prompt begins at {name} {start * SPATIAL_COMPRESSION} px, outside the video, which "
                f"is {length * SPATIAL_COMPRESSION} px there. Move the area into the video."
            )
        begin = start // patch * patch
        stop = min(-(-(start + max(side, 1)) // patch) * patch, length)
        fitted.append((stop - begin, begin))
    if frames != EVERY_FRAME:
        leading, behind = extra
        frames += behind if first + frames == size[0] else 0
        frames, first = (frames + leading, 0) if first == 0 else (frames, first + leading)
    return frames, fitted[0][0], fitted[1][0], first, fitted[0][1], fitted[1][1]
