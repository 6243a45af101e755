"""Every workflow runs on the server to a video file of the right length, size and speed, and says how far it is."""

import numpy as np
import pytest
from pack.demo.run import set_prompt
from PIL import Image

from . import videos
from .server import WORKFLOWS, Prompt, Server

WIDTH, HEIGHT, LENGTH, STEPS = 96, 64, 9, 3
SMALL = {"width": WIDTH, "height": HEIGHT, "length": LENGTH, "steps": STEPS}
SAMPLERS = ("KSampler", "CogVideoXSampler", "SamplerCustomAdvanced")
DECODERS = ("VAEDecode", "CogVideoXVAEDecode", "CogVideoXDecodeToVideo")
# cut_and_drag fills its four places in to 3 * 8 + 1 frames; continue_video goes on from one frame.
SOURCE_FRAMES = 12  # of the video that the tests load
SPECIAL = {"cut_and_drag": {"length": 25, "multiplier": 8}, "continue_video": {"overlap": 1}}
FPS = {"t2v_15": 16, "i2v_15": 16, "t2v_upscale_interpolate": 16}  # others: 8
# At the source's speed.
FPS |= dict.fromkeys(("v2v", "v2v_caption", "restore_dove", "controlnet", "remove_void", "remove_void_pass2"), 10)
FPS |= dict.fromkeys(("fun_inpaint", "fun_outpaint", "fun_control", "fun_pose"), 10)
WRITTEN = "a red ball rolls to the left"


def with_written_prompts(prompt: Prompt) -> Prompt:
    """Put a written prompt in the place of a language model."""
    for id in [id for id, node in prompt.items() if node["class_type"] == "TextGenerate"]:
        del prompt[prompt[id]["inputs"]["clip"][0]]
        for node in prompt.values():
            node["inputs"] = {name: WRITTEN if value == [id, 0] else value for name, value in node["inputs"].items()}
        prompt[id] = {"class_type": "PreviewAny", "inputs": {"source": prompt[id]["inputs"]["prompt"]}}
    return prompt


def with_tiny_text_encoder(prompt: Prompt) -> Prompt:
    """Exchange the stock CLIPLoader, which builds a T5 of XXL size whatever the file holds."""
    for node in prompt.values():
        if node["class_type"] == "CLIPLoader":
            node["class_type"] = "CogVideoXLoadTextEncoder"
            node["inputs"] = {"text_encoder_name": node["inputs"]["clip_name"]}
    return prompt


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_makes_its_video(server: Server, name: str):
    values = {**SMALL, **SPECIAL.get(name, {})}
    prompt = with_tiny_text_encoder(with_written_prompts(server.prompt(name, **values)))
    for node in prompt.values():  # sizes that the workflow leaves to another node
        node["inputs"].update({key: value for key, value in values.items() if key in node["inputs"]})
    run = server.run(prompt)
    assert run.end == "execution_success", run.message

    sampling = run.progress(*SAMPLERS)
    assert sampling == sorted(sampling) and len(set(sampling)) == len(sampling)
    assert len(sampling) > 1 or name == "restore_dove"  # one step
    assert sampling[-1] == (STEPS, STEPS)
    decoding = run.progress(*DECODERS)
    assert decoding == sorted(decoding) and decoding[-1] == (values["length"], values["length"])
    if encoding := run.progress("CogVideoXVAEEncode"):
        assert encoding == sorted(encoding) and encoding[-1] == ((LENGTH - 1) // 4 + 1,) * 2
    assert encoding or name != "v2v"
    saver = next(key for key, node in run.prompt.items() if node["class_type"] == "SaveVideo")
    assert saver in [data["node"] for data in run.of("executed")]

    frames, scale = (2 * LENGTH - 1, 4) if name == "t2v_upscale_interpolate" else (values["length"], 1)
    if name == "continue_video":
        frames += SOURCE_FRAMES - 1
    (file,) = run.files
    video = videos.read(file)
    assert video.frames.shape == (frames, HEIGHT * scale, WIDTH * scale, 3)
    assert video.fps == FPS.get(name, 8)
    assert video.frames.std() > 1, "the video is of one colour"
    if name == "train_lora":
        assert list((server.base / "output" / "loras").glob("*.safetensors"))


def test_twenty_seconds_of_the_built_in_model_go_into_a_file(server: Server):
    windows = {"context_length": 17, "context_overlap": 9}
    prompt = server.prompt("long_video", **{**SMALL, "length": 161, "pipeline": "cogvideox-mini"}, **windows)
    set_prompt(prompt, "a red ball moves to the right")
    run = server.run(prompt)
    assert run.end == "execution_success", run.message
    assert run.progress("CogVideoXDecodeToVideo")[-1] == (161, 161)
    (file,) = run.files
    video = videos.read(file)
    assert video.frames.shape == (161, HEIGHT, WIDTH, 3) and video.fps == 8
    assert video.frames.std() > 1, "the video is of one colour"


def test_the_sampler_in_parts_gives_the_video_of_the_whole_one(server: Server):
    """As the note of t2v_advanced promises, but for rounding, which depends on how the machine shares out its work."""
    whole, parts, other = (of_seed(server, *run) for run in (("t2v", 5), ("t2v_advanced", 5), ("t2v_advanced", 6)))
    assert mean_difference(whole, parts) < 0.1 < 5 < mean_difference(whole, other)


def of_seed(server: Server, name: str, seed: int) -> np.ndarray:
    """The frames a workflow makes, before a codec magnifies what rounding does to them, [F, H, W, 3]."""
    prompt = server.prompt(name, seed=seed, noise_seed=seed, **SMALL)
    set_prompt(prompt, "a ship on a carpet")
    saver = next(key for key, node in prompt.items() if node["class_type"] == "SaveVideo")
    del prompt[saver]
    video = next(node for node in prompt.values() if node["class_type"] == "CreateVideo")
    inputs = {"images": video["inputs"]["images"], "filename_prefix": "frame"}
    prompt[saver] = {"class_type": "SaveImage", "inputs": inputs}
    run = server.run(prompt)
    assert run.end == "execution_success", run.message
    return np.stack([np.asarray(Image.open(file)) for file in run.files])


def mean_difference(one: np.ndarray, other: np.ndarray) -> float:
    """In levels of 255."""
    return float(np.abs(one.astype(int) - other).mean())
