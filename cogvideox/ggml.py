"""Weights in GGML blocks, as GGUF files keep them: what a row of bytes holds, and the numbers back from it.

A block holds neighbouring numbers of one row: small integers, and a scale (in K types also scales of its parts).
Layouts read from ggml/src/ggml-common.h and ggml/src/ggml-quants.c of github.com/ggml-org/llama.cpp. Pure torch, so it
runs where the bytes are.
"""

from __future__ import annotations

import torch
from torch import Tensor

ARCHITECTURE = "cogvideox"  # what tools/gguf_convert.py writes as general.architecture; no other tool has a name for it
# Type -> numbers in a block, bytes of a block.
BLOCKS = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q8_0": (32, 34),
    "Q6_K": (256, 210),
    "Q5_K": (256, 176),
    "Q5_0": (32, 22),
    "Q4_K": (256, 144),
    "Q4_0": (32, 18),
}
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
QUANTISED = tuple(kind for kind in BLOCKS if kind not in PLAIN)


def unpacked_shape(shape: tuple[int, ...], kind: str) -> tuple[int, ...]:
    """Return the shape of the numbers in rows of bytes [..., bytes]; raise ValueError where a row ends in a block."""
    size, width = BLOCKS[kind]
    if not shape or shape[-1] % width:
        raise ValueError(f"rows of {list(shape)} bytes are not whole blocks of {kind} ({width} bytes each)")
    return (*shape[:-1], shape[-1] // width * size)


def _half(blocks: Tensor, start: int) -> Tensor:
    """Return the float16 at byte `start` of each block [N, bytes] as float32 [N, 1]."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _bits(data: Tensor, width: int, count: int) -> Tensor:
    """Take `count` fields of `width` bits, lowest first, from bytes [N, M]: [N, count, M]."""
    shifts = torch.arange(0, width * count, width, device=data.device, dtype=torch.uint8)
    return (data.unsqueeze(-2) >> shifts.view(-1, 1)) & ((1 << width) - 1)


def _q8_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * blocks[:, 2:].view(torch.int8)


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_bits(blocks[:, 2:], 4, 2).flatten(1).to(torch.int8) - 8)


def _q5_0(blocks: Tensor) -> Tensor:
    low = _bits(blocks[:, 6:], 4, 2).flatten(1)
    high = _bits(blocks[:, 2:6], 1, 8).transpose(1, 2).flatten(1)  # bit n of the 32 belongs to number n
    return _half(blocks, 0) * ((low | high << 4).to(torch.int8) - 16)


def _k_scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and minimum of the eight parts of a Q4_K or Q5_K block, each float32 [N, 8, 1].

    Twelve bytes hold eight pairs of six bits: four pairs in the low bits of bytes 0 to 7, and the others in bytes
    8 to 11, with their two high bits in the high bits of bytes 0 to 7.
    """
    scales, minima, rest = blocks[:, 4:16].view(-1, 3, 4).unbind(1)
    scales = torch.cat((scales & 63, rest & 15 | scales >> 2 & 48), dim=1)
    minima = torch.cat((minima & 63, rest >> 4 | minima >> 2 & 48), dim=1)
    return (_half(blocks, 0) * scales).unsqueeze(-1), (_half(blocks, 2) * minima).unsqueeze(-1)


def _q4_k(blocks: Tensor) -> Tensor:
    scales, minima = _k_scales(blocks)
    numbers = _bits(blocks[:, 16:].reshape(-1, 4, 32), 4, 2).reshape(-1, 8, 32)
    return (scales * numbers).sub_(minima).flatten(1)


def _q5_k(blocks: Tensor) -> Tensor:
    scales, minima = _k_scales(blocks)
    low = _bits(blocks[:, 48:].reshape(-1, 4, 32), 4, 2).reshape(-1, 8, 32)
    high = _bits(blocks[:, 16:48], 1, 8)
    return (scales * (low | high << 4)).sub_(minima).flatten(1)


def _q6_k(blocks: Tensor) -> Tensor:
    low = _bits(blocks[:, :128].reshape(-1, 2, 64), 4, 2).reshape(-1, 256)
    high = _bits(blocks[:, 128:192].reshape(-1, 2, 32), 2, 4).reshape(-1, 256)
    numbers = ((low | high << 4).to(torch.int8) - 32).view(-1, 16, 16)
    scales = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8)
    return (scales.unsqueeze(-1) * numbers).flatten(1)


_READERS = {"Q8_0": _q8_0, "Q6_K": _q6_k, "Q5_K": _q5_k, "Q5_0": _q5_0, "Q4_K": _q4_k, "Q4_0": _q4_0}


