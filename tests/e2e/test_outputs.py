"""Workflows on the built-in model, wherever it can take the place of theirs: the video shows what was asked for.

Each video stays as NAME.mp4 among the artifacts, of which tools/make_thumbnails.py makes the pictures.
"""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pack.demo import detector, world
from pack.demo.run import set_prompt
from PIL import Image

from . import videos
from .server import ROOT, Prompt, Server, on_the_built_in_model
from .test_workflows_run import with_written_prompts

ARTIFACTS = Path(os.environ.get("E2E_ARTIFACTS", ROOT / ".dev" / "artifacts"))
SIZE = {"width": 96, "height": 64}
RUN = {"length": world.FRAMES, "steps": 30, "seed": 7, "noise_seed": 7}
# What the images and videos show that the workflows load.
BALL = world.Scene("circle", "orange", "large", ("navy", "navy"), "none", "move", "right", "fast", (0.2, 0.5))
DISC = world.Scene("circle", "blue", "large", ("sand", "sand"), "none", "move", "down-right", "fast", (0.3, 0.3))
SQUARE = world.Scene("square", "green", "large", ("mint", "mint"), "none", "move", "left", "fast", (0.7, 0.5))
SLOW = replace(BALL, speed="slow", place=(0.0, 0.5))


@dataclass(frozen=True)
class Case:
    """What is asked of a workflow, and seen in its video; empty: as the workflow has it, or not looked at."""

    prompt: str = ""
    colour: str = ""
    direction: str = ""
    scene: world.Scene = BALL
    values: tuple[tuple[str, Any], ...] = ()
    begins: bool = False  # with the scene's first frame


def of_scene(scene: world.Scene, **more: Any) -> Case:
    return Case(world.caption(scene), scene.colour, scene.direction, scene, begins=True, **more)


CASES = {
    "demo_t2v": Case(colour="yellow", direction="up-right"),
    "demo_i2v": Case(colour="red", direction="right"),
    "t2v": Case("a red square moves down and to the left on a sky blue background", "red", "down-left"),
    "t2v_15": Case("a purple circle moves to the right on a sand background", "purple", "right"),
    "t2v_advanced": Case("an orange circle moves up", "orange", "up"),
    "t2v_fast": Case("a blue square moves to the left on a white background", "blue", "left"),
    "t2v_riflex": Case("a cyan circle moves to the right", "cyan", "right", values=(("length", 33),)),
    "t2v_prompt": Case(colour="red", direction="left"),
    "merge_blocks": Case("a pink square moves down on a mint background", "pink", "down"),
    "long_video": Case(
        "a green square rotates clockwise on a lavender background",
        "green",
        values=(("length", 65), ("context_length", 17), ("context_overlap", 9)),
    ),
    "train_lora": Case("a green star moves to the right", "green", "right", values=(("steps", 20),)),
    "i2v": of_scene(DISC),
    "i2v_15": of_scene(SQUARE),
    "i2v_prompt": Case(colour="red", scene=replace(SQUARE, shape="circle", colour="red"), begins=True),
    "first_last_frame": of_scene(BALL),
    "continue_video": Case(world.caption(SLOW), "orange", "right", SLOW, values=(("overlap", 9),)),
    "v2v": Case("a blue circle moves to the right", "blue", "right"),
    "v2v_caption": Case(colour="red"),
}
REGIONS = ("a red circle moves up", "a blue square moves down")


def prepared(server: Server, name: str, case: Case) -> Prompt:
    """Return a workflow as prompt on the built-in model, with what `case` gives it."""
    frames = world.render(case.scene)
    pictures = iter((frames[0], frames[-1]))
    clips = server.base / "input" / "clips"
    clips.mkdir(exist_ok=True)
    videos.save(server.base / "input" / f"{name}.mp4", frames, fps=8)
    values = {**RUN, **dict(case.values)} | ({} if name.startswith("demo_") else SIZE)
    prompt = on_the_built_in_model(with_written_prompts(server.prompt(name, **values)))
    for id, node in prompt.items():
        if node["class_type"] == "LoadImage":
            Image.fromarray(next(pictures)).save(server.base / "input" / f"{name} {id}.png")
            node["inputs"]["image"] = f"{name} {id}.png"
        if node["class_type"] == "LoadVideo":
            node["inputs"]["file"] = f"{name}.mp4"
        if node["class_type"] == "LoadVideoTextDataSetFromFolder":
            node["inputs"]["folder"] = clips.name
            for number, scene in enumerate((BALL, DISC, SQUARE)):
                videos.save(clips / f"{number}.mp4", world.render(scene), fps=8)
                (clips / f"{number}.txt").write_text(world.caption(scene), encoding="utf-8")
        if node["class_type"] == "CogVideoXTextEncode" and "Negative" in node["_meta"]["title"]:
            node["inputs"]["text"] = ""
        node["inputs"].update({key: value for key, value in values.items() if key in SIZE and key in node["inputs"]})
    if case.prompt:
        set_prompt(prompt, case.prompt)
    return prompt


def video_of(server: Server, name: str, prompt: Prompt) -> np.ndarray:
    """Run a prompt, keep its video among the artifacts and return the frames, [F, H, W, 3]."""
    run = server.run(prompt)
    assert run.end == "execution_success", run.message
    (file,) = run.files
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, ARTIFACTS / f"{name}.mp4")
    return videos.read(file).frames


@pytest.mark.parametrize("name", CASES)
def test_video_shows_what_was_asked_for(server: Server, name: str):
    case = CASES[name]
    frames = video_of(server, name, prepared(server, name, case))
    seen = detector.measure(frames)
    assert not case.colour or seen.colour == case.colour
    assert not case.direction or seen.direction == case.direction
    if case.begins:
        assert np.abs(frames[0] - world.render(case.scene, 1)[0].astype(int)).mean() < 10


def test_regions_show_their_prompts(server: Server):
    prompt = prepared(server, "regional_prompts", Case())
    titles = {node["_meta"]["title"]: node["inputs"] for node in prompt.values() if "_meta" in node}
    titles["Left"]["text"], titles["Right"]["text"] = REGIONS
    titles["Left half"]["width"] = SIZE["width"] // 2
    frames = video_of(server, "regional_prompts", prompt)
    halves = frames[:, :, : SIZE["width"] // 2], frames[:, :, SIZE["width"] // 2 :]
    assert [detector.measure(half).colour for half in halves] == ["red", "blue"]
