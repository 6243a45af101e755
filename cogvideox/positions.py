"""Where a token sits: 3D rotary tables (RoPE), 3D sine-cosine tables (2B) and the learned table of 5B-I2V.

arXiv 2408.06072 section 2.2. A token grid is (T, H, W) after patching; tokens run t, then h, then w.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

ROPE_THETA = 10000.0
SINCOS_BASE = 10000.0

Grid = tuple[int, int, int]


def crop_region(grid: tuple[int, int], base: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Fit `grid` (h, w) into `base` keeping its aspect; return (start, stop) along h and along w.

    The resize-crop grid of HunyuanDiT (arXiv 2405.08748), as used by CogVideoX 1.0.
    """
    (height, width), (base_height, base_width) = grid, base
    if height / width > base_height / base_width:
        fit_height, fit_width = base_height, round(base_height / height * width)
    else:
        fit_height, fit_width = round(base_width / width * height), base_width
    top = round((base_height - fit_height) / 2)
    left = round((base_width - fit_width) / 2)
    return (top, top + fit_height), (left, left + fit_width)


def rope_positions(grid: Grid, base: tuple[int, int] | None, device=None) -> list[torch.Tensor]:
    """Return float32 positions along t, h and w.

    With `base` (1.0) h and w are spread over the crop region, start + (stop - start) * i / n, as in the original
    code; diffusers' torch port departs from that wherever the crop does not start at 0. Without (1.5) they count.
    """
    positions = [torch.arange(n, dtype=torch.float32, device=device) for n in grid]
    if base is not None:
        for axis, (start, stop) in enumerate(crop_region(grid[1:], base), start=1):
            positions[axis] = start + (stop - start) * positions[axis] / grid[axis]
    return positions


def shift_positions(positions: list[torch.Tensor], options: dict[str, float] | None) -> list[torch.Tensor]:
    """Apply the host's `rope_options` (scale_t, shift_t, scale_y, ...) to positions along t, h and w."""
    if not options:
        return positions
    return [
        position * options.get(f"scale_{axis}", 1.0) + options.get(f"shift_{axis}", 0.0)
        for position, axis in zip(positions, "tyx", strict=True)
    ]


def lower_frequency(frequencies: torch.Tensor, tokens: int, options: dict[str, float] | None) -> torch.Tensor:
    """Lower frequency number `riflex_k` of `options` so that `tokens` in time stay within a share of one period.

    RIFLEx (arXiv 2502.15894): a video repeats itself after the period of one temporal frequency. Within that period
    nothing changes. `riflex_tokens`, if not 0, stands for the video's own length: what a tuned model was trained with.
    """
    if not options or not options.get("riflex_k"):
        return frequencies
    index, fixed = int(options["riflex_k"]) - 1, int(options["riflex_tokens"])
    if not fixed and tokens <= round(math.tau / float(frequencies[index])):
        return frequencies
    frequencies = frequencies.clone()
    frequencies[index] = options["riflex_share"] * math.tau / (fixed or tokens)
    return frequencies


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Return how much of a head encodes t, h and w: a quarter, and three eighths each."""
    return head_dim // 4, head_dim // 8 * 3, head_dim // 8 * 3


def rope_table(
    positions: list[torch.Tensor], head_dim: int, text_tokens: int, options: dict[str, float] | None = None
) -> torch.Tensor:
    """Return float32 cos and sin for every token of the joint sequence: [2, L + T*H*W, head_dim].

    Neighbours rotate in pairs. Text rows are cos 1, sin 0: they stay as they are, so the sequence needs no split.
    `options` may hold RIFLEx, see `lower_frequency`.
    """
    dims = axis_dims(head_dim)
    grid = [len(p) for p in positions]
    angles = []
    for axis, (position, dim) in enumerate(zip(positions, dims, strict=True)):
        frequencies = ROPE_THETA ** -(torch.arange(0, dim, 2, dtype=torch.float32, device=position.device) / dim)
        if axis == 0:
            frequencies = lower_frequency(frequencies, len(position), options)
        angle = torch.outer(position, frequencies).repeat_interleave(2, dim=1)  # [n, dim]
        shape = [1, 1, 1, dim]
        shape[axis] = len(position)
        angles.append(angle.view(shape).expand(*grid, dim))
    angle = torch.cat(angles, dim=-1).flatten(0, 2)  # [T*H*W, head_dim]
    angle = F.pad(angle, (0, 0, text_tokens, 0))
    return torch.stack((angle.cos(), angle.sin()))


def apply_rope(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring pairs of x [B, heads, S, head_dim] by `table` [2, S, head_dim], computed in float32."""
    cos, sin = table
    pairs = x.float().unflatten(-1, (-1, 2))
    out = pairs.flatten(-2) * cos
    turned, sin = out.unflatten(-1, (-1, 2)), sin[:, ::2]
    # In place, half of the head each: a rotated copy of x would be two more passes over memory.
    turned[..., 0].addcmul_(pairs[..., 1], sin, value=-1)
    turned[..., 1].addcmul_(pairs[..., 0], sin)
    return out.to(x.dtype)


def _sincos(position: torch.Tensor, dim: int) -> torch.Tensor:
    omega = SINCOS_BASE ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angle = torch.outer(position, omega)
    return torch.cat((angle.sin(), angle.cos()), dim=1)


def sincos_table(grid: Grid, dim: int, spatial_scale: float, temporal_scale: float, *, dtype, device) -> torch.Tensor:
    """Return the fixed position embedding of 2B, [T*H*W, D]: a quarter of D is t, then w, then h.

    `spatial_scale` and `temporal_scale` divide the positions (config: spatial_interpolation_scale 1.875).
    """
    frames, height, width = grid
    dim_t, dim_s = dim // 4, dim * 3 // 8
    # float64 on the CPU, where every machine has it; only one row per position, so this is small.
    t = _sincos(torch.arange(frames, dtype=torch.float64) / temporal_scale, dim_t)
    h = _sincos(torch.arange(height, dtype=torch.float64) / spatial_scale, dim_s)
    w = _sincos(torch.arange(width, dtype=torch.float64) / spatial_scale, dim_s)
    t, h, w = (table.to(dtype).to(device) for table in (t, h, w))
    parts = (t[:, None, None], w[None, None], h[None, :, None])
    return torch.cat([part.expand(*grid, -1) for part in parts], dim=-1).flatten(0, 2)


def fit_learned_table(table: torch.Tensor, trained: Grid, grid: Grid) -> torch.Tensor:
    """Fit the learned rows [T0*H0*W0, D] to another grid: [T*H*W, D].

    Fewer frames take the leading rows, as the original code does; any other size is interpolated over (t, h, w).
    """
    rows = table.unflatten(0, trained)
    if grid[1:] == trained[1:] and grid[0] <= trained[0]:
        return rows[: grid[0]].flatten(0, 2)
    frames = min(grid[0], trained[0])
    volume = rows[:frames].permute(3, 0, 1, 2).unsqueeze(0).float()  # [1, D, T0, H0, W0]
    volume = F.interpolate(volume, size=grid, mode="trilinear", align_corners=False)
    return volume[0].permute(1, 2, 3, 0).flatten(0, 2).to(table.dtype)
