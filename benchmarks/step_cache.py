"""What CogVideoX Step Cache gains and what it costs: seconds against PSNR to the full run, over thresholds.

    python dev.py bench step_cache [FOLDER ...] [--steps 30] [--rounds 3] [--thresholds 0.05 0.1 ...] [--quick]

FOLDER is a pipeline; without one they are demo/cogvideox-mini and a 5B with two layers and random weights, whose PSNR
says nothing of real videos. Settings take turns with the full run in one process. The tables go to
results/step_cache.json, the plots beside it.
"""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    from common import import_host, import_pack

    import_pack()
    import_host()

from pack.benchmarks import common, weights
from pack.cogvideox.latents import pixel_frames
from pack.cogvideox.patches import STEP_CACHE_MODES
from pack.nodes.host import patches
from pack.nodes.host.conditioning import empty_latent
from pack.nodes.host.loading import load_pipeline
from pack.nodes.host.text_encoder import encode_prompt

import nodes

MINI = common.ROOT / "demo" / "cogvideox-mini"
STAND_IN = "5B with two layers, random weights"
FULL = "full run"
PROMPT, NEGATIVE = "A red ball rolls to the left.", ""
SEED, GUIDANCE = 1, 6.0
THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.3)
RANDOM_THRESHOLDS = (1.0, 2.0, 4.0, 8.0)  # with random weights far more changes from step to step


