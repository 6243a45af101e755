"""MODEL patches beyond the reference: reused steps, guidance for part of a run, other attention, frames tied closer.

Each is a clone of MODEL with wrappers of the host on it. What a run remembers is made when it starts, travels in its
own `transformer_options` and ends with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import comfy.ldm.modules.attention as host_attention
import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP

from ...cogvideox.patches import (
    FIRST_BLOCK,
    TEACACHE,
    TEACACHE_POLYNOMIALS,
    cross_frame_scale,
    polynomial,
    relative_change,
    teacache_model,
)
from .sampling import require_cogvideox

log = logging.getLogger(__name__)

ATTENTIONS = ("sage", "sage3", "flash", "xformers", "pytorch")  # the host's names for its kernels
MAIN_DEVICE, OFFLOAD_DEVICE = CACHE_DEVICES = ("main device", "offload device")

# Names of what these patches put into a run's wrappers and options.
STEP_CACHE = "cogvideox_step_cache"
GUIDANCE_WINDOW = "cogvideox_guidance_window"
ENHANCE_VIDEO = "cogvideox_enhance_video"
CROSS_FRAME_SCALE = "cogvideox_cross_frame_scale"


@dataclass(frozen=True)
class Window:
    """The part of the noise schedule between two percents, as the host counts them: 0 is pure noise, 1 none."""

    start_percent: float
    end_percent: float

    def __post_init__(self):
        if self.start_percent >= self.end_percent:
            raise ValueError(
                f"start_percent is {self.start_percent:g} and end_percent {self.end_percent:g}, so nothing lies "
                "between them. Set start_percent below end_percent."
            )

    @property
    def whole(self) -> bool:
        """Whether it is all of the schedule, which nobody needs to wait for the device to tell sigma for."""
        return (self.start_percent, self.end_percent) == (0, 1)

    def holds(self, model, sigma: torch.Tensor) -> bool:
        """Say whether the noise level `sigma` [B] lies in this part of the schedule of `model`."""
        if self.whole:
            return True
        to_sigma = model.model_sampling.percent_to_sigma
        return to_sigma(self.end_percent) <= float(sigma.max()) <= to_sigma(self.start_percent)


def patched(model, key: str, wrappers: dict[str, Callable]):
    """Return a clone of MODEL with one wrapper of each kind under `key`; an earlier patch of that name is replaced."""
    require_cogvideox(model)
    model = model.clone()
    for kind, wrapper in wrappers.items():
        model.remove_wrappers_with_key(kind, key)
        model.add_wrapper_with_key(kind, key, wrapper)
    return model


# --- step cache ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepCacheSettings:
    """What the node was set to; `coefficients` are TeaCache's polynomial of the model."""

    mode: str
    threshold: float
    window: Window
    cache_device: str
    coefficients: tuple[float, ...]


