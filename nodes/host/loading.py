"""From files and folders to the host's MODEL, VAE and CLIP."""

from __future__ import annotations

import logging
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sd
import comfy.utils
import torch

from ...cogvideox.checkpoint import (
    check_keys,
    detect_variant,
    normalise_transformer,
    normalise_vae,
    transformer_config,
    vae_config,
)
from ...cogvideox.keys import KNOWN_PREFIXES, QUANT_SUFFIXES
from ...cogvideox.transformer import CogVideoXTransformer3DModel
from ...cogvideox.vae import AutoencoderKLCogVideoX
from ...cogvideox.variants import TransformerConfig, VAEConfig, Variant
from .files import ModelFileError, StateDict, read_config, read_folder, read_json, read_state_dict
from .model import ModelConfig, forget_tables, sample_with_leading_latent
from .text_encoder import load_text_encoder
from .vae import VAE

log = logging.getLogger(__name__)

WEIGHT_DTYPES = {
    "auto": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)

# The weights that stand eight bits: the large matrices of the blocks. Embeddings, norms and biases do not
# (the keep list of the older pack and of torchao's CogVideoX recipe).
EIGHT_BIT = re.compile(r"transformer_blocks\.\d+\.(attn1\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2))\.weight")

PADDING_KEY = "cogvideox_leading_latent"
TABLES_KEY = "cogvideox_position_tables"


def load_model(path: str, weight_dtype: str = "auto", override: str = "auto", disable_dynamic: bool = False):
    """Load a transformer from a weight file, a component folder or a pipeline folder as the host's ModelPatcher."""
    state_dict, variant = read_transformer(Path(path), override)
    state_dict, _ = comfy.utils.convert_old_quants(state_dict, "", metadata={})
    with torch.device("meta"):
        expected = CogVideoXTransformer3DModel(variant.transformer).state_dict()
    check_keys(state_dict, {key: tensor.shape for key, tensor in expected.items()})
    check_quantisation(state_dict)

    model_config = ModelConfig(variant)
    model_config.quant_config = comfy.utils.detect_layer_quantization(state_dict, "")
    dtype = choose_dtype(model_config, state_dict, WEIGHT_DTYPES[weight_dtype])
    if model_config.quant_config is None:
        cast_weights(state_dict, dtype)
    patcher = make_patcher(model_config, state_dict, disable_dynamic)
    patcher.cached_patcher_init = (load_model, (path, weight_dtype, override))
    log.info("%s", describe(patcher))
    return patcher


def read_transformer(path: Path, override: str) -> tuple[StateDict, Variant]:
    """Return tensors in diffusers' names and the variant; config.json files beside the weights win."""
    config, scheduler, vae, pipeline = None, {}, {}, None
    if path.is_dir():
        folder = path / "transformer" if (path / "transformer").is_dir() else path
        values = read_config(folder / "config.json", defaults(TransformerConfig))
        config = TransformerConfig.from_json(values) if values else None
        scheduler = read_config(folder.parent / "scheduler" / "scheduler_config.json", {"snr_shift_scale": 1.0})
        vae = read_config(folder.parent / "vae" / "config.json", {"scaling_factor": 1.0})
        pipeline = read_json(folder.parent / "model_index.json").get("_class_name")
        state_dict = read_folder(folder)
    else:
        state_dict, metadata = read_state_dict(path)
        mark_quantised_layers(state_dict, metadata)
    state_dict = normalise_transformer(state_dict)
    config = config or transformer_config(state_dict)
    return state_dict, detect_variant(state_dict, config, scheduler, vae, override, pipeline)


def mark_quantised_layers(state_dict: StateDict, metadata: dict[str, str]) -> None:
    """Put what a file's metadata says of quantised layers beside their weights, so that it is renamed with them."""
    marks, _ = comfy.utils.convert_old_quants({}, "", metadata=metadata)
    for key, mark in marks.items():  # named as in the file, or without the file's prefix
        weight = key.replace("comfy_quant", "weight")
        prefix = next((prefix for prefix in KNOWN_PREFIXES if prefix + weight in state_dict), "")
        state_dict[prefix + key] = mark


def check_quantisation(state_dict: StateDict) -> None:
    """Raise where a layer is quantised and the host is not told how: it would use the scaled numbers as they are."""
    for key in state_dict:
        layer, _, suffix = key.rpartition(".")
        if suffix in QUANT_SUFFIXES and f"{layer}.comfy_quant" not in state_dict:
            raise ModelFileError(
                f"The file is quantised in a way that ComfyUI does not read ({key}). "
                "Use the unquantised file of the model with weight_dtype fp8_e4m3fn, or one quantised for ComfyUI."
            )


def defaults(config: type) -> dict[str, Any]:
    """Return the fields of a config dataclass with their defaults."""
    return {field.name: field.default for field in fields(config)}


