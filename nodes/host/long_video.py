"""Videos longer than a model makes at once: positions that do not repeat, pieces that go on, frames that stream."""

from __future__ import annotations

import math
import os
import tempfile
from fractions import Fraction

import av
import folder_paths
import node_helpers
import torch
from comfy_api.latest import InputImpl

from ...cogvideox.latents import check_frames, check_size, latent_frames, pixel_frames
from ...cogvideox.positions import ROPE_THETA, axis_dims
from .coding import AUTO, SLABS, WHOLE, fitting
from .conditioning import VideoConditioning, check_image, empty_latent, image_to_video
from .progress import host_progress, reported
from .sampling import require_cogvideox
from .vae import check_latents, require_cogvideox_vae

# Steps of 1/1000 s, as the host rounds frame rates.
RATE_STEPS = 1000

# How firmly the last latent before what is new is held, where motion is known from those before it. Held fully, the
# picture changes 1.26 times as much behind it as from latent to latent elsewhere, with one half 1.12 (eight prompts on
# cogvideox-mini, judged as benchmarks/long_video.py does).
LAST_HELD = 0.5


# --- RIFLEx -----------------------------------------------------------------------------------------------------------


def with_riflex(model, k: int, share: float, frames: int):
    """Return a clone of MODEL whose temporal frequency `k` is lowered where a video outlasts its period, and a note."""
    variant = require_cogvideox(model).variant
    config = variant.transformer
    if not config.use_rotary_positional_embeddings:
        raise ValueError(
            f"{variant.name} has fixed positions and no rotary ones, whose frequencies RIFLEx lowers. "
            "Use Wan Context Windows for a longer video, or another model."
        )
    dim = axis_dims(config.attention_head_dim)[0]
    if k > dim // 2:
        raise ValueError(f"k is {k} and {variant.name} has {dim // 2} temporal frequencies. Set k to 2.")
    step = config.patch_size_t or 1
    latents = round(math.tau * ROPE_THETA ** (2 * (k - 1) / dim)) * step
    longest = pixel_frames(latents - (latents + 1) % 2)  # videos have an odd number of latents
    model = model.clone()
    options = model.model_options["transformer_options"]
    options["rope_options"] = {
        **options.get("rope_options", {}),
        "riflex_k": k,
        "riflex_share": share,
        "riflex_tokens": math.ceil(latent_frames(frames) / step) if frames else 0,
    }
    return model, f"Videos of more than {longest} frames are changed, others not."


# --- going on ---------------------------------------------------------------------------------------------------------


def continue_video(
    positive, negative, vae, video: torch.Tensor, length: int, overlap: int, start_image: bool
) -> VideoConditioning:
    """Condition a piece of `length` frames on the last `overlap` frames of `video` [F, H, W, 3].

    Their latents are held while the rest is sampled, the last of several half, so that what is new joins it smoothly;
    with `start_image` the first of them is attached as the image that image-to-video models begin with.
    """
    vae = require_cogvideox_vae(vae)
    check_image("video", video)
    check_size(video.shape[2], video.shape[1])
    check_frames(length)
    check_frames(overlap, "Set overlap to {}.")
    if overlap >= length:
        raise ValueError(
            f"The overlap is {overlap} frames and the new piece {length}, so nothing new is made. "
            "Set overlap below length, for example 9 of 49."
        )
    if overlap > len(video):
        raise ValueError(
            f"The overlap is {overlap} frames and the video to go on from has {len(video)}. Set overlap to fewer."
        )
    known = video[-overlap:, ..., :3]
    height, width = known.shape[1:3]
    latent = empty_latent(width, height, length, 1)
    latents = vae.encode(known).to(latent["samples"])
    latent["samples"][:, :, : latents.shape[2]] = latents
    mask = torch.ones_like(latent["samples"][:, :1])
    mask[:, :, : latents.shape[2]] = 0
    if latents.shape[2] > 1:
        mask[:, :, latents.shape[2] - 1] = 1 - LAST_HELD
    latent["noise_mask"] = mask
    if start_image:
        made = image_to_video(positive, negative, vae, width, height, length, 1, start_image=known[:1])
        positive, negative = made.positive, made.negative
    else:
        positive, negative = (node_helpers.conditioning_set_values(cond, {}) for cond in (positive, negative))
    note = f"{overlap} frames held, {length - overlap} new"
    return VideoConditioning(positive, negative, latent, note)


def join_videos(first: torch.Tensor, second: torch.Tensor, overlap: int) -> torch.Tensor:
    """Join IMAGE [F, H, W, 3] and [G, H, W, 3] that share `overlap` frames, fading from one to the other over them."""
    check_image("first video", first)
    check_image("second video", second)
    if first.shape[1:3] != second.shape[1:3]:
        one, other = (f"{video.shape[2]}x{video.shape[1]}" for video in (first, second))
        raise ValueError(f"The first video is {one} px and the second {other} px. Scale one to the size of the other.")
    shortest = min(len(first), len(second))
    if overlap > shortest:
        raise ValueError(
            f"The overlap is {overlap} frames and the shorter video has {shortest}. "
            "Set overlap to that of CogVideoX Continue Video."
        )
    first, second = first[..., :3], second[..., :3].to(first)
    weight = (torch.arange(1, overlap + 1, device=first.device) / (overlap + 1))[:, None, None, None]
    faded = torch.lerp(first[len(first) - overlap :], second[:overlap], weight.to(first))
    return torch.cat((first[: len(first) - overlap], faded, second[overlap:]))


# --- to a file --------------------------------------------------------------------------------------------------------


@reported("CogVideoX Decode to Video")
def decode_to_video(vae, samples: torch.Tensor, fps: float, crf: float, memory: str):
    """Decode one video's latents [1, 16, T, H, W] into a temporary file, frame by frame, and return it as VIDEO."""
    vae = require_cogvideox_vae(vae)
    check_latents(samples)
    if len(samples) != 1:
        raise ValueError(
            f"A file holds one video and the LATENT {len(samples)}. "
            "Take one with Get Latent From Batch, or decode with CogVideoX VAE Decode."
        )
    slabs = memory == SLABS or memory == AUTO and fitting(vae, samples) != WHOLE
    folder = folder_paths.get_temp_directory()
    os.makedirs(folder, exist_ok=True)
    handle, path = tempfile.mkstemp(prefix="cogvideox-", suffix=".mp4", dir=folder)
    os.close(handle)
    try:
        write_frames(path, vae.decode_stream(samples, slabs), pixel_frames(samples.shape[2]), fps, crf)
    except BaseException:  # a cancelled run leaves nothing behind
        os.remove(path)
        raise
    return InputImpl.VideoFromFile(path)


def write_frames(path: str, chunks, total: int, fps: float, crf: float) -> None:
    """Encode chunks of frames [f, H, W, 3] in 0 to 1 as H.264, as the host's own Create Video does."""
    progress, done = host_progress(total), 0
    with av.open(path, "w") as file:
        stream = None
        for chunk in chunks:
            if stream is None:
                stream = file.add_stream("h264", rate=Fraction(round(fps * RATE_STEPS), RATE_STEPS))
                stream.height, stream.width = chunk.shape[1:3]
                stream.pix_fmt, stream.options = "yuv420p", {"crf": str(crf)}
            for frame in (chunk * 255).round().byte().numpy():
                file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            done += len(chunk)
            progress(done, total)
        file.mux(stream.encode())
