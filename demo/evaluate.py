"""Paint held-out prompts and let the detector say what came."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..cogvideox import schedule
from ..cogvideox.samplers import SAMPLERS
from ..cogvideox.vae import AutoencoderKLCogVideoX
from . import detector, text, world
from .mini import FRAMES, HEIGHT, SNR_SHIFT, WIDTH, model_input, new_vae
from .runs import to_frames
from .train_vae import psnr, to_pixels

GUIDANCE = 4.0
STEPS = 30
BATCH = 8
TRAITS = ("colour", "direction", "shape")


def load_vae(folder: Path) -> AutoencoderKLCogVideoX:
    """Return the VAE as its last checkpoint has it."""
    vae = new_vae()
    vae.load_state_dict(torch.load(folder / "vae.pt", map_location="cpu", weights_only=True)["parts"]["vae"])
    return vae.eval().requires_grad_(False)


class Painter:
    """Text and pictures to videos, with the samplers and the schedule of the pack.

    `model(x, timestep, tokens)` predicts the velocity of x [B, 32, T, H, W].
    """

    def __init__(self, vae: AutoencoderKLCogVideoX, model: Callable, latent_scale: float):
        self.vae, self.model, self.latent_scale = vae, model, latent_scale
        self.sigmas = schedule.sigmas(SNR_SHIFT)
        self.alphas = schedule.alphas_cumprod(SNR_SHIFT).float()

    def encode_image(self, image: np.ndarray) -> torch.Tensor:
        """Uint8 [H, W, 3] to scaled latents [16, H/8, W/8]."""
        return self.vae.encode(to_pixels(image[None])[None]).mode()[0, :, 0] * self.latent_scale

    @torch.no_grad()
    def paint(
        self,
        prompts: list[str],
        seeds: list[int],
        height: int = HEIGHT,
        width: int = WIDTH,
        frames: int = FRAMES,
        first: list[np.ndarray] | None = None,
        last: list[np.ndarray] | None = None,
        steps: int = STEPS,
        guidance: float = GUIDANCE,
        sampler: str = "ddim",
    ) -> list[np.ndarray]:
        """Return a video uint8 [F, H, W, 3] for each prompt, given pictures to begin and end with if any."""
        shape = (16, (frames - 1) // 4 + 1, height // 8, width // 8)
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        known = torch.zeros_like(noise)
        for images, at in ((first, 0), (last, -1)):
            if images is not None:
                known[:, :, at] = torch.stack([self.encode_image(image) for image in images])
        numbers = text.pad([text.tokens(prompt) for prompt in prompts])
        both = torch.cat((text.pad([[text.END]] * len(prompts)), numbers))

        def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            t = int((self.sigmas - sigma[0]).abs().argmin())
            a = self.alphas[t]
            x = x / (1 + sigma[0] ** 2).sqrt()
            entry = model_input(x, known).repeat(2, 1, 1, 1, 1)
            without, given = self.model(entry, torch.full((len(both),), t), both).chunk(2)
            velocity = without + guidance * (given - without)
            return a.sqrt() * x - (1 - a).sqrt() * velocity

        levels = schedule.trailing_sigmas(self.sigmas, steps)
        start = noise * (1 + levels[0] ** 2).sqrt()
        latents = SAMPLERS[sampler](denoise, start, levels) / self.latent_scale
        return [to_frames(self.vae.decode(one[None])[0]) for one in latents]


def text_to_video(
    painter: Painter, count: int, style: str, height: int = HEIGHT, width: int = WIDTH, **options
) -> dict:
    """Paint `count` held-out moving shapes told in a style; return the share of right colours, directions, shapes."""
    whats = [world.scene(seed, "test", "move") for seed in range(count)]
    right, videos = {trait: [] for trait in TRAITS}, []
    for start in range(0, count, BATCH):
        part = whats[start : start + BATCH]
        prompts = [world.caption(what, style, 1000 + start + i) for i, what in enumerate(part)]
        seeds = list(range(start, start + len(part)))
        for what, video in zip(part, painter.paint(prompts, seeds, height, width, **options), strict=True):
            seen = detector.measure(video)
            for trait in TRAITS:
                right[trait].append(getattr(seen, trait) == getattr(what, trait))
            videos.append(video)
    return {**{trait: float(np.mean(hits)) for trait, hits in right.items()}, "videos": videos}


def image_to_video(painter: Painter, count: int, given: tuple[str, ...] = ("first",), **options) -> dict:
    """Paint between true frames ("first", "last" or both); return PSNR at each given one, and right directions."""
    whats = [world.scene(seed, "test", "move") for seed in range(count)]
    at = {"first": 0, "last": -1}
    hits, videos, quality = [], [], {name: [] for name in given}
    for start in range(0, count, BATCH):
        part = whats[start : start + BATCH]
        truth = [world.render(what) for what in part]
        prompts = [world.caption(what, "short", 2000 + start + i) for i, what in enumerate(part)]
        images = {name: [video[at[name]] for video in truth] for name in given}
        seeds = list(range(start, start + len(part)))
        for what, true, video in zip(part, truth, painter.paint(prompts, seeds, **images, **options), strict=True):
            hits.append(detector.measure(video).direction == what.direction)
            for name in given:
                quality[name].append(frame_psnr(true[at[name]], video[at[name]]))
            videos.append(video)
    means = {f"{name} frame": float(np.mean(values)) for name, values in quality.items()}
    return {"direction": float(np.mean(hits)), **means, "videos": videos}


def frame_psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB of two pictures uint8 [H, W, 3]."""
    return psnr(float(np.mean((one / 127.5 - other / 127.5) ** 2)))
