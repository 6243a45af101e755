"""Does cogvideox-mini show what it is told? Held-out prompts through the real host, judged by the detector.

    python dev.py bench mini [--count 200] [--processes 2] [--only PART ...]

Figures go to results/mini.json; the part "sheet" paints demo/contact-sheet.jpg.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

if __name__ == "__main__":
    from common import import_host, import_pack

    import_pack()
    import_host()

from pack.benchmarks import common
from pack.demo import detector, evaluate, mini, world
from pack.nodes.host import loading
from pack.nodes.host.conditioning import empty_latent, image_to_video
from pack.nodes.host.text_encoder import encode_prompt

import nodes

ROOT = Path(__file__).resolve().parents[1]
PIPELINE = ROOT / "demo" / "cogvideox-mini"
SHEET = ROOT / "demo" / "contact-sheet.jpg"
STEPS, GUIDANCE = 30, 6.0


class HostPainter:
    """Text and pictures to videos as an artist makes them: Load Pipeline, Text Encode, stock KSampler, VAE Decode."""

    def __init__(self, folder: Path = PIPELINE):
        self.model, self.clip, self.vae = loading.load_pipeline(folder)

    @torch.inference_mode()
    def paint(
        self,
        prompts: list[str],
        seeds: list[int],
        height: int = mini.HEIGHT,
        width: int = mini.WIDTH,
        frames: int = mini.FRAMES,
        first: list[np.ndarray] | None = None,
        last: list[np.ndarray] | None = None,
        steps: int = STEPS,
        guidance: float = GUIDANCE,
    ) -> list[np.ndarray]:
        """Return a video uint8 [F, H, W, 3] for each prompt; the whole batch is sampled at once, from seeds[0]."""
        encoded = [encode_prompt(self.clip, prompt).conditioning[0] for prompt in prompts]
        positive = [[torch.cat([cond for cond, _ in encoded]), encoded[0][1]]]
        negative = encode_prompt(self.clip, "").conditioning
        latent = empty_latent(width, height, frames, len(prompts))
        if first or last:
            start, end = (
                torch.from_numpy(np.stack(images) / 255).float() if images else None for images in (first, last)
            )
            made = image_to_video(positive, negative, self.vae, width, height, frames, 1, start, end)
            positive, negative, latent = made.positive, made.negative, made.latent
        (sampled,) = nodes.KSampler().sample(
            self.model, seeds[0], steps, guidance, "euler", "simple", positive, negative, latent, 1.0
        )
        (images,) = nodes.VAEDecode().decode(self.vae, sampled)
        pixels = (images.clamp(0, 1) * 255).round().byte().numpy()
        return list(pixels.reshape(len(prompts), frames, height, width, 3))


def parts(painter: HostPainter, count: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return the parts of the proof by name."""

    def text(style: str, count: int = count, **options):
        return lambda: evaluate.text_to_video(painter, count, style, **options)

    return {
        **{f"text, {style}": text(style) for style in world.STYLES},
        "first frame": lambda: evaluate.image_to_video(painter, count, ("first",)),
        "text, short, guidance 1": text("short", guidance=1.0),
        "text, short, 64x96": text("short", count // 4, height=96, width=64),
        "text, short, 64x64": text("short", count // 4, height=64, width=64),
        "first and last frame": lambda: evaluate.image_to_video(painter, count, ("first", "last")),
        "last frame": lambda: evaluate.image_to_video(painter, count // 4, ("last",)),
        "detector on the true world": lambda: true_world(2 * count),
        "VAE": lambda: {"psnr": vae_psnr(painter, count)},
        "sheet": lambda: contact_sheet(painter),
    }


def true_world(count: int) -> dict[str, float]:
    """Return how often the detector is right about the true clips."""
    right = {trait: [] for trait in evaluate.TRAITS}
    for seed in range(count):
        what = world.scene(seed, "test", "move")
        seen = detector.measure(world.render(what))
        for trait in evaluate.TRAITS:
            right[trait].append(getattr(seen, trait) == getattr(what, trait))
    return {trait: float(np.mean(hits)) for trait, hits in right.items()}


@torch.inference_mode()
def vae_psnr(painter: HostPainter, count: int) -> float:
    """Return the mean PSNR in dB of held-out clips through stock VAE Encode and Decode."""
    values = []
    for seed in range(count):
        clip = world.render(world.scene(seed, "test"))
        (latent,) = nodes.VAEEncode().encode(painter.vae, torch.from_numpy(clip / 255).float())
        (copy,) = nodes.VAEDecode().decode(painter.vae, latent)
        values.append(evaluate.frame_psnr(clip, copy.reshape(clip.shape).clamp(0, 1).numpy() * 255))
    return float(np.mean(values))


def contact_sheet(painter: HostPainter, path: Path = SHEET, rows: int = 8) -> dict[str, Any]:
    """Paint held-out prompts, five frames each with the prompt above them, in two columns."""
    from pack.demo.runs import strip
    from PIL import Image, ImageDraw

    whats = [world.scene(seed, "test", action) for seed, action in enumerate([*world.ACTIONS, *["move"] * 16])]
    whats = whats[: 2 * rows]
    prompts = [world.caption(what, "short", 3000 + i) for i, what in enumerate(whats)]
    videos = [video for i in range(0, len(prompts), 8) for video in painter.paint(prompts[i : i + 8], [i])]
    strips = [strip(video) for video in videos]
    height, width = strips[0].shape[0] + 18, strips[0].shape[1] + 8
    sheet = Image.new("RGB", (2 * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (prompt, picture) in enumerate(zip(prompts, strips, strict=True)):
        x, y = (i % 2) * width + 4, (i // 2) * height
        draw.text((x, y + 3), prompt, fill="black")
        sheet.paste(Image.fromarray(picture), (x, y + 16))
    sheet.save(path, quality=88)
    return {"prompts": len(prompts)}


def work(names: list[str], count: int) -> None:
    """Run parts in this process and print a line of JSON for each."""
    torch.set_num_threads(1)
    known = parts(HostPainter(), count)
    for name in names:
        start = time.perf_counter()
        values = {key: round(value, 4) for key, value in known[name]().items() if isinstance(value, float | int)}
        print(json.dumps({name: {**values, "seconds": round(time.perf_counter() - start, 1)}}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="prompts of each kind")
    parser.add_argument("--processes", type=int, default=torch.get_num_threads(), help="parts measured at once")
    parser.add_argument("--only", nargs="+", metavar="PART", help="run these parts")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = list(parts(None, args.count))
    if unknown := [name for name in args.only or () if name not in names]:
        raise SystemExit(f"There is no part {unknown[0]!r}; there are {', '.join(names)}.")
    names = args.only or names
    if args.work:
        work(names, args.count)
        return
    command = [sys.executable, __file__, "--work", "--count", str(args.count), "--only"]
    shares = [share for share in (names[i :: args.processes] for i in range(args.processes)) if share]
    workers = [subprocess.Popen([*command, *share], stdout=subprocess.PIPE, text=True) for share in shares]
    results = common.load("mini")
    for worker in workers:
        for line in worker.stdout:
            if line.startswith("{"):
                results |= json.loads(line)
        if worker.wait():
            raise SystemExit("A part of the proof failed; its error is above.")
    ordered = {name: results[name] for name in parts(None, 0) if name in results}
    print(common.save("mini", {"steps": STEPS, "guidance": GUIDANCE, **ordered}).read_text("utf-8"))


if __name__ == "__main__":
    main()
