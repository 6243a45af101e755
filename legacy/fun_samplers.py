"""Samplers of CogVideoX-Fun: they took images, control videos and sizes themselves."""

from __future__ import annotations

from .graph import Node, Source
from .report import Missing, label
from .samplers import Samplers


class FunSamplers(Samplers):
    """The samplers for Fun models, whose nodes changed most over time."""

    def _build_CogVideoXFunSampler(self, node: Node) -> dict[str, Source | None]:
        model = self._patches(node, self._model(node))
        conds = self._conds(node)
        start, end = (self.native(self.source(node, name)) for name in ("start_img", "end_img"))
        video = self.native(self.source(node, "vid2vid_images"))
        latent: Source | None = None
        size = self._bucketed(node, start or end or video)
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

    def _bucketed(self, node: Node, image: Source | None) -> Node | None:
        """Return the node that chooses the size, where a sampler did so."""
        return self.bucket(node, image, node) if image and self.value(node, "base_resolution") is not None else None

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
        size = self._bucketed(node, video or control)
        latent: Source | None = None
        if control is not None and not self._is_control(node):
            self.report.note(f"{label(node)}: its model takes no control video, which was left out.")
        elif control is not None:
            names = (node, "control_strength", "control_start_percent", "control_end_percent")
            try:
                conds, latent = self.control_to_video(node, node, conds, control, names, self.frames_of(node), size)
            except Missing as missing:
                self._without(node, "control video", missing)
        if video is not None:
            latent = self._repaint(node, video, size)
        if latent is None:
            latent = self._start(node, None, None)
        return self._sampler(node, model, conds, latent, "cfg", "denoise_strength" if video is not None else "")

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
                size = self.bucket(node, video, node)
                conds, latent = self.control_to_video(node, node, conds, video, names, self.frames_of(node), size)
        except Missing as missing:
            self._without(node, "control video", missing)
        samples = self.origin(self.source(node, "samples"))
        if samples is not None and self.is_old(samples) and samples.type == "CogVideoImageEncode":
            self.built.setdefault(samples.id, {})
            latent = self.video_latent(samples, node, self.native(self.source(samples, "start_image", "image")), None)
        if latent is None:
            latent = self._start(node, None, None)
        return self._sampler(node, model, conds, latent, "cfg", "denoise_strength")
