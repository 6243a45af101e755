"""Does each region of a picture show its own prompt? Two prompts, two halves, on cogvideox-mini.

    python dev.py bench regions [--count 16]

Left and right half get a prompt each by the stock nodes Conditioning (Set Mask) and Conditioning (Combine); the
detector names the colour it sees in each half. Figures go to results/regions.json, four of the videos to
results/regions.png.
"""

from __future__ import annotations

import argparse
import random

import numpy as np
import torch

if __name__ == "__main__":
    from common import import_host, import_pack

    import_pack()
    import_host()

from pack.benchmarks import common
from pack.benchmarks.mini import GUIDANCE, STEPS, HostPainter
from pack.demo import detector, mini, world
from pack.nodes.host.conditioning import empty_latent
from pack.nodes.host.text_encoder import encode_prompt

import nodes

SHOWN = 4


def regional(clip, left: str, right: str, width: int, height: int) -> list:
    """Return CONDITIONING with a prompt for the left and one for the right half of a video."""
    mask = torch.zeros(1, height, width)
    mask[:, :, : width // 2] = 1
    parts = [
        nodes.ConditioningSetMask().append(encode_prompt(clip, text).conditioning, share, "default", 1.0)[0]
        for text, share in ((left, mask), (right, 1 - mask))
    ]
    return nodes.ConditioningCombine().combine(*parts)[0]


def colours_of_halves(video: np.ndarray) -> tuple[str, str]:
    """Return the colours that the detector names in the left and the right half of a video [F, H, W, 3], 0 to 255."""
    middle = video.shape[2] // 2
    return detector.measure(video[:, :, :middle]).colour, detector.measure(video[:, :, middle:]).colour


@torch.inference_mode()
def paint(painter: HostPainter, left: str, right: str, seed: int) -> np.ndarray:
    """Return a video uint8 [F, H, W, 3] whose halves show `left` and `right`."""
    positive = regional(painter.clip, left, right, mini.WIDTH, mini.HEIGHT)
    negative = encode_prompt(painter.clip, "").conditioning
    latent = empty_latent(mini.WIDTH, mini.HEIGHT, mini.FRAMES, 1)
    run = nodes.KSampler().sample
    (sampled,) = run(painter.model, seed, STEPS, GUIDANCE, "euler", "simple", positive, negative, latent, 1.0)
    (images,) = nodes.VAEDecode().decode(painter.vae, sampled)
    return (images.clamp(0, 1) * 255).round().byte().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=16, help="pairs of prompts")
    args = parser.parse_args()

    painter, draw = HostPainter(), random.Random(0)
    right, shown = {"left": 0, "right": 0, "both": 0}, []
    for seed in range(args.count):
        colours = draw.sample(list(world.COLOURS), 2)
        prompts = [f"a {colour} ball moves {way}" for colour, way in zip(colours, ("up", "down"), strict=True)]
        video = paint(painter, *prompts, seed)
        hits = [seen == told for seen, told in zip(colours_of_halves(video), colours, strict=True)]
        right["left"] += hits[0]
        right["right"] += hits[1]
        right["both"] += all(hits)
        shown.append((prompts, video))
        print(f"{', '.join(prompts)}: {hits}", flush=True)
    common.save("regions", {"pairs": args.count, "steps": STEPS, "guidance": GUIDANCE, "colour right": right})

    drawn, axes = common.figure(SHOWN, 3, width=2.4, height=1.9)
    for row, (prompts, video) in zip(axes, shown, strict=False):
        for axis, frame in zip(row, (0, video.shape[0] // 2, -1), strict=True):
            axis.imshow(video[frame])
            axis.axis("off")
        row[1].set_title(" | ".join(prompts), fontsize=8)
    print(common.save_figure(drawn, "regions"))


if __name__ == "__main__":
    main()
