"""Graphs of the older wrapper become native ones: every node, every form it had, both formats; no host is needed."""

import copy
import itertools
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pack.legacy import convert, signatures, stored_schema
from pack.legacy.samplers import kept_steps
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
    assert overlaps(new) == []


def overlaps(graph: dict) -> list[tuple[str, str]]:
    """Return the nodes that lie over each other, titles included."""
    found = []
    for one, other in itertools.combinations(graph["nodes"], 2):
        (left, top), (wide, tall) = one["pos"], one["size"]
        (x, y), (width, height) = other["pos"], other["size"]
        if left < x + width and x < left + wide and top - 30 < y + height and y - 30 < top + tall:
            found.append((one["type"], other["type"]))
    return found


def test_nodes_keep_their_places_and_those_that_grew_move_off_others():
    graph = whole("CogVideoImageEncode", -1)
    texts = [node for node in graph.nodes if node["type"] == "CogVideoTextEncode"]
    encoder, image = (graph.node(the(graph, name)) for name in ("CogVideoImageEncode", "LoadImage"))
    for place, text in enumerate(texts):
        text |= {"pos": [3000, 180 * place], "size": [460, 144]}
    encoder |= {"pos": [3600, 0], "size": [300, 150]}
    image |= {"pos": [3600, 190], "size": [300, 150]}
    group = {"title": "Image", "bounding": [3580, -60, 340, 420]}
    new, _ = convert({**graph.editor(), "groups": [group]})
    places = {node["id"]: node for node in new["nodes"]}
    assert [(places[one["id"]]["pos"], places[one["id"]]["size"]) for one in texts] == [
        ([3000, 180 * place], [460, 144]) for place in range(2)
    ], "a text may be as small as the editor lets it be"
    assert places[image["id"]]["pos"] == [3600, 190]
    grown = places[encoder["id"]]
    assert grown["size"][1] > 160 and grown["pos"] != [3600, 0]
    assert overlaps(new) == []
    x, y, wide, tall = new["groups"][0]["bounding"]
    assert x <= grown["pos"][0] and y <= grown["pos"][1] - 30
    assert x + wide >= grown["pos"][0] + grown["size"][0] and y + tall >= grown["pos"][1] + grown["size"][1]
    assert (x + wide, y + tall) >= (3920, 360), "a group never shrinks"
    assert (x, y + tall) != (3580, 360), "it was widened"
    near = {"title": "Another", "bounding": [x, 361, wide, 100]}, {"title": "Above", "bounding": [x, -200, wide, 139]}
    new, _ = convert({**graph.editor(), "groups": [group, *near]})
    assert new["groups"] == [group, *near], "groups that lay apart do so still"
    assert convert({**graph.editor(), "groups": [{"bounding": "none"}, None, group]})[1].converted


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
    linked_widget(graph, id, "seed", 5)
    graph.node(id)["widgets_values"][0] = 32
    new, _ = native(graph)
    (empty,), (sampler,) = by_type(new, "EmptyCogVideoXLatentVideo"), by_type(new, "CogVideoXSampler")
    assert values_of(empty)["length"] == 33 and values_of(sampler)["seed"] == 11, "what counts when a link is cut"
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


@pytest.mark.parametrize(
    ("node_type", "saved", "expected"),
    [
        ("CogVideoSampler", [480, 720, 48, 8, 30, 6, 5, "fixed", 0.7], {"cfg": 6, "denoise_strength": 0.7}),
        ("CogVideoSampler", [480, 720, 48, 8, 30, 6, 5, "fixed", "DPM", 0.7], {"fps": 8, "denoise_strength": 0.7}),
        ("CogVideoSampler", [480, 720, 48, 8, 30, 6, 5, "fixed", "DDIM", 16, 8, 0.7], {"t_tile_overlap": 8}),
        ("CogVideoSampler", [480, 720, 48, 30, 6, 5, "fixed", "DDIM", 16, 8, 0.7], {"steps": 30, "t_tile_length": 16}),
        ("CogVideoXFunVid2VidSampler", [49, 640, 7, "fixed", 25, 6, "DPM++", 0.6], {"base_resolution": 640, "seed": 7}),
        ("CogVideoXFunVid2VidSampler", [49, 640, 384, 7, "fixed", 25, 6, "DPM++", 0.6], {"height": 384, "seed": 7}),
        ("CogVideoXFunControlSampler", [42, "fixed", 25, 6, "DDIM", 1, 0, 1, 48, 8], {"t_tile_length": 48}),
        ("CogVideoXFunControlSampler", [42, "fixed", 25, 6, "DDIM", 1, 0, 1, 0.5], {"denoise_strength": 0.5}),
        ("DownloadAndLoadCogVideoGGUFModel", ["a", "bf16", False, "torch"], {"compile": "torch"}),
        ("DownloadAndLoadCogVideoGGUFModel", ["a", "bf16", True, "offload_device"], {"load_device": "offload_device"}),
        ("ToraEncodeTrajectory", ["", 640, 384, 41, 0.9, 0, 0.5, False], {"width": 640, "end_percent": 0.5}),
        ("ToraEncodeTrajectory", [640, 384, 41, 0.9, 0, 0.5, False], {"width": 640, "end_percent": 0.5}),
    ],
)
def test_values_tell_which_form_a_node_had(node_type, saved, expected):
    read = signatures.read(node_type, saved, ["pipeline"])
    assert read.unread == () and expected.items() <= read.values.items()


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


# --- what stands between and around -----------------------------------------------------------------------------------


def the(graph: OldGraph, node_type: str) -> int:
    (id,) = [node["id"] for node in graph.nodes if node["type"] == node_type]
    return id


