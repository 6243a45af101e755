"""New nodes by their schema: the server's own answer (`object_info`), or the part of it that lies beside this file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .graph import Node

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
OUR_PACK, HOST = "cogvideox-native", "comfy-core"
OPTIONAL_SHAPE = 7  # how the editor draws the slot of an optional input
ROW, WIDGET_ROW, HEAD = 20, 24, 16  # px, of the editor's layout
TEXT_BOX, LEAST_TEXT_BOX = 120, 30  # px above a widget's row: to write in, and what the editor leaves it
WIDTH = 315

Schema = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Slot:
    """One input of a native node; `choices` is None where it is no combo or only the host knows them."""

    name: str
    kind: str
    widget: bool
    optional: bool
    default: Any
    choices: tuple | None
    control: bool
    multiline: bool
    least: float | None
    most: float | None

    def fits(self, value: Any) -> bool:
        """Say whether a value of another node's widget can be this one's."""
        if self.kind == "COMBO":
            return value in (self.choices or ())
        kinds = {"INT": int, "FLOAT": int | float, "STRING": str, "BOOLEAN": bool}.get(self.kind, ())
        return isinstance(value, kinds) and isinstance(value, bool) == (self.kind == "BOOLEAN")

    def clamp(self, value: Any) -> Any:
        """Bring a number into the widget's range."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        if self.most is not None and value > self.most:
            return self.most
        return self.least if self.least is not None and value < self.least else value


@cache
def stored_schema() -> dict[str, Any]:
    """Return the schema of the nodes a conversion makes, as of this version and of the host it was made with."""
    return json.loads((Path(__file__).with_name("schema.json")).read_text("utf-8"))


def reduced(info: Mapping[str, Any], files: bool = True) -> dict[str, Any]:
    """Return what a conversion needs of one `object_info` entry; without `files`, combos of files lose their list."""
    inputs: dict[str, Any] = {}
    keep = ("default", "min", "max", "multiline", "forceInput", "control_after_generate", "options")
    for group in ("required", "optional"):
        for name, spec in (info["input"].get(group) or {}).items():
            kind, options = spec[0], {key: spec[1][key] for key in keep if len(spec) > 1 and key in spec[1]}
            if isinstance(kind, list | tuple):
                kind, options = "COMBO", {"options": list(kind), **options}
            if not files and name in FILE_COMBOS:
                options.pop("options", None)
                options.pop("default", None)
            inputs.setdefault(group, {})[name] = [kind, options]
    return {
        "input": inputs,
        "output": list(info.get("output") or []),
        "output_name": list(info.get("output_name") or info.get("output") or []),
        "display_name": info.get("display_name") or "",
    }


# Combos whose choices are the files of one machine.
FILE_COMBOS = {
    "model_name",
    "vae_name",
    "clip_name",
    "lora_name",
    "control_net_name",
    "tora_name",
    "extractor_name",
    "pipeline",
    "text_encoder_name",
}


def slots(info: Mapping[str, Any]) -> list[Slot]:
    """Return the inputs of a node in the order in which the editor shows them."""
    found = []
    for group in ("required", "optional"):
        for name, spec in (info["input"].get(group) or {}).items():
            kind, options = spec[0], spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
            choices = kind if isinstance(kind, list | tuple) else options.get("options")
            if isinstance(kind, list | tuple):
                kind = "COMBO"
            widget = kind in WIDGETS and not options.get("forceInput")
            default = options.get("default")
            if default is None and widget:
                default = choices[0] if choices else {"STRING": "", "BOOLEAN": False, "COMBO": ""}.get(kind, 0)
            control = bool(options.get("control_after_generate")) or (kind == "INT" and name in ("seed", "noise_seed"))
            found.append(
                Slot(
                    name,
                    kind,
                    widget,
                    group == "optional",
                    default,
                    None if choices is None else tuple(choices),
                    widget and control,
                    bool(options.get("multiline")),
                    options.get("min"),
                    options.get("max"),
                )
            )
    return found


def make(id: Any, node_type: str, info: Mapping[str, Any], values: Mapping[str, Any], control: str = "fixed") -> Node:
    """Return a node of `node_type` with these widget values, the rest at their defaults."""
    inputs = slots(info)
    node = Node(id, node_type)
    node.values = {slot.name: slot.clamp(values.get(slot.name, slot.default)) for slot in inputs if slot.widget}
    outputs = list(zip(info.get("output_name") or [], info.get("output") or [], strict=False))
    widgets = [slot for slot in inputs if slot.widget]
    rows = max(len(inputs) - len(widgets), len(outputs))
    text = sum(slot.multiline for slot in widgets)
    bare = HEAD + ROW * rows + WIDGET_ROW * (len(widgets) + sum(slot.control for slot in widgets))
    node.size = (WIDTH, bare + TEXT_BOX * text)
    pack = OUR_PACK if node_type.startswith(("CogVideoX", "EmptyCogVideoX")) else HOST

    def saved(node: Node) -> dict[str, Any]:
        given = []
        for slot in inputs:
            entry: dict[str, Any] = {"name": slot.name, "type": slot.kind, "link": None}
            if slot.widget:
                entry["widget"] = {"name": slot.name}
            if slot.optional:
                entry["shape"] = OPTIONAL_SHAPE
            given.append(entry)
        made = [{"name": name, "type": kind, "links": None} for name, kind in outputs]
        values = []
        for slot in inputs:
            if slot.widget:
                values.append(node.values[slot.name])
                if slot.control:
                    values.append(control)
        return {"inputs": given, "outputs": made, "widgets_values": values}

    node.made = {
        "slots": saved,
        "properties": {"Node name for S&R": node_type, "cnr_id": pack},
        "display_name": info.get("display_name") or node_type,
        "sockets": {slot.name for slot in inputs},
        "slots_by_name": {slot.name: slot for slot in inputs},
        "least_height": bare + LEAST_TEXT_BOX * text,
    }
    return node
