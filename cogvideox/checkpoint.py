"""From the tensors of any CogVideoX file to diffusers names, and whether all that a model needs is there.

Nothing here reads a file or a file name, and nothing changes the dict it is given. The tables are in `keys.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import keys
from .ggml import unpacked_shape
from .variants import COGVIDEOX_2B

SHOWN = 5  # keys named in an error


class CheckpointError(ValueError):
    """A file that cannot be loaded; the sentence says what came, what was needed and what mends it."""


# --- names ---------------------------------------------------------------------------------------------------------


@cache
def _pattern(source: str) -> re.Pattern[str]:
    escaped = re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(source))
    return re.compile(escaped + r"(?=\.|$)")


def rename(key: str, rows: Iterable[tuple[str, str | None]], reverse_from: int = 0) -> str | None:
    """Return what the first of `rows` that fits makes of a key, None where it drops it; else the key itself."""
    for source, target in rows:
        if match := _pattern(source).match(key):
            if target is None:
                return None
            numbers = match.groupdict()
            if "r" in numbers:
                numbers["r"] = str(reverse_from - int(numbers["r"]))
            return target.format(**numbers) + key[match.end() :]
    return key


def _rows(key: str, tensor: Tensor, suffix: str, chunks: int, picks: tuple[int, ...]) -> Tensor:
    """Return a copy of the picked row chunks: views of one tensor share storage, which safetensors does not save."""
    if suffix in keys.WHOLE_LAYER_SUFFIXES or math.prod(tensor.shape) == 1:
        return tensor
    if tensor.shape[0] % chunks:
        raise CheckpointError(
            f"{key} has {tensor.shape[0]} rows, which do not split into {chunks}; the file is damaged."
        )
    size = tensor.shape[0] // chunks
    starts = [index for index in picks if index - 1 not in picks]
    ends = [index + 1 for index in picks if index + 1 not in picks]
    runs = [tensor.narrow(0, start * size, (end - start) * size) for start, end in zip(starts, ends, strict=True)]
    return runs[0].clone() if len(runs) == 1 else torch.cat(runs)


def _split(key: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    for source, chunks, parts in keys.TRANSFORMER_SPLITS:
        if match := _pattern(source).match(key):
            rest = key[match.end() :]
            for target, picks in parts:
                yield target.format(**match.groupdict()) + rest, _rows(key, tensor, rest[1:], chunks, picks)
            return
    name = rename(key, keys.TRANSFORMER_RENAMES)
    if name is not None:
        yield name, tensor


def unwrap(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a file, which SAT and lightning nest under "module", "model" or "state_dict"."""
    while inner := next((state_dict[k] for k in keys.WRAPPERS if isinstance(state_dict.get(k), Mapping)), None):
        state_dict = inner
    return {key: value for key, value in state_dict.items() if hasattr(value, "shape")}


def _below_prefix(state_dict: dict[str, Tensor], marker: str) -> dict[str, Tensor] | None:
    """Return the part of a file that `marker` belongs to, without its prefix; None where there is no such part."""
    prefixes = {match["prefix"] for key in state_dict if (match := re.fullmatch(marker, key))}
    if not prefixes:
        return None
    prefix = min(prefixes, key=lambda text: (text not in keys.KNOWN_PREFIXES, len(text), text))
    found = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
    if not prefix:
        found = {key: value for key, value in found.items() if not key.startswith(keys.OTHER_PARTS)}
    return found | {key: state_dict[key] for key in keys.GLOBAL_KEYS if key in state_dict}


def _modules(state_dict: Mapping[str, Any]) -> set[str]:
    return {key.rpartition(".")[0] for key in state_dict}


def some(names: Iterable[str]) -> str:
    """Return the first of `names`, as many as an error shows."""
    ordered = sorted(names)
    return ", ".join(ordered[:SHOWN]) + (", ..." if len(ordered) > SHOWN else "")