def prompts(graph: OldGraph) -> dict:
    """Add what every sampler needs: a model and two prompts."""
    loader = graph.add("DownloadAndLoadCogVideoModel", model="THUDM/CogVideoX-5b")
    text = graph.add("CogVideoTextEncode", clip=(graph.add("CLIPLoader"), "CLIP"), prompt="a fox")
    return {"model": (loader, "model"), "positive": (text, "conditioning"), "negative": (text, "conditioning")}


@pytest.mark.parametrize("era", [0, 1])
def test_context_options_were_always_counted_in_frames_of_the_video(era):
    graph = whole("CogVideoContextOptions", era)
    options = graph.node(the(graph, "CogVideoContextOptions"))
    options["widgets_values"][:4] = ["temporal_tiling" if era == 0 else "static_standard", 48, 4, 8]
    (sampler,) = [node for node in graph.nodes if node["type"] == "CogVideoSampler"]
    sampler["widgets_values"][5] = "DPM++"
    new, _ = native(graph)
    (windows,) = by_type(new, "ContextWindowsManual")
    values = values_of(windows)
    assert [values[f"context_{name}"] for name in ("length", "overlap", "stride")] == [12, 2, 1]
    assert (values["context_schedule"], values["fuse_method"]) == ("standard_static", ("pyramid", "flat")[era])
    # With tiles the wrapper ran DDIM, whatever was chosen.
    assert bool(by_type(new, "CogVideoXSampler")) == (era == 0)


@pytest.mark.parametrize(
    ("node_type", "era", "lengths"), [("CogVideoSampler", 3, [4, 2]), ("CogVideoXFunControlSampler", 1, [12, 2])]
)
def test_tiles_in_time_become_context_windows(node_type, era, lengths):
    graph = whole(node_type, era)
    saved = graph.node(the(graph, node_type))["widgets_values"]
    saved[saved.index("DDIM")] = "DDIM_tiled"
    new, _ = native(graph)
    (windows,) = by_type(new, "ContextWindowsManual")
    values = values_of(windows)
    assert [values["context_length"], values["context_overlap"]] == lengths
    assert (values["context_schedule"], values["fuse_method"], values["dim"]) == ("standard_static", "pyramid", 2)
    (sampler,) = by_type(new, "CogVideoXSampler")
    assert source_of(new, sampler, "model") == (windows, 0) and values_of(sampler)["sampler_name"] == "ddim"
    assert not by_type(native(whole(node_type, era))[0], "ContextWindowsManual"), "DDIM alone had no tiles"


@pytest.mark.parametrize(
    ("frames", "scheduler", "tiled"), [(96, "DDIM", True), (16, "DDIM", False), (96, "DPM", False)]
)
def test_tiles_in_time_had_no_scheduler_of_their_own_at_first(frames, scheduler, tiled):
    graph = whole("CogVideoSampler", 2)
    graph.nodes[0]["widgets_values"][0] = "THUDM/CogVideoX-2b"
    saved = graph.node(the(graph, "CogVideoSampler"))["widgets_values"]
    saved[2], saved[8] = frames, scheduler
    new, notes = native(graph)
    assert len(by_type(new, "ContextWindowsManual")) == tiled
    assert not any("left out the noise shift" in note for note in notes), "DDIM was that of CogVideoX then"


def test_the_strength_of_a_text_is_a_mix_with_zeros():
    graph = whole("CogVideoTextEncode", 1)
    graph.node(the(graph, "CLIPLoader") + 1)["widgets_values"][1] = 0.4
    new, notes = native(graph)
    (sampler,) = by_type(new, "CogVideoXSampler")
    mix, _ = source_of(new, sampler, "positive")
    assert mix["type"] == "ConditioningAverage" and values_of(mix) == {"conditioning_to_strength": 0.4}
    text, _ = source_of(new, mix, "conditioning_to")
    zeros, _ = source_of(new, mix, "conditioning_from")
    assert zeros["type"] == "ConditioningZeroOut" and source_of(new, zeros, "conditioning") == (text, 0)
    assert text["title"] == "What it shows" and not any("strength" in note for note in notes)
    graph.node(the(graph, "CLIPLoader") + 1)["widgets_values"][1] = 1.5
    assert any("above 1" in note for note in native(graph)[1])


@pytest.mark.parametrize(("node_type", "era"), [("CogVideoControlNet", 0), ("CogVideoXFunControlSampler", 0)])
@pytest.mark.parametrize(("count", "more"), [(49, 0), (48, 1), (46, 3)])
def test_a_control_video_has_the_frames_of_the_video(node_type, era, count, more):
    """The wrapper asked for as many latent frames; here 48 frames are 49, and the last picture is held."""
    graph = whole(node_type, era)
    (sampler,) = [node for node in graph.nodes if node["type"].endswith("Sampler")]
    sampler["widgets_values"][0] = count
    new, _ = native(graph)
    name = "image" if node_type == "CogVideoControlNet" else "control_video"
    (user,) = by_type(new, "ControlNetApplyAdvanced", "CogVideoXControlToVideo")
    cut, _ = source_of(new, user, name)
    assert values_of(cut) == {"batch_index": 0, "length": 49}
    video, _ = source_of(new, cut, "image")
    if more:
        last, _ = source_of(new, video, "image2")
        if more > 1:
            assert values_of(last) == {"amount": more}
            last, _ = source_of(new, last, "image")
        assert values_of(last) == {"batch_index": -1, "length": 1}
        video, _ = source_of(new, video, "image1")
    assert video["type"] == "VHS_LoadVideo"


