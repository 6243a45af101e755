"""Two MODELs made into one."""

from __future__ import annotations

from comfy_api.latest import io

from .host.merging import merge_blocks


class CogVideoXMergeBlocks(io.ComfyNode):
    """A merge with a ratio for each part of the transformer."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXMergeBlocks",
            display_name="CogVideoX Merge Blocks",
            category="CogVideoX/patches",
            description=(
                "Mixes two CogVideoX models of one kind, with a ratio for each part of the network: 1 keeps model1, "
                "0 takes model2. Works for the 30 blocks of 2B and the 42 of the others."
            ),
            search_aliases=["ModelMergeBlocks", "ModelMergeCogVideoX", "block weight merge", "checkpoint merge"],
            inputs=[
                io.Model.Input("model1", tooltip="A CogVideoX model; schedule and scales are taken from it."),
                io.Model.Input("model2", tooltip="A CogVideoX model of the same kind, such as a fine-tune of model1."),
                io.Float.Input(
                    "embeddings",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of model1 in what reads latents and text (patch_embed), 0 to 1.",
                ),
                io.Float.Input(
                    "time",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of model1 in what reads the noise level (time_embedding, ofs_embedding), 0 to 1.",
                ),
                io.Float.Input(
                    "first_blocks",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of model1 in the first third, 0 to 1. Blocks 0 to 9 of 2B, 0 to 13 of 5B.",
                ),
                io.Float.Input(
                    "middle_blocks",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of model1 in the middle third, 0 to 1. Blocks 10 to 19 of 2B, 14 to 27 of 5B.",
                ),
                io.Float.Input(
                    "last_blocks",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of model1 in the last third, 0 to 1. Blocks 20 to 29 of 2B, 28 to 41 of 5B.",
                ),
                io.Float.Input(
                    "output",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of model1 in what follows the blocks (norm_final, norm_out, proj_out), 0 to 1.",
                ),
                io.String.Input(
                    "block_ratios",
                    optional=True,
                    advanced=True,
                    tooltip=(
                        'Ratios of single blocks, 0 to 1, in place of those of their third: "0-9: 1, 10: 0.5". Empty: '
                        "none."
                    ),
                ),
            ],
            outputs=[io.Model.Output(tooltip="The merged model.")],
        )

    @classmethod
    def execute(
        cls, model1, model2, embeddings, time, first_blocks, middle_blocks, last_blocks, output, block_ratios=None
    ) -> io.NodeOutput:
        thirds = first_blocks, middle_blocks, last_blocks
        return io.NodeOutput(merge_blocks(model1, model2, embeddings, time, *thirds, output, block_ratios or ""))


NODES = [CogVideoXMergeBlocks]
