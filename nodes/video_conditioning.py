"""Videos to CONDITIONING: inpainting, control, removal."""

from __future__ import annotations

from comfy_api.latest import io

from .conditioning import CATEGORY, shown
from .host.conditioning import Span
from .host.video_conditioning import control_to_video, inpaint_video, remove_from_video
from .inputs import noise_seed_input, prompt_inputs, size_inputs, video_outputs


def span_inputs() -> list[io.Input]:
    """Return the widgets that say how strongly and when the video works; nodes that take one share them."""
    return [
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=10.0,
            step=0.01,
            tooltip="What the latents of the video are multiplied with, 0 to 10. 1 is as trained, 0 leaves it out.",
        ),
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip="Part of the sampling, 0 to 1, from which on the model sees the video.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip="Part of the sampling, 0 to 1, up to which the model sees the video.",
        ),
    ]


class CogVideoXInpaintVideo(io.ComfyNode):
    """What a mask covers, made anew."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXInpaintVideo",
            display_name="CogVideoX Inpaint Video",
            category=CATEGORY,
            description=(
                "Makes anew what a mask covers in a video, with CogVideoX-Fun InP: inpainting, outpainting of a padded "
                "video, or both. The video is scaled and cropped around the centre, its mask with it."
            ),
            search_aliases=["CogVideoXFunVid2VidSampler", "inpaint", "outpaint", "Fun InP", "mask", "fill"],
            inputs=[
                *prompt_inputs(),
                *size_inputs(),
                io.Image.Input("video", tooltip="Frames of one video, as many as length."),
                io.Mask.Input("mask", tooltip="White (1) is made anew. One mask for each frame, or one for all."),
                *span_inputs(),
                io.Float.Input(
                    "noise_augmentation",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Noise added to what is known, 0 to 1: its standard deviation, with black at -1 and white at "
                        "1. Fun V1.1 5B was trained with about 0.056."
                    ),
                ),
                noise_seed_input(),
                io.Boolean.Input(
                    "start_from_video",
                    default=False,
                    optional=True,
                    tooltip=(
                        "On: the latent holds the video, for a sampler with denoise below 1. "
                        "Off: it is empty, for denoise 1."
                    ),
                ),
            ],
            outputs=video_outputs("the masked video", "Empty video, or the video itself, for the sampler."),
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
        video,
        mask,
        strength,
        start_percent,
        end_percent,
        noise_augmentation=0.0,
        noise_seed=0,
        start_from_video=False,
    ) -> io.NodeOutput:
        made = inpaint_video(
            positive,
            negative,
            vae,
            width,
            height,
            length,
            batch_size,
            video,
            mask,
            span=Span(strength, start_percent, end_percent),
            noise_augmentation=noise_augmentation,
            noise_seed=noise_seed,
            start_from_video=start_from_video,
        )
        return shown(cls, made)


class CogVideoXControlToVideo(io.ComfyNode):
    """A video of poses, edges or depth to follow."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXControlToVideo",
            display_name="CogVideoX Control to Video",
            category=CATEGORY,
            description=(
                "Lets a video follow a control video, with CogVideoX-Fun Control (canny, depth, pose, lines) or Pose. "
                "The control video is scaled to the video and cropped around the centre."
            ),
            search_aliases=["CogVideoXFunControlSampler", "CogVideoControlImageEncode", "Fun Control", "Pose", "canny"],
            inputs=[
                *prompt_inputs(),
                *size_inputs(),
                io.Image.Input("control_video", tooltip="Frames of one control video, as many as length."),
                *span_inputs(),
                io.Image.Input(
                    "start_image",
                    optional=True,
                    tooltip="First frame, for a model with channels for an image beside those for control.",
                ),
            ],
            outputs=video_outputs("the control video"),
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
        control_video,
        strength,
        start_percent,
        end_percent,
        start_image=None,
    ) -> io.NodeOutput:
        made = control_to_video(
            positive,
            negative,
            vae,
            width,
            height,
            length,
            batch_size,
            control_video,
            span=Span(strength, start_percent, end_percent),
            start_image=start_image,
        )
        return shown(cls, made)


class CogVideoXVOIDConditioning(io.ComfyNode):
    """An object gone, with all that it did."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXVOIDConditioning",
            display_name="CogVideoX VOID Conditioning",
            category=CATEGORY,
            description=(
                "Removes an object and what it does to the rest of a video, with VOID, as its authors' code does: the "
                "video is not masked and the mask not rescaled. For pass 1, and for pass 2 with warped noise."
            ),
            search_aliases=["VOIDInpaintConditioning", "VOID", "quadmask", "object removal", "erase"],
            inputs=[
                *prompt_inputs(),
                *size_inputs(),
                io.Image.Input("video", tooltip="Frames of one video, as many as length."),
                io.Mask.Input(
                    "quadmask",
                    tooltip=(
                        "1 goes, 0.5 is affected by it, 0.75 is both, 0 stays: as VOID Quadmask Preprocessor gives "
                        "it. A plain mask of the object works too."
                    ),
                ),
                io.Combo.Input(
                    "void_pass",
                    options=["pass 1", "pass 2"],
                    default="pass 1",
                    tooltip=(
                        "pass 1: the mask in three levels, for the model of pass 1. "
                        "pass 2: in two, what is affected goes as well, for the model of pass 2."
                    ),
                ),
            ],
            outputs=video_outputs("mask and video"),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, positive, negative, vae, width, height, length, batch_size, video, quadmask, void_pass
    ) -> io.NodeOutput:
        made = remove_from_video(positive, negative, vae, width, height, length, batch_size, video, quadmask, void_pass)
        return shown(cls, made)


NODES = [CogVideoXInpaintVideo, CogVideoXControlToVideo, CogVideoXVOIDConditioning]
