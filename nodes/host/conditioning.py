"""Images to raw facts in CONDITIONING: VAE latents, unscaled, and a mask of what they do not know."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_management
import comfy.utils
import node_helpers
import torch

from ...cogvideox.latents import check_frames, check_size, latent_frames
from ...cogvideox.variants import LATENT_CHANNELS, SPATIAL_COMPRESSION
from .vae import require_cogvideox_vae

NOISE_SEED = 0  # of the noise augmentation: the same images give the same conditioning


@dataclass(frozen=True)
class ImageConditioning:
    """Conditioning of an image-to-video run, the empty LATENT to sample, and what was done to the images."""

    positive: list
    negative: list
    latent: dict
    note: str


def empty_latent(width: int, height: int, length: int, batch_size: int) -> dict:
    """Return the LATENT of a video to make: zeros [B, 16, T, H/8, W/8]. Sizes in px, `length` in frames."""
    check_size(width, height)
    check_frames(length)
    shape = (
        batch_size,
        LATENT_CHANNELS,
        latent_frames(length),
        height // SPATIAL_COMPRESSION,
        width // SPATIAL_COMPRESSION,
    )
    return {"samples": torch.zeros(shape, device=comfy.model_management.intermediate_device())}


def image_to_video(
    positive,
    negative,
    vae,
    width: int,
    height: int,
    length: int,
    batch_size: int,
    start_image: torch.Tensor | None = None,
    end_image: torch.Tensor | None = None,
    noise_augmentation: float = 0.0,
) -> ImageConditioning:
    """Condition on a first frame, a last frame or both (IMAGE [N, H, W, C]); N images make N videos."""
    vae = require_cogvideox_vae(vae)
    if start_image is None and end_image is None:
        raise ValueError("CogVideoX Image to Video has no image. Connect start_image, end_image or both.")
    images = {"start image": start_image, "end image": end_image}
    images = {name: image for name, image in images.items() if image is not None}
    for name, image in images.items():
        check_image(name, image)
    batch = batch_of(images, batch_size)
    latent = empty_latent(width, height, length, batch)
    frames = latent["samples"].shape[2]
    if len(images) == 2 and frames == 1:
        raise ValueError("A video of 1 frame cannot both start and end with an image. Set length to 9 or more.")

    notes = []
    known = torch.zeros_like(latent["samples"])
    mask = torch.ones_like(known[:, :1])
    for name, image in images.items():
        fitted, note = fit(name, image, width, height)
        notes += note
        frame = 0 if name == "start image" else frames - 1
        latents = encode_frames(vae, augment(fitted, noise_augmentation))
        known[:, :, frame] = comfy.utils.repeat_to_batch_size(latents, batch)
        mask[:, :, frame] = 0
    values = {"concat_latent_image": known, "concat_mask": mask}
    return ImageConditioning(
        node_helpers.conditioning_set_values(positive, values),
        node_helpers.conditioning_set_values(negative, values),
        latent,
        "\n".join(notes),
    )


def batch_of(images: dict[str, torch.Tensor], batch_size: int) -> int:
    """Return how many videos the images and `batch_size` ask for, or raise where they disagree."""
    counts = {image.shape[0] for image in images.values()} | {batch_size}
    batch = max(counts)
    if counts - {1, batch}:
        given = ", ".join(f"{image.shape[0]} of {name}" for name, image in images.items())
        raise ValueError(
            f"The images do not pair up: {given}, batch_size {batch_size}. "
            "Give one image for all videos or one for each."
        )
    return batch


def check_image(name: str, image: torch.Tensor) -> None:
    """Raise unless IMAGE [N, H, W, C] holds at least one RGB picture of finite numbers."""
    if image.ndim != 4 or 0 in image.shape or image.shape[-1] < 3:
        raise ValueError(f"The {name} is empty or no RGB picture: its shape is {list(image.shape)}.")
    if not torch.isfinite(image).all():
        raise ValueError(
            f"The {name} holds invalid numbers (NaN). The node that made it failed; look at it with Preview Image."
        )


def fit(name: str, image: torch.Tensor, width: int, height: int) -> tuple[torch.Tensor, list[str]]:
    """Scale IMAGE [N, H, W, C] to fill the video and crop the rest around the centre; say so."""
    image = image[..., :3]
    old_height, old_width = image.shape[1:3]
    if (old_width, old_height) == (width, height):
        return image, []
    fitted = comfy.utils.common_upscale(image.movedim(-1, 1), width, height, "lanczos", "center").movedim(1, -1)
    cropped = "" if old_width * height == old_height * width else ", cropped around the centre"
    return fitted, [f"{name}: {old_width}x{old_height} to {width}x{height}{cropped}"]


def augment(image: torch.Tensor, strength: float) -> torch.Tensor:
    """Add normal noise of deviation `strength`, in units of pixels in -1..1, as in training (arXiv 2408.06072)."""
    if strength == 0:
        return image
    generator = torch.Generator().manual_seed(NOISE_SEED)
    noise = torch.randn(image.shape, generator=generator)
    return image + noise.to(image) * (strength / 2)  # IMAGE spans 0..1, half of the VAE's -1..1


def encode_frames(vae, images: torch.Tensor) -> torch.Tensor:
    """Encode pictures [N, H, W, 3], each on its own, to latents [N, 16, H/8, W/8]."""
    return torch.cat([vae.encode(image[None])[:, :, 0] for image in images])
