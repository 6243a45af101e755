"""Networks beside the transformer: how their files become modules, and how CONDITIONING and MODEL carry them.

A conditioning node attaches what a branch reads (`attach`), a loader puts the network on a clone of MODEL
(`with_branch`). In a run each prompt's attachment turns into conds of the host, which it repeats over batches, slices
for context windows and hands to the transformer with everything else. What a network makes of an attachment alone, the
same in every step, it makes once in a run (`once`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.conds
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import node_helpers
import torch
from comfy.patcher_extension import WrappersMP

from ...cogvideox.checkpoint import check_keys
from ...cogvideox.latents import check_latent_size, pixel_frames
from ...cogvideox.variants import SPATIAL_COMPRESSION, TransformerConfig, Variant
from .files import StateDict, read_folder, read_state_dict
from .loading import load_model
from .model import BRANCHES, CogVideoX, ModelConfig, size_text
from .patches import Window, patched
from .precision import (
    FLOAT8,
    WEIGHT_DTYPES,
    cast_weights,
    check_quantisation,
    choose_dtype,
    mark_quantised_layers,
    quantise,
)
from .sampling import require_cogvideox


def build(make: Callable, config, state_dict: StateDict, weight_dtype: str, like: Variant, exact: str = "\0"):
    """Return the network `make(config)` with the tensors of a file, stored and computed with as `like` would be.

    Weights whose names begin with `exact` stay in float32. Also returns the type it computes in, None for its own.
    """
    state_dict, _ = comfy.utils.convert_old_quants(dict(state_dict), "", metadata={})
    with torch.device("meta"):
        expected = make(config).state_dict()
    check_keys(state_dict, {key: tensor.shape for key, tensor in expected.items()})
    check_quantisation(state_dict)

    wanted = WEIGHT_DTYPES[weight_dtype]
    if wanted in FLOAT8:
        quantise(state_dict, wanted)
    model_config = ModelConfig(like)
    model_config.quant_config = comfy.utils.detect_layer_quantization(state_dict, "")
    dtype = choose_dtype(model_config, state_dict, wanted)
    kept = {key: tensor.float() for key, tensor in state_dict.items() if key.startswith(exact)}
    if model_config.quant_config is None and dtype not in FLOAT8:
        cast_weights(state_dict, dtype)
    compute = model_config.manual_cast_dtype
    operations = comfy.ops.pick_operations(dtype, compute, model_config=model_config)
    if model_config.quant_config is None:
        operations = comfy.ops.manual_cast  # to the type of what goes in
    network = make(config, dtype=dtype, operations=operations)
    # Checked above; the marks of quantised layers are no parameters.
    network.load_state_dict(state_dict | kept, strict=False, assign=True)
    network.requires_grad_(False).eval()
    comfy.model_management.archive_model_dtypes(network)
    return network, compute


def read_branch(path: Path) -> StateDict:
    """Return the tensors of a file or folder that holds a branch, alone or together with the transformer."""
    if path.is_dir():
        state_dict, metadata = read_folder(path / "transformer" if (path / "transformer").is_dir() else path)
    else:
        state_dict, metadata = read_state_dict(path)
    mark_quantised_layers(state_dict, metadata)
    return state_dict


def base_model(model, path: Path, weight_dtype: str):
    """Return MODEL, or the transformer that lies in the same file as the branch where none is connected."""
    if model is None:
        return load_model(str(path), weight_dtype, with_branch=True)
    require_cogvideox(model)
    return model


def with_branch(model, name: str, network: torch.nn.Module, wrapper: Callable):
    """Return a clone of MODEL that the host loads together with `network`; `wrapper` goes around its forward."""

    def outer_sample(executor, *args, **kwargs):
        options = executor.class_obj.model_options["transformer_options"]  # the host made them for this run
        options[kept_key(name)] = kept = Kept()
        try:
            return executor(*args, **kwargs)
        finally:
            kept.made.clear()
            del options[kept_key(name)]

    model = patched(model, name, {WrappersMP.DIFFUSION_MODEL: wrapper, WrappersMP.OUTER_SAMPLE: outer_sample})
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    patcher = comfy.model_patcher.CoreModelPatcher(network, load_device=device, offload_device=offload)
    model.set_additional_models(name, [patcher])
    return model


def with_patch(options: dict[str, Any], kind: str, patch: Callable) -> dict[str, Any]:
    """Return transformer_options for one forward with a patch more of this kind."""
    patches = options.get("patches", {})
    return {**options, "patches": {**patches, kind: [*patches.get(kind, ()), patch]}}


@dataclass(frozen=True, eq=False)
class Attachment:
    """What one prompt holds for the branch `name`: tensors by name, how strongly and for which part of the run.

    `videos` [1, C, T, H, W] are latents, unscaled, as long and as large as the video; `tokens` any others. A forward is
    given its part of the videos where they are `cut`; all else a network reads whole, by `once`.
    """

    name: str
    loader: str
    videos: dict[str, torch.Tensor]
    tokens: dict[str, torch.Tensor]
    strength: float
    window: Window
    cut: bool = True

    @property
    def key(self) -> str:
        """Under which name a forward gets it."""
        return attachment_key(self.name)

    def check(self, model, shape: torch.Size) -> None:
        """Raise unless MODEL has the branch and the videos fit latents of `shape` [B, C, T, H, W]."""
        if not model.get_wrappers(WrappersMP.DIFFUSION_MODEL, self.name):
            raise ValueError(
                f"The prompts hold {self.name} conditioning and the model has no {self.name} on it. "
                f"Put {self.loader} between the model and the sampler."
            )
        for video in self.videos.values():
            if video.shape[2:] != shape[2:]:
                wanted = torch.empty(shape, device="meta")
                raise ValueError(
                    f"The {self.name} conditioning is {size_text(video)} and the video {size_text(wanted)}. "
                    "Connect the LATENT that it was made with to the sampler."
                )

    def conds(self, model: CogVideoX, device: torch.device) -> dict[str, Any]:
        """Return the conds of one prompt: latents scaled as the model sees them, and the attachment with its sigmas."""
        scale, to_sigma = model.variant.latent_scale, model.model_sampling.percent_to_sigma
        sigmas = None if self.window.whole else (to_sigma(self.window.start_percent), to_sigma(self.window.end_percent))
        videos = self.videos if self.cut else {}
        conds = {name: comfy.conds.CONDNoiseShape(video.to(device) * scale) for name, video in videos.items()}
        return {**conds, self.key: comfy.conds.CONDConstant((self, sigmas))}


@dataclass
class Kept:
    """What one run has made of attachments."""

    made: dict[Attachment, Any] = field(default_factory=dict)


def attachment_key(name: str) -> str:
    """Return under which name a forward gets the attachment of branch `name`."""
    return f"{name} attachment".lower().replace(" ", "_")


def kept_key(name: str) -> str:
    """Return under which name a run's options hold what the branch `name` has made in it."""
    return f"cogvideox {name} kept".lower().replace(" ", "_")


