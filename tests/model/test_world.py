"""The procedural world of the demo model, and the detector that judges videos of it."""

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from pack.demo import detector, world

SIZES = ((64, 96), (64, 64), (96, 64))
SINGLE = 160  # scenes the detector is held to
COMBINATIONS = [
    (shape, colour, *motion) for shape in world.SHAPES for colour in world.COLOURS for motion in world.MOTIONS
]


def movers(count):
    for seed in range(count):
        what = world.scene(seed, world.SPLITS[seed % 2], "move")
        yield what, world.render(what, world.FRAMES, *SIZES[seed % 3])


def test_a_seed_gives_one_scene_and_one_video():
    for split in world.SPLITS:
        assert world.scene(7, split) == world.scene(7, split)
    assert world.scene(7) != world.scene(8)
    video = world.render(world.scene(7))
    assert video.shape == (17, 64, 96, 3) and video.dtype == np.uint8
    assert (video == world.render(world.scene(7))).all()


def test_the_split_is_the_same_for_ever():
    names = "\n".join("/".join(parts) for parts in COMBINATIONS if world.split_of(*parts) == "test")
    assert hashlib.sha256(names.encode()).hexdigest()[:16] == "942d44e3754a5a1b"


def test_no_combination_is_in_both_splits():
    for seed in range(500):
        for split in world.SPLITS:
            what = world.scene(seed, split)
            assert world.split_of(what.shape, what.colour, *what.motion) == split


def test_training_shows_every_word_and_most_combinations():
    train = [parts for parts in COMBINATIONS if world.split_of(*parts) == "train"]
    share = len(train) / len(COMBINATIONS)
    assert 0.8 < share < 0.95
    for shape in world.SHAPES:
        for colour in world.COLOURS:
            assert sum(parts[:2] == (shape, colour) for parts in train) >= 10
    for motion in world.MOTIONS:
        assert sum(parts[2:] == motion for parts in train) >= 20
        assert sum(parts[2:] == motion for parts in COMBINATIONS) > sum(parts[2:] == motion for parts in train)


def test_every_action_is_drawn():
    drawn = Counter(world.scene(seed).motion for seed in range(3000))
    assert set(drawn) == set(world.MOTIONS)


def test_objects_stay_in_the_picture():
    for seed in range(200):
        what = world.scene(seed)
        for height, width in SIZES:
            centre = world.centres(what, 17, height, width)
            reach = 0.1 * 64
            assert (centre >= reach).all() and (centre <= np.array([width, height]) - reach).all(), what


def test_a_moving_shape_touches_no_edge():
    for what, video in movers(60):
        ground = world.render(replace(what, action="appear"), 1, *video.shape[1:3])[0]
        edge = np.ones(video.shape[1:3], dtype=bool)
        edge[1:-1, 1:-1] = False
        assert (np.abs(video.astype(int) - ground).max(axis=(0, 3))[edge] <= 1).all(), what


def test_a_shorter_clip_is_the_beginning_of_a_longer_one():
    for seed in range(10):
        what = world.scene(seed)
        np.testing.assert_allclose(world.centres(what, 9), world.centres(what, 17)[:9])
    what = world.scene(3, action="move")
    assert (world.render(what, 1)[0] == world.render(what, 17)[0]).all()


def test_edges_are_smooth():
    what = replace(world.scene(0), shape="circle", gradient="none", background=("black", "black"), action="move")
    values = np.unique(world.render(what, 1)[0, :, :, 0])
    assert len(values) > 10


@pytest.mark.parametrize("style", world.STYLES)
def test_captions_say_what_happens(style):
    for seed in range(300):
        what = world.scene(seed)
        text = world.caption(what, style, seed)
        assert text == world.caption(what, style, seed)
        assert any(word in text for word in world.ADJECTIVES[what.colour])
        assert any(word in text for word in world.NOUNS[what.shape])
        if what.action == "move":
            assert any(way in text for way in world.WAYS[what.direction])
        if style != "short" and what.action != "pass":
            assert any(word in text.lower() for word in world.SIZE_WORDS[what.size])
        if style != "short":
            assert any(word in text for name in what.background for word in world.GROUND_WORDS[name])


def test_one_scene_is_told_in_many_ways():
    what = world.scene(5, action="move")
    for style in world.STYLES:
        assert len({world.caption(what, style, seed) for seed in range(100)}) > 40


