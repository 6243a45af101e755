"""Make the picture beside each workflow from its own output: a strip of frames above its graph.

    python dev.py test                   # leaves NAME.png (the page) and NAME.mp4 (the video) in .dev/artifacts
    python tools/make_thumbnails.py [ARTIFACTS] [--only NAME ...]

ARTIFACTS is a folder with these files. Workflows without a video there get their graph alone: the tests have trained
weights for the built-in model only. To show what released weights make, put their videos there under the same names.
Needs av, numpy and pillow, which ComfyUI brings.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 512  # px, twice what ComfyUI's template browser shows, in a square
SHOWN = 3  # frames in the strip
BORDER, SPROCKETS, HOLE, HOLE_STEP = 8, 18, (10, 8), 22  # px: between frames, edge with holes, a hole, to the next one
FILM, LIGHT = (16, 16, 18), (208, 208, 204)
# Of a screenshot: left, top, right and bottom of the canvas, and where the map of it begins, in parts of the whole.
CANVAS, MAP = (0.033, 0.085, 0.985, 0.975), (0.86, 0.74)
BLUER, ROOM = 12, 8  # by how much groups are bluer than red, in levels of 255; px around them
MOST_BYTES = 60_000
QUALITIES = range(90, 10, -5)


def frames_of(video: Path) -> list[Image.Image]:
    """Return frames of a video, spread from the first to the last."""
    with av.open(str(video)) as file:
        pictures = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    return [Image.fromarray(pictures[round(at)]) for at in np.linspace(0, len(pictures) - 1, SHOWN)]


def fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Return the middle of a picture, scaled to fill width x height."""
    scale = max(width / picture.width, height / picture.height)
    size = round(picture.width * scale), round(picture.height * scale)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return picture.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + width, top + height))


def strip(frames: list[Image.Image]) -> Image.Image:
    """Return frames side by side on a piece of film."""
    width = (WIDTH - BORDER * (len(frames) + 1)) // len(frames)
    height = width * 2 // 3  # as 720x480; the sides of wider videos are cut
    film = Image.new("RGB", (WIDTH, height + 2 * SPROCKETS), FILM)
    for number, frame in enumerate(frames):
        film.paste(fitted(frame, width, height), (BORDER + number * (width + BORDER), SPROCKETS))
    draw = ImageDraw.Draw(film)
    for x in range(HOLE_STEP // 4, WIDTH, HOLE_STEP):
        for edge in (0, height + SPROCKETS):
            y = edge + (SPROCKETS - HOLE[1]) // 2
            draw.rounded_rectangle((x, y, x + HOLE[0], y + HOLE[1]), radius=2, fill=LIGHT)
    return film


def graph_of(screenshot: Path) -> Image.Image:
    """Return the groups of nodes in a screenshot of the page, without what is around them."""
    picture = Image.open(screenshot).convert("RGB")
    levels = np.asarray(picture).astype(int)
    blue = levels[..., 2] - levels[..., 0] > BLUER
    height, width = blue.shape
    left, top, right, bottom = (round(part * size) for part, size in zip(CANVAS, (width, height) * 2, strict=True))
    blue[:top] = blue[bottom:] = blue[:, :left] = blue[:, right:] = False
    blue[round(MAP[1] * height) :, round(MAP[0] * width) :] = False
    rows, columns = (np.flatnonzero(blue.mean(axis) > 0.1) for axis in (1, 0))
    box = columns[0] - ROOM, rows[0] - ROOM, columns[-1] + ROOM, rows[-1] + ROOM
    graph = picture.crop(tuple(map(int, box)))
    return graph.resize((WIDTH, round(graph.height * WIDTH / graph.width)), Image.Resampling.LANCZOS)


def thumbnail(name: str, artifacts: Path) -> Image.Image:
    graph, video = graph_of(artifacts / f"{name}.png"), artifacts / f"{name}.mp4"
    if not video.is_file():
        return graph
    film = strip(frames_of(video))
    whole = Image.new("RGB", (WIDTH, film.height + graph.height))
    whole.paste(film, (0, 0))
    whole.paste(graph, (0, film.height))
    return whole


def jpeg(picture: Image.Image) -> bytes:
    """Return a JPEG of at most MOST_BYTES, as good as that allows."""
    for quality in QUALITIES:
        picture.save(file := io.BytesIO(), "JPEG", quality=quality, optimize=True)
        if file.tell() < MOST_BYTES:
            break
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifacts", nargs="?", type=Path, default=ROOT / ".dev" / "artifacts")
    parser.add_argument("--only", nargs="+", help="workflows by name; all without it")
    args = parser.parse_args()
    names = args.only or [path.stem for path in sorted((ROOT / "workflows").glob("*.json"))]
    for name in names:
        content = jpeg(thumbnail(name, args.artifacts))
        (ROOT / "workflows" / f"{name}.jpg").write_bytes(content)
        kind = "output and graph" if (args.artifacts / f"{name}.mp4").is_file() else "graph"
        print(f"{name}: {kind}, {len(content)} bytes")


if __name__ == "__main__":
    main()
