"""TheDenk's ControlNet: a video of edges or the like steers the first blocks of the transformer.

github.com/TheDenk/cogvideox-controlnet. A short transformer of its own reads noisy latents and the control video, and
what comes out of its block i is added to the video tokens behind block i of the model. Module names are those of the
published files.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from .transformer import (
    Attention,
    CogVideoXBlock,
    CogVideoXPatchEmbed,
    Tables,
    TimestepEmbedding,
    scaled_dot_product,
    timestep_embedding,
)
from .variants import ControlNetConfig

NORM_GROUPS = 2  # of both GroupNorms in the hint encoder


def halve_frames(x: torch.Tensor) -> torch.Tensor:
    """Average neighbouring frames of x [B, C, F, H, W] in pairs; the first of an odd count stays as it is."""
    odd = x.shape[2] % 2
    pairs = x[:, :, odd:].unflatten(2, (-1, 2)).mean(dim=3)
    return torch.cat((x[:, :, :odd], pairs), dim=2)


class CogVideoXControlNet(nn.Module):
    """The branch beside a transformer of CogVideoX 1.0; `config` says its widths and depth."""

    def __init__(
        self,
        config: ControlNetConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = nn,
        attention: Attention = scaled_dot_product,
    ):
        super().__init__()
        factory = dict(dtype=dtype, device=device)
        self.config, self.dtype = config, dtype
        body = config.transformer
        widths = [config.hint_channels * config.hint_downscale**2 // divisor for divisor in (1, 2, 4)]
        self.controlnet_encode_first, self.controlnet_encode_second = (
            nn.Sequential(
                operations.Conv2d(before, after, kernel_size=1, **factory),
                operations.GroupNorm(NORM_GROUPS, after, **factory),
                nn.ReLU(),
            )
            for before, after in zip(widths, widths[1:], strict=False)
        )
        self.patch_embed = CogVideoXPatchEmbed(body, operations=operations, **factory)
        self.time_embedding = TimestepEmbedding(body.inner_dim, body.time_embed_dim, operations=operations, **factory)
        self.transformer_blocks = nn.ModuleList(
            [CogVideoXBlock(body, attention, operations=operations, **factory) for _ in range(body.num_layers)]
        )
        if config.out_proj_dim is not None:
            self.out_projectors = nn.ModuleList(
                [operations.Linear(body.inner_dim, config.out_proj_dim, **factory) for _ in range(body.num_layers)]
            )

    def encode_hint(self, hint: torch.Tensor) -> torch.Tensor:
        """Bring a control video [B, 3, F, 8 H, 8 W] in -1..1 to the rate and size of latents: [B, 48, T, H, W]."""
        batch = hint.shape[0]
        x = F.pixel_unshuffle(rearrange(hint, "b c f h w -> (b f) c h w"), self.config.hint_downscale)
        for encode in (self.controlnet_encode_first, self.controlnet_encode_second):
            x = halve_frames(rearrange(encode(x), "(b f) c h w -> b c f h w", b=batch))
            x = rearrange(x, "b c f h w -> (b f) c h w")
        return rearrange(x, "(b f) c h w -> b c f h w", b=batch)

    def forward(
        self, x: torch.Tensor, hint: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, tables: Tables
    ) -> list[torch.Tensor]:
        """Return what each block adds to the video tokens: [B, S, D] each, for x [B, 16, T, H, W] at `timestep` [B].

        `hint` [B, 48, T, H, W] comes from `encode_hint`, `tables` are the positions of the model beside it: rotary ones
        for every model that has them, fixed ones for 2B.
        """
        body, length = self.config.transformer, context.shape[1]
        rope, fixed = tables
        emb = self.time_embedding(timestep_embedding(timestep, body.inner_dim).to(x.dtype))
        x = self.patch_embed(torch.cat((x, hint), dim=1), context)  # [B, L + S, D]
        if fixed is not None:
            x = torch.cat((x[:, :length], x[:, length:] + fixed.to(x)), dim=1)
        states = []
        for index, block in enumerate(self.transformer_blocks):
            x = block(x, emb, length, rope, {})
            state = x[:, length:]
            # A copy: the next block overwrites x, and a host scales what it gets.
            states.append(state.clone() if self.config.out_proj_dim is None else self.out_projectors[index](state))
        return states
