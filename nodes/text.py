"""Prompt to CONDITIONING."""

from __future__ import annotations

import logging

from comfy_api.latest import io

from ..cogvideox.variants import TEXT_TOKENS
from .host.text_encoder import encode_prompt, show_on_node

logger = logging.getLogger(__name__)


class CogVideoXTextEncode(io.ComfyNode):
    """Text encoding as CogVideoX was trained: exactly 226 tokens, plain text."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXTextEncode",
            display_name="CogVideoX Text Encode",
            category="CogVideoX/text",
            description=(
                f"Encodes a prompt for CogVideoX: always {TEXT_TOKENS} T5 tokens, padded or cut, brackets read as "
                "plain text. Shows the token count on the node. Use one each for the positive and the negative prompt."
            ),
            search_aliases=["CogVideoTextEncode", "prompt", "positive prompt", "negative prompt", "t5", "encode text"],
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="T5 v1.1 XXL from Load CogVideoX Text Encoder, or from CLIPLoader with type cogvideox.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip=(
                        f"What the video shows; CogVideoX likes long, detailed prompts of up to {TEXT_TOKENS} tokens "
                        "(about 150 to 200 English words). May be empty for the negative prompt."
                    ),
                ),
                io.Combo.Input(
                    "long_prompt",
                    options=["truncate", "blend"],
                    default="truncate",
                    tooltip=(
                        f"For prompts over {TEXT_TOKENS} tokens. truncate: drop the rest, as the reference does. "
                        "blend: encode pieces at sentence ends and average them, weighted by their tokens."
                    ),
                ),
                io.Boolean.Input(
                    "prompt_weights",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "On: (word:1.2) strengthens and (word:0.8) weakens a word, as in ComfyUI's CLIP Text Encode. "
                        "Off: brackets are plain text, as in the reference."
                    ),
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip=f"The prompt as {TEXT_TOKENS} T5 embeddings.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clip, text, long_prompt, prompt_weights=False) -> io.NodeOutput:
        prompt = encode_prompt(clip, text, long_prompt, weights=prompt_weights)
        if prompt.truncated:
            logger.warning("CogVideoX Text Encode: %s", prompt.summary)
        if cls.hidden:
            show_on_node(prompt.summary, cls.hidden.unique_id)
        return io.NodeOutput(prompt.conditioning)


NODES = [CogVideoXTextEncode]
