"""From files and folders to the host's MODEL, VAE and CLIP."""

from __future__ import annotations

import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sd
import comfy.utils
import torch

from ...cogvideox.checkpoint import CheckpointError, check_keys, normalise_transformer, normalise_vae, split_add_on
from ...cogvideox.detection import detect_variant, transformer_config, vae_config
from ...cogvideox.ggml import ARCHITECTURE
from ...cogvideox.transformer import CogVideoXTransformer3DModel
from ...cogvideox.vae import AutoencoderKLCogVideoX
from ...cogvideox.variants import LATENT_CHANNELS, TransformerConfig, VAEConfig, Variant
from .files import (
    ModelFileError,
    StateDict,
    check_numbers,
    read_config,
    read_folder,
    read_json,
    read_state_dict,
)
from .gguf import (
    FORMAT,
    GGUF,
    attend_to_patches,
    block_type,
    dequantise_all,
    keep_blocks,
    operations,
    read_gguf,
)
from .model import ModelConfig, let_go, sample_with_leading_latent
from .precision import (
    FLOAT8,
    FP8_FAST,
    WEIGHT_DTYPES,
    cast_weights,
    check_quantisation,
    choose_dtype,
    mark_quantised_layers,
    multiply_in_eight_bits,
    quantise,
)
from .text_encoder import load_text_encoder
from .vae import VAE

log = logging.getLogger(__name__)

HAVE_LOADERS = ("ConsisID", "Diffusion as Shader", "Tora")  # branches that nodes of their own load
PADDING_KEY = "cogvideox_leading_latent"
LET_GO_KEY = "cogvideox_let_go"


def load_model(
    path: str,
    weight_dtype: str = "auto",
    override: str = "auto",
    with_branch: bool = False,
    disable_dynamic: bool = False,
):
    """Load a transformer from a weight file, a component folder or a pipeline folder as the host's ModelPatcher.

    `with_branch` says that the branch beside the transformer, which has its own loader, is loaded as well.
    """
    state_dict, variant, add_on = read_transformer(Path(path), override)
    if with_branch:
        add_on = ""
    state_dict, _ = comfy.utils.convert_old_quants(state_dict, "", metadata={})
    with torch.device("meta"):
        expected = CogVideoXTransformer3DModel(variant.transformer).state_dict()
    check_keys(state_dict, {key: tensor.shape for key, tensor in expected.items()})
    check_quantisation(state_dict)
    check_numbers(state_dict)

    wanted = WEIGHT_DTYPES[weight_dtype]
    blocks = block_type(state_dict)
    if blocks and wanted in FLOAT8:
        raise ModelFileError(
            f"{Path(path).name} is quantised already ({blocks}): weight_dtype {weight_dtype} would only lose detail. "
            "Set weight_dtype to auto, or take an unquantised file of the model."
        )
    if blocks and wanted is not None:
        dequantise_all(state_dict, expected, wanted)
        blocks = None
    if wanted in FLOAT8:
        quantise(state_dict, wanted)
    if weight_dtype == FP8_FAST:
        multiply_in_eight_bits(state_dict, variant.transformer)
    model_config = ModelConfig(variant, add_on)
    model_config.quant_config = {FORMAT: blocks} if blocks else comfy.utils.detect_layer_quantization(state_dict, "")
    dtype = choose_dtype(model_config, state_dict, wanted)
    if blocks:
        compute = model_config.manual_cast_dtype or dtype
        keep_blocks(state_dict, expected, compute)
        model_config.custom_operations = operations(compute)
    if model_config.quant_config is None and dtype not in FLOAT8:
        cast_weights(state_dict, dtype)
    patcher = make_patcher(model_config, state_dict, disable_dynamic)
    if blocks:
        attend_to_patches(patcher)
    patcher.cached_patcher_init = (load_model, (path, weight_dtype, override, with_branch))
    log.info("%s", describe(patcher))
    return patcher


