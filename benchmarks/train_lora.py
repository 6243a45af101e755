"""Does the stock Train LoRA teach cogvideox-mini a colour it has never seen? Judged by the detector, with and without.

    python dev.py bench train_lora [--steps 500] [--rate 0.004] [--rank 4] [--strength 1] [--count 32] [--quick]

Twenty clips painted in the new colour go through the nodes an artist would use: VAE Encode, CogVideoX Text Encode,
Train LoRA, Save LoRA, Load LoRA. Figures and the loss curve go to results/train_lora.json.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

if __name__ == "__main__":
    from common import import_host, import_pack

    import_pack()
    import_host()

import comfy.samplers
import comfy.sd
import comfy.utils
import comfy_extras.nodes_custom_sampler as custom_sampler
import comfy_extras.nodes_train as stock
from pack.benchmarks import common
from pack.benchmarks.mini import HostPainter
from pack.demo import detector, world
from pack.nodes.host.text_encoder import encode_prompt

import nodes

NEW, RGB, HUE = "jade", (40, 230, 140), 152.0  # between green (129) and cyan (182) on the detector's circle
COLOURS = {**world.COLOURS, NEW: RGB}
PALETTE = {**detector.HUES, NEW: HUE}
STAND_IN = "orange"  # captions are told of it and then reworded: no ground and no other word of the world has it
NOISY = (999, 900, 800, 700, 600, 500, 300, 100)  # timesteps at which the error on the clips is measured
CLIPS, BATCH, SEED = 20, 8, 7


@dataclass(frozen=True)
class Settings:
    """The widgets of Train LoRA that matter here; each step sees `accumulation` clips, one at a time.

    One at a time, because the host denoises every clip of a batch under every caption of it and takes the mean.
    """

    steps: int = 500
    accumulation: int = 2
    rate: float = 4e-3
    rank: int = 4  # the host scales what it trains by 1 / rank
    strength: float = 1.0  # of the LoRA, once trained
    dtype: str = "fp32"
    checkpoint_depth: int = 0  # 0: without gradient checkpointing


@dataclass
class Clips:
    """What an artist brings: one LATENT of N clips (unscaled) and one CONDITIONING for each."""

    latents: torch.Tensor
    prompts: list[Any]


def reword(caption: str) -> str:
    """Return a caption of a STAND_IN thing as one of the new colour."""
    words = sorted(world.ADJECTIVES[STAND_IN], key=len, reverse=True)
    return re.sub(f"\\b([Aa])n {NEW}", rf"\1 {NEW}", re.sub("|".join(words), NEW, caption))


def clips_in_new_colour(painter: HostPainter, count: int = CLIPS) -> Clips:
    """Paint clips of moving things in the new colour; encode them and their captions."""
    latents, prompts = [], []
    with torch.inference_mode():
        for seed in range(count):
            what = world.scene(seed, "train", "move")
            clip = world.render(replace(what, colour=NEW), colours=COLOURS)
            (latent,) = nodes.VAEEncode().encode(painter.vae, torch.from_numpy(clip / 255).float())
            latents.append(latent["samples"])
            prompt = reword(world.caption(replace(what, colour=STAND_IN), world.STYLES[seed % 2], seed))
            prompts.append(encode_prompt(painter.clip, prompt).conditioning)
    return Clips(torch.cat(latents), prompts)


def train(model, clips: Clips, settings: Settings, seed: int = SEED) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Run the stock Train LoRA; return what it would save and the loss of every clip seen."""
    widgets = {
        "batch_size": 1,
        "grad_accumulation_steps": settings.accumulation,
        "steps": settings.steps,
        "learning_rate": settings.rate,
        "rank": settings.rank,
        "optimizer": "AdamW",
        "loss_function": "MSE",
        "seed": seed,
        "training_dtype": settings.dtype,
        "lora_dtype": "fp32",
        "quantized_backward": False,
        "algorithm": "LoRA",
        "gradient_checkpointing": settings.checkpoint_depth > 0,
        "checkpoint_depth": max(settings.checkpoint_depth, 1),
        "offloading": False,
        "existing_lora": "[None]",
        "bucket_mode": False,
        "bypass_mode": False,
    }
    torch.manual_seed(seed)  # the node draws clips and noise levels without its own seed
    with torch.inference_mode():  # as the host runs nodes
        out = stock.TrainLoraNode.execute(
            [model], [{"samples": clips.latents}], clips.prompts, **{name: [value] for name, value in widgets.items()}
        )
    lora, losses, _ = out.args
    return lora, losses["loss"]


class ErrorOnClips(comfy.samplers.Sampler):
    """Measures, in place of sampling, the error of the denoised clips at fixed noise and timesteps."""

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image, *args, **kwargs):
        sampling = model_wrap.inner_model.model_sampling
        levels = torch.stack([sampling.sigma(torch.tensor(float(t))) for t in NOISY]).to(noise)
        clip = latent_image.expand(len(levels), -1, -1, -1, -1)
        noisy = sampling.noise_scaling(levels, noise.expand_as(clip), clip, False)
        self.error = float((model_wrap(noisy, levels, **extra_args) - clip).square().mean())
        return latent_image