def choose_dtype(config: ModelConfig, state_dict: StateDict, wanted: torch.dtype | None) -> torch.dtype:
    """Set how weights are stored and computed with on `config`; return the storage type of unquantised weights.

    Never wider than the file unless asked: a card without bfloat16 computes in float32 layer by layer.
    """
    device = comfy.model_management.get_torch_device()
    supported = list(config.supported_inference_dtypes)
    in_file = comfy.utils.weight_dtype(state_dict)
    dtype = wanted
    if dtype is None:
        parameters = comfy.utils.calculate_parameters(state_dict)
        dtype = comfy.model_management.unet_dtype(
            model_params=parameters, supported_dtypes=supported, weight_dtype=in_file
        )
        if in_file is not None and in_file.itemsize < dtype.itemsize:
            dtype = in_file
    if config.quant_config is not None:
        compute = comfy.model_management.unet_manual_cast(None, device, supported)
    elif dtype in supported:
        compute = comfy.model_management.unet_manual_cast(dtype, device, supported)
    else:  # storage only, as with eight bits: fp16 in a model that overflows in it
        compute = comfy.model_management.unet_manual_cast(torch.float8_e4m3fn, device, supported)
    config.set_inference_dtype(dtype, compute, device=device)
    return dtype


def cast_weights(state_dict: StateDict, dtype: torch.dtype) -> None:
    """Cast weights in place of the dict, one after the other; eight bits only where the model bears them."""
    for key, tensor in state_dict.items():
        kept = dtype
        if dtype in FLOAT8 and not EIGHT_BIT.fullmatch(key):
            kept = torch.bfloat16 if tensor.dtype.itemsize < 4 else tensor.dtype
        if tensor.dtype != kept and not (tensor.dtype in FLOAT8 and dtype in FLOAT8):
            state_dict[key] = tensor.to(kept)


def make_patcher(config: ModelConfig, state_dict: StateDict, disable_dynamic: bool):
    """Build the model, give it the tensors themselves (no copy) and wrap it for the host."""
    device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    model = config.get_model(state_dict)
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(model, load_device=device, offload_device=offload_device)
    # The mapped tensors become the parameters, so that a file takes its own size in memory and no more.
    model.load_model_weights(state_dict, "", assign=True)
    if not comfy.model_management.is_device_cpu(offload_device):
        model.to(offload_device)
    outer_sample = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    patcher.add_wrapper_with_key(outer_sample, PADDING_KEY, sample_with_leading_latent)
    patcher.add_wrapper_with_key(outer_sample, TABLES_KEY, forget_tables)
    return patcher


def describe(patcher) -> str:
    """Say what was recognised, how it is stored and its size: "CogVideoX-5B-I2V, bf16, 11.2 GB"."""
    dtype = patcher.model.get_dtype()
    name = next((name for name, value in WEIGHT_DTYPES.items() if value == dtype), str(dtype))
    quantised = " quantised" if patcher.model.model_config.quant_config else ""
    size = patcher.model_size()
    size = f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
    return f"{patcher.model.variant.name}, {name}{quantised}, {size}"


def load_vae(path: str, weight_dtype: str = "auto", disable_dynamic: bool = False) -> VAE:
    """Load CogVideoX's VAE from a weight file, a component folder or a pipeline folder."""
    source = Path(path)
    config = None
    if source.is_dir():
        folder = source / "vae" if (source / "vae").is_dir() else source
        values = read_config(folder / "config.json", defaults(VAEConfig))
        config = VAEConfig.from_json(values) if values else None
        state_dict = read_folder(folder)
    else:
        state_dict, _ = read_state_dict(source)
    state_dict = normalise_vae(state_dict)
    config = config or vae_config(state_dict)
    with torch.device("meta"):
        expected = AutoencoderKLCogVideoX(config).state_dict()
    check_keys(state_dict, {key: tensor.shape for key, tensor in expected.items()})
    vae = VAE(state_dict, config, WEIGHT_DTYPES[weight_dtype], disable_dynamic)
    vae.patcher.cached_patcher_init = (load_vae_patcher, (path, weight_dtype))
    return vae


def load_vae_patcher(path: str, weight_dtype: str, disable_dynamic: bool = False):
    """Load the VAE anew and return its patcher, for the host's clones on other devices."""
    return load_vae(path, weight_dtype, disable_dynamic).patcher


def load_clip(path: str, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """Load a T5 text encoder from a weight file, a component folder or a pipeline folder."""
    source = Path(path)
    config, metadata = {}, {}
    if source.is_dir():
        folder = source / "text_encoder" if (source / "text_encoder").is_dir() else source
        config = read_json(folder / "config.json")
        state_dict = read_folder(folder)
    else:
        state_dict, metadata = read_state_dict(source)
    reload = (load_clip_patcher, (path,))
    return load_text_encoder(state_dict, config, reload, disable_dynamic, metadata)


def load_clip_patcher(path: str, disable_dynamic: bool = False):
    """Load the text encoder anew and return its patcher, for the host's clones."""
    return load_clip(path, disable_dynamic).patcher


PIPELINE_PARTS = ("transformer", "vae", "text_encoder")


def check_pipeline(folder: Path) -> None:
    """Raise unless the folder holds every part of a pipeline, naming those that are missing."""
    missing = [part for part in PIPELINE_PARTS if not (folder / part).is_dir()]
    if missing:
        raise ModelFileError(
            f"The pipeline {folder.name} is not complete. Missing: {', '.join(missing)}. "
            "Download the whole folder of the model, or use the single loaders."
        )


def load_pipeline(folder: Path, weight_dtype: str = "auto", override: str = "auto"):
    """Load MODEL, CLIP and VAE from one folder in the diffusers layout."""
    check_pipeline(folder)
    vae_dtype = weight_dtype if weight_dtype in ("bf16", "fp16", "fp32") else "auto"
    return load_model(str(folder), weight_dtype, override), load_clip(str(folder)), load_vae(str(folder), vae_dtype)
