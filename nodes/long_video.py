"""Videos longer than a model makes at once."""

from __future__ import annotations

from comfy_api.latest import io

from ..cogvideox.latents import FRAME_STEP
from .conditioning import shown
from .host.coding import AUTO, SLABS, WHOLE
from .host.long_video import continue_video, decode_to_video, join_videos, with_riflex
from .host.server import show_on_node
from .inputs import MAX_LENGTH, negative_input, vae_input


class CogVideoXRIFLEx(io.ComfyNode):
    """RIFLEx: positions in time that do not come round again."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXRIFLEx",
            display_name="CogVideoX RIFLEx",
            category="CogVideoX/patches",
            description=(
                "RIFLEx: about twice the frames in one piece without the video repeating itself. Lowers one frequency "
                "of the positions in time, where the video outlasts its period; shorter videos stay as they are."
            ),
            search_aliases=["RIFLEx", "Apply RifleXRoPE", "rope", "longer video", "length extrapolation"],
            inputs=[
                io.Model.Input("model", tooltip="A CogVideoX model other than 2B."),
                io.Int.Input(
                    "k",
                    default=2,
                    min=1,
                    max=8,
                    tooltip="Which temporal frequency is lowered, 1 (fastest) to 8. 2 is the authors' for CogVideoX.",
                ),
                io.Float.Input(
                    "share",
                    default=0.9,
                    min=0.1,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Share of one period that the video fills, 0.1 to 1. 0.9 is the authors'.",
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=MAX_LENGTH,
                    advanced=True,
                    tooltip=(
                        "Frames that the frequency is lowered for, 0 to 1025. 0: those of the video. Another number "
                        "for a model tuned with RIFLEx."
                    ),
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with its positions in time stretched for long videos.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, k, share, frames) -> io.NodeOutput:
        model, note = with_riflex(model, k, share, frames)
        show_on_node(cls, note)
        return io.NodeOutput(model)


class CogVideoXContinueVideo(io.ComfyNode):
    """The last frames of a video as the start of the next piece."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXContinueVideo",
            display_name="CogVideoX Continue Video",
            category="CogVideoX/conditioning",
            description=(
                "Begins the next piece with the last frames of a video: they are held while the rest is sampled, so "
                "that motion goes on. CogVideoX Join Videos puts the pieces together."
            ),
            search_aliases=["extend video", "longer video", "last frame", "video continuation"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="What happens next, from CogVideoX Text Encode."),
                negative_input(),
                vae_input(),
                io.Image.Input(
                    "video", tooltip="Frames of the video so far; the new piece has its size, sides a multiple of 16."
                ),
                io.Int.Input(
                    "length",
                    default=49,
                    min=9,
                    max=MAX_LENGTH,
                    step=FRAME_STEP,
                    tooltip="Frames of the new piece with the overlap, 9 to 1025, always 8n + 1. 1.0: 49. 1.5: 81.",
                ),
                io.Int.Input(
                    "overlap",
                    default=9,
                    min=1,
                    max=MAX_LENGTH,
                    step=FRAME_STEP,
                    tooltip="Last frames to begin with, 1 to 1025, always 8n + 1. 1 knows no motion; 9 or 17 do.",
                ),
                io.Boolean.Input(
                    "start_image",
                    default=True,
                    tooltip="On for image-to-video models: the first of them is their start image. Off for others.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="Prompt, with the start image if on."),
                io.Conditioning.Output(display_name="negative", tooltip="Negative prompt, with the start image if on."),
                io.Latent.Output(display_name="latent", tooltip="The known frames and a mask that holds them."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, positive, negative, vae, video, length, overlap, start_image) -> io.NodeOutput:
        made = continue_video(positive, negative, vae, video, length, overlap, start_image)
        return shown(cls, made)


class CogVideoXJoinVideos(io.ComfyNode):
    """Two pieces that share frames to one."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXJoinVideos",
            display_name="CogVideoX Join Videos",
            category="CogVideoX/vae",
            description="Joins a video and its continuation, fading from one to the other over the frames they share.",
            search_aliases=["ImageBatch", "concatenate videos", "crossfade", "extend video"],
            inputs=[
                io.Image.Input("first", tooltip="Frames of the video so far."),
                io.Image.Input("second", tooltip="Frames of the next piece; it begins with the last of the first."),
                io.Int.Input(
                    "overlap",
                    default=9,
                    min=0,
                    max=MAX_LENGTH,
                    tooltip="Frames they share, 0 to 1025: the overlap of CogVideoX Continue Video. 0 just joins.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="Both as one video.")],
        )

    @classmethod
    def execute(cls, first, second, overlap) -> io.NodeOutput:
        return io.NodeOutput(join_videos(first, second, overlap))


class CogVideoXDecodeToVideo(io.ComfyNode):
    """LATENT to a file, without all frames in memory."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXDecodeToVideo",
            display_name="CogVideoX Decode to Video",
            category="CogVideoX/vae",
            description=(
                "Decodes a video straight into a temporary file, a few frames at a time: memory does not grow with its "
                "length. Save Video copies the file as it is."
            ),
            search_aliases=["VAEDecode", "CreateVideo", "long video", "stream"],
            inputs=[
                io.Latent.Input("samples", tooltip="Video latents of a CogVideoX sampler, one video."),
                io.Vae.Input("vae", tooltip="CogVideoX's VAE."),
                io.Float.Input(
                    "fps",
                    default=8.0,
                    min=1.0,
                    max=120.0,
                    step=0.01,
                    tooltip="Frames a second, 1 to 120. 1.0: 8. 1.5: 16.",
                ),
                io.Float.Input(
                    "crf",
                    default=18.0,
                    min=0.0,
                    max=51.0,
                    step=1.0,
                    advanced=True,
                    tooltip="How much H.264 may lose, 0 (nothing) to 51. 18 is hardly visible, 23 smaller.",
                ),
                io.Combo.Input(
                    "memory",
                    options=[AUTO, WHOLE, SLABS],
                    default=AUTO,
                    advanced=True,
                    tooltip="whole frame: fast. slabs: the same frames in less memory, slower. auto: what fits.",
                ),
            ],
            outputs=[io.Video.Output(tooltip="The video in a temporary file, for Save Video.")],
        )

    @classmethod
    def execute(cls, samples, vae, fps, crf, memory) -> io.NodeOutput:
        return io.NodeOutput(decode_to_video(vae, samples["samples"], fps, crf, memory))


NODES = [CogVideoXRIFLEx, CogVideoXContinueVideo, CogVideoXJoinVideos, CogVideoXDecodeToVideo]