def video_size(latent: dict) -> tuple[int, int, int]:
    """Return frames, height and width in px of the video that a LATENT holds."""
    samples = latent["samples"]
    check_latent_size(samples, TransformerConfig.patch_size)
    t, h, w = samples.shape[2:]
    return pixel_frames(t), h * SPATIAL_COMPRESSION, w * SPATIAL_COMPRESSION


def attach(conditioning, attachment: Attachment):
    """Return CONDITIONING with `attachment` in every prompt, beside those of other branches."""
    return [
        node_helpers.conditioning_set_values(
            [prompt], {BRANCHES: {**prompt[1].get(BRANCHES, {}), attachment.name: attachment}}
        )[0]
        for prompt in conditioning
    ]


def attached(options: dict[str, Any], name: str) -> tuple[dict[str, Any], float]:
    """Return what a forward was given for branches, and how strongly branch `name` counts at its noise level."""
    given = options.get(BRANCHES, {})
    attachment, sigmas = given.get(attachment_key(name), (None, None))
    if attachment is None:
        return given, 0.0
    if sigmas is not None and not sigmas[1] <= float(options["sigmas"].max()) <= sigmas[0]:
        return given, 0.0
    return given, attachment.strength


@torch.compiler.disable
def once(options: dict[str, Any], name: str, make: Callable[[Attachment], Any]) -> Any:
    """Return `make(attachment)` for branch `name` of a forward, made when a run first asks for it and let go after."""
    attachment, _ = options[BRANCHES][attachment_key(name)]
    made = options[kept_key(name)].made
    if attachment not in made:
        made[attachment] = make(attachment)
    return made[attachment]
