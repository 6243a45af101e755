"""What the VAE nodes do: whole frames, slabs or tiles, mode or sample."""

from __future__ import annotations

import comfy.model_management
import torch

from ...cogvideox.latents import check_frames, check_size
from .conditioning import check_image
from .progress import reported
from .vae import VAE, check_latents, decode_memory, require_cogvideox_vae, slab_memory

AUTO, WHOLE, SLABS, TILES = MEMORY_MODES = ("auto", "whole frame", "slabs", "tiles")


@reported("CogVideoX VAE Decode")
def decode(vae, latents: torch.Tensor, memory: str = AUTO) -> torch.Tensor:
    """Decode [B, 16, T, H, W] to IMAGE [B * F, 8H, 8W, 3] by one of MEMORY_MODES."""
    vae = require_cogvideox_vae(vae)
    check_latents(latents)
    run = {WHOLE: vae.decode, SLABS: vae.decode_in_slabs, TILES: vae.decode_tiled}
    images = run[fitting(vae, latents) if memory == AUTO else memory](latents)  # [B, F, 8H, 8W, 3]
    return images.flatten(0, 1)


def fitting(vae: VAE, latents: torch.Tensor) -> str:
    """Return the fastest exact mode the device has room for, or tiles; the host frees all it holds for them."""
    room = comfy.model_management.get_total_memory(vae.device) - vae.model_size()
    for mode, memory in ((WHOLE, decode_memory), (SLABS, slab_memory)):
        if memory(latents.shape, vae.vae_dtype) < room:
            return mode
    return TILES


@reported("CogVideoX VAE Encode")
def encode(vae, images: torch.Tensor, seed: int | None = None) -> torch.Tensor:
    """Encode IMAGE [F, H, W, 3] to latents [1, 16, T, H/8, W/8]: the posterior's mode, or a draw fixed by `seed`."""
    vae = require_cogvideox_vae(vae)
    check_image("video", images)
    check_size(images.shape[2], images.shape[1])
    check_frames(images.shape[0], "Take {} of the video's frames, for example with Get Image from Batch.")
    return (vae if seed is None else vae.sampled(seed)).encode(images[..., :3])
