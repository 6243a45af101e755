"""Tora on MODEL, and paths as CONDITIONING."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw

from ...cogvideox.checkpoint import normalise_tora
from ...cogvideox.detection import tora_config
from ...cogvideox.tora import CANVAS, PATCH, Tora, flow_picture, path_flow, place_path
from .branches import (
    Attachment,
    attach,
    attached,
    base_model,
    build,
    once,
    read_branch,
    video_size,
    with_branch,
    with_patch,
)
from .conditioning import check_image, fit
from .patches import Window
from .regions import PLACES, cut
from .sampling import require_cogvideox
from .vae import require_cogvideox_vae

NAME, LOADER = "Tora", "Load CogVideoX Tora"
FLOW = "tora_flow"

FARTHEST = 2**31  # px; more is no place that an editor has

LINE, DOT = (255, 1, 1), (160, 230, 100)  # as the authors draw paths
LINE_WIDTH, DOT_RADIUS, LINE_OPACITY = 2, 3, 0.7


def load_tora(model, path: Path, extractor: Path | None = None, weight_dtype: str = "auto"):
    """Return a clone of MODEL (or of the transformer in the file) that follows the paths in its prompts."""
    state_dict = read_branch(path)
    if extractor is not None:  # fusers and extractor in two files
        state_dict = {**state_dict, **read_branch(extractor)}
    state_dict = normalise_tora(state_dict)
    config = tora_config(state_dict)
    model = base_model(model, path, weight_dtype)
    variant = require_cogvideox(model).variant
    body = variant.transformer
    if body.patch_size_t is not None:
        raise ValueError(
            f"Tora was trained for CogVideoX-5B and 5B-I2V and does not fit {variant.name}, which has patches in time. "
            "Load a 1.0 model."
        )
    if (body.inner_dim, body.num_layers) != (config.inner_dim, config.blocks):
        raise ValueError(
            f"This Tora serves {config.blocks} blocks {config.inner_dim} wide and {variant.name} has "
            f"{body.num_layers} blocks {body.inner_dim} wide. Load the model that it was trained with."
        )
    network, _ = build(Tora, config, state_dict, weight_dtype, variant, exact="traj_extractor.")

    def diffusion_model(executor, x, *args):
        *args, options = args
        given, strength = attached(options, NAME)
        if not strength:
            return executor(x, *args, options)

        def extract(attachment: Attachment) -> list[torch.Tensor]:
            # In float32 as the authors run it; its residual blocks are many.
            flow = attachment.videos[FLOW].to(x.device, torch.float32) * variant.latent_scale
            maps = [part.to(x.dtype) * strength for part in network.traj_extractor(flow)]
            return [rearrange(part, "(b t) c h w -> b c t h w", t=flow.shape[2]) for part in maps]

        features = once(options, NAME, extract)  # the paths alone make them, so the steps share them

        def fuse(h: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
            length, index = options["text_tokens"], options["block_index"]
            part = rearrange(cut(features[index], given[PLACES], PATCH), "b c t h w -> (b t) c h w")
            video = network.fuser[index](h[:, length:], part, options["token_grid"])
            return torch.cat((h[:, :length], video), dim=1)

        return executor(x, *args, with_patch(options, "norm1_patch", fuse))

    return with_branch(model, NAME, network, diffusion_model)


def read_paths(given: str | list, width: int, height: int) -> list[list[tuple[float, float]]]:
    """Return the paths of a spline editor's JSON, in pixels of the video, as whole numbers on Tora's canvas.

    Points are {"x": 1, "y": 2} or [1, 2]; a path is a list of points, and the text one path or a list of them. Editors
    of several paths hand on a list of texts.
    """
    try:
        values = json.loads(given.replace("'", '"')) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        values = None
    if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
        return [path for value in values for path in read_paths(value, width, height)]
    several = isinstance(values, list) and values and isinstance(values[0], list) and _point(values[0]) is None
    paths = values if several else [values]
    points = [[_point(value) for value in path] for path in paths if isinstance(path, list) and path]
    if not points or any(None in path for path in points):
        raise ValueError(
            'The coordinates are no paths: they must be JSON, a list of points {"x": 1, "y": 2} or [1, 2], or a list '
            "of such lists. Connect the coordinates of a spline editor."
        )
    return [[(int(x * CANVAS / width), int(y * CANVAS / height)) for x, y in path] for path in points]


def _point(value: Any) -> tuple[float, float] | None:
    pair = [value.get("x"), value.get("y")] if isinstance(value, dict) else value
    if isinstance(pair, list) and len(pair) == 2 and all(type(n) in (int, float) and abs(n) < FARTHEST for n in pair):
        return float(pair[0]), float(pair[1])
    return None


def trajectory(
    positive,
    negative,
    vae,
    latent: dict,
    coordinates: str | list,
    strength: float,
    start_percent: float,
    end_percent: float,
    optical_flow: torch.Tensor | None = None,
    image: torch.Tensor | None = None,
):
    """Return positive and negative with paths (or a coloured flow video) attached, and the paths drawn, IMAGE."""
    vae, window = require_cogvideox_vae(vae), Window(start_percent, end_percent)
    frames, height, width = video_size(latent)
    if optical_flow is None:
        canvas = read_paths(coordinates, width, height)
        paths = [place_path(path, (height, width), frames) for path in canvas]
        picture = flow_picture(path_flow(paths, (height, width), frames)).movedim(1, -1)
        drawn = draw_paths(background(image, picture, width, height), paths)
    else:
        check_image("optical flow", optical_flow)
        if len(optical_flow) != frames:
            raise ValueError(
                f"The optical flow has {len(optical_flow)} frames and the video {frames}. "
                "Give one picture of colours for each frame."
            )
        picture = drawn = fit("optical flow", optical_flow, width, height)[0]
    flow = vae.encode(picture)
    attachment = Attachment(NAME, LOADER, {FLOW: flow}, {}, strength, window, cut=False)
    return attach(positive, attachment), attach(negative, attachment), drawn


def background(image: torch.Tensor | None, flow: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Return the frames to draw on [F, H, W, 3]: the start image held, the frames of a video, or the flow's colours."""
    if image is None:
        return flow
    check_image("image", image)
    image = fit("image", image, width, height)[0]
    held = image[-1:].expand(max(len(flow) - len(image), 0), -1, -1, -1)
    return torch.cat((image, held))[: len(flow)]


def draw_paths(frames: torch.Tensor, paths: list[list[tuple[int, int]]]) -> torch.Tensor:
    """Draw each path, and a dot where its object is, on frames [F, H, W, 3]."""
    height, width = frames.shape[1:3]
    mask = Image.new("L", (width, height))
    for path in paths:
        ImageDraw.Draw(mask).line(path, fill=255, width=LINE_WIDTH)
    share = torch.from_numpy(np.asarray(mask).astype(np.float32))[..., None] / 255 * LINE_OPACITY
    line = frames.cpu() * (1 - share) + torch.tensor(LINE) / 255 * share
    drawn = []
    for number, frame in enumerate(line):
        picture = Image.fromarray((frame.clamp(0, 1) * 255).round().byte().numpy())
        pen = ImageDraw.Draw(picture)
        for path in paths:
            x, y = path[number]
            pen.ellipse((x - DOT_RADIUS, y - DOT_RADIUS, x + DOT_RADIUS, y + DOT_RADIUS), fill=DOT)
        drawn.append(torch.from_numpy(np.asarray(picture).astype(np.float32)) / 255)
    return torch.stack(drawn)
