"""The first stage: the 3D causal VAE, by reconstruction (arXiv 2408.06072 section 2.1).

Short clips of small crops first, then longer ones, then whole pictures: convolutions do not mind the size, only the
statistics of the group norms have to settle at the end. Then the latents are whitened, the decoder settles on them, and
at last it learns outlines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..cogvideox.vae import DECODE_CHUNK, ENCODE_CHUNK, AutoencoderKLCogVideoX, Posterior, _by_chunk
from . import detector, muon, world
from .mini import new_vae
from .runs import Run, part_at, strip, to_frames

LEARNING_RATE = 1e-3
SETTLE_RATE = 2e-4
# (step of the last two STAGES, learning rate), linear in between
DRAWING_RATES = ((0, 0.0), (30, 5.9e-4), (1000, 2e-4), (1120, 0.0))
LATENT_NOISE = 0.25  # the most, in deviations of the latents
AROUND = 2  # pixels beside an object that count as it does
WARMUP = 30
KL_WEIGHT = 1e-5  # per latent value: keeps latents near unit size, costs next to no detail
ASPECTS = ((64, 96), (96, 64), (64, 64))
HELD_OUT, FINALLY = 24, 192  # test clips the VAE is measured on, on its way and at the end
WHITEN_CLIPS = 96  # clips the latents' covariance is measured on
FLOOR = 0.05  # directions of less variance than this stay small: edges, to be painted when the rest is there


@dataclass(frozen=True)
class Stage:
    """`steps` steps on `batch` clips of `frames` frames, cut to `crop` pixels (0: whole pictures).

    What is at the object counts `object_weight` times what the ground does.
    """

    steps: int
    batch: int
    frames: tuple[int, ...]
    crop: int
    object_weight: float = 1.0


STAGES = (
    Stage(500, 16, (1,), 32),  # pictures
    Stage(700, 8, (9, 9, 1), 32),  # short clips
    Stage(200, 6, (9, 17), 32),  # longer clips
    Stage(800, 3, (9, 17, 9, 1), 0),  # whole pictures, all aspects
    Stage(200, 3, (9, 17, 9, 1), 0),  # the decoder alone, on whitened latents
    Stage(900, 4, (9, 17, 9, 17, 1), 48, object_weight=10.0),  # and on noisy ones, heeding the object
    Stage(220, 3, (9, 17, 9, 17, 1), 0, object_weight=10.0),
)
STEPS = sum(stage.steps for stage in STAGES)
DRAWING = STEPS - sum(stage.steps for stage in STAGES[-2:])
RECONSTRUCTION = DRAWING - STAGES[-3].steps


def learning_rate(step: int) -> float:
    """Warm-up, a quarter of a cosine; for the decoder alone linearly to zero from a lower start, then DRAWING_RATES."""
    if step >= DRAWING:
        return float(np.interp(step - DRAWING + 1, *zip(*DRAWING_RATES, strict=True)))
    if step >= RECONSTRUCTION:
        return SETTLE_RATE * (DRAWING - step) / (DRAWING - RECONSTRUCTION)
    return LEARNING_RATE * min(1, (step + 1) / WARMUP) * (0.02 + 0.98 * math.cos(math.pi / 2 * step / RECONSTRUCTION))


def clips(step: int, stage: Stage) -> tuple[torch.Tensor, torch.Tensor]:
    """Paint the batch of one step: float [B, 3, F, H, W] in -1..1, and how much each pixel counts [B, 1, F, H, W]."""
    draw = np.random.default_rng(step)
    frames = stage.frames[step % len(stage.frames)]
    height, width = ASPECTS[step % len(ASPECTS)]
    batch, near = [], []
    for i in range(stage.batch):
        what = world.scene(step * 64 + i)
        start = int(draw.integers(0, world.FRAMES - frames + 1))
        video = world.render(what, start + frames, height, width)[start:]
        covered = world.coverage(what, list(range(start, start + frames)), height, width, 1)
        if stage.crop:
            # Around the object, where there is something to learn; elsewhere now and then.
            x, y = world.centres(what, start + frames, height, width)[start + frames // 2]
            if draw.random() < 0.2:
                x, y = draw.uniform(0, width), draw.uniform(0, height)
            x, y = (value + draw.normal(0, stage.crop / 4) - stage.crop / 2 for value in (x, y))
            top, left = (int(np.clip(v, 0, size - stage.crop)) for v, size in ((y, height), (x, width)))
            rows, columns = slice(top, top + stage.crop), slice(left, left + stage.crop)
            video, covered = video[:, rows, columns], covered[:, rows, columns]
        batch.append(to_pixels(video))
        near.append(torch.from_numpy(covered))
    near = F.max_pool2d(torch.stack(near), 2 * AROUND + 1, 1, AROUND)[:, None]
    weights = 1 + (stage.object_weight - 1) * near
    return torch.stack(batch), weights / weights.mean()


def to_pixels(video: np.ndarray) -> torch.Tensor:
    """Uint8 [F, H, W, 3] to float [3, F, H, W] in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(video)).permute(3, 0, 1, 2).float() / 127.5 - 1


