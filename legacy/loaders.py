"""Models, their LoRAs and compilation, and VAEs."""

from __future__ import annotations

from typing import Any

from .graph import BYPASS, NEVER, Node, Source
from .rebuilding import Rebuilding
from .report import label
from .signatures import OTHERS_LOADER

# Folders the wrapper downloaded to, by the entry of its list; the first that is there is taken, else the last named.
FOLDERS = {
    "THUDM/CogVideoX-2b": ("CogVideo2B", "CogVideoX-2b"),
    "kijai/CogVideoX-5b-1.5-T2V": ("CogVideoX1.5-5B",),
    "kijai/CogVideoX-5b-1.5-I2V": ("CogVideoX1.5-5B-I2V",),
    "kijai/CogVideoX-Fun-2b": ("CogVideoX-Fun-2b-InP",),
    "kijai/CogVideoX-Fun-5b": ("CogVideoX-Fun-5b-InP",),
    "kijai/CogVideoX-Fun-pruned": ("CogVideoX-Fun-5b-InP",),
}
GGUF_VAES = ("cogvideox_vae.safetensors", "cogvideox_vae_bf16.safetensors")  # as the wrapper loaded it, as published
WEIGHT_DTYPES = {
    "fp8_e4m3fn": "fp8_e4m3fn",
    "enabled": "fp8_e4m3fn",
    "fp8_e4m3fn_fastmode": "fp8_e4m3fn_fast",
    "fp8_e4m3fn_fast": "fp8_e4m3fn_fast",
    "fastmode": "fp8_e4m3fn_fast",
}


