"""Pipelines of any size with random weights, on disk in the layout in which the released ones are published."""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from pack.cogvideox.transformer import CogVideoXTransformer3DModel
from pack.cogvideox.vae import AutoencoderKLCogVideoX
from pack.cogvideox.variants import RELEASED, VAEConfig, Variant
from pack.demo.tiny_pipeline import TEXT_CONFIG, module_shapes, scheduler_config

WEIGHT_SCALE = 0.02
SAFETENSORS_TYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
DRAWN = 2**24 + 3  # numbers drawn once and repeated: billions of them would take minutes

# The T5 v1.1 XXL encoder, and one that a processor encodes with in moments.
T5_XXL = dict(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
T5_SMALL = dict(d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4)


def variant_of(name: str, layers: int = 0, heads: int = 0, text_width: int = 0) -> Variant:
    """Return a released variant by name, with other numbers where they are given."""
    variant = next(variant for variant in RELEASED if variant.name == name)
    given = dict(num_layers=layers, num_attention_heads=heads, text_embed_dim=text_width)
    changes = {field: value for field, value in given.items() if value}
    return replace(variant, transformer=replace(variant.transformer, **changes))


def _stretch(drawn: torch.Tensor, start: int, count: int) -> torch.Tensor:
    """Return `count` of the numbers `drawn`, from `start` on and over again."""
    first = drawn[start : start + count]
    rest = count - len(first)
    return first if rest == 0 else torch.cat((first, drawn.repeat(-(-rest // len(drawn)))[:rest]))


def write_weights(path: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    """Write random weights, norms about 1, tensor by tensor in the safetensors format."""
    header, end = {}, 0
    for key, shape in shapes.items():
        start, end = end, end + dtype.itemsize * torch.Size(shape).numel()
        header[key] = {"dtype": SAFETENSORS_TYPES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    largest = max(torch.Size(shape).numel() for shape in shapes.values())
    drawn = torch.randn(min(DRAWN, largest), generator=torch.Generator().manual_seed(0)) * WEIGHT_SCALE
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for number, (key, shape) in enumerate(shapes.items()):
            count = torch.Size(shape).numel()
            values = _stretch(drawn, 997 * number % len(drawn), count)
            values = values + 1 if len(shape) == 1 and key.endswith("weight") else values
            file.write(values.to(dtype).view(torch.uint8).numpy().tobytes())


def t5_config(sizes: dict[str, int]) -> dict[str, Any]:
    """Return the config.json of a T5 v1.1 encoder."""
    shared = {name: value for name, value in TEXT_CONFIG.items() if name != "torch_dtype"}
    return {**shared, **sizes, "num_decoder_layers": sizes["num_layers"]}


def t5_shapes(sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the tensors of transformers' T5EncoderModel."""
    from transformers import T5Config, T5EncoderModel

    with torch.device("meta"):
        shapes = module_shapes(T5EncoderModel(T5Config(**t5_config(sizes))))
    return {name: shape for name, shape in shapes.items() if name != "encoder.embed_tokens.weight"}  # shared.weight


def write_pipeline(folder: Path, variant: Variant, text: dict[str, int], dtype: torch.dtype) -> Path:
    """Write a text-to-video pipeline of `variant` with the released VAE and a T5 of `text` sizes; return its folder."""
    vae = VAEConfig()
    with torch.device("meta"):
        transformer = module_shapes(CogVideoXTransformer3DModel(variant.transformer))
        coder = module_shapes(AutoencoderKLCogVideoX(vae))
    write_weights(folder / "transformer" / "diffusion_pytorch_model.safetensors", transformer, dtype)
    write_weights(folder / "vae" / "diffusion_pytorch_model.safetensors", coder, dtype)
    write_weights(folder / "text_encoder" / "model.safetensors", t5_shapes(text), dtype)
    scheduler = "CogVideoXDDIMScheduler"
    depth = len(vae.block_out_channels)
    configs = {
        "model_index.json": {
            "_class_name": "CogVideoXPipeline",
            "scheduler": ["diffusers", scheduler],
            "text_encoder": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "T5Tokenizer"],
            "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
            "vae": ["diffusers", "AutoencoderKLCogVideoX"],
        },
        "scheduler/scheduler_config.json": scheduler_config(scheduler, variant.snr_shift_scale),
        "text_encoder/config.json": t5_config(text),
        "transformer/config.json": {"_class_name": "CogVideoXTransformer3DModel", **asdict(variant.transformer)},
        "vae/config.json": {
            "_class_name": "AutoencoderKLCogVideoX",
            **asdict(vae),
            "down_block_types": ["CogVideoXDownBlock3D"] * depth,
            "up_block_types": ["CogVideoXUpBlock3D"] * depth,
            "scaling_factor": variant.latent_scale,
        },
    }
    for name, values in configs.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return folder
