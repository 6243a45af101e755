"""The expert transformer of CogVideoX (arXiv 2408.06072, section 2.2).

Text and video are one sequence [text, video] under full 3D attention; adaptive LayerNorm modulates each modality with
its own numbers ("expert"). Module names are those of the diffusers checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from .latents import leading_frames, repeat_first_frame
from .positions import Grid, apply_rope, fit_learned_table, rope_positions, rope_table, shift_positions, sincos_table
from .variants import TransformerConfig

QK_NORM_EPS = 1e-6  # diffusers attn1.norm_q / norm_k of every released model
MAX_PERIOD = 10000.0
FF_MULT = 4

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]], torch.Tensor]
Tables = tuple[torch.Tensor | None, torch.Tensor | None]  # rotary [2, L + S, head_dim], fixed [S, D]


def scaled_dot_product(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """Attend with PyTorch's own kernel: three [B, heads, S, head_dim] -> [B, S, heads * head_dim]."""
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b n s d -> b s (n d)")


def timestep_embedding(timestep: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the sinusoid of `timestep` [B] as float32 [B, dim], cosines first."""
    half = dim // 2
    frequencies = torch.exp(
        -math.log(MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    )
    angle = timestep[:, None].float() * frequencies
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


class TimestepEmbedding(nn.Module):
    """Two linear layers that turn a sinusoid [B, in_dim] into an embedding [B, dim]."""

    def __init__(self, in_dim: int, dim: int, *, operations, **factory):
        super().__init__()
        self.linear_1 = operations.Linear(in_dim, dim, **factory)
        self.linear_2 = operations.Linear(dim, dim, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class CogVideoXPatchEmbed(nn.Module):
    """Turn latents [B, C, T, H, W] and text [B, L, text width] into one sequence [B, L + S, D]."""

    def __init__(self, config: TransformerConfig, *, operations, **factory):
        super().__init__()
        self.patch_size, self.patch_size_t = config.patch_size, config.patch_size_t
        p, dim = config.patch_size, config.inner_dim
        if config.patch_size_t is None:
            self.proj = operations.Conv2d(
                config.in_channels, dim, kernel_size=p, stride=p, bias=config.patch_bias, **factory
            )
        else:
            # `patch_bias` is false in the published 1.5 configs and yet their weights hold the bias.
            self.proj = operations.Linear(config.in_channels * config.patch_size_t * p * p, dim, **factory)
        self.text_proj = operations.Linear(config.text_embed_dim, dim, **factory)
        if config.use_learned_positional_embeddings:
            rows = config.max_text_seq_length + math.prod(config.sample_grid)
            self.pos_embedding = nn.Parameter(torch.empty(1, rows, dim, **factory))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        batch, p = x.shape[0], self.patch_size
        if self.patch_size_t is None:
            x = self.proj(rearrange(x, "b c t h w -> (b t) c h w"))  # [B*T, D, H/p, W/p]
            x = rearrange(x, "(b t) d h w -> b (t h w) d", b=batch)
        else:
            x = rearrange(x, "b c (t q) (h p) (w r) -> b (t h w) (c q p r)", q=self.patch_size_t, p=p, r=p)
            x = self.proj(x)
        return torch.cat((self.text_proj(context), x), dim=1)


class CogVideoXLayerNormZero(nn.Module):
    """Expert adaptive LayerNorm: one norm, then shift and scale for video and text apart, and their gates."""

    def __init__(self, config: TransformerConfig, *, operations, **factory):
        super().__init__()
        dim = config.inner_dim
        self.linear = operations.Linear(config.time_embed_dim, 6 * dim, **factory)
        self.norm = operations.LayerNorm(dim, eps=config.norm_eps, **factory)

    def forward(
        self, x: torch.Tensor, emb: torch.Tensor, length: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the modulated sequence [B, S, D] and the gates [B, 1, D] of video and text (`length` tokens)."""
        shift, scale, gate, text_shift, text_scale, text_gate = self.linear(F.silu(emb)).unsqueeze(1).chunk(6, dim=-1)
        x = modulate(self.norm(x), length, (text_scale, text_shift), (scale, shift))
        return x, gate, text_gate


def modulate(x: torch.Tensor, length: int, text: tuple[torch.Tensor, torch.Tensor], video: tuple) -> torch.Tensor:
    """Return x * (1 + scale) + shift, with (scale, shift) of `text` for the first `length` tokens, else of `video`."""
    parts = ((x[:, :length], *text), (x[:, length:], *video))
    if torch.is_grad_enabled():
        return torch.cat([part * (1 + scale) + shift for part, scale, shift in parts], dim=1)
    for part, scale, shift in parts:
        part.mul_(1 + scale).add_(shift)
    return x


def add_gated(
    x: torch.Tensor, y: torch.Tensor, length: int, text_gate: torch.Tensor, gate: torch.Tensor
) -> torch.Tensor:
    """Return x + gate * y, with `text_gate` for the first `length` tokens; x is overwritten unless training."""
    if torch.is_grad_enabled():
        return x + torch.cat((text_gate * y[:, :length], gate * y[:, length:]), dim=1)
    x[:, :length].addcmul_(text_gate, y[:, :length])
    x[:, length:].addcmul_(gate, y[:, length:])
    return x


def add_control(
    x: torch.Tensor, control: dict[str, list[torch.Tensor | None]] | None, index: int, length: int
) -> torch.Tensor:
    """Add what a ControlNet has for block `index` to the video tokens of x [B, L + S, D], as `add_gated` does."""
    states = control["output"] if control else ()
    if index >= len(states) or states[index] is None:
        return x
    if torch.is_grad_enabled():
        return torch.cat((x[:, :length], x[:, length:] + states[index].to(x)), dim=1)
    x[:, length:].add_(states[index].to(x))
    return x


def replace_video(x: torch.Tensor, video: torch.Tensor, length: int) -> torch.Tensor:
    """Put tokens `video` [B, S, D] behind the first `length` of x [B, L + S, D], as `add_gated` does."""
    if torch.is_grad_enabled():
        return torch.cat((x[:, :length], video), dim=1)
    x[:, length:].copy_(video)
    return x


class CogVideoXAttention(nn.Module):
    """Full attention over the joint sequence, with normalised queries and keys."""

    def __init__(self, config: TransformerConfig, attention: Attention, *, operations, **factory):
        super().__init__()
        dim, head_dim = config.inner_dim, config.attention_head_dim
        self.heads = config.num_attention_heads
        self.attention = attention
        self.norm_q = operations.LayerNorm(head_dim, eps=QK_NORM_EPS, **factory)
        self.norm_k = operations.LayerNorm(head_dim, eps=QK_NORM_EPS, **factory)
        self.to_q = operations.Linear(dim, dim, bias=config.attention_bias, **factory)
        self.to_k = operations.Linear(dim, dim, bias=config.attention_bias, **factory)
        self.to_v = operations.Linear(dim, dim, bias=config.attention_bias, **factory)
        self.to_out = nn.ModuleList([operations.Linear(dim, dim, **factory)])

    def forward(self, x: torch.Tensor, rope: torch.Tensor | None, options: dict[str, Any]) -> torch.Tensor:
        q, k, v = (
            rearrange(linear(x), "b s (n d) -> b n s d", n=self.heads) for linear in (self.to_q, self.to_k, self.to_v)
        )
        q, k = self.norm_q(q), self.norm_k(k)  # [B, heads, S, head_dim]
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        x = self.to_out[0](self.attention(q, k, v, options))  # [B, S, D]
        for patch in options.get("patches", {}).get("attn1_output_patch", ()):
            x = patch(x, options)
        return x


class GELU(nn.Module):
    """Linear layer with the tanh form of GELU behind it."""

    def __init__(self, dim: int, inner_dim: int, *, operations, **factory):
        super().__init__()
        self.proj = operations.Linear(dim, inner_dim, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Two linear layers, four times as wide between them."""

    def __init__(self, dim: int, **factory):
        super().__init__()
        project_in = GELU(dim, FF_MULT * dim, **factory)
        project_out = factory.pop("operations").Linear(FF_MULT * dim, dim, **factory)
        self.net = nn.ModuleList([project_in, nn.Identity(), project_out])  # 1 is the dropout of the training code

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class CogVideoXBlock(nn.Module):
    """One expert transformer block on the joint sequence x [B, L + S, D]."""

    def __init__(self, config: TransformerConfig, attention: Attention, **factory):
        super().__init__()
        self.norm1 = CogVideoXLayerNormZero(config, **factory)
        self.attn1 = CogVideoXAttention(config, attention, **factory)
        self.norm2 = CogVideoXLayerNormZero(config, **factory)
        self.ff = FeedForward(config.inner_dim, **factory)

    def forward(
        self, x: torch.Tensor, emb: torch.Tensor, length: int, rope: torch.Tensor | None, options: dict[str, Any]
    ) -> torch.Tensor:
        h, gate, text_gate = self.norm1(x, emb, length)
        for patch in options.get("patches", {}).get("norm1_patch", ()):
            h = patch(h, options)
        x = add_gated(x, self.attn1(h, rope, options), length, text_gate, gate)
        h, gate, text_gate = self.norm2(x, emb, length)
        return add_gated(x, self.ff(h), length, text_gate, gate)


class AdaLayerNorm(nn.Module):
    """Adaptive LayerNorm before the output projection; the chunks of its linear layer are shift, then scale."""

    def __init__(self, config: TransformerConfig, *, operations, **factory):
        super().__init__()
        self.linear = operations.Linear(config.time_embed_dim, 2 * config.inner_dim, **factory)
        self.norm = operations.LayerNorm(config.inner_dim, eps=config.norm_eps, **factory)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        shift, scale = self.linear(F.silu(emb)).unsqueeze(1).chunk(2, dim=-1)
        return torch.addcmul(shift, self.norm(x), 1 + scale)


class CogVideoXTransformer3DModel(nn.Module):
    """CogVideoX 1.0 and 1.5, text-to-video and image-to-video; `config` says which.

    `operations` builds every layer (torch.nn, or a host's own for offloading and quantisation) and `attention` computes
    softmax(q k^T) v.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = nn,
        attention: Attention = scaled_dot_product,
    ):
        super().__init__()
        factory = dict(dtype=dtype, device=device, operations=operations)
        self.config = config
        self.dtype = dtype
        dim = config.inner_dim
        self.patch_embed = CogVideoXPatchEmbed(config, **factory)
        self.time_embedding = TimestepEmbedding(dim, config.time_embed_dim, **factory)
        if config.ofs_embed_dim:
            self.ofs_embedding = TimestepEmbedding(config.ofs_embed_dim, config.ofs_embed_dim, **factory)
        self.transformer_blocks = nn.ModuleList(
            [CogVideoXBlock(config, attention, **factory) for _ in range(config.num_layers)]
        )
        self.norm_out = AdaLayerNorm(config, **factory)
        del factory["operations"]
        self.norm_final = operations.LayerNorm(dim, eps=config.norm_eps, **factory)
        patch = config.patch_size**2 * (config.patch_size_t or 1)
        self.proj_out = operations.Linear(dim, patch * config.out_channels, **factory)
        self.held_tables: tuple[tuple, Tables] | None = None  # the tables of the last shape, behind what they are of

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        ofs: torch.Tensor | None = None,
        control: dict[str, list[torch.Tensor | None]] | None = None,
        transformer_options: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        """Predict the velocity of x [B, C, T, H, W] at `timestep` [B] (0 to 999) for `context` [B, L, text width].

        `ofs` [B] is the constant of CogVideoX1.5-5B-I2V. An odd T under temporal patches gets its first frame twice,
        trimmed again from the result [B, out_channels, T, H, W]. `control["output"][i]` [B, S, D] is added to the video
        tokens behind block i. `transformer_options` carries a host's patches:
        `patches_replace["dit"][("double_block", i)]`, `patches["double_block"]` (the video tokens behind each block),
        `patches["norm1_patch"]` and `patches["attn1_output_patch"]` (what goes into attention and comes out of it),
        `rope_options`, and `blocks_override(run, x, emb, options)`, which stands in for the blocks and may call
        `run(x, start, stop)`.
        """
        config, length = self.config, context.shape[1]
        grid = self.token_grid(x.shape[2:])
        leading = leading_frames(x.shape[2], config.patch_size_t)
        x = repeat_first_frame(x, leading)  # [B, C, T, H, W]

        emb = self.time_embedding(timestep_embedding(timestep, config.inner_dim).to(x.dtype))  # [B, 512]
        if config.ofs_embed_dim:
            emb = emb + self.ofs_embedding(timestep_embedding(ofs, config.ofs_embed_dim).to(x.dtype))

        options = dict(transformer_options or {})
        options.update(text_tokens=length, token_grid=grid)
        rope, fixed = self.tables(grid, length, x.device, x.dtype, options.get("rope_options"))
        x = self.add_positions(self.patch_embed(x, context), fixed, grid, length)  # [B, L + S, D]

        def run(x: torch.Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
            for index, block in list(enumerate(self.transformer_blocks))[start:stop]:
                # A dict of its own: under gradient checkpointing the block runs again after the others.
                here = dict(options, block_index=index, block_type="double", total_blocks=len(self.transformer_blocks))
                x = self.run_block(index, block, x, emb, length, rope, here)
                x = add_control(x, control, index, length)
                for patch in options.get("patches", {}).get("double_block", ()):
                    args = {"img": x[:, length:], "txt": x[:, :length], "vec": emb, "pe": rope, "block_index": index}
                    x = replace_video(x, patch({**args, "transformer_options": here})["img"], length)
            return x

        override = options.get("blocks_override")
        x = run(x) if override is None else override(run, x, emb, options)

        x = self.norm_out(self.norm_final(x[:, length:]), emb)  # [B, S, D]
        return self.unpatchify(self.proj_out(x), grid)[:, :, leading:]  # [B, C, T, H, W]

    def token_grid(self, size: torch.Size) -> Grid:
        """Return the token counts along t, h and w for latents of (T, H, W)."""
        (t, h, w), p = size, self.config.patch_size
        if h % p or w % p:
            raise ValueError(f"latent height {h} and width {w} must divide by the patch size {p}")
        return (t + leading_frames(t, self.config.patch_size_t)) // (self.config.patch_size_t or 1), h // p, w // p

    def tables(
        self, grid: Grid, length: int, device: torch.device, dtype: torch.dtype, rope_options: dict[str, float] | None
    ) -> Tables:
        """Return what positions need of a shape: rotary table and fixed table, made anew only when the shape changes.

        Called before a compiled forward they are made outside it, which keeps their float64 out of the graph.
        """
        shifts = tuple(sorted(rope_options.items())) if rope_options else ()
        key = (*grid, length, device, dtype, *shifts)
        if self.held_tables is not None and self.held_tables[0] == key:
            return self.held_tables[1]
        if torch.compiler.is_compiling():
            return self.make_tables(grid, length, device, dtype, rope_options)
        with torch.inference_mode(False):  # training may be next to use them
            self.held_tables = key, self.make_tables(grid, length, device, dtype, rope_options)
        return self.held_tables[1]

    def make_tables(self, grid: Grid, length: int, device, dtype, rope_options: dict[str, float] | None) -> Tables:
        """Return the rotary table [2, L + S, head_dim] (None for 2B) and the fixed one [S, D] (2B only)."""
        config = self.config
        if config.use_rotary_positional_embeddings:
            base = config.sample_grid[1:] if config.patch_size_t is None else None
            positions = shift_positions(rope_positions(grid, base, device), rope_options)
            return rope_table(positions, config.attention_head_dim, length, rope_options), None
        if config.use_learned_positional_embeddings:
            return None, None
        scales = config.spatial_interpolation_scale, config.temporal_interpolation_scale
        return None, sincos_table(grid, config.inner_dim, *scales, dtype=dtype, device=device)

    def add_positions(self, x: torch.Tensor, fixed: torch.Tensor | None, grid: Grid, length: int) -> torch.Tensor:
        """Add learned (5B-I2V) or fixed (2B) positions to the sequence x [B, L + S, D]."""
        config = self.config
        if config.use_learned_positional_embeddings:
            if length > config.max_text_seq_length:
                raise ValueError(
                    f"This model holds positions for {config.max_text_seq_length} text tokens and got {length}. "
                    "Encode the prompt with CogVideoX Text Encode."
                )
            table = self.patch_embed.pos_embedding[0].to(x)  # [L + S, D]; a weight, which a host may patch at any step
            video = fit_learned_table(table[config.max_text_seq_length :], config.sample_grid, grid)
            return x + torch.cat((table[:length], video))
        if fixed is not None:
            return torch.cat((x[:, :length], x[:, length:] + fixed), dim=1)
        return x

    def run_block(
        self, index: int, block: nn.Module, x, emb, length: int, rope, options: dict[str, Any]
    ) -> torch.Tensor:
        """Run one block, or the host's replacement for it, on the joint sequence x [B, L + S, D]."""
        replace = options.get("patches_replace", {}).get("dit", {}).get(("double_block", index))
        if replace is None:
            return block(x, emb, length, rope, options)

        def original_block(args: dict[str, Any]) -> dict[str, torch.Tensor]:
            # Joined anew: the replacement may still need its own `img` and `txt` after the block has run.
            joint = torch.cat((args["txt"], args["img"]), dim=1)
            joint = block(joint, args["vec"], args["txt"].shape[1], args["pe"], args["transformer_options"])
            return {"txt": joint[:, : args["txt"].shape[1]], "img": joint[:, args["txt"].shape[1] :]}

        args = {"img": x[:, length:], "txt": x[:, :length], "vec": emb, "pe": rope, "transformer_options": options}
        out = replace(args, {"original_block": original_block})
        return torch.cat((out.get("txt", args["txt"]), out["img"]), dim=1)

    def unpatchify(self, x: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Put tokens [B, S, patch] back into latents [B, C, T, H, W]."""
        t, h, w = grid
        p, q = self.config.patch_size, self.config.patch_size_t or 1
        pattern = "b (t h w) (c q p r) -> b c (t q) (h p) (w r)"
        return rearrange(x, pattern, t=t, h=h, w=w, q=q, p=p, r=p)