def test_long_captions_are_long_and_unordered():
    places = []
    for seed in range(500):
        what = world.scene(seed)
        text = world.caption(what, "long", seed)
        assert world.LONG_WORDS[0] <= len(text.split()) <= world.LONG_WORDS[1], text
        places.append(min(text.find(noun) for noun in world.NOUNS[what.shape] if noun in text) / len(text))
    assert np.quantile(places, 0.1) < 0.25 and np.quantile(places, 0.9) > 0.6


def test_synonyms_of_different_things_differ():
    for words in (world.NOUNS, world.ADJECTIVES, world.SIZE_WORDS, world.SPEED_WORDS, world.WAYS, world.GROUND_WORDS):
        told = [word for synonyms in words.values() for word in synonyms]
        assert len(told) == len(set(told))


def test_colours_stand_out_from_every_ground():
    for colour in world.COLOURS.values():
        for ground in world.BACKGROUNDS.values():
            assert np.linalg.norm(np.subtract(colour, ground)) > 60


@pytest.mark.parametrize("disturb", ["none", "noise", "blur"])
def test_detector_reads_the_true_world(disturb, record_property):
    draw = np.random.default_rng(0)
    right = Counter()
    for what, video in movers(SINGLE):
        if disturb == "noise":
            video = np.clip(video + draw.normal(0, 8, video.shape), 0, 255)
        if disturb == "blur":
            padded = np.pad(video.astype(float), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
            video = sum(
                padded[:, 1 + dy : padded.shape[1] - 1 + dy, 1 + dx : padded.shape[2] - 1 + dx] / 9
                for dy in (-1, 0, 1)
                for dx in (-1, 0, 1)
            )
        seen = detector.measure(video)
        for name in ("shape", "colour", "direction"):
            right[name] += getattr(seen, name) == getattr(what, name)
    for name, count in right.items():
        record_property(name, count / SINGLE)
        assert count / SINGLE >= 0.99, right


def test_detector_measures_centres_and_ways():
    for what, video in movers(30):
        seen = detector.measure(video)
        true = world.centres(what, 17, *video.shape[1:3])
        path = seen.centres - seen.centres[0]
        np.testing.assert_allclose(path, true - true[0], atol=0.5)
        assert seen.way == pytest.approx(world.SPEEDS[what.speed], abs=0.02)


@pytest.mark.parametrize(("action", "low", "high"), [("grow", 2, 20), ("shrink", 0, 0.5), ("rotate", 0.8, 1.25)])
def test_detector_measures_growth(action, low, high):
    for seed in range(20):
        seen = detector.measure(world.render(world.scene(seed, action=action)))
        assert low < seen.growth < high and seen.direction == ""


def test_detector_sees_nothing_where_nothing_is():
    what = world.scene(0, action="appear")
    seen = detector.measure(world.render(what, 1))
    assert (seen.shape, seen.colour, seen.direction) == ("", "", "")
    noise = np.random.default_rng(0).normal(128, 5, (5, 64, 96, 3))
    assert detector.measure(noise).colour == ""


def test_detector_tells_wrong_from_right():
    """The score of other scenes' prompts is near chance: one of four shapes, eight colours, eight directions."""
    whats, videos = zip(*movers(120), strict=True)
    seen = [detector.measure(video) for video in videos]
    for name, chance in (("shape", 1 / 4), ("colour", 1 / 8), ("direction", 1 / 8)):
        hits = np.mean([getattr(seen[i - 7], name) == getattr(what, name) for i, what in enumerate(whats)])
        assert hits < 2.5 * chance


def test_a_prompt_of_the_world_is_inside_it():
    for seed in range(300):
        for split in world.SPLITS:
            for style in world.STYLES:
                assert world.outside(world.caption(world.scene(seed, split), style, 7 * seed + 1)) == ""


@pytest.mark.parametrize(
    "prompt, unknown",
    [("a panda plays the guitar", "panda, plays, guitar"), ("a red dog moves left", "dog"), ("it moves left", "")],
)
def test_a_prompt_outside_the_world_is_told_what_the_world_is(prompt, unknown):
    line = world.outside(prompt)
    assert "\n" not in line and all(name in line for name in (*world.SHAPES, *world.COLOURS))
    assert line.endswith(f"read: {unknown}.") if unknown else "read" not in line
