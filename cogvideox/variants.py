"""What differs between the released CogVideoX models, as data.

Sources: "CogVideoX: Text-to-Video Diffusion Models with An Expert Transformer" (arXiv 2408.06072), the config.json
files published with each model, and the training configs of the original repository (github.com/THUDM/CogVideo,
`sat/configs`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

TEXT_TOKENS = 226  # T5 tokens per prompt, padded; diffusers `max_text_seq_length` of every released model
TEXT_WIDTH = 4096  # T5 v1.1 XXL
LATENT_CHANNELS = 16
SPATIAL_COMPRESSION = 8
TEMPORAL_COMPRESSION = 4
HEAD_DIM = 64  # every released model: 30 x 64 (2B) and 48 x 64 (5B)
TIME_EMBED_DIM = 512
OFS = 2.0  # the constant the reference feeds to `ofs_embedding` of CogVideoX1.5-5B-I2V

# What the VAE latents are multiplied with before the transformer sees them (`scaling_factor` of vae/config.json).
LATENT_SCALE_2B = 1.15258426
LATENT_SCALE_5B = 0.7

# `snr_shift_scale` of scheduler/scheduler_config.json.
SNR_SHIFT_2B = 3.0
SNR_SHIFT_5B = 1.0


def known_fields(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a diffusers config.json that the dataclass `cls` knows."""
    names = {field.name for field in fields(cls)}
    return {name: value for name, value in values.items() if name in names}


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of one transformer; field names are those of diffusers' transformer/config.json.

    `sample_height` and `sample_width` are in latents, `sample_frames` in pixel frames.
    """

    num_attention_heads: int = 30
    attention_head_dim: int = HEAD_DIM
    in_channels: int = LATENT_CHANNELS
    out_channels: int = LATENT_CHANNELS
    num_layers: int = 30
    time_embed_dim: int = TIME_EMBED_DIM
    ofs_embed_dim: int | None = None
    text_embed_dim: int = TEXT_WIDTH
    max_text_seq_length: int = TEXT_TOKENS
    patch_size: int = 2
    patch_size_t: int | None = None
    patch_bias: bool = True
    attention_bias: bool = True
    norm_eps: float = 1e-5
    sample_height: int = 60
    sample_width: int = 90
    sample_frames: int = 49
    temporal_compression_ratio: int = TEMPORAL_COMPRESSION
    spatial_interpolation_scale: float = 1.875
    temporal_interpolation_scale: float = 1.0
    use_rotary_positional_embeddings: bool = False
    use_learned_positional_embeddings: bool = False

    @property
    def inner_dim(self) -> int:
        """Width D of the token stream."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def sample_grid(self) -> tuple[int, int, int]:
        """Token grid (frames, height, width) the position tables were made for."""
        frames = (self.sample_frames - 1) // self.temporal_compression_ratio + 1
        return frames, self.sample_height // self.patch_size, self.sample_width // self.patch_size

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TransformerConfig:
        """Read a diffusers transformer/config.json; unknown entries are ignored."""
        return cls(**known_fields(cls, values))


@dataclass(frozen=True)
class ControlNetConfig:
    """Shape of TheDenk's ControlNet: a short transformer that reads latents and an encoded control video.

    `hint_downscale` are pixels per latent; `out_proj_dim` is the width its states are brought to, where that is not the
    width of its own tokens.
    """

    transformer: TransformerConfig
    hint_channels: int = 3
    hint_downscale: int = SPATIAL_COMPRESSION
    out_proj_dim: int | None = None

    @property
    def state_dim(self) -> int:
        """Width of the states, which must be that of the model they are added to."""
        return self.out_proj_dim or self.transformer.inner_dim


@dataclass(frozen=True)
class VAEConfig:
    """Shape of one VAE; field names are those of diffusers' vae/config.json."""

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 256, 512)
    latent_channels: int = LATENT_CHANNELS
    layers_per_block: int = 3
    norm_eps: float = 1e-6
    norm_num_groups: int = 32
    temporal_compression_ratio: int = TEMPORAL_COMPRESSION

    @property
    def spatial_compression(self) -> int:
        """Pixels per latent along height and width."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> VAEConfig:
        """Read a diffusers vae/config.json; unknown entries are ignored."""
        known = known_fields(cls, values)
        if "block_out_channels" in known:
            known["block_out_channels"] = tuple(known["block_out_channels"])
        return cls(**known)


@dataclass(frozen=True)
class Variant:
    """One checkpoint: the transformer's shape and the numbers that live outside its weights.

    `image_latent_scale` says how VAE latents of conditioning images are scaled before they are concatenated:
    "latents" multiplies with `latent_scale` as for the noisy latents (1.0 image-to-video, Fun), "unscaled" leaves them
    raw (the original training code of CogVideoX1.5-5B-I2V), "diffusers" divides by `latent_scale` (diffusers'
    `invert_scale_latents`). `image_optional` says that the model makes video from text alone as well, its image
    channels zero. `image_repeated` says that an image is held as a still video up to the next one and not shown once,
    `image_held` that the extra leading latent of 1.5 has a copy of the first image latent, which else moves there.
    `colours` are red, green and blue of each channel of an unscaled latent and, last, what is added, for values in
    -1..1, where a folder brings a VAE of its own; empty for the released VAE.
    """

    name: str
    transformer: TransformerConfig
    latent_scale: float = LATENT_SCALE_5B
    snr_shift_scale: float = SNR_SHIFT_5B
    image_latent_scale: str = "latents"
    image_optional: bool = False
    image_repeated: bool = False
    image_held: bool = False
    colours: tuple[tuple[float, ...], ...] = ()

    @property
    def image_channels(self) -> int:
        """Channels concatenated behind the noisy latents: 0, 16 (image, control), 17 (mask and video) or 32 (VOID)."""
        return self.transformer.in_channels - self.transformer.out_channels

    @property
    def pads_behind(self) -> bool:
        """Whether the latent that temporal patches need beside an odd count goes behind the video.

        VideoX-Fun makes its 1.5 models an even count of latents and drops none; the original code puts one in front.
        """
        config = self.transformer
        return bool(config.patch_size_t and self.image_channels and not config.ofs_embed_dim)


_2B = dict(num_attention_heads=30, num_layers=30)
_5B = dict(num_attention_heads=48, num_layers=42, use_rotary_positional_embeddings=True)
_15 = dict(_5B, patch_size_t=2, sample_height=300, sample_width=300, sample_frames=81, patch_bias=False)

COGVIDEOX_2B = Variant("CogVideoX-2B", TransformerConfig(**_2B), LATENT_SCALE_2B, SNR_SHIFT_2B)
COGVIDEOX_5B = Variant("CogVideoX-5B", TransformerConfig(**_5B))
COGVIDEOX_5B_I2V = Variant(
    "CogVideoX-5B-I2V", TransformerConfig(**_5B, in_channels=32, use_learned_positional_embeddings=True)
)
COGVIDEOX_15_5B = Variant("CogVideoX1.5-5B", TransformerConfig(**_15))
COGVIDEOX_15_5B_I2V = Variant(
    "CogVideoX1.5-5B-I2V",
    TransformerConfig(**_15, in_channels=32, ofs_embed_dim=512),
    image_latent_scale="unscaled",
)

RELEASED = (COGVIDEOX_2B, COGVIDEOX_5B, COGVIDEOX_5B_I2V, COGVIDEOX_15_5B, COGVIDEOX_15_5B_I2V)
