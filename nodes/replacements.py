"""Old nodes that another takes the place of one for one; the host offers them where a graph holds such a node."""

from __future__ import annotations

from comfy_api.latest import ComfyAPI, io

from .host.server import running_server

# Only inputs that the old node always has: the host fails on the others.
REPLACEMENTS = (
    io.NodeReplace(
        new_node_id="CogVideoXTextEncode",
        old_node_id="CogVideoTextEncode",
        old_widget_ids=["prompt", "strength", "force_offload"],
        input_mapping=[
            {"new_id": "clip", "old_id": "clip"},
            {"new_id": "text", "old_id": "prompt"},
            {"new_id": "long_prompt", "set_value": "truncate"},
        ],
        output_mapping=[{"new_idx": 0, "old_idx": 0}],
    ),
    io.NodeReplace(
        new_node_id="CogVideoXLoadVAE",
        old_node_id="CogVideoXVAELoader",
        old_widget_ids=["model_name", "precision"],
        input_mapping=[{"new_id": "vae_name", "old_id": "model_name"}],
        output_mapping=[{"new_idx": 0, "old_idx": 0}],
    ),
    io.NodeReplace(
        new_node_id="CogVideoXVAEDecode",
        old_node_id="CogVideoDecode",
        old_widget_ids=[
            "enable_vae_tiling",
            "tile_sample_min_height",
            "tile_sample_min_width",
            "tile_overlap_factor_height",
            "tile_overlap_factor_width",
            "auto_tile_size",
        ],
        input_mapping=[
            {"new_id": "samples", "old_id": "samples"},
            {"new_id": "vae", "old_id": "vae"},
            {"new_id": "memory", "set_value": "auto"},
        ],
        output_mapping=[{"new_idx": 0, "old_idx": 0}],
    ),
)


async def register_replacements() -> None:
    """Tell the host; nothing happens without a server."""
    if running_server() is not None:
        for replacement in REPLACEMENTS:
            await ComfyAPI().node_replacement.register(replacement)
