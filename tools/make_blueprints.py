"""Write subgraphs/*.json, single nodes for ComfyUI's node library, from the workflows of the same task.

    python tools/make_blueprints.py

A blueprint is the workflow without its note, its file and its picture: these stay outside of the node. What is left
becomes a subgraph, and the widgets named here become its inputs, with the values that they have in the workflow.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
INPUTS, OUTPUTS = -10, -20  # ids of the ends of a subgraph, as the page has them
OUTSIDE = ("MarkdownNote", "LoadImage", "SaveVideo")
PIECES = uuid.uuid5(uuid.NAMESPACE_URL, "cogvideox-native/subgraphs")
LEFT, ROW, MARGIN = 200, 20, 10  # px: how far the ends stand from the nodes, a slot, room around slots
WIDTH, TEXT_HEIGHT, WIDGET_HEIGHT = 400, 120, 24  # px, of the node that is put on the canvas


@dataclass(frozen=True)
class Blueprint:
    """`widgets` are (title or type of a node, its widget, name outside)."""

    workflow: str
    category: str
    description: str
    aliases: tuple[str, ...]
    widgets: tuple[tuple[str, str, str], ...]


PROMPTS = (("Positive prompt", "text", "prompt"), ("Negative prompt", "text", "negative_prompt"))
SAMPLING = ("seed", "steps", "cfg")


def named(node: str, *widgets: str) -> tuple[tuple[str, str, str], ...]:
    """Return widgets that have the same name outside."""
    return tuple((node, name, name) for name in widgets)


BLUEPRINTS = {
    "Text to Video (CogVideoX)": Blueprint(
        workflow="t2v",
        category="Video generation and editing/Text to video",
        description="Makes a video from a text with CogVideoX 1.0 or 1.5: 49 frames of 720x480 at 8 frames a second, or"
        " 81 of 1360x768 at 16.",
        aliases=("CogVideo", "t2v"),
        widgets=(
            *PROMPTS,
            *named("EmptyCogVideoXLatentVideo", "width", "height", "length"),
            *named("CreateVideo", "fps"),
            *named("CogVideoXSampler", *SAMPLING, "sampler_name", "dynamic_cfg"),
            *named("CogVideoXLoadPipeline", "pipeline", "weight_dtype"),
        ),
    ),
    "Image to Video (CogVideoX)": Blueprint(
        workflow="i2v",
        category="Video generation and editing/Image to video",
        description="Makes a video that begins with an image, with CogVideoX 1.0 or 1.5: 49 frames of 720x480 at 8"
        " frames a second, or 81 of up to 1360x768 at 16.",
        aliases=("CogVideo", "i2v"),
        widgets=(
            *PROMPTS,
            *named("CogVideoXImageToVideo", "width", "height", "length"),
            *named("CreateVideo", "fps"),
            *named("KSampler", *SAMPLING),
            *named("CogVideoXLoadModel", "model_name", "weight_dtype"),
            *named("CogVideoXLoadTextEncoder", "text_encoder_name"),
            *named("CogVideoXLoadVAE", "vae_name"),
        ),
    ),
}


def of(nodes: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the one node of this title or type."""
    (found,) = [node for node in nodes if name in (node.get("title"), node["type"])]
    return found


def value_of(node: dict[str, Any], widget: str) -> Any:
    """Return the saved value of a widget; the page saves one of its own after a seed."""
    names = [entry["name"] for entry in node["inputs"] if entry.get("widget")]
    if "seed" in names and "control_after_generate" not in names:
        names.insert(names.index("seed") + 1, "control_after_generate")
    return node["widgets_values"][names.index(widget)]


def end(id: int, left: float, top: float, slots: int) -> dict[str, Any]:
    return {"id": id, "bounding": [left, top, 120, 2 * ROW + ROW * slots]}


