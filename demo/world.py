"""The procedural world of cogvideox-mini: coloured shapes that do one thing each, and captions that say so.

Everything follows from a seed: `scene` draws what happens, `render` paints it at any size and length, `caption` tells
it in a few words or in many. Combinations of shape, colour and motion are split by a hash: those of "test" are never
drawn for "train", so a model that paints them has understood the words and not remembered a clip.

Lengths are in units of the shorter side of the picture, x to the right and y down; time 1 is frame 16.
"""

from __future__ import annotations

import math
import random
import re
import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = {
    "red": (222, 36, 36),
    "orange": (246, 138, 20),
    "yellow": (250, 226, 36),
    "green": (36, 172, 56),
    "cyan": (24, 204, 212),
    "blue": (40, 76, 232),
    "purple": (134, 44, 192),
    "pink": (246, 100, 184),
}
BACKGROUNDS = {
    "black": (14, 14, 16),
    "grey": (128, 128, 128),
    "white": (240, 240, 240),
    "navy": (18, 26, 66),
    "dark green": (16, 50, 30),
    "maroon": (66, 16, 28),
    "sky blue": (168, 204, 236),
    "sand": (226, 212, 174),
    "lavender": (206, 192, 232),
    "mint": (190, 230, 206),
}
GRADIENTS = ("none", "down", "right")
SIZES = {"small": 0.15, "medium": 0.175, "large": 0.2}  # radius
SPEEDS = {"slow": 0.26, "normal": 0.38, "fast": 0.5}  # way travelled by frame 16

DIAGONAL = math.sqrt(0.5)
DIRECTIONS = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up-left": (-DIAGONAL, -DIAGONAL),
    "up-right": (DIAGONAL, -DIAGONAL),
    "down-left": (-DIAGONAL, DIAGONAL),
    "down-right": (DIAGONAL, DIAGONAL),
}
# Each action with the directions it knows and how often it is drawn.
ACTIONS: dict[str, tuple[tuple[str, ...], float]] = {
    "move": (tuple(DIRECTIONS), 0.58),
    "bounce": (("vertical", "horizontal"), 0.08),
    "grow": (("",), 0.06),
    "shrink": (("",), 0.06),
    "rotate": (("clockwise", "counterclockwise"), 0.07),
    "appear": (("",), 0.05),
    "pass": (("left", "right"), 0.10),
}
MOTIONS = tuple((action, direction) for action, (directions, _) in ACTIONS.items() for direction in directions)

SPLITS = ("train", "test")
TEST_SHARE = 8  # one combination in so many is held out
STYLES = ("short", "medium", "long")
LONG_WORDS = (60, 150)

FRAMES = 17
MARGIN = 0.03  # between a shape at its outermost and the edge of the picture
GROWTH = (0.5, 1.5)  # radius of a growing shape at its start and at frame 16, in its own size
TURN = math.pi  # turned by frame 16
BOUNCES = 2
FADE = (0.15, 0.7)  # when an appearing shape begins and ends to
PASS_RADIUS = 0.15
PASS_ROWS = (0.27, 0.73)  # heights at which two shapes pass each other
INNER_STAR = 0.45  # radius of the star's notches in its own
# From the centre to the corners, so that shapes of one size look about equally large.
RADIUS = {"circle": 0.9, "square": 1.12, "triangle": 1.15, "star": 1.2}
REACH = max(RADIUS.values())


@dataclass(frozen=True)
class Scene:
    """One clip: a shape with a colour and a size, what it does, and where.

    `background` names the colours of the ground, the second reached at the far end of `gradient`. `place` (0..1 along
    x and y) picks among the positions that keep the shape inside the picture. `other` is the shape and colour that
    the first one passes.
    """

    shape: str
    colour: str
    size: str
    background: tuple[str, str]
    gradient: str
    action: str
    direction: str
    speed: str
    place: tuple[float, float]
    other: tuple[str, str] | None = None

    @property
    def motion(self) -> tuple[str, str]:
        """What is done, and which way."""
        return self.action, self.direction


def split_of(shape: str, colour: str, action: str, direction: str) -> str:
    """Return the split a combination belongs to, for ever."""
    key = f"{shape}/{colour}/{action}/{direction}"
    return "test" if zlib.crc32(key.encode()) % TEST_SHARE == 0 else "train"


