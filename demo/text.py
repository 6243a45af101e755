"""Captions as tokens of T5, padded to a common length.

The released models see 226 tokens, of which a short prompt fills ten. Padding is not masked, so it costs as much as
words do. In training a batch is padded to the shortest of LENGTHS that holds it, at times to a longer one: the models
learn that the amount of padding means nothing, at a third of the price.
"""

from __future__ import annotations

import os
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from ..cogvideox.variants import TEXT_TOKENS
from . import world

PAD, END = 0, 1
LENGTHS = (24, 32, 40, 48, 56, 80, 112, 160, 192, TEXT_TOKENS)
LONGER = 0.1  # share of batches padded further than needed
# What captions are like in training, with the shares of their steps: the world's styles, and drills.
STYLES = {
    **{style: partial(world.caption, style=style) for style in world.STYLES},
    "drill": world.drill,
}
STYLE_SHARES = (0.55, 0.25, 0.1, 0.1)

# Words the world never says share one row of the embedding, trained by putting it in the place of words at random: a
# prompt with unknown words is read as one with gaps.
UNKNOWN = 32099
UNKNOWN_SHARE = 0.04
CENSUS = 6000  # captions of each style that say which tokens are known

TOKENIZER = Path("comfy", "text_encoders", "t5_tokenizer", "tokenizer.json")  # in ComfyUI's folder


def tokenizer_file() -> Path:
    """Return T5's tokenizer.json in ComfyUI: that of dev.py, or of COMFYUI_PATH."""
    comfyui = os.environ.get("COMFYUI_PATH", Path(__file__).resolve().parents[1] / ".dev" / "ComfyUI")
    path = Path(comfyui, TOKENIZER)
    if not path.is_file():
        raise FileNotFoundError(f"T5's tokenizer is not there: {path}. Run dev.py once; it installs ComfyUI.")
    return path


@cache
def tokenizer():
    """Return T5's tokenizer."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(tokenizer_file()))


def tokens(text: str) -> list[int]:
    """Return the tokens of a text with the end token, at most 226."""
    numbers = tokenizer().encode(text).ids
    if not numbers or numbers[-1] != END:
        numbers = [*numbers, END]
    return numbers if len(numbers) <= TEXT_TOKENS else [*numbers[: TEXT_TOKENS - 1], END]


def pad(texts: list[list[int]], length: int = TEXT_TOKENS) -> torch.Tensor:
    """Return int64 [B, length]."""
    return torch.tensor([[*numbers, *[PAD] * (length - len(numbers))] for numbers in texts])


def captions(
    whats: list[world.Scene], step: int, longest: bool = False, shares: tuple[float, ...] = STYLE_SHARES
) -> tuple[str, torch.Tensor]:
    """Return the style of a step and its padded captions [B, L]: one style a step, some words replaced by UNKNOWN.

    `longest` pads to 226 whatever the captions need; `shares` say how often a step has which of STYLES.
    """
    draw = np.random.default_rng((step, 1))
    style = str(draw.choice(list(STYLES), p=shares))
    texts = [tokens(STYLES[style](what, seed=step * 64 + i)) for i, what in enumerate(whats)]
    longest_text = max(len(numbers) for numbers in texts)
    fitting = [length for length in LENGTHS if length >= longest_text]
    length = fitting[0]
    if longest:
        length = TEXT_TOKENS
    elif draw.random() < LONGER:
        length = int(draw.choice(fitting))
    numbers = pad(texts, length)
    gaps = torch.from_numpy(draw.random(numbers.shape) < UNKNOWN_SHARE) & (numbers > END)
    if style == "short":
        gaps &= False  # there is no word to spare
    return style, numbers.masked_fill(gaps, UNKNOWN)


@cache
def known_tokens() -> torch.Tensor:
    """Return which of T5's tokens the captions use: bool [32128]."""
    known = torch.zeros(32128, dtype=torch.bool)
    known[[PAD, END, UNKNOWN]] = True
    for seed in range(CENSUS):
        for style in world.STYLES:
            for split in world.SPLITS:
                known[tokens(world.caption(world.scene(seed, split), style, seed))] = True
    return known


def fill_unknown(embedding: torch.Tensor) -> torch.Tensor:
    """Return the embedding [32128, D] with the row of UNKNOWN for every token the captions never use."""
    return torch.where(known_tokens()[:, None], embedding, embedding[UNKNOWN])
