"""What the nodes of the older wrapper (kijai/ComfyUI-CogVideoXWrapper) looked like, in every form graphs were saved.

Saved graphs hold widget values by position only, so each form ("era") lists its inputs in order. A name alone is a
socket; a widget is written `name:KIND` or `name:KIND=default`. SEED is an INT behind which the editor puts a second
widget, SOCKET a text that only a link gives and that older editors saved all the same, PART a FLOAT from 0 to 1, DTYPE,
DEVICE and COMPILE combos whose choices tell them from others. Eras that only add widgets at the end of another stand as
one. Read from the history of the wrapper's nodes, 2024-08-06 to 2025-08-07.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

AFTER_GENERATE = ("fixed", "increment", "decrement", "randomize")

_OLD_RUN = "steps:INT=50 cfg:FLOAT=6.0 seed:SEED=0"
_OLD_TAIL = (
    "samples denoise_strength:PART=1.0 image_cond_latents context_options controlnet tora_trajectory fastercache"
)
_FUN_HEAD = "pipeline positive negative video_length:INT=49"
_FUN_RUN = "seed:SEED=43 steps:INT=50 cfg:FLOAT=6.0 scheduler:COMBO=DDIM"
_FUN_TAIL = "context_options tora_trajectory fastercache vid2vid_images vid2vid_denoise:PART=1.0"
_CONTROL_RUN = "seed:SEED=42 steps:INT=25 cfg:FLOAT=6.0 scheduler:COMBO=DDIM"
_CONTROL_WINDOW = "control_strength:FLOAT=1.0 control_start_percent:PART=0.0 control_end_percent:PART=1.0"
_WINDOW = "start_percent:PART=0.0 end_percent:PART=1.0"
_TILES = (
    "enable_vae_tiling:BOOL=true tile_sample_min_height:INT=240 tile_sample_min_width:INT=360 "
    "tile_overlap_factor_height:FLOAT=0.2 tile_overlap_factor_width:FLOAT=0.2"
)
_PIPE = "pipe samples"
_LOADER = "pab_config block_edit lora compile_args"
_TORA = f"coordinates:SOCKET width:INT=720 height:INT=480 num_frames:INT=49 strength:FLOAT=1.0 {_WINDOW}"

OTHERS_LOADER = "MZ_CogVideoXLoader"  # of ComfyUI-CogVideoX-MZ, which loaded GGUF files for the wrapper's other nodes

# id: (outputs, inputs) of each era, oldest first. The names of outputs are ours; `pipe` held model and VAE in one.
ERAS: dict[str, tuple[tuple[str, str], ...]] = {
    "DownloadAndLoadCogVideoModel": (
        ("pipe", "precision:DTYPE=bf16"),
        (
            "pipe",
            "model:COMBO precision:DTYPE=bf16 fp8_transformer:BOOL=false torch_compile:BOOL=false onediff:BOOL=false",
        ),
        (
            "pipe",
            "model:COMBO precision:DTYPE=bf16 fp8_transformer:BOOL=false compile:COMPILE=disabled "
            "enable_sequential_cpu_offload:BOOL=false",
        ),
        (
            "pipe",
            "model:COMBO precision:DTYPE=bf16 fp8_transformer:COMBO=disabled compile:COMPILE=disabled "
            f"enable_sequential_cpu_offload:BOOL=false {_LOADER} load_device:DEVICE=main_device",
        ),
        (
            "pipe",
            "model:COMBO precision:DTYPE=bf16 fp8_transformer:COMBO=disabled compile:COMPILE=disabled "
            f"enable_sequential_cpu_offload:BOOL=false {_LOADER} attention_mode:COMBO=sdpa "
            "load_device:DEVICE=main_device",
        ),
        (
            "model vae",
            "model:COMBO precision:DTYPE=bf16 quantization:COMBO=disabled enable_sequential_cpu_offload:BOOL=false "
            "block_edit lora compile_args attention_mode:COMBO=sdpa load_device:DEVICE=main_device",
        ),
    ),
    "DownloadAndLoadCogVideoGGUFModel": (
        ("pipe", "model:COMBO vae_precision:DTYPE=bf16 fp8_fastmode:BOOL=false compile:COMPILE=disabled"),
        (
            "pipe",
            "model:COMBO vae_precision:DTYPE=bf16 fp8_fastmode:BOOL=false load_device:DEVICE=main_device "
            "enable_sequential_cpu_offload:BOOL=false pab_config block_edit",
        ),
        (
            "pipe",
            "model:COMBO vae_precision:DTYPE=bf16 fp8_fastmode:BOOL=false load_device:DEVICE=main_device "
            "enable_sequential_cpu_offload:BOOL=false pab_config block_edit compile:COMPILE=disabled "
            "attention_mode:COMBO=sdpa",
        ),
        (
            "model vae",
            "model:COMBO vae_precision:DTYPE=bf16 fp8_fastmode:BOOL=false load_device:DEVICE=main_device "
            "enable_sequential_cpu_offload:BOOL=false block_edit compile:COMPILE=disabled attention_mode:COMBO=sdpa",
        ),
        (
            "model vae",
            "model:COMBO vae_precision:DTYPE=bf16 fp8_fastmode:BOOL=false load_device:DEVICE=main_device "
            "enable_sequential_cpu_offload:BOOL=false block_edit compile_args attention_mode:COMBO=sdpa",
        ),
    ),
    "CogVideoXModelLoader": (
        (
            "model",
            "model:COMBO base_precision:DTYPE=bf16 quantization:COMBO=disabled load_device:DEVICE=main_device "
            "enable_sequential_cpu_offload:BOOL=false block_edit lora compile_args attention_mode:COMBO=sdpa",
        ),
    ),
    OTHERS_LOADER: (("pipe", "unet_name:COMBO vae_name:COMBO weight_dtype:COMBO=default fp8_fast_mode:BOOL=false"),),
    "CogVideoXVAELoader": (("vae", "model_name:COMBO precision:DTYPE=bf16 compile_args"),),
    "CogVideoLoraSelect": (("lora", "lora:COMBO strength:FLOAT=1.0 prev_lora fuse_lora:BOOL=false"),),
    "CogVideoLoraSelectComfy": (("lora", "lora:COMBO strength:FLOAT=1.0 prev_lora fuse_lora:BOOL=false"),),
    "DownloadAndLoadToraModel": (("tora_model", "model:COMBO"),),
    "DownloadAndLoadCogVideoControlNet": (("controlnet", "model:COMBO"),),
    "CogVideoTextEncode": (
        ("conditioning", "clip prompt:TEXT"),
        ("conditioning clip", "clip prompt:TEXT strength:FLOAT=1.0 force_offload:BOOL=true"),
    ),
    "CogVideoDualTextEncode_311": (
        (
            "conditioning",
            "clip clip_l:TEXT t5xxl:TEXT clip_l_strength:FLOAT=1.0 t5xxl_strength:FLOAT=1.0",
        ),
    ),
    "CogVideoEncodePrompt": (
        ("embeds", "pipeline prompt:TEXT negative_prompt:TEXT"),
        ("positive negative", "pipeline prompt:TEXT negative_prompt:TEXT"),
    ),
    "CogVideoTextEncodeCombine": (
        (
            "conditioning",
            "conditioning_1 conditioning_2 combination_mode:COMBO=weighted_average weighted_average_ratio:FLOAT=0.5",
        ),
    ),
    "CogVideoImageEncode": (
        ("samples", "pipeline image chunk_size:INT=16 enable_vae_slicing:BOOL=true mask"),
        (
            "samples",
            "pipeline image chunk_size:INT=16 enable_tiling:BOOL=false mask noise_aug_strength:FLOAT=0.0 vae_override",
        ),
        (
            "samples",
            "vae start_image end_image enable_tiling:BOOL=false noise_aug_strength:FLOAT=0.0 strength:FLOAT=1.0 "
            + _WINDOW,
        ),
    ),
    "CogVideoImageEncodeFunInP": (
        (
            "samples",
            "vae start_image num_frames:INT=49 end_image enable_tiling:BOOL=false noise_aug_strength:FLOAT=0.0",
        ),
    ),
    "CogVideoImageInterpolationEncode": (
        ("samples", "pipeline start_image end_image enable_tiling:BOOL=false mask vae_override"),
    ),
    "CogVideoControlImageEncode": (
        (
            "control_latents width height",
            "pipeline control_video base_resolution:INT=512 enable_tiling:BOOL=false noise_aug_strength:FLOAT=0.0",
        ),
    ),
    "CogVideoSampler": (
        (
            _PIPE,
            "pipeline embeds positive negative height:INT=480 width:INT=720 num_frames:INT=48 fps:INT=8 steps:INT=25 "
            "cfg:FLOAT=6.0 seed:SEED=0 samples denoise_strength:PART=1.0",
        ),
        (
            _PIPE,
            "pipeline positive negative height:INT=480 width:INT=720 num_frames:INT=48 fps:INT=8 steps:INT=25 "
            "cfg:FLOAT=6.0 seed:SEED=0 scheduler:COMBO=DDIM samples denoise_strength:PART=1.0",
        ),
        (
            _PIPE,
            "pipeline positive negative height:INT=480 width:INT=720 num_frames:INT=48 fps:INT=8 steps:INT=25 "
            "cfg:FLOAT=6.0 seed:SEED=0 scheduler:COMBO=DDIM t_tile_length:INT=16 t_tile_overlap:INT=8 samples "
            "denoise_strength:PART=1.0",
        ),
        (
            _PIPE,
            f"pipeline positive negative height:INT=480 width:INT=720 num_frames:INT=49 {_OLD_RUN} "
            "scheduler:COMBO=DDIM t_tile_length:INT=16 t_tile_overlap:INT=8 samples denoise_strength:PART=1.0 "
            "image_cond_latents",
        ),
        (  # for three days only: where values cannot tell, the next one is meant
            _PIPE,
            f"pipeline positive negative width:INT=720 height:INT=480 num_frames:INT=49 {_OLD_RUN} "
            f"scheduler:COMBO=CogVideoXDDIM {_OLD_TAIL}",
        ),
        (
            _PIPE,
            f"pipeline positive negative height:INT=480 width:INT=720 num_frames:INT=49 {_OLD_RUN} "
            f"scheduler:COMBO=CogVideoXDDIM {_OLD_TAIL}",
        ),
        (
            "samples",
            f"model positive negative num_frames:INT=49 {_OLD_RUN} scheduler:COMBO=CogVideoXDDIM samples "
            "image_cond_latents denoise_strength:PART=1.0 context_options controlnet tora_trajectory fastercache "
            "feta_args teacache_args",
        ),
    ),
    "CogVideoXFunSampler": (
        (
            _PIPE,
            f"{_FUN_HEAD} base_resolution:INT=512 {_FUN_RUN} start_img end_img opt_empty_latent "
            f"noise_aug_strength:FLOAT=0.0563 {_FUN_TAIL}",
        ),
        (
            _PIPE,
            f"{_FUN_HEAD} width:INT=720 height:INT=480 {_FUN_RUN} start_img end_img "
            f"noise_aug_strength:FLOAT=0.0563 {_FUN_TAIL}",
        ),
    ),
    "CogVideoXFunVid2VidSampler": (
        (
            _PIPE,
            f"{_FUN_HEAD} base_resolution:INT=512 {_CONTROL_RUN} denoise_strength:PART=0.7 validation_video "
            f"control_video {_CONTROL_WINDOW}",
        ),
        (
            _PIPE,
            f"{_FUN_HEAD} width:INT=720 height:INT=480 {_CONTROL_RUN} denoise_strength:PART=0.7 validation_video",
        ),
        ("", "note:TEXT"),
    ),
    "CogVideoXFunControlSampler": (
        (
            _PIPE,
            f"{_FUN_HEAD} base_resolution:INT=512 {_CONTROL_RUN} control_video {_CONTROL_WINDOW}",
        ),
        (
            _PIPE,
            f"pipeline positive negative control_latents {_CONTROL_RUN} {_CONTROL_WINDOW} t_tile_length:INT=48 "
            "t_tile_overlap:INT=8 samples denoise_strength:PART=1.0",
        ),
        (
            _PIPE,
            f"pipeline positive negative control_latents {_CONTROL_RUN} {_CONTROL_WINDOW} samples "
            "denoise_strength:PART=1.0 context_options",
        ),
    ),
    "CogVideoDecode": (
        ("images", f"pipeline samples {_TILES} enable_vae_slicing:BOOL=true"),
        ("images", f"pipeline samples {_TILES} auto_tile_size:BOOL=true vae_override"),
        ("images", f"vae samples {_TILES} auto_tile_size:BOOL=true"),
    ),
    "CogVideoContextOptions": (
        ("context_options", "context_schedule:COMBO context_frames:INT=12 context_stride:INT=4 context_overlap:INT=4"),
        (
            "context_options",
            "context_schedule:COMBO context_frames:INT=48 context_stride:INT=4 context_overlap:INT=4 "
            "freenoise:BOOL=true",
        ),
    ),
    "CogVideoControlNet": (("cogvideo_controlnet", f"controlnet images {_CONTROL_WINDOW}"),),
    "ToraEncodeTrajectory": (
        ("tora_trajectory video_flow_images", f"pipeline tora_model {_TORA} enable_tiling:BOOL=false"),
        ("tora_trajectory video_flow_images", f"tora_model vae {_TORA} enable_tiling:BOOL=true"),
    ),
    "ToraEncodeOpticalFlow": (
        ("tora_trajectory", f"pipeline tora_model optical_flow strength:FLOAT=1.0 {_WINDOW}"),
        ("tora_trajectory", f"vae tora_model optical_flow strength:FLOAT=1.0 {_WINDOW}"),
    ),
    "CogVideoXFasterCache": (
        (
            "fastercache",
            "start_step:INT=15 hf_step:INT=30 lf_step:INT=40 cache_device:COMBO=main_device num_blocks_to_cache:INT=42",
        ),
    ),
    "CogVideoXTeaCache": (("teacache_args", "rel_l1_thresh:FLOAT=0.3"),),
    "CogVideoEnhanceAVideo": (("feta_args", f"weight:FLOAT=1.0 {_WINDOW}"),),
    "CogVideoTransformerEdit": (("block_list", "remove_blocks:TEXT"),),
    "CogVideoXTorchCompileSettings": (
        (
            "torch_compile_args",
            "backend:COMBO=inductor fullgraph:BOOL=false mode:COMBO=default dynamic:BOOL=false "
            "dynamo_cache_size_limit:INT=64",
        ),
    ),
    "CogVideoPABConfig": (
        (
            "pab_config",
            "spatial_broadcast:BOOL=true pab_threshold_start:INT=850 pab_threshold_end:INT=100 "
            "pab_range:INT=2 steps:INT=50",
        ),
        (
            "pab_config",
            "spatial_broadcast:BOOL=true spatial_threshold_start:INT=850 spatial_threshold_end:INT=100 "
            "spatial_range:INT=2 temporal_broadcast:BOOL=false temporal_threshold_start:INT=850 "
            "temporal_threshold_end:INT=100 temporal_range:INT=4 cross_broadcast:BOOL=false "
            "cross_threshold_start:INT=850 cross_threshold_end:INT=100 cross_range:INT=6 steps:INT=50",
        ),
    ),
    "CogVideoXFunResizeToClosestBucket": (
        (
            "images width height",
            "images base_resolution:INT=512 upscale_method:COMBO=lanczos crop:COMBO=disabled",
        ),
    ),
    "CogVideoLatentPreview": (
        (
            "images latent_rgb_factors",
            "samples seed:SEED=0 min_val:FLOAT=-0.15 max_val:FLOAT=0.15 r_bias:FLOAT=0.0 g_bias:FLOAT=0.0 "
            "b_bias:FLOAT=0.0",
        ),
    ),
}
# Ids of the wrapper's last version; where one of them is registered, the wrapper is installed.
REMOVED = {
    "CogVideoXFunSampler",
    "CogVideoXFunControlSampler",
    "CogVideoXFunVid2VidSampler",
    "CogVideoControlImageEncode",
    "CogVideoImageInterpolationEncode",
    "CogVideoPABConfig",
    "CogVideoDualTextEncode_311",
    "CogVideoEncodePrompt",
}
CURRENT = frozenset(ERAS) - REMOVED - {OTHERS_LOADER}

_FITS = {
    "INT": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "SEED": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "FLOAT": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf,
    "BOOL": lambda value: isinstance(value, bool),
    "TEXT": lambda value: isinstance(value, str),
    "COMBO": lambda value: isinstance(value, str) and value not in AFTER_GENERATE,
    "SOCKET": lambda value: isinstance(value, str),
    "DTYPE": lambda value: value in ("fp16", "fp32", "bf16"),
    "DEVICE": lambda value: value in ("main_device", "offload_device"),
    "COMPILE": lambda value: value in ("disabled", "onediff", "torch"),
}
_FITS["PART"] = lambda value: _FITS["FLOAT"](value) and 0 <= value <= 1
# What the server makes of a value in the API format, which scripts write as they like.
_CASTS: dict[str, Callable[[Any], Any]] = {"INT": int, "SEED": int, "FLOAT": float, "PART": float}
_CASTS["BOOL"] = {0: False, 1: True, "true": True, "false": False, "True": True, "False": False}.__getitem__
_EMPTY = {"INT": 0, "SEED": 0, "FLOAT": 0.0, "BOOL": False, "TEXT": "", "SOCKET": "", "COMBO": ""}
_TEXTS = ("COMBO", "DTYPE", "DEVICE", "COMPILE", "TEXT")  # whose defaults are written as they are


@dataclass(frozen=True)
class Widget:
    """One widget of an era: its name, its kind and the value it had when untouched."""

    name: str
    kind: str
    default: Any

    def fits(self, value: Any) -> bool:
        """Say whether a saved value can be this widget's."""
        return _FITS[self.kind](value)

    def cast(self, value: Any) -> Any:
        """Return a value given by name as this widget's kind, as the server does: 25 for "25" and for 25.0."""
        if self.fits(value) or value is None or isinstance(value, list | dict):
            return value
        try:
            return _CASTS[self.kind](value)
        except (KeyError, TypeError, ValueError, OverflowError):
            return value


