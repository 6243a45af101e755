"""Prompts and the text encoder that reads them."""

from __future__ import annotations

from .graph import Node, Source
from .loaders import Loaders
from .rebuilding import PASSING
from .report import label


class Prompts(Loaders):
    """What encodes text."""

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