def test_a_control_video_that_gives_the_length_is_cut_where_it_has_another():
    graph = whole("CogVideoControlImageEncode", 0)
    new, _ = native(graph)
    (node,) = by_type(new, "CogVideoXControlToVideo")
    assert (source_of(new, node, "length")[0]["type"], source_of(new, node, "length")[1]) == ("GetImageSize", 2)
    graph.node(the(graph, "VHS_LoadVideo"))["widgets_values"]["frame_load_cap"] = 52
    new, notes = native(graph)
    (node,) = by_type(new, "CogVideoXControlToVideo")
    assert values_of(node)["length"] == values_of(source_of(new, node, "control_video")[0])["length"] == 49
    assert any("52 frames became 49" in note for note in notes)


def test_switches_and_operations_of_other_packs_stay_in_between():
    graph = OldGraph()
    given = prompts(graph)
    other = graph.add("DownloadAndLoadCogVideoModel", model="THUDM/CogVideoX-2b")
    switch = graph.add("Any Switch (rgthree)")
    graph.connect(given["model"][0], "model", switch, "any_01")
    graph.connect(other, "model", switch, "any_02")
    given["model"] = (switch, "*")
    first = graph.add("CogVideoSampler", samples=(graph.add("EmptyLatentImage"), "LATENT"), **given)
    larger = graph.add("LatentUpscale")
    graph.connect(first, "samples", larger, "samples")
    last = graph.add("CogVideoSampler", samples=(larger, "LATENT"), denoise_strength=0.5, **given)
    new, notes = native(graph)
    samplers = {node["id"]: node for node in by_type(new, "CogVideoXSampler")}
    assert source_of(new, samplers[last], "latent_image")[0]["type"] == "LatentUpscale"
    for sampler in samplers.values():
        switch, _ = source_of(new, sampler, "model")
        assert switch["type"] == "Any Switch (rgthree)"
        assert {source_of(new, switch, f"any_0{n}")[0]["type"] for n in (1, 2)} == {"CogVideoXLoadModel"}
    assert notes == []


def test_a_control_video_is_for_models_that_take_one():
    graph = whole("CogVideoXFunVid2VidSampler", 0)
    new, notes = native(graph)
    assert not by_type(new, "CogVideoXControlToVideo") and any("takes no control video" in note for note in notes)
    graph.nodes[0]["widgets_values"][0] = "alibaba-pai/CogVideoX-Fun-V1.1-5b-Pose"
    assert len(by_type(native(graph)[0], "CogVideoXControlToVideo")) == 1


def test_a_muted_image_is_not_given():
    graph = whole("CogVideoImageEncode", -1)
    for mode in (2, 4):
        graph.node(the(graph, "CogVideoImageEncode"))["mode"] = mode
        new, _ = native(graph)
        (node,), (sampler,) = by_type(new, "CogVideoXImageToVideo"), by_type(new, "CogVideoXSampler")
        assert node["mode"] == 4, "bypassed it hands the prompts on; muted it would stop the run"
        assert source_of(new, sampler, "positive") == (node, 0)
        assert source_of(new, sampler, "latent_image")[0]["type"] == "EmptyCogVideoXLatentVideo"


@pytest.mark.parametrize(
    ("old", "made"),
    [
        ("CogVideoControlNet", ["ControlNetApplyAdvanced"]),
        ("ToraEncodeTrajectory", ["CogVideoXTrajectory", "CogVideoXLoadTora"]),
    ],
)
def test_a_muted_guide_is_bypassed_with_all_that_serves_it(old, made):
    graph = whole(old, -1)
    graph.node(the(graph, old))["mode"] = 2
    new, _ = native(graph)
    assert [node["mode"] for node in by_type(new, *made)] == [4] * len(made)


def test_a_muted_lora_cuts_off_those_before_it():
    graph = whole("CogVideoLoraSelect", 0)
    first, last = [node for node in graph.nodes if node["type"] == "CogVideoLoraSelect"]
    last["mode"] = 4
    assert [node["mode"] for node in by_type(native(graph)[0], "CogVideoXLoadLoRA")] == [0, 4]
    last["mode"] = 2
    assert [node["mode"] for node in by_type(native(graph)[0], "CogVideoXLoadLoRA")] == [4, 4]


def test_a_bypassed_mix_of_prompts_hands_on_the_first():
    graph = whole("CogVideoTextEncodeCombine", 0)
    graph.node(the(graph, "CogVideoTextEncodeCombine"))["mode"] = 4
    new, _ = native(graph)
    (mix,) = by_type(new, "ConditioningAverage")
    assert source_of(new, mix, mix["inputs"][0]["name"])[0]["title"] == "What it shows"


def test_a_bypassed_resize_gives_no_size():
    graph = whole("CogVideoXFunResizeToClosestBucket", 0)
    graph.node(the(graph, "CogVideoXFunResizeToClosestBucket"))["mode"] = 4
    new, _ = native(graph)
    (node,) = by_type(new, "CogVideoXImageToVideo")
    assert source_of(new, node, "width")[0]["type"] == "GetImageSize"


def linked_widget(graph: OldGraph, id: int, name: str, value) -> int:
    """Let one of the editor's primitives give a widget's value."""
    primitive = graph.add("PrimitiveNode", values=[value, "fixed"])
    graph.node(id)["inputs"].append({"name": name, "type": "INT", "widget": {"name": name}, "link": None})
    graph.connect(primitive, "INT", id, name)
    return primitive


