"""Masks of videos as the inpainting models were trained to see them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

AFFECTED = 127 / 255  # VOID's level for what the removed object touches, as its training wrote it


def resize_mask(mask: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Scale a mask [B, 1, F, H, W] to latents (T, h, w), the first frame by itself (VideoX-Fun `resize_mask`).

    Behind the first frame each latent gets the mean of the second and third of its four frames, so that a single frame
    at its end, such as a last frame to arrive at, leaves no mark.
    """
    frames, height, width = size
    first = _scaled(mask[:, :, :1], (1, height, width))
    if frames == 1:
        return first
    return torch.cat((first, _scaled(mask[:, :, 1:], (frames - 1, height, width))), dim=2)


def _scaled(mask: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
    return F.interpolate(mask, size=size, mode="trilinear", align_corners=False)


def quad_levels(mask: torch.Tensor) -> torch.Tensor:
    """Return VOID's four levels of a mask, 1 where something goes: 1, 192/255 (both), 128/255 (affected) and 0."""
    grey = 255 - 255 * mask  # as VOID's mask videos have it: 0 goes, 63 both, 127 affected, 255 stays
    levels = torch.where(grey <= 191, 127.0, 255.0)
    levels = torch.where(grey <= 95, 63.0, levels)
    return (255 - torch.where(grey <= 31, 0.0, levels)) / 255


def three_levels(mask: torch.Tensor) -> torch.Tensor:
    """Return the mask of VOID's pass 1: 1 and both go, affected is its own level, 0 stays."""
    mask = quad_levels(mask)
    return torch.where(mask > 0.75, 1.0, torch.where(mask < 0.25, 0.0, AFFECTED))


def two_levels(mask: torch.Tensor) -> torch.Tensor:
    """Return the mask of VOID's pass 2: what is affected goes as well, the rest stays."""
    return (quad_levels(mask) > 0.5).to(mask)
