"""Graphs of the older wrapper to native graphs: what each of its nodes becomes, and what has no equal.

The wrapper's sampler did everything that native nodes do one by one, so a graph is rebuilt from its samplers: the
loader becomes a loader with LoRAs, attention and compilation behind it; what was handed to the sampler becomes a patch
of the model or a conditioning node in front of it; each old node lends its place, title and colour to the node that
does its work, and further nodes are put beside. What has no equal becomes a note that says so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import signatures
from .graph import BYPASS, NEVER, SUBGRAPH_OUTPUT, Canvas, Graph, Node, Prompt, Source, StrangeGraph
from .native import Schema, make, slots, stored_schema

WRAPPER = "the older CogVideoX wrapper"
NOTE = "Note"  # the editor's own, which the server does not know
NOTE_LOOK = {"color": "#432", "bgcolor": "#653"}
WARPED_NOISE = "GetWarpedNoiseFromVideo"  # of ComfyUI-VideoNoiseWarp
PASSING = ("Reroute", "GetNode", "SetNode")
FRAME_STEP = 8  # native videos have 8n + 1 frames
LATENT_STEP = 4  # frames in a latent frame, by which the wrapper divided its context options
DDIM, DPM = "ddim", "dpm"
REFERENCE_CFG = "reference"

# Schedulers of the wrapper: the native sampler, and what to say of it. With dpm it switched dynamic guidance on.
OWN_SAMPLERS = {
    "CogVideoXDDIM": DDIM,
    "DDIM": DDIM,
    "DDIM_tiled": DDIM,
    "CogVideoXDPMScheduler": DPM,
    "DPM": DPM,
}
STOCK_SAMPLERS = {
    "DPM++": ("dpmpp_2m", ""),
    "Euler": ("euler", ""),
    "Euler A": ("euler_ancestral", ""),
    "LCMScheduler": ("lcm", ""),
    "UniPCMultistepScheduler": ("uni_pc_bh2", "one order higher than the wrapper's"),
    "HeunDiscreteScheduler": ("heun", "on the model's own noise schedule, which the wrapper's did not follow"),
    "DEISMultistepScheduler": ("deis", "on the model's own noise schedule, which the wrapper's did not follow"),
    "SASolverScheduler": ("sa_solver", "on the model's own noise schedule, which the wrapper's did not follow"),
    "PNDM": ("ipndm", "the nearest there is, on the model's own noise schedule"),
}
# Folders the wrapper downloaded to, by the entry of its list; the first that is there is taken, else the last named.
FOLDERS = {
    "THUDM/CogVideoX-2b": ("CogVideo2B", "CogVideoX-2b"),
    "kijai/CogVideoX-5b-1.5-T2V": ("CogVideoX1.5-5B",),
    "kijai/CogVideoX-5b-1.5-I2V": ("CogVideoX1.5-5B-I2V",),
    "kijai/CogVideoX-Fun-2b": ("CogVideoX-Fun-2b-InP",),
    "kijai/CogVideoX-Fun-5b": ("CogVideoX-Fun-5b-InP",),
}
GGUF_VAE = "cogvideox_vae.safetensors"
WEIGHT_DTYPES = {
    "fp8_e4m3fn": "fp8_e4m3fn",
    "enabled": "fp8_e4m3fn",
    "fp8_e4m3fn_fastmode": "fp8_e4m3fn_fast",
    "fp8_e4m3fn_fast": "fp8_e4m3fn_fast",
    "fastmode": "fp8_e4m3fn_fast",
}
SCHEDULES = {
    "uniform_standard": "standard_uniform",
    "uniform_looped": "looped_uniform",
    "static_standard": "standard_static",
}
LANDSCAPE = (720, 480)

# What has no equal, and what to use instead.
NO_EQUAL = {
    "CogVideoXFasterCache": "CogVideoX Step Cache saves time in another way.",
    "CogVideoPABConfig": "CogVideoX Step Cache saves time in another way.",
    "CogVideoTransformerEdit": "Blocks of the model cannot be left out.",
    "CogVideoLatentPreview": "Previews come with sampling.",
}


@dataclass
class Report:
    """What a conversion did: (old id, old type, new types) of each node, and sentences on what is not the same."""

    converted: list[tuple[Any, str, list[str]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add a sentence once."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def summary(self) -> str:
        """One line, empty where nothing was converted."""
        count = len(self.converted)
        if not count:
            return ""
        return f"{count} node{'s' * (count != 1)} of {WRAPPER} became native CogVideoX nodes."

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON."""
        converted = [{"id": id, "from": old, "to": new} for id, old, new in self.converted]
        return {"summary": self.summary, "converted": converted, "notes": self.notes}


NEEDS = "It needs {}, which this version does not have."


class Missing(Exception):
    """A native node that this version does not have."""


