"""What a video of some size asks of the machine, in one line for the node."""

from __future__ import annotations

import torch

from ...cogvideox.latents import check_size, latent_shape
from ...cogvideox.sizes import MODELS, SAME, fitting_size, is_trained, nearest_length, token_count
from ...cogvideox.variants import LATENT_CHANNELS
from .conditioning import check_image
from .model import WORKING_WIDTHS
from .vae import decode_memory

BYTES = 2  # of a number in bfloat16
GB = 1e9


def choose_size(
    model: str, fit: str, seconds: float, base: int, image: torch.Tensor | None
) -> tuple[int, int, int, str]:
    """Return width, height and length of the video to make, and what is to be said of it; IMAGE [N, H, W, C]."""
    if fit == SAME and image is None:
        raise ValueError(
            "CogVideoX Resolution has no image whose size it could take. Connect image, or set size to trained size."
        )
    if image is not None:
        check_image("image", image)
    width, height = fitting_size(model, fit, None if image is None else (image.shape[2], image.shape[1]), base)
    check_size(width, height)
    length = nearest_length(seconds * MODELS[model].fps)
    return width, height, length, estimate(model, width, height, length)


def estimate(model: str, width: int, height: int, length: int) -> str:
    """Say what a video is in latents and tokens, and the memory it needs, as the loaded model would tell the host."""
    sizes = MODELS[model]
    frames, rows, columns = latent_shape(width, height, length)
    tokens = token_count(model, width, height, length)
    sampling = WORKING_WIDTHS * sizes.transformer.inner_dim * tokens * BYTES / GB
    decoding = decode_memory((1, LATENT_CHANNELS, frames, rows, columns), torch.bfloat16) / GB
    known = "" if is_trained(model, width, height) else " Not a size it was trained on."
    return (
        f"{width}x{height}, {length} frames ({length / sizes.fps:.1f} s): {frames}x{rows}x{columns} latents, "
        f"{tokens} tokens. "
        f"About {sizes.weights * BYTES:.1f} GB of weights in bf16, {sampling:.1f} GB a prompt to sample, "
        f"{decoding:.1f} GB to decode.{known}"
    )
