"""Files and folders to MODEL, CLIP and VAE."""

from __future__ import annotations

from comfy_api.latest import io

from ..cogvideox.detection import VARIANT_OVERRIDE_NOTES, VARIANT_OVERRIDES
from .host.controlnet import load_controlnet
from .host.files import GGUF_FOLDER, choices, chosen, find_pipeline, listed, model_file, pipelines
from .host.loading import describe, load_clip, load_model, load_pipeline, load_vae
from .host.server import show_on_node
from .inputs import BRANCH_DTYPE_TOOLTIP, BRANCH_DTYPES, weight_dtype_input

CATEGORY = "CogVideoX/loaders"
# Checkpoints hold several parts; each loader takes its own.
MODEL_FOLDERS = ("diffusion_models", "unet", "checkpoints", GGUF_FOLDER)
VAE_FOLDERS = ("vae", "checkpoints")
TEXT_ENCODER_FOLDERS = ("text_encoders", "checkpoints")
VAE_DTYPES = ["auto", "bf16", "fp16", "fp32"]

VARIANT_TOOLTIP = "For what a file cannot tell; leave on auto for every released model. " + " ".join(
    f"{name}: {note}" for name, note in VARIANT_OVERRIDE_NOTES.items()
)


class CogVideoXLoadPipeline(io.ComfyNode):
    """A whole diffusers-layout folder."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXLoadPipeline",
            display_name="Load CogVideoX Pipeline",
            category=CATEGORY,
            description=(
                "Loads model, text encoder and VAE from one folder as published on Hugging Face (transformer, vae, "
                "text_encoder, scheduler), put into models/CogVideo. Recognises every released CogVideoX by its files."
            ),
            search_aliases=["DownloadAndLoadCogVideoModel", "load cogvideox", "diffusers"],
            inputs=[
                io.Combo.Input(
                    "pipeline",
                    options=list(pipelines()),
                    tooltip="Folder in models/CogVideo or models/diffusers: transformer, vae and text_encoder.",
                ),
                weight_dtype_input(),
                io.Combo.Input(
                    "variant",
                    options=list(VARIANT_OVERRIDES),
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip=VARIANT_TOOLTIP,
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The transformer, ready for any sampler."),
                io.Clip.Output(tooltip="The T5 text encoder, for CogVideoX Text Encode."),
                io.Vae.Output(tooltip="The video VAE, for every VAE node."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, pipeline, weight_dtype, variant="auto") -> io.NodeOutput:
        model, clip, vae = load_pipeline(find_pipeline(pipeline), weight_dtype, variant)
        show_on_node(cls, describe(model))
        return io.NodeOutput(model, clip, vae)


class CogVideoXLoadModel(io.ComfyNode):
    """One transformer file, or the transformer of a pipeline folder."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXLoadModel",
            display_name="Load CogVideoX Model",
            category=CATEGORY,
            description=(
                "Loads a CogVideoX transformer from models/diffusion_models or a pipeline folder of models/CogVideo. "
                "Recognises the variant by its content, in the layouts of diffusers, ComfyUI and the original (SAT), "
                "also as GGUF."
            ),
            search_aliases=["CogVideoXModelLoader", "load cogvideox", "gguf", "DownloadAndLoadCogVideoGGUFModel"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=choices(MODEL_FOLDERS),
                    tooltip="File, .gguf too, of diffusion_models, unet, checkpoints; folder of CogVideo, diffusers.",
                ),
                weight_dtype_input(),
                io.Combo.Input("variant", options=list(VARIANT_OVERRIDES), default="auto", tooltip=VARIANT_TOOLTIP),
            ],
            outputs=[io.Model.Output(tooltip="The transformer, ready for any sampler.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model_name, weight_dtype, variant) -> io.NodeOutput:
        model = load_model(str(chosen(MODEL_FOLDERS, model_name)), weight_dtype, variant)
        show_on_node(cls, describe(model))
        return io.NodeOutput(model)


class CogVideoXLoadVAE(io.ComfyNode):
    """The VAE that every CogVideoX model shares."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXLoadVAE",
            display_name="Load CogVideoX VAE",
            category=CATEGORY,
            description=(
                "Loads CogVideoX's video VAE, which all its models share, from models/vae or a pipeline folder. Gives "
                "the reference's frames in the stock VAE nodes; ComfyUI's own loader does not for this VAE."
            ),
            search_aliases=["CogVideoXVAELoader", "load vae"],
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=choices(VAE_FOLDERS),
                    tooltip="File of vae or checkpoints, or pipeline folder of CogVideo or diffusers.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=VAE_DTYPES,
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="Number type the VAE computes in. auto: bf16 where the card has it, else fp32.",
                ),
            ],
            outputs=[io.Vae.Output(tooltip="The video VAE, for every VAE node.")],
        )

    @classmethod
    def execute(cls, vae_name, weight_dtype="auto") -> io.NodeOutput:
        return io.NodeOutput(load_vae(str(chosen(VAE_FOLDERS, vae_name)), weight_dtype))


class CogVideoXLoadTextEncoder(io.ComfyNode):
    """The T5 text encoder."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXLoadTextEncoder",
            display_name="Load CogVideoX Text Encoder",
            category=CATEGORY,
            description=(
                "Loads the T5 v1.1 XXL text encoder from models/text_encoders or a pipeline folder, in 16 bits, fp8 or "
                "ComfyUI's quantised formats. The stock Load CLIP with type cogvideox does the same for single files."
            ),
            search_aliases=["load clip", "t5", "CLIPLoader"],
            inputs=[
                io.Combo.Input(
                    "text_encoder_name",
                    options=choices(TEXT_ENCODER_FOLDERS),
                    tooltip="File of text_encoders or checkpoints, or pipeline folder of CogVideo or diffusers.",
                )
            ],
            outputs=[io.Clip.Output(tooltip="The text encoder, for CogVideoX Text Encode.")],
        )

    @classmethod
    def execute(cls, text_encoder_name) -> io.NodeOutput:
        return io.NodeOutput(load_clip(str(chosen(TEXT_ENCODER_FOLDERS, text_encoder_name))))


class CogVideoXLoadControlNet(io.ComfyNode):
    """A ControlNet for the host's Apply ControlNet."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXLoadControlNet",
            display_name="Load CogVideoX ControlNet",
            category=CATEGORY,
            description=(
                "Loads a ControlNet of CogVideoX 2B or 5B (TheDenk's canny and hed) from models/controlnet. Connect it "
                "to the stock Apply ControlNet with a control video as long as the video; several can be chained."
            ),
            search_aliases=["DownloadAndLoadCogVideoControlNet", "canny", "hed", "control video"],
            inputs=[
                io.Combo.Input(
                    "control_net_name",
                    options=listed(("controlnet",)),
                    tooltip="File in models/controlnet. One for 2B steers 2B only, one for 5B steers 5B and 5B-I2V.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=BRANCH_DTYPES,
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip=BRANCH_DTYPE_TOOLTIP,
                ),
            ],
            outputs=[io.ControlNet.Output(tooltip="The ControlNet, for Apply ControlNet.")],
        )

    @classmethod
    def execute(cls, control_net_name, weight_dtype="auto") -> io.NodeOutput:
        return io.NodeOutput(load_controlnet(str(model_file(("controlnet",), control_net_name)), weight_dtype))


NODES = [
    CogVideoXLoadPipeline,
    CogVideoXLoadModel,
    CogVideoXLoadVAE,
    CogVideoXLoadTextEncoder,
    CogVideoXLoadControlNet,
]
