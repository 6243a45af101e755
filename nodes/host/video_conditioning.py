"""Videos to raw facts in CONDITIONING: a masked video (Fun InP), a control video (Fun Control), VOID's two."""

from __future__ import annotations

import comfy.utils
import torch

from ...cogvideox.masks import three_levels, two_levels
from ...cogvideox.variants import LATENT_CHANNELS
from .conditioning import (
    CONTROL_VIDEO,
    KNOWN_FRAMES,
    MASKED_VIDEO,
    Span,
    VideoConditioning,
    augment,
    check_image,
    empty_latent,
    encode_video,
    fit,
    image_to_video,
    masked_latents,
)
from .vae import require_cogvideox_vae

PASS_1, PASS_2 = ("pass 1", "pass 2")


def inpaint_video(
    positive,
    negative,
    vae,
    width: int,
    height: int,
    length: int,
    batch_size: int,
    video: torch.Tensor,
    mask: torch.Tensor,
    span: Span | None = None,
    noise_augmentation: float = 0.0,
    noise_seed: int = 0,
    start_from_video: bool = False,
) -> VideoConditioning:
    """Condition on what of a video IMAGE [F, H, W, C] its MASK [F or 1, H, W] leaves (0); 1 is made anew."""
    vae, span = require_cogvideox_vae(vae), span or Span()
    latent = empty_latent(width, height, length, batch_size)
    fitted, notes = fit_video("video", video, width, height, length)
    unknown = fit_mask(mask, video, width, height, length)
    if start_from_video:
        latent["samples"] = encode_video(vae, fitted).expand(batch_size, -1, -1, -1, -1).clone()
    if unknown.all():  # VideoX-Fun leaves mask and video zero then: video from text
        masked = torch.zeros(1, 1 + LATENT_CHANNELS, *latent["samples"].shape[2:])
    else:
        known = torch.where(unknown[..., None], 0.0, fitted)
        known = augment(known, noise_augmentation, torch.Generator().manual_seed(noise_seed), keep_black=True)
        masked = masked_latents(vae, known, (~unknown).float()[None, None])
    values, without = {MASKED_VIDEO: masked * span.strength}, {MASKED_VIDEO: torch.zeros_like(masked)}
    return VideoConditioning(*span.attach((positive, negative), values, without), latent, "\n".join(notes))


def control_to_video(
    positive,
    negative,
    vae,
    width: int,
    height: int,
    length: int,
    batch_size: int,
    control_video: torch.Tensor,
    span: Span | None = None,
    start_image: torch.Tensor | None = None,
) -> VideoConditioning:
    """Condition on a control video IMAGE [F, H, W, C], and on a first frame where the model takes both."""
    vae, span = require_cogvideox_vae(vae), span or Span()
    latent = empty_latent(width, height, length, batch_size)
    fitted, notes = fit_video("control video", control_video, width, height, length)
    if start_image is not None:
        size = (width, height, length, batch_size)
        made = image_to_video(positive, negative, vae, *size, start_image=start_image)
        positive, negative, latent = made.positive, made.negative, made.latent
        notes += [made.note] if made.note else []
    control = encode_video(vae, fitted)
    values, without = {CONTROL_VIDEO: control * span.strength}, {CONTROL_VIDEO: torch.zeros_like(control)}
    return VideoConditioning(*span.attach((positive, negative), values, without), latent, "\n".join(notes))


def remove_from_video(
    positive,
    negative,
    vae,
    width: int,
    height: int,
    length: int,
    batch_size: int,
    video: torch.Tensor,
    quadmask: torch.Tensor,
    void_pass: str = PASS_1,
) -> VideoConditioning:
    """Condition VOID on a whole video IMAGE [F, H, W, C] and on what goes, MASK [F or 1, H, W] in VOID's levels.

    1 goes, 0.75 is both, 0.5 is affected, 0 stays. The mask is encoded as its authors' code does (netflix/void-model):
    1 - mask in three colours, on the VAE's own scale of -1 to 1, of which it uses the upper half.
    """
    vae = require_cogvideox_vae(vae)
    latent = empty_latent(width, height, length, batch_size)
    fitted, notes = fit_video("video", video, width, height, length)
    mask = fit_levels(quadmask, video, width, height, length, "area")
    levels = {PASS_1: three_levels, PASS_2: two_levels}[void_pass](mask)
    seen = (1 - levels + 1) / 2  # IMAGE for the VAE, which sees it times 2 minus 1
    seen = seen[..., None].expand(-1, -1, -1, 3)
    values = {
        "concat_latent_image": torch.cat((encode_video(vae, seen), encode_video(vae, fitted)), dim=1),
        "concat_mask": None,
        KNOWN_FRAMES: None,
    }
    return VideoConditioning(*Span().attach((positive, negative), values, {}), latent, "\n".join(notes))


def fit_video(name: str, video: torch.Tensor, width: int, height: int, length: int) -> tuple[torch.Tensor, list[str]]:
    """Return IMAGE [length, height, width, 3], scaled and cropped as images are, and what was done."""
    check_image(name, video)
    if video.shape[0] != length:
        raise ValueError(
            f"The {name} has {video.shape[0]} frames and length is {length}. "
            f"Set length to the frames of the {name}, or take {length} of them with Get Image from Batch."
        )
    return fit(name, video, width, height)


def fit_levels(
    mask: torch.Tensor, video: torch.Tensor, width: int, height: int, length: int, method: str = "bilinear"
) -> torch.Tensor:
    """Return a mask [length, height, width], scaled and cropped like its video; one frame is held for all."""
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim != 3 or 0 in mask.shape:
        raise ValueError(f"The mask is empty or none: its shape is {list(mask.shape)}. Connect a MASK.")
    if not torch.isfinite(mask).all():
        raise ValueError(
            "The mask holds invalid numbers (NaN). The node that made it failed; look at it with Preview Mask."
        )
    if mask.shape[0] not in (1, length):
        raise ValueError(
            f"The mask has {mask.shape[0]} frames and the video {length}. "
            "Give a mask for each frame, or one mask for all."
        )
    mask = mask.to(video.device, torch.float32)[:, None]
    size = video.shape[1:3]
    if mask.shape[2:] != size:
        mask = torch.nn.functional.interpolate(mask, size=size, mode=method)
    if tuple(size) != (height, width):
        mask = comfy.utils.common_upscale(mask, width, height, method, "center")
    return mask[:, 0].expand(length, -1, -1)


def fit_mask(mask: torch.Tensor, video: torch.Tensor, width: int, height: int, length: int) -> torch.Tensor:
    """Return what is unknown, booleans [length, height, width]: from 0.5 on, as VideoX-Fun does."""
    return fit_levels(mask, video, width, height, length) >= 0.5
