"""The second stage: the T5 encoder learns to read captions before anything is painted.

CogVideoX takes a T5 that was trained on text alone. The small one is trained on the captions: from its embeddings, and
by attention as the transformer will read them, small heads must tell what the scene is. The heads are thrown away.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import muon, text, world
from .mini import TEXT_CONFIG, new_text_encoder
from .runs import Run

LEARNING_RATE = 3e-3
WARMUP = 50
BATCH = 32
STEPS = 1000
STYLE_SHARES = (0.3, 0.15, 0.15, 0.4)  # of text.STYLES: what is not there takes longest to learn to read
HELD_OUT = 96  # test captions of each style
IGNORE = -100
PLAIN = ("shared", "relative_attention_bias", "queries", "heads")  # AdamW, not Muon

NOTHING = "none"
QUESTIONS: dict[str, tuple[str, ...]] = {
    "shape": world.SHAPES,
    "colour": tuple(world.COLOURS),
    "motion": tuple("/".join(motion) for motion in world.MOTIONS),
    "other shape": (*world.SHAPES, NOTHING),
    "other colour": (*world.COLOURS, NOTHING),
    "size": tuple(world.SIZES),
    "speed": tuple(world.SPEEDS),
    "first ground": tuple(world.BACKGROUNDS),
    "second ground": tuple(world.BACKGROUNDS),
    "gradient": world.GRADIENTS,
}


def answers(what: world.Scene, style: str) -> list[int]:
    """Return the right answer to every question, IGNORE where a caption of this style does not say."""
    told = style != "short"
    values = {
        "shape": what.shape,
        "colour": what.colour,
        "motion": "/".join(what.motion),
        "other shape": what.other[0] if what.other else NOTHING,
        "other colour": what.other[1] if what.other else NOTHING,
        "size": what.size if told and what.action != "pass" else None,
        "speed": what.speed if told and what.action == "move" else None,
        "first ground": what.background[0] if told else None,
        "second ground": what.background[1] if told else None,
        "gradient": what.gradient if told else None,
    }
    return [IGNORE if values[name] is None else QUESTIONS[name].index(values[name]) for name in QUESTIONS]


class Reader(nn.Module):
    """A T5 encoder, and one query and one linear layer for each question."""

    def __init__(self):
        super().__init__()
        width = TEXT_CONFIG["d_model"]
        self.encoder = new_text_encoder()
        self.queries = nn.Parameter(torch.randn(len(QUESTIONS), width))
        self.keys = nn.Linear(width, width)
        self.heads = nn.ModuleList(nn.Linear(width, len(options)) for options in QUESTIONS.values())

    def forward(self, numbers: torch.Tensor) -> list[torch.Tensor]:
        """[B, L] -> for each question its logits [B, options]."""
        context = self.encoder(input_ids=numbers).last_hidden_state  # [B, L, D]
        weight = torch.einsum("qd,bld->bql", self.queries, self.keys(context)) / math.sqrt(context.shape[-1])
        read = weight.softmax(dim=-1) @ context  # [B, questions, D]
        return [head(read[:, i]) for i, head in enumerate(self.heads)]


def reading_loss(logits: list[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    """Return the sum over questions of the mean cross entropy; targets [B, questions]."""
    losses = [
        F.cross_entropy(answer, target, ignore_index=IGNORE) for answer, target in zip(logits, targets.T, strict=True)
    ]
    return torch.stack([loss for loss in losses if torch.isfinite(loss)]).sum()


@torch.no_grad()
def measure(reader: Reader) -> dict[str, float]:
    """Return the share of right answers about held-out scenes by style, at 226 tokens."""
    scores = {}
    for style in world.STYLES:
        whats = [world.scene(seed, "test") for seed in range(HELD_OUT)]
        texts = [text.tokens(world.caption(what, style, seed)) for seed, what in enumerate(whats)]
        logits = [reader(part) for part in text.pad(texts).split(16)]
        targets = torch.tensor([answers(what, style) for what in whats])
        right = told = 0
        for i in range(len(QUESTIONS)):
            asked = targets[:, i] != IGNORE
            guess = torch.cat([part[i] for part in logits]).argmax(dim=-1)
            right, told = right + int((guess == targets[:, i])[asked].sum()), told + int(asked.sum())
        scores[style] = right / told
    return scores


def train(folder: Path, limit: int | None = None) -> Reader:
    """Train the reader, or go on with it, until `limit` or all steps are done."""
    torch.manual_seed(0)
    reader = Reader()
    optimiser = muon.Muon(muon.groups(reader, PLAIN), LEARNING_RATE)
    run = Run(folder, "text", reader=reader, optimiser=optimiser)
    recent = []
    for step in run.steps(min(limit or STEPS, STEPS)):
        rate = LEARNING_RATE * min(1, (step + 1) / WARMUP) * (0.02 + 0.98 * math.cos(math.pi / 2 * step / STEPS))
        for group in optimiser.param_groups:
            group["lr"] = rate
        whats = [world.scene(step * BATCH + i) for i in range(BATCH)]
        style, numbers = text.captions(whats, step, shares=STYLE_SHARES)
        loss = reading_loss(reader(numbers), torch.tensor([answers(what, style) for what in whats]))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimiser.step()
        recent.append(loss.item())
        if (step + 1) % 50 == 0:
            run.log(loss=np.mean(recent), rate=rate)
            recent.clear()
        if (step + 1) % 400 == 0 or step + 1 == STEPS:
            run.facts.update(measure(reader))
            print(f"text: right answers, held out: {run.facts}", flush=True)
            run.draw_curve()
    return reader