def test_primitives_are_read_where_their_value_changes_and_stay_linked_where_not():
    graph = whole("CogVideoSampler", -1)
    id = the(graph, "CogVideoSampler")
    linked_widget(graph, id, "num_frames", 48)
    linked_widget(graph, id, "scheduler", "Euler")
    seed = linked_widget(graph, id, "seed", 5)
    new, notes = native(graph)
    (empty,), (sampler,) = by_type(new, "EmptyCogVideoXLatentVideo"), by_type(new, "SamplerCustom")
    assert values_of(empty)["length"] == 49 and any("48 frames became 49" in note for note in notes)
    assert values_of(source_of(new, sampler, "sampler")[0]) == {"sampler_name": "euler"}
    assert source_of(new, sampler, "noise_seed")[0]["id"] == seed


def test_tora_was_a_model_of_its_own_at_first():
    graph = whole("ToraEncodeTrajectory", 0)
    graph.nodes[0]["widgets_values"][0] = "kijai/CogVideoX-5b-Tora"
    encoder, loader = (the(graph, kind) for kind in ("ToraEncodeTrajectory", "DownloadAndLoadToraModel"))
    graph.links = [link for link in graph.links if link[1] != loader]
    (entry,) = [entry for entry in graph.node(encoder)["inputs"] if entry["name"] == "tora_model"]
    entry["link"] = None
    graph.node(loader)["type"] = "Nobody"
    new, notes = native(graph)
    (sampler,) = by_type(new, "CogVideoXSampler")
    tora, _ = source_of(new, sampler, "model")
    assert tora["type"] == "CogVideoXLoadTora" and "Tora" in values_of(tora)["tora_name"]
    assert source_of(new, tora, "model")[0]["type"] == "CogVideoXLoadModel"


def test_what_is_linked_and_went_nowhere_is_told():
    graph = whole("CogVideoSampler", -1)
    id = the(graph, "CogVideoSampler")
    video = graph.add("VHS_LoadVideo")
    graph.node(id)["inputs"].append({"name": "scheduler", "type": "COMBO", "link": None})
    graph.connect(video, "frame_count", id, "scheduler")
    assert any("its scheduler came from VHS_LoadVideo" in note for note in native(graph)[1])
    graph.node(id)["inputs"].append({"name": "consis_id_cond", "type": "INT", "link": None})
    graph.connect(video, "frame_count", id, "consis_id_cond")
    assert any("its scheduler and consis_id_cond came from" in note for note in native(graph)[1])


@pytest.mark.parametrize(("era", "left_out", "size"), [(2, (), [480, 720]), (4, (), [480, 720]), (4, 1, [720, 480])])
def test_height_came_first_but_for_three_days(era, left_out, size):
    graph = OldGraph()
    given = prompts(graph)
    loader = graph.node(given.pop("model")[0])
    new = graph.add("DownloadAndLoadCogVideoModel", era, model="THUDM/CogVideoX-5b")
    loader |= {key: graph.node(new)[key] for key in ("inputs", "outputs", "widgets_values")}
    graph.nodes.pop()
    if left_out:
        loader["inputs"] = [entry for entry in loader["inputs"] if entry["name"] != "pab_config"]
    graph.eras[loader["id"]] = graph.eras.pop(new)
    graph.add("CogVideoSampler", 5, pipeline=(loader["id"], "pipe"), height=720, width=480, **given)
    (empty,) = by_type(convert(graph.editor())[0], "EmptyCogVideoXLatentVideo")
    assert empty["widgets_values"][:2] == size


def test_sizes_that_the_video_has_are_not_told_of():
    graph = OldGraph()
    given = prompts(graph)
    loader = graph.node(the(graph, "DownloadAndLoadCogVideoModel"))["id"]
    video = graph.add("VHS_LoadVideo")
    encoded = graph.add("CogVideoImageEncode", vae=(loader, "vae"), start_image=(video, "IMAGE"))
    given = {"pipeline": given.pop("model"), **given, "samples": (encoded, "samples")}
    sampler = graph.add("CogVideoSampler", 3, denoise_strength=0.8, **given)
    for name in ("height", "width", "t_tile_length"):
        graph.node(sampler)["inputs"].append({"name": name, "type": "INT", "widget": {"name": name}, "link": None})
        graph.connect(video, "frame_count", sampler, name)
    graph.node(sampler)["widgets_values"][7] = "DDIM"  # its widgets had slipped, and the link gave the value
    assert native(graph)[1] == []


@pytest.mark.parametrize("kind", ["GetWarpedNoiseFromVideo", "GetWarpedNoiseFromVideoCogVideoX"])
def test_warped_noise_takes_the_place_of_another_packs(kind):
    graph = OldGraph()
    video = graph.add("VHS_LoadVideo")
    warped = graph.add(kind)
    graph.connect(video, "IMAGE", warped, "images")
    graph.add("CogVideoSampler", samples=(warped, "noise"), **prompts(graph))
    new, _ = native(graph)
    (noise,) = by_type(new, "CogVideoXWarpedNoise")
    assert noise["id"] == warped and not by_type(new, kind), "its pack may not be there"
    (flow,) = by_type(new, "OpticalFlowLoader")
    assert values_of(flow)["model_name"].startswith("raft_large")
    schema = copy.deepcopy(SCHEMA)
    for listed, chosen, told in (([], "raft_large", True), (["raft_small.pth"], "raft_small.pth", False)):
        schema["OpticalFlowLoader"]["input"]["required"]["model_name"][1]["options"] = listed
        again, report = convert(graph.editor(), schema)
        assert values_of(by_type(again, "OpticalFlowLoader")[0])["model_name"].startswith(chosen)
        assert any("into models/optical_flow" in note for note in report.notes) == told
    expected = {"seed": 7, "degradation": 0.5, "downsampling": "nearest"}
    if kind.endswith("CogVideoX"):
        expected |= {"degradation": 0.3, "downsampling": "blend"}
    assert expected.items() <= values_of(noise).items()
    seen = copy.deepcopy(graph)
    seen.connect(warped, "visualization", seen.add("PreviewImage"), "images")
    assert [node["id"] for node in by_type(native(seen)[0], kind)] == [warped]
    decoder = graph.add("CogVideoDecode", vae=(the(graph, "DownloadAndLoadCogVideoModel"), "vae"))
    graph.connect(warped, "noise", decoder, "samples")
    new, notes = native(graph)
    assert [node["id"] for node in by_type(new, kind)] == [warped], "noise is no latent"
    assert any("CogVideoDecode" in note and "laid out for the wrapper" in note for note in notes)


