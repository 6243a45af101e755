"""Images to raw facts in CONDITIONING: VAE latents, unscaled, and a mask of what they do not know."""

from __future__ import annotations

from dataclasses import dataclass, field

import comfy.model_management
import comfy.utils
import node_helpers
import torch

from ...cogvideox.latents import check_frames, check_size, latent_index, latent_shape
from ...cogvideox.masks import resize_mask
from ...cogvideox.variants import LATENT_CHANNELS, TEMPORAL_COMPRESSION
from .vae import VAE, require_cogvideox_vae

# What a CONDITIONING may hold for our models besides the host's `concat_latent_image` and `concat_mask`.
KNOWN_FRAMES = "cogvideox_known_frames"  # a KnownFrames
KNOWN_STRENGTH = "cogvideox_known_strength"  # what its latents are multiplied with
MASKED_VIDEO = "concat_masked_video"  # [B, 17, T, H/8, W/8]: what is known (1) and VAE latents of it, unscaled
CONTROL_VIDEO = "concat_control_video"  # [B, 16, T, H/8, W/8]: VAE latents, unscaled


@dataclass(frozen=True)
class VideoConditioning:
    """Conditioning of a run, the LATENT to sample, and what was done to images and videos."""

    positive: list
    negative: list
    latent: dict
    note: str


@dataclass(frozen=True)
class Span:
    """How strongly and in which part of the sampling (0 to 1) conditioning channels work; outside they are zero."""

    strength: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0

    def __post_init__(self):
        if self.start_percent >= self.end_percent:
            raise ValueError(
                f"The start percent {self.start_percent:g} is not below the end percent {self.end_percent:g}. "
                "The image or video would never be seen: lower the one or raise the other."
            )

    def attach(self, prompts: tuple[list, list], values: dict, without: dict) -> list[list]:
        """Return each CONDITIONING with `values` in this part of the sampling and `without` in the rest."""
        if (self.start_percent, self.end_percent) == (0, 1):
            return [node_helpers.conditioning_set_values(prompt, values) for prompt in prompts]
        return [
            node_helpers.conditioning_set_values_with_timestep_range(
                node_helpers.conditioning_set_values(prompt, without), values, self.start_percent, self.end_percent
            )
            for prompt in prompts
        ]


@dataclass(frozen=True, eq=False)
class KnownFrames:
    """Pictures at frames of a video, for the models that see them as a video. Encoded once the model is known.

    `images` maps frames to IMAGE [1 or B, H, W, 3] of the video's size.
    """

    vae: VAE
    length: int
    images: dict[int, torch.Tensor]
    noise_augmentation: float = 0.0
    noise_seed: int = 0
    encoded: dict = field(default_factory=dict, init=False)  # by the call; a seed more takes no encoding more

    def __deepcopy__(self, memo):
        return self  # nothing in it changes, and the VAE is large

    @property
    def batch(self) -> int:
        """How many videos the pictures make; one stands for all of a batch."""
        return max(map(len, self.images.values()))

    def masked_video(self, extra: int) -> torch.Tensor:
        """Return what Fun InP sees, [B, 17, T + extra, H/8, W/8]: 1 where known, and latents with all else black."""
        return self.once(("masked", extra), self.encode_masked, extra)

    def held_video(self) -> torch.Tensor:
        """Return what NimVideo's 2B sees, latents [B, 16, T, H/8, W/8] of each picture held until the next."""
        return self.once(("held",), self.encode_held)

    def once(self, key: tuple, encode, *args) -> torch.Tensor:
        if key not in self.encoded:
            self.encoded[key] = encode(*args)
        return self.encoded[key]

    def encode_masked(self, extra: int) -> torch.Tensor:
        length = self.length + extra * TEMPORAL_COMPRESSION
        shape = next(iter(self.images.values())).shape[1:]
        known = torch.zeros(1, 1, length, *shape[:2])
        known[:, :, list(self.images)] = 1
        generator, videos = torch.Generator().manual_seed(self.noise_seed), []
        for index in range(self.batch):
            video = torch.zeros(length, *shape)
            for frame, pictures in self.images.items():
                video[frame] = pictures[index % len(pictures)]
            video = augment(video, self.noise_augmentation, generator, keep_black=True)
            videos.append(masked_latents(self.vae, video, known))
        return torch.cat(videos)

    def encode_held(self) -> torch.Tensor:
        frames = sorted(self.images)
        ends = [*frames[1:], self.length]
        counts = [ends[0], *(end - start for start, end in zip(frames[1:], ends[1:], strict=True))]
        generator, videos = torch.Generator().manual_seed(self.noise_seed), []
        for index in range(self.batch):
            pictures = [self.images[frame][index % len(self.images[frame])][None] for frame in frames]
            pictures = [augment(picture, self.noise_augmentation, generator) for picture in pictures]
            held = [picture.expand(count, -1, -1, -1) for picture, count in zip(pictures, counts, strict=True)]
            videos.append(encode_video(self.vae, torch.cat(held)))
        return torch.cat(videos)


