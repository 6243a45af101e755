"""Say what a video of the procedural world shows, by plain measurements on its pixels.

Independent of the model and of the painter: the ground is a fitted plane of colour, the object is what differs from it,
its colour is a hue, its shape a set of moments that no shift, scale or rotation changes, its direction the way of its
centre. The numbers below are those of ideal shapes and of colour circles, not of the world's palette.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

HUES = {"red": 0, "orange": 32, "yellow": 54, "green": 129, "cyan": 182, "blue": 229, "purple": 277, "pink": 326}
COMPASS = ("right", "down-right", "down", "down-left", "left", "up-left", "up", "up-right")  # by 45 degrees, y down

GROUND_ROUNDS = 6
GROUND_STEP = 2  # the fit looks at every second pixel of every second frame
LEAST_CONTRAST = 40.0  # colour distance (0..441) below which nothing stands out from the ground
LEAST_AREA = 0.003  # share of the picture below which there is no object in a frame
LEAST_WAY = 0.1  # in shorter sides: less is standing still
HUE_BINS = 36

# Moments of ideal shapes: |sum r^k e^(ik angle)| / sum r^k for k = 3, 4, 5 over the area, and the spread
# 2 pi sum r^2 / area^2, which is 1 for a disc. The star's notches are at 0.45 of its radius.
IDEAL = {
    "circle": (0.0, 0.0, 0.0, 1.0),
    "square": (0.0, 0.4286, 0.0, 1.0472),
    "triangle": (0.6589, 0.0, 0.0, 1.2092),
    "star": (0.0, 0.0, 0.8246, 1.2403),
}


@dataclass(frozen=True)
class Measured:
    """What was seen: names, or "" where nothing could be told; positions in pixels and areas by frame.

    `way` is the path of the centre from first to last frame in units of the shorter side, `growth` the area in the
    last third of the frames with an object by that in the first third, `moments` the shape's numbers (see IDEAL).
    """

    shape: str
    colour: str
    direction: str
    way: float
    growth: float
    centres: np.ndarray
    areas: np.ndarray
    moments: tuple[float, ...]


def ground(video: np.ndarray) -> np.ndarray:
    """Fit the ground, one plane of colour for all frames of float [F, H, W, 3]: [H, W, 3]. Outliers are left out."""
    height, width = video.shape[1:3]
    y, x = np.mgrid[0:height, 0:width]
    basis = np.stack((np.ones((height, width)), x / width - 0.5, y / height - 0.5), axis=-1)  # [H, W, 3]
    few = basis[::GROUND_STEP, ::GROUND_STEP].reshape(-1, 3)
    pixels = video[::GROUND_STEP, ::GROUND_STEP, ::GROUND_STEP].reshape(-1, len(few), 3)
    weight = np.ones(pixels.shape[:2])
    for _ in range(GROUND_ROUNDS):
        normal = (few * weight.sum(axis=0)[:, None]).T @ few + 1e-6 * np.eye(3)
        plane = np.linalg.solve(normal, few.T @ (weight[..., None] * pixels).sum(axis=0))
        error = np.linalg.norm(pixels - few @ plane, axis=2)
        weight = (error <= max(2.0 * np.median(error), 6.0)).astype(float)
    return basis @ plane


def hues(colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return hue in degrees and chroma (0..255) of colours [..., 3]."""
    high, low = colours.max(axis=-1), colours.min(axis=-1)
    red, green, blue = np.moveaxis(colours, -1, 0)
    angle = np.arctan2(math.sqrt(3) * (green - blue), 2 * red - green - blue)
    return np.degrees(angle) % 360, high - low


def colour_name(colour: np.ndarray, palette: dict[str, float] = HUES) -> str:
    """Name the colour [3] by its hue, with the nearest name of `palette` (degrees)."""
    hue = float(hues(colour)[0])
    return min(palette, key=lambda name: abs((hue - palette[name] + 180) % 360 - 180))


def object_colour(video: np.ndarray, contrast: np.ndarray) -> np.ndarray | None:
    """Return the commonest colour [3] of what stands out from the ground, or None where nothing does."""
    peak = np.quantile(contrast, 0.995)
    if peak < LEAST_CONTRAST:
        return None
    pixels = video[contrast > 0.7 * peak]
    hue, chroma = hues(pixels)
    counts, _ = np.histogram(hue, HUE_BINS, (0, 360), weights=chroma)
    best = (np.argmax(counts + np.roll(counts, 1) + np.roll(counts, -1)) + 0.5) * 360 / HUE_BINS
    near = np.abs((hue - best + 180) % 360 - 180) <= 1.5 * 360 / HUE_BINS
    return np.median(pixels[near], axis=0)


