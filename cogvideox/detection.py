"""From the names and shapes of a normalised file to the configs of its networks, and to the variant.

Nothing here reads a file or a file name. Names are those that `checkpoint.py` gives.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .checkpoint import CheckpointError, packed_key, packed_shape
from .consisid import ConsisIDConfig
from .shader import ShaderConfig
from .tora import ToraConfig
from .variants import (
    COGVIDEOX_2B,
    COGVIDEOX_15_5B,
    HEAD_DIM,
    LATENT_CHANNELS,
    LATENT_SCALE_2B,
    LATENT_SCALE_5B,
    SNR_SHIFT_2B,
    SNR_SHIFT_5B,
    SPATIAL_COMPRESSION,
    TEXT_TOKENS,
    ControlNetConfig,
    TransformerConfig,
    VAEConfig,
    Variant,
)

TEXT_TO_VIDEO_PIPELINE = "CogVideoXPipeline"  # `_class_name` of model_index.json

# --- shapes --------------------------------------------------------------------------------------------------------


def _shape(state_dict: Mapping[str, Any], key: str) -> tuple[int, ...]:
    if packed := packed_key(state_dict, key):
        return packed_shape(state_dict, packed)
    if key not in state_dict:
        raise CheckpointError(f"The file has no {key}, so its size cannot be told; download it again.")
    return tuple(state_dict[key].shape)


def _count(state_dict: Mapping[str, Any], stem: str) -> int:
    """Return how many numbered blocks `stem` has, by the highest number."""
    pattern = re.compile(re.escape(stem) + r"\.(\d+)\.")
    return max((int(match[1]) + 1 for key in state_dict if (match := pattern.match(key))), default=0)


def _patch(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the patch and channel fields; the patch projection is a Conv2d in 1.0 and a Linear in 1.5."""
    weight = _shape(state_dict, "patch_embed.proj.weight")
    (outputs,) = _shape(state_dict, "proj_out.bias")
    if len(weight) == 4:
        patch, patch_t, volume, channels = weight[2], None, weight[2] ** 2, weight[1]
    else:
        patch, patch_t, volume = 2, 2, 8
        channels = weight[1] // volume
    if len(weight) not in (2, 4) or outputs % volume or len(weight) == 2 and weight[1] % volume:
        raise CheckpointError(
            f"The patch projection {list(weight)} with {outputs} outputs is not that of CogVideoX 1.0 or 1.5. "
            "Put the model's config.json beside it and load the folder."
        )
    return dict(patch_size=patch, patch_size_t=patch_t, in_channels=channels, out_channels=outputs // volume)


def _positions(state_dict: Mapping[str, Any], width: int, patch_size_t: int | None) -> dict[str, Any]:
    """Return the position fields. Keys tell a learned table; else only the width of 2B says that there is no rotary."""
    fields: dict[str, Any] = dict(use_rotary_positional_embeddings=True)
    if patch_size_t is not None:
        base = COGVIDEOX_15_5B.transformer
        fields.update(
            sample_height=base.sample_height, sample_width=base.sample_width, sample_frames=base.sample_frames
        )
    if "patch_embed.pos_embedding" in state_dict:
        fields["use_learned_positional_embeddings"] = True
        base = TransformerConfig()
        _, height, width_tokens = base.sample_grid
        frames, rest = divmod(state_dict["patch_embed.pos_embedding"].shape[1] - TEXT_TOKENS, height * width_tokens)
        if patch_size_t is None and rest == 0 and frames > 0:
            fields["sample_frames"] = (frames - 1) * base.temporal_compression_ratio + 1
    elif width == COGVIDEOX_2B.transformer.inner_dim and patch_size_t is None:
        fields["use_rotary_positional_embeddings"] = False
    return fields


def transformer_config(state_dict: Mapping[str, Any]) -> TransformerConfig:
    """Return the shape of a transformer from its diffusers names and tensor shapes.

    Widths are read from biases and norms, which no quantisation packs. A model of another width than 2B or 5B is taken
    to use rotary positions: no key tells, so a folder's config.json or an override decides otherwise.
    """
    (width,) = _shape(state_dict, "patch_embed.text_proj.bias")
    head = "transformer_blocks.0.attn1.norm_q.weight"
    head_dim = _shape(state_dict, head)[0] if head in state_dict else HEAD_DIM
    if width % head_dim:
        raise CheckpointError(
            f"A width of {width} does not divide into heads of {head_dim}. "
            "Put the model's config.json beside it and load the folder."
        )
    ofs = "ofs_embedding.linear_1.bias"
    patch = _patch(state_dict)
    text = "patch_embed.text_proj.weight"
    has_text = text in state_dict or packed_key(state_dict, text)
    return TransformerConfig(
        num_attention_heads=width // head_dim,
        attention_head_dim=head_dim,
        num_layers=_count(state_dict, "transformer_blocks"),
        time_embed_dim=_shape(state_dict, "time_embedding.linear_2.bias")[0],
        ofs_embed_dim=_shape(state_dict, ofs)[0] if ofs in state_dict else None,
        text_embed_dim=_shape(state_dict, text)[1] if has_text else TransformerConfig.text_embed_dim,
        patch_bias=patch["patch_size_t"] is None and "patch_embed.proj.bias" in state_dict,  # 1.5 ships it as false
        attention_bias="transformer_blocks.0.attn1.to_q.bias" in state_dict,
        **patch,
        **_positions(state_dict, width, patch["patch_size_t"]),
    )


def controlnet_config(state_dict: Mapping[str, Any]) -> ControlNetConfig:
    """Return the shape of a ControlNet from its names and tensor shapes."""
    (width,) = _shape(state_dict, "patch_embed.text_proj.bias")
    (head_dim,) = _shape(state_dict, "transformer_blocks.0.attn1.norm_q.weight")
    patch = _shape(state_dict, "patch_embed.proj.weight")
    projected = "out_projectors.0.bias"
    transformer = TransformerConfig(
        num_attention_heads=width // head_dim,
        attention_head_dim=head_dim,
        in_channels=patch[1],
        num_layers=_count(state_dict, "transformer_blocks"),
        time_embed_dim=_shape(state_dict, "time_embedding.linear_2.bias")[0],
        text_embed_dim=_shape(state_dict, "patch_embed.text_proj.weight")[1],
        patch_size=patch[-1],
        attention_bias="transformer_blocks.0.attn1.to_q.bias" in state_dict,
    )
    return ControlNetConfig(
        transformer,
        hint_channels=_shape(state_dict, "controlnet_encode_first.0.weight")[1] // SPATIAL_COMPRESSION**2,
        out_proj_dim=_shape(state_dict, projected)[0] if projected in state_dict else None,
    )


def tora_config(state_dict: Mapping[str, Any]) -> ToraConfig:
    """Return the shape of Tora from its names and tensor shapes."""
    blocks = _count(state_dict, "fuser")
    if "traj_extractor.conv_in.weight" not in state_dict or not blocks:
        part = "extractor is" if blocks else "fusers are"
        raise CheckpointError(
            f"The file holds only a part of Tora: its {part} missing. Choose the whole file, or the file of the "
            "fusers as tora_name and that of the extractor as extractor_name."
        )
    channels = _shape(state_dict, "traj_extractor.conv_in.weight")[0]
    return ToraConfig(
        inner_dim=_shape(state_dict, "fuser.0.flow_cond_norm.weight")[0],
        blocks=blocks,
        channels=channels,
        blocks_each=_count(state_dict, "traj_extractor.body") // blocks,
    )


def shader_config(state_dict: Mapping[str, Any]) -> ShaderConfig:
    """Return the shape of Diffusion as Shader from its names and tensor shapes."""
    block = "transformer_blocks_copy.0"
    (width,) = _shape(state_dict, "initial_combine_linear.bias")
    (head_dim,) = _shape(state_dict, f"{block}.attn1.norm_q.weight")
    return ShaderConfig(
        TransformerConfig(
            num_attention_heads=width // head_dim,
            attention_head_dim=head_dim,
            num_layers=_count(state_dict, "transformer_blocks_copy"),
            time_embed_dim=_shape(state_dict, f"{block}.norm1.linear.weight")[1],
            attention_bias=f"{block}.attn1.to_q.bias" in state_dict,
        )
    )


def consisid_config(state_dict: Mapping[str, Any]) -> ConsisIDConfig:
    """Return the shape of ConsisID from its names and tensor shapes."""
    face, cross = "local_facial_extractor", "perceiver_cross_attention"
    queries, vit_dim = _shape(state_dict, f"{face}.latents")[1:]
    return ConsisIDConfig(
        inner_dim=_shape(state_dict, f"{cross}.0.norm2.weight")[0],
        num_cross_attn=_count(state_dict, cross),
        id_dim=_shape(state_dict, f"{face}.id_embedding_mapping.0.weight")[1],
        vit_dim=vit_dim,
        depth=_count(state_dict, f"{face}.layers"),
        extractor_dim=_shape(state_dict, f"{face}.layers.0.0.to_q.weight")[0],
        num_id_token=_shape(state_dict, f"{face}.id_embedding_mapping.6.bias")[0] // vit_dim,
        num_queries=queries,
        output_dim=_shape(state_dict, f"{face}.proj_out")[1],
        ff_mult=_shape(state_dict, f"{face}.layers.0.1.1.weight")[0] // vit_dim,
        num_scale=sum(f"{face}.mapping_{scale}.0.bias" in state_dict for scale in range(len(state_dict))),
        cross_dim=_shape(state_dict, f"{cross}.0.to_q.weight")[0],
    )


def vae_config(state_dict: Mapping[str, Any]) -> VAEConfig:
    """Return the shape of a VAE from its diffusers names and tensor shapes.

    The groups of the norms and which levels compress time leave no trace in shapes: 32 (or what divides every width)
    and 4 are assumed unless a config.json says otherwise.
    """
    levels = range(_count(state_dict, "encoder.down_blocks"))
    widths = tuple(
        _shape(state_dict, f"encoder.down_blocks.{level}.resnets.0.conv1.conv.weight")[0] for level in levels
    )
    return VAEConfig(
        in_channels=_shape(state_dict, "encoder.conv_in.conv.weight")[1],
        out_channels=_shape(state_dict, "decoder.conv_out.conv.weight")[0],
        block_out_channels=widths,
        latent_channels=_shape(state_dict, "decoder.conv_in.conv.weight")[1],
        layers_per_block=_count(state_dict, "encoder.down_blocks.0.resnets"),
        norm_num_groups=math.gcd(VAEConfig.norm_num_groups, *widths),
    )


# --- variants ------------------------------------------------------------------------------------------------------

# (width, layers, patch_size_t) -> family.
FAMILIES = {(1920, 30, None): "2B", (3072, 42, None): "5B", (3072, 42, 2): "1.5 5B"}

# (family, input channels, what else the keys show) -> name. Files of equal shapes share a name.
NAMES = {
    ("2B", 16, ""): "CogVideoX-2B",
    ("2B", 32, ""): "CogVideoX-2B image-to-video (NimVideo) or CogVideoX-Fun 2B Control/Pose",
    ("2B", 33, ""): "CogVideoX-Fun 2B InP (V1.0, V1.1)",
    ("5B", 16, ""): "CogVideoX-5B",
    ("5B", 32, "learned"): "CogVideoX-5B-I2V",
    ("5B", 32, ""): "CogVideoX-Fun 5B Control/Pose",
    ("5B", 33, ""): "CogVideoX-Fun 5B InP (V1.0, V1.1)",
    ("1.5 5B", 16, ""): "CogVideoX1.5-5B",
    ("1.5 5B", 32, "ofs"): "CogVideoX1.5-5B-I2V",
    ("1.5 5B", 32, ""): "CogVideoX1.5-5B Control",
    ("1.5 5B", 33, ""): "CogVideoX-Fun V1.5 InP",
    ("1.5 5B", 36, ""): "VOID (stacked masks)",
    ("1.5 5B", 48, ""): "VOID",
}

AUTO = "auto"
_2B = dict(use_rotary_positional_embeddings=False, latent_scale=LATENT_SCALE_2B, snr_shift_scale=SNR_SHIFT_2B)
_5B = dict(use_rotary_positional_embeddings=True, latent_scale=LATENT_SCALE_5B, snr_shift_scale=SNR_SHIFT_5B)

# id -> (what it is for, the fields it sets). The ids are saved in workflows: add, never rename.
_OVERRIDES: dict[str, tuple[str, dict[str, Any]]] = {
    AUTO: ("What the weights, or the folder's config.json files, say.", {}),
    "2b": ("2B type: sincos positions, SNR shift 3.0, latent scale 1.15258426. For small or pruned 2B models.", _2B),
    "5b": ("5B type: rotary positions, SNR shift 1.0, latent scale 0.7.", _5B),
    "snr_shift_1": ("SNR shift 1.0, the noise schedule of the 5B models.", dict(snr_shift_scale=SNR_SHIFT_5B)),
    "snr_shift_3": (
        "SNR shift 3.0, the noise schedule of 2B, for a 5B fine-tune on it.",
        dict(snr_shift_scale=SNR_SHIFT_2B),
    ),
    "image_latents": (
        "Image latents scaled like the video latents, as in 1.0 image-to-video and ComfyUI's own 1.5.",
        dict(image_latent_scale="latents"),
    ),
    "image_unscaled": (
        "Image latents left unscaled, as CogVideoX1.5-5B-I2V was trained (its default).",
        dict(image_latent_scale="unscaled"),
    ),
    "image_diffusers": (
        "Image latents divided by the latent scale, as diffusers runs CogVideoX1.5-5B-I2V; for LoRAs trained with it.",
        dict(image_latent_scale="diffusers"),
    ),
    "image_repeated": (
        "The start image in every frame, as 2B image-to-video (NimVideo) was trained (its default).",
        dict(image_repeated=True),
    ),
    "sparkvsr": (
        "SparkVSR, which restores video: keyframes scaled like the video, held in its extra latent; or no keyframes.",
        dict(image_latent_scale="latents", image_held=True, image_optional=True),
    ),
}
VARIANT_OVERRIDES = tuple(_OVERRIDES)
VARIANT_OVERRIDE_NOTES = {name: note for name, (note, _) in _OVERRIDES.items()}


def _name(config: TransformerConfig) -> str:
    family = FAMILIES.get((config.inner_dim, config.num_layers, config.patch_size_t))
    if family is None:
        return f"CogVideoX (custom, {config.inner_dim} wide, {config.num_layers} layers)"
    extra = "learned" if config.use_learned_positional_embeddings else "ofs" if config.ofs_embed_dim else ""
    custom = f"CogVideoX {family} (custom, {config.in_channels} input channels)"
    return NAMES.get((family, config.in_channels, extra), custom)


def _overridden(variant: Variant, override: str) -> Variant:
    if override not in _OVERRIDES:
        raise CheckpointError(f"There is no variant {override!r}; choose one of {', '.join(VARIANT_OVERRIDES)}.")
    values = dict(_OVERRIDES[override][1])
    if any(name.startswith("image_") for name in values) and variant.image_channels == 0:
        raise CheckpointError(
            f"Variant {override!r} is for models that take an image, and {variant.name} takes none. "
            f"Set variant to {AUTO}."
        )
    rotary = values.pop("use_rotary_positional_embeddings", None)
    if rotary is None:
        return replace(variant, **values)
    if not rotary and variant.transformer.use_learned_positional_embeddings:
        raise CheckpointError(
            f"Variant {override!r} has no learned positions, and {variant.name} brings some. Set variant to {AUTO}."
        )
    transformer = replace(variant.transformer, use_rotary_positional_embeddings=rotary)
    return replace(variant, transformer=transformer, **values)


def detect_variant(
    state_dict: Mapping[str, Any],
    config: TransformerConfig | None = None,
    scheduler: Mapping[str, Any] | None = None,
    vae: Mapping[str, Any] | None = None,
    override: str | None = None,
    pipeline: str | None = None,
) -> Variant:
    """Return the variant of a normalised transformer.

    `config` (transformer/config.json), `scheduler` and `vae` (their config.json) win over what keys and shapes suggest,
    and `override`, one of VARIANT_OVERRIDES, wins over all. `invert_scale_latents` of the VAE is not followed: that is
    how diffusers runs CogVideoX1.5-5B-I2V, not how the model was trained; "image_diffusers" asks for it. `pipeline` is
    the `_class_name` of the folder's model_index.json.
    """
    config = transformer_config(state_dict) if config is None else config
    # Released models without rotary are the 2B ones, Fun 2B included.
    guess = _5B if config.use_rotary_positional_embeddings else _2B
    image_channels = config.in_channels - config.out_channels
    # Fun InP leaves mask and image zero for text alone (VideoX-Fun). A folder that calls itself a text-to-video
    # pipeline and whose model has image channels was trained with and without an image.
    image_optional = image_channels == LATENT_CHANNELS + 1 or image_channels > 0 and pipeline == TEXT_TO_VIDEO_PIPELINE
    # The scheduler of Fun is plain DDIM, whose config has no SNR shift.
    variant = Variant(
        name=_name(config),
        transformer=config,
        latent_scale=(vae or {}).get("scaling_factor", guess["latent_scale"]),
        snr_shift_scale=(scheduler or {}).get("snr_shift_scale", guess["snr_shift_scale"]),
        image_latent_scale="unscaled" if config.patch_size_t and config.ofs_embed_dim else "latents",
        image_optional=image_optional,
        # Of 2B's two kinds with 16 image channels only NimVideo's makes video from a start image; the other, Fun
        # Control, gets every frame. NimVideo encodes a still video of the image, which is its latent in every frame.
        image_repeated=not config.use_rotary_positional_embeddings and image_channels == LATENT_CHANNELS,
    )
    return _overridden(variant, override or AUTO)
