"""The workflow files by themselves: whole graphs of known nodes, laid out for reading, that say what they need."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {path.stem: path for path in sorted((ROOT / "workflows").glob("*.json"))}
GRAPHS = {name: json.loads(path.read_text("utf-8")) for name, path in FILES.items()}
EXPECTED = {
    "demo_t2v",
    "demo_i2v",
    "t2v",
    "i2v",
    "first_last_frame",
    "v2v",
    "restore_dove",
    "fun_inpaint",
    "fun_outpaint",
    "fun_control",
    "fun_pose",
    "remove_void",
    "remove_void_pass2",
    "t2v_15",
    "i2v_15",
    "t2v_prompt",
    "i2v_prompt",
    "v2v_caption",
    "t2v_advanced",
    "t2v_fast",
    "t2v_lora",
    "t2v_upscale_interpolate",
    "train_lora",
    "merge_blocks",
    "warped_noise",
    "cut_and_drag",
    "regional_prompts",
    "camera_orbit",
    "long_video",
    "continue_video",
    "t2v_riflex",
    "controlnet",
    "tora",
    "diffusion_as_shader",
    "consisid",
}

OURS = {
    id for path in (ROOT / "nodes").glob("*.py") for id in re.findall(r'\bnode_id="(\w+)"', path.read_text("utf-8"))
}
# Stock nodes that every supported ComfyUI has; the server test runs them.
STOCK = {
    "BasicGuider",
    "CFGGuider",
    "Canny",
    "CLIPLoader",
    "ConditioningCombine",
    "ConditioningSetMask",
    "ControlNetApplyAdvanced",
    "CreateVideo",
    "DisableNoise",
    "EmptyImage",
    "FrameInterpolate",
    "FrameInterpolationModelLoader",
    "GetVideoComponents",
    "ImageBatch",
    "ImageCompositeMasked",
    "ImageFromBatch",
    "ImagePadForOutpaint",
    "ImageScale",
    "ImageToMask",
    "ImageUpscaleWithModel",
    "InvertMask",
    "KSampler",
    "LoadImage",
    "LoadVideo",
    "LoadVideoTextDataSetFromFolder",
    "LoraModelLoader",
    "LossGraphNode",
    "MarkdownNote",
    "MaskComposite",
    "OpticalFlowLoader",
    "RandomNoise",
    "SamplerCustomAdvanced",
    "SaveLoRA",
    "SaveVideo",
    "TextGenerate",
    "SolidMask",
    "TrainLoraNode",
    "UpscaleModelLoader",
    "VAEDecode",
    "VOIDQuadmaskPreprocess",
    "WanContextWindowsManual",
}
BESIDE = {"MarkdownNote", "LossGraphNode", "SaveLoRA"}  # lead to no video: they say or save something else
MODEL_FOLDERS = {
    "diffusion_models",
    "text_encoders",
    "vae",
    "upscale_models",
    "frame_interpolation",
    "loras",
    "optical_flow",
    "controlnet",
}
FOLDER_LOADERS = {
    "CogVideoXLoadPipeline",
    "CogVideoXLoadModel",
    "CogVideoXLoadTora",
    "CogVideoXLoadDiffusionAsShader",
    "CogVideoXLoadConsisID",
}
ABSOLUTE = re.compile(r"(^|[\s\"'(])(/\w+/|~/|[A-Za-z]:[\\/]|\\\\|file:)")
LONG = {"long_video": 161, "t2v_riflex": 97}  # frames, where more than the model makes is the point
GROUPS = ["Models", "Prompt", "Video", "Save"]  # in every workflow, others between
TITLE_HEIGHT = 30

each_graph = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)


def nodes_of(graph: dict, *types: str) -> list[dict]:
    return [node for node in graph["nodes"] if node["type"] in types]


def strings(value) -> list[str]:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return [text for part in value for text in strings(part)] if isinstance(value, list) else [str(value)]


def box(node: dict) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a node with its title."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE_HEIGHT, x + width, y + height


def overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def test_every_promised_workflow_is_there():
    assert EXPECTED <= set(FILES)


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_workflow_has_a_small_picture(path):
    picture = path.with_suffix(".jpg").read_bytes()
    assert picture.startswith(b"\xff\xd8\xff") and picture.endswith(b"\xff\xd9")
    assert len(picture) < 60_000


def test_no_picture_is_left_without_its_workflow():
    assert {path.stem for path in (ROOT / "workflows").glob("*.jpg")} == set(FILES)


@each_graph
def test_workflow_is_a_plain_graph_of_the_editor(graph):
    assert graph["version"] == 0.4
    assert "definitions" not in graph, "demo/run.py knows no subgraphs"
    ids = [node["id"] for node in graph["nodes"]]
    assert len(set(ids)) == len(ids) and max(ids) <= graph["last_node_id"]


@each_graph
def test_workflow_uses_our_nodes_and_stock_nodes_only(graph):
    assert {node["type"] for node in graph["nodes"]} <= OURS | STOCK
    for node in graph["nodes"]:
        if node["type"] != "MarkdownNote":
            pack = "cogvideox-native" if node["type"] in OURS else "comfy-core"
            assert node["properties"]["cnr_id"] == pack, node["type"]


def test_every_node_of_ours_is_in_a_workflow():
    used = {node["type"] for graph in GRAPHS.values() for node in graph["nodes"]}
    assert OURS - used == set()


@each_graph
def test_links_join_slots_of_their_type(graph):
    nodes = {node["id"]: node for node in graph["nodes"]}
    links = {link[0]: link for link in graph["links"]}
    assert len(links) == len(graph["links"]) and max(links) <= graph["last_link_id"]
    for id, origin, origin_slot, target, target_slot, kind in graph["links"]:
        output, into = nodes[origin]["outputs"][origin_slot], nodes[target]["inputs"][target_slot]
        assert id in output["links"] and into["link"] == id
        assert output["type"] == into["type"] == kind
    for node in graph["nodes"]:
        ends = [entry["link"] for entry in node["inputs"]] + [
            id for out in node["outputs"] for id in out["links"] or []
        ]
        assert {id for id in ends if id is not None} <= links.keys(), node["type"]


@each_graph
def test_every_node_leads_to_a_saved_video(graph):
    (saver,) = nodes_of(graph, "SaveVideo")
    origins = {link[0]: link[1] for link in graph["links"]}
    nodes = {node["id"]: node for node in graph["nodes"]}
    needed, queue = set(), [saver["id"]]
    while queue:
        id = queue.pop()
        needed.add(id)
        queue += [origins[entry["link"]] for entry in nodes[id]["inputs"] if entry["link"] is not None]
    assert {"MarkdownNote"} <= {node["type"] for id, node in nodes.items() if id not in needed} <= BESIDE


@each_graph
def test_workflow_names_no_path_of_a_machine(graph):
    assert [text for text in strings(graph) if ABSOLUTE.search(text.replace("https://", ""))] == []


@each_graph
def test_workflow_explains_itself_in_a_few_lines(graph):
    (note,) = nodes_of(graph, "MarkdownNote")
    lines = [line for line in note["widgets_values"][0].splitlines() if line]
    assert 4 <= len(lines) <= 6
    assert "`models/" in note["widgets_values"][0], "it does not say where files go"


@each_graph
def test_missing_models_can_be_offered(graph):
    """Each single file that a loader names has its address and folder; pipeline folders stand in the note."""
    (note,) = nodes_of(graph, "MarkdownNote")
    for node in graph["nodes"]:
        models = node["properties"].get("models", [])
        files = [value for value in node.get("widgets_values") or [] if str(value).endswith(".safetensors")]
        assert [model["name"] for model in models] == files, node["type"]
        for model in models:
            assert model["directory"] in MODEL_FOLDERS
            assert re.fullmatch(r"https://huggingface\.co/[\w.-]+/[\w.-]+/resolve/main/[\w./-]+", model["url"])
            assert model["url"].rsplit("/", 1)[1] == model["name"]
        if node["type"] in FOLDER_LOADERS and not files:
            folder = node["widgets_values"][0]
            if (ROOT / "demo" / folder).is_dir():
                continue  # comes with the pack
            assert re.search(rf"\[{folder}\]\(https://(huggingface\.co|github\.com)/", note["widgets_values"][0])


@each_graph
def test_nodes_stand_apart_and_inside_titled_groups(graph):
    boxes = [(node["type"], box(node)) for node in graph["nodes"]]
    for number, (one, a) in enumerate(boxes):
        assert [other for other, b in boxes[number + 1 :] if overlap(a, b)] == [], f"{one} is covered"
    titles = [group["title"] for group in graph["groups"]]
    assert [title for title in titles if title in GROUPS] == GROUPS and titles[-1] == "Save"
    areas = [(x, y, x + width, y + height) for x, y, width, height in (group["bounding"] for group in graph["groups"])]
    for type, (left, top, right, bottom) in boxes:
        inside = [area for area in areas if area[0] < left and area[1] < top and right < area[2] and bottom < area[3]]
        assert len(inside) == 1, f"{type} is in {len(inside)} groups"


@each_graph
def test_sizes_are_those_of_the_model(graph):
    name = next(name for name, known in GRAPHS.items() if known is graph)
    width, height, length, fps = (1360, 768, 81, 16) if name.endswith("_15") else (720, 480, 49, 8)
    if name.startswith("demo_"):
        width, height, length = 96, 64, 17
    length = LONG.get(name, length)
    for node in nodes_of(graph, "EmptyCogVideoXLatentVideo", "CogVideoXImageToVideo", "CogVideoXIdentityToVideo"):
        assert node["widgets_values"][:3] == [width, height, length]
    (maker,) = nodes_of(graph, "CreateVideo", "CogVideoXDecodeToVideo")
    linked = any(entry["name"] == "fps" and entry["link"] is not None for entry in maker["inputs"])
    (interpolator,) = nodes_of(graph, "FrameInterpolate") or [{"widgets_values": [1]}]
    if name == "cut_and_drag":
        return  # it interpolates what moves the noise, not the video
    assert linked or maker["widgets_values"][0] == fps * interpolator["widgets_values"][0]
