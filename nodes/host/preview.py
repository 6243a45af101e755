"""Rough colours of latents while sampling."""

from __future__ import annotations

import torch

# Red, green and blue of each channel of an unscaled latent, for values in -1..1. Figures of the older pack's preview
# (kijai/ComfyUI-CogVideoXWrapper at fdb8abd, pipeline_cogvideox.py), which applies them to five times the scaled one.
PREVIEW_FACTORS = [
    [0.1119, 0.1432, 0.0055],
    [0.0193, 0.0183, -0.0196],
    [0.0044, -0.0563, 0.0876],
    [0.0616, 0.0129, -0.0021],
    [0.0016, 0.0214, 0.0030],
    [-0.0369, -0.0113, -0.0310],
    [-0.0005, 0.0357, -0.0004],
    [0.0727, -0.0058, 0.0235],
    [0.0194, 0.0341, 0.0066],
    [0.0425, 0.0864, 0.1302],
    [0.0036, 0.0694, 0.0345],
    [0.0238, -0.0037, -0.0246],
    [0.0012, 0.0187, -0.0646],
    [-0.0317, -0.0395, 0.0148],
    [0.0089, 0.0883, -0.0021],
    [-0.0390, 0.0064, 0.0978],
]
PREVIEW_BIAS = [-0.023, 0.0, -0.017]


class FrameCycle:
    """Give the host's preview another latent frame each step, so that the picture in the node moves.

    The host asks a latent format for one 2D picture per step and takes frame 0 of a video; this hands it the frame.
    """

    def __init__(self, latent_scale: float):
        self.latent_scale = latent_scale
        self.shown = -1

    def __call__(self, x0: torch.Tensor) -> torch.Tensor:
        """Return the next frame of x0 [B, C, T, H, W], unscaled: [B, C, H, W]."""
        self.shown = (self.shown + 1) % x0.shape[2]
        return x0[:, :, self.shown] / self.latent_scale
