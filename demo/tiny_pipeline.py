"""Write a tiny CogVideoX pipeline with random weights in the layout in which the released ones are published.

It shows and tests the way from files to video in seconds on a CPU; what it paints is noise. Each variant differs from
the others as the released models do (positions, patches in time, image channels, scales), at 96 x 64 and 9 frames.

    python demo/tiny_pipeline.py FOLDER [--variant 5b-i2v] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import sys
import types
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

if not __package__:  # run as a file: name the pack without putting its folder on sys.path
    pack = sys.modules["pack"] = types.ModuleType("pack")
    pack.__path__ = [str(Path(__file__).resolve().parents[1])]
    __package__ = "pack.demo"

from ..cogvideox.transformer import CogVideoXTransformer3DModel
from ..cogvideox.vae import AutoencoderKLCogVideoX
from ..cogvideox.variants import (
    LATENT_SCALE_2B,
    LATENT_SCALE_5B,
    SNR_SHIFT_2B,
    SNR_SHIFT_5B,
    TransformerConfig,
    VAEConfig,
)

WIDTH, HEIGHT, FRAMES = 96, 64, 9
DIFFUSERS_VERSION = "0.32.0"  # the first release that reads every variant
TEXT_WIDTH = 32
TEXT_LAYERS = 2

_TINY = dict(
    num_attention_heads=2,
    attention_head_dim=32,
    num_layers=2,
    time_embed_dim=32,
    text_embed_dim=TEXT_WIDTH,
    sample_height=HEIGHT // 8,
    sample_width=WIDTH // 8,
    sample_frames=FRAMES,
)
_ROTARY = dict(_TINY, use_rotary_positional_embeddings=True)
_15 = dict(_ROTARY, patch_size_t=2, patch_bias=False)
VARIANTS = {
    "2b": TransformerConfig(**_TINY),
    "5b": TransformerConfig(**_ROTARY),
    "5b-i2v": TransformerConfig(**_ROTARY, in_channels=32, use_learned_positional_embeddings=True),
    "1.5": TransformerConfig(**_15),
    "1.5-i2v": TransformerConfig(**_15, in_channels=32, ofs_embed_dim=_TINY["time_embed_dim"]),
    "2b-i2v": TransformerConfig(**_TINY, in_channels=32),
    "fun-inp": TransformerConfig(**_ROTARY, in_channels=33),
    "fun-inp-1.5": TransformerConfig(**_15, in_channels=33),
    "fun-control": TransformerConfig(**_ROTARY, in_channels=32),
    "void": TransformerConfig(**_15, in_channels=48),
}

VAE = VAEConfig(block_out_channels=(32, 32, 64, 64), layers_per_block=1, norm_num_groups=8)

TEXT_CONFIG: dict[str, Any] = {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "d_model": TEXT_WIDTH,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": TEXT_LAYERS,
    "num_decoder_layers": TEXT_LAYERS,
    "num_heads": 2,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
    "dense_act_fn": "gelu_new",
    "is_gated_act": True,
    "is_encoder_decoder": True,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "dropout_rate": 0.1,
    "initializer_factor": 1.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
}

TOKENIZER_CONFIG = {
    "tokenizer_class": "T5Tokenizer",
    "model_max_length": 226,
    "extra_ids": 100,
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}


def text_encoder_shapes() -> dict[str, tuple[int, ...]]:
    """Key names and shapes of transformers' T5EncoderModel."""
    width, hidden, heads = TEXT_CONFIG["d_model"], TEXT_CONFIG["d_ff"], TEXT_CONFIG["num_heads"]
    inner = heads * TEXT_CONFIG["d_kv"]
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (TEXT_CONFIG["vocab_size"], width)}
    for layer in range(TEXT_LAYERS):
        attention, feed = f"encoder.block.{layer}.layer.0", f"encoder.block.{layer}.layer.1"
        shapes |= {f"{attention}.SelfAttention.{name}.weight": (inner, width) for name in "qkv"}
        shapes |= {
            f"{attention}.SelfAttention.o.weight": (width, inner),
            f"{attention}.layer_norm.weight": (width,),
            f"{feed}.DenseReluDense.wi_0.weight": (hidden, width),
            f"{feed}.DenseReluDense.wi_1.weight": (hidden, width),
            f"{feed}.DenseReluDense.wo.weight": (width, hidden),
            f"{feed}.layer_norm.weight": (width,),
        }
    buckets = TEXT_CONFIG["relative_attention_num_buckets"]
    shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (buckets, heads)
    shapes["encoder.final_layer_norm.weight"] = (width,)
    return shapes


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """Draw weights that keep activations near unit size: 1/sqrt(fan in), gains near one, small biases."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in sorted(shapes.items()):
        draw = torch.randn(shape, generator=generator)
        if name.startswith("decoder.conv_out."):
            draw *= 0.25  # most pixels inside -1..1, where a test sees differences
        if len(shape) > 1 and not name.endswith(("shared.weight", "pos_embedding")):
            weights[name] = draw / draw[0].numel() ** 0.5
        elif len(shape) == 1 and name.endswith("weight"):
            weights[name] = 1 + 0.1 * draw
        else:
            weights[name] = draw if name == "shared.weight" else 0.1 * draw
    return weights


def module_shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def scheduler_config(name: str, snr_shift_scale: float) -> dict[str, Any]:
    return {
        "_class_name": name,
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "trained_betas": None,
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "sample_max_value": 1.0,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
        "snr_shift_scale": snr_shift_scale,
    }


def vae_config(variant: str) -> dict[str, Any]:
    depth = len(VAE.block_out_channels)
    return {
        "_class_name": "AutoencoderKLCogVideoX",
        **asdict(VAE),
        "act_fn": "silu",
        "down_block_types": ["CogVideoXDownBlock3D"] * depth,
        "up_block_types": ["CogVideoXUpBlock3D"] * depth,
        "sample_height": HEIGHT,
        "sample_width": WIDTH,
        "scaling_factor": LATENT_SCALE_2B if variant.startswith("2b") else LATENT_SCALE_5B,
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
        "force_upcast": True,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "invert_scale_latents": variant == "1.5-i2v",
    }


def write(folder: Path, variant: str = "5b", seed: int = 0) -> Path:
    """Write the pipeline of one of VARIANTS into `folder` and return it; the same seed gives the same files."""
    if variant not in VARIANTS:
        raise ValueError(f"There is no tiny variant {variant!r}; there are {', '.join(VARIANTS)}.")
    folder = Path(folder)
    config = VARIANTS[variant]
    kind = dict(dtype=torch.float32, device="cpu", operations=torch.nn)
    transformer = module_shapes(CogVideoXTransformer3DModel(config, **kind))
    vae = module_shapes(AutoencoderKLCogVideoX(VAE, **kind))

    scheduler = "CogVideoXDDIMScheduler" if variant.startswith("2b") else "CogVideoXDPMScheduler"
    snr_shift = SNR_SHIFT_2B if variant.startswith("2b") else SNR_SHIFT_5B
    pipeline = "CogVideoXPipeline" if config.in_channels == config.out_channels else "CogVideoXImageToVideoPipeline"
    index = {
        "_class_name": pipeline,
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    }
    configs = {
        "model_index.json": index,
        "scheduler/scheduler_config.json": scheduler_config(scheduler, snr_shift),
        "text_encoder/config.json": TEXT_CONFIG,
        "tokenizer/tokenizer_config.json": TOKENIZER_CONFIG,  # the vocabulary comes with ComfyUI
        "transformer/config.json": {"_class_name": "CogVideoXTransformer3DModel", **asdict(config)},
        "vae/config.json": vae_config(variant),
    }
    weights = {
        "text_encoder/model.safetensors": text_encoder_shapes(),
        "transformer/diffusion_pytorch_model.safetensors": transformer,
        "vae/diffusion_pytorch_model.safetensors": vae,
    }
    for number, (name, shapes) in enumerate(weights.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(random_weights(shapes, seed * len(weights) + number), path, metadata={"format": "pt"})
    for name, values in configs.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if "_class_name" in values:
            values = {**values, "_diffusers_version": DIFFUSERS_VERSION}
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--variant", choices=VARIANTS, default="5b")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"wrote {write(args.folder, args.variant, args.seed)}")


if __name__ == "__main__":
    main()