def cover(frame: np.ndarray, below: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Return how much of each pixel [H, W] of a frame is of `colour` on the ground `below`, 0 to 1."""
    line = colour - below
    share = ((frame - below) * line).sum(axis=-1) / np.maximum((line * line).sum(axis=-1), 1.0)
    share = np.clip(share, 0, 1)
    # What lies off the line between ground and object is something else.
    off = np.linalg.norm(frame - below - share[..., None] * line, axis=-1)
    share = share * (off < 0.5 * np.linalg.norm(line, axis=-1))
    return np.where(share < 0.25, 0.0, share)


def _centre(share: np.ndarray) -> tuple[np.ndarray, float, float, float]:
    """Return the cover [H, W] without what is far from the object, its area and its centre (x, y)."""
    y, x = np.mgrid[0 : share.shape[0], 0 : share.shape[1]] + 0.5
    kept = share
    for _ in range(4):
        area = kept.sum()
        if area <= 0:
            return kept, 0.0, math.nan, math.nan
        cx, cy = (kept * x).sum() / area, (kept * y).sum() / area
        near = np.hypot(x - cx, y - cy) < 1.9 * math.sqrt(area / math.pi) + 1
        if not (share * near).any():
            return kept, 0.0, math.nan, math.nan
        kept = share * near
    area = kept.sum()
    return kept, float(area), float((kept * x).sum() / area), float((kept * y).sum() / area)


def shape_moments(share: np.ndarray, cx: float, cy: float) -> tuple[float, ...]:
    """Return the four numbers of IDEAL for a cover [H, W] with its centre."""
    y, x = np.mgrid[0 : share.shape[0], 0 : share.shape[1]] + 0.5
    z = (x - cx) + 1j * (y - cy)
    radius = np.abs(z)
    turns = [float(np.abs((share * z**k).sum()) / (share * radius**k).sum()) for k in (3, 4, 5)]
    return (*turns, float(2 * math.pi * (share * radius**2).sum() / share.sum() ** 2))


def shape_name(moments: tuple[float, ...]) -> str:
    """Name the ideal shape nearest to `moments`."""

    def distance(name: str) -> float:
        return sum((value - ideal) ** 2 for value, ideal in zip(moments, IDEAL[name], strict=True))

    return min(IDEAL, key=distance)


def direction_name(dx: float, dy: float) -> str:
    """Name the nearest of eight directions; y grows downwards."""
    return COMPASS[round(math.degrees(math.atan2(dy, dx)) / 45) % 8]


def measure(video: np.ndarray, palette: dict[str, float] = HUES) -> Measured:
    """Measure the main object of a video [F, H, W, 3] of values 0..255; `palette` names the hues there may be."""
    video = np.asarray(video, dtype=np.float64)
    frames, height, width, _ = video.shape
    below = ground(video)
    colour = object_colour(video, np.linalg.norm(video - below, axis=-1))
    centres, areas = np.full((frames, 2), math.nan), np.zeros(frames)
    nothing = Measured("", "", "", 0.0, 1.0, centres, areas, ())
    if colour is None:
        return nothing
    moments = []
    for index, frame in enumerate(video):
        kept, area, cx, cy = _centre(cover(frame, below, colour))
        if area < LEAST_AREA * height * width:
            continue
        centres[index], areas[index] = (cx, cy), area
        border = np.concatenate((kept[0], kept[-1], kept[:, 0], kept[:, -1]))
        if not border.any():
            moments.append((area, shape_moments(kept, cx, cy)))
    seen = np.flatnonzero(areas)
    if len(seen) == 0:
        return nothing
    shape, typical = "", ()
    if moments:
        large = max(area for area, _ in moments)
        typical = tuple(np.median([values for area, values in moments if area > 0.7 * large], axis=0))
        shape = shape_name(typical)
    shorter, third = min(height, width), max(len(seen) // 3, 1)
    path = centres[seen[-1]] - centres[seen[0]]
    way = float(np.hypot(*path)) / shorter
    return Measured(
        shape=shape,
        colour=colour_name(colour, palette),
        direction=direction_name(*path) if way >= LEAST_WAY else "",
        way=way,
        growth=float(areas[seen[-third:]].mean() / areas[seen[:third]].mean()),
        centres=centres,
        areas=areas,
        moments=typical,
    )
