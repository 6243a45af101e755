"""From the tensors of any CogVideoX file to diffusers names, and from names and shapes to the variant.

Nothing here reads a file or a file name, and nothing changes the dict it is given. The tables are in `keys.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import keys
from .consisid import ConsisIDConfig
from .ggml import unpacked_shape
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

SHOWN = 5  # keys named in an error
TEXT_TO_VIDEO_PIPELINE = "CogVideoXPipeline"  # `_class_name` of model_index.json


class CheckpointError(ValueError):
    """A file that cannot be loaded; the sentence says what came, what was needed and what mends it."""


# --- names ---------------------------------------------------------------------------------------------------------


@cache
def _pattern(source: str) -> re.Pattern[str]:
    escaped = re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(source))
    return re.compile(escaped + r"(?=\.|$)")


def _rename(key: str, rows: Iterable[tuple[str, str | None]], reverse_from: int = 0) -> str | None:
    for source, target in rows:
        if match := _pattern(source).match(key):
            if target is None:
                return None
            numbers = match.groupdict()
            if "r" in numbers:
                numbers["r"] = str(reverse_from - int(numbers["r"]))
            return target.format(**numbers) + key[match.end() :]
    return key


def _rows(key: str, tensor: Tensor, suffix: str, chunks: int, picks: tuple[int, ...]) -> Tensor:
    """Return a copy of the picked row chunks: views of one tensor share storage, which safetensors does not save."""
    if suffix in keys.WHOLE_LAYER_SUFFIXES or math.prod(tensor.shape) == 1:
        return tensor
    if tensor.shape[0] % chunks:
        raise CheckpointError(
            f"{key} has {tensor.shape[0]} rows, which do not split into {chunks}; the file is damaged."
        )
    size = tensor.shape[0] // chunks
    starts = [index for index in picks if index - 1 not in picks]
    ends = [index + 1 for index in picks if index + 1 not in picks]
    runs = [tensor.narrow(0, start * size, (end - start) * size) for start, end in zip(starts, ends, strict=True)]
    return runs[0].clone() if len(runs) == 1 else torch.cat(runs)


def _split(key: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    for source, chunks, parts in keys.TRANSFORMER_SPLITS:
        if match := _pattern(source).match(key):
            rest = key[match.end() :]
            for target, picks in parts:
                yield target.format(**match.groupdict()) + rest, _rows(key, tensor, rest[1:], chunks, picks)
            return
    name = _rename(key, keys.TRANSFORMER_RENAMES)
    if name is not None:
        yield name, tensor


def _unwrap(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a file, which SAT and lightning nest under "module", "model" or "state_dict"."""
    while inner := next((state_dict[k] for k in keys.WRAPPERS if isinstance(state_dict.get(k), Mapping)), None):
        state_dict = inner
    return {key: value for key, value in state_dict.items() if hasattr(value, "shape")}


def _below_prefix(state_dict: dict[str, Tensor], marker: str) -> dict[str, Tensor] | None:
    """Return the part of a file that `marker` belongs to, without its prefix; None where there is no such part."""
    prefixes = {match["prefix"] for key in state_dict if (match := re.fullmatch(marker, key))}
    if not prefixes:
        return None
    prefix = min(prefixes, key=lambda text: (text not in keys.KNOWN_PREFIXES, len(text), text))
    found = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
    if not prefix:
        found = {key: value for key, value in found.items() if not key.startswith(keys.OTHER_PARTS)}
    return found | {key: state_dict[key] for key in keys.GLOBAL_KEYS if key in state_dict}


def _modules(state_dict: Mapping[str, Any]) -> set[str]:
    return {key.rpartition(".")[0] for key in state_dict}


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:SHOWN]) + (", ..." if len(ordered) > SHOWN else "")


