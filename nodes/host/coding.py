"""What the VAE nodes do: whole frames or tiles, mode or sample."""

from __future__ import annotations

import comfy.model_management
import torch

from ...cogvideox.latents import check_frames, check_size
from .conditioning import check_image
from .vae import VAE, check_latents, decode_memory, require_cogvideox_vae

AUTO, WHOLE, TILES = MEMORY_MODES = ("auto", "whole frame", "tiles")


def decode(vae, latents: torch.Tensor, memory: str = AUTO) -> torch.Tensor:
    """Decode [B, 16, T, H, W] to IMAGE [B * F, 8H, 8W, 3], in tiles where asked or where whole frames do not fit."""
    vae = require_cogvideox_vae(vae)
    check_latents(latents)
    if memory == AUTO:
        memory = WHOLE if fits(vae, latents) else TILES
    images = vae.decode(latents) if memory == WHOLE else vae.decode_tiled(latents)  # [B, F, 8H, 8W, 3]
    return images.flatten(0, 1)


def fits(vae: VAE, latents: torch.Tensor) -> bool:
    """Say whether the device has room for whole frames; the host frees all it holds for them."""
    needed = decode_memory(latents.shape, vae.vae_dtype) + vae.model_size()
    return needed < comfy.model_management.get_total_memory(vae.device)


def encode(vae, images: torch.Tensor, seed: int | None = None) -> torch.Tensor:
    """Encode IMAGE [F, H, W, 3] to latents [1, 16, T, H/8, W/8]: the posterior's mode, or a draw fixed by `seed`."""
    vae = require_cogvideox_vae(vae)
    check_image("video", images)
    check_size(images.shape[2], images.shape[1])
    check_frames(images.shape[0], "Take {} of the video's frames, for example with ImageFromBatch.")
    return (vae if seed is None else vae.sampled(seed)).encode(images[..., :3])
