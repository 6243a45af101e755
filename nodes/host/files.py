"""Read model files and folders, safely and memory-mapped, and say in one sentence why a file cannot be read."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import comfy.utils
import folder_paths
import safetensors
import torch

SAFETENSORS = (".safetensors", ".sft")
PICKLES = (".pt", ".pth", ".ckpt", ".bin")
WEIGHT_FILES = (*SAFETENSORS, *PICKLES)
PIPELINE_FOLDERS = ("CogVideo", "diffusers")
GGUF_FOLDER = "cogvideox_gguf"  # the folders of diffusion_models, listed for .gguf
QUANTISED = "_quantization_metadata"  # the host's entry of a file's metadata
# Numbers in the largest tensor that is looked at when a model loads: norms, biases, patch and time embeddings, the last
# layer. About 10 of 5B's 11 GB, in MB; what is left shows in the first step.
CHECKED_NUMBERS = 2**21

StateDict = dict[str, torch.Tensor]


class ModelFileError(ValueError):
    """A model file or folder that cannot be used; the text is for artists."""


def register_folders() -> None:
    """Let the host know models/CogVideo, where pipelines in the diffusers layout live, and list .gguf files.

    The host lists no .gguf; a name of ours for the same folders leaves its own lists as they are.
    """
    folder_paths.add_model_folder_path("CogVideo", str(Path(folder_paths.models_dir) / "CogVideo"))
    shared, _ = folder_paths.folder_names_and_paths["diffusion_models"]  # the list itself: folders may still be added
    folder_paths.folder_names_and_paths[GGUF_FOLDER] = (shared, {".gguf"})


def check_file(path: Path) -> None:
    """Raise unless there is a file at `path`, and something in it."""
    if not path.is_file():
        raise ModelFileError(f"{path.name} is not there: {path}")
    if path.stat().st_size == 0:
        raise ModelFileError(f"{path.name} is empty: the download did not finish. Download it again.")


def read_state_dict(path: str | Path) -> tuple[StateDict, dict[str, str]]:
    """Return the tensors, mapped rather than read, and the metadata of one weight file.

    Raises ModelFileError for a file that is missing, empty, cut short, of another kind, or a pickle that holds code.
    """
    path = Path(path)
    check_file(path)
    if path.suffix.lower() in SAFETENSORS:
        return _read_safetensors(path)
    return _read_pickle(path), {}


def _read_safetensors(path: Path) -> tuple[StateDict, dict[str, str]]:
    try:
        state_dict, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    except (safetensors.SafetensorError, ValueError, KeyError, OSError, RuntimeError) as error:
        text = str(error)
        if "IncompleteBuffer" in text or "not fully covered" in text:
            raise ModelFileError(
                f"{path.name} is cut short: the download did not finish. Download it again."
            ) from error
        raise ModelFileError(
            f"{path.name} is not a safetensors file, whatever its name says. Download it again from the model's page."
        ) from error
    return state_dict, metadata or {}


def _read_pickle(path: Path) -> StateDict:
    try:
        try:
            state_dict = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # only files of the zip format can be mapped
            state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelFileError(
            f"{path.name} holds more than tensors and was not opened, because such a file can run code. "
            "Use the .safetensors file of the model."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise ModelFileError(f"{path.name} is no weight file that PyTorch can read. Download it again.") from error
    if not isinstance(state_dict, dict) or not all(isinstance(key, str) for key in state_dict):
        raise ModelFileError(f"{path.name} holds no named weights, so it is no model. Choose another file.")
    return state_dict


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a config file, or an empty dict where there is none."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path.name} in {path.parent} is not valid JSON. Download it again.") from error
    if not isinstance(values, dict):
        raise ModelFileError(f"{path.name} in {path.parent} is not a config file. Download it again.")
    return values


def read_config(path: Path, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a config file that `defaults` names; raise unless they are numbers where those are."""
    values = {name: value for name, value in read_json(path).items() if name in defaults}
    for name, value in values.items():
        if not _fits(value, defaults[name]):
            raise ModelFileError(
                f"{path.name} in {path.parent} gives {name} as {json.dumps(value)}, which no model has. "
                "Download it again."
            )
    return values


def _fits(value: Any, default: Any) -> bool:
    """Say whether a config entry can stand for `default`: flags for flags, else counts and sizes above 0."""
    if default is None:
        return value is None or _fits(value, 1)
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, tuple):
        return isinstance(value, list) and bool(value) and all(_fits(entry, default[0]) for entry in value)
    kinds = (int, float) if isinstance(default, float) else int
    return isinstance(value, kinds) and not isinstance(value, bool) and value > 0


