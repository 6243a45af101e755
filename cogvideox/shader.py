"""Diffusion as Shader: a video of coloured 3D points steers image-to-video (arXiv 2501.03847).

github.com/IGL-HKUST/DiffusionAsShader. Copies of the first blocks read the tracking video's tokens beside the video's
own, with its text, and each adds what it makes of them. Module names are those of the published files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .transformer import Attention, CogVideoXBlock, scaled_dot_product
from .variants import TransformerConfig


@dataclass(frozen=True)
class ShaderConfig:
    """Shape of the branch: blocks like those of `transformer`, as many as its `num_layers` says."""

    transformer: TransformerConfig


class DiffusionAsShader(nn.Module):
    """The copied blocks and the linear layers that join them to the transformer."""

    def __init__(
        self,
        config: ShaderConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = nn,
        attention: Attention = scaled_dot_product,
    ):
        super().__init__()
        factory = dict(dtype=dtype, device=device)
        self.config, self.dtype = config, dtype
        dim, layers = config.transformer.inner_dim, range(config.transformer.num_layers)
        self.initial_combine_linear = operations.Linear(dim, dim, **factory)
        self.transformer_blocks_copy = nn.ModuleList(
            [CogVideoXBlock(config.transformer, attention, operations=operations, **factory) for _ in layers]
        )
        self.combine_linears = nn.ModuleList([operations.Linear(dim, dim, **factory) for _ in layers])

    def begin(self, video: torch.Tensor, tracking: torch.Tensor) -> torch.Tensor:
        """Return the branch's first tokens [B, S, D] from those of the video and of the tracking video."""
        return self.initial_combine_linear(video + tracking)

    def step(
        self, index: int, x: torch.Tensor, text: torch.Tensor, emb: torch.Tensor, rope: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the branch's tokens x [B, S, D] behind copy `index`; they are also what the video gets.

        `text` [B, L, D] are the transformer's text tokens behind its own block `index`.
        """
        length = text.shape[1]
        x = self.transformer_blocks_copy[index](torch.cat((text, x), dim=1), emb, length, rope, {})
        return self.combine_linears[index](x[:, length:])
