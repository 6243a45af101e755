"""Networks beside the transformer: loaders that put them on MODEL and nodes that give them what they read."""

from __future__ import annotations

from comfy_api.latest import io

from .conditioning import shown
from .host.consisid import identity_to_video, load_consisid
from .host.files import choices, chosen, listed, model_file
from .host.shader import load_shader, tracking_conditioning
from .host.tora import load_tora, trajectory
from .inputs import (
    branch_inputs,
    made_inputs,
    prompt_inputs,
    prompt_outputs,
    size_inputs,
    steering_inputs,
    video_outputs,
)
from .loaders import MODEL_FOLDERS

LOADERS = "CogVideoX/loaders"
CONTROL = "CogVideoX/control"
SAME_FILE, FROM_INPUT = "in the same file", "from the input"
IDENTITY_FOLDERS = ("embeddings",)


class CogVideoXLoadTora(io.ComfyNode):
    """Tora on a model."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXLoadTora",
            display_name="Load CogVideoX Tora",
            category=LOADERS,
            description=(
                "Puts Tora on a CogVideoX-5B or 5B-I2V model, so that objects follow the paths of CogVideoX "
                "Trajectory. The file may hold the model too, or Tora alone, whole or in two files."
            ),
            search_aliases=["DownloadAndLoadToraModel", "trajectory", "motion path", "drag"],
            inputs=[
                io.Combo.Input(
                    "tora_name",
                    options=choices(MODEL_FOLDERS),
                    tooltip="File in models/diffusion_models, or pipeline folder, with Tora's fusers in it.",
                ),
                *branch_inputs(),
                io.Combo.Input(
                    "extractor_name",
                    options=[SAME_FILE, *listed(MODEL_FOLDERS)],
                    default=SAME_FILE,
                    optional=True,
                    advanced=True,
                    tooltip="The file of the trajectory extractor, where it is apart from the fusers.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with Tora on it.")],
        )

    @classmethod
    def execute(cls, tora_name, weight_dtype, model=None, extractor_name=SAME_FILE) -> io.NodeOutput:
        extractor = None if extractor_name == SAME_FILE else model_file(MODEL_FOLDERS, extractor_name)
        return io.NodeOutput(load_tora(model, chosen(MODEL_FOLDERS, tora_name), extractor, weight_dtype))


class CogVideoXTrajectory(io.ComfyNode):
    """Paths for Tora."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXTrajectory",
            display_name="CogVideoX Trajectory",
            category=CONTROL,
            description=(
                "Lets objects follow paths: the coordinates of a spline editor, one path or several, or a video of "
                "optical flow in colours. Needs a model with Tora on it (Load CogVideoX Tora)."
            ),
            search_aliases=["ToraEncodeTrajectory", "ToraEncodeOpticalFlow", "motion path", "spline", "drag"],
            inputs=[
                *made_inputs(),
                io.String.Input(
                    "coordinates",
                    multiline=True,
                    tooltip=(
                        'JSON of a spline editor in pixels of the video: a list of points {"x": 1, "y": 2} or [1, 2], '
                        "or a list of such lists. Points spread over all frames."
                    ),
                ),
                *steering_inputs(),
                io.Image.Input(
                    "optical_flow",
                    optional=True,
                    tooltip="Instead of coordinates: flow as colours (Middlebury wheel), one picture for each frame.",
                ),
                io.Image.Input(
                    "image", optional=True, tooltip="Picture or video to draw the paths on. Without it: the flow."
                ),
            ],
            outputs=[
                *prompt_outputs("the paths"),
                io.Image.Output(display_name="preview", tooltip="The paths drawn, one picture for each frame."),
            ],
        )

    @classmethod
    def execute(
        cls,
        positive,
        negative,
        vae,
        latent,
        coordinates,
        strength,
        start_percent,
        end_percent,
        optical_flow=None,
        image=None,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            *trajectory(
                positive,
                negative,
                vae,
                latent,
                coordinates,
                strength,
                start_percent,
                end_percent,
                optical_flow=optical_flow,
                image=image,
            )
        )


