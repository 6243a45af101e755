"""LATENT to IMAGE and back."""

from __future__ import annotations

from comfy_api.latest import io

from .host.coding import AUTO, MEMORY_MODES, decode, encode

CATEGORY = "CogVideoX/vae"


class CogVideoXVAEDecode(io.ComfyNode):
    """Decode with a say in the memory used."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXVAEDecode",
            display_name="CogVideoX VAE Decode",
            category=CATEGORY,
            description=(
                "Turns latents into frames, a few at a time, so that memory does not grow with the video's length. "
                "Slabs and tiles lower the memory further for large frames and small cards."
            ),
            search_aliases=["CogVideoDecode", "VAEDecode", "VAEDecodeTiled"],
            inputs=[
                io.Latent.Input("samples", tooltip="Video latents of a CogVideoX sampler."),
                io.Vae.Input("vae", tooltip="CogVideoX's VAE."),
                io.Combo.Input(
                    "memory",
                    options=list(MEMORY_MODES),
                    default=AUTO,
                    tooltip=(
                        "whole frame: exact. slabs: the same frames in less memory, slower. tiles: pieces of "
                        "360x240 px blended at their edges, least memory, slightly different. auto: the first of these "
                        "that fits."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The frames, [frames, height, width, 3]; videos of a batch follow each other.")
            ],
        )

    @classmethod
    def execute(cls, samples, vae, memory) -> io.NodeOutput:
        return io.NodeOutput(decode(vae, samples["samples"], memory))


class CogVideoXVAEEncode(io.ComfyNode):
    """Encode with the choice between the posterior's mode and a sample of it."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXVAEEncode",
            display_name="CogVideoX VAE Encode",
            category=CATEGORY,
            description="Turns the frames of a video into latents, for video-to-video with denoise below 1.",
            search_aliases=["CogVideoImageEncode", "VAEEncode", "vid2vid", "v2v"],
            inputs=[
                io.Image.Input("pixels", tooltip="Frames of one video, 8n + 1 of them, sides a multiple of 16 px."),
                io.Vae.Input("vae", tooltip="CogVideoX's VAE."),
                io.Combo.Input(
                    "posterior",
                    options=["mode", "sample"],
                    default="mode",
                    tooltip="mode: the same latents each time. sample: drawn around them, as the reference does.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the draw, 0 to 2^64 - 1; used by posterior sample only.",
                ),
            ],
            outputs=[io.Latent.Output(tooltip="Video latents, unscaled.")],
        )

    @classmethod
    def execute(cls, pixels, vae, posterior, seed) -> io.NodeOutput:
        return io.NodeOutput({"samples": encode(vae, pixels, seed if posterior == "sample" else None)})


NODES = [CogVideoXVAEDecode, CogVideoXVAEEncode]