def _looks_like(state_dict: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return what a file is and what mends it, by the first row of `keys.OTHER_FILES` that fits."""
    lines = "\n".join(state_dict)
    rows = ((what, mend) for pattern, what, mend in keys.OTHER_FILES if re.search(rf"(?m:{pattern})", lines))
    return next(rows, None)


def wrong_file(state_dict: Mapping[str, Any], needed: str, missing: Collection[str] = ()) -> CheckpointError:
    """Return the error for a file that is something else than `needed`, or a part of it that lacks `missing`."""
    if not state_dict:
        return CheckpointError(
            f"The file holds no tensors, but {needed} was needed: it was probably cut off, so download it again."
        )
    what, mend = _looks_like(state_dict) or (None, None)
    if what == needed and missing:
        return CheckpointError(
            f"The file holds only a part of {needed}: {some(missing)} is missing. "
            "Load a model that comes in several files as a folder; otherwise download it again."
        )
    if what and what != needed:
        return CheckpointError(f"The file holds {what}, but {needed} was needed. {mend}.")
    return CheckpointError(
        f"The file holds an unknown model ({some(state_dict)}), but {needed} was needed. Choose a CogVideoX file."
    )


def _is_sincos(table: Tensor) -> bool:
    """Say whether a SAT position table is the constant one of 2B, whose text rows are zero, and not a learned one."""
    if table.is_meta:
        return table.shape[-1] == COGVIDEOX_2B.transformer.inner_dim
    return not bool(table[0, 0].any())


def normalise_transformer(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the transformer of a file of any known layout under its diffusers names.

    The row parts of fused layers are copies; every other tensor is the file's own.
    """
    state_dict = unwrap(state_dict)
    found = _below_prefix(state_dict, keys.TRANSFORMER_MARKER)
    if found is None:
        raise wrong_file(state_dict, keys.TRANSFORMER, ["patch_embed.text_proj"])
    positions = found.get(keys.SAT_POSITIONS)
    if positions is not None and _is_sincos(positions):
        del found[keys.SAT_POSITIONS]  # `found` is ours; the model computes this table
    renamed = {name: part for key, tensor in found.items() for name, part in _split(key, tensor)}
    if missing := set(keys.TRANSFORMER_MODULES) - _modules(renamed):
        raise wrong_file(found, keys.TRANSFORMER, missing)
    return renamed


def normalise_vae(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the VAE of a diffusers, SAT or all-in-one file under its diffusers names."""
    state_dict = unwrap(state_dict)
    found = _below_prefix(state_dict, keys.VAE_MARKER)
    if found is None:
        raise wrong_file(state_dict, keys.VAE, ["decoder.mid_block"])
    levels = [int(match[1]) for key in found if (match := re.match(r"decoder\.up\.(\d+)\.", key))]
    names = {key: rename(key, keys.VAE_RENAMES, max(levels, default=0)) for key in found}
    return {name: found[key] for key, name in names.items() if name is not None}


def normalise_controlnet(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return TheDenk's ControlNet under its published names."""
    state_dict = unwrap(state_dict)
    found = _below_prefix(state_dict, keys.CONTROLNET_MARKER)
    if found is None:
        raise wrong_file(state_dict, keys.CONTROLNET, ["controlnet_encode_first"])
    if missing := set(keys.CONTROLNET_MODULES) - _modules(found):
        raise wrong_file(found, keys.CONTROLNET, missing)
    return {name: part for key, tensor in found.items() for name, part in _split(key, tensor)}


def normalise_branch(state_dict: Mapping[str, Any], pattern: str, what: str) -> dict[str, Tensor]:
    """Return the tensors whose names match `pattern` behind any prefix: a branch, in any file that has it."""
    state_dict = unwrap(state_dict)
    name = re.compile(rf"(?:^|\.)((?:{pattern}).+)")
    matches = {
        key: name.search(re.sub(r"\bfuser_list\.", "fuser.", key)) for key in state_dict
    }  # SAT's name for fusers
    found = {match[1]: state_dict[key] for key, match in matches.items() if match}
    if not found:
        raise wrong_file(state_dict, what)
    return found


def normalise_tora(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return Tora from one file or from its two parts put together, whose names begin behind `fuser` and the like."""
    state_dict = unwrap(state_dict)
    named = {}
    for key, tensor in state_dict.items():
        if re.match(r"\d+\.flow_", key):
            key = f"fuser.{key}"
        elif re.match(r"(body\.\d+|conv_in)\.", key):
            key = f"traj_extractor.{key}"
        named[key] = tensor
    return normalise_branch(named, keys.TORA, "Tora")


# --- add-ons -------------------------------------------------------------------------------------------------------


def split_add_on(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Return the base transformer of a normalised research model, and what its further layers belong to ("": none)."""
    lines = "\n".join(state_dict)
    found = [(pattern, what) for pattern, what in keys.ADD_ONS if re.search(rf"(?m:{pattern})", lines)]
    base = {key: value for key, value in state_dict.items() if not any(re.search(p, key) for p, _ in found)}
    return base, found[0][1] if found else ""


# --- completeness --------------------------------------------------------------------------------------------------


def packed_key(state_dict: Mapping[str, Any], key: str) -> str | None:
    """Return the name under which `state_dict` has a weight in GGML blocks; None where it has not."""
    layer, _, name = key.rpartition(".")
    names = (f"{layer}.{suffix}" for suffix in keys.PACKED_SUFFIXES) if name == "weight" else ()
    return next((name for name in names if name in state_dict), None)


def packed_shape(state_dict: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Return the shape of the weight that the GGML blocks `key` stand for; raise where they are not whole."""
    layer, _, suffix = key.rpartition(".")
    try:
        return unpacked_shape(tuple(state_dict[key].shape), keys.PACKED_SUFFIXES[suffix])
    except ValueError as error:
        raise CheckpointError(f"The file is damaged in {layer}: {error}. Download it again.") from error


def _belongs(key: str, expected: Mapping[str, Any]) -> bool:
    layer, _, suffix = key.rpartition(".")
    return key in expected or key in keys.GLOBAL_KEYS or suffix in keys.QUANT_SUFFIXES and f"{layer}.weight" in expected


def _is_packed(key: str, state_dict: Mapping[str, Any]) -> bool:
    """Say whether a weight is stored in a packed form: under another name (GGML blocks), or as bytes (4 bit)."""
    layer, _, name = key.rpartition(".")
    if name != "weight":
        return False
    if key not in state_dict:
        return packed_key(state_dict, key) is not None
    scaled = any(f"{layer}.{suffix}" in state_dict for suffix in keys.QUANT_SUFFIXES)
    return scaled and state_dict[key].dtype in (torch.uint8, torch.int8)


def check_keys(state_dict: Mapping[str, Any], expected: Mapping[str, Iterable[int]]) -> None:
    """Raise CheckpointError unless the file has exactly the tensors of `expected` (name -> shape).

    Entries of quantised layers may stand beside or, packed, instead of their weight. Scaled 4 bits may have any shape.
    """
    missing = [key for key in expected if key not in state_dict and not _is_packed(key, state_dict)]
    extra = [key for key in state_dict if not _belongs(key, expected)]
    shapes = [
        f"{key} {list(state_dict[key].shape)} instead of {list(shape)}"
        for key, shape in expected.items()
        if key in state_dict and tuple(state_dict[key].shape) != tuple(shape) and not _is_packed(key, state_dict)
    ]
    shapes += [
        f"{key} {list(packed_shape(state_dict, packed))} instead of {list(shape)}"
        for key, shape in expected.items()
        if (packed := packed_key(state_dict, key)) and packed_shape(state_dict, packed) != tuple(shape)
    ]
    problems = [
        f"{len(found)} {what} ({some(found)})"
        for what, found in (("missing", missing), ("left over", extra), ("of another shape", shapes))
        if found
    ]
    if not problems:
        return
    lines = "\n".join(extra)
    training = re.search(rf"(?m:{keys.IN_TRAINING})", lines)
    hint = "They belong to a LoRA in training, which this node does not load." if training else "Is the file complete?"
    raise CheckpointError(f"The tensors do not fit the model they look like: {'; '.join(problems)}. {hint}")
