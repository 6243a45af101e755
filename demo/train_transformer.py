"""The last stage: the expert transformer, on a T5 that has learned to read and learns no more.

As CogVideoX was trained (arXiv 2408.06072 sections 2 and 3), each idea a name here: v-prediction with zero terminal
SNR (`velocity_loss`), explicit uniform sampling (`explicit_uniform_timesteps`), steps of mixed duration (`duration`),
progressive length and resolution (`PHASES`), dropped text for guidance (`drop_text`), dropped and noisy
pictures for image-to-video (`image_latents`). Ours are the heads halfway (alignment.py) and `emphasis`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..cogvideox import schedule
from . import alignment, latent_cache, muon, text, world
from .latent_cache import Cached, Plan
from .mini import FRAMES, SNR_SHIFT, model_input, new_text_encoder, new_transformer
from .parallel import Workers
from .runs import Run, part_at, strip

# (step, learning rate), linear in between: warm-up, a long level stretch, a fall (arXiv 2405.18392); a second rise and
# fall for the outlines (alignment.py), which were thought of late, and one more for each of the last three of PHASES.
RATES = (
    (0, 0.0),
    (100, 4e-3),
    (2650, 4e-3),
    (4496, 0.0013),
    (4546, 3e-3),
    (5028, 0.00243),
    (6396, 8e-5),
    (6446, 2e-3),
    (8596, 8e-5),
    (8646, 2e-3),
    (10996, 8e-5),
    (11046, 1.6e-3),
    (11996, 8e-5),
)
ADAM_RATE = 0.4  # of the learning rate, for what Muon does not train
PLAIN = ("patch_embed", "proj_out", "time_embedding", ".linear.", "heads")  # AdamW
FULL_TEXT_SHARE = 0.015  # of the steps, the last ones, with 226 tokens always
AVERAGE = 0.997  # decay of the averaged weights, which are what is shipped
SAVE_SAMPLES = 1000

TEXT_DROP = 0.1
# How often a clip is given which pictures: none (text-to-video), the first frame, the last, both.
PICTURES = {"none": 0.5, "first": 0.25, "last": 0.08, "both": 0.17}
FEWER_PICTURES = {"none": 0.7, "first": 0.14, "last": 0.05, "both": 0.11}
MORE_WORDS = (0.4, 0.2, 0.3, 0.1)  # three times the long captions of text.STYLE_SHARES


@dataclass(frozen=True)
class Phase:
    """`steps` steps on `batch` clips of these sizes; `durations` say how often a step's clips have so many frames.

    The object counts `object_weight` times what the ground does, and a level of noise `clearness` times its share of
    signal sqrt(a), one at most (None: all alike). `pictures` is as PICTURES, `styles` as text.STYLE_SHARES.
    """

    steps: int
    batch: int
    sizes: tuple[Plan, ...]
    durations: dict[int, float]
    object_weight: float = 1.0
    clearness: float | None = None
    pictures: dict[str, float] = field(default_factory=lambda: PICTURES)
    styles: tuple[float, ...] = text.STYLE_SHARES


HEEDFUL = Phase(
    2200,
    16,
    latent_cache.HIGH,
    {FRAMES: 0.9, 9: 0.05, 1: 0.05},
    object_weight=8.0,
    clearness=4.0,
    pictures=FEWER_PICTURES,
)
# Progressive in size and length, and in the batch: at first many small steps teach more than few large ones.
PHASES = (
    Phase(150, 32, latent_cache.LOW, {1: 1.0}),
    Phase(150, 16, latent_cache.LOW, {FRAMES: 0.75, 9: 0.15, 1: 0.1}),
    Phase(2500, 16, latent_cache.HIGH, {FRAMES: 0.75, 9: 0.15, 1: 0.1}),
    Phase(1200, 32, latent_cache.HIGH, {FRAMES: 0.75, 9: 0.15, 1: 0.1}),
    Phase(496, 32, latent_cache.HIGH, {FRAMES: 0.75, 9: 0.15, 1: 0.1}, object_weight=4.0),
    Phase(1900, 16, latent_cache.HIGH, {FRAMES: 0.75, 9: 0.15, 1: 0.1}, object_weight=4.0),
    HEEDFUL,
    replace(HEEDFUL, steps=2400, sizes=(*latent_cache.HIGH, *latent_cache.MORE)),
    replace(HEEDFUL, steps=1000, sizes=(*latent_cache.HIGH, *latent_cache.MORE), styles=MORE_WORDS),
)
STEPS = sum(phase.steps for phase in PHASES)

ALPHAS = schedule.alphas_cumprod(SNR_SHIFT).float()  # [1000]

MUTED = 0.05  # the least that a level of noise counts
CLEAR = 0.02  # share of the signal's power from which one sees where the object is

CLEAN, NOISY = 0, 2  # where in the cached pictures the pair (first, last) begins


class Model(nn.Module):
    """The transformer, the T5 it is told by, frozen as CogVideoX's is, and the heads that teach it halfway."""

    def __init__(self):
        super().__init__()
        self.text_encoder = new_text_encoder().requires_grad_(False)
        self.transformer = new_transformer()
        self.heads = alignment.Heads()

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Predict the velocity of x [B, 32, T, H, W] for the tokens [B, L]."""
        return self.transformer(x, timestep, self.text_encoder(input_ids=numbers).last_hidden_state)


def explicit_uniform_timesteps(count: int, draw: np.random.Generator) -> torch.Tensor:
    """Draw one timestep from each of `count` equal parts of 0..999, so that every batch sees all levels of noise.

    The paper cuts the range by data-parallel rank and draws inside; one process cuts it by sample. The loss, which
    depends on the level more than on anything else, becomes much steadier.
    """
    parts = (np.arange(count) + draw.random(count)) / count
    return torch.from_numpy((draw.permutation(parts) * schedule.TRAIN_STEPS).astype(np.int64))


def velocity_loss(
    model: Model,
    latents: torch.Tensor,
    noise: torch.Tensor,
    images: torch.Tensor,
    numbers: torch.Tensor,
    timesteps: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Return the weighted mean squared error of the velocity v = sqrt(a) noise - sqrt(1 - a) x0 (arXiv 2202.00512).

    The schedule ends in a = 0 (arXiv 2305.08891): at t = 999 the input is noise alone and v is -x0, so the model
    learns to begin from nothing but the text. Latents, noise and images [B, 16, T, H, W]; all are scaled; weights
    [B, 1, T, H, W].
    """
    a = ALPHAS[timesteps].view(-1, 1, 1, 1, 1)
    noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
    velocity = a.sqrt() * noise - (1 - a).sqrt() * latents
    return ((model(model_input(noisy, images), timesteps, numbers) - velocity).square() * weights).mean()


