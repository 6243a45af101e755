"""Patches for MODEL: less work for nearly the same video, and more cohesion between frames."""

from __future__ import annotations

from comfy_api.latest import io

from ..cogvideox.patches import STEP_CACHE_MODES
from .host.patches import (
    ATTENTIONS,
    CACHE_DEVICES,
    with_attention,
    with_enhanced_video,
    with_guidance_window,
    with_step_cache,
)
from .host.server import show_on_node
from .inputs import END_TOOLTIP, end_input, start_input

CATEGORY = "CogVideoX/patches"
MODEL_TOOLTIP = "A CogVideoX model."


class CogVideoXStepCache(io.ComfyNode):
    """Leave out the transformer's blocks in steps that would add nearly the same again."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXStepCache",
            display_name="CogVideoX Step Cache",
            category=CATEGORY,
            description=(
                "Skips steps that would change little: what the transformer's blocks added before is added again. An "
                "approximation, 1.3 to 2 times as fast. Says in the log how many steps were skipped."
            ),
            search_aliases=["TeaCache", "FBCache", "first block cache", "EasyCache", "speed", "CogVideoXTeaCache"],
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TOOLTIP),
                io.Combo.Input(
                    "mode",
                    options=list(STEP_CACHE_MODES),
                    default="teacache",
                    tooltip=(
                        "What tells that a step changes little. teacache: the noise level alone, by the published "
                        "curve of the model. first block cache: what the first block makes of this very video."
                    ),
                ),
                io.Float.Input(
                    "threshold",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "How much may have changed before the blocks run again, 0 to 1, as a share. 0 is exact and "
                        "skips nothing; 0.1 to 0.3 for teacache, 0.05 to 0.2 for first block cache."
                    ),
                ),
                start_input(),
                end_input(),
                io.Combo.Input(
                    "cache_device",
                    options=list(CACHE_DEVICES),
                    default="main device",
                    advanced=True,
                    tooltip=(
                        "Where the cache waits. main device: fast, about 0.1 GB a prompt at 720x480 and 49 frames. "
                        "offload device: in main memory, copied in each skipped step."
                    ),
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with the cache on it.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, mode, threshold, start_percent, end_percent, cache_device) -> io.NodeOutput:
        model, note = with_step_cache(model, mode, threshold, start_percent, end_percent, cache_device)
        show_on_node(cls, note)
        return io.NodeOutput(model)


class CogVideoXGuidanceWindow(io.ComfyNode):
    """Guidance, and the negative prompt it needs, for part of a run."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXGuidanceWindow",
            display_name="CogVideoX Guidance Window",
            category=CATEGORY,
            description=(
                "Guides only between two points of the run. Outside them the negative prompt is not computed, which "
                "halves the work of those steps. Works with CogVideoX Dynamic CFG and with every sampler."
            ),
            search_aliases=["skip negative", "cfg interval", "limited guidance", "cfg end percent", "speed"],
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TOOLTIP),
                start_input(),
                io.Float.Input("end_percent", default=0.7, min=0.0, max=1.0, step=0.01, tooltip=END_TOOLTIP),
            ],
            outputs=[io.Model.Output(tooltip="The model, guided in this part of the run only.")],
        )

    @classmethod
    def execute(cls, model, start_percent, end_percent) -> io.NodeOutput:
        return io.NodeOutput(with_guidance_window(model, start_percent, end_percent))


class CogVideoXAttention(io.ComfyNode):
    """Another of the host's attention kernels for one model."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXAttention",
            display_name="CogVideoX Attention",
            category=CATEGORY,
            description=(
                "Attends with another kernel than the one ComfyUI was started with, for this model alone. sage and "
                "sage3 multiply in eight and four bits, faster approximations; the others are exact to rounding."
            ),
            search_aliases=["SageAttention", "Patch Sage Attention", "FlashAttention", "xformers", "sdpa", "speed"],
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TOOLTIP),
                io.Combo.Input(
                    "attention",
                    options=list(ATTENTIONS),
                    default="sage",
                    tooltip=(
                        "The kernel, where ComfyUI has it (each needs its package); else ComfyUI's own choice is used "
                        "and the node says so. sage: 8 bits. sage3: 4 bits, Blackwell cards. flash, xformers, "
                        "pytorch: exact."
                    ),
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with this attention.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, attention) -> io.NodeOutput:
        model, note = with_attention(model, attention)
        show_on_node(cls, note)
        return io.NodeOutput(model)


class CogVideoXEnhanceVideo(io.ComfyNode):
    """Enhance-A-Video: frames that attend to each other more."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXEnhanceVideo",
            display_name="CogVideoX Enhance Video",
            category=CATEGORY,
            description=(
                "Enhance-A-Video: strengthens attention where frames already look at each other, for steadier motion "
                "and more detail without training. A few percent slower."
            ),
            search_aliases=["Enhance-A-Video", "FETA", "CogVideoEnhanceAVideo", "temporal consistency"],
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TOOLTIP),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Strength, 0 to 100, as frames added to those of the video. 0 is off, 1 mild, 4 strong.",
                ),
                start_input(),
                end_input(),
            ],
            outputs=[io.Model.Output(tooltip="The model with its attention strengthened.")],
        )

    @classmethod
    def execute(cls, model, weight, start_percent, end_percent) -> io.NodeOutput:
        return io.NodeOutput(with_enhanced_video(model, weight, start_percent, end_percent))


NODES = [CogVideoXStepCache, CogVideoXGuidanceWindow, CogVideoXAttention, CogVideoXEnhanceVideo]