def scene(seed: int, split: str = "train", action: str | None = None) -> Scene:
    """Draw scene number `seed` of a split, of one action if it is given."""
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r}; there are {', '.join(SPLITS)}.")
    draw = random.Random(f"{split}/{action}/{seed}")
    weights = [share for _, share in ACTIONS.values()]
    while True:
        does = action or draw.choices(list(ACTIONS), weights)[0]
        direction = draw.choice(ACTIONS[does][0])
        shape, colour = draw.choice(SHAPES), draw.choice(list(COLOURS))
        if does == "rotate" and shape == "circle":
            continue  # a turning circle looks like one at rest
        if split_of(shape, colour, does, direction) == split:
            break
    first, second = draw.sample(list(BACKGROUNDS), 2)
    gradient = draw.choices(GRADIENTS, (0.5, 0.25, 0.25))[0]
    other = None
    if does == "pass":
        other = (draw.choice(SHAPES), draw.choice([name for name in COLOURS if name != colour]))
    return Scene(
        shape=shape,
        colour=colour,
        size=draw.choice(list(SIZES)),
        background=(first, first if gradient == "none" else second),
        gradient=gradient,
        action=does,
        direction=direction,
        speed=draw.choice(list(SPEEDS)),
        place=(draw.random(), draw.random()),
        other=other,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Painting


def _polygon(shape: str) -> np.ndarray:
    """Corners [N, 2] of a shape of radius 1, counterclockwise from the top."""
    count = {"square": 4, "triangle": 3, "star": 10}[shape]
    angle = np.arange(count) * (2 * math.pi / count) - math.pi / 2 + (math.pi / 4 if shape == "square" else 0)
    radius = np.where(np.arange(count) % 2 == 1, INNER_STAR, 1.0) if shape == "star" else np.ones(count)
    corners = np.stack((np.cos(angle), np.sin(angle)), axis=1) * radius[:, None]
    return (corners * RADIUS[shape]).astype(np.float32)


POLYGONS = {shape: _polygon(shape) for shape in SHAPES if shape != "circle"}


def _depth(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return about how far inside the edge of the unit shape each point is, negative outside."""
    if shape == "circle":
        return RADIUS["circle"] - np.sqrt(x * x + y * y)
    if shape == "star":
        # Ten mirrored sectors, each bounded by one edge from a tip to a notch.
        sector = math.pi / 5
        angle = np.arctan2(x, -y)
        angle = np.abs(angle - 2 * sector * np.round(angle / (2 * sector)))
        radius = np.sqrt(x * x + y * y)
        x, y = radius * np.sin(angle), -radius * np.cos(angle)
        edges = ((POLYGONS["star"][0], POLYGONS["star"][1]),)
    else:
        corners = POLYGONS[shape]
        edges = tuple(zip(corners, np.roll(corners, -1, axis=0), strict=True))
    depth = None
    for (x0, y0), (x1, y1) in edges:
        length = math.hypot(x1 - x0, y1 - y0)
        inside = ((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) / length
        depth = inside if depth is None else np.minimum(depth, inside)
    return depth


def _span(low: float, high: float, at: float) -> float:
    return low + (high - low) * at if high > low else (low + high) / 2


def _triangle_wave(phase: np.ndarray) -> np.ndarray:
    """0 at whole numbers, 1 between them."""
    return 1 - np.abs(1 - 2 * (phase % 1))


def _course(what: Scene, time: np.ndarray, extent: tuple[float, float]) -> list[tuple]:
    """Return (shape, colour, x, y, radius, angle, opacity) of every object, each number an array over time."""
    still, size, (u, v) = np.zeros_like(time), SIZES[what.size], what.place
    radius, angle, opacity = still + size, still, still + 1
    reach = size * REACH * (GROWTH[1] if what.action in ("grow", "shrink") else 1) + MARGIN
    width, height = extent
    if what.action == "pass":
        sign = 1.0 if what.direction == "right" else -1.0
        radius = still + PASS_RADIUS
        reach = PASS_RADIUS * REACH + MARGIN
        across = width / 2 + sign * (width / 2 - reach) * (2 * time - 1)
        first, second = PASS_ROWS if v < 0.5 else PASS_ROWS[::-1]
        return [
            (what.shape, what.colour, across, still + first * height, radius, angle, opacity),
            (what.other[0], what.other[1], width - across, still + second * height, radius, angle, opacity),
        ]
    if what.action == "bounce":
        if what.direction == "vertical":
            y = height - reach - min(height - 2 * reach, 0.5) * np.abs(np.sin(math.pi * BOUNCES * time))
            x = still + _span(reach, width - reach, u)
        else:
            x = reach + (width - 2 * reach) * _triangle_wave(time)
            y = still + _span(reach, height - reach, v)
        return [(what.shape, what.colour, x, y, radius, angle, opacity)]
    dx = dy = 0.0
    if what.action == "move":
        dx, dy = (SPEEDS[what.speed] * part for part in DIRECTIONS[what.direction])
    x0 = _span(reach + max(0.0, -dx), width - reach - max(0.0, dx), u)
    y0 = _span(reach + max(0.0, -dy), height - reach - max(0.0, dy), v)
    x, y = x0 + dx * time, y0 + dy * time
    if what.action in ("grow", "shrink"):
        start, end = GROWTH if what.action == "grow" else GROWTH[::-1]
        radius = size * (start + (end - start) * time)
    elif what.action == "rotate":
        angle = TURN * time * (1 if what.direction == "clockwise" else -1)
    elif what.action == "appear":
        opacity = np.clip((time - FADE[0]) / (FADE[1] - FADE[0]), 0, 1)
    return [(what.shape, what.colour, x, y, radius, angle, opacity)]


def centres(what: Scene, frames: int = FRAMES, height: int = 64, width: int = 96) -> np.ndarray:
    """Return where the first object's centre is, in pixels (x, y): [F, 2]."""
    shorter = min(height, width)
    time = np.arange(frames) / (FRAMES - 1)
    _, _, x, y, *_ = _course(what, time, (width / shorter, height / shorter))[0]
    return np.stack((x, y), axis=1) * shorter


def _cover(shape: str, dx, dy, radius, angle, opacity, pixel: float) -> np.ndarray:
    """Return how much of points (dx, dy) away from its centre an object covers, its edge one `pixel` wide."""
    cos, sin = np.cos(angle), np.sin(angle)
    depth = _depth(shape, (dx * cos + dy * sin) / radius, (dy * cos - dx * sin) / radius) * radius
    return np.clip(depth / pixel + 0.5, 0, 1) * opacity


def coverage(what: Scene, frames: list[int], height: int, width: int, step: int) -> np.ndarray:
    """Return how much of points every `step` pixels the objects cover in these frames: [F, H / step, W / step]."""
    shorter = min(height, width)
    x = ((np.arange(0, width, step, dtype=np.float32) + step / 2) / shorter)[None, None, :]
    y = ((np.arange(0, height, step, dtype=np.float32) + step / 2) / shorter)[None, :, None]
    covers = []
    for shape, _, *numbers in _course(what, np.array(frames) / (FRAMES - 1), (width / shorter, height / shorter)):
        px, py, radius, angle, opacity = (np.asarray(value, dtype=np.float32)[:, None, None] for value in numbers)
        covers.append(_cover(shape, x - px, y - py, radius, angle, opacity, step / shorter))
    return np.maximum.reduce(covers)


def render(
    what: Scene, frames: int = FRAMES, height: int = 64, width: int = 96, colours: dict[str, tuple] = COLOURS
) -> np.ndarray:
    """Paint the scene with smooth edges, in RGB of `colours`: uint8 [F, H, W, 3]."""
    shorter = min(height, width)
    extent = (width / shorter, height / shorter)
    x = ((np.arange(width, dtype=np.float32) + 0.5) / shorter)[None, None, :]
    y = ((np.arange(height, dtype=np.float32) + 0.5) / shorter)[None, :, None]
    first, second = (np.array(BACKGROUNDS[name], dtype=np.float32) for name in what.background)
    far = {"none": 0 * x, "down": y / extent[1], "right": x / extent[0]}[what.gradient]
    ground = first + (second - first) * np.broadcast_to(far, (1, height, width))[..., None]
    video = np.repeat(ground, frames, axis=0)  # [F, H, W, 3]

    time = np.arange(frames) / (FRAMES - 1)
    for shape, colour, *numbers in _course(what, time, extent):
        px, py, radius, angle, opacity = (np.asarray(value, dtype=np.float32)[:, None, None] for value in numbers)
        reach = float(radius.max()) * REACH + 1 / shorter
        # Only the box the object ever touches is painted.
        left, right = (np.clip(np.array([px.min() - reach, px.max() + reach]) * shorter, 0, width)).astype(int)
        top, bottom = (np.clip(np.array([py.min() - reach, py.max() + reach]) * shorter, 0, height)).astype(int)
        right, bottom = min(right + 1, width), min(bottom + 1, height)
        dx, dy = x[:, :, left:right] - px, y[:, top:bottom] - py
        cover = _cover(shape, dx, dy, radius, angle, opacity, 1 / shorter)  # [F, h, w]
        box = video[:, top:bottom, left:right]
        box += (np.array(colours[colour], dtype=np.float32) - box) * cover[..., None]
    return (video + 0.5).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# Telling

NOUNS = {
    "circle": ("circle", "ball", "disc", "dot", "round shape"),
    "square": ("square", "box", "block", "tile", "square shape"),
    "triangle": ("triangle", "triangle shape", "triangular shape", "three-cornered shape"),
    "star": ("star", "star shape", "five-pointed star", "star figure"),
}
ADJECTIVES = {
    "red": ("red", "bright red", "crimson"),
    "orange": ("orange", "bright orange"),
    "yellow": ("yellow", "bright yellow", "lemon yellow"),
    "green": ("green", "bright green", "emerald green"),
    "cyan": ("cyan", "turquoise", "bright cyan"),
    "blue": ("blue", "bright blue", "royal blue"),
    "purple": ("purple", "violet", "deep purple"),
    "pink": ("pink", "hot pink", "rose pink"),
}
SIZE_WORDS = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium-sized", "mid-sized", "average-sized"),
    "large": ("large", "big", "huge"),
}
SPEED_WORDS = {
    "slow": ("slowly", "at a slow pace", "without any hurry"),
    "normal": ("steadily", "at a steady pace", "at a normal speed"),
    "fast": ("quickly", "at a fast pace", "in a great hurry"),
}
MOVES = ("moves", "slides", "glides", "drifts", "travels", "floats", "heads", "goes")
WAYS = {
    "left": ("left", "to the left", "leftward", "towards the left side"),
    "right": ("right", "to the right", "rightward", "towards the right side"),
    "up": ("up", "upward", "straight up", "towards the top"),
    "down": ("down", "downward", "straight down", "towards the bottom"),
    "up-left": ("up and to the left", "diagonally up and left", "towards the upper left corner", "up-left"),
    "up-right": ("up and to the right", "diagonally up and right", "towards the upper right corner", "up-right"),
    "down-left": ("down and to the left", "diagonally down and left", "towards the lower left corner", "down-left"),
    "down-right": (
        "down and to the right",
        "diagonally down and right",
        "towards the lower right corner",
        "down-right",
    ),
}
DEEDS = {
    ("bounce", "vertical"): ("bounces up and down", "hops up and down", "keeps bouncing off the floor"),
    ("bounce", "horizontal"): ("bounces from side to side", "goes to the right edge and comes back"),
    ("grow", ""): ("grows", "gets bigger and bigger", "swells in place", "becomes larger"),
    ("shrink", ""): ("shrinks", "gets smaller and smaller", "dwindles in place", "becomes smaller"),
    ("rotate", "clockwise"): ("rotates clockwise", "spins clockwise", "turns clockwise in place"),
    ("rotate", "counterclockwise"): ("rotates counterclockwise", "spins counterclockwise", "turns anticlockwise"),
    ("appear", ""): ("appears", "fades in", "slowly becomes visible", "appears out of nothing"),
}
GROUND_WORDS = {
    "black": ("black",),
    "grey": ("grey", "gray"),
    "white": ("white",),
    "navy": ("navy", "dark blue"),
    "dark green": ("dark green", "forest green"),
    "maroon": ("maroon", "dark red"),
    "sky blue": ("sky blue", "pale blue", "light blue"),
    "sand": ("sand-coloured", "beige"),
    "lavender": ("lavender", "pale purple"),
    "mint": ("mint", "pale green"),
}
OPENINGS = (
    "This short clip shows a very simple scene.",
    "In this video there is not much to see, and that is on purpose.",
    "A calm and minimal animation, drawn in a flat style.",
    "The following is a plain piece of motion graphics.",
    "We look at a quiet little animation with clean edges.",
)
FILLERS = (
    "The camera does not move at all and the framing stays the same from beginning to end.",
    "There is no text, no logo and no other decoration anywhere in the picture.",
    "The light is even, so that no shadows fall and nothing shines.",
    "The edges are crisp and the colour is solid, as if it had been cut out of paper.",
    "Nothing else happens, and nobody enters the scene.",
    "The mood is peaceful, a little like a slow afternoon with nothing to do.",
    "It could be part of a lesson for children who learn to name what they see.",
    "One may imagine soft music in the background, although there is no sound.",
    "The whole thing lasts about two seconds and could be played again and again.",
    "The style is that of an old educational film, reduced to what is needed.",
    "Every detail is easy to recognise even on a small screen.",
    "The composition leaves plenty of empty room around it.",
)
DECOYS = (
    "Nobody would mistake it for a {colour} {noun}.",
    "It is certainly not a {colour} {noun}, even if one looks only for a moment.",
    "A {colour} {noun} would look very different, but there is none here.",
    "Unlike the {colour} {noun} of another clip, it is a thing of its own.",
)
WRONG_WAYS = (
    "At no time does it go {way}.",
    "It never turns around and it does not go {way}.",
)


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _thing(draw: random.Random, shape: str, colour: str, size: str = "") -> str:
    words = [draw.choice(SIZE_WORDS[size])] if size else []
    return " ".join((*words, draw.choice(ADJECTIVES[colour]), draw.choice(NOUNS[shape])))


def _deed(draw: random.Random, what: Scene) -> str:
    """What the object does, as a phrase that follows its name."""
    if what.action == "move":
        return f"{draw.choice(MOVES)} {draw.choice(WAYS[what.direction])}"
    if what.action == "pass":
        other = _article(_thing(draw, *what.other))
        verb = draw.choice(("passes", "moves past", "goes past"))
        back = "left" if what.direction == "right" else "right"
        return draw.choice(
            (
                f"moves {what.direction} and {verb} {other} that moves {back}",
                f"{verb} {other}, the first going {what.direction} and the second going {back}",
            )
        )
    return draw.choice(DEEDS[what.motion])


def _ground(draw: random.Random, what: Scene) -> str:
    first, second = (draw.choice(GROUND_WORDS[name]) for name in what.background)
    if what.gradient == "none":
        return f"{_article(first)} {draw.choice(('background', 'backdrop', 'ground'))}"
    far = "from top to bottom" if what.gradient == "down" else "from left to right"
    word = draw.choice(("gradient", "background", "backdrop"))
    return f"a {word} that fades from {first} to {second} {far}"


def _short(draw: random.Random, what: Scene) -> str:
    thing, deed = _article(_thing(draw, what.shape, what.colour)), _deed(draw, what)
    return draw.choice((f"{thing} {deed}", f"{thing} {deed}", f"{thing} that {deed}", f"a video of {thing}, it {deed}"))


def _medium(draw: random.Random, what: Scene) -> str:
    thing, deed = _article(_thing(draw, what.shape, what.colour, what.size)), _deed(draw, what)
    if what.action == "move":
        deed += f" {draw.choice(SPEED_WORDS[what.speed])}"
    ground = _ground(draw, what)
    text = draw.choice(
        (
            f"{thing} {deed} in front of {ground}.",
            f"In front of {ground}, {thing} {deed}.",
            f"On {ground} there is {thing}. It {deed}.",
            f"We see {ground}. {thing} {deed}.",
        )
    )
    return ". ".join(part[:1].upper() + part[1:] for part in text.split(". "))


def _long(draw: random.Random, what: Scene, drill: bool = False) -> str:
    noun, deed = draw.choice(("shape", "object", "figure", "thing")), _deed(draw, what)
    if what.action == "move":
        deed += f" {draw.choice(SPEED_WORDS[what.speed])}"
    thing = _thing(draw, what.shape, what.colour)
    size = draw.choice(SIZE_WORDS[what.size])
    facts = [
        f"{draw.choice(('The only one that matters', f'The {noun} to watch', 'What we see'))} is {_article(thing)}.",
        f"{draw.choice(('As the clip goes on, it', 'While we watch, it', 'What it does is simple: it'))} {deed}.",
        f"{draw.choice((f'The {noun}', 'In comparison with the picture it'))} is {size}.",
        f"{draw.choice(('Behind it lies', 'The scene is set on'))} {_ground(draw, what)}.",
    ]
    if what.action == "pass":
        facts = facts[:2] + facts[3:]  # both have the same size
    if draw.random() < 0.4 or drill:
        other_shape = draw.choice([name for name in SHAPES if name != what.shape])
        other_colour = draw.choice([name for name in COLOURS if name != what.colour])
        facts.append(draw.choice(DECOYS).format(colour=other_colour, noun=draw.choice(NOUNS[other_shape][:2])))
    if what.action == "move" and (draw.random() < 0.3 or drill):
        wrong = draw.choice([name for name in WAYS if name != what.direction])
        facts.append(draw.choice(WRONG_WAYS).format(way=draw.choice(WAYS[wrong])))
    draw.shuffle(facts)
    if drill:
        return " ".join(facts)
    limit = draw.randint(LONG_WORDS[0], LONG_WORDS[1])
    sentences = ([draw.choice(OPENINGS)] if draw.random() < 0.7 else []) + facts
    for filler in draw.sample(FILLERS, len(FILLERS)):
        words = sum(len(sentence.split()) for sentence in sentences)
        if words >= LONG_WORDS[0] and words + len(filler.split()) > limit:
            break
        sentences.insert(draw.randint(0, len(sentences)), filler)
    return " ".join(sentences)


def drill(what: Scene, seed: int = 0) -> str:
    """Tell the scene as the long style does, always with what is not there and without sentences that say nothing.

    For training alone: all of it has to be read.
    """
    return _long(random.Random(f"drill/{seed}/{what}"), what, drill=True)


def caption(what: Scene, style: str = "short", seed: int = 0) -> str:
    """Tell the scene: "short" a phrase, "medium" a sentence or two with size and ground, "long" 60 to 150 words.

    The long style puts its sentences in any order among others that say nothing, and sometimes names what is not there.
    """
    if style not in STYLES:
        raise ValueError(f"There is no style {style!r}; there are {', '.join(STYLES)}.")
    draw = random.Random(f"{style}/{seed}/{what}")
    return {"short": _short, "medium": _medium, "long": _long}[style](draw, what)


# ---------------------------------------------------------------------------------------------------------------------
# What the world does not know

WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")
ALL_WORDS_SEEDS = 1500  # scenes whose captions have every word


@cache
def words() -> frozenset[str]:
    """Return every word of the captions, in small letters."""
    return frozenset(
        word
        for seed in range(ALL_WORDS_SEEDS)
        for style in STYLES
        for word in WORD.findall(caption(scene(seed), style, seed).lower())
    )


def outside(prompt: str) -> str:
    """Return one line on what the world is, if the prompt speaks of something else or names no shape; else nothing."""
    asked = WORD.findall(prompt.lower())
    nouns = {noun.split()[0].split("-")[0] for names in NOUNS.values() for noun in names}
    unknown = list(dict.fromkeys(word for word in asked if word not in words()))
    if not unknown and any(word.split("-")[0] in nouns for word in asked):
        return ""
    line = (
        f"The demo model knows one world: a {', '.join(SHAPES[:-1])} or {SHAPES[-1]} in {', '.join(COLOURS)} that "
        "moves, bounces, grows, shrinks, rotates, appears or passes another one, on a plain or graded ground."
    )
    return f"{line} It has never read: {', '.join(unknown)}." if unknown else line
