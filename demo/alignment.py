"""What the transformer should know on its way: what the caption says, and where the object is.

The velocity's loss teaches this slowly: after 1500 steps without heads the text still changed little, and a clip had
several objects that no frame agreed on. As representation alignment has it (REPA, arXiv 2410.06940), the blocks before
the last learn from a teacher at once; ours is the world itself. From every video token small heads must tell what scene
it is in, after an early block, and how far away its object is, after a later one, at every level of noise. The heads
are thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import world
from .latent_cache import Plan
from .mini import TRANSFORMER
from .train_text import IGNORE, QUESTIONS, answers

SCENE_BLOCK, PLACE_BLOCK = 1, 3  # whose output the heads read; what follows them paints
SCENE_WEIGHT, PLACE_WEIGHT = 0.1, 0.2
# For so many steps; then this share of the weights is left, so that painting catches up.
LEADING, LATER = 1049, 0.2
TOKEN = 8 * TRANSFORMER.patch_size  # pixels

# Steps of the distance from a token to the object, in tokens: fine where the token has to paint it.
EDGES = (-4, -2.5, -1.5, -1.2, -0.9, -0.6, -0.3, 0, 0.3, 0.6, 0.9, 1.2, 1.5, 2.5, 4)
STEPS = len(EDGES) + 1
REACH = 1.2  # one of them: about how far from a token's middle that of a large object is which it has a part of


class Heads(nn.Module):
    """One linear layer for the questions about the scene, one for the distances along x and y."""

    def __init__(self):
        super().__init__()
        self.options = [len(options) for options in QUESTIONS.values()]
        self.scene = nn.Linear(TRANSFORMER.inner_dim, sum(self.options))
        self.place = nn.Linear(TRANSFORMER.inner_dim, 2 * STEPS)
        self.register_buffer("share", torch.ones(()))

    def begin(self, step: int) -> None:
        """Weigh the loss as step number `step` has it."""
        self.share.fill_(1.0 if step < LEADING else LATER)

    def loss(self, hidden: dict[int, torch.Tensor], places: torch.Tensor, scene: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of the heads' mean cross entropies.

        `hidden` [B, L + S, D] of both blocks; `places` [B, S, 2] and `scene` [B, questions] are `targets`.
        """
        batch, tokens, _ = places.shape
        read, seen = (hidden[block][:, -tokens:] for block in (SCENE_BLOCK, PLACE_BLOCK))  # [B, S, D]
        answers = self.scene(F.layer_norm(read, read.shape[-1:])).flatten(0, 1).split(self.options, dim=1)
        right = scene.repeat_interleave(tokens, dim=0)  # [B * S, questions]
        told = [
            F.cross_entropy(answer, right[:, i], ignore_index=IGNORE, reduction="sum") / (batch * tokens)
            for i, answer in enumerate(answers)
        ]
        steps = self.place(F.layer_norm(seen, seen.shape[-1:])).view(-1, STEPS)  # [B * S * 2, STEPS]
        return self.share * (SCENE_WEIGHT * sum(told) + PLACE_WEIGHT * F.cross_entropy(steps, places.flatten()))


@contextmanager
def halfway(transformer: nn.Module) -> Iterator[dict[int, torch.Tensor]]:
    """Collect what comes out of both blocks while the context lasts: [B, L + S, D].

    With gradients only: without them the blocks that follow write over it.
    """
    hidden: dict[int, torch.Tensor] = {}

    def keep(block: int):
        return lambda module, inputs, output: hidden.update({block: output})

    blocks = transformer.transformer_blocks
    hooks = [blocks[block].register_forward_hook(keep(block)) for block in (SCENE_BLOCK, PLACE_BLOCK)]
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


def targets(
    whats: list[world.Scene], style: str, plan: Plan, shown: list[list[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the heads should say: distances [B, S, 2] and answers [B, questions], of those the caption tells."""
    places = torch.stack([distances(what, plan, frames) for what, frames in zip(whats, shown, strict=True)])
    return places, torch.tensor(np.array([answers(what, style) for what in whats]))