def build(title: str, blueprint: Blueprint) -> dict[str, Any]:
    """Return the graph of a blueprint: one node, and the subgraph that it stands for."""
    graph = json.loads((ROOT / "workflows" / f"{blueprint.workflow}.json").read_text("utf-8"))
    outside = {node["id"] for node in graph["nodes"] if node["type"] in OUTSIDE}
    nodes = [node for node in graph["nodes"] if node["id"] not in outside]
    by_id = {node["id"]: node for node in nodes}
    for order, node in enumerate(nodes):
        node["order"] = order
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [dict(zip(names, link, strict=True)) for link in graph["links"]]
    sources = [link for link in links if link["origin_id"] in outside]
    results = [link for link in links if link["target_id"] in outside and link not in sources]
    last = max(link["id"] for link in links)

    def slot(name: str, kind: str, ids: list[int], **more: Any) -> dict[str, Any]:
        return {"id": str(uuid.uuid5(PIECES, f"{title}/{name}")), "name": name, "type": kind, "linkIds": ids, **more}

    inputs, outputs = [], []
    for link in sources:
        into = by_id[link["target_id"]]["inputs"][link["target_slot"]]
        link.update(origin_id=INPUTS, origin_slot=len(inputs))
        inputs.append(slot(into["name"], into["type"], [link["id"]]))
    for name, widget, label in blueprint.widgets:
        node = of(nodes, name)
        (number,) = [number for number, entry in enumerate(node["inputs"]) if entry["name"] == widget]
        into, last = node["inputs"][number], last + 1
        into["link"] = last
        ends = (last, INPUTS, len(inputs), node["id"], number, into["type"])
        links.append(dict(zip(names, ends, strict=True)))
        inputs.append(slot(label, into["type"], [last]))
    for link in results:
        entry = by_id[link["origin_id"]]["outputs"][link["origin_slot"]]
        link.update(target_id=OUTPUTS, target_slot=len(outputs))
        outputs.append(slot(entry["name"], entry["type"], [link["id"]]))

    left = min(node["pos"][0] for node in nodes)
    right = max(node["pos"][0] + node["size"][0] for node in nodes)
    top = min(node["pos"][1] for node in nodes)
    ends = end(INPUTS, left - LEFT, top, len(inputs)), end(OUTPUTS, right + LEFT - 120, top, len(outputs))
    for box, slots, x in ((ends[0], inputs, left - LEFT + 120 - ROW), (ends[1], outputs, right + LEFT - 120 + ROW)):
        for number, entry in enumerate(slots):
            entry["pos"] = [x, box["bounding"][1] + ROW + ROW * number]
    id = str(uuid.uuid5(PIECES, title))
    texts = len(PROMPTS)
    outer = {
        "id": 1,
        "type": id,
        "pos": [0, 0],
        "size": [WIDTH, ROW * 2 + TEXT_HEIGHT * texts + WIDGET_HEIGHT * (len(blueprint.widgets) + 1 - texts)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": list(outer_inputs(inputs, len(sources))),
        "outputs": [{"name": entry["name"], "type": entry["type"], "links": None} for entry in outputs],
        "title": title,
        "properties": {
            "proxyWidgets": [[str(of(nodes, name)["id"]), widget] for name, widget, _ in blueprint.widgets],
            "cnr_id": "cogvideox-native",
        },
        # Said again outside: the page may remember the value of a node that had this id before.
        "widgets_values": [value_of(of(nodes, name), widget) for name, widget, _ in blueprint.widgets],
    }
    subgraph = {
        "id": id,
        "version": 1,
        "state": {
            "lastGroupId": len(graph["groups"]),
            "lastNodeId": max(by_id),
            "lastLinkId": last,
            "lastRerouteId": 0,
        },
        "revision": 0,
        "config": {},
        "name": title,
        "category": blueprint.category,
        "description": blueprint.description,
        "inputNode": ends[0],
        "outputNode": ends[1],
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": nodes,
        "groups": [group for group in graph["groups"] if holds_any(group, nodes)],
        "links": links,
        "extra": {},
    }
    return {
        "id": str(uuid.uuid5(PIECES, f"{title}/graph")),
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [outer],
        "links": [],
        "groups": [],
        "definitions": {"subgraphs": [subgraph]},
        "config": {},
        "extra": {"BlueprintDescription": blueprint.description, "BlueprintSearchAliases": list(blueprint.aliases)},
        "version": 0.4,
    }


def outer_inputs(inputs: list[dict[str, Any]], sockets: int) -> Iterator[dict[str, Any]]:
    for number, entry in enumerate(inputs):
        widget = {"widget": {"name": entry["name"]}} if number >= sockets else {}
        yield {"name": entry["name"], "type": entry["type"], **widget, "link": None}


def holds_any(group: dict[str, Any], nodes: list[dict[str, Any]]) -> bool:
    x, y, width, height = group["bounding"]
    return any(x <= node["pos"][0] < x + width and y <= node["pos"][1] < y + height for node in nodes)


def text_of(title: str) -> str:
    return json.dumps(build(title, BLUEPRINTS[title]), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    for title in BLUEPRINTS:
        (ROOT / "subgraphs" / f"{title}.json").write_text(text_of(title), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