class CogVideoXLoadDiffusionAsShader(io.ComfyNode):
    """Diffusion as Shader on a model."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXLoadDiffusionAsShader",
            display_name="Load CogVideoX Diffusion as Shader",
            category=LOADERS,
            description=(
                "Puts Diffusion as Shader on a CogVideoX-5B-I2V model, so that the video follows a video of tracked "
                "points. The published folder holds the model too; leave model open then."
            ),
            search_aliases=["DaS", "tracking", "3D control", "camera control", "motion transfer"],
            inputs=[
                io.Combo.Input(
                    "shader_name",
                    options=choices(MODEL_FOLDERS),
                    tooltip="File in models/diffusion_models, or pipeline folder, with the branch in it.",
                ),
                *branch_inputs(),
            ],
            outputs=[io.Model.Output(tooltip="The model with Diffusion as Shader on it.")],
        )

    @classmethod
    def execute(cls, shader_name, weight_dtype, model=None) -> io.NodeOutput:
        return io.NodeOutput(load_shader(model, chosen(MODEL_FOLDERS, shader_name), weight_dtype))


class CogVideoXTrackingVideo(io.ComfyNode):
    """A tracking video for Diffusion as Shader."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXTrackingVideo",
            display_name="CogVideoX Tracking Video",
            category=CONTROL,
            description=(
                "Lets the video move as a tracking video does: points in 3D whose colours stay the same from frame to "
                "frame, as SpatialTracker or a renderer draws them. Needs a model with Diffusion as Shader on it."
            ),
            search_aliases=["DaS", "Diffusion as Shader", "tracking", "camera control", "motion transfer"],
            inputs=[
                *made_inputs(),
                io.Image.Input(
                    "tracking_video", tooltip="Coloured points on black, one picture for each frame of the video."
                ),
                *steering_inputs(),
            ],
            outputs=prompt_outputs("the tracking video"),
        )

    @classmethod
    def execute(
        cls, positive, negative, vae, latent, tracking_video, strength, start_percent, end_percent
    ) -> io.NodeOutput:
        return io.NodeOutput(
            *tracking_conditioning(
                positive, negative, vae, latent, tracking_video, strength, start_percent, end_percent
            )
        )


class CogVideoXLoadConsisID(io.ComfyNode):
    """ConsisID on a model."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXLoadConsisID",
            display_name="Load CogVideoX ConsisID",
            category=LOADERS,
            description=(
                "Puts ConsisID on a CogVideoX-5B-I2V model, so that a person keeps the face that CogVideoX Identity to "
                "Video gives. The published folder holds the model too; leave model open then."
            ),
            search_aliases=["identity", "face", "person", "portrait"],
            inputs=[
                io.Combo.Input(
                    "consisid_name",
                    options=choices(MODEL_FOLDERS),
                    tooltip="File in models/diffusion_models, or pipeline folder, with ConsisID in it.",
                ),
                *branch_inputs(),
            ],
            outputs=[io.Model.Output(tooltip="The model with ConsisID on it.")],
        )

    @classmethod
    def execute(cls, consisid_name, weight_dtype, model=None) -> io.NodeOutput:
        return io.NodeOutput(load_consisid(model, chosen(MODEL_FOLDERS, consisid_name), weight_dtype))


class CogVideoXIdentityToVideo(io.ComfyNode):
    """The picture and the features of a face for ConsisID."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXIdentityToVideo",
            display_name="CogVideoX Identity to Video",
            category=CONTROL,
            description=(
                "Makes a video of the person in a picture. Needs a model with ConsisID on it and the features of the "
                "face, from a file or a face-analysis pack: id_cond [1, 1280] and id_vit_hidden, 5 of [1, 577, 1024]."
            ),
            search_aliases=["ConsisID", "face", "person", "identity", "id preserving"],
            inputs=[
                *prompt_inputs(),
                io.Image.Input("image", tooltip="Picture of the person; the face as large as it can be."),
                *size_inputs(),
                io.Combo.Input(
                    "identity_name",
                    options=[FROM_INPUT, *listed(IDENTITY_FOLDERS)],
                    default=FROM_INPUT,
                    tooltip="File in models/embeddings with id_cond and id_vit_hidden, or from the input identity.",
                ),
                *steering_inputs(),
                # No type of the host holds features of a face, and packs that make them name theirs as they like.
                io.AnyType.Input(
                    "identity",
                    optional=True,
                    tooltip="Features of the face: a pair or mapping of id_cond and id_vit_hidden.",
                ),
                io.Image.Input(
                    "face_keypoints",
                    optional=True,
                    tooltip="The face's key points drawn on black, for weights trained with them.",
                ),
            ],
            outputs=video_outputs("the face"),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        positive,
        negative,
        vae,
        image,
        width,
        height,
        length,
        batch_size,
        identity_name,
        strength,
        start_percent,
        end_percent,
        identity=None,
        face_keypoints=None,
    ) -> io.NodeOutput:
        if identity_name != FROM_INPUT:
            identity = model_file(IDENTITY_FOLDERS, identity_name)
        made = identity_to_video(
            positive,
            negative,
            vae,
            width,
            height,
            length,
            batch_size,
            image,
            identity,
            strength,
            start_percent,
            end_percent,
            face_keypoints=face_keypoints,
        )
        return shown(cls, made)


NODES = [
    CogVideoXLoadTora,
    CogVideoXTrajectory,
    CogVideoXLoadDiffusionAsShader,
    CogVideoXTrackingVideo,
    CogVideoXLoadConsisID,
    CogVideoXIdentityToVideo,
]
