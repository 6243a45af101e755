"""Prompt to CONDITIONING."""

from __future__ import annotations

import logging

from comfy_api.latest import io

from ..cogvideox.instructions import INSTRUCTIONS, NO_WISH, TASKS, TEXT_TO_VIDEO
from ..cogvideox.variants import TEXT_TOKENS
from .host.server import show_on_node
from .host.text_encoder import encode_prompt

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
                    tooltip="T5 v1.1 XXL from Load CogVideoX Text Encoder, or from Load CLIP with type cogvideox.",
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
        show_on_node(cls, prompt.summary)
        return io.NodeOutput(prompt.conditioning)


class CogVideoXPromptTemplate(io.ComfyNode):
    """What to ask a language model for a prompt."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXPromptTemplate",
            display_name="CogVideoX Prompt Template",
            category="CogVideoX/text",
            description=(
                "Writes the request with which a language model turns a few words, a picture or a video into a prompt "
                "as CogVideoX likes it. Connect it to Generate Text, and that to CogVideoX Text Encode."
            ),
            search_aliases=["prompt enhance", "caption", "LLM", "rewrite prompt", "TextGenerate", "image to prompt"],
            inputs=[
                io.Combo.Input(
                    "task",
                    options=list(TASKS),
                    default="text to video",
                    tooltip=(
                        "text to video: a full description from an idea. image to video: the motion that starts from a "
                        "picture. video to prompt: a caption of a video. The last two need a model that sees."
                    ),
                ),
                io.String.Input(
                    "idea",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip=(
                        "A few words, in any language the language model knows; {red|blue} takes one at random. "
                        "For a picture or a video: what is to move or to change. May then be empty."
                    ),
                ),
                io.Int.Input(
                    "words",
                    default=120,
                    min=20,
                    max=180,
                    tooltip=f"Length to ask for, 20 to 180 words. CogVideoX reads {TEXT_TOKENS} tokens, or 160 words.",
                ),
            ],
            outputs=[io.String.Output(display_name="prompt", tooltip="The request, for the prompt of Generate Text.")],
        )

    @classmethod
    def execute(cls, task, idea, words) -> io.NodeOutput:
        idea = idea.strip()
        if task == TEXT_TO_VIDEO and not idea:
            raise ValueError("CogVideoX Prompt Template has no idea to write about. Write a few words into idea.")
        return io.NodeOutput(INSTRUCTIONS[task].format(words=words, idea=idea or NO_WISH))


NODES = [CogVideoXTextEncode, CogVideoXPromptTemplate]