def test_the_model_comes_through_the_edge_of_a_subgraph():
    graph = OldGraph()
    text = graph.add("CogVideoTextEncode", clip=(graph.add("CLIPLoader"), "CLIP"), prompt="a fox")
    given = {"positive": (text, "conditioning"), "negative": (text, "conditioning")}
    sampler = graph.add("CogVideoSampler", samples=(graph.add("EmptyLatentImage"), "LATENT"), **given)
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [dict(zip(names, link, strict=True)) for link in graph.links]
    links.append(dict(zip(names, (90, -10, 0, sampler, 0, "COGVIDEOMODEL"), strict=True)))
    graph.node(sampler)["inputs"][0]["link"] = 90
    part = {"id": "abc", "nodes": graph.nodes, "links": links, "outputs": []}
    part["inputs"] = [{"name": "model", "type": "COGVIDEOMODEL", "linkIds": [90]}]
    outer = OldGraph()
    loader = outer.add("DownloadAndLoadCogVideoModel", model="THUDM/CogVideoX-5b")
    shown = [[str(sampler), "num_frames"], [str(sampler), "seed"], ["4", "no more"]]
    instance = {"id": 9, "type": "abc", "outputs": [], "properties": {"proxyWidgets": shown}}
    instance["inputs"] = [{"name": "model", "type": "COGVIDEOMODEL", "link": 1}]
    old = {**outer.editor(), "definitions": {"subgraphs": [part]}}
    old["nodes"], old["links"] = [*old["nodes"], instance], [[1, loader, 0, 9, 0, "COGVIDEOMODEL"]]
    new, report = convert(old)
    made = new["definitions"]["subgraphs"][0]
    (inner,) = by_type(made, "CogVideoXSampler")
    (link,) = [link for link in made["links"] if link["origin_id"] == -10]
    assert (link["target_id"], link["target_slot"], link["type"]) == (inner["id"], 0, "MODEL")
    assert made["inputs"] == [{"name": "model", "type": "MODEL", "linkIds": [link["id"]]}]
    (node,) = by_type(new, "abc")
    assert node["inputs"][0]["type"] == "MODEL" and new["links"] == [[1, loader, 0, 9, 0, "MODEL"]]
    (empty,) = by_type(made, "EmptyCogVideoXLatentVideo")
    shown[0] = [str(empty["id"]), "length"]
    assert node["properties"]["proxyWidgets"] == shown
    assert report.notes == []


def folded(graph: OldGraph, *ids: int) -> dict:
    """Return a graph of the editor in which these nodes are one group node, as the editor folded them."""
    whole = graph.editor()
    places = {id: place for place, id in enumerate(ids)}
    held = [{**copy.deepcopy(graph.node(id)), "index": places[id]} for id in ids]
    inside = [[places[a], b, places[c], d, a, kind] for _, a, b, c, d, kind in graph.links if {a, c} <= places.keys()]
    group = {"nodes": held, "links": inside, "external": []}
    shown = {"id": 99, "type": "workflow>All of it", "pos": [5000, 0], "size": [300, 200], "inputs": [], "outputs": []}
    shown["widgets_values"] = [value for node in held for value in node["widgets_values"]]
    links, met = [], set()
    for id, a, b, c, d, kind in whole["links"]:
        if {a, c} <= places.keys():
            continue
        if c in places:
            name = graph.node(c)["inputs"][d]["name"]
            name = f"{graph.node(c).get('title') or graph.node(c)['type']} {name}" if name in met else name
            met.add(name)
            shown["inputs"].append({"name": name, "type": kind, "link": id})
            c, d = 99, len(shown["inputs"]) - 1
        elif a in places:
            shown["outputs"].append({"name": kind, "type": kind, "links": [id]})
            a, b = 99, b + sum(len(node["outputs"]) for node in held[: places[a]]) - len(inside)
        links.append([id, a, b, c, d, kind])
    for node in held:
        for slot in (*node["inputs"], *node["outputs"]):
            slot.pop("link", None), slot.pop("links", None)
        node["widgets_values"] = [type(value)() for value in node["widgets_values"]]  # of when it was folded
    nodes = [node for node in whole["nodes"] if node["id"] not in places]
    extra = {**whole["extra"], "groupNodes": {"All of it": group, "Other": {"nodes": [{"type": "Reroute"}]}}}
    return {**whole, "nodes": [*nodes, shown], "links": links, "last_node_id": 99, "extra": extra}


