"""GGUF: files read, and layers whose weight stays in GGML blocks until the moment it multiplies.

A weight in blocks is one of the host's quantised tensors, so offloading, moves between devices and its dynamic memory
treat it as they treat fp8. Only what changes weights differs: a LoRA is never rounded into the blocks, it is added to
the dequantised weight in each pass.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.ops
import comfy.patcher_extension
import torch
from comfy.model_patcher import LowVramPatch
from comfy.quant_ops import QuantizedLayout, QuantizedTensor, register_layout_class, register_layout_op

from ...cogvideox.checkpoint import packed_key
from ...cogvideox.ggml import BLOCKS, PLAIN, QUANTISED, dequantise
from ...cogvideox.keys import PACKED_SUFFIXES
from .files import ModelFileError, StateDict, check_file
from .progress import host_progress

GGUF = ".gguf"
FORMAT = "ggml"
LAYOUT = "CogVideoXBlocksLayout"
LOAD_KEY = "cogvideox_patches_beside_blocks"
PATCHED = "patched"


# --- files ----------------------------------------------------------------------------------------------------------


def read_gguf(path: Path) -> tuple[StateDict, str | None]:
    """Return the tensors of a .gguf file, mapped rather than read, and what it says is its architecture.

    Matrices in blocks keep their bytes, uint8 [rows, bytes], under the name `<layer>.<type>_qweight`.
    """
    check_file(path)
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ModelFileError(
            "To read .gguf files ComfyUI needs the Python package gguf. Install it into ComfyUI's Python with "
            "pip install gguf, and start ComfyUI again."
        ) from error
    try:
        reader = GGUFReader(path, "c")  # private pages: PyTorch takes no read-only memory
    except (ValueError, IndexError, KeyError, OSError, UnicodeDecodeError, OverflowError) as error:
        raise ModelFileError(_unreadable(path, str(error))) from error
    state_dict: StateDict = {}
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        if kind not in BLOCKS:
            raise ModelFileError(
                f"{path.name} holds weights of the type {kind} ({tensor.name}), which this node does not read. "
                f"Use a file of one of the types {', '.join(BLOCKS)}."
            )
        data = torch.from_numpy(tensor.data)
        layer, _, name = tensor.name.rpartition(".")
        if kind in QUANTISED and name == "weight" and data.ndim == 2:
            state_dict[f"{layer}.{kind}_qweight"] = data
        elif data.dtype == torch.uint8:
            state_dict[tensor.name] = dequantise(data, kind, PLAIN.get(kind, torch.float32))
        else:
            state_dict[tensor.name] = data
    field = reader.get_field("general.architecture")
    return state_dict, str(field.contents()) if field else None


def _unreadable(path: Path, text: str) -> str:
    if "GGUF magic invalid" in text:
        return f"{path.name} is not a GGUF file, whatever its name says. Download it again from the model's page."
    if "GGMLQuantizationType" in text:
        return (
            f"{path.name} holds weights of a type that the installed package gguf does not know ({text}). "
            f"Use a file of one of the types {', '.join(BLOCKS)}."
        )
    if "appears to be version" in text:
        return f"{path.name} is of a GGUF version that the installed package gguf does not read. Use a newer file."
    return f"{path.name} is cut short or damaged: the download did not finish. Download it again."


# --- the host's tensor ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class BlocksParams:
    """What the host's tensor keeps beside the blocks: their type, and shape and type of the weight they stand for."""

    kind: str
    orig_dtype: torch.dtype
    orig_shape: tuple[int, ...]
    transposed: bool = False

    def to_device(self, device) -> BlocksParams:
        return self

    def clone(self) -> BlocksParams:
        return self

    def copy_from(self, src: BlocksParams, non_blocking: bool = False) -> None:
        """Copy nothing: all is in the blocks."""


class BlocksLayout(QuantizedLayout):
    """GGML blocks, uint8 [rows, bytes], behind a weight [rows, numbers]."""

    Params = BlocksParams

    @classmethod
    def quantize(cls, tensor, **kwargs):
        raise NotImplementedError("Weights are not rounded into GGML blocks.")

    @classmethod
    def dequantize(cls, qdata, params):
        return dequantise(qdata, params.kind, params.orig_dtype)

    @classmethod
    def get_plain_tensors(cls, qtensor):
        return (qtensor._qdata,)

    @classmethod
    def state_dict_tensors(cls, qdata, params):
        return {"": qdata}


register_layout_class(LAYOUT, BlocksLayout)


@register_layout_op(torch.ops.aten.t.default, BlocksLayout)
def _transpose(qtensor, args, kwargs):
    """Turn the weight and not its blocks, so that a backward pass keeps blocks and not a matrix."""
    params = args[0]._params
    params = dataclasses.replace(params, orig_shape=params.orig_shape[::-1], transposed=not params.transposed)
    return QuantizedTensor(args[0]._qdata, LAYOUT, params)


# --- layers ---------------------------------------------------------------------------------------------------------


class PatchBesideBlocks(LowVramPatch):
    """Add the LoRAs of one weight after it is dequantised, unless the host offloaded the layer and does so itself."""

    def __init__(self, key: str, patches: dict, module: torch.nn.Module):
        super().__init__(key, patches)
        self.module = module

    def __call__(self, weight):
        if any(type(function) is LowVramPatch for function in self.module.weight_function):
            return weight
        return super().__call__(weight)


