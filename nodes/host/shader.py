"""Diffusion as Shader on MODEL, and its tracking video as CONDITIONING."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...cogvideox.checkpoint import normalise_branch
from ...cogvideox.detection import shader_config
from ...cogvideox.keys import DIFFUSION_AS_SHADER
from ...cogvideox.shader import DiffusionAsShader
from ...cogvideox.variants import LATENT_CHANNELS
from .branches import Attachment, attach, attached, base_model, build, read_branch, video_size, with_branch, with_patch
from .conditioning import check_image, encode_frames, fit
from .model import attention
from .patches import Window
from .sampling import require_cogvideox
from .vae import require_cogvideox_vae

NAME, LOADER = "Diffusion as Shader", "Load CogVideoX Diffusion as Shader"
TRACKING, FIRST_FRAME = "shader_tracking", "shader_first_frame"


def load_shader(model, path: Path, weight_dtype: str = "auto"):
    """Return a clone of MODEL (or of the transformer in the file) that follows the tracking video in its prompts."""
    state_dict = normalise_branch(read_branch(path), DIFFUSION_AS_SHADER, NAME)
    config = shader_config(state_dict)
    model = base_model(model, path, weight_dtype)
    variant = require_cogvideox(model).variant
    body, copy = variant.transformer, config.transformer
    fits = (body.inner_dim, body.patch_size_t, variant.image_channels) == (copy.inner_dim, None, LATENT_CHANNELS)
    if not fits or copy.num_layers > body.num_layers:
        raise ValueError(
            f"This Diffusion as Shader belongs to an image-to-video model {copy.inner_dim} wide without patches in "
            f"time, like CogVideoX-5B-I2V, and got {variant.name}. Load the model that it was trained with."
        )
    network, _ = build(partial(DiffusionAsShader, attention=attention), config, state_dict, weight_dtype, variant)

    def diffusion_model(executor, x, timestep, context, ofs, control, options):
        given, strength = attached(options, NAME)
        if not strength:
            return executor(x, timestep, context, ofs, control, options)
        main, length = executor.class_obj, context.shape[1]
        grid = main.token_grid(x.shape[2:])
        rope, fixed = main.tables(grid, length, x.device, x.dtype, options.get("rope_options"))

        def tokens(latents: torch.Tensor) -> torch.Tensor:
            return main.add_positions(main.patch_embed(latents, context), fixed, grid, length)[:, length:]

        tracking = torch.cat((given[TRACKING], given[FIRST_FRAME]), dim=1)
        branch = network.begin(tokens(x), tokens(tracking))

        def shade(args: dict[str, Any]) -> dict[str, torch.Tensor]:
            nonlocal branch
            index = args["block_index"]
            if index >= copy.num_layers:
                return {"img": args["img"]}
            branch = network.step(index, branch, args["txt"], args["vec"], args["pe"])
            return {"img": torch.add(args["img"], branch, alpha=strength)}

        options = with_patch(options, "double_block", shade)
        return executor(x, timestep, context, ofs, control, options)

    return with_branch(model, NAME, network, diffusion_model)


def tracking_conditioning(
    positive,
    negative,
    vae,
    latent: dict,
    tracking_video: torch.Tensor,
    strength: float,
    start_percent: float,
    end_percent: float,
):
    """Return positive and negative with a tracking video, IMAGE of as many frames as the video, attached."""
    vae, window = require_cogvideox_vae(vae), Window(start_percent, end_percent)
    frames, height, width = video_size(latent)
    check_image("tracking video", tracking_video)
    if len(tracking_video) != frames:
        raise ValueError(
            f"The tracking video has {len(tracking_video)} frames and the video {frames}. "
            "Make them equally long: set length, or load and cut the tracking video."
        )
    video = fit("tracking video", tracking_video, width, height)[0]
    # The authors' pipeline encodes the video as it lies in 0..1, and its first frame in -1..1, where a VAE of the host
    # brings 0..1 to -1..1 for both.
    tracking = vae.encode((video + 1) / 2)
    first = torch.zeros_like(tracking)
    first[:, :, 0] = encode_frames(vae, video[:1])
    attachment = Attachment(NAME, LOADER, {TRACKING: tracking, FIRST_FRAME: first}, {}, strength, window)
    return attach(positive, attachment), attach(negative, attachment)
