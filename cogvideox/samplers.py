"""The two samplers CogVideoX was released with, in the host's form.

DDIM (arXiv 2010.02502) with eta 0, and the SDE form of DPM-Solver++ 2M (arXiv 2211.01095). Each step goes from
sigmas[i] to sigmas[i + 1], as in the original (SAT). `CogVideoXDDIMScheduler` and `CogVideoXDPMScheduler` of diffusers
do the same where the number of steps divides 1000, and elsewhere miss the next level by up to one timestep.

The signature is k-diffusion's, and so is the space: x = x0 + sigma * noise, which is the reference's latent times
sqrt(1 + sigma^2). `model(x, sigma, **extra_args)` returns x0. At `TERMINAL_SIGMA` the reference has no signal at all,
so that level counts as infinite here: all of x is noise.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from itertools import pairwise

import torch

from .schedule import TERMINAL_SIGMA

NoiseSampler = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _is_terminal(sigma: float) -> bool:
    # The next level below is 2254 (5B) or 4006 (2B); float32 and a host's interpolation move the top by far less.
    return sigma > 0.99 * TERMINAL_SIGMA


@torch.no_grad()
def sample_cogvideox_ddim(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Run DDIM with eta 0 over the falling or rising levels `sigmas` [n + 1] and return x at the last of them.

    One step keeps x0 and the noise e = (x - x0) / sigma and rescales the latter: x' = x0 + sigma' e.
    """
    extra_args = extra_args or {}
    levels = sigmas.tolist()
    batch = x.new_ones(x.shape[0])
    for i, (sigma, following) in enumerate(pairwise(levels)):
        denoised = model(x, sigmas[i] * batch, **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        noise = x / math.sqrt(1 + sigma**2) if _is_terminal(sigma) else (x - denoised) / sigma
        x = denoised + following * noise
    return x


def step_noise(x: torch.Tensor, seed: int | None) -> NoiseSampler:
    """Return the default noise of the stochastic sampler: normal, shaped like `x`, a function of seed and level only.

    Drawn on the CPU, so every device gives the same numbers. The generator is not seeded with `seed` itself: the host
    draws the initial noise so (comfy/sample.py prepare_noise), in the same shape, and the first step would add that
    very tensor again. Nor with seed + n, which is the initial noise of another seed. Seeding per level also lets a run
    that is split over two samplers draw what the whole run draws, instead of the first half's noise twice.
    """

    def sample(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        generator = None  # without a seed, the caller's torch.manual_seed rules
        if seed is not None:
            key = zlib.crc32(struct.pack("<Qd", seed % 2**64, float(sigma)))
            generator = torch.Generator().manual_seed(key)
        return torch.randn(x.shape, generator=generator).to(x)

    return sample


def _second_order(levels: list[float], i: int) -> float:
    """Return the weight 1 / 2r = h / 2 h_last of the last change of x0, with h the gain in log(1 / sigma) of step i.

    0, which is a first-order step, where there is no step before, where that step began at the infinite level
    (h_last is infinite), and where the noise ends (h is).
    """
    if i == 0 or levels[i + 1] == 0 or _is_terminal(levels[i - 1]) or levels[i - 1] == levels[i]:
        return 0.0
    return math.log(levels[i] / levels[i + 1]) / (2 * math.log(levels[i - 1] / levels[i]))


@torch.no_grad()
def sample_cogvideox_dpm(model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None):
    """Run the SDE form of DPM-Solver++ 2M over the falling levels `sigmas` [n + 1] and return x at the last of them.

    With q = sigma' / sigma and D the x0 extrapolated from this step and the one before:
    x' = q^2 x + (1 - q^2) D + sigma' sqrt(1 - q^2) n, n normal. The reference's multipliers (diffusers get_mult) are
    these in its own unit-variance space. The reference draws twice in second-order steps and drops the first draw; here
    each step draws once.
    """
    extra_args = extra_args or {}
    levels = sigmas.tolist()
    if any(following > sigma for sigma, following in pairwise(levels)):
        raise ValueError(
            "The CogVideoX dpm sampler needs falling sigmas, and these rise. Use ddim, which goes both ways."
        )
    noise_sampler = noise_sampler or step_noise(x, extra_args.get("seed"))
    batch = x.new_ones(x.shape[0])
    old_denoised = None
    for i, (sigma, following) in enumerate(pairwise(levels)):
        denoised = model(x, sigmas[i] * batch, **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        target = denoised
        if weight := _second_order(levels, i):
            target = denoised + weight * (denoised - old_denoised)
        kept = 0.0 if _is_terminal(sigma) or following == 0 else (following / sigma) ** 2
        x = kept * x + (1 - kept) * target
        if following > 0:
            x = x + following * math.sqrt(1 - kept) * noise_sampler(sigmas[i], sigmas[i + 1])
        old_denoised = denoised
    return x


@torch.no_grad()
def sample_cogvideox_one_step(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Take a clean video x for a noisy latent at the level sigmas[0] and return the x0 predicted from it, in one step.

    How DOVE (arXiv 2505.16239) and SparkVSR (arXiv 2603.16864) restore video, at t = 399 of the schedule: with v
    predicted from x itself, x0 = sqrt(a) x - sqrt(1 - a) v. The levels behind the first are passed over.
    """
    latent = x * math.sqrt(1 + float(sigmas[0]) ** 2)  # so that the model, which divides by this, sees x as it is
    denoised = model(latent, sigmas[0] * x.new_ones(x.shape[0]), **(extra_args or {}))
    if callback is not None:
        last = len(sigmas) - 2
        callback({"x": x, "i": last, "sigma": sigmas[0], "sigma_hat": sigmas[0], "denoised": denoised})
    return denoised


SAMPLERS = {"ddim": sample_cogvideox_ddim, "dpm": sample_cogvideox_dpm}
# For a video that was encoded and not noised.
RESTORERS = {"one step": sample_cogvideox_one_step}