def encode(vae: AutoencoderKLCogVideoX, pixels: torch.Tensor) -> Posterior:
    """Encode with gradients, in the chunks of time that use runs in too."""
    return Posterior.from_moments(torch.cat(list(_by_chunk(vae.encoder, pixels, ENCODE_CHUNK)), dim=2))


def decode(vae: AutoencoderKLCogVideoX, latents: torch.Tensor) -> torch.Tensor:
    """Decode with gradients, in the chunks of time that use runs in too."""
    return torch.cat(list(_by_chunk(vae.decoder, latents, DECODE_CHUNK)), dim=2)


def reconstruction_loss(vae: AutoencoderKLCogVideoX, pixels: torch.Tensor, generator: torch.Generator):
    """Return loss and mean squared error of pixels [B, 3, F, H, W] through the VAE.

    Absolute plus squared error on pixels and a little of the KL divergence from a unit normal. There is no adversary:
    the world is flat and has no texture to invent.
    """
    posterior = encode(vae, pixels)
    out = decode(vae, posterior.sample(generator))
    squared = F.mse_loss(out, pixels)
    kl = 0.5 * (posterior.mean**2 + posterior.logvar.exp() - 1 - posterior.logvar).mean()
    return F.l1_loss(out, pixels) + 4 * squared + KL_WEIGHT * kl, squared


def drawing_loss(
    vae: AutoencoderKLCogVideoX,
    pixels: torch.Tensor,
    weights: torch.Tensor,
    deviation: float,
    generator: torch.Generator,
):
    """Return weighted loss and mean squared error of pixels [B, 3, F, H, W] decoded from somewhat noisy latents.

    What tells a star from a disc is a few of a picture's pixels: before this half of the stars lost their points. The
    noise stands for what the transformer gets wrong.
    """
    with torch.no_grad():
        latents = encode(vae, pixels).mean
    strength = LATENT_NOISE * deviation * torch.rand(len(pixels), 1, 1, 1, 1, generator=generator)
    error = decode(vae, latents + strength * torch.randn(latents.shape, generator=generator)) - pixels
    return (weights * (error.abs() + 4 * error.square())).mean(), error.square().mean()


def psnr(squared_error: float) -> float:
    """Return the peak signal-to-noise ratio in dB of a mean squared error of pixels in -1..1."""
    return 10 * math.log10(4 / max(squared_error, 1e-12))


@torch.no_grad()
def measure(vae: AutoencoderKLCogVideoX, count: int) -> tuple[dict[str, float], list[np.ndarray]]:
    """Return mean PSNR and the share of known shapes on held-out clips of all aspects, and strips of clip and copy."""
    quality, known, strips = [], [], []
    for seed in range(count):
        height, width = ASPECTS[seed % len(ASPECTS)]
        what = world.scene(seed, "test", "move")
        pixels = to_pixels(world.render(what, world.FRAMES, height, width))[None]
        copy = vae.decode(vae.encode(pixels).mode()).clamp(-1, 1)
        quality.append(psnr(F.mse_loss(copy, pixels).item()))
        known.append(detector.measure(to_frames(copy[0])).shape == what.shape)
        if len(strips) < 12:
            strips += [strip(to_frames(pixels[0])), strip(to_frames(copy[0]))]
    return {"psnr": float(np.mean(quality)), "shape": float(np.mean(known))}, strips


