"""The nodes, one family a file."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import (
    branches,
    conditioning,
    latent,
    loaders,
    long_video,
    lora,
    merging,
    noise,
    patches,
    sampling,
    text,
    vae,
    video_conditioning,
)
from .host.files import register_folders
from .host.legacy import register_conversion
from .host.lora import register_lora_keys
from .replacements import register_replacements

FAMILIES = (
    loaders,
    lora,
    text,
    latent,
    conditioning,
    video_conditioning,
    sampling,
    noise,
    vae,
    long_video,
    branches,
    patches,
    merging,
)


class CogVideoXExtension(ComfyExtension):
    """What the host asks for: the list of nodes."""

    async def on_load(self) -> None:
        register_folders()
        register_lora_keys()
        register_conversion()
        await register_replacements()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for family in FAMILIES for node in family.NODES]
