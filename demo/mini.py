"""What cogvideox-mini is: the sizes of its three models, and how trained weights become the released folder layout.

The layout is that of the official pipelines (model_index.json and one folder a model, each with its config.json and
safetensors), so that the loader of the large models reads it.
"""

from __future__ import annotations

import json
import math
import sys
import types
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

if not __package__:  # imported beside a script: name the pack without putting its folder on sys.path
    pack = sys.modules.setdefault("pack", types.ModuleType("pack"))
    pack.__path__ = [str(Path(__file__).resolve().parents[1])]
    __package__ = "pack.demo"

from ..cogvideox.positions import sincos_table
from ..cogvideox.transformer import CogVideoXTransformer3DModel
from ..cogvideox.vae import AutoencoderKLCogVideoX
from ..cogvideox.variants import LATENT_CHANNELS, SNR_SHIFT_2B, TEXT_TOKENS, TransformerConfig, VAEConfig
from . import tiny_pipeline

WIDTH, HEIGHT, FRAMES = 96, 64, 17

# Flat pictures are seen through much noise: with the schedule of 5B, what happens and where is decided in its noisiest
# third, with that of 2B in its noisier half.
SNR_SHIFT = SNR_SHIFT_2B

VAE = VAEConfig(block_out_channels=(16, 32, 32, 64), layers_per_block=1, norm_num_groups=8)

TEXT_CONFIG: dict[str, Any] = {
    **tiny_pipeline.TEXT_CONFIG,
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 256,
    "num_heads": 4,
    "num_layers": 3,
    "num_decoder_layers": 3,
    "dropout_rate": 0.0,
    "torch_dtype": "float16",
}

# How much less each head of the fresh T5 looks at words before and after, by step of its table of distances.
NEARNESS = ((-1.0, -4.0), (-4.0, -1.0), (-0.4, -0.4), (0.0, 0.0))

TRANSFORMER = TransformerConfig(
    num_attention_heads=6,
    attention_head_dim=32,
    num_layers=6,
    in_channels=2 * LATENT_CHANNELS,  # behind the noisy latents those of the pictures, zeros where nothing is known
    time_embed_dim=128,
    text_embed_dim=TEXT_CONFIG["d_model"],
    max_text_seq_length=TEXT_TOKENS,
    sample_height=HEIGHT // 8,
    sample_width=WIDTH // 8,
    sample_frames=FRAMES,
    use_rotary_positional_embeddings=True,
    use_learned_positional_embeddings=True,  # as 5B-I2V
)

# Where heads of the fresh transformer look from a token of the video, in tokens along (t, h, w); None: anywhere along
# it. Heads beyond these look by content alone.
OUTLOOKS = ((0, 0, 0), (-1, 0, 0), (1, 0, 0), (None, 0, 0))
OUTLOOK_BIAS, OUTLOOK_GAIN = 8.0, 1.5  # against content of unit size; two tokens away weigh a hundredth


def new_vae() -> AutoencoderKLCogVideoX:
    """Return the VAE with fresh weights that keep activations near unit size.

    Spatial norms begin as plain norms, residual branches small, the posterior narrow: PyTorch's own start makes
    colourless blobs for the first thousand steps.
    """
    vae = AutoencoderKLCogVideoX(VAE)
    for name, parameter in vae.named_parameters():
        if name.endswith("conv_y.conv.bias"):
            torch.nn.init.ones_(parameter)
        elif name.endswith("conv_b.conv.bias"):
            torch.nn.init.zeros_(parameter)
        elif parameter.ndim > 3 and "conv_y" not in name and "conv_b" not in name and "conv_shortcut" not in name:
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="linear")
            if name.endswith("conv2.conv.weight"):
                parameter.data *= 0.3
    logvar = vae.encoder.conv_out.conv
    logvar.weight.data[VAE.latent_channels :] *= 0.1
    logvar.bias.data[VAE.latent_channels :] = -6.0
    return vae


def new_transformer() -> CogVideoXTransformer3DModel:
    """Return the transformer with fresh weights, and heads that look near by from the start.

    Adaptive norms and output start at zero, as in DiT (arXiv 2212.09748), positions as sines and cosines.
    """
    model = CogVideoXTransformer3DModel(TRANSFORMER)
    for name, parameter in model.named_parameters():
        if name.startswith("proj_out") or ".norm1.linear" in name or ".norm2.linear" in name or "norm_out.lin" in name:
            torch.nn.init.zeros_(parameter)
        elif parameter.ndim == 2:
            torch.nn.init.xavier_uniform_(parameter)
    table = sincos_table(TRANSFORMER.sample_grid, TRANSFORMER.inner_dim, 1.0, 1.0, dtype=torch.float32, device="cpu")
    model.patch_embed.pos_embedding.data[0] = F.pad(table, (0, 0, TEXT_TOKENS, 0))
    for block in model.transformer_blocks:
        look_around(block.attn1)
    return model


