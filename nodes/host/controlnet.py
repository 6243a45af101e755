"""CONTROL_NET: CogVideoX's ControlNet as the host's own, for its Apply ControlNet nodes."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import comfy.controlnet
import comfy.model_management
import comfy.utils
import torch
from einops import rearrange

from ...cogvideox.checkpoint import normalise_controlnet
from ...cogvideox.controlnet import CogVideoXControlNet
from ...cogvideox.detection import controlnet_config
from ...cogvideox.latents import pixel_frames
from ...cogvideox.variants import COGVIDEOX_2B, COGVIDEOX_5B, ControlNetConfig
from .branches import build
from .files import read_state_dict
from .model import CogVideoX, attention
from .precision import mark_quantised_layers
from .regions import PLACES, cut

# Models by the width of their tokens, to name the one a ControlNet was made for.
MADE_FOR = {variant.transformer.inner_dim: variant.name for variant in (COGVIDEOX_2B, COGVIDEOX_5B)}


def load_controlnet(path: str, weight_dtype: str = "auto") -> ControlNet:
    """Load TheDenk's ControlNet from a weight file as the host's CONTROL_NET."""
    state_dict, metadata = read_state_dict(Path(path))
    mark_quantised_layers(state_dict, metadata)
    state_dict = normalise_controlnet(state_dict)
    config = controlnet_config(state_dict)
    like = COGVIDEOX_2B if config.state_dim == COGVIDEOX_2B.transformer.inner_dim else COGVIDEOX_5B
    make = partial(CogVideoXControlNet, attention=attention)
    model, compute = build(make, config, state_dict, weight_dtype, like)
    return ControlNet(model, comfy.model_management.get_torch_device(), compute)


class ControlNet(comfy.controlnet.ControlNet):
    """One application of a CogVideoX ControlNet: the network, the control video, its strength and its percents."""

    def __init__(self, control_model: CogVideoXControlNet | None, load_device, manual_cast_dtype):
        super().__init__(control_model, load_device=load_device, manual_cast_dtype=manual_cast_dtype, extra_conds=[])
        self.main: CogVideoX | None = None  # the model of the run at hand
        self.video: torch.Size | None = None  # and its latents [B, C, T, H, W]

    @property
    def config(self) -> ControlNetConfig:
        return self.control_model.config

    def copy(self) -> ControlNet:
        """Return another application of the same network, as the host's Apply ControlNet nodes ask for."""
        other = type(self)(None, self.load_device, self.manual_cast_dtype)
        other.control_model, other.control_model_wrapped = self.control_model, self.control_model_wrapped
        other.video = self.video
        self.copy_to(other)
        return other

    def inference_memory_requirements(self, dtype: torch.dtype) -> int:
        """Return the bytes that the states of two prompts take for the videos of the run at hand."""
        if self.video is None:  # the run of a model that is not ours, which `pre_run` refuses
            return super().inference_memory_requirements(dtype)
        batch, _, *size = self.video
        body = self.config.transformer
        tokens = batch * math.prod(size) // body.patch_size**2
        states = 2 * body.num_layers * tokens * self.config.state_dim * comfy.model_management.dtype_size(dtype)
        return states + super().inference_memory_requirements(dtype)

    def check_video(self, model: CogVideoX, shape: torch.Size) -> None:
        """Raise unless this ControlNet steers `model` and its control video fits latents of `shape` [B, C, T, H, W].

        Called before each run, and takes note of its videos.
        """
        self.check_model(model)
        hint, frames = self.cond_hint_original, pixel_frames(shape[2])
        if hint.ndim != 4 or hint.shape[1] < self.config.hint_channels:
            raise ValueError(
                f"The control video is empty or no RGB picture: its shape is {list(hint.movedim(1, -1).shape)}. "
                "Look at it with Preview Image."
            )
        if hint.shape[0] not in (1, frames, frames * shape[0]):
            raise ValueError(
                f"The control video has {hint.shape[0]} frames and the video {frames}. "
                "Make them equally long: set length, or load and cut the control video; one image serves all frames."
            )
        if not torch.isfinite(hint).all():
            raise ValueError(
                "The control video holds invalid numbers (NaN). The node that made it failed; look at it with "
                "Preview Image."
            )
        for control in (self, *self.multigpu_clones.values()):
            control.video = shape

    def check_model(self, model) -> None:
        """Raise unless `model` is one that this ControlNet was made for."""
        width = self.config.state_dim
        name = MADE_FOR.get(width, f"a model {width} wide")
        if not isinstance(model, CogVideoX):
            raise ValueError(
                f"This ControlNet steers {name} and got another model ({type(model).__name__}). "
                "Connect the MODEL of Load CogVideoX Model or Load CogVideoX Pipeline."
            )
        body = model.variant.transformer
        if body.patch_size_t is not None:
            raise ValueError(
                f"{model.variant.name} takes no ControlNet: there is none for its patches in time. "
                f"Load {name} with this one."
            )
        if body.inner_dim != width or body.attention_head_dim != self.config.transformer.attention_head_dim:
            raise ValueError(
                f"The ControlNet was made for {name} and the model is {model.variant.name}, {body.inner_dim} wide. "
                "Load the ControlNet of this model, or the model of this ControlNet."
            )

    def pre_run(self, model, percent_to_timestep_function) -> None:
        """Take note of the model of this run."""
        self.check_model(model)
        super().pre_run(model, percent_to_timestep_function)
        self.main = model

    def cleanup(self) -> None:
        """Let go of what belongs to one run."""
        self.main = self.video = None
        super().cleanup()

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        """Return the states of the networks chained so far, {"output": [B, S, D] for each block}, or None."""
        previous = None
        if self.previous_controlnet is not None:
            previous = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        if self.timestep_range is not None and not self.timestep_range[1] <= t[0] <= self.timestep_range[0]:
            return previous

        network, main, sampling = self.control_model, self.main.diffusion_model, self.model_sampling_current
        dtype = self.manual_cast_dtype or network.dtype
        x = sampling.calculate_input(t, x_noisy).to(dtype)
        context = cond["c_crossattn"].to(dtype)
        grid, rope_options = main.token_grid(x.shape[2:]), transformer_options.get("rope_options")
        # Those of the model, which keeps them: positions are its own, and it asks for the same ones next.
        tables = main.tables(grid, context.shape[1], x.device, self.main.get_dtype_inference(), rope_options)
        hint = self.hint_for(x, batched_number, cond[PLACES])
        states = network(x, hint, sampling.timestep(t), context, tables)
        return self.control_merge({"output": states}, previous, output_dtype=None)

    def hint_for(self, x: torch.Tensor, prompts: int, places: torch.Tensor) -> torch.Tensor:
        """Return the encoded control video [B, 48, T, H, W] for latents x, which lie at `places` of the whole video."""
        if self.cond_hint is None:
            self.cond_hint = self.encode_hint(x)
        hint = cut(self.cond_hint, places)
        videos = x.shape[0] // prompts
        hint = hint.expand(videos, -1, -1, -1, -1)
        return hint.repeat(prompts, 1, 1, 1, 1)

    def encode_hint(self, x: torch.Tensor) -> torch.Tensor:
        """Encode the whole control video for the run at hand, in the type of x and beside it: [1 or B, 48, T, H, W]."""
        frames, *sides = self.video[2:]
        height, width = (side * self.config.hint_downscale for side in sides)
        hint = self.cond_hint_original[:, : self.config.hint_channels]
        if hint.shape[2:] != (height, width):
            hint = comfy.utils.common_upscale(hint, width, height, "lanczos", "center")
        length = pixel_frames(frames)
        if hint.shape[0] == 1:
            hint = hint.expand(length, -1, -1, -1)
        # One video after the other: the pixels of a batch need not be on the card together.
        videos = rearrange(hint, "(b f) c h w -> b c f h w", f=length)
        encoded = [self.control_model.encode_hint(video[None].to(x) * 2 - 1) for video in videos]
        return torch.cat(encoded)
