"""Sampling as CogVideoX's authors do it, in the host's own sockets."""

from __future__ import annotations

from comfy_api.latest import io

from ..cogvideox.samplers import RESTORERS, SAMPLERS
from .host.sampling import DYNAMIC_CFG, sample, sampler, scheduler_sigmas, with_dynamic_cfg

CATEGORY = "CogVideoX/sampling"
MAX_STEPS = 1000
OFF = "off"

DENOISE_TOOLTIP = (
    "Share of the noise to take off, 0 to 1. 1 makes a new video; 0.5 to 0.8 repaints the one in the latent."
)
SAMPLER_TOOLTIP = "ddim: the authors' choice for 2B. dpm: theirs for 5B and 1.5, with fresh noise in each step."
CFG_SCHEDULE_TOOLTIP = (
    "cosine over steps: guidance rises smoothly from 1 to cfg + 1. reference: the formula of the released code, which "
    "takes the timestep for the step and so jumps between 1 and cfg + 1."
)


def steps_input() -> io.Input:
    """Return the widget for the number of steps."""
    return io.Int.Input(
        "steps", default=50, min=1, max=MAX_STEPS, tooltip=f"Denoising steps, 1 to {MAX_STEPS}. 50 is the reference."
    )


def denoise_input() -> io.Input:
    """Return the widget for how much of the noise schedule is run."""
    return io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=DENOISE_TOOLTIP)


class CogVideoXScheduler(io.ComfyNode):
    """The reference's timesteps as SIGMAS."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXScheduler",
            display_name="CogVideoX Scheduler",
            category=CATEGORY,
            description=(
                "The reference's timesteps (trailing spacing) on the model's own noise schedule, for any step count. "
                "For SamplerCustomAdvanced and its relatives."
            ),
            search_aliases=["BasicScheduler", "sigmas", "trailing"],
            inputs=[
                io.Model.Input("model", tooltip="A CogVideoX model; its noise schedule is used."),
                steps_input(),
                denoise_input(),
            ],
            outputs=[io.Sigmas.Output(tooltip="Noise levels, one more than steps.")],
        )

    @classmethod
    def execute(cls, model, steps, denoise) -> io.NodeOutput:
        return io.NodeOutput(scheduler_sigmas(model, steps, denoise))


class CogVideoXSamplerSelect(io.ComfyNode):
    """The authors' samplers as SAMPLER."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXSamplerSelect",
            display_name="CogVideoX Sampler Select",
            category=CATEGORY,
            description="CogVideoX's own samplers for SamplerCustomAdvanced and its relatives.",
            search_aliases=["KSamplerSelect", "CogVideoXDPMScheduler", "CogVideoXDDIM", "DOVE", "SparkVSR"],
            inputs=[
                io.Combo.Input(
                    "sampler_name",
                    options=[*SAMPLERS, *RESTORERS],
                    default="dpm",
                    tooltip=SAMPLER_TOOLTIP
                    + " one step: restores an encoded video with DOVE or SparkVSR; needs DisableNoise.",
                )
            ],
            outputs=[io.Sampler.Output(tooltip="The sampler.")],
        )

    @classmethod
    def execute(cls, sampler_name) -> io.NodeOutput:
        return io.NodeOutput(sampler(sampler_name))


class CogVideoXDynamicCFG(io.ComfyNode):
    """Guidance that changes while sampling, for any sampler."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXDynamicCFG",
            display_name="CogVideoX Dynamic CFG",
            category=CATEGORY,
            description=(
                "Lets the guidance (the sampler's cfg) change from step to step, as the authors advise for 5B and 1.5 "
                "with dpm. Works with every sampler; put it right before it."
            ),
            search_aliases=["guidance schedule", "use_dynamic_cfg"],
            inputs=[
                io.Model.Input("model", tooltip="A CogVideoX model."),
                io.Combo.Input("schedule", options=list(DYNAMIC_CFG), tooltip=CFG_SCHEDULE_TOOLTIP),
            ],
            outputs=[io.Model.Output(tooltip="The model with its guidance scheduled.")],
        )

    @classmethod
    def execute(cls, model, schedule) -> io.NodeOutput:
        return io.NodeOutput(with_dynamic_cfg(model, schedule))


class CogVideoXSampler(io.ComfyNode):
    """Everything the reference pipeline does, in one node."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXSampler",
            display_name="CogVideoX Sampler",
            category=CATEGORY,
            description=(
                "Samples as the reference does: its timesteps, samplers and dynamic guidance in one node. Takes and "
                "gives what KSampler does, and KSampler works as well."
            ),
            search_aliases=["CogVideoSampler", "KSampler"],
            inputs=[
                io.Model.Input("model", tooltip="A CogVideoX model."),
                io.Conditioning.Input("positive", tooltip="What the video shows."),
                io.Conditioning.Input("negative", tooltip="What it does not show; may be empty text."),
                io.Latent.Input("latent_image", tooltip="Empty video, or an encoded one with denoise below 1."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noise, 0 to 2^64 - 1. The same seed gives the same video.",
                ),
                steps_input(),
                io.Float.Input(
                    "cfg",
                    default=6.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Guidance, 0 to 30. 6 is the reference; 1 leaves out the negative prompt, half the work.",
                ),
                io.Combo.Input("sampler_name", options=list(SAMPLERS), default="dpm", tooltip=SAMPLER_TOOLTIP),
                io.Combo.Input(
                    "dynamic_cfg",
                    options=[OFF, *DYNAMIC_CFG],
                    default=OFF,
                    tooltip="off: cfg throughout. "
                    + CFG_SCHEDULE_TOOLTIP
                    + " Replaces what CogVideoX Dynamic CFG has set.",
                ),
                denoise_input(),
            ],
            outputs=[io.Latent.Output(tooltip="The video as latents, for VAE Decode.")],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, latent_image, seed, steps, cfg, sampler_name, dynamic_cfg, denoise
    ) -> io.NodeOutput:
        if dynamic_cfg != OFF:
            model = with_dynamic_cfg(model, dynamic_cfg)
        out = sample(model, positive, negative, latent_image, seed, steps, cfg, sampler_name, denoise)
        return io.NodeOutput(out)


NODES = [CogVideoXScheduler, CogVideoXSamplerSelect, CogVideoXDynamicCFG, CogVideoXSampler]