def test_group_nodes_are_unfolded():
    graph = OldGraph()
    loader = graph.add("DownloadAndLoadCogVideoModel", model="THUDM/CogVideoX-5b")
    clip = graph.add("CLIPLoader")
    texts = [graph.add("CogVideoTextEncode", 0, clip=(clip, "CLIP"), prompt=text) for text in ("a fox", "blurry")]
    given = dict(zip(("positive", "negative"), [(text, "conditioning") for text in texts], strict=True))
    sampler = graph.add("CogVideoSampler", steps=31, model=(loader, "model"), **given)
    decoder = graph.add("CogVideoDecode", vae=(loader, "vae"), samples=(sampler, "samples"))
    graph.add("VHS_VideoCombine", images=(decoder, "images"))
    old = folded(graph, *texts, sampler, decoder)
    new, report = convert(old)
    assert problems(new, SCHEMA) == [] and report.notes == []
    assert list(new["extra"]["groupNodes"]) == ["Other"] and not by_type(new, "workflow>All of it")
    (saver,) = by_type(new, "VHS_VideoCombine")
    decoder, _ = source_of(new, saver, "images")
    sampler, _ = source_of(new, decoder, "samples")
    assert decoder["type"] == "CogVideoXVAEDecode" and decoder["pos"][0] >= 5000 and values_of(sampler)["steps"] == 31
    assert source_of(new, sampler, "model")[0]["type"] == "CogVideoXLoadModel"
    assert [values_of(source_of(new, sampler, name)[0])["text"] for name in given] == ["a fox", "blurry"]
    older, _ = convert(json.loads(json.dumps(old).replace("workflow>", "workflow/")))
    assert [node["type"] for node in older["nodes"]] == [node["type"] for node in new["nodes"]]


# --- files as they come -----------------------------------------------------------------------------------------------


def test_bends_stay_with_links_that_go_where_they_went():
    graph = whole("CogVideoSampler", -1).editor()
    (into_saver,) = [link[0] for link in graph["links"] if link[5] == "IMAGE"]
    (into_decoder,) = [link[0] for link in graph["links"] if link[5] == "LATENT" and link[4] == 1]
    bends = [{"id": 1, "pos": [0, 0], "linkIds": [into_saver]}, {"id": 2, "pos": [0, 0], "linkIds": [into_decoder]}]
    extra = {
        "reroutes": bends,
        "linkExtensions": [{"id": into_saver, "parentId": 1}, {"id": into_decoder, "parentId": 2}],
    }
    new, _ = convert({**graph, "extra": extra})
    (saver,) = by_type(new, "VHS_VideoCombine")
    assert saver["inputs"][0]["link"] == into_saver
    assert new["extra"]["linkExtensions"] == [{"id": into_saver, "parentId": 1}]
    assert [bend["linkIds"] for bend in new["extra"]["reroutes"]] == [[into_saver], []]

    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [{**dict(zip(names, link, strict=True)), "parentId": 1} for link in graph["links"]]
    newer = {**graph, "version": 1, "links": links, "reroutes": bends, "state": {"lastNodeId": 50, "lastLinkId": 90}}
    newer["floatingLinks"] = [{"id": 99, "origin_id": graph["nodes"][0]["id"], "origin_slot": 0, "target_id": -1}]
    del newer["last_node_id"], newer["last_link_id"]
    new, _ = convert(newer)
    assert [link["id"] for link in new["links"] if "parentId" in link] == [into_saver]
    assert [bend["linkIds"] for bend in new["reroutes"]] == [[into_saver], []] and new["floatingLinks"] == []
    assert new["state"]["lastLinkId"] == max(link["id"] for link in new["links"])
    assert new["state"]["lastNodeId"] >= max(node["id"] for node in new["nodes"])


def test_numbers_given_twice_and_entries_that_are_no_nodes_lose_nothing():
    graph = whole("CogVideoSampler", -1).editor()
    graph["nodes"] += [{**copy.deepcopy(by_type(graph, "VHS_VideoCombine")[0]), "id": 1}, None, {"type": "Nobody"}]
    graph["links"] = {str(link[0]): link for link in graph["links"]}  # as the editor keeps them while it runs
    new, _ = convert(graph)
    assert new["nodes"][-2:] == [None, {"type": "Nobody"}]
    nodes = new["nodes"][:-2]
    assert len({node["id"] for node in nodes}) == len(nodes)
    assert len([node for node in nodes if node["type"] == "VHS_VideoCombine"]) == 2


def test_titles_that_somebody_gave_stay_and_the_wrappers_go():
    graph = whole("DownloadAndLoadCogVideoModel", -1)
    graph.nodes[0]["title"] = "(Down)load CogVideo Model"
    decoder = graph.node(the(graph, "CogVideoDecode"))
    decoder["title"] = "To pictures"
    new, _ = native(graph)
    assert "title" not in by_type(new, "CogVideoXLoadModel")[0]
    assert by_type(new, "CogVideoXVAEDecode")[0]["title"] == "To pictures"
    prompt = graph.prompt()
    prompt[str(decoder["id"])]["_meta"] = {"title": "To pictures"}
    made, _ = convert(prompt)
    assert made[str(decoder["id"])]["_meta"] == {"title": "To pictures"}


def test_scripts_write_numbers_as_they_like():
    graph = whole("CogVideoSampler", -1)
    prompt = graph.prompt()
    inputs = prompt[str(the(graph, "CogVideoSampler"))]["inputs"]
    inputs |= {"steps": "30", "num_frames": 33.0, "cfg": "7", "seed": float("inf")}
    made, report = convert(prompt)
    (sampler,) = [node["inputs"] for node in made.values() if node["class_type"] == "CogVideoXSampler"]
    assert (sampler["steps"], sampler["cfg"], sampler["seed"]) == (30, 7, 0)
    (empty,) = [node["inputs"] for node in made.values() if node["class_type"] == "EmptyCogVideoXLatentVideo"]
    assert empty["length"] == 33
    assert any("seed could not be read" in note for note in report.notes)


