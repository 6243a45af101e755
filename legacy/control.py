"""Networks beside the transformer: ControlNets and Tora."""

from __future__ import annotations

from .graph import BYPASS, Node, Source
from .images import Images
from .report import NEEDS, Missing


class Control(Images):
    """What steers a video: ControlNets with their loader, Tora with its paths."""

    def _build_DownloadAndLoadCogVideoControlNet(self, node: Node) -> dict[str, Source | None]:
        loader = self.claim(node, "CogVideoXLoadControlNet")
        wanted = str(self.value(node, "model")).rsplit("/", 1)[-1]
        names = (wanted, f"{wanted}.safetensors")
        advice = "put {} into models/controlnet and refresh the page."
        loader.values["control_net_name"] = self.find(
            node, "CogVideoXLoadControlNet", "control_net_name", names, advice
        )
        return {"controlnet": (loader.id, 0)}

    def _controlled(self, node: Node, sampler: Node | None, conds: list[Source | None]) -> list[Source | None]:
        self.built.setdefault(node.id, {})
        loader = self.source(node, "controlnet")
        net = self.native(loader)
        if net is None and loader is not None:
            raise Missing("CogVideoXLoadControlNet")
        target = self.claim(node, "ControlNetApplyAdvanced", patch=True)
        self.link(target, "positive", conds[0])
        self.link(target, "negative", conds[1])
        self.link(target, "control_net", net)
        images = self.native(self.source(node, "images"))
        self.link(target, "image", self.cut(node, sampler, images, "num_frames") if images else None)
        self.carry(target, "strength", node, "control_strength")
        self.window(target, node, "control_start_percent", "control_end_percent", sampler)
        return [(target.id, 0), (target.id, 1)]

    def _build_CogVideoControlNet(self, node: Node) -> dict[str, Source | None]:
        self._controlled(node, None, [None, None])
        return {}

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
            if loader is None and "tora" in self.model_name(sampler):  # at first Tora was a model of its own
                loader = self.loader_of(sampler, "model", "pipeline")
            if self.is_old(loader):
                self.built.setdefault(loader.id, {})
                tora = self._load_tora(loader)
                tora.mode = tora.mode if self.runs(encoder) else BYPASS
                model = self._behind(tora, model)
        except Missing as missing:
            self.no_equal(encoder, NEEDS.format(missing.args[0]))
            return model, conds
        self._conditioned(target, conds, self.vae(encoder) or self.vae(sampler))
        self.link(target, "latent", latent)
        return model, [(target.id, 0), (target.id, 1)]

    def _paths(self, node: Node, sampler: Node | None) -> Node:
        for name in ("CogVideoXTrajectory", "CogVideoXLoadTora"):
            self._schema_of(name)
        target = self.claim(node, "CogVideoXTrajectory", patch=True)
        self.idle |= {(node.id, name) for name in ("width", "height", "num_frames")}  # the latents have them
        self.carry(target, "coordinates", node, "coordinates")
        flow = self.native(self.source(node, "optical_flow"))
        self.link(target, "optical_flow", self.cut(node, sampler, flow, self.frames_of(sampler) if sampler else None))
        self.carry(target, "strength", node, "strength")
        self.window(target, node, "start_percent", "end_percent", sampler)
        self.built[node.id]["video_flow_images"] = (target.id, 2)
        return target

    def _load_tora(self, node: Node) -> Node:
        wanted = str(self.value(node, "model")).rsplit("/", 1)[-1]
        advice = "choose the file that holds Tora's fusers in Load CogVideoX Tora."
        name = self.find(node, "CogVideoXLoadTora", "tora_name", (wanted, f"{wanted}.safetensors"), advice)
        return self.claim(node, "CogVideoXLoadTora", {"tora_name": name}, patch=True)

    def _build_DownloadAndLoadToraModel(self, node: Node) -> dict[str, Source | None]:
        self._load_tora(node)
        return {}

    def _build_ToraEncodeTrajectory(self, node: Node) -> dict[str, Source | None]:
        self._paths(node, None)
        return self.built[node.id]

    _build_ToraEncodeOpticalFlow = _build_ToraEncodeTrajectory