@torch.no_grad()
def moments(vae: AutoencoderKLCogVideoX, count: int = WHITEN_CLIPS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the latents' mean [16] and covariance [16, 16] on clips of all aspects, and the posterior's variance."""
    means, variances = [], []
    for seed in range(count):
        height, width = ASPECTS[seed % len(ASPECTS)]
        posterior = encode(vae, to_pixels(world.render(world.scene(seed), world.FRAMES, height, width))[None])
        means.append(posterior.mean.flatten(2)[0].T)
        variances.append(posterior.logvar.exp().flatten(2)[0].T)
    values = torch.cat(means).double()
    return values.mean(0), torch.cov(values.T), torch.cat(variances).double().mean(0)


@torch.no_grad()
def colours(vae: AutoencoderKLCogVideoX, count: int = WHITEN_CLIPS) -> dict[str, list]:
    """Fit the colours of the latents' channels by least squares, under ComfyUI's names for them."""
    values, wanted = [], []
    for seed in range(count):
        height, width = ASPECTS[seed % len(ASPECTS)]
        pixels = to_pixels(world.render(world.scene(seed), world.FRAMES, height, width))[None]
        latents = encode(vae, pixels).mode()
        values.append(F.pad(latents.flatten(2)[0].T, (0, 1), value=1))
        each = F.adaptive_avg_pool3d(pixels[:, :, 1:], (latents.shape[2] - 1, *latents.shape[3:]))
        first = F.adaptive_avg_pool2d(pixels[:, :, 0], latents.shape[3:])[:, :, None]
        wanted.append(torch.cat((first, each), dim=2).flatten(2)[0].T)
    fit = torch.linalg.lstsq(torch.cat(values).double(), torch.cat(wanted).double()).solution
    *factors, bias = [[round(value, 4) for value in row] for row in fit.tolist()]
    return {"latent_rgb_factors": factors, "latent_rgb_factors_bias": bias}


@torch.no_grad()
def whiten(vae: AutoencoderKLCogVideoX, count: int = WHITEN_CLIPS) -> float:
    """Give the latents' directions like size, inside the VAE's own weights; return the deviation that is left.

    Reconstruction alone puts the ground's colour into one direction with a thousand times the variance of those that
    tell a circle from a square: a transformer then sees shapes only when nearly all noise is gone. The map z' = (C +
    FLOOR)^(-1/2) (z - mean) is linear, so the encoder's last convolution and every one of the decoder that reads
    latents take it in; the decoder sees a difference at the edges of the picture only, where zeros are padded. The
    posterior's variance becomes its mean.
    """
    mean, covariance, variance = moments(vae, count)
    values, vectors = torch.linalg.eigh(covariance)
    to_white = vectors @ torch.diag((values + FLOOR) ** -0.5) @ vectors.T
    from_white = torch.linalg.inv(to_white)
    last = vae.encoder.conv_out.conv
    channels = len(mean)
    weight, bias = last.weight.double(), last.bias.double()
    last.weight[:channels] = torch.einsum("ij,j...->i...", to_white, weight[:channels]).float()
    last.bias[:channels] = (to_white @ (bias[:channels] - mean)).float()
    last.weight[channels:] = 0
    last.bias[channels:] = (to_white**2 @ variance).log().float()
    for name, module in vae.decoder.named_modules():
        if name == "conv_in.conv" or name.endswith(("conv_y.conv", "conv_b.conv")):
            weight = module.weight.double()  # [out, 16, T, H, W]
            module.bias += torch.einsum("oi...,i->o", weight.flatten(2).sum(2), mean).float()
            module.weight.copy_(torch.einsum("oj...,ji->oi...", weight, from_white))
    return float((values / (values + FLOOR)).mean().sqrt())


def train(folder: Path, limit: int | None = None) -> AutoencoderKLCogVideoX:
    """Train the VAE, or go on with it, until `limit` or all steps are done; PSNR and deviation are kept as facts."""
    torch.manual_seed(0)
    vae = new_vae()
    optimiser = muon.Muon(muon.groups(vae, plain=("conv_out",)), LEARNING_RATE)
    run = Run(folder, "vae", vae=vae, optimiser=optimiser)
    recent: list[tuple[float, float]] = []
    for step in run.steps(min(limit or STEPS, STEPS)):
        stage = part_at(STAGES, step)
        if step == RECONSTRUCTION:
            run.facts.update(deviation=whiten(vae))
        vae.encoder.requires_grad_(step < RECONSTRUCTION)
        rate = learning_rate(step)
        for group in optimiser.param_groups:
            group["lr"] = rate
        generator = torch.Generator().manual_seed(step)
        pixels, weights = clips(step, stage)
        if step >= DRAWING:
            loss, squared = drawing_loss(vae, pixels, weights, run.facts["deviation"], generator)
        else:
            loss, squared = reconstruction_loss(vae, pixels, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        recent.append((loss.item(), squared.item()))
        if (step + 1) % 20 == 0:
            mean_loss, mean_squared = np.mean(recent, axis=0)
            run.log(loss=mean_loss, psnr=psnr(mean_squared), rate=rate)
            recent.clear()
        if (step + 1) % 200 == 0 or step + 1 == STEPS:
            found, strips = measure(vae, FINALLY if step + 1 == STEPS else HELD_OUT)
            run.facts.update(found)
            print(f"vae: held out {found}", flush=True)
            run.draw_curve()
            run.draw_strips(strips)
    return vae