def dequantise(blocks: Tensor, kind: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the numbers of rows of blocks, uint8 [..., bytes], as [..., numbers] of `dtype`.

    Computed in float32, bit for bit what `gguf.quants.dequantize` (package gguf 0.19) gives, then rounded to `dtype`.
    """
    shape = unpacked_shape(tuple(blocks.shape), kind)
    if kind in PLAIN:
        return blocks.contiguous().view(PLAIN[kind]).to(dtype)
    return _READERS[kind](blocks.reshape(-1, BLOCKS[kind][1])).to(dtype).view(shape)


def _halves(numbers: Tensor) -> Tensor:
    """Return float32 [N, 1] as the two bytes of each float16."""
    return numbers.half().contiguous().view(torch.uint8)


def _per(numbers: Tensor) -> Tensor:
    """Return 1 / numbers, and 0 for 0: a block of zeros has no scale."""
    return torch.where(numbers == 0, 0, 1 / numbers)


def _packed(data: Tensor, width: int) -> Tensor:
    """Put fields of `width` bits [N, count, M], lowest first, into bytes [N, M]; the other way of `_bits`."""
    shifts = torch.arange(0, width * data.shape[-2], width, device=data.device, dtype=torch.uint8)
    return (data << shifts.view(-1, 1)).sum(-2, dtype=torch.uint8)


def _extreme(parts: Tensor) -> Tensor:
    """Return the number farthest from zero of each row [..., M], with its sign: [..., 1]."""
    return parts.gather(-1, parts.abs().argmax(-1, keepdim=True))


def _to_q8_0(blocks: Tensor) -> Tensor:
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    scaled = blocks * _per(scale)
    numbers = scaled.sign() * (scaled.abs() + 0.5).floor()  # halves away from zero, as in C
    return torch.cat((_halves(scale), numbers.to(torch.int8).view(torch.uint8)), dim=1)


def _symmetric(blocks: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Return the bytes of the scales and the integers 0 to 2 * limit - 1 of rows whose extreme becomes 0."""
    scale = _extreme(blocks) / -limit
    numbers = (blocks * _per(scale) + (limit + 0.5)).clamp(0, 2 * limit - 1).to(torch.uint8)
    return _halves(scale), numbers


def _to_q4_0(blocks: Tensor) -> Tensor:
    scale, numbers = _symmetric(blocks, 8)
    return torch.cat((scale, _packed(numbers.view(-1, 2, 16), 4)), dim=1)


def _to_q5_0(blocks: Tensor) -> Tensor:
    scale, numbers = _symmetric(blocks, 16)
    high = _packed((numbers >> 4).view(-1, 4, 8).transpose(1, 2), 1)
    return torch.cat((scale, high, _packed((numbers & 15).view(-1, 2, 16), 4)), dim=1)


def _to_k(blocks: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """Return the first 16 bytes of Q4_K or Q5_K blocks and the integers 0 to `largest` [N, 8, 32].

    Each part of 32 spans from its smallest number, or zero, to its largest; scales and minima are rounded to 6 bits.
    """
    parts = blocks.view(-1, 8, 32)
    minima = -parts.amin(-1).clamp(max=0)
    scales = (parts.amax(-1) + minima) / largest
    halves = [_halves(values.amax(-1, keepdim=True) / 63) for values in (scales, minima)]
    wide = [half.view(torch.float16).float() for half in halves]
    scales, minima = (
        (values * _per(unit)).round().clamp(0, 63).to(torch.uint8)
        for values, unit in zip((scales, minima), wide, strict=True)
    )
    numbers = (parts + (wide[1] * minima).unsqueeze(-1)) * _per(wide[0] * scales).unsqueeze(-1)
    numbers = numbers.round().clamp(0, largest).to(torch.uint8)
    first = [values[:, :4] | values[:, 4:] >> 4 << 6 for values in (scales, minima)]
    return torch.cat((*halves, *first, scales[:, 4:] & 15 | minima[:, 4:] << 4), dim=1), numbers


def _to_q4_k(blocks: Tensor) -> Tensor:
    head, numbers = _to_k(blocks, 15)
    return torch.cat((head, _packed(numbers.view(-1, 4, 2, 32), 4).flatten(1)), dim=1)


def _to_q5_k(blocks: Tensor) -> Tensor:
    head, numbers = _to_k(blocks, 31)
    low = _packed((numbers & 15).view(-1, 4, 2, 32), 4)
    return torch.cat((head, _packed(numbers >> 4, 1), low.flatten(1)), dim=1)


def _to_q6_k(blocks: Tensor) -> Tensor:
    parts = blocks.view(-1, 16, 16)
    scales = _extreme(parts).squeeze(-1) / -32
    half = _halves(_extreme(scales) / -128)
    wide = half.view(torch.float16).float()
    scales = (scales * _per(wide)).round().clamp(-128, 127).to(torch.int8)
    numbers = (parts * _per(wide * scales).unsqueeze(-1)).round().clamp(-32, 31)
    numbers = (numbers + 32).to(torch.uint8).view(-1, 2, 128)
    low = _packed((numbers & 15).view(-1, 2, 2, 64), 4).flatten(1)
    high = _packed((numbers >> 4).view(-1, 2, 4, 32), 2).flatten(1)
    return torch.cat((low, high, scales.view(torch.uint8), half), dim=1)


_WRITERS = {
    "Q8_0": _to_q8_0,
    "Q6_K": _to_q6_k,
    "Q5_K": _to_q5_k,
    "Q5_0": _to_q5_0,
    "Q4_K": _to_q4_k,
    "Q4_0": _to_q4_0,
}


def quantise(numbers: Tensor, kind: str) -> Tensor:
    """Return the numbers [..., numbers] as rows of blocks, uint8 [..., bytes]; rows must be whole blocks.

    Q8_0, Q5_0 and Q4_0 are bit for bit those of `gguf.quants.quantize`. K types are rounded to the nearest between each
    part's extremes, without llama.cpp's search for better scales.
    """
    size, width = BLOCKS[kind]
    *rows, columns = numbers.shape
    if columns % size:
        raise ValueError(f"rows of {columns} numbers are not whole blocks of {kind} ({size} numbers each)")
    if kind in PLAIN:
        return numbers.to(PLAIN[kind]).contiguous().view(torch.uint8)
    return _WRITERS[kind](numbers.reshape(-1, size).float()).view(*rows, columns // size * width)
