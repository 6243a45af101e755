"""LoRA files onto MODEL."""

from __future__ import annotations

from comfy_api.latest import io

from ..cogvideox.lora import SCALINGS
from .host.files import listed, model_file
from .host.lora import load_lora
from .host.server import show_on_node
from .loaders import CATEGORY


class CogVideoXLoadLoRA(io.ComfyNode):
    """A LoRA of any training code, applied by the host."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXLoadLoRA",
            display_name="Load CogVideoX LoRA",
            category=CATEGORY,
            description=(
                "Puts a LoRA of models/loras on a CogVideoX model, in the layout of any training code, and shows how "
                "many layers fit and how they are scaled. Connect several in a row to stack them."
            ),
            search_aliases=["CogVideoLoraSelect", "CogVideoLoraSelectComfy", "load lora", "dora", "lokr"],
            inputs=[
                io.Model.Input("model", tooltip="The CogVideoX model to change; it is not changed itself."),
                io.Combo.Input(
                    "lora_name",
                    options=listed(("loras",)),
                    tooltip="File in models/loras, trained on the same kind of CogVideoX.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How much of the LoRA, -10 to 10. 1 is as trained, 0 is off, below 0 is the opposite.",
                ),
                io.Combo.Input(
                    "scaling",
                    options=list(SCALINGS),
                    default="auto",
                    tooltip=(
                        "What the LoRA is multiplied with besides strength. auto: alpha/rank where the file holds "
                        "alpha, else none, or 1/rank where it is far too strong without (DimensionX, exports of SAT)."
                    ),
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with the LoRA on it.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, lora_name, strength, scaling) -> io.NodeOutput:
        model, told = load_lora(model, model_file(("loras",), lora_name), strength, scaling)
        show_on_node(cls, told)
        return io.NodeOutput(model)


NODES = [CogVideoXLoadLoRA]