@pytest.mark.parametrize(("chosen", "made"), [("disabled", "bf16"), ("enabled", "fp8_e4m3fn")])
def test_words_are_no_switches_in_the_api_format(chosen, made):
    graph = whole("DownloadAndLoadCogVideoModel", 4)
    prompt = graph.prompt()
    loader = prompt[str(the(graph, "DownloadAndLoadCogVideoModel"))]["inputs"]
    loader.clear()
    loader |= {"model": "THUDM/CogVideoX-5b", "precision": "bf16", "fp8_transformer": chosen, "compile": "disabled"}
    new, report = convert(prompt)
    (native,) = [node["inputs"] for node in new.values() if node["class_type"] == "CogVideoXLoadModel"]
    assert native["weight_dtype"] == made and not any("could not be read" in note for note in report.notes)


def test_what_is_linked_tells_how_many_outputs_a_node_has():
    graph = whole("CogVideoSampler", -1)
    prompt = graph.prompt()
    loader = prompt[str(the(graph, "DownloadAndLoadCogVideoModel"))]["inputs"]
    loader.clear()
    loader |= {"model": "THUDM/CogVideoX-5b", "precision": "bf16", "fp8_transformer": "disabled", "device": "cuda"}
    new, _ = convert(prompt)  # names of other versions, but its VAE is used
    (decoder,) = [node["inputs"] for node in new.values() if node["class_type"] == "CogVideoXVAEDecode"]
    assert new[decoder["vae"][0]]["class_type"] == "CogVideoXLoadVAE"


JUNK = [None, [], {}, "", "x", -1, 0, 1, 3.5, float("inf"), 10**400, True, [None], {"0": 1}, "fixed", -10, -20]


def spoil(rng: random.Random, graph) -> None:
    """Take something out of a graph, put something else in its place, or give it twice."""

    def places(value):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield value, key
            if isinstance(inner, dict | list):
                yield from places(inner)

    found = list(places(graph))
    if not found:
        return
    holder, key = rng.choice(found)
    deed = rng.random()
    if deed < 0.5:
        del holder[key]
    elif deed < 0.85 or isinstance(holder, dict):
        holder[key] = copy.deepcopy(rng.choice(JUNK))
    else:
        holder.insert(0, copy.deepcopy(holder[key]))


@pytest.mark.parametrize("seed", range(8))
def test_spoilt_graphs_never_raise(seed):
    rng = random.Random(seed)
    for case in rng.sample(CASES, 30):
        graph = whole(*case)
        graph = copy.deepcopy(graph.editor() if rng.random() < 0.6 else graph.prompt())
        if "nodes" in graph and rng.random() < 0.3:
            graph = {"nodes": [{"id": 1, "type": "abc"}], "definitions": {"subgraphs": [{"id": "abc", **graph}]}}
        for _ in range(rng.choice((1, 2, 4, 8))):
            spoil(rng, graph)
        before = repr(graph)
        converted, report = convert(graph)
        assert repr(graph) == before
        json.dumps([converted, report.as_dict()])
        assert not any("could not be converted" in n for n in report.notes) or "no list of" in report.notes[0], report
        if report.converted and "nodes" in converted:
            for part in (converted, *(converted.get("definitions") or {}).get("subgraphs", ())):
                links = [link["id"] if isinstance(link, dict) else link[0] for link in part.get("links") or []]
                assert len(set(links)) == len(links)


def test_spoilt_group_nodes_never_raise():
    rng = random.Random(0)
    for case in rng.sample(CASES, 40):
        graph = whole(*case)
        ids = rng.sample([node["id"] for node in graph.nodes], 3)
        graph = copy.deepcopy(folded(graph, *ids))
        for _ in range(rng.choice((0, 1, 4))):
            spoil(rng, graph)
        before = repr(graph)
        converted, report = convert(graph)
        assert repr(graph) == before
        assert report.converted or converted is graph


def test_files_to_fetch_are_named_where_the_host_has_none_or_others():
    graph = whole("CogVideoLoraSelect", 0)
    for listed, told in (([], True), (["other.safetensors"], True), (["style/First.safetensors"], False)):
        schema = copy.deepcopy(SCHEMA)
        schema["CogVideoXLoadLoRA"]["input"]["required"]["lora_name"][1]["options"] = listed
        new, report = convert(graph.editor(), schema)
        assert any("put first.safetensors into models/loras" in note for note in report.notes) == told
        chosen = values_of(by_type(new, "CogVideoXLoadLoRA")[0])["lora_name"]
        assert chosen == ("first.safetensors" if told else "style/First.safetensors")


@pytest.mark.parametrize(
    ("file", "chosen", "fast", "made"),
    [
        ("a_GGUF_Q4_0.safetensors", "fp8_e4m3fn", True, "auto"),
        ("a.safetensors", "GGUF", True, "auto"),
        ("a.safetensors", "fp8_e4m3fn", True, "fp8_e4m3fn_fast"),
        ("a.safetensors", "fp8_e4m3fn", False, "fp8_e4m3fn"),
        ("a.safetensors", "bf16", True, "bf16"),
        ("a.safetensors", "default", False, "auto"),
    ],
)
def test_a_loader_of_another_pack_fed_the_wrappers_nodes(file, chosen, fast, made):
    graph = whole("MZ_CogVideoXLoader", 0)
    graph.nodes[0]["widgets_values"] = [file, "vae.safetensors", chosen, fast, 0, False]
    new, notes = native(graph)
    (loader,), (vae,) = by_type(new, "CogVideoXLoadModel"), by_type(new, "CogVideoXLoadVAE")
    assert (values_of(loader)["model_name"], values_of(loader)["weight_dtype"]) == (file, made)
    assert values_of(vae)["vae_name"] == "vae.safetensors"
    (decoder,) = by_type(new, "CogVideoXVAEDecode")
    assert source_of(new, decoder, "vae")[0] == vae and notes == []
    assert convert(graph.editor(), {**SCHEMA, "MZ_CogVideoXLoader": {}})[1].converted, "where that pack is installed"


