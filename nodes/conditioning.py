"""Images to CONDITIONING."""

from __future__ import annotations

from comfy_api.latest import io

from .host.conditioning import Span, image_to_video
from .host.server import show_on_node
from .inputs import noise_seed_input, prompt_inputs, size_inputs, video_outputs

CATEGORY = "CogVideoX/conditioning"


def shown(node, made) -> io.NodeOutput:
    """Return the outputs of a node, and say on it what was done to its images."""
    show_on_node(node, made.note)
    return io.NodeOutput(made.positive, made.negative, made.latent)


class CogVideoXImageToVideo(io.ComfyNode):
    """First frame, last frame or both."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXImageToVideo",
            display_name="CogVideoX Image to Video",
            category=CATEGORY,
            description=(
                "Lets a video start with an image, end with one, or both, for every image-conditioned CogVideoX model. "
                "Images are scaled to the video and cropped around the centre; several images make as many videos."
            ),
            search_aliases=["CogVideoImageEncode", "i2v", "first frame", "last frame", "start end frame"],
            inputs=[
                *prompt_inputs(),
                *size_inputs(),
                io.Image.Input(
                    "start_image", optional=True, tooltip="First frame. One image, or one for each video of the batch."
                ),
                io.Image.Input(
                    "end_image",
                    optional=True,
                    tooltip="Last frame. Needs a model trained for it (Interpolation, Fun InP); others may ignore it.",
                ),
                io.Float.Input(
                    "noise_augmentation",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Noise added to the images, 0 to 1: its standard deviation, with black at -1 and white at 1. "
                        "Try 0.02 to 0.06 if nothing moves."
                    ),
                ),
                noise_seed_input(),
                io.Float.Input(
                    "image_strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="What the image latents are multiplied with, 0 to 10. 1 is as trained, 0 shows no image.",
                ),
                io.Float.Input(
                    "image_start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    optional=True,
                    advanced=True,
                    tooltip="Part of the sampling, 0 to 1, from which on the model sees the images.",
                ),
                io.Float.Input(
                    "image_end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    optional=True,
                    advanced=True,
                    tooltip="Part of the sampling, 0 to 1, up to which the model sees the images.",
                ),
                io.Image.Input(
                    "keyframes",
                    optional=True,
                    tooltip="Images at chosen frames, one for each position, in every video of the batch.",
                ),
                io.String.Input(
                    "keyframe_positions",
                    default="",
                    optional=True,
                    tooltip=(
                        'Frames of the keyframes, such as "0, 24, 48": 0 is the first frame, -1 the last. '
                        "At least 4 frames apart."
                    ),
                ),
            ],
            outputs=video_outputs("the images"),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        positive,
        negative,
        vae,
        width,
        height,
        length,
        batch_size,
        start_image=None,
        end_image=None,
        noise_augmentation=0.0,
        noise_seed=0,
        image_strength=1.0,
        image_start_percent=0.0,
        image_end_percent=1.0,
        keyframes=None,
        keyframe_positions="",
    ) -> io.NodeOutput:
        made = image_to_video(
            positive,
            negative,
            vae,
            width,
            height,
            length,
            batch_size,
            start_image=start_image,
            end_image=end_image,
            noise_augmentation=noise_augmentation,
            noise_seed=noise_seed,
            span=Span(image_strength, image_start_percent, image_end_percent),
            keyframes=keyframes,
            keyframe_positions=keyframe_positions,
        )
        return shown(cls, made)


NODES = [CogVideoXImageToVideo]