class SkippedSteps(logging.Handler):
    """Reads from the log how many steps a run has skipped."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.skipped = 0

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg.startswith("CogVideoX Step Cache"):
            _, self.skipped, _ = record.args


class Runs:
    """One prompt through a pipeline, with any cache."""

    def __init__(self, folder: Path, steps: int):
        self.model, self.clip, self.vae = load_pipeline(folder)
        config = self.model.model.variant.transformer
        frames = pixel_frames((config.sample_frames - 1) // config.temporal_compression_ratio + 1)
        if config.patch_size_t:  # the released 1.5 names the largest size it was trained for
            frames, height, width = min(frames, 49), min(config.sample_height, 60), min(config.sample_width, 90)
        else:
            height, width = config.sample_height, config.sample_width
        self.size, self.steps = (8 * width, 8 * height, frames), steps
        self.frames: dict[str, torch.Tensor] = {}
        self.skips = SkippedSteps()
        patches.log.addHandler(self.skips)
        patches.log.setLevel(logging.INFO)
        with torch.inference_mode():
            self.prompts = [encode_prompt(self.clip, prompt).conditioning for prompt in (PROMPT, NEGATIVE)]

    @torch.inference_mode()
    def run(self, name: str, mode: str | None = None, threshold: float = 0.0) -> dict[str, Any]:
        """Sample once and return the seconds; the frames of the first time are kept."""
        model, latent, peak = self.model, empty_latent(*self.size, 1), common.Peak()
        if mode is not None:
            model, _ = patches.with_step_cache(model, mode, threshold, 0.0, 1.0, patches.MAIN_DEVICE)
        self.skips.skipped = 0
        peak.start()
        start = time.perf_counter()
        args = (SEED, self.steps, GUIDANCE, "euler", "simple", *self.prompts, latent, 1.0)
        (samples,) = nodes.KSampler().sample(model, *args)
        common.synchronise()
        row = {"seconds": time.perf_counter() - start, "bytes": peak.stop(), "skipped": self.skips.skipped}
        if name not in self.frames:
            (self.frames[name],) = nodes.VAEDecode().decode(self.vae, samples)
        return row


def psnr(frames: torch.Tensor, right: torch.Tensor) -> float | None:
    """Return the PSNR in dB of frames in 0..1; None where they are equal."""
    error = float((frames.clamp(0, 1) - right.clamp(0, 1)).square().mean())
    return round(-10 * math.log10(error), 2) if error else None


def measure(folder: Path, steps: int, rounds: int, thresholds: tuple[float, ...]) -> dict[str, Any]:
    """Run every setting in turn with the full run; return a row for each."""
    runs = Runs(folder, steps)
    settings = {FULL: lambda: runs.run(FULL)}
    for mode in STEP_CACHE_MODES:
        for threshold in thresholds:
            name = f"{mode} {threshold:g}"
            settings[name] = lambda name=name, mode=mode, t=threshold: runs.run(name, mode, t)
    runs.run(FULL)  # unmeasured
    rows = {name: common.measured(taken) for name, taken in common.in_turn(settings, rounds).items()}
    for name, row in rows.items():
        row["psnr"] = psnr(runs.frames[name], runs.frames[FULL])
        row["speed_up"] = common.times(rows[FULL], row)
    width, height, frames = runs.size
    return {"size": f"{frames} frames of {width}x{height}", "steps": steps, "rounds": rounds, "rows": rows}


def show(title: str, results: dict[str, Any]) -> None:
    print(f"\n{title}, {results['size']}, {results['steps']} steps")
    for name, row in results["rows"].items():
        quality = "equal" if row["psnr"] is None else f"{row['psnr']:5.1f} dB"
        print(
            f"  {name:24} {row['seconds']:8.2f} s ({row['fastest']:.2f} to {row['slowest']:.2f})  "
            f"{row['speed_up']:5.2f} times as fast  {row['skipped']:3.0f} steps skipped  {quality}"
        )


def plot(pipelines: dict[str, dict[str, Any]]):
    """Plot speed-up against PSNR, a line for each mode, thresholds beside the points; return the figure."""
    figure, (axes,) = common.figure(1, len(pipelines), 6, 4)
    for axis, (title, results) in zip(axes, pipelines.items(), strict=True):
        for mode in STEP_CACHE_MODES:
            rows = {k: row for k, row in results["rows"].items() if k.startswith(mode) and row["psnr"] is not None}
            points = {key.split()[-1]: (row["psnr"], row["speed_up"]) for key, row in rows.items()}
            axis.plot([x for x, _ in points.values()], [y for _, y in points.values()], "o-", label=mode)
            for threshold, point in points.items():
                axis.annotate(threshold, point, textcoords="offset points", xytext=(4, 4))
        axis.set(xlabel="PSNR to the full run, dB", ylabel="times as fast", title=title)
        axis.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="pipelines in the diffusers layout", metavar="FOLDER")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--thresholds", nargs="+", type=float, default=[], help="in place of those for each pipeline")
    parser.add_argument("--quick", action="store_true", help="next to nothing, to see that it runs; nothing is written")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.rounds, args.thresholds = 6, 1, (1.0,)
    pipelines = {}
    with tempfile.TemporaryDirectory() as made:
        folders = {folder.name: folder for folder in args.folders}
        if not folders:
            folders = {} if args.quick else {MINI.name: MINI}
            folders[STAND_IN] = write_stand_in(Path(made), args.quick)
        for title, folder in folders.items():
            thresholds = args.thresholds or (RANDOM_THRESHOLDS if title == STAND_IN else THRESHOLDS)
            pipelines[title] = measure(folder, args.steps, args.rounds, tuple(thresholds))
            show(title, pipelines[title])
    figure = plot(pipelines)
    if not args.quick:
        common.save_figure(figure, "step_cache")
        common.save("step_cache", {"pipelines": pipelines})


def write_stand_in(folder: Path, quick: bool) -> Path:
    """Write a 5B with two layers for 9 frames of 96x64, or with one narrow layer for less."""
    text = weights.T5_SMALL
    variant = weights.variant_of("CogVideoX-5B", 2, 2 if quick else 0, text["d_model"])
    size = dict(sample_height=4, sample_width=6, sample_frames=1) if quick else dict(sample_height=8, sample_width=12)
    config = replace(variant.transformer, **{"sample_frames": 9, **size})
    return weights.write_pipeline(folder, replace(variant, transformer=config), text, torch.float32)


if __name__ == "__main__":
    main()
