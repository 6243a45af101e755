"""NOISE that is more than a seed."""

from __future__ import annotations

from comfy_api.latest import io

from ..cogvideox.warped_noise import DETAIL, DOWNSAMPLINGS
from .host.warped_noise import warped_noise_source

CATEGORY = "CogVideoX/control"
# The socket of ComfyUI's own Load Optical Flow Model, which has no class for it.
OpticalFlow = io.Custom("OPTICAL_FLOW")


class CogVideoXWarpedNoise(io.ComfyNode):
    """Go-with-the-Flow: the motion of a video as noise."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXWarpedNoise",
            display_name="CogVideoX Warped Noise",
            category=CATEGORY,
            description=(
                "Go-with-the-Flow: noise that moves as a video does, so that the new video moves the same way. Needs a "
                "LoRA trained for it, and SamplerCustomAdvanced, which takes noise as an input."
            ),
            search_aliases=["Go-with-the-Flow", "GWTF", "NoiseWarp", "GetWarpedNoiseFromVideo", "cut and drag"],
            inputs=[
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noise, 0 to 2^64 - 1. The same seed and motion give the same noise.",
                ),
                io.Combo.Input(
                    "downsampling",
                    options=list(DOWNSAMPLINGS),
                    default=DOWNSAMPLINGS[0],
                    tooltip=(
                        "How the noise of all frames becomes that of one latent in four. nearest: take one. blend: "
                        "mean. blend_norm: mean at unit deviation. Take what the LoRA's file name says."
                    ),
                ),
                io.Float.Input(
                    "degradation",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Fresh noise mixed in, 0 to 1. 0 follows the motion closely, 1 ignores it.",
                ),
                io.Image.Input(
                    "video", optional=True, tooltip="Frames to take the motion from, as many as the video to make has."
                ),
                OpticalFlow.Input(
                    "optical_flow",
                    optional=True,
                    tooltip="Load Optical Flow Model; it sees the motion in video.",
                ),
                io.Image.Input(
                    "flow",
                    optional=True,
                    tooltip=(
                        "In place of video: its motion as pictures, one for each step to the next frame. Red is to the "
                        "right, green down, one half is rest, as renderers write motion vectors."
                    ),
                ),
                io.Float.Input(
                    "flow_range",
                    default=64.0,
                    min=1.0,
                    max=1024.0,
                    step=1.0,
                    optional=True,
                    advanced=True,
                    tooltip="Motion in px that full red or green means in flow, 1 to 1024, in px of those pictures.",
                ),
                io.Int.Input(
                    "detail",
                    default=DETAIL,
                    min=1,
                    max=DETAIL,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Noise pixels along each side of a latent, 1 to 32. 32 is the authors'; 8 takes a sixteenth "
                        "of the time and memory and follows small motion less well."
                    ),
                ),
            ],
            outputs=[io.Noise.Output(tooltip="Noise for SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls,
        seed,
        downsampling,
        degradation,
        video=None,
        optical_flow=None,
        flow=None,
        flow_range=64.0,
        detail=DETAIL,
    ) -> io.NodeOutput:
        made = warped_noise_source(
            seed, downsampling, degradation, detail, flow_range, video=video, optical_flow=optical_flow, flow=flow
        )
        return io.NodeOutput(made)


NODES = [CogVideoXWarpedNoise]
