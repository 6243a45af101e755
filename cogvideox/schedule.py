"""The noise schedule: levels, which of them a run visits, and guidance that changes over a run.

CogVideoX (arXiv 2408.06072) keeps the betas of latent diffusion, rescales them to zero terminal SNR and samples with
trailing steps. Timesteps t are 0..999, alpha_bar is the signal's share of the variance, sigma = sqrt((1 - a) / a).
"""

from __future__ import annotations

import math

import torch

# scheduler/scheduler_config.json of every released model; `scaled_linear`, `trailing`, `rescale_betas_zero_snr`.
BETA_START = 0.00085
BETA_END = 0.012
TRAIN_STEPS = 1000

# alpha_bar 0 has no finite sigma. The host writes this value in its place (ComfyUI comfy/model_sampling.py,
# rescale_zero_terminal_snr_sigmas), which makes sigma_max 4518.76.
TERMINAL_ALPHA = 4.8973451890853435e-08
TERMINAL_SIGMA = math.sqrt((1 - TERMINAL_ALPHA) / TERMINAL_ALPHA)

# Values of the `schedule` and `dynamic_cfg` widgets.
COSINE_OVER_STEPS = "cosine over steps"
REFERENCE = "reference"


def scaled_linear_betas() -> torch.Tensor:
    """Return the training betas [1000], linear in sqrt(beta), as the code of latent diffusion (arXiv 2112.10752)."""
    return torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAIN_STEPS, dtype=torch.float64) ** 2


def shift_snr(alphas_cumprod: torch.Tensor, scale: float) -> torch.Tensor:
    """Divide the signal-to-noise ratio by `scale`: SNR' = SNR / s, that is a' = a / (s + (1 - s) a).

    CogVideoX-2B was trained with s = 3, the other models with 1. The idea is the timestep shift of arXiv 2403.03206.
    """
    return alphas_cumprod / (scale + (1 - scale) * alphas_cumprod)


def rescale_to_zero_terminal_snr(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """Move sqrt(alpha_bar) so that the last one is 0 and the first keeps its value (arXiv 2305.08891, algorithm 1)."""
    signal = alphas_cumprod.sqrt()
    first, last = signal[0], signal[-1]
    return ((signal - last) * (first / (first - last))) ** 2


def alphas_cumprod(snr_shift_scale: float) -> torch.Tensor:
    """Return alpha_bar [1000] in float64 on the CPU: 0.999 at t = 0, exactly 0 at t = 999."""
    unshifted = torch.cumprod(1 - scaled_linear_betas(), dim=0)
    return rescale_to_zero_terminal_snr(shift_snr(unshifted, snr_shift_scale))


def sigmas(snr_shift_scale: float) -> torch.Tensor:
    """Return sigma [1000] in float32 on the CPU, rising with t; the last stands for infinity (`TERMINAL_SIGMA`)."""
    signal = alphas_cumprod(snr_shift_scale)
    signal[-1] = TERMINAL_ALPHA
    return ((1 - signal) / signal).sqrt().float()


def trailing_timesteps(steps: int) -> torch.Tensor:
    """Return the `steps` falling timesteps of "trailing" spacing (arXiv 2305.08891, table 2), int64.

    t_i = round(1000 - i * 1000 / steps) - 1, so the first is always 999, the one with zero SNR. Equal to diffusers,
    whose list has one entry too many, t = -1, for 62 counts (61, 103, ...): float rounding, not a step.
    """
    if not 1 <= steps <= TRAIN_STEPS:
        raise ValueError(f"CogVideoX has {TRAIN_STEPS} noise levels: set 1 to {TRAIN_STEPS} steps, not {steps}.")
    # As numpy.arange computes it: for 50 counts (48, 96, ...) the last bit decides how a tie at .5 rounds.
    gap = (TRAIN_STEPS - TRAIN_STEPS / steps) - TRAIN_STEPS
    return torch.tensor([round(TRAIN_STEPS + i * gap) - 1 for i in range(steps)])


def trailing_sigmas(sigmas: torch.Tensor, steps: int, denoise: float = 1.0) -> torch.Tensor:
    """Return the noise levels [steps + 1] of a run over the table `sigmas` [1000]; the last is 0.

    `denoise` is read as the host reads it (KSampler, BasicScheduler): `steps` are run, the last ones of
    int(steps / denoise). diffusers' `strength` instead shortens: N steps at strength s run int(N * s) of them, which is
    `steps = int(N * s)` here whenever int(steps / denoise) is N. Nothing is left to do at denoise 0: an empty tensor.

    Each step goes from one entry to the next and the last ends without noise, as in the original (THUDM/CogVideo
    sat/sgm/modules/diffusionmodules/sampling.py). diffusers instead steps from t to t - 1000 // N, which is not the
    next t where N does not divide 1000; that is not followed.
    """
    if denoise <= 0:
        return sigmas.new_empty(0)
    total = steps if denoise >= 1 else int(steps / denoise)
    if total > TRAIN_STEPS:
        raise ValueError(
            f"CogVideoX has {TRAIN_STEPS} noise levels; {steps} steps at denoise {denoise:g} are the last of {total}. "
            f"Use at most {int(TRAIN_STEPS * min(denoise, 1))} steps."
        )
    timesteps = trailing_timesteps(total)[-steps:]
    return torch.cat((sigmas[timesteps], sigmas.new_zeros(1)))


def dynamic_cfg_cosine(cfg: float, steps: int, index: int) -> float:
    """Return the guidance of step `index` (0 first): 1 + cfg (1 - cos(pi (index / steps)^5)) / 2.

    Rises from 1 at the first step, where the layout forms, towards 1 + cfg at the last. This is `dynamic_cfg_reference`
    with t counted in steps left (t = steps - index), as `step_index / num_steps` in the original DynamicCFG
    (THUDM/CogVideo sat/sgm/modules/diffusionmodules/guiders.py) names it.
    """
    return 1 + cfg * (1 - math.cos(math.pi * (index / steps) ** 5)) / 2


def dynamic_cfg_reference(cfg: float, steps: int, timestep: int) -> float:
    """Return the guidance both references use at `timestep` 0..999: 1 + cfg (1 - cos(pi ((steps - t) / steps)^5)) / 2.

    Both (diffusers pipeline_cogvideox.py, and SAT's `num_steps - timestep`) subtract a timestep in thousandths from a
    count of steps. The angle turns many times, so the value jumps about in [1, 1 + cfg] until t is below 2 steps, and
    is near 1 around t = steps. Kept as it is, because published videos were made with it.
    """
    return 1 + cfg * (1 - math.cos(math.pi * ((steps - timestep) / steps) ** 5.0)) / 2
