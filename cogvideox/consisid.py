"""ConsisID: a person who stays the same (arXiv 2411.17440, github.com/PKU-YuanGroup/ConsisID).

A perceiver turns features of a face into a few tokens, and every second block lets the video look at them. Module names
are those of diffusers' checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

# Widths of a head, which no shape tells: `LFE_dim_head` and `cross_attn_dim_head` of transformer/config.json.
EXTRACTOR_HEAD_DIM, CROSS_HEAD_DIM = 64, 128


@dataclass(frozen=True)
class ConsisIDConfig:
    """Shape of the branch; names are those of diffusers' LocalFacialExtractor and PerceiverCrossAttention.

    `id_dim` is the width of the identity embedding, `vit_dim` that of the `num_scale` maps of the vision tower.
    """

    inner_dim: int
    num_cross_attn: int
    id_dim: int = 1280
    vit_dim: int = 1024
    depth: int = 10
    extractor_dim: int = 1024
    num_id_token: int = 5
    num_queries: int = 32
    output_dim: int = 2048
    ff_mult: int = 4
    num_scale: int = 5
    cross_dim: int = 2048


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Attend with heads `head_dim` wide: [B, N, heads * head_dim] and twice [B, M, ...] -> like the first."""
    q, k, v = (rearrange(part, "b s (n d) -> b n s d", d=head_dim) for part in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b n s d -> b s (n d)")


class PerceiverAttention(nn.Module):
    """Queries [B, N, D] that look at features [B, M, `kv_dim`], and with `joint` at themselves as well."""

    def __init__(self, dim: int, inner_dim: int, head_dim: int, kv_dim: int, joint: bool, *, operations, **factory):
        super().__init__()
        self.head_dim, self.joint = head_dim, joint
        self.norm1 = operations.LayerNorm(kv_dim, **factory)
        self.norm2 = operations.LayerNorm(dim, **factory)
        self.to_q = operations.Linear(dim, inner_dim, bias=False, **factory)
        self.to_kv = operations.Linear(kv_dim, 2 * inner_dim, bias=False, **factory)
        self.to_out = operations.Linear(inner_dim, dim, bias=False, **factory)

    def forward(self, features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        features, x = self.norm1(features), self.norm2(x)
        if self.joint:
            features = torch.cat((features, x), dim=1)
        return self.to_out(attend(self.to_q(x), *self.to_kv(features).chunk(2, dim=-1), self.head_dim))


class LocalFacialExtractor(nn.Module):
    """Identity tokens [B, queries, output_dim] from an embedding [B, id_dim] and maps of a vision tower."""

    def __init__(self, config: ConsisIDConfig, *, operations, **factory):
        super().__init__()
        self.config = config
        dim = config.vit_dim
        self.latents = nn.Parameter(torch.empty(1, config.num_queries, dim, **factory))
        self.proj_out = nn.Parameter(torch.empty(dim, config.output_dim, **factory))
        factory["operations"] = operations
        attention = (dim, config.extractor_dim, EXTRACTOR_HEAD_DIM, dim, True)
        self.layers = nn.ModuleList(
            [
                nn.ModuleList([PerceiverAttention(*attention, **factory), feed_forward(dim, config.ff_mult, **factory)])
                for _ in range(config.depth)
            ]
        )
        for scale in range(config.num_scale):
            setattr(self, f"mapping_{scale}", mapping(dim, dim, dim, **factory))
        self.id_embedding_mapping = mapping(config.id_dim, dim, dim * config.num_id_token, **factory)

    def forward(self, embedding: torch.Tensor, maps: list[torch.Tensor]) -> torch.Tensor:
        config = self.config
        identity = self.id_embedding_mapping(embedding).unflatten(-1, (config.num_id_token, -1))
        x = torch.cat((self.latents.to(identity).expand(len(identity), -1, -1), identity), dim=1)
        each = config.depth // config.num_scale
        for scale, features in enumerate(maps):
            features = torch.cat((identity, getattr(self, f"mapping_{scale}")(features)), dim=1)
            for attention, feed in self.layers[scale * each : (scale + 1) * each]:
                x = x + attention(features, x)
                x = x + feed(x)
        return x[:, : config.num_queries] @ self.proj_out.to(x)


def feed_forward(dim: int, mult: int, *, operations, **factory) -> nn.Sequential:
    """Norm and two linear layers without biases, `mult` times as wide between them."""
    return nn.Sequential(
        operations.LayerNorm(dim, **factory),
        operations.Linear(dim, dim * mult, bias=False, **factory),
        nn.GELU(),
        operations.Linear(dim * mult, dim, bias=False, **factory),
    )


def mapping(before: int, between: int, after: int, *, operations, **factory) -> nn.Sequential:
    """Three linear layers with norms and leaky ReLUs between them."""
    return nn.Sequential(
        operations.Linear(before, between, **factory),
        operations.LayerNorm(between, **factory),
        nn.LeakyReLU(),
        operations.Linear(between, between, **factory),
        operations.LayerNorm(between, **factory),
        nn.LeakyReLU(),
        operations.Linear(between, after, **factory),
    )


class ConsisID(nn.Module):
    """The extractor and the attention behind every second block."""

    def __init__(self, config: ConsisIDConfig, *, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        factory = dict(dtype=dtype, device=device, operations=operations)
        self.config, self.dtype = config, dtype
        self.local_facial_extractor = LocalFacialExtractor(config, **factory)
        attention = (config.inner_dim, config.cross_dim, CROSS_HEAD_DIM, config.output_dim, False)
        self.perceiver_cross_attention = nn.ModuleList(
            [PerceiverAttention(*attention, **factory) for _ in range(config.num_cross_attn)]
        )
