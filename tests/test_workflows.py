"""The workflow files by themselves: whole graphs of known nodes, laid out for reading, that say what they need."""

import json
import re
from pathlib import Path

import pytest
from pack.tools import make_blueprints

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
PREVIEWED = ("CogVideoXSampler", "KSampler", "SamplerCustomAdvanced")
GROUPS = ["Models", "Prompt", "Video", "Save"]  # in every workflow, others between
TITLE_HEIGHT = 30
PREVIEW = 280  # px that the clip of a preview takes beneath a sampler, which grows by it: 220, and 271 in Vue nodes

# What CogVideoX's authors publish for 50 steps with guidance on one A100, in seconds (table of models in the README of
# zai-org/CogVideo), and the clip it is for: width, height, frames; the width of the network and its latents in a patch.
PUBLISHED = {
    "2B": (90, (720, 480, 49), 1920, 1),
    "5B": (180, (720, 480, 49), 3072, 1),
    "1.5": (1000, (1360, 768, 81), 3072, 2),
}
FAMILIES = {"-2b": "2B", "X_1_5": "1.5", "void": "1.5", "DOVE": "1.5"}  # by part of the file's name; others 5B
SIZED = (
    "EmptyCogVideoXLatentVideo",
    "CogVideoXImageToVideo",
    "CogVideoXIdentityToVideo",
    "CogVideoXControlToVideo",
    "CogVideoXInpaintVideo",
    "CogVideoXVOIDConditioning",
    "CogVideoXContinueVideo",
    "ImageScale",
    "ImageFromBatch",
)
TEXT_TOKENS = 226

each_graph = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)


def nodes_of(graph: dict, *types: str) -> list[dict]:
    return [node for node in graph["nodes"] if node["type"] in types]


def widget(name: str, key: str, *types: str):
    """Return the value of the first widget of this name in nodes of these types, in their order, or None."""
    for node in (node for type in types for node in nodes_of(GRAPHS[name], type)):
        names = [entry["name"] for entry in node["inputs"] if entry.get("widget")]
        if "control_after_generate" not in names and {"seed", "noise_seed"} & set(names):
            names.insert(next(k for k, entry in enumerate(names) if entry.endswith("seed")) + 1, "")  # the page's own
        if key in names:
            return node["widgets_values"][names.index(key)]
    return None


