"""The moving clip in the node while sampling: all latent frames, by rough colours or by the tiny decoder."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from io import BytesIO

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy.cli_args import LatentPreviewMethod, args
from PIL import Image, WebPImagePlugin

from ...cogvideox.checkpoint import CheckpointError
from ...cogvideox.tiny_decoder import TinyDecoder, read_tiny_decoder
from .files import ModelFileError, read_state_dict

log = logging.getLogger(__name__)

# Red, green and blue of each channel of an unscaled latent, for values in -1..1. Figures of the older pack's preview
# (kijai/ComfyUI-CogVideoXWrapper at fdb8abd, pipeline_cogvideox.py), which applies them to five times the scaled one;
# how they were fitted is not said there. A better fit needs videos of the released models.
PREVIEW_FACTORS = [
    [0.1119, 0.1432, 0.0055],
    [0.0193, 0.0183, -0.0196],
    [0.0044, -0.0563, 0.0876],
    [0.0616, 0.0129, -0.0021],
    [0.0016, 0.0214, 0.0030],
    [-0.0369, -0.0113, -0.0310],
    [-0.0005, 0.0357, -0.0004],
    [0.0727, -0.0058, 0.0235],
    [0.0194, 0.0341, 0.0066],
    [0.0425, 0.0864, 0.1302],
    [0.0036, 0.0694, 0.0345],
    [0.0238, -0.0037, -0.0246],
    [0.0012, 0.0187, -0.0646],
    [-0.0317, -0.0395, 0.0148],
    [0.0089, 0.0883, -0.0021],
    [-0.0390, 0.0064, 0.0978],
]
PREVIEW_BIAS = [-0.023, 0.0, -0.017]

# The file of the tiny decoder in models/vae_approx begins so. Those for HunyuanVideo and Wan hold the same keys and
# shapes, so that the name alone tells whose latents it reads.
TINY_DECODER = "taecvx"

SHARE = 0.02  # of a run's time; clips are left out where they would take more
FRAME_MS = 125  # four times the speed of a video with 8 frames a second, as a latent holds four frames
SIDE = 256  # px, the width of a node; what is smaller is enlarged to it
QUALITY = 75


class Clip(WebPImagePlugin.WebPImageFile):
    """An animated WEBP that is written as it is; saving any other image, the host would write its first frame alone."""

    def __init__(self, frames: list[Image.Image]):
        buffer = BytesIO()
        options = dict(quality=QUALITY, method=0, duration=FRAME_MS, loop=0)
        frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], **options)
        self.written = buffer.getvalue()
        super().__init__(BytesIO(self.written))

    def save(self, fp, format=None, **params):
        fp.write(self.written)


def colours(latents: torch.Tensor, of_channels: Sequence[Sequence[float]] = ()) -> torch.Tensor:
    """Return unscaled latents [16, T, H, W] in their rough colours, [T, 3, H, W] in 0 to 1."""
    rows = torch.tensor(of_channels or (*PREVIEW_FACTORS, PREVIEW_BIAS), device=latents.device)
    factors, bias = rows[:-1], rows[-1]
    return ((torch.einsum("cthw,cd->tdhw", latents.float(), factors) + bias[:, None, None] + 1) / 2).clamp(0, 1)


def find_tiny_decoder(device: torch.device) -> TinyDecoder | None:
    """Return the tiny decoder of models/vae_approx on `device`; None, and why in the log, where there is none."""
    names = [name for name in folder_paths.get_filename_list("vae_approx") if name.startswith(TINY_DECODER)]
    if not names:
        log.warning(
            "TAESD previews of CogVideoX need %s.safetensors in models/vae_approx. Rough colours are shown.",
            TINY_DECODER,
        )
        return None
    try:
        decoder = read_tiny_decoder(read_state_dict(folder_paths.get_full_path_or_raise("vae_approx", names[0]))[0])
    except (CheckpointError, ModelFileError) as error:  # no reason to end a run
        log.warning("%s: %s Rough colours are shown.", names[0], error)
        return None
    half = comfy.model_management.should_use_fp16(device)
    return decoder.to(device=device, dtype=torch.float16 if half else torch.float32)


class ClipPreview:
    """Makes the clip of one run and keeps its cost below `SHARE` of the run."""

    def __init__(
        self,
        latent_scale: float,
        decoder: TinyDecoder | None = None,
        clock: Callable[[], float] = time.perf_counter,
        of_channels: Sequence[Sequence[float]] = (),
    ):
        self.latent_scale, self.decoder, self.clock, self.of_channels = latent_scale, decoder, clock, of_channels
        self.began = None
        self.spent = self.last = 0.0

    @torch.no_grad()
    def clip(self, step: int, x0: torch.Tensor) -> Clip | None:
        """Return the first video of x0 [B, 16, T, H, W] as it plays, or None where there is no time for it.

        It begins one latent later in each step: a page starts each clip anew, and steps may be shorter than clips.
        """
        now = self.clock()
        if self.began is None:
            self.began = now
        elif self.spent + self.last > SHARE * (now - self.began):
            return None
        latents = x0[0] / self.latent_scale
        pictures = colours(latents, self.of_channels) if self.decoder is None else self.decoder(latents).float()
        clip = Clip(images(pictures.roll(-(step % len(pictures)), dims=0)))
        self.last = self.clock() - now
        self.spent += self.last
        return clip


def images(pictures: torch.Tensor) -> list[Image.Image]:
    """Return pictures [T, 3, H, W] in 0 to 1 as images of at least `SIDE` and at most the host's size for previews."""
    height, width = pictures.shape[2:]
    scale = min(args.preview_size, max(SIDE, height, width)) / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    pictures = torch.nn.functional.interpolate(pictures, size=size, mode="bilinear", antialias=scale < 1)
    frames = (pictures * 255).round().byte().movedim(1, -1).contiguous().cpu().numpy()
    return [Image.fromarray(frame) for frame in frames]


def with_clip(
    callback: Callable | None,
    latent_scale: float,
    device: torch.device,
    steps: int,
    of_channels: Sequence[Sequence[float]] = (),
) -> Callable | None:
    """Return a run's callback that shows the clip in the node as well, where the artist has switched previews on.

    The host asks a latent format for one picture of a step and ours gives it none, so the clip is all that is shown.
    A VAE of its own, whose channels have the colours `of_channels`, is none that the tiny decoder reads.
    """
    if callback is None or args.preview_method == LatentPreviewMethod.NoPreviews:
        return callback
    tiny = args.preview_method == LatentPreviewMethod.TAESD and not of_channels
    preview = ClipPreview(latent_scale, find_tiny_decoder(device) if tiny else None, of_channels=of_channels)
    bar = comfy.utils.ProgressBar(steps)

    def shown(step, x0, x, total_steps):
        callback(step, x0, x, total_steps)
        clip = preview.clip(step, x0)
        if clip is not None:
            # No size: the host would scale the clip and keep one frame. It names every image a PNG or JPEG; pages and
            # readers go by what is in it.
            bar.update_absolute(step + 1, total_steps, ("WEBP", clip, None))

    return shown
