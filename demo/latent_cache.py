"""The third stage: clips of the world as VAE latents on disk, so that the transformer's hours go to the transformer.

Causal encoding makes one entry serve every duration: the latents of the first 9 frames of 17 are those of a clip of 9.
A picture alone is encoded apart (the statistics of the group norms are over a chunk), as image-to-video encodes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..cogvideox.vae import AutoencoderKLCogVideoX
from . import world
from .train_vae import to_pixels

SHARD = 128  # clips of one size in a file
TOGETHER = 8  # clips encoded at once: one alone is so small that PyTorch takes a convolution five times slower
IMAGE_NOISE = (-3.0, 0.5)  # mean and deviation of log sigma of the noise on conditioning pictures (arXiv 2408.06072)


@dataclass(frozen=True)
class Plan:
    """`clips` clips of one size in pixels, the first of `choice` times as many scenes, stars before others."""

    height: int
    width: int
    clips: int
    choice: int = 1

    @property
    def name(self) -> str:
        return f"{self.width}x{self.height}" + (f"of{self.choice}" if self.choice > 1 else "")

    def seeds(self, shard: int) -> list[int]:
        """Return the seeds of a shard's scenes."""
        first = SEEDS[self.name] + shard * SHARD * self.choice
        return sorted(
            range(first, first + SHARD * self.choice),
            key=lambda seed: self.choice > 1 and world.scene(seed).shape != "star",
        )[:SHARD]


# Progressive resolution: the small sizes come first in training and are quick to encode.
LOW = (Plan(48, 64, 1536), Plan(64, 48, 256), Plan(48, 48, 256))
HIGH = (Plan(64, 96, 1920), Plan(96, 64, 256), Plan(64, 64, 256))
# For the end. With the clips of HIGH alone the loss on others was higher, at middling noise by a quarter; and of what
# was painted for held-out prompts 46 of 49 other shapes were right, but 4 of 15 stars.
MORE = (Plan(64, 96, 3072, 2), Plan(96, 64, 384, 2), Plan(64, 64, 384, 2))
SEEDS = {plan.name: 1_000_000 * (i + 1) for i, plan in enumerate((*LOW, *HIGH, *MORE))}  # no clip is in two sizes


def image_noise_augmentation(picture: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Add normal noise of a random strength, sigma = exp(N(-3, 0.5)), to a conditioning picture in -1..1.

    At use the picture comes clean: the model has learned to mistrust its finest detail, and so goes on from pictures
    that no VAE has made.
    """
    mean, deviation = IMAGE_NOISE
    sigma = torch.exp(mean + deviation * torch.randn((), generator=generator))
    return picture + sigma * torch.randn(picture.shape, generator=generator)


@torch.no_grad()
def encode_scenes(vae: AutoencoderKLCogVideoX, plan: Plan, seeds: list[int]) -> dict[str, torch.Tensor]:
    """Return latents of clips [N, 16, T, H, W] and of each one's first and last picture, clean and noisy.

    The pictures are [N, 4, 16, H, W].
    """
    pixels, pictures = [], []
    for seed in seeds:
        clip = to_pixels(world.render(world.scene(seed), world.FRAMES, plan.height, plan.width))
        generator = torch.Generator().manual_seed(seed)
        ends = [clip[:, :1], clip[:, -1:]]
        pixels.append(clip)
        pictures += [*ends, *(image_noise_augmentation(end, generator) for end in ends)]
    images = vae.encode(torch.stack(pictures)).mode()[:, :, 0].half()
    return {"video": vae.encode(torch.stack(pixels)).mode().half(), "images": images.unflatten(0, (len(seeds), -1))}


def build(folder: Path, vae: AutoencoderKLCogVideoX, plans: tuple[Plan, ...]) -> None:
    """Encode what is not yet in `folder`, shard by shard."""
    folder.mkdir(parents=True, exist_ok=True)
    for plan in plans:
        for shard in range(plan.clips // SHARD):
            path = folder / f"{plan.name}-{shard:03d}.pt"
            if path.exists():
                continue
            seeds = plan.seeds(shard)
            parts = [encode_scenes(vae, plan, seeds[i : i + TOGETHER]) for i in range(0, SHARD, TOGETHER)]
            values = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
            torch.save({"seeds": seeds, **values}, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
            print(f"latents: {path.name}", flush=True)


@dataclass
class Cached:
    """All clips of one size: scenes, latents [N, 16, T, H, W] and pictures [N, 4, 16, H, W], float16 and unscaled."""

    seeds: list[int]
    video: torch.Tensor
    images: torch.Tensor

    def __len__(self) -> int:
        return len(self.seeds)


def load(folder: Path, plan: Plan) -> Cached:
    """Read the shards of one size that are there."""
    paths = sorted(folder.glob(f"{plan.name}-*.pt"))
    if not paths:
        raise FileNotFoundError(f"There are no latents of {plan.name} in {folder}. Run the latents stage first.")
    shards = [torch.load(path, weights_only=True) for path in paths]
    return Cached(
        seeds=[seed for shard in shards for seed in shard["seeds"]],
        video=torch.cat([shard["video"] for shard in shards]),
        images=torch.cat([shard["images"] for shard in shards]),
    )
