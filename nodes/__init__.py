"""The nodes, one family a file."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import branches, conditioning, latent, loaders, patches, sampling, text, vae
from .host.files import register_folders

FAMILIES = (loaders, text, latent, conditioning, sampling, vae, branches, patches)


class CogVideoXExtension(ComfyExtension):
    """What the host asks for: the list of nodes."""

    async def on_load(self) -> None:
        register_folders()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for family in FAMILIES for node in family.NODES]
