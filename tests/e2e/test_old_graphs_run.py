"""Graphs of the older wrapper, posted as they were, run on the server: every form of every node it had."""

import copy

import pytest
from pack.legacy import reduced
from pack.legacy.native import FILE_COMBOS
from pack.tests.old_graphs import CASES, OldGraph, problems, whole

from .server import Prompt, Server

WIDTH, HEIGHT, LENGTH, STEPS = 96, 64, 9, 2
SMALL = {"width": WIDTH, "height": HEIGHT, "num_frames": LENGTH, "video_length": LENGTH, "steps": STEPS}
SMALL |= {"base_resolution": 64, "backend": "cudagraphs"}  # the other backend compiles for minutes on a CPU
# Models that the tests have, for those that the graphs name.
MODELS = {
    "THUDM/CogVideoX-5b-I2V": "feizhengcong/CogvideoX-Interpolation",
    "kijai/CogVideoX-Fun-5b": "alibaba-pai/CogVideoX-Fun-V1.1-5b-InP",
    "kijai/CogVideoX-5b-Tora": "Tora_T2V_diffusers",
    "cogvideox.safetensors": "CogVideoX_1_5_5b_T2V_bf16.safetensors",
    "cogvideox_vae.safetensors": "cogvideox_vae_bf16.safetensors",
    "CogVideoX_5b_GGUF_Q4_0.safetensors": "CogVideoX_1_5_5b_T2V_bf16.safetensors",
    "TheDenk/cogvideox-5b-controlnet-canny-v1": "diffusion_pytorch_model",
    "first.safetensors": "pytorch_lora_weights.safetensors",
    "orbit_left.safetensors": "orbit_left_lora_weights.safetensors",
}
# What the server has for the nodes of other packs, and for a text encoder of the released size.
TEXT_ENCODER = {
    "class_type": "CogVideoXLoadTextEncoder",
    "inputs": {"text_encoder_name": "t5xxl_fp16.safetensors"},
}
OTHERS: dict[str, dict] = {
    "CLIPLoader": TEXT_ENCODER,
    "DualCLIPLoader": TEXT_ENCODER,
    "LoadImage": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "VHS_LoadVideo": {"class_type": "GetVideoComponents", "inputs": {"video": ["video", 0]}},
    "SplineEditor": {
        "class_type": "PrimitiveStringMultiline",
        "inputs": {"value": '[{"x": 10, "y": 10}, {"x": 80, "y": 50}]'},
    },
}
VIDEO = {"class_type": "LoadVideo", "inputs": {"file": "video.mp4"}}


def posted(graph: OldGraph) -> Prompt:
    """Return an old graph as the page would post it, small, on the models that are here."""
    prompt = graph.prompt()
    for id, node in prompt.items():
        kind, inputs = node["class_type"], node["inputs"]
        if kind in OTHERS:
            prompt[id] = {**copy.deepcopy(OTHERS[kind])}
            if kind == "SplineEditor":  # gives the string as its second
                for user in prompt.values():
                    user["inputs"].update({k: [id, 0] for k, value in user["inputs"].items() if value == [id, 1]})
        elif kind == "VHS_VideoCombine":
            prompt[id] = {"class_type": "SaveImage", "inputs": {"images": inputs["images"], "filename_prefix": "old"}}
        else:
            inputs.update({name: SMALL[name] for name in SMALL.keys() & inputs.keys()})
            inputs.update({k: MODELS[v] for k, v in inputs.items() if isinstance(v, str) and v in MODELS})
    if any(node["class_type"] == "GetVideoComponents" for node in prompt.values()):
        prompt["video"] = copy.deepcopy(VIDEO)
    for node in list(prompt.values()):  # a video that gives the run its length; elsewhere longer ones are cut
        if node["class_type"] == "CogVideoControlImageEncode":
            inputs = {"image": node["inputs"]["control_video"], "batch_index": 0, "length": LENGTH}
            prompt["cut"] = {"class_type": "ImageFromBatch", "inputs": inputs}
            node["inputs"]["control_video"] = ["cut", 0]
    return prompt


@pytest.mark.parametrize(("node_type", "era"), CASES)
def test_every_form_of_every_node_runs(server: Server, node_type: str, era: int):
    run = server.run(posted(whole(node_type, era)))
    assert run.end == "execution_success", run.message
    assert len(run.files) == LENGTH


def test_the_page_gets_graphs_that_fit_the_nodes_of_the_server(server: Server):
    schema = {name: reduced(info) for name, info in server.object_info.items()}
    for case in CASES:
        reply = server.post("/cogvideox/convert", whole(*case).editor())
        assert reply["report"]["converted"], case
        # Models that the tests do not have: the value is there, the list has others.
        wrong = [
            one for one in problems(reply["graph"], schema) if not any(f" {name} is " in one for name in FILE_COMBOS)
        ]
        assert wrong == [], case