def read_transformer(path: Path, override: str) -> tuple[StateDict, Variant, str]:
    """Return tensors in diffusers' names, the variant and whose add-on was left out; config.json files win."""
    config, scheduler, vae, colours, pipeline, architecture = None, {}, {}, (), None, None
    if path.is_dir():
        folder = path / "transformer" if (path / "transformer").is_dir() else path
        values = read_config(folder / "config.json", defaults(TransformerConfig))
        config = TransformerConfig.from_json(values) if values else None
        scheduler = read_config(folder.parent / "scheduler" / "scheduler_config.json", {"snr_shift_scale": 1.0})
        vae = read_config(folder.parent / "vae" / "config.json", {"scaling_factor": 1.0})
        colours = latent_colours(read_json(folder.parent / "vae" / "config.json"))
        pipeline = read_json(folder.parent / "model_index.json").get("_class_name")
        state_dict, metadata = read_folder(folder)
        mark_quantised_layers(state_dict, metadata)
    elif path.suffix.lower() == GGUF:
        state_dict, architecture = read_gguf(path)
    else:
        state_dict, metadata = read_state_dict(path)
        mark_quantised_layers(state_dict, metadata)
    try:
        state_dict, add_on = split_add_on(normalise_transformer(state_dict))
    except CheckpointError as error:
        if architecture in (None, ARCHITECTURE):
            raise
        raise ModelFileError(
            f"{path.name} holds a model of the architecture {architecture}, but a CogVideoX transformer was needed. "
            "Load it with a node made for it, or choose a CogVideoX file here."
        ) from error
    config = config or transformer_config(state_dict)
    variant = detect_variant(state_dict, config, scheduler, vae, override, pipeline)
    return state_dict, replace(variant, colours=colours), add_on


def latent_colours(vae: dict[str, Any]) -> tuple[tuple[float, ...], ...]:
    """Return a vae/config.json's colours of a latent's channels, under ComfyUI's names for them; empty without them."""
    factors, bias = vae.get("latent_rgb_factors"), vae.get("latent_rgb_factors_bias")
    rows = [*factors, bias] if isinstance(factors, list) else []
    fits = len(rows) == LATENT_CHANNELS + 1 and all(isinstance(row, list) and len(row) == 3 for row in rows)
    if not fits or not all(isinstance(value, int | float) for row in rows for value in row):
        return ()
    return tuple(tuple(map(float, row)) for row in rows)


def defaults(config: type) -> dict[str, Any]:
    """Return the fields of a config dataclass with their defaults."""
    return {field.name: field.default for field in fields(config)}


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
    patcher.add_wrapper_with_key(outer_sample, LET_GO_KEY, let_go)
    return patcher


def describe(patcher) -> str:
    """Say what was recognised, how it is stored and its size: "CogVideoX-5B-I2V, bf16, 11.2 GB"."""
    dtype = patcher.model.get_dtype()
    name = next((name for name, value in WEIGHT_DTYPES.items() if value == dtype), str(dtype))
    formats = {getattr(module, "quant_format", None) for module in patcher.model.diffusion_model.modules()} - {None}
    if blocks := (patcher.model.model_config.quant_config or {}).get(FORMAT):
        formats = {blocks}
    if formats:
        name = ", ".join(sorted(formats)).replace("float8", "fp8") + " quantised"
    size = patcher.model_size()
    size = f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
    text = f"{patcher.model.variant.name}, {name}, {size}"
    if add_on := patcher.model.model_config.add_on:
        text += f"\nThis is the base of {add_on} alone: the layers that {add_on} adds to it are left out."
        text += f" Load CogVideoX {add_on} loads them too." if add_on in HAVE_LOADERS else ""
    return text


def load_vae(path: str, weight_dtype: str = "auto", disable_dynamic: bool = False) -> VAE:
    """Load CogVideoX's VAE from a weight file, a component folder or a pipeline folder."""
    source = Path(path)
    config = None
    if source.is_dir():
        folder = source / "vae" if (source / "vae").is_dir() else source
        values = read_config(folder / "config.json", defaults(VAEConfig))
        config = VAEConfig.from_json(values) if values else None
        state_dict, _ = read_folder(folder)
    else:
        state_dict, _ = read_state_dict(source)
    state_dict = normalise_vae(state_dict)
    config = config or vae_config(state_dict)
    with torch.device("meta"):
        expected = AutoencoderKLCogVideoX(config).state_dict()
    check_keys(state_dict, {key: tensor.shape for key, tensor in expected.items()})
    check_numbers(state_dict)
    vae = VAE(state_dict, config, WEIGHT_DTYPES[weight_dtype], disable_dynamic)
    vae.patcher.cached_patcher_init = (load_vae_patcher, (path, weight_dtype))
    return vae


def load_vae_patcher(path: str, weight_dtype: str, disable_dynamic: bool = False):
    """Load the VAE anew and return its patcher, for the host's clones on other devices."""
    return load_vae(path, weight_dtype, disable_dynamic).patcher


def load_clip(path: str, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """Load a T5 text encoder from a weight file, a component folder or a pipeline folder."""
    source = Path(path)
    config = {}
    if source.is_dir():
        folder = source / "text_encoder" if (source / "text_encoder").is_dir() else source
        config = read_json(folder / "config.json")
        state_dict, metadata = read_folder(folder)
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
