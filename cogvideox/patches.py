"""The arithmetic of patches that trade exactness for speed, or faithfulness for motion that holds together.

TeaCache (arXiv 2411.19108), first block cache (ParaAttention, github.com/chengzeyi/ParaAttention) and Enhance-A-Video
(arXiv 2502.07508).
"""

from __future__ import annotations

import torch

from .positions import Grid
from .variants import (
    COGVIDEOX_2B,
    COGVIDEOX_5B,
    COGVIDEOX_5B_I2V,
    COGVIDEOX_15_5B,
    COGVIDEOX_15_5B_I2V,
    TransformerConfig,
    Variant,
)

TEACACHE, FIRST_BLOCK = STEP_CACHE_MODES = ("teacache", "first block cache")

# `coefficients_dict` of TeaCache4CogVideoX1.5/teacache_sample_video.py (github.com/ali-vilab/TeaCache), highest power
# first: from the change of the time embedding to that of the prediction.
_5B = (-1538.80483, 843.202495, -134.363087, 7.97131516, -0.0523162339)
TEACACHE_POLYNOMIALS = {
    COGVIDEOX_2B: (-31.0658903, 25.4732368, -5.92380459, 1.75769064, -0.00361568434),
    COGVIDEOX_5B: _5B,
    COGVIDEOX_5B_I2V: _5B,
    COGVIDEOX_15_5B: (250.210439, -165.061612, 35.7804877, -0.781551492, 0.0358559703),
    COGVIDEOX_15_5B_I2V: (122.842302, -104.088754, 26.2981677, -0.306009921, 0.037121322),
}


def teacache_model(config: TransformerConfig) -> tuple[Variant, bool]:
    """Return the model whose TeaCache polynomial fits `config` best, and whether it was published for this very one."""
    shape = architecture(config)
    for variant in TEACACHE_POLYNOMIALS:
        if architecture(variant.transformer) == shape:
            return variant, True
    if not config.use_rotary_positional_embeddings:
        return COGVIDEOX_2B, False
    if config.patch_size_t is None:
        return COGVIDEOX_5B, False
    return COGVIDEOX_15_5B_I2V if config.ofs_embed_dim else COGVIDEOX_15_5B, False


def architecture(config: TransformerConfig) -> tuple:
    """Return what tells the released transformers apart, sizes of training left out."""
    return (
        config.num_layers,
        config.num_attention_heads,
        config.in_channels,
        config.patch_size_t,
        config.ofs_embed_dim,
        config.use_rotary_positional_embeddings,
        config.use_learned_positional_embeddings,
    )


def relative_change(now: torch.Tensor, before: torch.Tensor) -> float:
    """Return the mean of |now - before| over that of |before|."""
    return float((now - before).abs().mean() / before.abs().mean())


def polynomial(coefficients: tuple[float, ...], x: float) -> float:
    """Return the polynomial at x, coefficients from the highest power down."""
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


def cross_frame_scale(q: torch.Tensor, k: torch.Tensor, grid: Grid, text_tokens: int, weight: float) -> torch.Tensor:
    """Return max(1, (T + weight) * intensity) of each video [B], for q and k [B, heads, L + T*H*W, head_dim].

    The intensity (Enhance-A-Video, section 3) is the mean attention between different frames at the same place. T are
    the frames that the tokens hold, half the latent frames where patches are temporal.
    """
    frames = grid[0]
    if frames == 1:
        return q.new_ones(q.shape[0])
    q, k = (part[:, :, text_tokens:].unflatten(2, (frames, -1)).transpose(2, 3) for part in (q, k))
    logits = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).float()  # [B, heads, H*W, T, T]
    to_itself = (logits.diagonal(dim1=-2, dim2=-1) - logits.logsumexp(dim=-1)).exp()  # [B, heads, H*W, T]
    # A row of attention sums to 1, so what does not stay in the frame is spread over the T - 1 others.
    intensity = (1 - to_itself.mean(dim=(1, 2, 3))) / (frames - 1)
    return ((frames + weight) * intensity).clamp(min=1)