def work(clip: tuple[int, int, int], inner: int, latents: int) -> float:
    """Return what a pass costs, but for a factor: the linear layers of its tokens, and attention of all to all."""
    width, height, frames = clip
    tokens = -(-((frames - 1) // 4 + 1) // latents) * (height // 16) * (width // 16) + TEXT_TOKENS
    return tokens * (6 * inner + tokens)


def time_line(name: str) -> str:
    """Return what a note says of time: steps, times the published seconds of one, scaled to size and frames."""
    if name.startswith("demo_"):
        return "Time: five seconds on two CPU cores."
    nodes = GRAPHS[name]["nodes"]
    loader = next(node for node in nodes if re.match("CogVideoXLoad(?!TextE|VAE|LoRA|Control)", node["type"]))
    family = next((kind for part, kind in FAMILIES.items() if part in loader["widgets_values"][0]), "5B")
    seconds, clip, *network = PUBLISHED[family]
    size = tuple(widget(name, key, *SIZED) for key in ("width", "height", "length"))
    windows = 1
    if nodes_of(GRAPHS[name], "WanContextWindowsManual"):
        known, overlap = (widget(name, f"context_{key}", "WanContextWindowsManual") for key in ("length", "overlap"))
        latents, window, shared = ((frames - 1) // 4 + 1 for frames in (size[2], known, overlap + 1))
        windows = 1 + -(-(latents - window) // (window - shared + 1))
        size = (*size[:2], known)
    samplers = ("KSampler", "CogVideoXSampler")
    steps = widget(name, "steps", *samplers, "CogVideoXScheduler")
    if widget(name, "sampler_name", "CogVideoXSamplerSelect") == "one step":
        steps = 1
    guided = widget(name, "cfg", *samplers, "CFGGuider") not in (None, 1.0)
    passes = 1 + guided + len(nodes_of(GRAPHS[name], "ConditioningCombine"))  # of which the authors' steps have two
    step = windows * passes * seconds / 50 / 2 * work(size, *network) / work(clip, *network)
    total = steps * step
    long = (
        f"{int(total / 60 + 0.5)} minutes"
        if total >= 115
        else f"{float(f'{total:.1g}' if total < 10 else f'{total:.2g}'):g} s"
    )
    each = f"{steps} steps of {step:.2g} s" if steps > 1 else "one step"
    return f"Time: about {long} on an A100: {each}, going by the authors' figures."


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
    assert 4 <= len(lines) <= 7 and lines[-1].startswith("Time: ")
    assert "`models/" in note["widgets_values"][0], "it does not say where files go"


@pytest.mark.parametrize("name", GRAPHS)
def test_note_says_how_long_it_takes(name):
    (note,) = nodes_of(GRAPHS[name], "MarkdownNote")
    assert note["widgets_values"][0].splitlines()[-1].startswith(time_line(name))


def test_known_times_are_those_of_the_authors():
    """The clip that each figure was published for."""
    assert time_line("v2v") == "Time: about 90 s on an A100: 50 steps of 1.8 s, going by the authors' figures."
    assert time_line("t2v") == "Time: about 3 minutes on an A100: 50 steps of 3.6 s, going by the authors' figures."
    assert time_line("i2v_15") == "Time: about 17 minutes on an A100: 50 steps of 20 s, going by the authors' figures."


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
def test_preview_of_a_sampler_has_room_in_its_group(graph):
    for node in nodes_of(graph, *PREVIEWED):
        left, top, right, bottom = box(node)
        room = left, bottom, right, bottom + PREVIEW
        assert [other["type"] for other in graph["nodes"] if overlap(box(other), room)] == []
        areas = [group["bounding"] for group in graph["groups"]]
        assert any(x < left and y < top and right < x + w and bottom + PREVIEW < y + h for x, y, w, h in areas)


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


def test_blueprints_are_those_of_the_workflows():
    files = {path.stem: path.read_text("utf-8") for path in (ROOT / "subgraphs").glob("*.json")}
    assert files == {title: make_blueprints.text_of(title) for title in make_blueprints.BLUEPRINTS}


@pytest.mark.parametrize("title", make_blueprints.BLUEPRINTS)
def test_blueprint_is_one_node_whose_inside_is_joined(title):
    graph = make_blueprints.build(title, make_blueprints.BLUEPRINTS[title])
    (node,), (inside,) = graph["nodes"], graph["definitions"]["subgraphs"]
    assert node["type"] == inside["id"] and node["title"] == inside["name"] == title
    assert [entry["name"] for entry in node["inputs"]] == [entry["name"] for entry in inside["inputs"]]
    assert [entry["type"] for entry in node["outputs"]] == ["VIDEO"]
    assert len(node["widgets_values"]) == len(make_blueprints.BLUEPRINTS[title].widgets)
    nodes = {one["id"]: one for one in inside["nodes"]}
    links = {link["id"]: link for link in inside["links"]}
    for link in links.values():
        ends = [inside["inputs"][link["origin_slot"]] if link["origin_id"] == make_blueprints.INPUTS else None]
        ends += [inside["outputs"][link["target_slot"]] if link["target_id"] == make_blueprints.OUTPUTS else None]
        for end in filter(None, ends):
            assert end["linkIds"] == [link["id"]] and end["type"] == link["type"]
        if link["target_id"] in nodes:
            assert nodes[link["target_id"]]["inputs"][link["target_slot"]]["link"] == link["id"]
    used = {id for entry in inside["inputs"] + inside["outputs"] for id in entry["linkIds"]}
    used |= {entry["link"] for one in nodes.values() for entry in one["inputs"]} - {None}
    assert used == set(links)
