"""The sizes each model was trained on, and the one among them that is nearest to a picture.

Sources: the model cards of CogVideoX (1.0: 720 x 480 px only; 1.5: the shorter side 768 px, the longer up to 1360) and
the training buckets of CogVideoX-Fun (`ASPECT_RATIO_512` of aigc-apps/VideoX-Fun, scaled to a base resolution).
"""

from __future__ import annotations

from dataclasses import dataclass

from .latents import FRAME_STEP, SIZE_STEP, latent_shape
from .variants import COGVIDEOX_2B, COGVIDEOX_5B, COGVIDEOX_15_5B, TransformerConfig

BUCKET_BASE = 512  # px, the base resolution the buckets are written for
_WIDE = (  # (shorter side, longer side) in px
    *((256, long) for long in (1024, 992, 960, 928)),
    *((288, long) for long in (896, 864, 832)),
    *((320, long) for long in (800, 768)),
    *((352, long) for long in (736, 704)),
    *((384, long) for long in (672, 640)),
    *((416, long) for long in (608, 576)),
    *((448, long) for long in (576, 544)),
    *((480, long) for long in (544, 512)),
)
FUN_BUCKETS = (*_WIDE, (352, 672), (512, 512), *((long, short) for short, long in reversed(_WIDE)))  # (height, width)


@dataclass(frozen=True)
class Sizes:
    """What one family of models was trained on; sizes in px, `buckets` says that it knows many shapes."""

    transformer: TransformerConfig
    weights: float  # parameters in billions
    width: int
    height: int
    frames: int
    fps: int
    shorter_side: int | None = None  # trained with this side fixed and the other up to `width`
    buckets: bool = False


_10, _15 = dict(width=720, height=480, frames=49, fps=8), dict(width=1360, height=768, frames=81, fps=16)
_2B, _5B = (COGVIDEOX_2B.transformer, 1.69), (COGVIDEOX_5B.transformer, 5.57)
_15_5B = (COGVIDEOX_15_5B.transformer, 5.57)
_FUN = dict(width=672, height=384, frames=49, fps=8, buckets=True)
MODELS = {
    "2B": Sizes(*_2B, **_10),
    "5B": Sizes(*_5B, **_10),
    "1.5": Sizes(*_15_5B, **_15, shorter_side=768),
    "Fun 2B": Sizes(*_2B, **_FUN),
    "Fun 5B": Sizes(*_5B, **_FUN),
    "Fun 1.5": Sizes(*_15_5B, **{**_FUN, "frames": 85}),
}
TRAINED, SHAPE, SAME = FITS = ("trained size", "shape of the image", "size of the image")


def rounded(value: float) -> int:
    """Return the nearest valid side in px."""
    return max(round(value / SIZE_STEP), 1) * SIZE_STEP


def nearest_length(frames: float) -> int:
    """Return the nearest valid frame count, 8n + 1."""
    return max(round((frames - 1) / FRAME_STEP), 0) * FRAME_STEP + 1


def nearest_bucket(width: int, height: int, base: int) -> tuple[int, int]:
    """Return (width, height) of the bucket nearest in shape, at `base`; height / width is compared, as Fun does."""
    shape = height / width
    tall, wide = min(FUN_BUCKETS, key=lambda bucket: abs(round(bucket[0] / bucket[1], 2) - shape))
    return (
        int(wide * base / BUCKET_BASE / SIZE_STEP) * SIZE_STEP,
        int(tall * base / BUCKET_BASE / SIZE_STEP) * SIZE_STEP,
    )


def fitting_size(model: str, fit: str, image: tuple[int, int] | None, base: int) -> tuple[int, int]:
    """Return the (width, height) in px to make a video in, given the (width, height) of an image or None."""
    sizes = MODELS[model]
    width, height = image or (sizes.width, sizes.height)
    if fit == SAME:
        return rounded(width), rounded(height)
    if sizes.buckets:
        return nearest_bucket(width, height, base)
    if fit == TRAINED or image is None:
        return sizes.width, sizes.height
    if sizes.shorter_side:
        longer = min(rounded(sizes.shorter_side * max(width, height) / min(width, height)), sizes.width)
        return (longer, sizes.shorter_side) if width >= height else (sizes.shorter_side, longer)
    scale = (sizes.width * sizes.height / (width * height)) ** 0.5
    return rounded(width * scale), rounded(height * scale)


def is_trained(model: str, width: int, height: int) -> bool:
    """Say whether a model has seen this size in training, as far as that is published."""
    sizes = MODELS[model]
    if sizes.buckets:
        return any(
            nearest_bucket(wide, tall, base) == (width, height)
            for tall, wide in FUN_BUCKETS
            for base in range(256, 1281, 64)
        )
    if sizes.shorter_side:
        return min(width, height) == sizes.shorter_side and max(width, height) <= sizes.width
    return (width, height) == (sizes.width, sizes.height)


def token_count(model: str, width: int, height: int, length: int) -> int:
    """Return the tokens the transformer sees a video as, the leading latent of 1.5 included."""
    config = MODELS[model].transformer
    frames, rows, columns = latent_shape(width, height, length)
    return -(-frames // (config.patch_size_t or 1)) * (rows // config.patch_size) * (columns // config.patch_size)
