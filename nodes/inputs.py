"""Inputs and outputs that several nodes share, by the same ids, ranges and defaults."""

from __future__ import annotations

from comfy_api.latest import io

from ..cogvideox.latents import FRAME_STEP, SIZE_STEP
from .host.precision import WEIGHT_DTYPES

MAX_SIZE, MAX_LENGTH, MAX_BATCH = 4096, 1025, 64
BRANCH_DTYPES = ["auto", "bf16", "fp16", "fp32", "fp8_e4m3fn", "fp8_e5m2"]

WEIGHT_DTYPE_TOOLTIP = (
    "How the weights are kept in memory. auto: as in the file, or what the card computes with. fp8: the large matrices "
    "in 8 bits, scaled, some loss of detail; fast also multiplies in 8 bits on cards that can (RTX 40 and newer). "
    "fp16 suits 2B; the 5B models are computed in bf16. GGUF stays in its blocks on auto; bf16, fp16, fp32 unpack it. "
    "A pipeline's VAE follows bf16, fp16 and fp32; its text encoder stays as in its file."
)
BRANCH_DTYPE_TOOLTIP = (
    "How the weights are kept in memory. auto: as in the file, or what the card computes with. "
    "fp8: the large matrices in 8 bits, scaled."
)
END_TOOLTIP = "Where in the noise schedule it ends, 0 (pure noise) to 1 (finished video)."


def negative_input() -> io.Input:
    """Return the socket of a negative prompt as it is written."""
    return io.Conditioning.Input("negative", tooltip="Negative prompt from CogVideoX Text Encode; may be empty text.")


def vae_input() -> io.Input:
    """Return the socket of the VAE, for nodes that condition on pictures."""
    return io.Vae.Input("vae", tooltip="CogVideoX's VAE; it encodes what guides the video.")


def prompt_inputs() -> list[io.Input]:
    """Return the sockets that a node which conditions on pictures starts with."""
    return [
        io.Conditioning.Input("positive", tooltip="Prompt from CogVideoX Text Encode."),
        negative_input(),
        vae_input(),
    ]


def made_inputs() -> list[io.Input]:
    """Return the sockets that a node starts with which stands behind the one that made the video."""
    return [
        io.Conditioning.Input("positive", tooltip="Prompt, for example from CogVideoX Image to Video."),
        io.Conditioning.Input("negative", tooltip="Negative prompt, from the same node."),
        vae_input(),
        io.Latent.Input("latent", tooltip="The empty video to sample; it says size and frames."),
    ]


def prompt_outputs(what: str) -> list[io.Output]:
    """Return the prompts of a node that attaches `what` to both."""
    return [
        io.Conditioning.Output(display_name="positive", tooltip=f"Prompt with {what} attached."),
        io.Conditioning.Output(display_name="negative", tooltip=f"Negative prompt with {what} attached."),
    ]


def video_outputs(what: str, latent: str = "Empty video of this size, for the sampler.") -> list[io.Output]:
    """Return the prompts with `what` attached and the video to sample."""
    return [*prompt_outputs(what), io.Latent.Output(display_name="latent", tooltip=latent)]


def size_inputs() -> list[io.Input]:
    """Return the widgets that give a video its size; nodes that make one share them."""
    return [
        io.Int.Input(
            "width",
            default=720,
            min=SIZE_STEP,
            max=MAX_SIZE,
            step=SIZE_STEP,
            tooltip=f"Width in px, a multiple of {SIZE_STEP}. CogVideoX 1.0 was trained on 720, 1.5 on 1360.",
        ),
        io.Int.Input(
            "height",
            default=480,
            min=SIZE_STEP,
            max=MAX_SIZE,
            step=SIZE_STEP,
            tooltip=f"Height in px, a multiple of {SIZE_STEP}. CogVideoX 1.0 was trained on 480, 1.5 on 768.",
        ),
        io.Int.Input(
            "length",
            default=49,
            min=1,
            max=MAX_LENGTH,
            step=FRAME_STEP,
            tooltip=(
                f"Frames, always {FRAME_STEP}n + 1 (1, 9, 17 ...). 1.0: 49 at 8 frames a second. "
                "1.5: 81 (or 161) at 16 frames a second."
            ),
        ),
        io.Int.Input("batch_size", default=1, min=1, max=MAX_BATCH, tooltip="Number of videos made at once."),
    ]


def noise_seed_input() -> io.Input:
    """Return the widget for the seed of the noise that is added to what conditions a video."""
    return io.Int.Input(
        "noise_seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        optional=True,
        advanced=True,
        tooltip="Seed of that noise, 0 to 2^64 - 1. The same seed gives the same noise.",
    )


def start_input() -> io.Input:
    """Return the widget for where something begins."""
    return io.Float.Input(
        "start_percent",
        default=0.0,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="Where in the noise schedule it begins, 0 (pure noise) to 1 (finished video).",
    )


def end_input() -> io.Input:
    """Return the widget for where something ends."""
    return io.Float.Input(
        "end_percent",
        default=1.0,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip=END_TOOLTIP,
    )


def steering_inputs() -> list[io.Input]:
    """Return how strongly a branch counts, and for which part of the run."""
    return [
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=10.0,
            step=0.01,
            tooltip="How strongly it counts, 0 to 10. 0 is off, 1 as trained.",
        ),
        start_input(),
        end_input(),
    ]


def weight_dtype_input() -> io.Input:
    """Return the widget for how a model's weights are kept."""
    return io.Combo.Input("weight_dtype", options=list(WEIGHT_DTYPES), default="auto", tooltip=WEIGHT_DTYPE_TOOLTIP)


def branch_inputs() -> list[io.Input]:
    """Return how the weights of a branch are kept, and the model it is put on."""
    return [
        io.Combo.Input(
            "weight_dtype", options=BRANCH_DTYPES, default="auto", advanced=True, tooltip=BRANCH_DTYPE_TOOLTIP
        ),
        io.Model.Input(
            "model",
            optional=True,
            tooltip=(
                "The model it was trained with. Leave it open where the file holds that model too; it is loaded then."
            ),
        ),
    ]
