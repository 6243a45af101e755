"""What the transformer should know on its way: what the caption says, where the object is, and its outline.

The velocity's loss teaches this slowly: after 1500 steps without heads the text still changed little, and a clip had
several objects that no frame agreed on. As representation alignment has it (REPA, arXiv 2410.06940), the blocks before
the last learn from a teacher at once; ours is the world itself. From every video token small heads must tell what scene
it is in, after an early block, how far away its object is, after a later one, and what of the token it covers, after
the last but one, at every level of noise. The heads are thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from . import world
from .latent_cache import Plan
from .mini import TRANSFORMER
from .train_text import IGNORE, QUESTIONS, answers

SCENE_BLOCK, PLACE_BLOCK, OUTLINE_BLOCK = BLOCKS = 1, 3, 4  # whose output the heads read
SCENE_WEIGHT, PLACE_WEIGHT = 0.1, 0.2
# For so many steps; then this share of the weights is left, so that painting catches up.
LEADING, LATER = 1049, 0.2
# From this step on. Before it direction was right in 23 of 24 held-out clips, and shape in 9: what was painted had the
# edges of a star here and of a disc there.
OUTLINE_WEIGHT, DRAWING = 2.0, 4496
TOKEN = 8 * TRANSFORMER.patch_size  # pixels
POINT = 2  # pixels between the points of an outline

# Steps of the distance from a token to the object, in tokens: fine where the token has to paint it.
EDGES = (-4, -2.5, -1.5, -1.2, -0.9, -0.6, -0.3, 0, 0.3, 0.6, 0.9, 1.2, 1.5, 2.5, 4)
STEPS = len(EDGES) + 1
REACH = 1.2  # one of them: about how far from a token's middle that of a large object is which it has a part of


class Heads(nn.Module):
    """A linear layer for the questions about the scene, for the distances along x and y and for the points covered."""

    def __init__(self):
        super().__init__()
        self.options = [len(options) for options in QUESTIONS.values()]
        self.scene = nn.Linear(TRANSFORMER.inner_dim, sum(self.options))
        self.place = nn.Linear(TRANSFORMER.inner_dim, 2 * STEPS)
        self.outline = nn.Linear(TRANSFORMER.inner_dim, (TOKEN // POINT) ** 2)
        self.register_buffer("share", torch.ones(()))
        self.register_buffer("drawing", torch.zeros(()))

    def begin(self, step: int) -> None:
        """Weigh the loss as step number `step` has it."""
        self.share.fill_(1.0 if step < LEADING else LATER)
        self.drawing.fill_(OUTLINE_WEIGHT if step >= DRAWING else 0.0)

    def loss(
        self, hidden: dict[int, torch.Tensor], places: torch.Tensor, scene: torch.Tensor, outlines: torch.Tensor
    ) -> torch.Tensor:
        """Return the weighted sum of the heads' mean cross entropies.

        `hidden` [B, L + S, D] of BLOCKS; `places` [B, S, 2], `scene` [B, questions] and `outlines` [B, S, points] are
        `targets`.
        """
        batch, tokens, _ = places.shape
        read, seen, drawn = (
            F.layer_norm(hidden[block][:, -tokens:], (TRANSFORMER.inner_dim,)) for block in BLOCKS
        )  # [B, S, D]
        answers = self.scene(read).flatten(0, 1).split(self.options, dim=1)
        right = scene.repeat_interleave(tokens, dim=0)  # [B * S, questions]
        told = [
            F.cross_entropy(answer, right[:, i], ignore_index=IGNORE, reduction="sum") / (batch * tokens)
            for i, answer in enumerate(answers)
        ]
        steps = self.place(seen).view(-1, STEPS)  # [B * S * 2, STEPS]
        covered = F.binary_cross_entropy_with_logits(self.outline(drawn), outlines)
        led = SCENE_WEIGHT * sum(told) + PLACE_WEIGHT * F.cross_entropy(steps, places.flatten())
        return self.share * led + self.drawing * covered


@contextmanager
def halfway(transformer: nn.Module) -> Iterator[dict[int, torch.Tensor]]:
    """Collect what comes out of BLOCKS while the context lasts: [B, L + S, D].

    With gradients only: without them the blocks that follow write over it.
    """
    hidden: dict[int, torch.Tensor] = {}

    def keep(block: int):
        return lambda module, inputs, output: hidden.update({block: output})

    blocks = transformer.transformer_blocks
    hooks = [blocks[block].register_forward_hook(keep(block)) for block in BLOCKS]
    try:
        yield hidden
    finally:
        for hook in hooks:
            hook.remove()


def distances(what: world.Scene, plan: Plan, shown: list[int]) -> torch.Tensor:
    """Return the step of the distance from each token to the object in the frames `shown`: [T * H * W, 2]."""
    x, y = torch.from_numpy(world.centres(what, world.FRAMES, plan.height, plan.width)[shown].T).float() / TOKEN  # [T]
    columns, rows = torch.arange(plan.width // TOKEN) + 0.5, torch.arange(plan.height // TOKEN) + 0.5
    grid = (len(shown), len(rows), len(columns))
    across = (x[:, None, None] - columns).expand(grid)
    down = (y[:, None, None] - rows[:, None]).expand(grid)
    return torch.bucketize(torch.stack((across, down), dim=-1).flatten(0, 2), torch.tensor(EDGES))


def near(places: torch.Tensor) -> torch.Tensor:
    """Say which tokens of `places` [B, S, 2] the object may reach: [B, S]."""
    return ((places > EDGES.index(-REACH)) & (places <= EDGES.index(REACH))).all(dim=-1)


def outline(what: world.Scene, plan: Plan, shown: list[int]) -> torch.Tensor:
    """Return how much the objects cover of points in each token in the frames `shown`: [T * H * W, points]."""
    covered = torch.from_numpy(world.coverage(what, shown, plan.height, plan.width, POINT))
    side = TOKEN // POINT
    return rearrange(covered, "t (h y) (w x) -> (t h w) (y x)", y=side, x=side)


def targets(
    whats: list[world.Scene], style: str, plan: Plan, shown: list[list[int]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what the heads should say: distances [B, S, 2], answers [B, questions], outlines [B, S, points].

    Answers are those that the caption tells.
    """
    places = torch.stack([distances(what, plan, frames) for what, frames in zip(whats, shown, strict=True)])
    outlines = torch.stack([outline(what, plan, frames) for what, frames in zip(whats, shown, strict=True)])
    return places, torch.tensor(np.array([answers(what, style) for what in whats])), outlines.float()