def _shards(index: Path) -> list[str]:
    """Return the names of the files an index lists, all of its own folder, which may hold links (a download cache)."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ModelFileError(f"{index.name} in {index.parent} lists no files. Download it again.")
    outside = sorted(name for name in names.values() if name != PureWindowsPath(name).name)
    if outside:
        raise ModelFileError(
            f"{index.name} in {index.parent} names a file outside its folder ({outside[0]}), which was not opened. "
            "Download the folder again from the model's page."
        )
    return sorted(set(names.values()))


def check_numbers(state_dict: StateDict) -> None:
    """Raise where a file holds NaN or infinity, as far as its small tensors show it; the large ones stay unread."""
    small = {key: tensor for key, tensor in state_dict.items() if tensor.numel() <= CHECKED_NUMBERS}
    bad = [key for key, t in small.items() if t.is_floating_point() and not torch.isfinite(t.float()).all()]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ModelFileError(
            f"The file holds invalid numbers (NaN) in {bad[0]}{more}: it is damaged, or was made wrong. "
            "Download it again, or make it again in bf16."
        )


def merge_metadata(one: dict[str, str], other: dict[str, str]) -> dict[str, str]:
    """Return the metadata of two shards of one model; what they say of quantised layers adds up."""
    merged = {**one, **other}
    if QUANTISED in one and QUANTISED in other:
        parts = [json.loads(metadata[QUANTISED]) for metadata in (one, other)]
        layers = {name: values for part in parts for name, values in part["layers"].items()}
        merged[QUANTISED] = json.dumps({**parts[0], **parts[1], "layers": layers})
    return merged


def read_folder(folder: Path) -> tuple[StateDict, dict[str, str]]:
    """Return the tensors and the metadata of a diffusers component folder: one weight file, or shards with an index.

    Raises ModelFileError naming the files that are missing.
    """
    indexes = sorted(folder.glob("*.safetensors.index.json")) or sorted(folder.glob("*.bin.index.json"))
    if indexes:
        shards = _shards(indexes[0])
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing:
            raise ModelFileError(
                f"{folder.parent.name}/{folder.name} is not complete. Missing: {', '.join(missing)}. "
                "Download the missing files."
            )
        files = [folder / name for name in shards]
    else:
        # Beside a whole file may lie a smaller variant, "model.fp16.safetensors": the shorter name is the whole one.
        files = [f for suffix in WEIGHT_FILES for f in sorted(folder.glob(f"*{suffix}"), key=lambda f: len(f.name))][:1]
    if not files:
        raise ModelFileError(f"{folder.parent.name}/{folder.name} holds no weights. Missing: a .safetensors file.")
    state_dict: StateDict = {}
    metadata: dict[str, str] = {}
    for file in files:
        tensors, notes = read_state_dict(file)
        state_dict.update(tensors)
        metadata = merge_metadata(metadata, notes)
    return state_dict, metadata


def _is_pipeline(folder: Path) -> bool:
    return (folder / "transformer" / "config.json").is_file()


def pipelines() -> dict[str, Path]:
    """Return the diffusers-layout folders an artist can pick, by name; the built-in demo comes last."""
    found: dict[str, Path] = {}
    for kind in PIPELINE_FOLDERS:
        for root in folder_paths.get_folder_paths(kind) if kind in folder_paths.folder_names_and_paths else ():
            for folder in sorted(Path(root).glob("*/")) + sorted(Path(root).glob("*/*/")):
                if _is_pipeline(folder):
                    found.setdefault(folder.relative_to(root).as_posix(), folder)
    demo = Path(__file__).parents[2] / "demo" / "cogvideox-mini"
    if _is_pipeline(demo):
        found.setdefault(demo.name, demo)
    return found


def find_pipeline(name: str) -> Path:
    """Return the folder of a listed pipeline; a name that is not in the list is refused, whatever path it spells."""
    try:
        return pipelines()[name]
    except KeyError:
        raise ModelFileError(
            f"There is no CogVideoX pipeline named {name}. Put the model's folder (with transformer, vae, text_encoder "
            "and scheduler inside) into models/CogVideo and refresh the page."
        ) from None


def listed(kinds: tuple[str, ...]) -> list[str]:
    """Return the model files of the host's folders `kinds`, each name once."""
    known = (kind for kind in kinds if kind != GGUF_FOLDER or kind in folder_paths.folder_names_and_paths)
    return list(dict.fromkeys(name for kind in known for name in folder_paths.get_filename_list(kind)))


def model_file(kinds: tuple[str, ...], name: str) -> Path:
    """Return the path of a listed model file of the host's folders `kinds`; names outside them are refused."""
    for kind in kinds:
        if name in listed((kind,)):
            return Path(folder_paths.get_full_path_or_raise(kind, name))
    folders = " or ".join(f"models/{kind}" for kind in kinds if kind != GGUF_FOLDER)
    raise ModelFileError(
        f"There is no file named {name} in {folders}. Put it there and refresh the page, or choose another."
    )


def choices(kinds: tuple[str, ...]) -> list[str]:
    """Return what an artist may pick where a loader takes a file of the host's folders `kinds` or a pipeline folder."""
    return [*listed(kinds), *pipelines()]


def chosen(kinds: tuple[str, ...], name: str) -> Path:
    """Return the path of one of `choices`; other names are refused."""
    return pipelines().get(name) or model_file(kinds, name)