class Conversion:
    """One graph on its way."""

    def __init__(self, graph: Graph, schema: Schema, report: Report):
        self.graph, self.schema, self.report = graph, schema, report
        self.new: dict[Any, Node] = {}
        self.claimed: dict[Any, list[str]] = {}  # id of an old or stock node: types made in its place
        self.extra: dict[Any, list[str]] = {}  # id: types that stand beside it
        self.removed: set[Any] = set()
        self.built: dict[Any, dict[str, Source | None]] = {}
        self.vaes: dict[Any, Source | None] = {}
        self.measured: dict[Source, Any] = {}

    # --- reading -----------------------------------------------------------------------------------------------------

    def is_old(self, node: Node | None) -> bool:
        """Say whether a node is one of the wrapper's that nobody else provides."""
        return node is not None and node.type in signatures.ERAS and node.type not in self.schema

    def reading(self, node: Node) -> signatures.Reading:
        """Return what a saved node holds."""
        if isinstance(self.graph, Prompt):
            return signatures.read(node.type, node.values, [*node.inputs, *node.values])
        outputs = [slot.get("name", "") for slot in node.raw.get("outputs") or [] if isinstance(slot, dict)]
        return signatures.read(node.type, node.raw.get("widgets_values"), self.graph.names[node.id], outputs)

    def value(self, node: Node, name: str) -> Any:
        """Return a widget's value, or None where this node has none of that name."""
        return self.reading(node).values.get(name)

    def source(self, node: Node, *names: str) -> Source | None:
        """Return where the first connected of these inputs comes from."""
        for name in names:
            if (found := self.graph.input_of(node, name)) is not None:
                return found
        return None

    def trace(self, source: Source | None) -> Source | None:
        """Follow reroutes and Set/Get pairs back to the node that makes the value."""
        seen = set()
        while source is not None and source not in seen:
            seen.add(source)
            node = self.graph.nodes.get(source[0])
            if node is None or node.type not in PASSING:
                return source
            if node.type == "GetNode":
                node = next(
                    (
                        one
                        for one in self.graph.nodes.values()
                        if one.type == "SetNode" and self._key(one) == self._key(node)
                    ),
                    None,
                )
                if node is None:
                    return source
            source = next(iter(node.inputs.values()), None)
        return source

    @staticmethod
    def _key(node: Node) -> Any:
        saved = (node.raw or {}).get("widgets_values")
        return saved[0] if isinstance(saved, list) and saved else None

    def origin(self, source: Source | None) -> Node | None:
        """Return the node that makes a value."""
        traced = self.trace(source)
        return self.graph.nodes.get(traced[0]) if traced else None

    # --- making ------------------------------------------------------------------------------------------------------

    def _schema_of(self, node_type: str) -> Mapping[str, Any]:
        if node_type not in self.schema:
            raise Missing(node_type)
        return self.schema[node_type]

    def claim(self, old: Node, node_type: str, values: Mapping[str, Any] | None = None, patch: bool = False) -> Node:
        """Make a node in the place of an old one, or beside it where the place is taken."""
        info = self._schema_of(node_type)
        saved = (old.raw or {}).get("widgets_values")
        control = (
            next((v for v in saved or [] if v in signatures.AFTER_GENERATE), "fixed")
            if isinstance(saved, list)
            else "fixed"
        )
        first = old.id not in self.claimed
        node = make(old.id if first else self.graph.new_id(), node_type, info, values or {}, control)
        node.mode = BYPASS if patch and old.mode == NEVER else old.mode
        node.raw, node.look = old.raw, dict(old.look)
        node.title = old.title if old.title not in ("", old.type) else ""
        if isinstance(self.graph, Prompt):
            node.raw, node.title = None, ""
        if first:
            height = max(node.size[1], 0)
            node.pos, node.size = old.pos, (max(old.size[0], 210), max(old.size[1], height))
        else:
            self._place(node, old)
        self.claimed.setdefault(old.id, []).append(node_type)
        self.new[node.id] = node
        return node

    def beside(self, anchor: Node, node_type: str, values: Mapping[str, Any] | None = None) -> Node:
        """Make a node next to an old one."""
        node = make(self.graph.new_id(), node_type, self._schema_of(node_type), values or {})
        node.mode = anchor.mode
        self._place(node, anchor)
        self.extra.setdefault(anchor.id, []).append(node_type)
        self.new[node.id] = node
        return node

    def _place(self, node: Node, anchor: Node) -> None:
        if isinstance(self.graph, Canvas):
            node.pos = self.graph.free_spot(anchor, node.size, self.new.values())

    def link(self, node: Node, name: str, source: Source | None) -> None:
        """Connect an input of a new node."""
        if source is not None and name in node.made["sockets"]:
            node.inputs[name] = source

    def carry(self, new: Node, name: str, old: Node, old_name: str, change: Callable[[Any], Any] | None = None) -> None:
        """Carry a widget's value, or what is linked to it, to the widget `name` of a new node."""
        slot = new.made["slots_by_name"].get(name)
        if slot is None:
            return
        source = self.graph.input_of(old, old_name)
        if source is not None:
            if change is not None:
                self.report.note(
                    f"{label(old)}: what is connected to {old_name} is used as it is for {name}, which counts "
                    "differently. Look at it."
                )
            self.link(new, name, self.native(source))
            return
        value = self.value(old, old_name)
        if value is None:
            return
        self.set(new, name, change(value) if change else value, old)

    def set(self, new: Node, name: str, value: Any, old: Node) -> None:
        """Set a widget, within its range."""
        slot = new.made["slots_by_name"].get(name)
        if slot is None:
            return
        fitted = slot.clamp(value)
        if fitted != value:
            self.report.note(f"{label(old)}: {name} was {value:g}; {fitted:g} is the limit here.")
        new.values[name] = fitted

    def choose(self, node_type: str, name: str, *wanted: str) -> str:
        """Return the first of some files or folders that the host lists, else the last, as it is written there."""
        listed = next((slot.choices for slot in slots(self._schema_of(node_type)) if slot.name == name), None) or ()
        for want in wanted:
            for choice in listed:
                if str(choice).replace("\\", "/").lower() == want.replace("\\", "/").lower():
                    return choice
            for choice in listed:
                if (
                    str(choice).replace("\\", "/").rsplit("/", 1)[-1].lower()
                    == want.replace("\\", "/").rsplit("/", 1)[-1].lower()
                ):
                    return choice
        return wanted[-1]

    def listed(self, node_type: str, name: str) -> tuple | None:
        """Return the choices of a combo, or None where only the host knows them."""
        return next((slot.choices for slot in slots(self._schema_of(node_type)) if slot.name == name), None)

    # --- links ---------------------------------------------------------------------------------------------------

    def native(self, source: Source | None) -> Source | None:
        """Return where a value comes from in the new graph; values of other packs come from where they came."""
        traced = self.trace(source)
        if traced is None:
            return None
        node = self.graph.nodes.get(traced[0])
        if not self.is_old(node):
            return source
        outputs = self.reading(node).era.outputs
        made = self.build(node)
        if traced[1] >= len(outputs):
            return None
        name = outputs[traced[1]]
        if name == "vae" and name not in made:
            return self.vae_of(node)
        return made.get(name)

    def build(self, node: Node) -> dict[str, Source | None]:
        """Convert one old node, once, and return where its outputs come from now."""
        if node.id not in self.built:
            self.built[node.id] = {}  # a graph that feeds itself ends here
            builder = getattr(self, f"_build_{node.type}", None)
            unread = self.reading(node).unread
            if unread:
                self.report.note(
                    f"{label(node)}: {', '.join(unread)} could not be read from the file and "
                    f"{'has its' if len(unread) == 1 else 'have their'} usual value. Look at the node."
                )
            try:
                if builder is None:
                    self.no_equal(node, NO_EQUAL.get(node.type, ""))
                else:
                    self.built[node.id] = builder(node) or {}
            except Missing as missing:
                self.no_equal(node, NEEDS.format(missing.args[0]))
        return self.built[node.id]

    def no_equal(self, node: Node, advice: str) -> None:
        """Put a note in the place of an old node."""
        name = label(node)
        self.report.note(f"{name} has no equal here and was left out. {advice}".strip())
        if node.id in self.claimed:
            return
        self.claimed[node.id] = [NOTE]
        if isinstance(self.graph, Prompt):
            return
        values = ", ".join(f"{key} {value}" for key, value in self.reading(node).values.items())
        text = f"{node.type} of {WRAPPER} stood here. {advice}\n{values}".replace("  ", " ")
        note = Node(node.id, NOTE, node.raw, look={**NOTE_LOOK}, pos=node.pos, size=node.size, title=node.title)
        note.made = {
            "slots": lambda _: {"inputs": [], "outputs": [], "widgets_values": [text]},
            "properties": {},
            "sockets": set(),
        }
        self.new[note.id] = note

    # --- loaders -----------------------------------------------------------------------------------------------------

    def _build_DownloadAndLoadCogVideoModel(self, node: Node) -> dict[str, Source | None]:
        name = self.value(node, "model") or "THUDM/CogVideoX-2b"
        quantization = self.value(node, "quantization") or self.value(node, "fp8_transformer")
        return self._loader(
            node, self._folder("CogVideoXLoadModel", "model_name", node, name), quantization, "precision"
        )

    def _build_CogVideoXModelLoader(self, node: Node) -> dict[str, Source | None]:
        name = self.choose("CogVideoXLoadModel", "model_name", str(self.value(node, "model")))
        return self._loader(node, name, self.value(node, "quantization"), "base_precision")

    def _build_DownloadAndLoadCogVideoGGUFModel(self, node: Node) -> dict[str, Source | None]:
        name = self.choose("CogVideoXLoadModel", "model_name", str(self.value(node, "model")))
        return self._loader(node, name, None, None)

    def _folder(self, node_type: str, name: str, node: Node, model: str) -> str:
        names = FOLDERS.get(model, (model.rsplit("/", 1)[-1],))
        chosen = self.choose(node_type, name, *names)
        listed = self.listed(node_type, name)
        if listed is not None and chosen not in listed:
            self.report.note(f"{label(node)}: put the folder {chosen} into models/CogVideo and refresh the page.")
        return chosen

    def _loader(self, node: Node, name: str, quantization: Any, precision: str | None) -> dict[str, Source | None]:
        loader = self.claim(node, "CogVideoXLoadModel", {"model_name": name})
        if precision:
            self.set(
                loader, "weight_dtype", self._weight_dtype(node, quantization, str(self.value(node, precision))), node
            )
        if self.value(node, "enable_sequential_cpu_offload"):
            self.report.note(
                f"{label(node)}: sequential offload is not needed; ComfyUI moves the model as memory asks for."
            )
        self.carry(loader, "model_name", node, "model", None) if self.graph.input_of(node, "model") else None
        model: Source = (loader.id, 0)
        self.built[node.id] = {"model": model, "pipe": model}
        attention = str(self.value(node, "attention_mode") or "")
        if "sage" in attention:
            patch = self.beside(node, "CogVideoXAttention", {"attention": "sage"})
            model = self._behind(patch, model)
        for lora in self._loras(node):
            model = self._behind(self._lora(lora), model)
        model = self._compiled(node, model)
        if (edit := self.origin(self.source(node, "block_edit"))) is not None and self.is_old(edit):
            self.build(edit)
        if (pab := self.origin(self.source(node, "pab_config"))) is not None and self.is_old(pab):
            self.build(pab)
        return {"model": model, "pipe": model}

    def _behind(self, patch: Node, model: Source | None) -> Source:
        self.link(patch, "model", model)
        return patch.id, 0

    def _weight_dtype(self, node: Node, quantization: Any, precision: str) -> str:
        if quantization is True:
            quantization = "enabled"
        if isinstance(quantization, str) and quantization.startswith("torchao"):
            self.report.note(f"{label(node)}: {quantization} has no equal; the weights are kept in fp8_e4m3fn instead.")
            return WEIGHT_DTYPES["enabled"]
        return WEIGHT_DTYPES.get(str(quantization), precision if precision in ("bf16", "fp16", "fp32") else "auto")

    def _loras(self, loader: Node) -> list[Node]:
        """Return the LoRA nodes of a loader, the first of the stack first."""
        found, source = [], self.source(loader, "lora")
        while (node := self.origin(source)) is not None and self.is_old(node) and node not in found:
            if not node.type.startswith("CogVideoLoraSelect"):
                break
            found.append(node)
            source = self.source(node, "prev_lora")
        return found[::-1]

    def _lora(self, node: Node) -> Node:
        self.built.setdefault(node.id, {})
        own = "CogVideoXLoadLoRA" in self.schema
        target, strength = ("CogVideoXLoadLoRA", "strength") if own else ("LoraLoaderModelOnly", "strength_model")
        wanted = str(self.value(node, "lora"))
        name = self.choose(target, "lora_name", wanted)
        lora = self.claim(node, target, {"lora_name": name}, patch=True)
        self.carry(lora, strength, node, "strength")
        # The wrapper fused these two at 1 / rank instead of 1.
        if self.value(node, "fuse_lora") and any(word in wanted.lower() for word in ("orbit", "dimensionx")):
            self.set(lora, "scaling", "1/rank", node)
        listed = self.listed(target, "lora_name")
        if listed is not None and name not in listed:
            self.report.note(f"{label(node)}: put {wanted} into models/loras (the wrapper read models/CogVideo/loras).")
        return lora

    def _build_CogVideoLoraSelect(self, node: Node) -> dict[str, Source | None]:
        self._lora(node)
        return {}

    _build_CogVideoLoraSelectComfy = _build_CogVideoLoraSelect

    def _compiled(self, node: Node, model: Source) -> Source:
        settings = self.origin(self.source(node, "compile_args"))
        if settings is not None and self.is_old(settings):
            return self._behind(self._compile(settings), model)
        if self.value(node, "compile") not in (None, "disabled") or self.value(node, "torch_compile"):
            return self._behind(self.beside(node, "TorchCompileModel"), model)
        return model

    def _compile(self, node: Node) -> Node:
        self.built.setdefault(node.id, {})
        patch = self.claim(node, "TorchCompileModel", patch=True)
        self.carry(patch, "backend", node, "backend")
        if self.value(node, "mode") != "default" or self.value(node, "fullgraph") or self.value(node, "dynamic"):
            self.report.note(f"{label(node)}: of its settings only the backend is kept.")
        return patch

    def _build_CogVideoXTorchCompileSettings(self, node: Node) -> dict[str, Source | None]:
        self._compile(node)
        return {}

    def _build_CogVideoXVAELoader(self, node: Node) -> dict[str, Source | None]:
        loader = self.claim(node, "CogVideoXLoadVAE")
        wanted = str(self.value(node, "model_name"))
        loader.values["vae_name"] = self.choose("CogVideoXLoadVAE", "vae_name", wanted)
        self.carry(loader, "weight_dtype", node, "precision")
        if self.source(node, "compile_args"):
            self.report.note(f"{label(node)}: compiling the VAE has no equal.")
        return {"vae": (loader.id, 0)}

    def vae_of(self, loader: Node | None) -> Source | None:
        """Return the VAE that an old loader brought along, as a loader of its own beside it."""
        if loader is None or not loader.type.startswith("DownloadAndLoadCogVideo"):
            return None
        if loader.id not in self.vaes:
            self.build(loader)
            if loader.type == "DownloadAndLoadCogVideoGGUFModel":
                name = self.choose("CogVideoXLoadVAE", "vae_name", "cogvideox_vae_bf16.safetensors", GGUF_VAE)
                precision = self.value(loader, "vae_precision")
            else:
                model = self.value(loader, "model") or "THUDM/CogVideoX-2b"
                name = self._folder("CogVideoXLoadVAE", "vae_name", loader, model)
                precision = self.value(loader, "precision")
            node = self.beside(loader, "CogVideoXLoadVAE", {"vae_name": name})
            self.set(node, "weight_dtype", precision, loader)
            self.vaes[loader.id] = (node.id, 0)
        return self.vaes[loader.id]

    def loader_of(self, node: Node, *names: str) -> Node | None:
        """Return the loader behind a `pipeline` or `model` input; early samplers handed the pipeline on."""
        seen = set()
        source = self.source(node, *names)
        while (origin := self.origin(source)) is not None and origin.id not in seen:
            seen.add(origin.id)
            if not self.is_old(origin) or "Loader" in origin.type or origin.type.startswith("DownloadAndLoad"):
                return origin
            source = self.source(origin, "pipeline")
        return None

    def vae(self, node: Node) -> Source | None:
        """Return the VAE of an old node: its own input, or that of its pipeline."""
        source = self.source(node, "vae", "vae_override")
        if source is not None:
            return self.native(source)
        return self.vae_of(self.loader_of(node, "pipeline"))

    # --- text --------------------------------------------------------------------------------------------------------

    def _text(self, node: Node, target: Node, name: str, strength: str) -> None:
        self.carry(target, "text", node, name)
        text = self.value(node, name)
        # The wrapper read (word:1.2) as the host does.
        target.values["prompt_weights"] = isinstance(text, str) and ("(" in text or ")" in text)
        factor = self.value(node, strength)
        if isinstance(factor, int | float) and factor != 1:
            self.report.note(
                f"{label(node)}: {strength} {factor:g} multiplied the text embeddings, which has no equal and was "
                "left out."
            )

    def _build_CogVideoTextEncode(self, node: Node) -> dict[str, Source | None]:
        target = self.claim(node, "CogVideoXTextEncode")
        self._text(node, target, "prompt", "strength")
        clip = self.clip(self.source(node, "clip"), node)
        self.link(target, "clip", clip)
        return {"conditioning": (target.id, 0), "clip": clip}

    def _build_CogVideoDualTextEncode_311(self, node: Node) -> dict[str, Source | None]:
        target = self.claim(node, "CogVideoXTextEncode")
        self._text(node, target, "t5xxl", "t5xxl_strength")
        if self.value(node, "clip_l"):
            self.report.note(f"{label(node)}: the clip_l text has no equal and was left out; CogVideoX reads T5 alone.")
        self.link(target, "clip", self.clip(self.source(node, "clip"), node))
        return {"conditioning": (target.id, 0)}

    def _build_CogVideoEncodePrompt(self, node: Node) -> dict[str, Source | None]:
        positive, negative = self.claim(node, "CogVideoXTextEncode"), self.beside(node, "CogVideoXTextEncode")
        self._text(node, positive, "prompt", "")
        self._text(node, negative, "negative_prompt", "")
        folder = self.loader_of(node, "pipeline")
        encoder = self.beside(node, "CogVideoXLoadTextEncoder")
        if folder is not None:
            name = self.value(folder, "model") or "THUDM/CogVideoX-2b"
            encoder.values["text_encoder_name"] = self._folder(
                "CogVideoXLoadTextEncoder", "text_encoder_name", node, name
            )
        for target in (positive, negative):
            self.link(target, "clip", (encoder.id, 0))
        made: dict[str, Source | None] = {"positive": (positive.id, 0), "negative": (negative.id, 0)}
        return {**made, "embeds": (positive.id, 0)}

    def clip(self, source: Source | None, node: Node) -> Source | None:
        """Return the text encoder, loaded for CogVideoX: the wrapper's graphs load it for another model (sd3)."""
        origin = self.origin(source)
        if origin is not None and self.is_old(origin):
            return self.native(source)
        if origin is None or origin.type not in ("CLIPLoader", "DualCLIPLoader", "TripleCLIPLoader"):
            return source
        if origin.id in self.built:
            return self.built[origin.id]["clip"]
        saved = self._stock_values(origin, "clip_name", "type") if origin.type == "CLIPLoader" else None
        if saved is not None:
            names = [saved["clip_name"]]
        else:
            names = [str(name) for name in self._stock_list(origin) if "t5" in str(name).lower()]
        values = {"clip_name": self.choose("CLIPLoader", "clip_name", names[0]) if names else "", "type": "cogvideox"}
        alone = saved is not None and all(
            self.is_old(user) or user.type in PASSING for user, _ in self.graph.consumers(self.trace(source))
        )
        loader = self.claim(origin, "CLIPLoader", values) if alone else self.beside(node, "CLIPLoader", values)
        self.built[origin.id] = {"clip": (loader.id, 0)}
        return loader.id, 0

    def _stock_list(self, node: Node) -> list:
        if isinstance(self.graph, Prompt):
            return list(node.values.values())
        saved = node.raw.get("widgets_values")
        return list(saved.values()) if isinstance(saved, dict) else saved if isinstance(saved, list) else []

    def _stock_values(self, node: Node, *names: str) -> dict[str, Any]:
        """Return the first widgets of a stock node by name."""
        if isinstance(self.graph, Prompt):
            return {name: node.values.get(name) for name in names}
        saved = node.raw.get("widgets_values")
        if isinstance(saved, dict):
            return {name: saved.get(name) for name in names}
        return dict(zip(names, [*(saved if isinstance(saved, list) else []), *[None] * len(names)], strict=False))

    def _build_CogVideoTextEncodeCombine(self, node: Node) -> dict[str, Source | None]:
        mode = self.value(node, "combination_mode")
        first, second = (self.native(self.source(node, f"conditioning_{n}")) for n in (1, 2))
        if mode == "concatenate":
            target = self.claim(node, "ConditioningConcat")
        else:
            target = self.claim(node, "ConditioningAverage", {"conditioning_to_strength": 0.5})
            if mode == "weighted_average":
                self.carry(target, "conditioning_to_strength", node, "weighted_average_ratio")
            first, second = second, first  # a (1 - r) + b r: the second is what is gone to
        self.link(target, "conditioning_to", first)
        self.link(target, "conditioning_from", second)
        return {"conditioning": (target.id, 0)}

    # --- images ------------------------------------------------------------------------------------------------------

    def size_of(self, image: Source, anchor: Node) -> Node:
        """Return the stock node that tells the size of an image."""
        if image not in self.measured:
            node = self.beside(anchor, "GetImageSize")
            self.link(node, "image", image)
            self.measured[image] = node
        return self.measured[image]

    def bucket(self, node: Node, image: Source | None, old: Node) -> Node:
        """Return the node that chooses the trained size next to an image's shape, for the wrapper's base_resolution."""
        chosen = self.beside(node, "CogVideoXResolution", {"model": "Fun 5B", "size": "shape of the image"})
        self.carry(chosen, "base", old, "base_resolution")
        self.link(chosen, "image", image)
        return chosen

    def _sized(self, target: Node, width: Source, height: Source) -> None:
        self.link(target, "width", width)
        self.link(target, "height", height)

    def frames(self, old: Node, name: str) -> Callable[[Node, str], None]:
        """Return what sets a length from an old frame count, which native videos have in steps of eight."""

        def apply(target: Node, slot: str) -> None:
            if self.graph.input_of(old, name) is not None:
                self.carry(target, slot, old, name)
                return
            count = self.value(old, name)
            fitted = max((int(count) - 1 + FRAME_STEP // 2) // FRAME_STEP, 0) * FRAME_STEP + 1
            if fitted != count:
                self.report.note(f"{label(old)}: {count} frames became {fitted}; videos have 8n + 1 frames.")
            self.set(target, slot, fitted, old)

        return apply

    def image_to_video(
        self,
        place: Node,
        sampler: Node,
        conds: list[Source | None],
        start: Source | None,
        end: Source | None,
        noise: tuple[Node, str],
        frames: str,
        size: Node | None,
    ) -> tuple[list[Source | None], Source]:
        """Make the node that starts or ends a video with an image, in the place of what encoded the image."""
        target = (
            self.claim(place, "CogVideoXImageToVideo")
            if place is not sampler
            else self.beside(sampler, "CogVideoXImageToVideo")
        )
        self._conditioned(target, conds, self.vae(place) or self.vae(sampler))
        self.frames(sampler, frames)(target, "length")
        if size is None and self.value(sampler, "width") is not None:
            self._carry_size(target, sampler)
        elif size is not None:
            self._sized(target, (size.id, 0), (size.id, 1))
        elif start or end:
            measured = self.size_of(start or end, place)
            self._sized(target, (measured.id, 0), (measured.id, 1))
        self.link(target, "start_image", start)
        self.link(target, "end_image", end)
        self.carry(target, "noise_augmentation", *noise)
        return [(target.id, 0), (target.id, 1)], (target.id, 2)

    def _conditioned(self, target: Node, conds: list[Source | None], vae: Source | None) -> None:
        self.link(target, "positive", conds[0])
        self.link(target, "negative", conds[1])
        self.link(target, "vae", vae)

    def _carry_size(self, target: Node, old: Node) -> None:
        names = ("width", "height")
        saved = old.raw.get("widgets_values") if isinstance(old.raw, dict) else None
        if isinstance(saved, list) and old.type == "CogVideoSampler" and tuple(saved[:2]) == LANDSCAPE:
            # Height came first, but for three days; landscape is what the models were trained on.
            if not any(
                node.type.startswith("DownloadAndLoadCogVideo") and "pab_config" in self.graph.names.get(node.id, [])
                for node in self.graph.nodes.values()
            ):
                self.set(target, "width", saved[0], old)
                self.set(target, "height", saved[1], old)
                return
        for name in names:
            self.carry(target, name, old, name)

    def control_to_video(
        self,
        place: Node,
        sampler: Node,
        conds: list[Source | None],
        video: Source | None,
        names: tuple[Node, str, str, str],
        frames: str | None,
        size: Node | None,
    ) -> tuple[list[Source | None], Source]:
        """Make the node that lets a control video guide, in the place of what encoded it."""
        target = self.claim(place, "CogVideoXControlToVideo")
        self._conditioned(target, conds, self.vae(place) or self.vae(sampler))
        if video is not None:
            measured = size or self.size_of(video, place)
            self._sized(target, (measured.id, 0), (measured.id, 1))
            if frames is None:
                self.link(target, "length", (self.size_of(video, place).id, 2))
        if frames is not None:
            self.frames(sampler, frames)(target, "length")
        self.link(target, "control_video", video)
        old, *values = names
        self.carry(target, "strength", old, values[0])
        self.window(target, old, values[1], values[2], sampler)
        return [(target.id, 0), (target.id, 1)], (target.id, 2)

    def window(self, target: Node, old: Node, start: str, end: str, sampler: Node | None, prefix: str = "") -> None:
        """Carry a percent window; the wrapper counted from the start of a shortened run, the host of a whole one."""
        denoise = self._denoise(sampler) if sampler is not None else 1.0
        for new, name in ((f"{prefix}start_percent", start), (f"{prefix}end_percent", end)):
            self.carry(target, new, old, name)
            if denoise < 1 and new not in target.inputs and new in target.values:
                target.values[new] = round(min(1 - denoise + target.values[new], 1.0), 4)

    def video_latent(
        self, place: Node, sampler: Node, video: Source | None, frames: str | None, claim: bool = True
    ) -> Source:
        """Make the nodes that encode the first frames of a video to repaint."""
        target = self.claim(place, "CogVideoXVAEEncode") if claim else self.beside(sampler, "CogVideoXVAEEncode")
        target.values["posterior"] = "sample"  # the wrapper drew from the posterior
        self.link(target, "vae", self.vae(place) or self.vae(sampler))
        if video is not None and frames is not None:
            cut = self.beside(place, "ImageFromBatch", {"batch_index": 0})
            self.frames(sampler, frames)(cut, "length")
            self.link(cut, "image", video)
            video = (cut.id, 0)
        self.link(target, "pixels", video)
        return target.id, 0

    def _build_CogVideoImageEncode(self, node: Node) -> dict[str, Source | None]:
        """An encoder that no sampler has asked for: what it says, an encoded video."""
        if node.id in self.claimed:
            return self.built[node.id]
        target = self.claim(node, "CogVideoXVAEEncode", {"posterior": "sample"})
        self.link(target, "vae", self.vae(node))
        self.link(target, "pixels", self.native(self.source(node, "start_image", "image")))
        return {"samples": (target.id, 0)}

    def _build_CogVideoImageEncodeFunInP(self, node: Node) -> dict[str, Source | None]:
        return self._loose(node)

    def _build_CogVideoImageInterpolationEncode(self, node: Node) -> dict[str, Source | None]:
        return self._loose(node)

    def _loose(self, node: Node) -> dict[str, Source | None]:
        if node.id in self.claimed:
            return {}
        target = self.claim(node, "CogVideoXImageToVideo")
        self.link(target, "vae", self.vae(node))
        self.link(target, "start_image", self.native(self.source(node, "start_image")))
        self.link(target, "end_image", self.native(self.source(node, "end_image")))
        self.carry(target, "noise_augmentation", node, "noise_aug_strength")
        return {"samples": (target.id, 2)}

    def _build_CogVideoControlImageEncode(self, node: Node) -> dict[str, Source | None]:
        size = self.bucket(node, self.native(self.source(node, "control_video")), node)
        self.built[node.id] = {"width": (size.id, 0), "height": (size.id, 1)}
        return self.built[node.id]

    def _build_CogVideoXFunResizeToClosestBucket(self, node: Node) -> dict[str, Source | None]:
        image = self.native(self.source(node, "images"))
        size = self.bucket(node, image, node)
        scale = self.claim(node, "ImageScale")
        self.carry(scale, "upscale_method", node, "upscale_method")
        self.carry(scale, "crop", node, "crop")
        self._sized(scale, (size.id, 0), (size.id, 1))
        self.link(scale, "image", image)
        return {"images": (scale.id, 0), "width": (size.id, 0), "height": (size.id, 1)}

    def _build_CogVideoDecode(self, node: Node) -> dict[str, Source | None]:
        target = self.claim(node, "CogVideoXVAEDecode")
        # Without tiling the wrapper tried whole frames and fell back to tiles, which is what auto does.
        target.values["memory"] = "tiles" if self.value(node, "enable_vae_tiling") else "auto"
        self.link(target, "samples", self.native(self.source(node, "samples")))
        self.link(target, "vae", self.vae(node))
        return {"images": (target.id, 0)}

    # --- patches of the model ----------------------------------------------------------------------------------------

    def _patches(self, sampler: Node, model: Source | None) -> Source | None:
        """Put what was handed to a sampler onto the model."""
        for name, make_patch in (
            ("teacache_args", self._step_cache),
            ("feta_args", self._enhance),
            ("context_options", self._context),
        ):
            node = self.origin(self.source(sampler, name))
            if node is not None and self.is_old(node):
                self.built.setdefault(node.id, {})
                model = self._behind(make_patch(node, sampler), model)
        cache = self.origin(self.source(sampler, "fastercache"))
        if cache is not None and self.is_old(cache):
            self.build(cache)
        return model

    def _step_cache(self, node: Node, sampler: Node | None) -> Node:
        patch = self.claim(node, "CogVideoXStepCache", {"mode": "teacache"}, patch=True)
        self.carry(patch, "threshold", node, "rel_l1_thresh")
        return patch

    def _enhance(self, node: Node, sampler: Node | None) -> Node:
        patch = self.claim(node, "CogVideoXEnhanceVideo", patch=True)
        self.carry(patch, "weight", node, "weight")
        self.window(patch, node, "start_percent", "end_percent", sampler)
        return patch

    def _context(self, node: Node, sampler: Node | None) -> Node:
        era = self.reading(node).era
        # At first the options were counted in latent frames.
        step = LATENT_STEP if any(widget.name == "freenoise" for widget in era.widgets) else 1
        values = {
            "fuse_method": "flat",
            "dim": 2,  # time, of [B, C, T, H, W]
            "context_schedule": SCHEDULES.get(self.value(node, "context_schedule"), "standard_uniform"),
            "closed_loop": self.value(node, "context_schedule") == "uniform_looped",
            "freenoise": bool(self.value(node, "freenoise")),
            "causal_window_fix": False,
        }
        if self._has_image(sampler):
            values["cond_retain_index_list"] = "0"  # each window was given the start image
        patch = self.claim(node, "ContextWindowsManual", values, patch=True)
        for name, old in (
            ("context_length", "context_frames"),
            ("context_overlap", "context_overlap"),
            ("context_stride", "context_stride"),
        ):
            self.carry(patch, name, node, old, (lambda value: max(value // step, 1)) if step > 1 else None)
        return patch

    def _has_image(self, sampler: Node | None) -> bool:
        return sampler is not None and self.source(sampler, "image_cond_latents", "start_img") is not None

    def _build_CogVideoXTeaCache(self, node: Node) -> dict[str, Source | None]:
        self._step_cache(node, None)
        return {}

    def _build_CogVideoEnhanceAVideo(self, node: Node) -> dict[str, Source | None]:
        self._enhance(node, None)
        return {}

    def _build_CogVideoContextOptions(self, node: Node) -> dict[str, Source | None]:
        self._context(node, None)
        return {}

    # --- control -----------------------------------------------------------------------------------------------------

    def _build_DownloadAndLoadCogVideoControlNet(self, node: Node) -> dict[str, Source | None]:
        loader = self.claim(node, "CogVideoXLoadControlNet")
        wanted = str(self.value(node, "model")).rsplit("/", 1)[-1]
        names = (wanted, f"{wanted}.safetensors")
        loader.values["control_net_name"] = self.choose("CogVideoXLoadControlNet", "control_net_name", *names)
        return {"controlnet": (loader.id, 0)}

    def _controlled(self, node: Node, sampler: Node | None, conds: list[Source | None]) -> list[Source | None]:
        self.built.setdefault(node.id, {})
        loader = self.source(node, "controlnet")
        net = self.native(loader)
        if net is None and loader is not None:
            raise Missing("CogVideoXLoadControlNet")
        target = self.claim(node, "ControlNetApplyAdvanced")
        self.link(target, "positive", conds[0])
        self.link(target, "negative", conds[1])
        self.link(target, "control_net", net)
        self.link(target, "image", self.native(self.source(node, "images")))
        self.carry(target, "strength", node, "control_strength")
        self.window(target, node, "control_start_percent", "control_end_percent", sampler)
        return [(target.id, 0), (target.id, 1)]

    def _build_CogVideoControlNet(self, node: Node) -> dict[str, Source | None]:
        self._controlled(node, None, [None, None])
        return {}

    # --- samplers ----------------------------------------------------------------------------------------------------

    def _conds(self, sampler: Node) -> list[Source | None]:
        embeds = self.source(sampler, "embeds")
        if embeds is not None:
            made = self.build(self.origin(embeds)) if self.is_old(self.origin(embeds)) else {}
            return [made.get("positive"), made.get("negative")]
        return [self.native(self.source(sampler, name)) for name in ("positive", "negative")]

    def _model(self, sampler: Node) -> Source | None:
        loader = self.loader_of(sampler, "model", "pipeline")
        if loader is None:
            return None
        if not self.is_old(loader):
            self.report.note(
                f"{label(sampler)}: its model comes from {label(loader)}, which was not converted. Connect a MODEL."
            )
            return None
        return self.build(loader).get("model")

    def _denoise(self, sampler: Node) -> float:
        value = self.value(sampler, "denoise_strength")
        if value is None:
            value = self.value(sampler, "vid2vid_denoise")
        return float(value) if isinstance(value, int | float) and 0 < value < 1 else 1.0

    def _is_control(self, sampler: Node) -> bool:
        """Say whether the wrapper took a model for one with a control video: by its name."""
        loader = self.loader_of(sampler, "model", "pipeline")
        if loader is None or not self.is_old(loader):
            return False
        name = str(self.value(loader, "model")).lower()
        return "pose" in name or "control" in name

    def _build_CogVideoSampler(self, node: Node) -> dict[str, Source | None]:
        model = self._patches(node, self._model(node))
        conds = self._conds(node)
        latent: Source | None = None
        control = self.origin(self.source(node, "controlnet"))
        if control is not None and self.is_old(control):
            try:
                conds = self._controlled(control, node, conds)
            except Missing as missing:
                self.no_equal(control, NEEDS.format(missing.args[0]))
        image = self.source(node, "image_cond_latents")
        if image is not None:
            try:
                conds, latent = self._image_condition(node, image, conds)
            except Missing as missing:
                self._without(node, "image condition", missing)
        samples = self.source(node, "samples")
        warped = self.origin(samples)
        if warped is not None and warped.type == WARPED_NOISE and "CogVideoXWarpedNoise" in self.schema:
            return self._warped_noise(node, warped, model, conds, latent)
        latent = self._start(node, samples, latent)
        model, conds = self._tora(node, model, conds, latent)
        return self._sampler(node, model, conds, latent, "cfg", "denoise_strength")

    def _without(self, node: Node, what: str, missing: Missing) -> None:
        self.report.note(f"{label(node)}: its {what} needs {missing.args[0]}, which this version does not have.")

    def _image_condition(
        self, sampler: Node, image: Source, conds: list[Source | None]
    ) -> tuple[list[Source | None], Source | None]:
        encoder = self.origin(image)
        if not self.is_old(encoder) or encoder.type not in (
            "CogVideoImageEncode",
            "CogVideoImageEncodeFunInP",
            "CogVideoImageInterpolationEncode",
        ):
            self.report.note(
                f"{label(sampler)}: its image condition comes from {label(encoder)}, which cannot be carried over. "
                "Use CogVideoX Image to Video."
            )
            return conds, None
        self.built.setdefault(encoder.id, {})
        start = self.native(self.source(encoder, "start_image", "image"))
        end = self.native(self.source(encoder, "end_image"))
        if self._is_control(sampler):
            names = (encoder, "strength", "start_percent", "end_percent")
            conds, latent = self.control_to_video(encoder, sampler, conds, start, names, "num_frames", None)
        else:
            if self.source(encoder, "mask") is not None:
                self.report.note(
                    f"{label(encoder)}: the mask has no equal and was left out. CogVideoX Inpaint Video takes masks."
                )
            size = self.made_size(start)
            conds, latent = self.image_to_video(
                encoder, sampler, conds, start, end, (encoder, "noise_aug_strength"), "num_frames", size
            )
            self._image_span(encoder, sampler, self.new[latent[0]])
        self.built[encoder.id]["samples"] = latent
        return conds, latent

    def _image_span(self, encoder: Node, sampler: Node, target: Node) -> None:
        """Carry how strongly and when an image works, where the native node can be told."""
        if "image_strength" in target.made["sockets"]:
            self.carry(target, "image_strength", encoder, "strength")
            self.window(target, encoder, "start_percent", "end_percent", sampler, "image_")
            return
        values = [self.value(encoder, name) for name in ("strength", "start_percent", "end_percent")]
        if values not in ([None] * 3, [1, 0, 1]):
            self.report.note(
                f"{label(encoder)}: strength and percents of a start image have no equal and were left out."
            )

    def made_size(self, image: Source | None) -> Node | None:
        """Return the node that chose the size of an image, where the conversion knows it."""
        node = self.new.get(image[0]) if image else None
        source = node.inputs.get("width") if node is not None and node.type == "ImageScale" else None
        return self.new.get(source[0]) if source else None

    def _start(self, sampler: Node, samples: Source | None, latent: Source | None) -> Source | None:
        """Return what a sampler starts from: a video to repaint, an empty one, or that of the image condition."""
        origin = self.origin(samples)
        if origin is not None and self.is_old(origin) and origin.type == "CogVideoImageEncode":
            self.built.setdefault(origin.id, {})
            video = self.native(self.source(origin, "start_image", "image"))
            made = self.video_latent(origin, sampler, video, "num_frames")
            self.built[origin.id].setdefault("samples", made)
            if self._denoise(sampler) == 1:
                self.report.note(
                    f"{label(sampler)}: the wrapper took its samples for noise at denoise 1; here the video is encoded "
                    "and fully repainted."
                )
            return made
        if origin is not None and self.is_old(origin):
            return self.native(samples)
        if latent is not None:
            return latent
        if origin is not None and origin.type == "EmptyLatentImage":
            return self._empty(sampler, origin)
        if origin is not None and self.value(sampler, "width") is None:
            self.report.note(
                f"{label(sampler)}: its samples come from {label(origin)}, whose latents are laid out for the wrapper. "
                "An empty video stands in; set its size."
            )
        target = self.beside(sampler, "EmptyCogVideoXLatentVideo")
        if self.value(sampler, "width") is not None:
            self._carry_size(target, sampler)
        self._length(target, sampler)
        return target.id, 0

    def _length(self, target: Node, sampler: Node) -> None:
        for name in ("num_frames", "video_length"):
            if self.value(sampler, name) is not None:
                self.frames(sampler, name)(target, "length")

    def _empty(self, sampler: Node, origin: Node) -> Source:
        users = [user for user, _ in self.graph.consumers((origin.id, 0))]
        alone = len(users) == 1 and self.is_old(users[0])
        target = (
            self.claim(origin, "EmptyCogVideoXLatentVideo")
            if alone
            else self.beside(sampler, "EmptyCogVideoXLatentVideo")
        )
        for name, value in self._stock_values(origin, "width", "height").items():
            source = self.graph.input_of(origin, name)
            if source is not None:
                self.link(target, name, self.native(source))
            elif isinstance(value, int):
                self.set(target, name, value, origin)
        frames = "num_frames" if self.value(sampler, "num_frames") is not None else "video_length"
        self.frames(sampler, frames)(target, "length")
        return target.id, 0

    def _tora(
        self, sampler: Node, model: Source | None, conds: list[Source | None], latent: Source | None
    ) -> tuple[Source | None, list[Source | None]]:
        """Put Tora on the model and its paths behind the prompts, which know the size of the video by its latents."""
        encoder = self.origin(self.source(sampler, "tora_trajectory"))
        if encoder is None or not self.is_old(encoder):
            return model, conds
        self.built.setdefault(encoder.id, {})
        try:
            target = self._paths(encoder, sampler)
            loader = self.origin(self.source(encoder, "tora_model"))
            if loader is not None and self.is_old(loader):
                self.built.setdefault(loader.id, {})
                model = self._behind(self._load_tora(loader), model)
        except Missing as missing:
            self.no_equal(encoder, NEEDS.format(missing.args[0]))
            return model, conds
        self._conditioned(target, conds, self.vae(encoder) or self.vae(sampler))
        self.link(target, "latent", latent)
        return model, [(target.id, 0), (target.id, 1)]

    def _paths(self, node: Node, sampler: Node | None) -> Node:
        for name in ("CogVideoXTrajectory", "CogVideoXLoadTora"):
            self._schema_of(name)
        target = self.claim(node, "CogVideoXTrajectory")
        self.carry(target, "coordinates", node, "coordinates")
        self.link(target, "optical_flow", self.native(self.source(node, "optical_flow")))
        self.carry(target, "strength", node, "strength")
        self.window(target, node, "start_percent", "end_percent", sampler)
        self.built[node.id]["video_flow_images"] = (target.id, 2)
        return target

    def _load_tora(self, node: Node) -> Node:
        wanted = str(self.value(node, "model")).rsplit("/", 1)[-1]
        name = self.choose("CogVideoXLoadTora", "tora_name", wanted, f"{wanted}.safetensors")
        listed = self.listed("CogVideoXLoadTora", "tora_name")
        if listed is not None and name not in listed:
            self.report.note(f"{label(node)}: choose the file that holds Tora's fusers in Load CogVideoX Tora.")
        return self.claim(node, "CogVideoXLoadTora", {"tora_name": name}, patch=True)

    def _build_DownloadAndLoadToraModel(self, node: Node) -> dict[str, Source | None]:
        self._load_tora(node)
        return {}

    def _build_ToraEncodeTrajectory(self, node: Node) -> dict[str, Source | None]:
        self._paths(node, None)
        return self.built[node.id]

    _build_ToraEncodeOpticalFlow = _build_ToraEncodeTrajectory

    def _sampler(
        self,
        node: Node,
        model: Source | None,
        conds: list[Source | None],
        latent: Source | None,
        cfg: str,
        denoise: str,
    ) -> dict[str, Source | None]:
        scheduler = str(self.value(node, "scheduler") or "CogVideoXDDIM")
        if scheduler in STOCK_SAMPLERS:
            target = self._stock_sampler(node, model, scheduler, denoise)
        else:
            if scheduler not in OWN_SAMPLERS:
                self.report.note(f"{label(node)}: the scheduler {scheduler} is unknown; ddim stands in.")
            name = OWN_SAMPLERS.get(scheduler, DDIM)
            target = self.claim(node, "CogVideoXSampler", {"sampler_name": name})
            # The wrapper's dynamic guidance came with dpm, but not in context windows.
            if name == DPM and self.source(node, "context_options") is None:
                target.values["dynamic_cfg"] = REFERENCE_CFG
                self.report.note(
                    f"{label(node)}: dynamic_cfg is 'reference', as the wrapper had it with {scheduler}; "
                    "'cosine over steps' is what the authors describe."
                )
            self.carry(target, "seed", node, "seed")
            self._steps(target, node, denoise)
            self.link(target, "latent_image", latent)
            self.link(target, "model", model)
        if scheduler == "DDIM_tiled":
            self.report.note(
                f"{label(node)}: temporal tiles have no equal; use Context Windows (Manual) for long videos."
            )
        self.carry(target, "cfg", node, cfg)
        self.link(target, "positive", conds[0])
        self.link(target, "negative", conds[1])
        self.link(target, "latent_image", latent)
        self.link(target, "model", model)
        return {"samples": (target.id, 0), "pipe": None}

    def _steps(self, target: Node, node: Node, denoise: str) -> None:
        """Carry steps and denoise: the wrapper ran the last int(steps * denoise), the host counts what is run."""
        strength = self._denoise(node) if self.value(node, denoise) is not None else 1.0
        if strength == 1.0 or any(self.graph.input_of(node, name) for name in ("steps", denoise)):
            self.carry(target, "steps", node, "steps")
            self.carry(target, "denoise", node, denoise)
            return
        steps, strength = kept_steps(self.value(node, "steps"), strength)
        self.set(target, "steps", steps, node)
        self.set(target, "denoise", strength, node)

    def _stock_sampler(self, node: Node, model: Source | None, scheduler: str, denoise: str) -> Node:
        name, difference = STOCK_SAMPLERS[scheduler]
        target = self.claim(node, "SamplerCustom", {"add_noise": True})
        self.carry(target, "noise_seed", node, "seed")
        chosen = self.beside(node, "KSamplerSelect", {"sampler_name": name})
        sigmas = self.beside(node, "CogVideoXScheduler")
        self._steps(sigmas, node, denoise)
        self.link(sigmas, "model", model)
        self.link(target, "sampler", (chosen.id, 0))
        self.link(target, "sigmas", (sigmas.id, 0))
        if difference:
            self.report.note(f"{label(node)}: {scheduler} became {name}, {difference}.")
        return target

    def _warped_noise(
        self, node: Node, warped: Node, model: Source | None, conds: list[Source | None], latent: Source | None
    ) -> dict[str, Source | None]:
        """Sample from noise that moves as a video does; another pack's node made it, laid out for the wrapper."""
        video = self.native(self.graph.input_of(warped, "images"))
        saved = self._stock_values(
            warped, "channels", "noise_downtemp_interp", "target_latent_count", "degradation", "latent_shape", "seed"
        )
        noise = self.beside(node, "CogVideoXWarpedNoise")
        for name, old in (("seed", "seed"), ("degradation", "degradation"), ("downsampling", "noise_downtemp_interp")):
            slot = noise.made["slots_by_name"][name]
            if slot.choices is None or saved[old] in slot.choices:
                self.set(noise, name, slot.default if saved[old] is None else saved[old], warped)
        self.link(noise, "video", video)
        if "OpticalFlowLoader" in self.schema:
            flow = self.beside(node, "OpticalFlowLoader")
            self.link(noise, "optical_flow", (flow.id, 0))
        self.report.note(f"{label(node)}: its noise comes from CogVideoX Warped Noise now, not from {label(warped)}.")
        if latent is None:
            empty = self.beside(node, "EmptyCogVideoXLatentVideo")
            if video is not None:
                size = self.size_of(video, node)
                self._sized(empty, (size.id, 0), (size.id, 1))
            self._length(empty, node)
            latent = (empty.id, 0)
        target = self.claim(node, "SamplerCustomAdvanced")
        guider, sigmas = self.beside(node, "CFGGuider"), self.beside(node, "CogVideoXScheduler")
        self.carry(guider, "cfg", node, "cfg")
        self._steps(sigmas, node, "denoise_strength")
        scheduler = str(self.value(node, "scheduler"))
        if scheduler in STOCK_SAMPLERS:
            chosen = self.beside(node, "KSamplerSelect", {"sampler_name": STOCK_SAMPLERS[scheduler][0]})
        else:
            name = OWN_SAMPLERS.get(scheduler, DDIM)
            chosen = self.beside(node, "CogVideoXSamplerSelect", {"sampler_name": name})
            if name == DPM:
                model = self._behind(self.beside(node, "CogVideoXDynamicCFG", {"schedule": REFERENCE_CFG}), model)
        self.link(guider, "model", model)
        self.link(guider, "positive", conds[0])
        self.link(guider, "negative", conds[1])
        self.link(sigmas, "model", model)
        for name, maker in (("noise", noise), ("guider", guider), ("sampler", chosen), ("sigmas", sigmas)):
            self.link(target, name, (maker.id, 0))
        self.link(target, "latent_image", latent)
        return {"samples": (target.id, 0)}

    def _build_CogVideoXFunSampler(self, node: Node) -> dict[str, Source | None]:
        model = self._patches(node, self._model(node))
        conds = self._conds(node)
        start, end = (self.native(self.source(node, name)) for name in ("start_img", "end_img"))
        video = self.native(self.source(node, "vid2vid_images"))
        latent: Source | None = None
        size = None
        if self.value(node, "base_resolution") is not None and (start or end or video):
            size = self.bucket(node, start or end or video, node)
        if start or end:
            conds, latent = self.image_to_video(
                node, node, conds, start, end, (node, "noise_aug_strength"), "video_length", size
            )
        if video is not None:
            latent = self._repaint(node, video, size)
        if latent is None:
            latent = self._start(node, self.source(node, "opt_empty_latent"), None)
        model, conds = self._tora(node, model, conds, latent)
        denoise = "vid2vid_denoise" if video is not None else ""
        return self._sampler(node, model, conds, latent, "cfg", denoise)

    def _repaint(self, node: Node, video: Source, size: Node | None) -> Source:
        scale = self.beside(node, "ImageScale", {"upscale_method": "lanczos", "crop": "center"})
        if size is not None:
            self._sized(scale, (size.id, 0), (size.id, 1))
        else:
            self.carry(scale, "width", node, "width")
            self.carry(scale, "height", node, "height")
        self.link(scale, "image", video)
        return self.video_latent(node, node, (scale.id, 0), "video_length", claim=False)

    def _build_CogVideoXFunVid2VidSampler(self, node: Node) -> dict[str, Source | None]:
        if self.value(node, "note") is not None:
            self.no_equal(node, "It had stopped working in the wrapper.")
            return {}
        model = self._patches(node, self._model(node))
        conds = self._conds(node)
        video, control = (self.native(self.source(node, name)) for name in ("validation_video", "control_video"))
        size = self.bucket(node, video or control, node) if video or control else None
        latent: Source | None = None
        if control is not None:
            names = (node, "control_strength", "control_start_percent", "control_end_percent")
            try:
                conds, latent = self._beside_control(node, conds, control, names, size)
            except Missing as missing:
                self._without(node, "control video", missing)
        if video is not None:
            latent = self._repaint(node, video, size)
        if latent is None:
            latent = self._start(node, None, None)
        return self._sampler(node, model, conds, latent, "cfg", "denoise_strength" if video is not None else "")

    def _beside_control(
        self,
        node: Node,
        conds: list[Source | None],
        video: Source,
        names: tuple[Node, str, str, str],
        size: Node | None,
    ) -> tuple[list[Source | None], Source]:
        self.claimed.setdefault(node.id, [])  # the sampler keeps its place
        try:
            return self.control_to_video(
                node,
                node,
                conds,
                video,
                names,
                "video_length" if self.value(node, "video_length") is not None else None,
                size,
            )
        finally:
            del self.claimed[node.id]

    def _build_CogVideoXFunControlSampler(self, node: Node) -> dict[str, Source | None]:
        model = self._patches(node, self._model(node))
        conds = self._conds(node)
        names = (node, "control_strength", "control_start_percent", "control_end_percent")
        latent: Source | None = None
        encoder = self.origin(self.source(node, "control_latents"))
        video = self.native(self.source(node, "control_video"))
        try:
            if encoder is not None and self.is_old(encoder):
                sizes = self.build(encoder)
                video = self.native(self.source(encoder, "control_video"))
                size = self.new.get(sizes["width"][0]) if sizes.get("width") else None
                conds, latent = self.control_to_video(encoder, node, conds, video, names, None, size)
            elif video is not None:
                conds, latent = self._beside_control(node, conds, video, names, self.bucket(node, video, node))
        except Missing as missing:
            self._without(node, "control video", missing)
        samples = self.origin(self.source(node, "samples"))
        if samples is not None and self.is_old(samples) and samples.type == "CogVideoImageEncode":
            self.built.setdefault(samples.id, {})
            latent = self.video_latent(samples, node, self.native(self.source(samples, "start_image", "image")), None)
        if latent is None:
            latent = self._start(node, None, None)
        return self._sampler(node, model, conds, latent, "cfg", "denoise_strength")

    # --- the whole graph ---------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Convert every old node; say whether there was one."""
        old = [node for node in self.graph.nodes.values() if self.is_old(node)]
        if not old:
            return False
        first = ("Sampler", "Decode", "TextEncode", "EncodePrompt")
        for part in first:
            for node in old:
                if part in node.type:
                    self.build(node)
        for node in old:
            self.build(node)
            if node.id not in self.claimed:
                self.no_equal(node, "It was not connected to anything that is made here.")
        self._reconnect()
        self._sweep(old)
        self._assemble()
        for node in old:
            made = [*self.claimed.get(node.id, []), *self.extra.get(node.id, [])]
            self.report.converted.append((node.id, node.type, made))
        return True

    def _reconnect(self) -> None:
        """Move the links of other packs' nodes to the new outputs."""
        for node in list(self.graph.nodes.values()):
            if self.is_old(node) or node.id in self.claimed:
                continue
            for key, source in list(node.inputs.items()):
                origin = self.graph.nodes.get(source[0])
                if not self.is_old(origin):
                    continue
                moved = self.native(source)
                if moved is not None:
                    node.inputs[key] = moved
                    continue
                del node.inputs[key]
                if node.type not in PASSING:
                    self.report.note(f"{label(node)} was connected to {label(origin)}; that link has no equal.")

    def _sweep(self, old: list[Node]) -> None:
        """Take away reroutes and Set/Get pairs that carried an old value to nobody but old nodes."""
        gone = {node.id for node in old}
        passing = [node for node in self.graph.nodes.values() if node.type in PASSING and node.id not in self.claimed]
        fed = {node.id for node in self.graph.nodes.values() if node.type == "GetNode"}
        useful: set[Any] = set()
        alive = [
            node
            for node in self.graph.nodes.values()
            if node.id not in gone and node.type not in PASSING and node.id not in self.claimed
        ]
        alive += self.new.values()
        queue = [source for node in alive for source in node.inputs.values()]
        while queue:
            source = queue.pop()
            node = self.graph.nodes.get(source[0])
            if node is None or node.type not in PASSING or node.id in useful:
                continue
            useful.add(node.id)
            queue += node.inputs.values()
            if node.id in fed:
                for one in passing:
                    if one.type == "SetNode" and self._key(one) == self._key(node):
                        queue.append((one.id, 0))
        for node in passing:
            served = any(user.id in gone for user, _ in self._original_consumers(node))
            by_get = node.type == "SetNode" and any(
                one.type == "GetNode" and self._key(one) == self._key(node) for one in passing
            )
            if node.id not in useful and (served or by_get):
                self.removed.add(node.id)
        # A reroute behind a reroute serves nobody once the last one is gone.
        changed = True
        while changed:
            changed = False
            for node in passing:
                if node.id in self.removed or node.id in useful:
                    continue
                users = [user for user, _ in self._original_consumers(node)]
                if users and all(user.id in self.removed or user.id in gone for user in users):
                    self.removed.add(node.id)
                    changed = True

    def _original_consumers(self, node: Node):
        return [pair for slot in range(2) for pair in self.graph.consumers((node.id, slot))]

    def _assemble(self) -> None:
        nodes = {}
        for id, node in self.graph.nodes.items():
            if id in self.new:
                nodes[id] = self.new[id]
            elif not self.is_old(node) and id not in self.removed:
                nodes[id] = node
        for id, node in self.new.items():
            nodes.setdefault(id, node)
        for node in nodes.values():  # a link to what is gone would be a broken graph
            node.inputs = {
                key: source
                for key, source in node.inputs.items()
                if source[0] in nodes or source[0] not in self.graph.nodes
            }
        if SUBGRAPH_OUTPUT in nodes:
            nodes[SUBGRAPH_OUTPUT] = nodes.pop(SUBGRAPH_OUTPUT)
        self.graph.nodes = nodes


def label(node: Node | None) -> str:
    """Name a node for a sentence."""
    if node is None:
        return "an input of the subgraph"
    name = node.title if node.title and node.title != node.type else node.type
    return f"{name} (#{node.id})"


def kept_steps(steps: int, denoise: float) -> tuple[int, float]:
    """Return (steps, denoise) with which the host runs the last int(steps * denoise) of `steps`.

    The host runs `steps` of int(steps / denoise), so denoise is the shortest number that gives the old total.
    """
    kept = max(int(steps * denoise), 1)
    for candidate in (denoise, *(round(kept / steps, digits) for digits in range(2, 7)), kept / (steps + 0.5)):
        if 0 < candidate <= 1 and int(kept / candidate) == steps:
            return kept, candidate
    return kept, kept / steps


# ---------------------------------------------------------------------------------------------------------------------
# Whole files


def is_prompt(graph: Any) -> bool:
    """Say whether JSON is a graph in the server's API format."""
    return (
        isinstance(graph, dict)
        and bool(graph)
        and all(isinstance(node, dict) and isinstance(node.get("class_type"), str) for node in graph.values())
    )


def _types(graph: Any) -> set[str]:
    if is_prompt(graph):
        return {node["class_type"] for node in graph.values()}
    found = set()
    for part in _canvases(graph):
        nodes = part.get("nodes")
        found |= (
            {str(node.get("type")) for node in nodes if isinstance(node, dict)} if isinstance(nodes, list) else set()
        )
    return found


def _canvases(graph: Any) -> list[dict[str, Any]]:
    if not isinstance(graph, dict):
        return []
    definitions = graph.get("definitions")
    inner = definitions.get("subgraphs") if isinstance(definitions, dict) else None
    return [graph, *(part for part in inner or [] if isinstance(part, dict))]


def convert(graph: Any, schema: Schema | None = None) -> tuple[Any, Report]:
    """Return a native copy of a saved graph, in the format it came in, and the report; never raises.

    `schema` is the server's `object_info` for the nodes it has. A graph without nodes of the wrapper, a graph of a
    shape nobody knows, and every graph where the wrapper is installed come back as they are.
    """
    report = Report()
    schema = stored_schema() if schema is None else schema
    old = _types(graph) & signatures.ERAS.keys()
    if not old or signatures.CURRENT & schema.keys():
        return graph, report
    try:
        return _convert(copy.deepcopy(graph), schema, report), report
    except (StrangeGraph, TypeError, ValueError, KeyError, IndexError, AttributeError, RecursionError) as error:
        strange = Report()
        strange.note(
            f"This graph holds nodes of {WRAPPER} ({', '.join(sorted(old))}) and could not be converted: it is not "
            f"built as graphs are ({error}). It was left as it is."
        )
        return graph, strange


def _convert(graph: dict[str, Any], schema: Schema, report: Report) -> dict[str, Any]:
    if is_prompt(graph):
        prompt = Prompt(graph)
        Conversion(prompt, schema, report).run()
        return prompt.write()
    free = [0]
    parts = _canvases(graph)
    for part in parts:
        state = part.get("state")
        ids = [node.get("id") for node in part.get("nodes") or [] if isinstance(node, dict)]
        ids += [part.get("last_node_id"), state.get("lastNodeId") if isinstance(state, dict) else None]
        free[0] = max([free[0], *(id for id in ids if isinstance(id, int))])
    written = []
    for part in parts:
        canvas = Canvas(part, free)
        changed = Conversion(canvas, schema, report).run()
        written.append(canvas.write() if changed else part)
    out = written[0]
    if len(written) > 1:
        out = {**out, "definitions": {**out["definitions"], "subgraphs": written[1:]}}
    return out