class Loaders(Rebuilding):
    """What loads: models with all that was handed to their loader, and VAEs."""

    def _build_DownloadAndLoadCogVideoModel(self, node: Node) -> dict[str, Source | None]:
        name = self.value(node, "model") or "THUDM/CogVideoX-2b"
        quantization = self.value(node, "quantization") or self.value(node, "fp8_transformer")
        return self._loader(
            node, self._folder("CogVideoXLoadModel", "model_name", node, name), quantization, "precision"
        )

    def _build_CogVideoXModelLoader(self, node: Node) -> dict[str, Source | None]:
        return self._loader(node, self._single(node), self.value(node, "quantization"), "base_precision")

    def _build_DownloadAndLoadCogVideoGGUFModel(self, node: Node) -> dict[str, Source | None]:
        if self.value(node, "fp8_fastmode"):
            self.report.note(f"{label(node)}: fp8_fastmode has no equal for GGUF; the weights stay in their blocks.")
        return self._loader(node, self._single(node), None, None)

    def _build_MZ_CogVideoXLoader(self, node: Node) -> dict[str, Source | None]:
        chosen = str(self.value(node, "weight_dtype"))
        if "gguf" in f"{self._model_of(node)} {chosen}".lower():
            return self._loader(node, self._single(node), None, None)
        fast = self.value(node, "fp8_fast_mode") and chosen in WEIGHT_DTYPES
        return self._loader(node, self._single(node), "fastmode" if fast else chosen, "weight_dtype")

    def _model_of(self, loader: Node) -> str:
        return str(self.value(loader, "model") or self.value(loader, "unet_name"))

    def _single(self, node: Node) -> str:
        advice = "put {} into models/diffusion_models and refresh the page."
        return self.find(node, "CogVideoXLoadModel", "model_name", [self._model_of(node)], advice)

    def _folder(self, node_type: str, name: str, node: Node, model: str) -> str:
        names = FOLDERS.get(model, (model.rsplit("/", 1)[-1],))
        advice = "put the folder {} into models/CogVideo and refresh the page."
        return self.find(node, node_type, name, names, advice)

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
        if node.type != "DownloadAndLoadCogVideoModel":  # whose names were not those of folders
            self.carry_link(loader, "model_name", node, "model")
        model: Source = (loader.id, 0)
        self.built[node.id] = {"model": model, "pipe": model}
        attention = str(self.value(node, "attention_mode") or "")
        if "sage" in attention:
            patch = self.beside(node, "CogVideoXAttention", {"attention": "sage"})
            model = self._behind(patch, model)
            if attention != "sageattn":
                self.report.note(f"{label(node)}: {attention} became sage, which picks its kernel by the card.")
        loras = self._loras(node)
        cut = max((place for place, lora in enumerate(loras) if lora.mode == NEVER), default=-1)
        for place, lora in enumerate(loras):
            patch = self._lora(lora)
            patch.mode = BYPASS if place <= cut else patch.mode  # a muted one gave nothing on of those before it
            model = self._behind(patch, model)
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
        advice = "put {} into models/loras (the wrapper read models/CogVideo/loras)."
        name = self.find(node, target, "lora_name", [wanted], advice)
        lora = self.claim(node, target, {"lora_name": name}, patch=True)
        self.carry_link(lora, "lora_name", node, "lora")
        self.carry(lora, strength, node, "strength")
        # The wrapper fused these two at 1 / rank instead of 1.
        if self.value(node, "fuse_lora") and any(word in wanted.lower() for word in ("orbit", "dimensionx")):
            self.set(lora, "scaling", "1/rank", node)
        return lora

    def _build_CogVideoLoraSelect(self, node: Node) -> dict[str, Source | None]:
        self._lora(node)
        return {}

    _build_CogVideoLoraSelectComfy = _build_CogVideoLoraSelect

    def _compiled(self, node: Node, model: Source) -> Source:
        settings = self.origin(self.source(node, "compile_args"))
        if settings is not None and self.is_old(settings):
            return self._behind(self._compile(settings), model)
        if self.value(node, "onediff") is True or self.value(node, "compile") == "onediff":
            self.report.note(f"{label(node)}: onediff has no equal and was left out.")
        elif self.value(node, "compile") not in (None, "disabled") or self.value(node, "torch_compile"):
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
        loader.values["vae_name"] = self._vae_file(node, str(self.value(node, "model_name")))
        self.carry_link(loader, "vae_name", node, "model_name")
        self.carry(loader, "weight_dtype", node, "precision")
        if self.source(node, "compile_args"):
            self.report.note(f"{label(node)}: compiling the VAE has no equal.")
        return {"vae": (loader.id, 0)}

    def _vae_file(self, node: Node, *wanted: str) -> str:
        return self.find(node, "CogVideoXLoadVAE", "vae_name", wanted, "put {} into models/vae and refresh the page.")

    def vae_of(self, loader: Node | None) -> Source | None:
        """Return the VAE that an old loader brought along, as a loader of its own beside it."""
        if not self.is_old(loader) or not loader.type.startswith(("DownloadAndLoadCogVideo", OTHERS_LOADER)):
            return None
        if loader.id not in self.vaes:
            self.build(loader)
            if loader.type == "DownloadAndLoadCogVideoGGUFModel":
                name = self._vae_file(loader, *GGUF_VAES)
                precision = self.value(loader, "vae_precision")
            elif loader.type == OTHERS_LOADER:
                name, precision = self._vae_file(loader, str(self.value(loader, "vae_name"))), None
            else:
                model = self.value(loader, "model") or "THUDM/CogVideoX-2b"
                name = self._folder("CogVideoXLoadVAE", "vae_name", loader, model)
                precision = self.value(loader, "precision")
            node = self.beside(loader, "CogVideoXLoadVAE", {"vae_name": name})
            if precision:
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

    def model_name(self, sampler: Node) -> str:
        """Return the name of a sampler's model in small letters, which is how the wrapper knew models apart."""
        loader = self.loader_of(sampler, "model", "pipeline")
        return self._model_of(loader).lower() if self.is_old(loader) else ""

    def vae(self, node: Node) -> Source | None:
        """Return the VAE of an old node: its own input, or that of its pipeline."""
        source = self.source(node, "vae", "vae_override")
        if source is not None:
            return self.native(source)
        return self.vae_of(self.loader_of(node, "pipeline"))