def operations(compute_dtype: torch.dtype) -> type:
    """Return the host's layers of mixed precision, whose Linear also takes a weight in blocks."""
    base = comfy.ops.mixed_precision_ops({}, compute_dtype, full_precision_mm=True)

    class Linear(base.Linear):
        # The host's dynamic memory would round a LoRA into what it keeps on the card: it never gets to see one here.
        weight_lowvram_function = property(lambda self: None, lambda self, value: None)

        def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
            weight = state_dict.pop(f"{prefix}weight")
            self.weight = torch.nn.Parameter(weight, requires_grad=False)
            if isinstance(weight, QuantizedTensor):
                self.quant_format = f"{FORMAT}_{weight.params.kind}"
            rest = (state_dict, prefix, metadata, strict, missing, unexpected, errors)
            torch.nn.Module._load_from_state_dict(self, *rest)
            missing.remove(f"{prefix}weight")

        def set_weight(self, weight, inplace_update=False, seed=None, return_weight=False, **kwargs):
            """Take a patched weight: its device alone, for `keep_patches_beside` brings the patches."""
            if not isinstance(self.weight, QuantizedTensor):
                return super().set_weight(weight, inplace_update, seed, return_weight, **kwargs)
            if inplace_update or return_weight:
                raise ModelFileError(
                    "Hooks and merging change weights in place, which weights in GGUF blocks do not bear. "
                    "Load the model with weight_dtype bf16."
                )
            self.weight = torch.nn.Parameter(self.weight.to(device=weight.device), requires_grad=False)

        def state_dict(self, *args, destination=None, prefix="", **kwargs):
            out = super().state_dict(*args, destination=destination, prefix=prefix, **kwargs)
            if isinstance(self.weight, QuantizedTensor) and has_patch(self):
                mark = {"format": self.quant_format, PATCHED: True}
                out[f"{prefix}comfy_quant"] = torch.tensor(list(json.dumps(mark).encode()), dtype=torch.uint8)
            return out

    return type("Operations", (base,), {"Linear": Linear})


def has_patch(module: torch.nn.Module) -> bool:
    """Say whether a layer adds LoRAs to its weight in each pass."""
    return any(isinstance(function, LowVramPatch) for function in module.weight_function)


def keep_patches_beside(patcher, *args) -> None:
    """Give layers in blocks the LoRAs that the host took for rounded in; an ON_LOAD callback of the host."""
    for name, module in patcher.model.named_modules():
        if not isinstance(getattr(module, "weight", None), QuantizedTensor):
            continue
        functions = [function for function in module.weight_function if not isinstance(function, PatchBesideBlocks)]
        key = f"{name}.weight"
        if key in patcher.patches and not any(isinstance(function, LowVramPatch) for function in functions):
            functions.insert(0, PatchBesideBlocks(key, patcher.patches, module))
        module.weight_function = functions


def attend_to_patches(patcher) -> None:
    """Let LoRAs work on a model with weights in blocks."""
    on_load = comfy.patcher_extension.CallbacksMP.ON_LOAD
    patcher.add_callback_with_key(on_load, LOAD_KEY, keep_patches_beside)


# --- state dicts ----------------------------------------------------------------------------------------------------


def block_type(state_dict: Mapping[str, Any]) -> str | None:
    """Return the type of most of the bytes in blocks, "Q4_K"; None where the file has no blocks."""
    sizes: Counter[str] = Counter()
    for key, tensor in state_dict.items():
        if kind := PACKED_SUFFIXES.get(key.rpartition(".")[2]):
            sizes[kind] += tensor.nbytes
    return sizes.most_common(1)[0][0] if sizes else None


def _blocks(state_dict: StateDict, expected: Mapping[str, Any]):
    for key in expected:
        if packed := packed_key(state_dict, key):
            yield key, state_dict.pop(packed), PACKED_SUFFIXES[packed.rpartition(".")[2]]


def dequantise_all(state_dict: StateDict, expected: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Replace the blocks of `state_dict` by weights of `dtype`, one after the other."""
    packed = list(_blocks(state_dict, expected))
    progress = host_progress(len(packed))
    for done, (key, blocks, kind) in enumerate(packed, start=1):
        state_dict[key] = dequantise(blocks, kind, dtype)
        progress(done, len(packed))


def keep_blocks(state_dict: StateDict, expected: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Replace the blocks of `state_dict` by the host's quantised tensors, which show as weights of `dtype`."""
    for key, blocks, kind in _blocks(state_dict, expected):
        shape = tuple(expected[key].shape)
        if len(shape) == 2:
            state_dict[key] = QuantizedTensor(blocks, LAYOUT, BlocksParams(kind, dtype, shape))
        else:
            state_dict[key] = dequantise(blocks, kind, dtype)


def name_blocks(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return what Save Model writes: blocks under `<layer>.<type>_qweight` and without the host's marks.

    Raises ModelFileError where a LoRA is on a layer in blocks: the file would not have it.
    """
    out = dict(state_dict)
    for key, mark in state_dict.items():
        layer, _, suffix = key.rpartition(".")
        values = json.loads(bytes(mark.tolist())) if suffix == "comfy_quant" else {}
        if not str(values.get("format")).startswith(f"{FORMAT}_"):
            continue
        if values.get(PATCHED):
            raise ModelFileError(
                f"A LoRA or merge cannot be saved into weights in GGUF blocks ({layer}). "
                "Load the model with weight_dtype bf16, then save it, or save it without the LoRA."
            )
        del out[key]
        out[f"{layer}.{values['format'].removeprefix(f'{FORMAT}_')}_qweight"] = out.pop(f"{layer}.weight")
    return out
