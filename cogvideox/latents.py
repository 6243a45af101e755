"""Arithmetic between pixels and latents: sizes, frame counts, scaling and the extra leading latent of 1.5."""

from __future__ import annotations

import torch

from .variants import LATENT_CHANNELS, SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION

# The VAE decodes two latent frames per chunk (diffusers `num_latent_frames_batch_size`), so only an odd latent count
# 2n + 1 decodes to the frame count it was asked for, 8n + 1.
FRAME_STEP = 2 * TEMPORAL_COMPRESSION
SIZE_STEP = SPATIAL_COMPRESSION * 2  # patch_size 2


def latent_frames(frames: int) -> int:
    """Return the latent frames T that hold `frames` pixel frames."""
    return (frames - 1) // TEMPORAL_COMPRESSION + 1


def latent_shape(width: int, height: int, frames: int) -> tuple[int, int, int]:
    """Return the latent frames, rows and columns (T, H, W) of a video in pixels."""
    return latent_frames(frames), height // SPATIAL_COMPRESSION, width // SPATIAL_COMPRESSION


def latent_index(frame: int) -> int:
    """Return which latent holds pixel frame `frame`: the first holds one, each other four."""
    return -(-frame // TEMPORAL_COMPRESSION)


def pixel_frames(latents: int) -> int:
    """Return the pixel frames the reference decoder makes of T latent frames: 4T - 3 for odd T, 4T for even T."""
    return latents * TEMPORAL_COMPRESSION - (TEMPORAL_COMPRESSION - 1 if latents % 2 else 0)


def _nearest(value: int, step: int, offset: int) -> str:
    lower = max((value - offset) // step * step + offset, offset or step)
    return str(lower) if lower >= value else f"{lower} or {lower + step}"


def check_frames(frames: int, mend: str = "Set length to {}.") -> None:
    """Raise ValueError unless `frames` is 8n + 1; `mend` is what to do about it, given the nearest counts that are."""
    if frames < 1 or frames % FRAME_STEP != 1:
        advice = mend.format(_nearest(frames, FRAME_STEP, 1))
        raise ValueError(
            f"CogVideoX makes videos of {FRAME_STEP}n + 1 frames (1, 9, 17 ... 49, 81), not {frames}. {advice}"
        )


def check_size(width: int, height: int) -> None:
    """Raise ValueError unless both sides divide by 16 px, naming the nearest sizes that do."""
    for name, value in (("width", width), ("height", height)):
        if value < SIZE_STEP or value % SIZE_STEP:
            raise ValueError(
                f"CogVideoX needs a {name} divisible by {SIZE_STEP}, not {value}. "
                f"Set {name} to {_nearest(value, SIZE_STEP, 0)}."
            )


def leading_frames(frames: int, patch_size_t: int | None) -> int:
    """Return how many latent frames must be put in front so that `frames` divides into temporal patches."""
    return -frames % (patch_size_t or 1)


def repeat_first_frame(latents: torch.Tensor, count: int) -> torch.Tensor:
    """Put `count` copies of the first latent frame in front: [B, C, T, H, W] -> [B, C, count + T, H, W]."""
    if count == 0:
        return latents
    return torch.cat((latents[:, :, :1].expand(-1, -1, count, -1, -1), latents), dim=2)


def repeat_last_frame(latents: torch.Tensor, count: int) -> torch.Tensor:
    """Put `count` copies of the last latent frame behind: [B, C, T, H, W] -> [B, C, T + count, H, W]."""
    if count == 0:
        return latents
    return torch.cat((latents, latents[:, :, -1:].expand(-1, -1, count, -1, -1)), dim=2)


def check_latent_size(latents: torch.Tensor, patch_size: int) -> None:
    """Raise ValueError unless latents are [B, 16, T, H, W] with H and W divisible by `patch_size`."""
    if latents.ndim != 5 or latents.shape[1] != LATENT_CHANNELS:
        raise ValueError(
            f"CogVideoX samples video latents with {LATENT_CHANNELS} channels and got {list(latents.shape)}. "
            "Connect Empty CogVideoX Latent Video, or a video encoded with CogVideoX VAE Encode."
        )
    height, width = latents.shape[3:]
    if height % patch_size or width % patch_size:
        check_size(width * SPATIAL_COMPRESSION, height * SPATIAL_COMPRESSION)
