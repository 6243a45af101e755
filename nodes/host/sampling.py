"""SIGMAS, SAMPLER, guidance and a whole run, made of the host's own sampling objects."""

from __future__ import annotations

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch

from ...cogvideox.samplers import RESTORERS, SAMPLERS
from ...cogvideox.schedule import (
    COSINE_OVER_STEPS,
    REFERENCE,
    dynamic_cfg_cosine,
    dynamic_cfg_reference,
    trailing_sigmas,
)
from .model import CogVideoX
from .progress import reported

DYNAMIC_CFG = (COSINE_OVER_STEPS, REFERENCE)


def require_cogvideox(model) -> CogVideoX:
    """Return the model inside MODEL, or raise where it is not CogVideoX."""
    if not isinstance(model.model, CogVideoX):
        raise ValueError(
            f"This node needs a CogVideoX model and got another one ({type(model.model).__name__}). "
            "Connect the MODEL of Load CogVideoX Model or Load CogVideoX Pipeline."
        )
    return model.model


def scheduler_sigmas(model, steps: int, denoise: float = 1.0) -> torch.Tensor:
    """Return SIGMAS [steps + 1] with the reference's trailing spacing on the model's own noise schedule."""
    require_cogvideox(model)
    return trailing_sigmas(model.get_model_object("model_sampling").sigmas.cpu(), steps, denoise)


def sampler(name: str) -> comfy.samplers.KSAMPLER:
    """Return SAMPLER "ddim" or "dpm" as CogVideoX defines them, or "one step" as its restoring relatives do."""
    return comfy.samplers.KSAMPLER({**SAMPLERS, **RESTORERS}[name])


def with_dynamic_cfg(model, schedule: str):
    """Return a clone of MODEL whose guidance moves between 1 and the sampler's cfg while sampling."""
    require_cogvideox(model)
    model = model.clone()
    model.set_model_sampler_cfg_function(cosine_cfg if schedule == COSINE_OVER_STEPS else reference_cfg)
    return model


def cosine_cfg(args: dict) -> torch.Tensor:
    sigmas = args["model_options"]["transformer_options"]["sample_sigmas"]
    # Samplers that evaluate between the steps stay on the step they are in.
    index = int((sigmas[:-1] >= args["sigma"].max().to(sigmas) * (1 - 1e-5)).sum()) - 1
    return guided(args, dynamic_cfg_cosine(args["cond_scale"], len(sigmas) - 1, max(index, 0)))


def reference_cfg(args: dict) -> torch.Tensor:
    steps = len(args["model_options"]["transformer_options"]["sample_sigmas"]) - 1
    timestep = int(args["model"].model_sampling.timestep(args["sigma"]).max())
    return guided(args, dynamic_cfg_reference(args["cond_scale"], steps, timestep))


def guided(args: dict, cfg: float) -> torch.Tensor:
    """Return the guided prediction in the form the host expects, x minus denoised."""
    if args["cond_scale"] == 1:
        return args["cond"]  # the host has skipped the negative prompt; the reference does not guide at 1 either
    return args["uncond"] + (args["cond"] - args["uncond"]) * cfg


@reported("CogVideoX Sampler")
def sample(
    model, positive, negative, latent: dict, seed: int, steps: int, cfg: float, name: str, denoise: float
) -> dict:
    """Run the reference's sampler on LATENT with everything the host adds: noise, mask, preview, interruption."""
    sigmas = scheduler_sigmas(model, steps, denoise)
    samples = comfy.sample.fix_empty_latent_channels(
        model, latent["samples"], latent.get("downscale_ratio_spacial"), latent.get("downscale_ratio_temporal")
    )
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    samples = comfy.sample.sample_custom(
        model,
        noise,
        cfg,
        sampler(name),
        sigmas,
        positive,
        negative,
        samples,
        noise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    out = {key: value for key, value in latent.items() if not key.startswith("downscale_ratio")}
    return {**out, "samples": samples}