@torch.inference_mode()
def error_on(model, clips: Clips) -> float:
    """Return the mean squared error of the denoised latents over clips and timesteps; the noise is always the same."""
    errors = []
    for index, prompt in enumerate(clips.prompts):
        guider = custom_sampler.Guider_Basic(model)
        guider.set_conds(prompt)
        latent = clips.latents[index : index + 1]
        noise = custom_sampler.Noise_RandomNoise(index).generate_noise({"samples": latent})
        sampler = ErrorOnClips()
        guider.sample(noise, latent, sampler, torch.ones(2), seed=index)
        errors.append(sampler.error)
    return statistics.mean(errors)


def seen_colours(painter: HostPainter, whats: list[world.Scene], tell: Callable[[world.Scene, int], str]) -> list[str]:
    """Paint what is told of scenes and return the colour the detector sees in each video."""
    colours = []
    for start in range(0, len(whats), BATCH):
        part = whats[start : start + BATCH]
        prompts = [tell(what, 1000 + start + i) for i, what in enumerate(part)]
        for video in painter.paint(prompts, list(range(start, start + len(part)))):
            colours.append(detector.measure(video, PALETTE).colour)
    return colours


def in_new_colour(painter: HostPainter, count: int) -> dict[str, Any]:
    """Ask for `count` held-out scenes in the new colour; return the share of videos in it and what was seen."""
    whats = [world.scene(seed, "test", "move") for seed in range(count)]
    seen = seen_colours(painter, whats, lambda w, n: reword(world.caption(replace(w, colour=STAND_IN), "short", n)))
    return {"new colour": seen.count(NEW) / count, "seen": dict(Counter(seen).most_common())}


def in_known_colours(painter: HostPainter, count: int) -> dict[str, float]:
    """Ask for the same scenes in their own colours; return how many videos are in the colour that was asked for."""
    whats = [world.scene(seed, "test", "move") for seed in range(count)]
    seen = seen_colours(painter, whats, lambda w, n: world.caption(w, "short", n))
    return {"known colours": statistics.mean(a == what.colour for a, what in zip(seen, whats, strict=True))}


def save_and_load(model, lora: dict[str, torch.Tensor], strength: float, folder: Path):
    """Write the LoRA as the stock Save LoRA does and apply the file to the model as the stock loaders do."""
    path = folder / "lora.safetensors"
    comfy.utils.save_torch_file(lora, str(path))
    with torch.inference_mode():
        return comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(path)), strength, 0.0)[0]


def thinned(losses: list[float], points: int = 20) -> list[float]:
    """Return the means of `points` equal stretches of the loss."""
    return [round(float(part.mean()), 4) for part in np.array_split(np.array(losses), min(points, len(losses)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--accumulation", type=int, default=Settings.accumulation, help="clips a step")
    parser.add_argument("--rate", type=float, default=Settings.rate, help="learning rate")
    parser.add_argument("--rank", type=int, default=Settings.rank)
    parser.add_argument("--strength", type=float, default=Settings.strength, help="of the LoRA, once trained")
    parser.add_argument("--count", type=int, default=32, help="prompts of each kind")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="write the LoRA there too")
    parser.add_argument("--quick", action="store_true", help="next to nothing, to see that it runs; nothing is written")
    args = parser.parse_args()
    comfy.utils.set_progress_bar_enabled(False)
    settings = Settings(args.steps, args.accumulation, args.rate, args.rank, args.strength)
    if args.quick:
        settings, args.count = replace(settings, steps=4), 2
    painter = HostPainter()
    model, clips = painter.model, clips_in_new_colour(painter)
    without = {"error on the clips": error_on(model, clips)}
    print(without, flush=True)
    start = time.perf_counter()
    lora, losses = train(model, clips, settings)
    seconds = time.perf_counter() - start
    if args.keep:
        comfy.utils.save_torch_file(lora, str(args.keep))
    with tempfile.TemporaryDirectory() as folder:
        painter.model = save_and_load(model, lora, settings.strength, Path(folder))
    given = {"error on the clips": error_on(painter.model, clips)}
    print(given, thinned(losses), round(seconds), flush=True)
    given |= in_new_colour(painter, args.count)
    print(given, flush=True)
    given |= in_known_colours(painter, args.count)
    print(given, flush=True)
    painter.model = model
    without |= in_new_colour(painter, args.count)
    quarter = len(losses) // 4
    results = {
        "colour": {NEW: RGB},
        "clips": CLIPS,
        "prompts": args.count,
        "settings": vars(settings),
        "seconds": round(seconds),
        "loss": {
            "first quarter": statistics.mean(losses[:quarter]),
            "last quarter": statistics.mean(losses[-quarter:]),
            "curve": thinned(losses),
        },
        "without": without,
        "with": given,
    }
    print(results)
    if not args.quick:
        common.save("train_lora", results)


if __name__ == "__main__":
    main()