def _looks_like(state_dict: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return what a file is and what mends it, by the first row of `keys.OTHER_FILES` that fits."""
    lines = "\n".join(state_dict)
    rows = ((what, mend) for pattern, what, mend in keys.OTHER_FILES if re.search(rf"(?m:{pattern})", lines))
    return next(rows, None)


def _wrong_file(state_dict: Mapping[str, Any], needed: str, missing: Collection[str] = ()) -> CheckpointError:
    if not state_dict:
        return CheckpointError(
            f"The file holds no tensors, but {needed} was needed: it was probably cut off, so download it again."
        )
    what, mend = _looks_like(state_dict) or (None, None)
    if what == needed and missing:
        return CheckpointError(
            f"The file holds only a part of {needed}: {_some(missing)} is missing. "
            "Load a model that comes in several files as a folder; otherwise download it again."
        )
    if what and what != needed:
        return CheckpointError(f"The file holds {what}, but {needed} was needed. {mend}.")
    return CheckpointError(
        f"The file holds an unknown model ({_some(state_dict)}), but {needed} was needed. Choose a CogVideoX file."
    )


def _is_sincos(table: Tensor) -> bool:
    """Say whether a SAT position table is the constant one of 2B, whose text rows are zero, and not a learned one."""
    if table.is_meta:
        return table.shape[-1] == COGVIDEOX_2B.transformer.inner_dim
    return not bool(table[0, 0].any())


def normalise_transformer(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the transformer of a file of any known layout under its diffusers names.

    The row parts of fused layers are copies; every other tensor is the file's own.
    """
    state_dict = _unwrap(state_dict)
    found = _below_prefix(state_dict, keys.TRANSFORMER_MARKER)
    if found is None:
        raise _wrong_file(state_dict, keys.TRANSFORMER, ["patch_embed.text_proj"])
    positions = found.get(keys.SAT_POSITIONS)
    if positions is not None and _is_sincos(positions):
        del found[keys.SAT_POSITIONS]  # `found` is ours; the model computes this table
    renamed = {name: part for key, tensor in found.items() for name, part in _split(key, tensor)}
    if missing := set(keys.TRANSFORMER_MODULES) - _modules(renamed):
        raise _wrong_file(found, keys.TRANSFORMER, missing)
    return renamed


def normalise_vae(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the VAE of a diffusers, SAT or all-in-one file under its diffusers names."""
    state_dict = _unwrap(state_dict)
    found = _below_prefix(state_dict, keys.VAE_MARKER)
    if found is None:
        raise _wrong_file(state_dict, keys.VAE, ["decoder.mid_block"])
    levels = [int(match[1]) for key in found if (match := re.match(r"decoder\.up\.(\d+)\.", key))]
    names = {key: _rename(key, keys.VAE_RENAMES, max(levels, default=0)) for key in found}
    return {name: found[key] for key, name in names.items() if name is not None}


def normalise_controlnet(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return TheDenk's ControlNet under its published names."""
    state_dict = _unwrap(state_dict)
    found = _below_prefix(state_dict, keys.CONTROLNET_MARKER)
    if found is None:
        raise _wrong_file(state_dict, keys.CONTROLNET, ["controlnet_encode_first"])
    if missing := set(keys.CONTROLNET_MODULES) - _modules(found):
        raise _wrong_file(found, keys.CONTROLNET, missing)
    return {name: part for key, tensor in found.items() for name, part in _split(key, tensor)}


def normalise_branch(state_dict: Mapping[str, Any], pattern: str, what: str) -> dict[str, Tensor]:
    """Return the tensors whose names match `pattern` behind any prefix: a branch, in any file that has it."""
    state_dict = _unwrap(state_dict)
    name = re.compile(rf"(?:^|\.)((?:{pattern}).+)")
    matches = {
        key: name.search(re.sub(r"\bfuser_list\.", "fuser.", key)) for key in state_dict
    }  # SAT's name for fusers
    found = {match[1]: state_dict[key] for key, match in matches.items() if match}
    if not found:
        raise _wrong_file(state_dict, what)
    return found


def normalise_tora(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return Tora from one file or from its two parts put together, whose names begin behind `fuser` and the like."""
    state_dict = _unwrap(state_dict)
    named = {}
    for key, tensor in state_dict.items():
        if re.match(r"\d+\.flow_", key):
            key = f"fuser.{key}"
        elif re.match(r"(body\.\d+|conv_in)\.", key):
            key = f"traj_extractor.{key}"
        named[key] = tensor
    return normalise_branch(named, keys.TORA, "Tora")


# --- shapes --------------------------------------------------------------------------------------------------------


def packed_key(state_dict: Mapping[str, Any], key: str) -> str | None:
    """Return the name under which `state_dict` has a weight in GGML blocks; None where it has not."""
    layer, _, name = key.rpartition(".")
    names = (f"{layer}.{suffix}" for suffix in keys.PACKED_SUFFIXES) if name == "weight" else ()
    return next((name for name in names if name in state_dict), None)


def packed_shape(state_dict: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Return the shape of the weight that the GGML blocks `key` stand for; raise where they are not whole."""
    layer, _, suffix = key.rpartition(".")
    try:
        return unpacked_shape(tuple(state_dict[key].shape), keys.PACKED_SUFFIXES[suffix])
    except ValueError as error:
        raise CheckpointError(f"The file is damaged in {layer}: {error}. Download it again.") from error


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


# --- add-ons -------------------------------------------------------------------------------------------------------


def split_add_on(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Return the base transformer of a normalised research model, and what its further layers belong to ("": none)."""
    lines = "\n".join(state_dict)
    found = [(pattern, what) for pattern, what in keys.ADD_ONS if re.search(rf"(?m:{pattern})", lines)]
    base = {key: value for key, value in state_dict.items() if not any(re.search(p, key) for p, _ in found)}
    return base, found[0][1] if found else ""


# --- completeness --------------------------------------------------------------------------------------------------


def _belongs(key: str, expected: Mapping[str, Any]) -> bool:
    layer, _, suffix = key.rpartition(".")
    return key in expected or key in keys.GLOBAL_KEYS or suffix in keys.QUANT_SUFFIXES and f"{layer}.weight" in expected


def _is_packed(key: str, state_dict: Mapping[str, Any]) -> bool:
    """Say whether a weight is stored in a packed form: under another name (GGML blocks), or as bytes (4 bit)."""
    layer, _, name = key.rpartition(".")
    if name != "weight":
        return False
    if key not in state_dict:
        return packed_key(state_dict, key) is not None
    scaled = any(f"{layer}.{suffix}" in state_dict for suffix in keys.QUANT_SUFFIXES)
    return scaled and state_dict[key].dtype in (torch.uint8, torch.int8)


def check_keys(state_dict: Mapping[str, Any], expected: Mapping[str, Iterable[int]]) -> None:
    """Raise CheckpointError unless the file has exactly the tensors of `expected` (name -> shape).

    Entries of quantised layers may stand beside or, packed, instead of their weight. Scaled 4 bits may have any shape.
    """
    missing = [key for key in expected if key not in state_dict and not _is_packed(key, state_dict)]
    extra = [key for key in state_dict if not _belongs(key, expected)]
    shapes = [
        f"{key} {list(state_dict[key].shape)} instead of {list(shape)}"
        for key, shape in expected.items()
        if key in state_dict and tuple(state_dict[key].shape) != tuple(shape) and not _is_packed(key, state_dict)
    ]
    shapes += [
        f"{key} {list(packed_shape(state_dict, packed))} instead of {list(shape)}"
        for key, shape in expected.items()
        if (packed := packed_key(state_dict, key)) and packed_shape(state_dict, packed) != tuple(shape)
    ]
    problems = [
        f"{len(found)} {what} ({_some(found)})"
        for what, found in (("missing", missing), ("left over", extra), ("of another shape", shapes))
        if found
    ]
    if not problems:
        return
    lines = "\n".join(extra)
    training = re.search(rf"(?m:{keys.IN_TRAINING})", lines)
    hint = "They belong to a LoRA in training, which this node does not load." if training else "Is the file complete?"
    raise CheckpointError(f"The tensors do not fit the model they look like: {'; '.join(problems)}. {hint}")
