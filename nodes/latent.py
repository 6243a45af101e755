"""The size of a video to LATENT."""

from __future__ import annotations

from comfy_api.latest import io

from ..cogvideox.sizes import FITS, MODELS
from .host.conditioning import empty_latent
from .host.server import show_on_node
from .host.sizes import choose_size
from .inputs import size_inputs


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


class CogVideoXResolution(io.ComfyNode):
    """The size to make a video in."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXResolution",
            display_name="CogVideoX Resolution",
            category="CogVideoX/latent",
            description=(
                "Chooses a size and length the model knows, by the shape of an image if there is one. Shows on the "
                "node what it comes to in latents and memory."
            ),
            search_aliases=["CogVideoXFunResizeToClosestBucket", "aspect ratio", "bucket", "size", "image size", "fps"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(MODELS),
                    default="5B",
                    tooltip="The model the video is for; text and image to video alike. Fun models know many shapes.",
                ),
                io.Combo.Input(
                    "size",
                    options=list(FITS),
                    default="trained size",
                    tooltip=(
                        "trained size: the model's own; of a Fun model, the one nearest in shape. shape of the image: "
                        "as large as that, in the image's shape. size of the image: its own, rounded to 16 px."
                    ),
                ),
                io.Float.Input(
                    "seconds",
                    default=6.0,
                    min=0.1,
                    max=64.0,
                    step=0.1,
                    tooltip=(
                        "Playing time in s, at 8 frames a second, 1.5 at 16. Trained: 6 s, 1.5 on 5 and 10 s. The "
                        "length is the nearest of 8n + 1 frames."
                    ),
                ),
                io.Int.Input(
                    "base",
                    default=512,
                    min=64,
                    max=1280,
                    step=64,
                    advanced=True,
                    tooltip="Fun models: side in px of a square video; other shapes have about its area. 64 to 1280.",
                ),
                io.Image.Input("image", optional=True, tooltip="Picture or video whose shape counts."),
            ],
            outputs=[
                io.Int.Output(display_name="width", tooltip="Width in px."),
                io.Int.Output(display_name="height", tooltip="Height in px."),
                io.Int.Output(display_name="length", tooltip="Frames, 8n + 1."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, size, seconds, base, image=None) -> io.NodeOutput:
        width, height, length, note = choose_size(model, size, seconds, base, image)
        show_on_node(cls, note)
        return io.NodeOutput(width, height, length)


NODES = [EmptyCogVideoXLatentVideo, CogVideoXResolution]
