"""Graphs of the older wrapper become native ones: every node, every form it had, both formats; no host is needed."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pack.legacy import convert, signatures, stored_schema
from pack.legacy.conversion import kept_steps
from pack.tests.old_graphs import CASES, OldGraph, problems, whole

ROOT = Path(__file__).parents[1]
SCHEMA = stored_schema()
NO_EQUAL = {"CogVideoXFasterCache", "CogVideoPABConfig", "CogVideoTransformerEdit", "CogVideoLatentPreview"}


def by_type(graph: dict, *types: str) -> list[dict]:
    return [node for node in graph["nodes"] if node["type"] in types]


def values_of(node: dict) -> dict:
    """Return the widgets of a native node by name."""
    saved = [value for value in node["widgets_values"] if value not in signatures.AFTER_GENERATE]
    return dict(zip([entry["name"] for entry in node["inputs"] if "widget" in entry], saved, strict=True))


def source_of(graph: dict, node: dict, name: str) -> tuple[dict, int]:
    """Return the node and slot an input comes from."""
    (link,) = [entry["link"] for entry in node["inputs"] if entry["name"] == name]
    (found,) = [one for one in graph["links"] if one[0] == link]
    (origin,) = [one for one in graph["nodes"] if one["id"] == found[1]]
    return origin, found[2]


def native(graph: OldGraph) -> tuple[dict, list[str]]:
    converted, report = convert(graph.editor())
    assert problems(converted, SCHEMA) == []
    return converted, report.notes


@pytest.mark.parametrize(("node_type", "era"), CASES)
def test_every_form_of_every_node_becomes_a_whole_native_graph(node_type, era):
    graph = whole(node_type, era)
    old = copy.deepcopy(graph.editor())
    converted, report = convert(graph.editor())
    assert graph.editor() == old, "the graph that came was changed"
    assert problems(converted, SCHEMA) == []
    assert {id for id, _, _ in report.converted} == set(graph.eras)
    (saver,) = by_type(converted, "VHS_VideoCombine")
    assert saver["inputs"][0]["link"] is not None, "the video reaches nobody"
    (decoder,) = by_type(converted, "CogVideoXVAEDecode")
    assert source_of(converted, decoder, "samples")[0]["type"] in ("CogVideoXSampler", "SamplerCustomAdvanced")
    if node_type in NO_EQUAL:
        assert any(node_type in note for note in report.notes)


@pytest.mark.parametrize(("node_type", "era"), CASES)
def test_both_formats_become_the_same(node_type, era):
    graph = whole(node_type, era)
    editor, _ = convert(graph.editor())
    prompt, report = convert(graph.prompt())
    assert report.converted
    assert not {node["class_type"] for node in prompt.values()} & signatures.ERAS.keys()
    (end,) = [id for id, node in prompt.items() if node["class_type"] == "VHS_VideoCombine"]
    (saver,) = by_type(editor, "VHS_VideoCombine")

    def of_prompt(id: str):
        node = prompt[id]
        inputs = {
            name: (of_prompt(value[0]), value[1]) if isinstance(value, list) else value
            for name, value in node["inputs"].items()
        }
        return node["class_type"], inputs if node["class_type"] in SCHEMA else inputs.get("images")

    def of_editor(node: dict):
        inputs = values_of(node) if node["type"] in SCHEMA else {}
        for entry in node["inputs"]:
            if entry["link"] is not None:
                origin, slot = source_of(editor, node, entry["name"])
                inputs[entry["name"]] = (of_editor(origin), slot)
        return node["type"], inputs if node["type"] in SCHEMA else inputs.get("images")

    linked = {name for node in prompt.values() for name, value in node["inputs"].items() if isinstance(value, list)}
    assert linked
    assert of_prompt(end) == of_editor(saver)


def test_a_graph_keeps_its_look():
    graph = whole("CogVideoLoraSelect", 0)
    graph.node(1)["color"], graph.node(1)["bgcolor"] = "#432", "#653"
    old = graph.editor()
    new, _ = convert(old)
    assert new["groups"] == old["groups"] and new["extra"] == old["extra"] and new["version"] == old["version"]
    places = {node["id"]: node for node in new["nodes"]}
    for node in old["nodes"]:
        kept = places[node["id"]]
        assert kept["pos"] == node["pos"] and kept.get("title") == node.get("title")
        assert all(a >= b for a, b in zip(kept["size"], node["size"], strict=True))
        assert (kept.get("color"), kept.get("bgcolor")) == (node.get("color"), node.get("bgcolor"))
    untouched = [node for node in old["nodes"] if node["type"] == "VHS_VideoCombine"]
    assert [{**places[node["id"]], "inputs": 0} for node in untouched] == [{**node, "inputs": 0} for node in untouched]
    boxes = [(node["pos"], node["size"]) for node in new["nodes"] if node["id"] > len(old["nodes"])]
    for (x, y), (width, height) in boxes:
        for node in new["nodes"]:
            if (node["pos"], node["size"]) != ([x, y], [width, height]):
                (left, top), (wide, tall) = node["pos"], node["size"]
                assert left >= x + width or x >= left + wide or top >= y + height or y >= top + tall


def test_a_stack_of_loras_stands_between_loader_and_sampler():
    new, notes = native(whole("CogVideoLoraSelect", 0))
    (sampler,) = by_type(new, "CogVideoXSampler")
    last, _ = source_of(new, sampler, "model")
    first, _ = source_of(new, last, "model")
    loader, slot = source_of(new, first, "model")
    assert (loader["type"], slot) == ("CogVideoXLoadModel", 0)
    name, strength = ("lora_name", "strength") if "CogVideoXLoadLoRA" in SCHEMA else ("lora_name", "strength_model")
    assert [(values_of(one)[name], values_of(one)[strength]) for one in (first, last)] == [
        ("first.safetensors", 0.5),
        ("orbit_left.safetensors", 1.0),
    ]
    assert first["title"] == "Style"
    if "CogVideoXLoadLoRA" in SCHEMA:
        assert [values_of(one)["scaling"] for one in (first, last)] == ["auto", "1/rank"]


def test_one_option_node_serves_two_samplers_as_two_patches():
    graph = whole("CogVideoXTeaCache", 0)
    (first,) = [node["id"] for node in graph.nodes if node["type"] == "CogVideoSampler"]
    graph.add("CogVideoSampler", scheduler="Euler", **graph.sources[first])
    new, _ = native(graph)
    patches = by_type(new, "CogVideoXStepCache")
    assert len(patches) == 2 and [values_of(patch)["threshold"] for patch in patches] == [0.3, 0.3]
    assert {source_of(new, patch, "model")[0]["type"] for patch in patches} == {"CogVideoXLoadModel"}
    users = [source_of(new, node, "model")[0]["id"] for node in by_type(new, "CogVideoXSampler", "CogVideoXScheduler")]
    assert sorted(users) == sorted(patch["id"] for patch in patches)


def test_widget_values_are_carried():
    graph = whole("CogVideoSampler", -1)
    (id,) = [node["id"] for node in graph.nodes if node["type"] == "CogVideoSampler"]
    graph.node(id)["widgets_values"] = [48, 30, 7.5, 99, "increment", "CogVideoXDPMScheduler", 1.0]
    new, notes = native(graph)
    (sampler,) = by_type(new, "CogVideoXSampler")
    assert sampler["widgets_values"] == [99, "increment", 30, 7.5, "dpm", "reference", 1.0]
    (empty,) = by_type(new, "EmptyCogVideoXLatentVideo")
    assert empty["widgets_values"] == [640, 384, 49, 1]
    assert any("48 frames became 49" in note for note in notes)
    assert any("dynamic_cfg is 'reference'" in note for note in notes)


@pytest.mark.parametrize(("scheduler", "sampler"), [("DPM++", "dpmpp_2m"), ("Euler", "euler"), ("PNDM", "ipndm")])
def test_other_schedulers_run_on_the_reference_timesteps(scheduler, sampler):
    graph = whole("CogVideoSampler", -1)
    (id,) = [node["id"] for node in graph.nodes if node["type"] == "CogVideoSampler"]
    graph.node(id)["widgets_values"][5] = scheduler
    new, _ = convert(graph.editor())
    assert problems(new, SCHEMA) == []
    (node,) = by_type(new, "SamplerCustom")
    assert values_of(source_of(new, node, "sampler")[0]) == {"sampler_name": sampler}
    sigmas, _ = source_of(new, node, "sigmas")
    assert sigmas["type"] == "CogVideoXScheduler" and values_of(sigmas) == {"steps": 20, "denoise": 1.0}
    assert source_of(new, sigmas, "model") == source_of(new, node, "model")


def test_the_images_size_and_prompts_of_image_to_video():
    new, _ = native(whole("CogVideoImageEncode", -1))
    (node,) = by_type(new, "CogVideoXImageToVideo")
    (sampler,) = by_type(new, "CogVideoXSampler")
    assert [source_of(new, sampler, name) for name in ("positive", "negative", "latent_image")] == [
        (node, 0),
        (node, 1),
        (node, 2),
    ]
    assert source_of(new, node, "positive")[0]["title"] == "What it shows"
    size, slot = source_of(new, node, "width")
    assert (size["type"], slot) == ("GetImageSize", 0)
    assert source_of(new, size, "image")[0]["type"] == source_of(new, node, "start_image")[0]["type"] == "LoadImage"


def test_weights_in_brackets_are_read_as_the_wrapper_read_them():
    new, _ = native(whole("CogVideoTextEncode", -1))
    positive, negative = by_type(new, "CogVideoXTextEncode")
    assert values_of(positive) == {"text": "a (red:1.2) fox", "long_prompt": "truncate", "prompt_weights": True}
    assert values_of(negative)["prompt_weights"] is False
    (loader,) = by_type(new, "CLIPLoader")
    assert values_of(loader)["type"] == "cogvideox", "a T5 loaded for another model is refused"
    assert source_of(new, negative, "clip") == (loader, 0)


def test_a_text_encoder_that_others_use_stays_theirs():
    graph = whole("CogVideoTextEncode", -1)
    (clip,) = [node["id"] for node in graph.nodes if node["type"] == "CLIPLoader"]
    other = graph.add("Reroute")
    graph.connect(clip, "CLIP", other, "")
    graph.node(other)["type"] = "SomebodysTextEncode"
    new, _ = native(graph)
    assert sorted(values_of(node)["type"] for node in by_type(new, "CLIPLoader")[1:]) == ["cogvideox"]
    assert by_type(new, "CLIPLoader")[0]["widgets_values"][1] == "sd3"


def test_reroutes_and_get_nodes_of_the_wrappers_values_go_and_those_of_images_stay():
    graph = OldGraph()
    loader = graph.add("DownloadAndLoadCogVideoModel", model="THUDM/CogVideoX-2b")
    setter, getter = graph.add("SetNode"), graph.add("GetNode")
    graph.connect(loader, "model", setter, "*")
    clip = graph.add("CLIPLoader")
    text = graph.add("CogVideoTextEncode", clip=(clip, "CLIP"), prompt="a fox")
    empty = graph.add("EmptyLatentImage")
    sampler = graph.add(
        "CogVideoSampler",
        model=(getter, "*"),
        positive=(text, "conditioning"),
        negative=(text, "conditioning"),
        samples=(empty, "LATENT"),
    )
    bend = graph.add("Reroute")
    graph.connect(loader, "vae", bend, "")
    decode = graph.add("CogVideoDecode", vae=(bend, ""), samples=(sampler, "samples"))
    images = graph.add("Reroute")
    graph.connect(decode, "images", images, "")
    saver = graph.add("VHS_VideoCombine")
    graph.connect(images, "", saver, "images")
    new, _ = native(graph)
    assert [node["id"] for node in by_type(new, "SetNode", "GetNode", "Reroute")] == [images]
    (node,) = by_type(new, "CogVideoXSampler")
    assert source_of(new, node, "model")[0]["type"] == "CogVideoXLoadModel"


def test_muted_and_bypassed_nodes_stay_so():
    graph = whole("CogVideoXTeaCache", 0)
    graph.nodes[0]["mode"] = 4
    (cache,) = [node for node in graph.nodes if node["type"] == "CogVideoXTeaCache"]
    cache["mode"] = 2
    new, _ = native(graph)
    (patch,) = by_type(new, "CogVideoXStepCache")
    assert patch["mode"] == 4, "a muted option was one that was not given; a muted patch would stop the run"


def test_linked_widgets_stay_linked():
    graph = whole("CogVideoSampler", -1)
    (id,) = [node["id"] for node in graph.nodes if node["type"] == "CogVideoSampler"]
    video = graph.add("VHS_LoadVideo")
    graph.node(id)["inputs"].append(
        {"name": "num_frames", "type": "INT", "widget": {"name": "num_frames"}, "link": None}
    )
    graph.connect(video, "frame_count", id, "num_frames")
    new, _ = native(graph)
    (empty,) = by_type(new, "EmptyCogVideoXLatentVideo")
    assert source_of(new, empty, "length") == (new["nodes"][[n["id"] for n in new["nodes"]].index(video)], 1)


def test_video_to_video_encodes_the_frames_the_run_has():
    graph = OldGraph()
    loader = graph.add("DownloadAndLoadCogVideoModel", model="THUDM/CogVideoX-5b")
    text = graph.add("CogVideoTextEncode", clip=(graph.add("CLIPLoader"), "CLIP"), prompt="a fox")
    video = graph.add("VHS_LoadVideo")
    encoded = graph.add("CogVideoImageEncode", vae=(loader, "vae"), start_image=(video, "IMAGE"))
    prompts = {"positive": (text, "conditioning"), "negative": (text, "conditioning")}
    given = {"model": (loader, "model"), "samples": (encoded, "samples"), **prompts}
    graph.add("CogVideoSampler", num_frames=33, steps=20, denoise_strength=0.8, **given)
    new, _ = native(graph)
    (sampler,) = by_type(new, "CogVideoXSampler")
    encoder, _ = source_of(new, sampler, "latent_image")
    assert encoder["type"] == "CogVideoXVAEEncode" and values_of(encoder)["posterior"] == "sample"
    cut, _ = source_of(new, encoder, "pixels")
    assert values_of(cut) == {"batch_index": 0, "length": 33}
    assert (values_of(sampler)["steps"], values_of(sampler)["denoise"]) == (16, 0.8)


@pytest.mark.parametrize("steps", [1, 7, 25, 30, 50, 51])
@pytest.mark.parametrize("denoise", [0.05, 0.3, 1 / 3, 0.5, 0.7, 0.8, 0.95])
def test_the_last_steps_of_the_same_run_are_kept(steps, denoise):
    kept, strength = kept_steps(steps, denoise)
    assert kept == max(int(steps * denoise), 1)
    assert int(kept / strength) == steps and 0 < strength <= 1


def test_subgraphs_are_converted_inside():
    inner = whole("CogVideoSampler", -1).editor()
    links = [
        dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True))
        for link in inner["links"]
    ]
    last = max(link["id"] for link in links)
    (decode,) = by_type(inner, "CogVideoDecode")
    decode["outputs"][0]["links"].append(last + 1)
    links.append(dict(id=last + 1, origin_id=decode["id"], origin_slot=0, target_id=-20, target_slot=0, type="IMAGE"))
    part = {
        "id": "abc",
        "nodes": inner["nodes"],
        "links": links,
        "inputs": [],
        "state": {"lastNodeId": 20, "lastLinkId": 40},
    }
    part["outputs"] = [{"name": "images", "type": "IMAGE", "linkIds": [last + 1]}]
    outer = {"nodes": [{"id": 1, "type": "abc", "inputs": [], "outputs": []}], "links": [], "version": 0.4}
    outer["definitions"] = {"subgraphs": [part]}
    new, report = convert(outer)
    assert report.converted
    made = new["definitions"]["subgraphs"][0]
    assert not {node["type"] for node in made["nodes"]} & signatures.ERAS.keys()
    (leaving,) = [link for link in made["links"] if link["target_id"] == -20]
    assert made["outputs"][0]["linkIds"] == [leaving["id"]]
    assert [node["type"] for node in made["nodes"] if node["id"] == leaving["origin_id"]] == ["CogVideoXVAEDecode"]
    assert len({node["id"] for node in made["nodes"]}) == len(made["nodes"])


def test_nothing_is_touched_where_the_wrapper_is_installed():
    graph = whole("CogVideoSampler", 0).editor()
    same, report = convert(graph, {**SCHEMA, "CogVideoSampler": {}})
    assert same is graph and not report.converted and not report.notes


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_native_graphs_are_left_alone(path):
    graph = json.loads(path.read_text("utf-8"))
    same, report = convert(graph)
    assert same is graph and not report.converted and not report.notes


STRANGE = [
    None,
    [],
    "text",
    {},
    {"nodes": None},
    {"nodes": [None], "links": []},
    {"nodes": [{"type": "CogVideoSampler"}], "links": []},
    {"nodes": [{"id": 1, "type": "CogVideoSampler"}], "links": None},
    {"nodes": [{"id": 1, "type": "CogVideoSampler"}], "links": [None, [1], {"id": 3}]},
    {"nodes": [{"id": 1, "type": "CogVideoSampler", "widgets_values": "x", "inputs": "y", "outputs": 3}], "links": []},
    {"nodes": [{"id": 1, "type": "CogVideoDecode", "widgets_values": {"enable_vae_tiling": 5}}], "links": []},
    {"nodes": [{"id": "a", "type": "CogVideoTextEncode", "pos": "here", "size": {}}], "links": []},
    {
        "nodes": [{"id": 1, "type": "CogVideoLoraSelect", "inputs": [{"name": "prev_lora", "link": 1}], "outputs": []}],
        "links": [[1, 1, 0, 1, 0, "COGLORA"]],
    },
    {"1": {"class_type": "CogVideoSampler"}},
    {"1": {"class_type": "CogVideoSampler", "inputs": {"model": ["1", 0], "steps": ["1", 0], "num_frames": "x"}}},
    {"1": {"class_type": "CogVideoDecode", "inputs": {"samples": ["9", 0]}}},
    {"1": {"class_type": "CogVideoDecode", "inputs": 4, "_meta": 5}},
]


@pytest.mark.parametrize("graph", STRANGE)
def test_strange_graphs_never_raise(graph):
    before = copy.deepcopy(graph)
    converted, report = convert(graph)
    assert graph == before
    json.dumps([converted, report.as_dict()])
    if not report.converted:
        assert converted is graph


@pytest.mark.parametrize(("node_type", "era"), CASES)
def test_graphs_with_holes_never_raise(node_type, era):
    """Leave out one node, the links, the values: what is left is converted or left, never an error."""
    for hole in range(len(whole(node_type, era).nodes)):
        graph = whole(node_type, era).editor()
        del graph["nodes"][hole]
        _, report = convert(graph)
        assert not any("could not be converted" in note for note in report.notes), report.notes
        graph = whole(node_type, era).editor()
        graph["nodes"][hole]["widgets_values"] = graph["nodes"][hole]["widgets_values"] and None
        graph["nodes"][hole]["inputs"] = []
        _, report = convert(graph)
        assert not any("could not be converted" in note for note in report.notes), report.notes


def test_what_is_said_are_sentences():
    notes = {note for case in CASES for note in convert(whole(*case).editor())[1].notes}
    assert len(notes) > 5
    for note in notes:
        assert re.fullmatch(r"\S.*[.]", note) and "None" not in note and "  " not in note, note


def test_the_command_converts_folders_and_leaves_the_rest(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "old.json").write_text(json.dumps(whole("CogVideoSampler", 0).editor()), "utf-8")
    (tmp_path / "prompt.json").write_text(json.dumps(whole("CogVideoSampler", -1).prompt()), "utf-8")
    (tmp_path / "native.json").write_text((ROOT / "workflows" / "t2v.json").read_text("utf-8"), "utf-8")
    for call in ([str(ROOT / "legacy")], ["-m", "legacy"]):
        for made in tmp_path.rglob("*.native.json"):
            made.unlink()
        done = subprocess.run([sys.executable, *call, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        made = {path.name: json.loads(path.read_text("utf-8")) for path in tmp_path.rglob("*.native.json")}
        assert set(made) == {"old.native.json", "prompt.native.json"}
        assert problems(made["old.native.json"], SCHEMA) == []
        assert done.stdout.count("became native CogVideoX nodes") == 2
    (tmp_path / "broken.json").write_text("{", "utf-8")
    done = subprocess.run([sys.executable, str(ROOT / "legacy"), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1 and "broken.json: not read" in done.stdout
