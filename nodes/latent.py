"""The size of a video to LATENT."""

from __future__ import annotations

from comfy_api.latest import io

from ..cogvideox.latents import FRAME_STEP, SIZE_STEP
from .host.conditioning import empty_latent

MAX_SIZE, MAX_LENGTH, MAX_BATCH = 4096, 1025, 64


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


class EmptyCogVideoXLatentVideo(io.ComfyNode):
    """The starting point of text-to-video."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EmptyCogVideoXLatentVideo",
            display_name="Empty CogVideoX Latent Video",
            category="CogVideoX/latent",
            description="An empty video for the sampler to fill: its size in px and its length in frames.",
            search_aliases=["EmptyLatentImage", "EmptyHunyuanLatentVideo", "resolution"],
            inputs=size_inputs(),
            outputs=[io.Latent.Output(tooltip="Empty video for the latent_image of a sampler.")],
        )

    @classmethod
    def execute(cls, width, height, length, batch_size) -> io.NodeOutput:
        return io.NodeOutput(empty_latent(width, height, length, batch_size))


NODES = [EmptyCogVideoXLatentVideo]