def masked_latents(vae: VAE, video: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Encode IMAGE [F, H, W, 3] with unknown pixels black beside its mask [1, 1, F, H, W], 1 where known: [1, 17, ...].

    As VideoX-Fun: black is -1 to the VAE, the posterior's mode, the mask scaled trilinearly.
    """
    latents = encode_video(vae, video)
    return torch.cat((resize_mask(known, latents.shape[2:]).to(latents), latents), dim=1)


def encode_video(vae: VAE, video: torch.Tensor) -> torch.Tensor:
    """Encode IMAGE [F, H, W, 3] to latents [1, 16, T, H/8, W/8]."""
    return vae.encode(video[None])


def empty_latent(width: int, height: int, length: int, batch_size: int) -> dict:
    """Return the LATENT of a video to make: zeros [B, 16, T, H/8, W/8]. Sizes in px, `length` in frames."""
    check_size(width, height)
    check_frames(length)
    shape = batch_size, LATENT_CHANNELS, *latent_shape(width, height, length)
    return {"samples": torch.zeros(shape, device=comfy.model_management.intermediate_device())}


def image_to_video(
    positive,
    negative,
    vae,
    width: int,
    height: int,
    length: int,
    batch_size: int,
    start_image: torch.Tensor | None = None,
    end_image: torch.Tensor | None = None,
    noise_augmentation: float = 0.0,
    noise_seed: int = 0,
    span: Span | None = None,
    keyframes: torch.Tensor | None = None,
    keyframe_positions: str = "",
) -> VideoConditioning:
    """Condition on pictures at frames of the video: the first, the last (IMAGE [N, H, W, C]; N images make N videos)
    and `keyframes`, one picture for each of `keyframe_positions`."""
    vae, span = require_cogvideox_vae(vae), span or Span()
    ends = {"start image": start_image, "end image": end_image}
    ends = {name: image for name, image in ends.items() if image is not None}
    if not ends and keyframes is None:
        raise ValueError(
            "CogVideoX Image to Video has no image. Connect start_image, end_image or both. Keyframes do as well."
        )
    for name, image in ends.items():
        check_image(name, image)
    batch = batch_of(ends, batch_size)
    latent = empty_latent(width, height, length, batch)
    if len(ends) == 2 and length == 1:
        raise ValueError("A video of 1 frame cannot both start and end with an image. Set length to 9 or more.")
    at = {"start image": 0, "end image": length - 1}
    named = {at[name]: (name, image) for name, image in ends.items()}
    named = merge_keyframes(named, keyframes, keyframe_positions, length)

    images, notes = {}, []
    for frame, (name, image) in sorted(named.items()):
        images[frame], note = fit(name, image, width, height)
        notes += note
    known = torch.zeros_like(latent["samples"])
    mask = torch.ones_like(known[:, :1])
    generator = torch.Generator().manual_seed(noise_seed)
    for frame, image in images.items():
        index = latent_index(frame)
        latents = encode_frames(vae, augment(image, noise_augmentation, generator))
        known[:, :, index] = comfy.utils.repeat_to_batch_size(latents, batch) * span.strength
        mask[:, :, index] = 0
    frames = KnownFrames(vae, length, images, noise_augmentation, noise_seed)
    values = {
        "concat_latent_image": known,
        "concat_mask": mask,
        KNOWN_FRAMES: frames,
        KNOWN_STRENGTH: span.strength,
    }
    without = {
        **values,
        "concat_latent_image": torch.zeros_like(known),
        "concat_mask": torch.ones_like(mask),
        KNOWN_STRENGTH: 0.0,
    }
    return VideoConditioning(*span.attach((positive, negative), values, without), latent, "\n".join(notes))


def merge_keyframes(named: dict, keyframes: torch.Tensor | None, positions: str, length: int) -> dict:
    """Add pictures of IMAGE [N, H, W, C] to those already `named` by their frame: {frame: (name, IMAGE)}."""
    if keyframes is None:
        if positions.strip():
            raise ValueError(
                f"There are keyframe positions ({positions.strip()}) and no keyframes. "
                "Connect a batch of images to keyframes, or clear the positions."
            )
        return named
    check_image("keyframes", keyframes)
    frames = keyframe_frames(positions, length)
    if len(frames) != len(keyframes):
        raise ValueError(
            f"There are {len(keyframes)} keyframes and {len(frames)} keyframe positions. "
            'Give one position for each image, for example "0, 24, 48".'
        )
    named = dict(named)
    for frame, picture in zip(frames, keyframes, strict=True):
        name = f"keyframe {frame}"
        for other, (taken, _) in named.items():
            if latent_index(other) == latent_index(frame):
                raise ValueError(
                    f"The {taken} and keyframe {frame} lie in the same group of {TEMPORAL_COMPRESSION} frames, which "
                    f"holds one image. Move one of them by {TEMPORAL_COMPRESSION} frames, or leave it out."
                )
        named[frame] = (name, picture[None])
    return named


def keyframe_frames(positions: str, length: int) -> list[int]:
    """Read frames from text such as "0, 24, -1"; negative ones count from the end."""
    frames = []
    for word in positions.replace(",", " ").split():
        try:
            frame = int(word)
        except ValueError:
            raise ValueError(
                f'The keyframe position "{word}" is no frame number. '
                'Write whole numbers with commas between them, for example "0, 24, 48".'
            ) from None
        if not -length <= frame < length:
            raise ValueError(
                f"The keyframe position {frame} is outside the video of {length} frames. "
                f"Use 0 to {length - 1}, or -1 for the last frame."
            )
        frames.append(frame % length)
    return frames


def batch_of(images: dict[str, torch.Tensor], batch_size: int) -> int:
    """Return how many videos the images and `batch_size` ask for, or raise where they disagree."""
    counts = {image.shape[0] for image in images.values()} | {batch_size}
    batch = max(counts)
    if counts - {1, batch}:
        given = ", ".join(f"{image.shape[0]} of {name}" for name, image in images.items())
        raise ValueError(
            f"The images do not pair up: {given}, batch_size {batch_size}. "
            "Give one image for all videos or one for each."
        )
    return batch


def check_image(name: str, image: torch.Tensor) -> None:
    """Raise unless IMAGE [N, H, W, C] holds at least one RGB picture of finite numbers."""
    if image.ndim != 4 or 0 in image.shape or image.shape[-1] < 3:
        raise ValueError(
            f"The {name} is empty or no RGB picture: its shape is {list(image.shape)}. Look at it with Preview Image."
        )
    if not torch.isfinite(image).all():
        raise ValueError(
            f"The {name} holds invalid numbers (NaN). The node that made it failed; look at it with Preview Image."
        )


def fit(name: str, image: torch.Tensor, width: int, height: int) -> tuple[torch.Tensor, list[str]]:
    """Scale IMAGE [N, H, W, C] to fill the video and crop the rest around the centre; say so."""
    image = image[..., :3]
    old_height, old_width = image.shape[1:3]
    if (old_width, old_height) == (width, height):
        return image, []
    fitted = comfy.utils.common_upscale(image.movedim(-1, 1), width, height, "lanczos", "center").movedim(1, -1)
    cropped = "" if old_width * height == old_height * width else ", cropped around the centre"
    return fitted, [f"{name}: {old_width}x{old_height} to {width}x{height}{cropped}"]


def augment(image: torch.Tensor, strength: float, generator: torch.Generator, keep_black: bool = False) -> torch.Tensor:
    """Add normal noise of deviation `strength`, in units of pixels in -1..1, as in training (arXiv 2408.06072).

    `keep_black` leaves out what is black, as VideoX-Fun does: it is unknown.
    """
    if strength == 0:
        return image
    noise = torch.randn(image.shape, generator=generator).to(image)
    if keep_black:
        noise = noise * (image != 0)
    return image + noise * (strength / 2)  # IMAGE spans 0..1, half of the VAE's -1..1


def encode_frames(vae, images: torch.Tensor) -> torch.Tensor:
    """Encode pictures [N, H, W, 3], each on its own, to latents [N, 16, H/8, W/8]."""
    return torch.cat([vae.encode(image[None])[:, :, 0] for image in images])
