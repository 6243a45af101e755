"""How a transformer's weights are kept and multiplied: types, scaled eight bits, and marks of quantised files.

Eight bits go the host's own way: a weight, its `weight_scale` and a mark `comfy_quant` for each layer, which LoRAs,
offloading and Save Model know how to treat.
"""

from __future__ import annotations

import json
import re

import comfy.model_management
import comfy.utils
import torch
from comfy.quant_ops import QUANT_ALGOS

from ...cogvideox.keys import KNOWN_PREFIXES, LARGE_MATRIX, PACKED_SUFFIXES, QUANT_SUFFIXES
from ...cogvideox.variants import TransformerConfig
from .files import ModelFileError, StateDict
from .model import ModelConfig
from .progress import host_progress

FP8_FAST = "fp8_e4m3fn_fast"
WEIGHT_DTYPES = {
    "auto": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    FP8_FAST: torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)

# The weights that stand eight bits: the large matrices of the blocks. Embeddings, norms with their linear layers, and
# biases do not (the keep list of the older pack and of torchao's CogVideoX recipe; 1.5 breaks with a narrow `norm1`).
# Of ConsisID the same: attention and feed-forward, not what maps the features of a face.
EIGHT_BIT = re.compile(
    rf"{LARGE_MATRIX.pattern}|perceiver_cross_attention\.\d+\.to_(q|kv|out)\.weight"
    r"|local_facial_extractor\.layers\.\d+\.(0\.to_(q|kv|out)|1\.(1|3))\.weight"
)

# Of those, the ones that may also multiply in eight bits. The host rounds what goes into them as it is, between -448
# and 448: normalised tokens and what attention makes of them stay in there, the hidden layer of the feed-forward may
# not. In 1.5 the whole feed-forward gives NaN (so the older pack found).
FAST_10 = re.compile(r".*\.(attn1\.to_(q|k|v|out\.0)|ff\.net\.0\.proj)\.weight")
FAST_15 = re.compile(r".*\.attn1\.to_(q|k|v|out\.0)\.weight")

EXACT = "full_precision_matrix_mult"  # the host's word for: widen the weight, then multiply


def mark_quantised_layers(state_dict: StateDict, metadata: dict[str, str]) -> None:
    """Put what a file's metadata says of quantised layers beside their weights, so that it is renamed with them."""
    marks, _ = comfy.utils.convert_old_quants({}, "", metadata=metadata)
    for key, mark in marks.items():  # named as in the file, or without the file's prefix
        weight = key.replace("comfy_quant", "weight")
        prefix = next((prefix for prefix in KNOWN_PREFIXES if prefix + weight in state_dict), "")
        state_dict[prefix + key] = mark


def check_quantisation(state_dict: StateDict) -> None:
    """Raise where a layer is quantised and the host is not told how: it would use the scaled numbers as they are."""
    for key, tensor in state_dict.items():
        layer, _, suffix = key.rpartition(".")
        if suffix in PACKED_SUFFIXES:
            continue
        if suffix == "comfy_quant":
            number_format = json.loads(bytes(tensor.tolist())).get("format")
            if number_format not in QUANT_ALGOS:
                raise ModelFileError(
                    f"The file is quantised to {number_format} ({layer}), which this ComfyUI does not know. "
                    f"Update ComfyUI, or use a file in one of: {', '.join(QUANT_ALGOS)}."
                )
        if suffix in QUANT_SUFFIXES and f"{layer}.comfy_quant" not in state_dict:
            raise ModelFileError(
                f"The file is quantised in a way that ComfyUI does not read ({key}). "
                "Use the unquantised file of the model with weight_dtype fp8_e4m3fn, or one quantised for ComfyUI."
            )


def _mark(values: dict) -> torch.Tensor:
    return torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8)


def _scaled(weight: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a matrix in eight bits and its scale, a float32 scalar: the largest number becomes the type's largest."""
    limit, weight = torch.finfo(dtype).max, weight.float()
    scale = (weight.abs().amax() / limit).clamp(min=torch.finfo(torch.float32).tiny)
    return (weight / scale).clamp_(-limit, limit).to(dtype), scale


def quantise(state_dict: StateDict, dtype: torch.dtype) -> None:
    """Replace the large matrices of `state_dict` by scaled eight bits, one after the other, and mark them for the host.

    What has eight bits or is quantised already keeps its numbers. Weights are widened to multiply.
    """
    names = [key for key in state_dict if EIGHT_BIT.fullmatch(key)]
    progress = host_progress(len(names))
    for done, key in enumerate(names, start=1):
        layer, weight = key.removesuffix(".weight"), state_dict[key]
        if f"{layer}.comfy_quant" not in state_dict:
            if weight.dtype in FLOAT8:
                scale = torch.ones(())
            else:
                weight, scale = _scaled(weight, dtype)
            number_format = str(weight.dtype).removeprefix("torch.")
            state_dict[key], state_dict[f"{layer}.weight_scale"] = weight, scale
            state_dict[f"{layer}.comfy_quant"] = _mark({"format": number_format, EXACT: True})
        progress(done, len(names))


def multiply_in_eight_bits(state_dict: StateDict, config: TransformerConfig) -> None:
    """Change the marks of `state_dict` so that the host multiplies in eight bits where the model bears it."""
    fast = FAST_10 if config.patch_size_t is None else FAST_15
    for key in filter(fast.fullmatch, list(state_dict)):
        mark = key.removesuffix("weight") + "comfy_quant"
        values = json.loads(bytes(state_dict[mark].tolist()))
        if values["format"] == "float8_e4m3fn":  # cards do not multiply e5m2 by e5m2
            values.pop(EXACT, None)
        state_dict[mark] = _mark(values)


def choose_dtype(config: ModelConfig, state_dict: StateDict, wanted: torch.dtype | None) -> torch.dtype:
    """Set how weights are stored and computed with on `config`; return the storage type of unquantised weights.

    Never wider than the file unless asked: a card without bfloat16 computes in float32 layer by layer.
    """
    device = comfy.model_management.get_torch_device()
    supported = list(config.supported_inference_dtypes)
    in_file = comfy.utils.weight_dtype(
        {key: tensor for key, tensor in state_dict.items() if tensor.is_floating_point()}
    )
    dtype = wanted
    if dtype is None:
        parameters = comfy.utils.calculate_parameters(state_dict)
        dtype = comfy.model_management.unet_dtype(
            model_params=parameters, supported_dtypes=supported, weight_dtype=in_file
        )
        # The bytes of a quantised file are no type that the rest of it could have.
        if in_file is not None and in_file.is_floating_point and in_file.itemsize < dtype.itemsize:
            dtype = in_file
    if config.quant_config is not None:
        compute = comfy.model_management.unet_manual_cast(None, device, supported)
    elif dtype in supported:
        compute = comfy.model_management.unet_manual_cast(dtype, device, supported)
    else:  # storage only, as with eight bits: fp16 in a model that overflows in it
        compute = comfy.model_management.unet_manual_cast(torch.float8_e4m3fn, device, supported)
    config.set_inference_dtype(dtype, compute)
    return dtype


def cast_weights(state_dict: StateDict, dtype: torch.dtype) -> None:
    """Replace the weights of `state_dict` by such of `dtype`, one after the other."""
    names = [key for key, tensor in state_dict.items() if tensor.dtype != dtype]
    progress = host_progress(len(names))
    for done, key in enumerate(names, start=1):
        state_dict[key] = state_dict[key].to(dtype)
        progress(done, len(names))
