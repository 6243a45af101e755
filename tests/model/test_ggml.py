"""GGML blocks give the numbers that the `gguf` package reads from them."""

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from pack.cogvideox import ggml

ROWS, NUMBERS = 5, 768


def random_blocks(kind: str, rows: int = ROWS, numbers: int = NUMBERS) -> torch.Tensor:
    """Return rows of blocks of random bits whose float16 scales are numbers of weights."""
    size, width = ggml.BLOCKS[kind]
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(0, 256, (rows * numbers // size, width), generator=generator, dtype=torch.uint8)
    for start in {"Q6_K": (208,), "Q5_K": (0, 2), "Q4_K": (0, 2)}.get(kind, (0,)):
        scale = (torch.rand(len(blocks), 1, generator=generator) * 0.02).half()
        blocks[:, start : start + 2] = scale.view(torch.uint8)
    return blocks.view(rows, -1)


def as_the_package_reads(blocks: torch.Tensor, kind: str) -> torch.Tensor:
    return torch.from_numpy(dequantize(blocks.numpy(), GGMLQuantizationType[kind]))


@pytest.mark.parametrize("kind", ggml.QUANTISED)
def test_blocks_give_the_numbers_of_the_package_bit_for_bit(kind):
    blocks = random_blocks(kind)
    numbers = ggml.dequantise(blocks, kind)
    expected = as_the_package_reads(blocks, kind)
    assert numbers.shape == (ROWS, NUMBERS)
    assert numbers.unique().numel() > 100
    assert torch.equal(numbers, expected)
    assert torch.equal(ggml.dequantise(blocks, kind, torch.bfloat16), expected.bfloat16())


@pytest.mark.parametrize("kind", ggml.PLAIN)
def test_plain_types_are_read_from_their_bytes(kind):
    numbers = torch.linspace(-2, 2, ROWS * 32).view(ROWS, 32).to(ggml.PLAIN[kind])
    blocks = numbers.view(torch.uint8)
    assert torch.equal(ggml.dequantise(blocks, kind), numbers.float())
    assert torch.equal(as_the_package_reads(blocks, kind), numbers.float())


def test_block_sizes_are_those_of_the_package():
    assert {kind: GGML_QUANT_SIZES[GGMLQuantizationType[kind]] for kind in ggml.BLOCKS} == ggml.BLOCKS


@pytest.mark.parametrize("kind", ggml.QUANTISED)
def test_rows_are_read_one_by_one(kind):
    """Rows of a fused layer are split as bytes."""
    blocks = random_blocks(kind)
    assert torch.equal(ggml.dequantise(blocks[1:3], kind), ggml.dequantise(blocks, kind)[1:3])


@pytest.mark.parametrize("kind", ggml.QUANTISED)
def test_rows_of_part_of_a_block_are_refused(kind):
    with pytest.raises(ValueError, match="not whole blocks"):
        ggml.dequantise(torch.zeros(2, ggml.BLOCKS[kind][1] + 1, dtype=torch.uint8), kind)


def test_extreme_blocks_do_not_wrap():
    """The largest scales and numbers of every type, where bytes that wrap would show."""
    for kind in ggml.QUANTISED:
        blocks = torch.full((1, ggml.BLOCKS[kind][1]), 0xFF, dtype=torch.uint8)
        for start in {"Q6_K": (208,), "Q5_K": (0, 2), "Q4_K": (0, 2)}.get(kind, (0,)):
            blocks[:, start : start + 2] = torch.tensor([1.0]).half().view(torch.uint8)
        assert torch.equal(ggml.dequantise(blocks, kind), as_the_package_reads(blocks, kind)), kind
        assert np.isfinite(ggml.dequantise(blocks, kind).numpy()).all()


# Relative error of normal random weights; bounds about twice what they give.
ROUNDING = {"Q8_0": 1e-2, "Q6_K": 4e-2, "Q5_K": 8e-2, "Q5_0": 9e-2, "Q4_K": 0.16, "Q4_0": 0.18}


def random_numbers() -> torch.Tensor:
    return torch.randn(ROWS, NUMBERS, generator=torch.Generator().manual_seed(2)) * 0.02


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_0", "Q4_0"])
def test_quantising_gives_the_blocks_of_the_package(kind):
    expected = torch.from_numpy(quantize(random_numbers().numpy(), GGMLQuantizationType[kind]))
    assert torch.equal(ggml.quantise(random_numbers(), kind), expected)


@pytest.mark.parametrize("kind", ggml.QUANTISED)
def test_quantising_rounds_by_no_more_than_the_type(kind):
    numbers = ggml.dequantise(ggml.quantise(random_numbers(), kind), kind)
    error = ((numbers - random_numbers()).norm() / random_numbers().norm()).item()
    assert ROUNDING[kind] / 4 < error < ROUNDING[kind]


@pytest.mark.parametrize("kind", ggml.QUANTISED)
def test_blocks_of_zeros_stay_zeros(kind):
    assert not ggml.dequantise(ggml.quantise(torch.zeros(2, 256), kind), kind).any()


@pytest.mark.parametrize("kind", ggml.PLAIN)
def test_plain_types_are_written_as_their_bytes(kind):
    numbers = ggml.dequantise(ggml.quantise(random_numbers(), kind), kind)
    assert torch.equal(numbers, random_numbers().to(ggml.PLAIN[kind]).float())


@pytest.mark.parametrize("kind", ggml.QUANTISED)
def test_rows_that_are_not_whole_blocks_cannot_be_quantised(kind):
    with pytest.raises(ValueError, match="not whole blocks"):
        ggml.quantise(torch.zeros(2, ggml.BLOCKS[kind][0] + 16), kind)