@pytest.mark.parametrize("kind", ["DownloadAndLoadCogVideoOfSomebody", "Somebodys"])
def test_a_loader_that_nobody_knows_is_told_of(kind):
    graph = whole("CogVideoEncodePrompt", 1)
    graph.nodes[0]["type"] = kind
    new, report = convert(graph.editor())
    assert by_type(new, "CogVideoXSampler") and by_type(new, kind)
    assert any("Connect a MODEL, and a VAE" in note for note in report.notes)


def test_single_files_to_fetch_are_named_with_their_folders():
    graph = OldGraph()
    gguf = graph.add("DownloadAndLoadCogVideoGGUFModel", model="CogVideoX_5b_GGUF_Q4_0.safetensors")
    graph.add("CogVideoXModelLoader", model="cogvideox.safetensors")
    graph.add("CogVideoXVAELoader", model_name="vae.safetensors")
    graph.add("DownloadAndLoadCogVideoControlNet", model="TheDenk/cogvideox-2b-controlnet-hed-v1")
    graph.add("CogVideoDecode", vae=(gguf, "vae"))
    schema = copy.deepcopy(SCHEMA)
    for node, name in (("Model", "model_name"), ("VAE", "vae_name"), ("ControlNet", "control_net_name")):
        schema[f"CogVideoXLoad{node}"]["input"]["required"][name][1]["options"] = []
    put = [note.split(": ", 1)[1] for note in convert(graph.editor(), schema)[1].notes]
    for file, folder in (
        ("CogVideoX_5b_GGUF_Q4_0.safetensors", "diffusion_models"),
        ("cogvideox.safetensors", "diffusion_models"),
        ("vae.safetensors", "vae"),
        ("cogvideox_vae_bf16.safetensors", "vae"),
        ("cogvideox-2b-controlnet-hed-v1.safetensors", "controlnet"),
    ):
        assert f"put {file} into models/{folder} and refresh the page." in put


def test_five_hundred_nodes_take_less_than_a_second():
    graph = {"nodes": [], "links": [], "version": 0.4}
    for number in range(10**9):
        part = copy.deepcopy(whole(*CASES[number % len(CASES)]).editor())
        nodes, links = len(graph["nodes"]), len(graph["links"])
        for node in part["nodes"]:
            node["id"] += nodes
            node["pos"] = [node["pos"][0] + 2200 * (number // 10), node["pos"][1] + 2500 * (number % 10)]
            for slot in node["inputs"]:
                slot["link"] = slot["link"] and slot["link"] + links
            for slot in node["outputs"]:
                slot["links"] = slot["links"] and [link + links for link in slot["links"]]
        graph["nodes"] += part["nodes"]
        graph["links"] += [[a + links, b + nodes, c, d + nodes, *rest] for a, b, c, d, *rest in part["links"]]
        if len(graph["nodes"]) >= 500:
            break
    graph |= {"last_node_id": len(graph["nodes"]), "last_link_id": len(graph["links"])}
    start = time.process_time()
    new, _ = convert(graph)
    assert time.process_time() - start < 1  # measured 0.4
    assert problems(new, SCHEMA) == []


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
    {"nodes": [{"id": 1, "type": "CogVideoDecode"}, {"id": 2, "type": ["x"]}, {"id": 3, "type": {}}], "links": []},
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
    assert not any("unhashable" in note for note in report.notes)
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
    done = subprocess.run([sys.executable, str(ROOT / "legacy"), str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.count("is there. Move it away") == 2 and done.returncode == 1
    (tmp_path / "broken.json").write_text("{", "utf-8")
    done = subprocess.run([sys.executable, str(ROOT / "legacy"), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1 and "broken.json: not read" in done.stdout


def test_the_command_reads_files_of_other_systems(tmp_path):
    folder = tmp_path / "ordner mit Füchsen 狐"
    folder.mkdir()
    text = json.dumps(whole("CogVideoTextEncode", -1).editor(), indent=1).replace("a (red:1.2) fox", "ein Füchslein 狐")
    windows = text.replace("\n", "\r\n")
    (folder / "bom.json").write_bytes(b"\xef\xbb\xbf" + windows.encode())
    (folder / "wide.JSON").write_bytes(windows.encode("utf-16"))
    (folder / "posted.json").write_text(json.dumps({"client_id": "x", "prompt": whole("CogVideoDecode", 0).prompt()}))
    (folder / "a folder.json").mkdir()
    (folder / "deep.json").write_text("[" * 10**5)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    # A console that knows no Chinese.
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    call = [sys.executable, str(ROOT / "legacy"), str(folder)]
    done = subprocess.run(call, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and done.stderr == "" and "deep.json: not read" in done.stdout
    made = {path.name: json.loads(path.read_text("utf-8")) for path in folder.glob("*.native.json")}
    assert set(made) == {"bom.native.json", "wide.native.json", "posted.native.json"}
    assert made["bom.native.json"] == made["wide.native.json"]
    assert values_of(by_type(made["bom.native.json"], "CogVideoXTextEncode")[0])["text"] == "ein Füchslein 狐"
    assert made["posted.native.json"]["client_id"] == "x" and "prompt" in made["posted.native.json"]
    assert {path: path.read_bytes() for path in before} == before, "an original was changed"
