"""One training run on disk: a checkpoint it goes on from, a log of its losses, pictures to look at."""

from __future__ import annotations

import csv
import math
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

SAVE_SECONDS = 180
CURVE_SIZE = (900, 420)


def part_at(parts: Sequence[Any], step: int) -> Any:
    """Return which of `parts`, that last `steps` steps each, step number `step` belongs to."""
    for part in parts:
        if step < part.steps:
            return part
        step -= part.steps
    raise ValueError(f"The training ended {step} steps ago.")


class Run:
    """A run named `name` in `folder`: NAME.pt, NAME.csv, NAME-curve.png and NAME-STEP.png.

    What a step trains on follows from its number, so a run that was stopped goes on as if it had not been.
    """

    def __init__(self, folder: Path, name: str, **parts: Any):
        self.folder, self.name, self.parts = Path(folder), name, parts
        self.folder.mkdir(parents=True, exist_ok=True)
        self.step, self.seconds = 0, 0.0
        self.facts: dict[str, Any] = {}
        self._stopped = False
        if self.checkpoint.exists():
            saved = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            self.step, self.seconds, self.facts = saved["step"], saved["seconds"], saved["facts"]
            for key, part in parts.items():
                part.load_state_dict(saved["parts"][key])
            print(f"{name}: goes on at step {self.step}, {self.seconds / 3600:.2f} h", flush=True)

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.name}.pt"

    def save(self) -> None:
        """Write the checkpoint; a stop in the middle leaves the old one."""
        parts = {key: part.state_dict() for key, part in self.parts.items()}
        values = {"step": self.step, "seconds": self.seconds, "facts": self.facts, "parts": parts}
        fresh = self.checkpoint.with_suffix(".new")
        torch.save(values, fresh)
        fresh.replace(self.checkpoint)

    def steps(self, until: int) -> Iterator[int]:
        """Yield the numbers of the steps left, saving now and then, at the end, and when asked to stop (SIGTERM)."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        last_save = time.time()
        while self.step < until and not self._stopped:
            start = time.time()
            self.step += 1  # before the step is run: a save in the middle of one never happens
            yield self.step - 1
            self.seconds += time.time() - start
            if time.time() - last_save > SAVE_SECONDS:
                self.save()
                last_save = time.time()
        self.save()
        print(f"{self.name}: {'stopped' if self._stopped else 'done'} at step {self.step}", flush=True)

    def _stop(self, *_: Any) -> None:
        self._stopped = True

    def log(self, **values: float) -> None:
        """Append a line to the log and print it."""
        row = {"step": self.step, "hours": round(self.seconds / 3600, 4), **{k: float(v) for k, v in values.items()}}
        path = self.folder / f"{self.name}.csv"
        fresh = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, row)
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        print(self.name, " ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)

    def draw_curve(self, column: str = "loss") -> None:
        """Paint the log's `column` over the steps, logarithmically."""
        path = self.folder / f"{self.name}.csv"
        if not path.exists():
            return
        with path.open(encoding="utf-8") as file:
            rows = [(int(row["step"]), float(row[column])) for row in csv.DictReader(file) if row.get(column)]
        curve(rows, f"{self.name}: {column}").save(self.folder / f"{self.name}-curve.png")

    def draw_strips(self, strips: list[np.ndarray]) -> None:
        """Save rows of frames, each uint8 [H, W, 3], one below the other."""
        width = max(strip.shape[1] for strip in strips)
        rows = [np.pad(strip, ((0, 4), (0, width - strip.shape[1]), (0, 0)), constant_values=255) for strip in strips]
        picture = Image.fromarray(np.concatenate(rows))
        picture.save(self.folder / f"{self.name}-{self.step:06d}.png")


def strip(video: np.ndarray, count: int = 5) -> np.ndarray:
    """Put `count` frames of uint8 [F, H, W, 3] side by side."""
    picks = np.linspace(0, len(video) - 1, min(count, len(video))).round().astype(int)
    return np.concatenate([np.pad(video[i], ((0, 0), (0, 2), (0, 0)), constant_values=255) for i in picks], axis=1)


def to_frames(pixels: torch.Tensor) -> np.ndarray:
    """[3, F, H, W] in -1..1 to uint8 [F, H, W, 3]."""
    return ((pixels.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()


def curve(rows: list[tuple[int, float]], title: str) -> Image.Image:
    """Paint values over steps as a line on a logarithmic scale."""
    width, height = CURVE_SIZE
    left, right, top, bottom = 70, 20, 30, 30
    picture = Image.new("RGB", CURVE_SIZE, "white")
    draw = ImageDraw.Draw(picture)
    draw.text((left, 8), title, fill="black")
    rows = [(step, value) for step, value in rows if value > 0 and math.isfinite(value)]
    if len(rows) < 2:
        return picture
    steps = [step for step, _ in rows]
    logs = [math.log10(value) for _, value in rows]
    low, high = min(logs), max(max(logs), min(logs) + 0.1)

    def point(step: float, log: float) -> tuple[float, float]:
        x = left + (step - steps[0]) / max(steps[-1] - steps[0], 1) * (width - left - right)
        return x, top + (high - log) / (high - low) * (height - top - bottom)

    for i in range(5):
        level = low + (high - low) * i / 4
        draw.line((point(steps[0], level), point(steps[-1], level)), fill="#dddddd")
        draw.text((5, point(0, level)[1] - 5), f"{10**level:.3g}", fill="black")
        step = steps[0] + (steps[-1] - steps[0]) * i / 4
        draw.text((point(step, low)[0] - 15, height - 20), f"{step:.0f}", fill="black")
    draw.line([point(step, log) for step, log in zip(steps, logs, strict=True)], fill="#2060c0", width=2)
    return picture
