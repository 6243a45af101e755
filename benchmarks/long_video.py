"""Longer videos on cogvideox-mini: seams and motion of windows, continued and separate pieces, in one run.

    python dev.py bench long_video [--count 6]

The same prompts more than twice as long as the model makes, by: context windows as this pack fits them; the host's
windows without its causal fix; pieces that go on from the last nine frames, joined; separate pieces, one after the
other; and one piece as the model makes it, judged as if it had a join in its middle. Four frames come from one latent
and the picture changes more from one latent to the next than inside one, so joins, which lie there, are held against
the other such places: a seam is the mean change between the two frames at a join by that there (1: not seen). Jerk is
the third difference of the object's centre in px over the same places. Then the memory of decoding 5 and 20 seconds
into a file. Figures go to results/long_video.json and .png.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Callable

import numpy as np
import torch

if __name__ == "__main__":
    from common import import_host, import_pack

    import_pack()
    import_host()

from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from pack.benchmarks import common
from pack.benchmarks.counting import peak_of
from pack.benchmarks.mini import GUIDANCE, HostPainter
from pack.demo import detector, mini, world
from pack.nodes.host.conditioning import empty_latent
from pack.nodes.host.long_video import continue_video, decode_to_video, join_videos
from pack.nodes.host.text_encoder import encode_prompt

import nodes

PIECE, OVERLAP = mini.FRAMES, 9  # frames
LATENTS, SHARED = (PIECE - 1) // 4 + 1, (OVERLAP - 1) // 4 + 1
LENGTH = 41
FPS = 8
SECONDS = (5, 20)


class LongPainter(HostPainter):
    """One prompt to one long video, by each way."""

    steps = 20

    def encode(self, prompt: str) -> list:
        return [encode_prompt(self.clip, text).conditioning for text in (prompt, "")]

    def sample(self, model, conds: list, latent: dict, seed: int) -> torch.Tensor:
        """Return frames [F, H, W, 3], 0 to 1."""
        (out,) = nodes.KSampler().sample(model, seed, self.steps, GUIDANCE, "euler", "simple", *conds, latent, 1.0)
        return nodes.VAEDecode().decode(self.vae, out)[0]

    def windows(self, prompt: str, seed: int, causal: bool) -> tuple[torch.Tensor, list[int]]:
        model = ContextWindowsManualNode.execute(
            self.model,
            LATENTS,
            SHARED,
            "standard_static",
            1,
            False,
            "pyramid",
            2,
            True,
            causal_window_fix=causal,
        ).result[0]
        if not causal:  # as the host has it: without the fitting of this pack too
            model.remove_wrappers_with_key("outer_sample", "cogvideox_leading_latent")
        latent = empty_latent(mini.WIDTH, mini.HEIGHT, LENGTH, 1)
        starts = range(LATENTS - SHARED, (LENGTH - 1) // 4 + 1, LATENTS - SHARED)
        return self.sample(model, self.encode(prompt), latent, seed), [first_frame(start) for start in starts]

    def one_piece(self, prompt: str, seed: int) -> tuple[torch.Tensor, list[int]]:
        latent = empty_latent(mini.WIDTH, mini.HEIGHT, PIECE, 1)
        return self.sample(self.model, self.encode(prompt), latent, seed), [first_frame(LATENTS // 2)]

    def continued(self, prompt: str, seed: int) -> tuple[torch.Tensor, list[int]]:
        conds = self.encode(prompt)
        video = self.sample(self.model, conds, empty_latent(mini.WIDTH, mini.HEIGHT, PIECE, 1), seed)
        joins = []
        while len(video) < LENGTH:
            made = continue_video(*conds, self.vae, video, PIECE, OVERLAP, True)
            seed += 1
            piece = self.sample(self.model, [made.positive, made.negative], made.latent, seed)
            joins.append(len(video))
            video = join_videos(video, piece, OVERLAP)
        return video, joins

    def separate(self, prompt: str, seed: int) -> tuple[torch.Tensor, list[int]]:
        latent = empty_latent(mini.WIDTH, mini.HEIGHT, PIECE, 1)
        pieces = [self.sample(self.model, self.encode(prompt), latent, seed + i) for i in range(LENGTH // PIECE + 1)]
        return torch.cat(pieces)[:LENGTH], list(range(PIECE, LENGTH, PIECE))


def first_frame(latent: int) -> int:
    return 4 * latent - 3


def judged(video: torch.Tensor, joins: list[int]) -> dict[str, float]:
    """Measure seams and motion of frames [F, H, W, 3]; a join is the number of the first frame behind it."""
    change = (video[1:] - video[:-1]).abs().mean(dim=(1, 2, 3)).numpy()
    centres = detector.measure(video.numpy() * 255).centres
    jerk = np.linalg.norm(np.diff(centres, n=3, axis=0), axis=1)  # of frames i to i + 3
    joins = [join for join in joins if join < len(video)]
    elsewhere = sorted({first_frame(latent) for latent in range(2, (len(video) - 1) // 4 + 1)} - set(joins))

    def around(places: list[int]) -> float:
        near = [i for i in range(len(jerk)) if any(i < place <= i + 3 for place in places)]
        return float(np.nanmean(jerk[near]))

    return {
        "change at joins": float(change[[join - 1 for join in joins]].mean()),
        "change elsewhere": float(change[[place - 1 for place in elsewhere]].mean()),
        "jerk at joins": around(joins),
        "jerk elsewhere": around(elsewhere),
        "seen": float(np.isfinite(centres[:, 0]).mean()),
    }


def memory(painter: LongPainter) -> dict[str, dict[str, float]]:
    """Return the most bytes of tensors alive in decoding into a file, and the growth of the process, by seconds."""
    rows = {}
    known = list(painter.vae.first_stage_model.parameters())
    for seconds in SECONDS:
        count = (seconds * FPS // 8 * 8) // 4 + 1
        latents = torch.randn(1, 16, count, mini.HEIGHT // 8, mini.WIDTH // 8)

        def run(latents: torch.Tensor = latents) -> None:
            os.remove(decode_to_video(painter.vae, latents, FPS, 18.0, "auto").get_stream_source())

        run()
        peak = common.Peak()
        peak.start()
        run()
        grown = peak.stop()
        rows[f"{seconds} s"] = {
            "frames": 4 * count - 3,
            "latents, MB": round(latents.nbytes / 1e6, 3),
            "tensors alive, MB": round(peak_of(run, *known) / 1e6, 2),
            "resident growth, MB": None if grown is None else round(grown / 1e6, 1),
            "all frames, MB": round((4 * count - 3) * mini.HEIGHT * mini.WIDTH * 12 / 1e6, 1),
        }
    return rows


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=6, help="prompts")
    parser.add_argument("--steps", type=int, default=LongPainter.steps)
    args = parser.parse_args()
    painter, draw = LongPainter(), random.Random(0)
    painter.steps = args.steps
    ways: dict[str, Callable[[str, int], tuple[torch.Tensor, list[int]]]] = {
        "windows": lambda prompt, seed: painter.windows(prompt, seed, True),
        "windows without the causal fix": lambda prompt, seed: painter.windows(prompt, seed, False),
        "continued": painter.continued,
        "separate": painter.separate,
        "one piece": painter.one_piece,
    }
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    drawn, axes = common.figure(len(ways), 1, width=9, height=1.2)
    for seed in range(args.count):
        colour, way = draw.choice(list(world.COLOURS)), draw.choice(("left", "right", "up", "down"))
        prompt = f"a {colour} ball moves {way}"
        for (name, paint), (axis,) in zip(ways.items(), axes, strict=True):
            video, joins = paint(prompt, 100 * seed)
            rows[name].append(judged(video, joins))
            print(f"{prompt}, {name}: {rows[name][-1]}", flush=True)
            if seed == 0:
                axis.imshow(torch.cat(list(video[::6]), dim=1).clamp(0, 1).numpy())
                axis.set_title(name, fontsize=8)
                axis.axis("off")
    results = {}
    for name, found in rows.items():
        mean = {key: float(np.nanmean([row[key] for row in found])) for key in found[0]}
        results[name] = {
            "seam": round(mean["change at joins"] / mean["change elsewhere"], 2),
            **{key: round(value, 4) for key, value in mean.items()},
        }
    facts = {"prompts": args.count, "frames": LENGTH, "steps": args.steps, "ways": results, "decoding": memory(painter)}
    print(common.save("long_video", facts).read_text("utf-8"), common.save_figure(drawn, "long_video"))


if __name__ == "__main__":
    main()