@dataclass(frozen=True)
class Era:
    """One form of a node: what it gave, what it took, its widgets in the order in which values were saved."""

    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    widgets: tuple[Widget, ...]


def _widget(text: str) -> Widget:
    name, _, rest = text.partition(":")
    kind, has_default, default = rest.partition("=")
    if not has_default:
        value = _EMPTY[kind]
    else:
        value = default if kind in _TEXTS else json.loads(default)
    return Widget(name, kind, value)


@cache
def eras(node_type: str) -> tuple[Era, ...]:
    """Return the forms of an old node, oldest first."""
    made = []
    for outputs, inputs in ERAS[node_type]:
        words = inputs.split()
        names = tuple(word.partition(":")[0] for word in words)
        made.append(Era(tuple(outputs.split()), names, tuple(_widget(word) for word in words if ":" in word)))
    return tuple(made)


@dataclass(frozen=True)
class Reading:
    """The era a saved node belongs to, its widget values by name, and the names of those that could not be read."""

    era: Era
    values: dict[str, Any]
    unread: tuple[str, ...]


def _by_position(era: Era, saved: list) -> tuple[dict[str, Any], list[str], float]:
    """Read saved values in order; also return what did not fit and how far the count is off.

    A widget at the end that a file does not have yet is likelier than a value too many.
    """
    values, unread, place = {}, [], 0
    for widget in era.widgets:
        if place >= len(saved):
            break
        value = saved[place]
        if widget.kind == "SOCKET" and not widget.fits(value):
            continue
        place += 1
        if widget.fits(value):
            values[widget.name] = value
        else:
            unread.append(widget.name)
        if widget.kind == "SEED" and place < len(saved):
            # The editor's own widget; a file whose widgets had slipped holds another value in its place.
            left = len(era.widgets) - era.widgets.index(widget) - 1
            if saved[place] in AFTER_GENERATE or len(saved) - place > left:
                place += 1
    missing = max(len(era.widgets) - len(values) - len(unread), 0)
    return values, unread, len(saved) - place + 0.5 * missing


