"""Tiny pipelines of every variant, in our host form and as the diffusers pipeline, on the same weights."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import comfy.sample
import diffusers
import torch
from pack.demo import tiny_pipeline
from pack.nodes.host import loading
from pack.nodes.host.model import leading_noise
from pack.nodes.host.text_encoder import encode_prompt
from torch.utils._pytree import tree_leaves

WIDTH, HEIGHT, FRAMES = tiny_pipeline.WIDTH, tiny_pipeline.HEIGHT, tiny_pipeline.FRAMES
VARIANTS = ("2b", "5b", "5b-i2v", "1.5", "1.5-i2v")
TEXT_TO_VIDEO = ("2b", "5b", "1.5")
IMAGE_TO_VIDEO = ("5b-i2v", "1.5-i2v")
# Where model files lie that tests share; gone with the process.
WRITTEN = TemporaryDirectory(prefix="cogvideox-models-", ignore_cleanup_errors=True)


@cache
def folder(variant: str) -> Path:
    """Return the folder of the tiny pipeline, written once; its weights are loud enough for every part to matter."""
    return tiny_pipeline.write(Path(WRITTEN.name, variant), variant)


@cache
def ours(variant: str, override: str = "auto"):
    """Return MODEL, CLIP and VAE of the variant, loaded once."""
    return loading.load_pipeline(folder(variant), "fp32", override)


@cache
def theirs(variant: str, scheduler=diffusers.CogVideoXDDIMScheduler, kind: type | None = None):
    """Return diffusers' pipeline on the same folder, without its text encoder."""
    if kind is None:
        kind = diffusers.CogVideoXImageToVideoPipeline if variant in IMAGE_TO_VIDEO else diffusers.CogVideoXPipeline
    pipe = kind.from_pretrained(folder(variant), tokenizer=None, text_encoder=None)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def prompts(variant: str):
    """Return the host's CONDITIONING of a positive and a negative prompt."""
    clip = ours(variant)[1]
    return encode_prompt(clip, "a red ball rolls left").conditioning, encode_prompt(clip, "").conditioning


def embeddings(variant: str) -> dict[str, torch.Tensor]:
    """Return the same prompts as diffusers takes them."""
    positive, negative = prompts(variant)
    return dict(prompt_embeds=positive[0][0], negative_prompt_embeds=negative[0][0])


def noise_of(latent: torch.Tensor, seed: int, leading: int) -> torch.Tensor:
    """Return the noise our run starts from, in diffusers' layout [B, T, C, H, W]."""
    noise = comfy.sample.prepare_noise(latent, seed)
    return torch.cat((leading_noise(noise, leading, seed), noise), dim=2).movedim(1, 2)


def sampled(pipe, variant: str, steps: int, cfg: float, **inputs) -> torch.Tensor:
    """Return diffusers' final latents [B, 16, T, H, W], unscaled, the leading one included."""
    latents = pipe(
        **embeddings(variant),
        **inputs,
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=steps,
        guidance_scale=cfg,
        output_type="latent",
    ).frames
    return latents.movedim(1, 2) / pipe.vae.config.scaling_factor


def tensors(nested) -> list[torch.Tensor]:
    """Return every tensor in nested lists, tuples and dicts."""
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, torch.Tensor)]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()
