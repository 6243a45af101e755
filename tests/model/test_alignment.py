"""What the demo's transformer is taught halfway, against the painted world."""

import dataclasses

import numpy as np
import torch
from einops import rearrange
from pack.demo import alignment, train_text, train_transformer, world
from pack.demo.latent_cache import HIGH

ALL = list(range(0, 17, 4))


def test_the_nearest_token_is_where_the_object_is_painted():
    for plan in HIGH:
        what = world.scene(3, "test", "move")
        rows, columns = plan.height // alignment.TOKEN, plan.width // alignment.TOKEN
        steps = alignment.distances(what, plan, ALL).unflatten(0, (len(ALL), rows, columns))
        middle = len(alignment.EDGES) // 2  # the step that begins at distance 0
        for frame, grid in zip(ALL, steps, strict=True):
            x, y = world.centres(what, 17, plan.height, plan.width)[frame] / alignment.TOKEN
            across, down = grid[int(y), int(x)]
            assert (across >= middle + 1) == (x % 1 > 0.5) and (down >= middle + 1) == (y % 1 > 0.5)
            assert (grid[..., 0].diff(dim=1) <= 0).all() and (grid[..., 1].diff(dim=0) <= 0).all()


def test_the_object_weighs_more_where_noise_leaves_it_to_be_seen():
    plan, what = HIGH[0], world.scene(3, "test", "move")
    places, _, _ = alignment.targets([what, what, what], "short", plan, [ALL] * 3)
    phase = train_transformer.Phase(1, 3, HIGH, {17: 1.0}, object_weight=4.0)
    shape = torch.Size((3, 16, 5, plan.height // 8, plan.width // 8))
    seen, hidden, later = train_transformer.emphasis(phase, places, torch.tensor([100, 999, 400]), shape)[:, 0]
    assert torch.equal(seen, later) and (hidden == hidden[0, 0, 0]).all()
    assert sorted((weight / hidden[0, 0, 0]).item() for weight in seen.unique()) == [1.0, 4.0]
    for frame, weights in enumerate(seen):
        x, y = (world.centres(what, 17, plan.height, plan.width)[ALL[frame]] / 8).astype(int)
        assert weights[y, x] == seen.max() and (weights == seen.max()).float().mean() < 0.5


def test_levels_of_noise_that_hide_everything_count_less_at_the_end():
    places, _, _ = alignment.targets([world.scene(3)] * 3, "short", HIGH[0], [ALL] * 3)
    levels, shape = torch.tensor([999, 700, 100]), torch.Size((3, 16, 5, 8, 12))
    phase = train_transformer.Phase(1, 3, HIGH, {17: 1.0}, object_weight=4.0)
    alike = train_transformer.emphasis(phase, places, levels, shape)
    later = train_transformer.emphasis(dataclasses.replace(phase, clearness=4.0), places, levels, shape)
    hidden, dim, seen = (later / alike).flatten(1).unbind(0)
    assert torch.allclose(hidden, torch.tensor(train_transformer.MUTED)) and torch.allclose(seen, torch.tensor(1.0))
    assert torch.allclose(dim, 4.0 * train_transformer.ALPHAS[700].sqrt()) and hidden[0] < dim[0] < 1


def test_outlines_are_those_of_the_painted_object():
    for plan in HIGH:
        what = dataclasses.replace(world.scene(3, "test", "move"), gradient="none", background=("white", "white"))
        outlines = alignment.outline(what, plan, ALL)
        rows, columns = plan.height // alignment.TOKEN, plan.width // alignment.TOKEN
        points = rearrange(outlines, "(t h w) (y x) -> t (h y) (w x)", h=rows, w=columns, y=8)
        painted = world.render(what, 17, plan.height, plan.width)[ALL].astype(float)
        ground, object_colour = np.array(world.BACKGROUNDS["white"]), np.array(world.COLOURS[what.colour])
        cover = (painted - ground) @ (object_colour - ground) / ((object_colour - ground) ** 2).sum()  # [5, H, W]
        fine = rearrange(torch.from_numpy(cover), "t (h y) (w x) -> t h w (y x)", y=2, x=2).mean(dim=-1)
        assert (points - fine).abs().max() < 0.2 and (points - fine).abs().mean() < 0.01 < fine.mean()


def test_heads_are_asked_what_the_caption_tells_only():
    whats = [world.scene(seed) for seed in range(4)]
    plan, picks = HIGH[0], np.arange(4)
    for frames, latent_frames in ((17, 5), (9, 3), (1, 1)):
        shown = train_transformer.frames_shown(picks, frames)
        places, short, outlines = alignment.targets(whats, "short", plan, shown)
        assert places.shape == (4, latent_frames * 24, 2) and outlines.shape == (4, latent_frames * 24, 64)
        assert (short == alignment.IGNORE).any() and not (short[:, :3] == alignment.IGNORE).any()
    assert (alignment.targets(whats, "long", plan, shown)[1][:, -3:] != alignment.IGNORE).all()


def test_heads_learn_from_the_blocks_they_read():
    torch.manual_seed(0)
    model = train_transformer.Model()
    latents, numbers = torch.randn(2, 16, 1, 8, 12), torch.ones(2, 24, dtype=torch.long)
    places, *others = alignment.targets([world.scene(0), world.scene(1)], "short", HIGH[0], [[0], [16]])
    entries = (model, latents, latents, latents, numbers, torch.tensor([10, 900]), torch.ones(2, 1, 1, 8, 12))
    model, *painting = entries
    model.heads.begin(alignment.DRAWING)
    train_transformer.training_loss(model, places, *others, *painting).backward()
    blocks = model.transformer.transformer_blocks
    # The fresh output layer is zero, so that what the blocks learn now comes from the heads alone.
    learned = [bool(block.norm2.linear.weight.grad.any()) for block in blocks]
    assert learned == [number <= alignment.OUTLINE_BLOCK for number in range(len(blocks))]
    assert all(head.weight.grad.any() for head in (model.heads.scene, model.heads.place, model.heads.outline))
    assert not blocks[alignment.PLACE_BLOCK]._forward_hooks  # nothing is left on the model

    plain = train_transformer.velocity_loss(*entries)
    model.heads.begin(0)
    nothing = torch.full_like(others[0], train_text.IGNORE)
    with alignment.halfway(model.transformer) as hidden:
        train_transformer.velocity_loss(*entries)
    assert set(hidden) == set(alignment.BLOCKS)
    more = train_transformer.training_loss(model, places, nothing, others[1], *painting) - plain
    assert 0 < more < alignment.PLACE_WEIGHT * 2 * np.log(alignment.STEPS)
