"""Merging two MODELs part by part, with the host's own weight patches."""

from __future__ import annotations

import re
from collections.abc import Callable

from .model import PREFIX
from .sampling import require_cogvideox

# Which weights each ratio of the node is for, by the start of their names.
EMBEDDINGS, TIME, OUTPUT = (
    ("patch_embed.",),
    ("time_embedding.", "ofs_embedding."),
    ("norm_final.", "norm_out.", "proj_out."),
)
BLOCK = re.compile(r"transformer_blocks\.(\d+)\.")
RANGE = re.compile(r"(\d+)(?:\s*-\s*(\d+))?\s*:\s*(\d*\.?\d+)")
EXAMPLE = 'Write them like "0-9: 1, 10-20: 0.5, 41: 0".'


def merge_blocks(
    model1,
    model2,
    embeddings: float,
    time: float,
    first_blocks: float,
    middle_blocks: float,
    last_blocks: float,
    output: float,
    block_ratios: str,
):
    """Return a clone of `model1` in which each part keeps its ratio of model1 and takes the rest from `model2`.

    The blocks are in three runs of equal length; `block_ratios` gives single blocks a ratio of their own.
    """
    check_shapes(model1, model2)
    count = require_cogvideox(model1).variant.transformer.num_layers
    blocks = block_thirds(count, (first_blocks, middle_blocks, last_blocks))
    for index, ratio in parse_block_ratios(block_ratios, count).items():
        blocks[index] = ratio
    return merged(model1, model2, lambda name: ratio_of(name, embeddings, time, blocks, output))


def block_thirds(count: int, ratios: tuple[float, float, float]) -> list[float]:
    """Return the ratio of each of `count` blocks, given those of the first, middle and last third."""
    return [ratios[3 * index // count] for index in range(count)]


def ratio_of(name: str, embeddings: float, time: float, blocks: list[float], output: float) -> float:
    """Return the ratio for the weight called `name`."""
    if found := BLOCK.match(name):
        return blocks[int(found[1])]
    for prefixes, ratio in ((EMBEDDINGS, embeddings), (TIME, time), (OUTPUT, output)):
        if name.startswith(prefixes):
            return ratio
    raise KeyError(name)


def merged(model1, model2, ratio_of: Callable[[str], float]):
    """Return a clone of `model1` with each weight w1 at ratio * w1 + (1 - ratio) * w2."""
    model = model1.clone()
    for key, patches in model2.get_key_patches(PREFIX).items():
        ratio = ratio_of(key.removeprefix(PREFIX))
        if ratio < 1:
            model.add_patches({key: patches}, 1 - ratio, ratio)
    return model


def parse_block_ratios(text: str, count: int) -> dict[int, float]:
    """Read "0-9: 1, 10: 0.5" as {block: ratio}; later entries win."""
    ratios: dict[int, float] = {}
    for entry in filter(None, (part.strip() for part in re.split(r"[,;\n]", text))):
        found = RANGE.fullmatch(entry)
        if not found:
            raise ValueError(f'block_ratios holds "{entry}", which is not a block or a range with its ratio. {EXAMPLE}')
        first, ratio = int(found[1]), float(found[3])
        last = int(found[2] or first)
        if not first <= last < count:
            raise ValueError(f'block_ratios names blocks "{entry}"; this model has blocks 0 to {count - 1}. {EXAMPLE}')
        if ratio > 1:
            raise ValueError(f'block_ratios asks for "{entry}"; a ratio lies between 0 and 1. {EXAMPLE}')
        ratios |= dict.fromkeys(range(first, last + 1), ratio)
    return ratios


def check_shapes(model1, model2) -> None:
    """Raise unless both are CogVideoX models with the same weights in the same shapes."""
    first, second = (require_cogvideox(model).variant.name for model in (model1, model2))
    shapes1, shapes2 = (
        {key: tuple(value.shape) for key, value in model.model_state_dict(PREFIX).items()} for model in (model1, model2)
    )
    unlike = [key for key in sorted(shapes1.keys() | shapes2.keys()) if shapes1.get(key) != shapes2.get(key)]
    if unlike:
        raise ValueError(
            f"model1 is {first}, model2 is {second}, and {len(unlike)} of their weights differ in shape, so they "
            "cannot be merged. Load two models of one kind, such as CogVideoX-5B and a fine-tune of it."
        )
