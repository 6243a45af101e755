"""Images and videos: their sizes, their lengths, what they condition, encoding and decoding."""

from __future__ import annotations

from .graph import Node, Prompt, Source
from .loaders import Loaders
from .report import label

FRAME_STEP = 8  # native videos have 8n + 1 frames
LANDSCAPE = (720, 480)
FOREIGN_LATENTS = "{}: its samples come from {}, whose latents are laid out for the wrapper."


def fitted(count: int) -> int:
    """Return the count of frames that a native video has, next to an old one."""
    return max((count - 1 + FRAME_STEP // 2) // FRAME_STEP, 0) * FRAME_STEP + 1


class Images(Loaders):
    """What encodes, decodes and measures images, and lets them condition a video."""

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

    def set_length(self, target: Node, old: Node, name: str) -> None:
        """Set the length of a new node from an old frame count, which native videos have in steps of eight."""
        self.moved.setdefault((str(old.id), name), (str(target.id), "length"))
        count = self.value(old, name)
        if self.linked(old, name):
            self._tell_of_length(old, name)
            self.carry_link(target, "length", old, name)
        elif fitted(count) != count:
            self.report.note(f"{label(old)}: {count} frames became {fitted(count)}; videos have 8n + 1 frames.")
        self.set(target, "length", fitted(count), old)

    def _tell_of_length(self, old: Node, name: str) -> None:
        """Say which length a node of others gives, where its one widget tells that it does not fit."""
        maker = self.origin(self.graph.input_of(old, name))
        saved = self._stock_list(maker) if maker is not None and not self.is_old(maker) else []
        if len(saved) == 1 and type(saved[0]) is int and fitted(saved[0]) != saved[0]:
            self.report.note(
                f"{label(maker)} gives {saved[0]} to {name} of {label(old)}; videos have 8n + 1 frames. "
                f"Set {fitted(saved[0])}."
            )

    def cut(self, place: Node, sampler: Node | None, video: Source | None, frames: str | None) -> Source | None:
        """Bring a video to the frames of the run: the wrapper took what fell into the same latent frames."""
        if video is None or sampler is None or frames is None:
            return video
        count = self.value(sampler, frames)
        if not self.linked(sampler, frames) and isinstance(count, int) and fitted(count) > count:
            # An old 48 is 49 here: repeat the last.
            last = self.beside(place, "ImageFromBatch", {"batch_index": -1, "length": 1})
            self.link(last, "image", video)
            more: Source = (last.id, 0)
            if fitted(count) - count > 1:
                repeated = self.beside(place, "RepeatImageBatch", {"amount": fitted(count) - count})
                self.link(repeated, "image", more)
                more = (repeated.id, 0)
            longer = self.beside(place, "ImageBatch")
            self.link(longer, "image1", video)
            self.link(longer, "image2", more)
            video = (longer.id, 0)
        cut = self.beside(place, "ImageFromBatch", {"batch_index": 0})
        self.set_length(cut, sampler, frames)
        self.link(cut, "image", video)
        return cut.id, 0

    def frames_of(self, sampler: Node) -> str | None:
        """Return the name of a sampler's frame count, where it has one."""
        return next((name for name in ("num_frames", "video_length") if self.value(sampler, name) is not None), None)

    def _guide(self, place: Node, sampler: Node, node_type: str) -> Node:
        """Make what guides a video: in the place of the old node that did, or beside a sampler that did it itself."""
        return self.beside(sampler, node_type) if place is sampler else self.claim(place, node_type, patch=True)

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
        target = self._guide(place, sampler, "CogVideoXImageToVideo")
        self._conditioned(target, conds, self.vae(place) or self.vae(sampler))
        self.set_length(target, sampler, frames)
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
        names = ["height", "width"]
        swapped = old.type == "CogVideoSampler" and tuple(self.value(old, name) for name in names) == LANDSCAPE
        if swapped and self._width_came_first() and not any(self.linked(old, name) for name in names):
            names.reverse()
        for new, name in zip(("height", "width"), names, strict=True):
            self.carry(target, new, old, name)

    def _width_came_first(self) -> bool:
        """Say whether sizes may be of the three days in which the wrapper had the width before the height.

        Its loaders had lost an input then and still had another. For the rest landscape tells, which models are for.
        """
        loaders = (node.id for node in self.graph.nodes.values() if node.type.startswith("DownloadAndLoadCogVideo"))
        inputs = [self.graph.names.get(id, []) for id in loaders]
        return any("block_edit" in names and "pab_config" not in names for names in inputs)

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
        target = self._guide(place, sampler, "CogVideoXControlToVideo")
        self._conditioned(target, conds, self.vae(place) or self.vae(sampler))
        if video is not None:
            measured = size or self.size_of(video, place)
            self._sized(target, (measured.id, 0), (measured.id, 1))
        if frames is not None:
            self.set_length(target, sampler, frames)
            video = self.cut(place, sampler, video, frames)
        elif video is not None:  # the video gave the run its length
            loaded = self._loaded_frames(video)
            count = (loaded - 1) // FRAME_STEP * FRAME_STEP + 1
            if loaded > 0 and count != loaded:
                self.report.note(f"{label(sampler)}: {loaded} frames became {count}; videos have 8n + 1 frames.")
                cut = self.beside(place, "ImageFromBatch", {"batch_index": 0, "length": count})
                self.link(cut, "image", video)
                video = (cut.id, 0)
                self.set(target, "length", count, sampler)
            else:
                self.link(target, "length", (self.size_of(video, place).id, 2))
        self.link(target, "control_video", video)
        old, *values = names
        self.carry(target, "strength", old, values[0])
        self.window(target, old, values[1], values[2], sampler)
        return [(target.id, 0), (target.id, 1)], (target.id, 2)

    def _loaded_frames(self, video: Source) -> int:
        """Return how many frames a loader of videos was told to load, 0 where that is not known."""
        loader = self.origin(video)
        if loader is None or "Load" not in loader.type:
            return 0
        names = ("frame_load_cap", "image_load_cap")
        given = loader.values if isinstance(self.graph, Prompt) else (loader.raw or {}).get("widgets_values")
        given = given if isinstance(given, dict) else {}
        return next((given[name] for name in names if type(given.get(name)) is int), 0)

    def _denoise(self, sampler: Node) -> float:
        value = self.value(sampler, "denoise_strength")
        if value is None:
            value = self.value(sampler, "vid2vid_denoise")
        return float(value) if isinstance(value, int | float) and 0 < value < 1 else 1.0

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
        self.idle |= {(sampler.id, "width"), (sampler.id, "height")}  # the video has them
        self.link(target, "vae", self.vae(place) or self.vae(sampler))
        self.link(target, "pixels", self.cut(place, sampler, video, frames))
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
        tiled = self.value(node, "enable_vae_tiling")
        target.values["memory"] = "tiles" if tiled else "auto"
        if tiled and self.value(node, "auto_tile_size") is False:
            self.report.note(f"{label(node)}: the sizes of its tiles were left out; they follow the free memory here.")
        samples = self.source(node, "samples")
        if self.runs(node) and (maker := self.stranger(samples)) is not None:
            self.report.note(FOREIGN_LATENTS.format(label(node), label(maker)))
        self.link(target, "samples", self.native(samples))
        self.link(target, "vae", self.vae(node))
        return {"images": (target.id, 0)}
