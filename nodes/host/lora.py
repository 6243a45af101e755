"""LoRA files onto MODEL through the host's own weight adapters, so that offloading and eight bits go on working.

Nothing is merged: a clone of the patcher holds the adapters, and the host adds them whenever it loads a weight.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.weight_adapter
import torch

from ...cogvideox.checkpoint import some
from ...cogvideox.lora import (
    ALPHA,
    DIFF_BIAS,
    MAGNITUDE,
    MID,
    NONE,
    UP_BIAS,
    Layer,
    LoRA,
    choose_scaling,
    fit,
    input_channels,
    normalise_lora,
    scaled,
    span,
)
from ...cogvideox.transformer import CogVideoXTransformer3DModel
from .files import read_state_dict
from .model import PREFIX, CogVideoX
from .sampling import require_cogvideox

log = logging.getLogger(__name__)

SAMPLED = 4  # layers looked at to tell whether a LoRA without alpha is meant to be divided by its rank

# How LoRA files spell the module `transformer_blocks.0.attn1.to_q`, beside ComfyUI's own `diffusion_model.` and
# `lora_unet_`. The host adds the endings, `.default.` included.
DOTTED = ("transformer.{}", "{}", "base_model.model.{}", "transformer.base_model.model.{}", "model.diffusion_model.{}")
UNDERSCORED = ("lora_unet__{}", "lora_transformer_{}", "lycoris_{}")


class DoRA(comfy.weight_adapter.LoRAAdapter):
    """LoRA with a magnitude per output row: magnitude * (W + delta) / |W + delta|, as PEFT and the paper have it.

    The host's own divides by |W|. A strength other than 1 blends with the weight as it was.
    """

    def calculate_weight(
        self,
        weight,
        key,
        strength,
        strength_model,
        offset,
        function,
        intermediate_dtype=torch.float32,
        original_weight=None,
    ):
        up, down, alpha, _, magnitude, _ = self.weights
        up, down, magnitude = (
            comfy.model_management.cast_to_device(part, weight.device, intermediate_dtype)
            for part in (up, down, magnitude)
        )
        scale = 1.0 if alpha is None else alpha / down.shape[0]
        delta = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape) * scale
        turned = weight + function(delta).to(weight.dtype)
        norm = turned.flatten(1).norm(dim=1).reshape(magnitude.shape)
        turned *= (magnitude / norm).to(weight.dtype)
        return weight.lerp_(turned, strength)


def load_lora(model, path: str | Path, strength: float, scaling: str) -> tuple[object, str]:
    """Return a clone of MODEL with the LoRA of a file on it, and what was done in words."""
    network = require_cogvideox(model)
    state_dict, metadata = read_state_dict(path)
    lora = normalise_lora(state_dict, metadata)
    with torch.device("meta"):
        blank = CogVideoXTransformer3DModel(network.variant.transformer)
    shapes = {key: tensor.shape for key, tensor in blank.state_dict().items()}
    layers, misfits = fit(lora, shapes, network.variant.name)
    rule = choose_scaling(lora, scaling, lambda: outweighs(model, layers))
    layers = {module: scaled(layer, rule) for module, layer in layers.items()}
    told = describe(lora, layers, rule)
    channels = input_channels(lora, shapes) * network.variant.transformer.in_channels
    for warning in left_out(lora, misfits, channels, network):
        log.warning("%s: %s", Path(path).name, warning)
        told += f"\n{warning}"
    log.info("%s: %s", Path(path).name, told.partition("\n")[0])
    model = model.clone()
    if strength != 0:
        model.add_patches(adapters(layers), strength)
    return model, told


def describe(lora: LoRA, layers: dict[str, Layer], rule: str) -> str:
    """Say what applies and how it is scaled: "168 of 168 layers, rank 128, scaling alpha/rank 0.5"."""
    told = [f"{len(layers)} of {len(lora.layers) + len(lora.unknown)} layers"]
    ranked = [layer for layer in layers.values() if layer.rank]
    if ranked:
        scale = f" {span(layer.scale for layer in ranked)}" if rule != NONE else ""
        told += [f"rank {span(layer.rank for layer in ranked)}", f"scaling {rule}{scale}"]
    return ", ".join(told)


def left_out(lora: LoRA, misfits: list[str], channels: float, network: CogVideoX) -> list[str]:
    """Say which parts of the LoRA are left out, with counts and the first names."""
    told = []
    missing = [*misfits, *lora.unknown]
    if missing:
        told.append(f"Left out, not fitting {network.variant.name}: {len(missing)} layers ({some(missing)})")
    if channels > network.variant.transformer.in_channels:
        told.append(
            f"The LoRA was trained with {channels:.0f} input channels and {network.variant.name} has "
            f"{network.variant.transformer.in_channels}, so it gets no image, mask or control video here. Load the "
            "image-to-video, Fun or Control model that it was made for."
        )
    if lora.text:
        told.append(f"Left out, for a text encoder: {lora.text} tensors")
    if lora.others:
        told.append(f"Left out, no part of a LoRA: {lora.others} tensors")
    return told


def adapters(layers: dict[str, Layer]) -> dict[str, object]:
    """Return the host's patches by weight: its own adapters, and differences of biases."""
    tensors, weights, biases = {}, {}, {}
    for module, layer in layers.items():
        tensors |= {f"{module}.{name}": tensor for name, tensor in layer.tensors.items()}
        if layer.alpha is not None:
            tensors[f"{module}.{ALPHA}"] = torch.tensor(layer.alpha, dtype=torch.float64)
        weights[module] = f"{PREFIX}{module}.weight"
        if UP_BIAS in layer.tensors:
            bias = layer.tensors[UP_BIAS].float() * layer.scale
            biases[f"{module}.{DIFF_BIAS}"] = bias + layer.tensors.get(DIFF_BIAS, 0)
    patches = comfy.lora.load_lora(tensors | biases, weights, log_missing=False)
    for module, layer in layers.items():
        if layer.kind == "lora" and MID not in layer.tensors and _by_row(layer):
            adapter = patches[weights[module]]
            patches[weights[module]] = DoRA(adapter.loaded_keys, adapter.weights)
    return patches