@dataclass
class StepCache:
    """What one run remembers of its blocks: for each prompt and context window, what they added to the video tokens.

    The first prompt of an evaluation decides for all of them, so that guidance never mixes a new and an old one; they
    come in the same order whether the host runs them as one batch or one after the other. What a noise level does not
    meet is dropped, so that windows which move do not pile up.
    """

    settings: StepCacheSettings
    last_sigma: float
    evaluations: int = 0
    skipped: int = 0
    sigma: float = float("inf")
    active: bool = False
    skipping: bool | None = None
    residuals: dict[tuple, torch.Tensor] = field(default_factory=dict)
    signals: dict[tuple, torch.Tensor] = field(default_factory=dict)
    distances: dict[tuple, float] = field(default_factory=dict)
    met: set[tuple] = field(default_factory=set)

    def begin(self, model, sigma: torch.Tensor) -> None:
        """Start an evaluation of the model; going back up to more noise is a new beginning."""
        noise = float(sigma.max())
        self.active = self.settings.window.holds(model, sigma)
        if not self.active or noise > self.sigma:
            self.met.clear()
        if not self.active or noise != self.sigma:
            self.drop_all_but(self.met)
            self.met.clear()
        self.sigma, self.skipping = noise, None
        self.evaluations += 1

    def drop_all_but(self, keys: set[tuple]) -> None:
        """Let go of the tensors of every other key."""
        for held in (self.residuals, self.signals, self.distances):
            for key in held.keys() - keys:
                del held[key]

    @torch.compiler.disable
    def reuses(self, signal: torch.Tensor, x: torch.Tensor, options: dict[str, Any]) -> bool:
        """Decide from `signal` whether the blocks are left out; add to the video of x [B, L + S, D] if so."""
        text, keys = options["text_tokens"], self.keys(options)
        self.met.update(keys)
        videos = [part[:, text:] for part in x.chunk(len(keys))]
        ready = all(self.fits(key, video) for key, video in zip(keys, videos, strict=True))
        if self.skipping is None:
            self.skipping = self.decide(keys[0], signal, ready)
            self.skipped += self.skipping
        if not (self.skipping and ready):
            return False
        for key, video in zip(keys, videos, strict=True):
            video += self.residuals[key].to(video)
        return True

    @torch.compiler.disable
    def keep(self, residual: torch.Tensor, options: dict[str, Any]) -> None:
        """Remember what the blocks have added to the video tokens [B, S, D]."""
        keys = self.keys(options)
        self.residuals.update(zip(keys, map(self.kept, residual.chunk(len(keys))), strict=True))

    def keys(self, options: dict[str, Any]) -> list[tuple]:
        """Return what tells the prompts of a batch from others: frames of a context window, blocks that are patched."""
        window = options.get("context_window")
        frames = None if window is None else tuple(window.index_list)
        blocks = frozenset(options.get("patches_replace", {}).get("dit", {}))
        return [(prompt, frames, blocks) for prompt in options["uuids"]]

    def decide(self, key: tuple, signal: torch.Tensor, ready: bool) -> bool:
        """Say whether the blocks may be left out: whether `signal` has hardly changed since they ran."""
        before, distance = self.signals.get(key), float("inf")
        if before is not None and before.shape == signal.shape:
            distance = relative_change(signal, before.to(signal))
            if self.settings.mode == TEACACHE:
                # The polynomial is negative for very small changes; as a distance it counts by its size.
                change = abs(polynomial(self.settings.coefficients, distance))
                distance = self.distances.get(key, 0.0) + change
        skip = ready and distance < self.settings.threshold and self.sigma > self.last_sigma
        self.distances[key] = distance if skip else 0.0
        if self.settings.mode == TEACACHE or not skip:
            self.signals[key] = self.kept(signal)
        return skip

    def fits(self, key: tuple, video: torch.Tensor) -> bool:
        """Say whether there is something to add to the tokens `video` [B, S, D]."""
        return key in self.residuals and self.residuals[key].shape == video.shape

    def kept(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return `tensor` where the artist wants the cache."""
        if self.settings.cache_device == OFFLOAD_DEVICE:
            return tensor.to(comfy.model_management.unet_offload_device())
        return tensor


def run_cached(run: Callable, x: torch.Tensor, emb: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """Run the blocks on the joint sequence x [B, L + S, D], or add to its video what they added last time.

    A compiler breaks its graph at the cache and compiles what lies between.
    """
    cache, text = options[STEP_CACHE], options["text_tokens"]
    if not cache.active:
        return run(x)
    leader = slice(0, x.shape[0] // len(options["uuids"]))
    signal, first = emb[leader].clone(), 0
    if cache.settings.mode == FIRST_BLOCK:
        before = x[leader, text:].clone()  # blocks may overwrite x
        x, first = run(x, 0, 1), 1
        signal = x[leader, text:] - before
    if cache.reuses(signal, x, options):
        return x
    before = x[:, text:].clone()
    x = run(x, first)
    cache.keep(x[:, text:] - before, options)
    return x


def with_step_cache(model, mode: str, threshold: float, start_percent: float, end_percent: float, cache_device: str):
    """Return a clone of MODEL that leaves out the blocks where they would add what they added before, and a note."""
    variant = require_cogvideox(model).variant
    nearest, published = teacache_model(variant.transformer)
    note = ""
    if mode == TEACACHE and not published:
        note = f"TeaCache has no published polynomial for {variant.name}; that of {nearest.name} is used."
    coefficients = TEACACHE_POLYNOMIALS[nearest]
    settings = StepCacheSettings(mode, threshold, Window(start_percent, end_percent), cache_device, coefficients)
    if threshold == 0:
        return model.clone(), note

    def outer_sample(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        options = executor.class_obj.model_options["transformer_options"]  # the host made them for this run
        cache = StepCache(settings, last_sigma=float(sigmas[-2:][0]))
        options.update({STEP_CACHE: cache, "blocks_override": run_cached})
        try:
            return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            cache.drop_all_but(set())
            del options[STEP_CACHE], options["blocks_override"]
            log.info("CogVideoX Step Cache (%s): %d of %d steps skipped.", mode, cache.skipped, cache.evaluations)

    def calc_cond_batch(executor, model, conds, x_in, timestep, model_options):
        cache = model_options["transformer_options"].get(STEP_CACHE)
        if cache is not None:
            cache.begin(model, timestep)
        return executor(model, conds, x_in, timestep, model_options)

    wrappers = {WrappersMP.OUTER_SAMPLE: outer_sample, WrappersMP.CALC_COND_BATCH: calc_cond_batch}
    return patched(model, STEP_CACHE, wrappers), note


# --- guidance window -----------------------------------------------------------------------------------------------


def with_guidance_window(model, start_percent: float, end_percent: float):
    """Return a clone of MODEL that runs the negative prompt, and so guidance, only between the two percents."""
    window = Window(start_percent, end_percent)

    def calc_cond_batch(executor, model, conds, x_in, timestep, model_options):
        # Other guiders ask for more than [positive, negative] or for one alone; they know what they need.
        guided = len(conds) == 2 and None not in conds
        if not guided or window.holds(model, timestep):
            return executor(model, conds, x_in, timestep, model_options)
        positive = executor(model, [conds[0], None], x_in, timestep, model_options)[0]
        # Equal predictions guide nowhere: whatever the guidance, u + (c - u) * cfg is c.
        return [positive, positive]

    return patched(model, GUIDANCE_WINDOW, {WrappersMP.CALC_COND_BATCH: calc_cond_batch})


# --- attention -----------------------------------------------------------------------------------------------------


def with_attention(model, name: str):
    """Return a clone of MODEL that attends with the host's kernel `name`, and a note where that is not available."""
    require_cogvideox(model)
    model = model.clone()
    kernel = host_attention.get_attention_function(name, None)
    if kernel is None:
        note = f"{name} attention is not available here, so ComfyUI's own choice is used."
        log.warning("CogVideoX Attention: %s", note)
        return model, note

    def attend(attention: Callable, *args, **kwargs) -> torch.Tensor:
        return kernel(*args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = attend
    return model, ""


# --- Enhance-A-Video -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EnhanceVideo:
    """The strength of Enhance-A-Video and the attention override that was there before it."""

    weight: float
    override: Callable | None


def with_enhanced_video(model, weight: float, start_percent: float, end_percent: float):
    """Return a clone of MODEL whose attention output grows with the attention between frames."""
    require_cogvideox(model)
    window = Window(start_percent, end_percent)
    if weight == 0:
        return model.clone()

    def calc_cond_batch(executor, model, conds, x_in, timestep, model_options):
        if window.holds(model, timestep):
            options = dict(model_options["transformer_options"])
            patches = dict(options.get("patches", {}))
            patches["attn1_output_patch"] = [*patches.get("attn1_output_patch", ()), scale_video]
            enhance = EnhanceVideo(weight, options.get("optimized_attention_override"))
            options.update({ENHANCE_VIDEO: enhance, "optimized_attention_override": measure, "patches": patches})
            model_options = {**model_options, "transformer_options": options}
        return executor(model, conds, x_in, timestep, model_options)

    return patched(model, ENHANCE_VIDEO, {WrappersMP.CALC_COND_BATCH: calc_cond_batch})


def measure(attention: Callable, q: torch.Tensor, k: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    """Attend as before and leave the scale of each video [B] for `scale_video`; an attention override of the host."""
    options = kwargs["transformer_options"]
    enhance = options[ENHANCE_VIDEO]
    options[CROSS_FRAME_SCALE] = cross_frame_scale(q, k, options["token_grid"], options["text_tokens"], enhance.weight)
    if enhance.override is not None:
        return enhance.override(attention, q, k, *args, **kwargs)
    return attention(q, k, *args, **kwargs)


def scale_video(x: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """Scale the video tokens of an attention's output x [B, L + S, D]."""
    scale, text = options[CROSS_FRAME_SCALE].to(x.dtype), options["text_tokens"]
    return torch.cat((x[:, :text], x[:, text:] * scale[:, None, None]), dim=1)
