"""What was handed to a sampler and is a patch of the model here."""

from __future__ import annotations

from typing import Any

from .graph import Node, Source
from .images import Images

LATENT_STEP = 4  # frames in a latent frame, by which the wrapper divided lengths of windows
TILES = "temporal_tiling"
TILED = "DDIM_tiled"
SCHEDULES = {
    "uniform_standard": "standard_uniform",
    "uniform_looped": "looped_uniform",
    "static_standard": "standard_static",
    TILES: "standard_static",
}
TIME = 2  # dimension of [B, C, T, H, W]


def in_latents(frames: int) -> int:
    """Return a length or an overlap of windows in latent frames."""
    return max(frames // LATENT_STEP, 1)


class Patches(Images):
    """What changes the model: step cache, Enhance-A-Video and context windows."""

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
        if self.value(sampler, "t_tile_length") is not None:
            if self._is_tiled(sampler):
                model = self._behind(self._tiles(sampler), model)
            self.idle |= {(sampler.id, "t_tile_length"), (sampler.id, "t_tile_overlap")}
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

    def _windows(self, sampler: Node | None, schedule: str) -> dict[str, Any]:
        """Return the values of context windows that the wrapper's widgets do not say."""
        values = {
            # Tiles were weighted by a bell, windows alike.
            "fuse_method": "pyramid" if schedule == TILES else "flat",
            "dim": TIME,
            "context_schedule": SCHEDULES.get(schedule, "standard_uniform"),
            "closed_loop": schedule == "uniform_looped",
            "causal_window_fix": False,
        }
        if self._has_image(sampler):
            values["cond_retain_index_list"] = "0"  # each window was given the start image
        return values

    def _is_tiled(self, sampler: Node) -> bool:
        """Say whether a sampler's own windows were in use: for one scheduler, and at first where they were shorter."""
        scheduler, lengths = self.value(sampler, "scheduler"), ("t_tile_length", "num_frames")
        if "fps" not in self.reading(sampler).era.inputs:
            return scheduler == TILED
        tile, whole = (self.value(sampler, name) for name in lengths)
        return scheduler == "DDIM" and not any(self.linked(sampler, name) for name in lengths) and tile < whole

    def _tiles(self, sampler: Node) -> Node:
        """Make the windows of a sampler that had its own, before the wrapper had a node for them."""
        patch = self.beside(sampler, "ContextWindowsManual", self._windows(sampler, TILES))
        self.carry(patch, "context_length", sampler, "t_tile_length", in_latents)
        self.carry(patch, "context_overlap", sampler, "t_tile_overlap", in_latents)
        return patch

    def _context(self, node: Node, sampler: Node | None) -> Node:
        values = self._windows(sampler, str(self.value(node, "context_schedule")))
        values["freenoise"] = bool(self.value(node, "freenoise"))
        patch = self.claim(node, "ContextWindowsManual", values, patch=True)
        for name, old in (
            ("context_length", "context_frames"),
            ("context_overlap", "context_overlap"),
            ("context_stride", "context_stride"),
        ):
            self.carry(patch, name, node, old, in_latents)
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
