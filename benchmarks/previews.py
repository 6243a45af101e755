"""What the moving previews cost: a clip at real size against a step of 5B, and their share of a run of the demo model.

    python dev.py bench previews [--runs 5] [--quick]

A clip is made of the latents of 49 frames of 720x480. The step, for two prompts, is that of two blocks in the shape of
CogVideoX-5B for one, times what the whole model does more in operations; on a CPU they see a third of the frames.
Figures go to results/previews.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

if __name__ == "__main__":
    from common import import_host, import_pack

    import_pack()
    import_host()

from comfy.cli_args import LatentPreviewMethod, args
from pack.benchmarks import common
from pack.benchmarks.mini import PIPELINE
from pack.benchmarks.released import flops
from pack.cogvideox.tiny_decoder import TinyDecoder
from pack.cogvideox.transformer import CogVideoXTransformer3DModel
from pack.cogvideox.variants import COGVIDEOX_5B, LATENT_CHANNELS, TEXT_TOKENS
from pack.nodes.host import loading, preview
from pack.nodes.host.conditioning import empty_latent
from pack.nodes.host.text_encoder import encode_prompt

import nodes

SIZE, FEWER = (13, 60, 90), (4, 60, 90)  # latents [T, H, W] of 49 frames of 720x480, and of 13
BLOCKS, PROMPTS = 2, 2
STEPS, GUIDANCE, WIDTH, HEIGHT, FRAMES = 30, 6.0, 96, 64, 17


def seconds(work: Callable[[], Any], runs: int) -> float:
    """Return the median seconds of `runs` calls after one that does not count."""
    taken = []
    for _ in range(runs + 1):
        common.synchronise()
        start = time.perf_counter()
        work()
        common.synchronise()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


@torch.inference_mode()
def clips(device: str, size: tuple[int, int, int], runs: int) -> dict[str, float]:
    """Return the seconds of a clip by each way."""
    x0 = torch.randn(1, LATENT_CHANNELS, *size, device=device)
    dtype = torch.float16 if device == "cuda" else torch.float32
    decoders = {"rough colours": None, "tiny decoder": TinyDecoder().to(device, dtype)}
    return {
        name: seconds(lambda decoder=decoder: preview.ClipPreview(0.7, decoder, clock=lambda: 0.0).clip(0, x0), runs)
        for name, decoder in decoders.items()
    }


@torch.inference_mode()
def step(device: str, size: tuple[int, int, int]) -> float:
    """Return the seconds of a step of CogVideoX-5B at SIZE, from two of its blocks at `size`."""
    whole = COGVIDEOX_5B.transformer
    config = replace(whole, num_layers=BLOCKS)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = CogVideoXTransformer3DModel(config, dtype=dtype, device=device)
    x = torch.randn(1, config.in_channels, *size, dtype=dtype, device=device)
    text = torch.randn(1, TEXT_TOKENS, config.text_embed_dim, dtype=dtype, device=device)
    one = seconds(lambda: model(x, torch.ones(1, device=device), text), 1)
    return one * PROMPTS * flops(whole, SIZE) / flops(config, size)


@torch.inference_mode()
def share_of_a_run() -> dict[str, float]:
    """Return the seconds of a run of the built-in model, those of them that previews took, and how many clips came."""
    made = []

    class Watched(preview.ClipPreview):
        def clip(self, step, x0):
            clip = super().clip(step, x0)
            made.append((clip is not None, self.spent))
            return clip

    model, clip, _ = loading.load_pipeline(PIPELINE)
    prompts = [encode_prompt(clip, text).conditioning for text in ("a red ball moves right", "")]
    latent = empty_latent(WIDTH, HEIGHT, FRAMES, 1)
    usual, preview.ClipPreview = preview.ClipPreview, Watched
    args.preview_method = LatentPreviewMethod.Auto
    try:
        taken = []
        for seed in range(2):  # the first run loads
            made.clear()
            start = time.perf_counter()
            nodes.KSampler().sample(model, seed, STEPS, GUIDANCE, "euler", "simple", *prompts, latent, 1.0)
            taken.append(time.perf_counter() - start)
    finally:
        preview.ClipPreview = usual
        args.preview_method = LatentPreviewMethod.NoPreviews
    spent, shown = made[-1][1], sum(shown for shown, _ in made)
    return {"seconds": taken[-1], "previews": spent, "clips": shown, "steps": STEPS, "share": spent / taken[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works; nothing is written")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tiny = (2, 8, 12)
    made, run = clips(device, tiny if given.quick else SIZE, given.runs), share_of_a_run()
    of_5b = step(device, tiny if given.quick else SIZE if device == "cuda" else FEWER)
    results = {
        "clip": made,
        "step of CogVideoX-5B": of_5b,
        "share of a step": {name: one / of_5b for name, one in made.items()},
        "run of the built-in model": run,
        "run": common.RUN,
    }
    print(results)
    if not given.quick:
        print(common.save("previews", results))


if __name__ == "__main__":
    main()