def _by_row(layer: Layer) -> bool:
    """Say whether the layer has a magnitude for each output row."""
    return MAGNITUDE in layer.tensors and layer.tensors[MAGNITUDE].shape[0] == layer.shape[0]


def outweighs(model, layers: dict[str, Layer]) -> bool:
    """Say whether the plain products of a LoRA, not divided by anything, are larger than the weights they change.

    A LoRA changes a weight by some percent. One that is meant to be divided by its rank (DimensionX, exports of SAT)
    would be many times the weight, and no key of the file tells it from others.
    """
    names = [module for module, layer in layers.items() if layer.kind == "lora"]
    ratios = []
    for module in names[:: max(len(names) // SAMPLED, 1)][:SAMPLED]:
        key = f"{PREFIX}{module}.weight"
        weight, _, convert = comfy.model_patcher.get_key_weight(model.model, key)
        if key in model.backup:
            weight = model.backup[key].weight  # as the file has it, without the LoRAs that are on it now
        weight = (weight if convert is None else convert(weight, inplace=False)).float()
        ratios.append(layers[module].norm() / max(weight.norm().item(), torch.finfo(torch.float32).tiny))
    return bool(ratios) and sorted(ratios)[len(ratios) // 2] > 1


def register_lora_keys() -> None:
    """Teach the stock LoRA loaders the names that CogVideoX files use; other models see no change.

    They ask `comfy.lora.model_lora_keys_unet` which names mean which weight, and it decides by model class; there is no
    other hook. What it returns is only added to, and only for this pack's class.
    """
    stock = comfy.lora.model_lora_keys_unet
    if getattr(stock, "cogvideox", False):
        return

    @functools.wraps(stock)
    def model_lora_keys_unet(model, *args, **kwargs):
        if not isinstance(model, CogVideoX):
            return stock(model, *args, **kwargs)
        if not args:
            kwargs.setdefault("key_map", {})  # the host's default is one dict for all models
        key_map = stock(model, *args, **kwargs)
        for name, key in lora_keys(model).items():
            key_map.setdefault(name, key)
        return key_map

    model_lora_keys_unet.cogvideox = True
    comfy.lora.model_lora_keys_unet = model_lora_keys_unet


def lora_keys(model: CogVideoX) -> dict[str, str]:
    """Return weight by module name for every spelling that the stock loaders can be told of."""
    names = {}
    for key in model.state_dict():
        if not key.startswith(PREFIX) or not key.endswith(".weight"):
            continue
        module = key.removeprefix(PREFIX).removesuffix(".weight")
        spellings = [module]
        if ".attn1.to_" in module:  # diffusers before PEFT
            spellings += [module.replace(".to_", ".processor.to_").removesuffix(".0")]
        for spelling in spellings:
            names |= dict.fromkeys((form.format(spelling) for form in DOTTED), key)
            names |= dict.fromkeys((form.format(spelling.replace(".", "_")) for form in UNDERSCORED), key)
    return names