def look_around(attention: torch.nn.Module) -> None:
    """Let the first heads of a fresh attention see best what lies at OUTLOOKS.

    A constant part of queries and keys, turned by the rotary positions, is a preference for a distance: we put it into
    the quickest pair of each axis. With it and the learned positions 230 steps of a trial did what took 250 without.
    """
    width = TRANSFORMER.attention_head_dim
    axes = (0, width // 4, width // 4 + width // 8 * 3)  # of a head's numbers, where those of t, h and w begin
    query, key = torch.zeros(2, TRANSFORMER.num_attention_heads, width)
    for head, outlook in enumerate(OUTLOOKS):
        for at, distance in zip(axes, outlook, strict=True):
            if distance is not None:
                key[head, at] = OUTLOOK_BIAS
                query[head, at] = OUTLOOK_BIAS * math.cos(distance)
                query[head, at + 1] = OUTLOOK_BIAS * math.sin(distance)
    attention.to_q.bias.data = query.flatten()
    attention.to_k.bias.data = key.flatten()
    for norm in (attention.norm_q, attention.norm_k):
        norm.weight.data.fill_(OUTLOOK_GAIN)


def new_text_encoder():
    """Return transformers' own T5 encoder with fresh weights, and heads that look near by from the start.

    With the usual start all words weigh alike, and in our few steps the T5 learns which words there are but not which
    stand together: "from red to blue" is read as "from blue to red".
    """
    from transformers import T5Config, T5EncoderModel

    known = {name: value for name, value in TEXT_CONFIG.items() if name not in ("architectures", "torch_dtype")}
    model = T5EncoderModel(T5Config(**known))
    # T5's table [buckets, heads]: half for the word itself and those before, half for those after, from near to far.
    bias = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.data
    far = torch.arange(len(bias) // 2, dtype=torch.float32)
    bias.copy_(torch.stack([torch.cat((before * far, after * far)) for before, after in NEARNESS], dim=1))
    return model


def model_input(noisy: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Put the pictures' latents [B, 16, T, H, W] behind the noisy ones."""
    return torch.cat((noisy, images), dim=1)


def vae_config(latent_scale: float, colours: dict[str, list]) -> dict[str, Any]:
    """Return vae/config.json; `colours` are of the latents' channels, for previews."""
    return {
        **tiny_pipeline.vae_config("5b"),
        **asdict(VAE),
        "sample_height": HEIGHT,
        "sample_width": WIDTH,
        "scaling_factor": latent_scale,
        **colours,
    }


def write(
    folder: Path,
    vae: dict[str, torch.Tensor],
    text_encoder: dict[str, torch.Tensor],
    transformer: dict[str, torch.Tensor],
    latent_scale: float,
    colours: dict[str, list],
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write the pipeline into `folder` and return it."""
    configs = {
        "model_index.json": {
            # With image channels, this class says that text alone is enough: half of the training had no picture.
            "_class_name": "CogVideoXPipeline",
            "scheduler": ["diffusers", "CogVideoXDDIMScheduler"],
            "text_encoder": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "T5Tokenizer"],
            "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
            "vae": ["diffusers", "AutoencoderKLCogVideoX"],
        },
        "scheduler/scheduler_config.json": tiny_pipeline.scheduler_config("CogVideoXDDIMScheduler", SNR_SHIFT),
        "text_encoder/config.json": TEXT_CONFIG,
        "tokenizer/tokenizer_config.json": tiny_pipeline.TOKENIZER_CONFIG,
        "transformer/config.json": {"_class_name": "CogVideoXTransformer3DModel", **asdict(TRANSFORMER)},
        "vae/config.json": vae_config(latent_scale, colours),
    }
    weights = {
        "text_encoder/model.safetensors": text_encoder,
        "transformer/diffusion_pytorch_model.safetensors": transformer,
        "vae/diffusion_pytorch_model.safetensors": vae,
    }
    for name, tensors in weights.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {key: tensor.detach().to(dtype).contiguous() for key, tensor in tensors.items()}
        save_file(tensors, path, metadata={"format": "pt"})
    for name, values in configs.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if "_class_name" in values:
            values = {**values, "_diffusers_version": tiny_pipeline.DIFFUSERS_VERSION}
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return folder