def training_loss(
    model: Model, places: torch.Tensor, scene: torch.Tensor, outlines: torch.Tensor, *painting: torch.Tensor
) -> torch.Tensor:
    """Return the loss of the heads halfway, for `alignment.targets`, plus that of the velocity."""
    with alignment.halfway(model.transformer) as hidden:
        painted = velocity_loss(model, *painting)
    return painted + model.heads.loss(hidden, places, scene, outlines)


def emphasis(phase: Phase, places: torch.Tensor, timesteps: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return how much each of the latents [B, C, T, H, W] counts, for the `places` of `alignment.targets`.

    What tells a star from a disc is a few of a clip's tokens, and the ground has all the others. Where noise hides the
    object all count alike: told to heed what is near it, the model would see objects everywhere. At the end what noise
    hides counts less: it has by far the largest errors, and no training can make them smaller (arXiv 2303.09556).
    """
    batch, _, frames, height, width = shape
    grid = (batch, 1, frames, height // 2, width // 2)
    near = alignment.near(places).view(grid).repeat_interleave(2, 3).repeat_interleave(2, 4)
    clear = ALPHAS[timesteps].view(-1, 1, 1, 1, 1) > CLEAR
    weights = torch.where(near & clear, phase.object_weight, 1.0)
    weights = weights / weights.mean()
    if phase.clearness is not None:
        weights = weights * (phase.clearness * ALPHAS[timesteps].sqrt()).clamp(MUTED, 1).view(-1, 1, 1, 1, 1)
    return weights


def duration(phase: Phase, draw: np.random.Generator) -> int:
    """Draw the frames of a step's clips: pictures, short and whole clips are trained in turn."""
    return int(draw.choice(list(phase.durations), p=list(phase.durations.values())))


def size(phase: Phase, draw: np.random.Generator) -> Plan:
    """Draw a step's picture size; each aspect by its share of the clips."""
    shares = np.array([plan.clips for plan in phase.sizes], dtype=float)
    return phase.sizes[int(draw.choice(len(phase.sizes), p=shares / shares.sum()))]


def drop_text(numbers: torch.Tensor, draw: np.random.Generator) -> torch.Tensor:
    """Replace one caption in ten by the empty one, which classifier-free guidance subtracts (arXiv 2207.12598)."""
    dropped = torch.from_numpy(draw.random(len(numbers)) < TEXT_DROP)
    empty = text.pad([[text.END]], numbers.shape[1])
    return torch.where(dropped[:, None], empty, numbers)


def image_latents(
    cached: Cached, picks: np.ndarray, frames: int, shares: dict[str, float], draw: np.random.Generator
) -> torch.Tensor:
    """Return the conditioning pictures' latents [B, 16, T, H, W], unscaled; zeros where nothing is known.

    Pictures are dropped at random (by `shares`, as PICTURES), so that one model paints from text alone, from the first
    frame, from the last, or between both; and half of them are noisy. A clip shorter than the cached ones has no known
    last frame.
    """
    given = draw.choice(list(shares), size=len(picks), p=list(shares.values()))
    first_pair = np.where(draw.random(len(picks)) < 0.5, CLEAN, NOISY)
    pictures = cached.images[picks]  # [B, 4, 16, H, W]
    latent_frames = (frames - 1) // 4 + 1
    known = torch.zeros(len(picks), pictures.shape[2], latent_frames, *pictures.shape[3:])
    for i, which in enumerate(given):
        if which in ("first", "both") and frames > 1:
            known[i, :, 0] = pictures[i, first_pair[i]]
        if which in ("last", "both") and frames == FRAMES:
            known[i, :, -1] = pictures[i, first_pair[i] + 1]
    return known


def clip_latents(cached: Cached, picks: np.ndarray, frames: int) -> torch.Tensor:
    """Return the latents of clips of `frames` frames [B, 16, T, H, W], unscaled: the beginning of the cached ones."""
    if frames == 1:  # its first picture or its last
        return cached.images[picks, CLEAN + picks % 2].float().unsqueeze(2)
    return cached.video[picks, :, : (frames - 1) // 4 + 1].float()


def frames_shown(picks: np.ndarray, frames: int) -> list[list[int]]:
    """Return for each clip of `clip_latents` the frame in the middle of what each of its latent frames holds."""
    if frames == 1:
        return [[(FRAMES - 1) * int(pick % 2)] for pick in picks]
    return [[0, *range(2, frames, 4)]] * len(picks)


def learning_rate(step: int) -> float:
    """Return the learning rate of a step, by RATES."""
    return float(np.interp(step + 1, *zip(*RATES, strict=True)))


def average(averaged: Model, model: Model, step: int) -> None:
    """Move the averaged weights towards the trained ones, faster at the beginning."""
    decay = min(AVERAGE, (step + 1) / (step + 10))
    with torch.no_grad():
        for slow, fast in zip(averaged.parameters(), model.parameters(), strict=True):
            if fast.requires_grad:
                slow.lerp_(fast, 1 - decay)


def new_run(folder: Path) -> tuple[Run, Model, Model, torch.optim.Optimizer]:
    """Return the run, the model, its average and the optimiser: as they were saved, or fresh with the trained T5."""
    torch.manual_seed(0)
    model = Model()
    if not (folder / "transformer.pt").exists():
        reader = torch.load(folder / "text.pt", map_location="cpu", weights_only=True)["parts"]["reader"]
        start = "encoder."
        weights = {key[len(start) :]: value for key, value in reader.items() if key.startswith(start)}
        model.text_encoder.load_state_dict(weights)
    averaged = copy.deepcopy(model).requires_grad_(False)
    optimiser = muon.Muon(muon.groups(model, PLAIN, adam_share=ADAM_RATE), learning_rate(0))
    return Run(folder, "transformer", model=model, averaged=averaged, optimiser=optimiser), model, averaged, optimiser


def train(folder: Path, latent_scale: float, limit: int | None = None, processes: int = 1) -> Model:
    """Train, or go on, until `limit` or all steps are done; return the averaged model."""
    run, model, averaged, optimiser = new_run(folder)
    workers = Workers(model, training_loss, processes)
    cache: dict[str, Cached] = {}
    recent = []
    torch.set_num_threads(1)  # the processes share the cores
    for step in run.steps(min(limit or STEPS, STEPS)):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step) * group["share"]
        model.heads.begin(step)
        draw = np.random.default_rng((step, 2))
        phase = part_at(PHASES, step)
        plan, frames = size(phase, draw), duration(phase, draw)
        if plan.name not in cache:
            cache[plan.name] = latent_cache.load(folder / "latents", plan)
        cached = cache[plan.name]
        picks = draw.integers(0, len(cached), phase.batch)
        whats = [world.scene(cached.seeds[pick]) for pick in picks]
        longest = step >= (1 - FULL_TEXT_SHARE) * STEPS
        style, numbers = text.captions(whats, step, longest, phase.styles)
        numbers = drop_text(numbers, draw)
        places, scene, outlines = alignment.targets(whats, style, plan, frames_shown(picks, frames))
        scene[numbers[:, 0] == text.END] = alignment.IGNORE  # nothing was said
        latents = clip_latents(cached, picks, frames) * latent_scale
        images = image_latents(cached, picks, frames, phase.pictures, draw) * latent_scale
        timesteps = explicit_uniform_timesteps(phase.batch, draw)
        loss = workers.backward(
            places,
            scene,
            outlines,
            latents,
            torch.randn(latents.shape, generator=torch.Generator().manual_seed(step)),
            images,
            numbers,
            timesteps,
            emphasis(phase, places, timesteps, latents.shape),
        )
        torch.set_num_threads(processes)  # the others wait meanwhile
        norm = torch.nn.utils.clip_grad_norm_(workers.trained, 1.0)
        optimiser.step()
        average(averaged, model, step)
        torch.set_num_threads(1)
        recent.append((loss, norm.item()))
        if (step + 1) % 50 == 0:
            mean_loss, mean_norm = np.mean(recent, axis=0)
            run.log(loss=mean_loss, norm=mean_norm, rate=optimiser.param_groups[0]["lr"])
            recent.clear()
        if (step + 1) % SAVE_SAMPLES == 0 or step + 1 == STEPS:
            show(run, averaged, latent_scale, step)
    return averaged


def show(run: Run, averaged: Model, latent_scale: float, step: int) -> None:
    """Paint and judge a few held-out prompts; keep their strips."""
    from .evaluate import Painter, load_vae, text_to_video

    painter = Painter(load_vae(run.folder), averaged, latent_scale)
    phase = part_at(PHASES, step)
    plan, frames = phase.sizes[0], max(phase.durations)
    score = text_to_video(painter, 24, "short", plan.height, plan.width, frames=frames, steps=20)
    run.facts["held out"] = {key: value for key, value in score.items() if isinstance(value, float)}
    print(f"transformer: held out, short: {run.facts['held out']}", flush=True)
    run.draw_curve()
    run.draw_strips([strip(video) for video in score["videos"][:16]])