def read(node_type: str, saved: Any, inputs: Iterable[str], outputs: Iterable[str] = (), used: int = 0) -> Reading:
    """Find the era of a saved node from its values (a list by position or a dict by name), inputs and outputs.

    `used` is how many of its outputs, from the first, others must have seen.
    """
    inputs, outputs = list(inputs), list(outputs)
    best: tuple[float, Reading] | None = None
    for era in eras(node_type):
        if isinstance(saved, Mapping):
            known = {widget.name: widget for widget in era.widgets}
            given = {name: widget.cast(saved[name]) for name, widget in known.items() if name in saved}
            values = {name: value for name, value in given.items() if known[name].fits(value)}
            unread = [name for name in given if name not in values]
            off = sum(name not in era.inputs for name in saved) + 0.1 * sum(name not in saved for name in known)
        else:
            values, unread, off = _by_position(era, saved if isinstance(saved, list) else [])
        penalty = 2 * len(unread) + off + 4 * sum(name not in era.inputs for name in inputs)
        penalty += 20 * (used > len(era.outputs))  # more than any name
        if outputs:
            penalty += 2 * (len(outputs) != len(era.outputs)) + 2 * (
                (outputs[0] == "cogvideo_pipe") != (era.outputs[:1] == ("pipe",))
            )
        if best is None or penalty <= best[0]:
            defaults = {widget.name: widget.default for widget in era.widgets}
            best = penalty, Reading(era, {**defaults, **values}, tuple(unread))
    return best[1]
