"""Prompts and the text encoder that reads them."""

from __future__ import annotations

from .graph import BYPASS, Node, Source
from .loaders import Loaders
from .report import label


class Prompts(Loaders):
    """What encodes text."""

    def _text(self, node: Node, target: Node, name: str) -> None:
        self.carry(target, "text", node, name)
        text = self.value(node, name)
        # The wrapper read (word:1.2) as the host does; what another node writes may hold brackets too.
        bracketed = isinstance(text, str) and ("(" in text or ")" in text)
        target.values["prompt_weights"] = self.linked(node, name) or bracketed

    def _times(self, node: Node, text: Node, strength: str) -> Source:
        """Multiply a text as the wrapper did: strength of it and the rest of zeros."""
        factor = self.value(node, strength)
        linked = self.graph.input_of(node, strength) is not None
        if not linked and factor in (1, None):
            return text.id, 0
        if not linked and factor > 1:
            self.report.note(
                f"{label(node)}: {strength} {factor} multiplied the text embeddings; above 1 that has no equal, and "
                "1 stands in."
            )
            return text.id, 0
        zeros, mixed = self.beside(node, "ConditioningZeroOut"), self.beside(node, "ConditioningAverage")
        self.link(zeros, "conditioning", (text.id, 0))
        self.link(mixed, "conditioning_to", (text.id, 0))
        self.link(mixed, "conditioning_from", (zeros.id, 0))
        self.carry(mixed, "conditioning_to_strength", node, strength)
        return mixed.id, 0

    def _build_CogVideoTextEncode(self, node: Node) -> dict[str, Source | None]:
        target = self.claim(node, "CogVideoXTextEncode")
        self._text(node, target, "prompt")
        clip = self.clip(self.source(node, "clip"), node)
        self.link(target, "clip", clip)
        return {"conditioning": self._times(node, target, "strength"), "clip": clip}

    def _build_CogVideoDualTextEncode_311(self, node: Node) -> dict[str, Source | None]:
        target = self.claim(node, "CogVideoXTextEncode")
        self._text(node, target, "t5xxl")
        if self.value(node, "clip_l"):
            self.report.note(f"{label(node)}: the clip_l text has no equal and was left out; CogVideoX reads T5 alone.")
        self.link(target, "clip", self.clip(self.source(node, "clip"), node))
        return {"conditioning": self._times(node, target, "t5xxl_strength")}

    def _build_CogVideoEncodePrompt(self, node: Node) -> dict[str, Source | None]:
        positive, negative = self.claim(node, "CogVideoXTextEncode"), self.beside(node, "CogVideoXTextEncode")
        self._text(node, positive, "prompt")
        self._text(node, negative, "negative_prompt")
        folder = self.loader_of(node, "pipeline")
        encoder = self.beside(node, "CogVideoXLoadTextEncoder")
        if self.is_old(folder):
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
        if origin.type == "CLIPLoader":
            names = [self._stock_values(origin, "clip_name")["clip_name"]]
        else:
            names = [name for name in self._stock_list(origin) if "t5" in str(name).lower()]
        wanted = str(names[0]) if names else ""
        values = {"clip_name": self.choose("CLIPLoader", "clip_name", wanted), "type": "cogvideox"}
        alone = self.serves_old(origin)
        loader = self.claim(origin, "CLIPLoader", values) if alone else self.beside(node, "CLIPLoader", values)
        self.carry_link(loader, "clip_name", origin, "clip_name")
        self.built[origin.id] = {"clip": (loader.id, 0)}
        return loader.id, 0

    def _build_CogVideoTextEncodeCombine(self, node: Node) -> dict[str, Source | None]:
        mode = self.value(node, "combination_mode")
        first, second = (self.native(self.source(node, f"conditioning_{n}")) for n in (1, 2))
        if mode == "concatenate":
            target = self.claim(node, "ConditioningConcat")
        else:
            target = self.claim(node, "ConditioningAverage", {"conditioning_to_strength": 0.5})
            if mode == "weighted_average":
                self.carry(target, "conditioning_to_strength", node, "weighted_average_ratio")
            if node.mode != BYPASS:  # which hands on the first
                first, second = second, first  # a (1 - r) + b r: the second is what is gone to
        self.link(target, "conditioning_to", first)
        self.link(target, "conditioning_from", second)
        return {"conditioning": (target.id, 0)}
