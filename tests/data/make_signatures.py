"""Write tests/data/signatures.json: every id, socket and widget that shared workflows count on.

    COMFYUI_PATH=path/to/ComfyUI python tests/data/make_signatures.py

Refuses where a node has lost or changed what is written there already: workflows hold it.
"""

import asyncio
import json
import os
import sys
import tempfile
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).with_name("signatures.json")
FLAGS = ("force_input", "control_after_generate")  # a socket and no widget; one more widget behind it
KEPT = ("id", "type", "optional", "default", *FLAGS)

Signature = dict[str, list[dict[str, Any]]]


def signature(schema) -> Signature:
    """Return inputs and outputs of a node's schema in their order, with what a saved value must fit."""
    inputs = []
    for item in schema.inputs:
        entry = {"id": item.id, "type": item.get_io_type(), "optional": bool(item.optional)}
        held = {name: getattr(item, name, None) for name in ("default", "min", "max", *FLAGS)}
        entry |= {name: value for name, value in held.items() if value is not None}
        if getattr(item, "options", None) is not None:
            entry["options"] = [str(option) for option in item.options]
        inputs.append(entry)
    return {"inputs": inputs, "outputs": [{"type": item.get_io_type()} for item in schema.outputs]}


def signatures(nodes: Iterable[type]) -> dict[str, Signature]:
    """Return the signature of every node by its id."""
    schemas = (node.GET_SCHEMA() for node in nodes)
    return {schema.node_id: signature(schema) for schema in sorted(schemas, key=lambda schema: schema.node_id)}


def broken(promised: dict[str, Signature], now: dict[str, Signature]) -> Iterator[str]:
    """Yield, in words, what of the promised signatures the present ones do not keep.

    What may come: nodes, outputs behind the others, optional inputs behind the others with a default for each widget,
    options, and wider ranges.
    """
    for id in sorted(promised.keys() - now.keys()):
        yield f"{id} is gone"
    for id in promised.keys() & now.keys():
        old, new = promised[id], now[id]
        for kind in ("inputs", "outputs"):
            before, after = old[kind], new[kind]
            for place, item in enumerate(before):
                name = f"{id}: {kind[:-1]} {place} ({item.get('id', item['type'])})"
                if place >= len(after):
                    yield f"{name} is gone"
                else:
                    yield from (f"{name} {change}" for change in _changes(item, after[place]))
        for item in new["inputs"][len(old["inputs"]) :]:
            widget = item["type"] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO") and not item.get("force_input")
            if not item["optional"] or (widget and "default" not in item):
                yield f"{id}: the new input {item['id']} must be optional and, as a widget, have a default"


def _changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for key in KEPT:
        if old.get(key) != new.get(key):
            yield f"has another {key}: {new.get(key)!r} for {old.get(key)!r}"
    if "min" in new and new["min"] > old.get("min", float("-inf")):
        yield f"begins at {new['min']}, and values from {old.get('min')} are saved"
    if "max" in new and new["max"] < old.get("max", float("inf")):
        yield f"ends at {new['max']}, and values up to {old.get('max')} are saved"
    lost = set(old.get("options", ())) - set(new.get("options", ()))
    if lost:
        yield f"has lost the options {sorted(lost)}"


def read() -> dict[str, Signature]:
    """Return what is promised so far."""
    return json.loads(FILE.read_text("utf-8")) if FILE.is_file() else {}


def text(promised: dict[str, Signature]) -> str:
    """Return the file's text: a line for each socket."""
    nodes = []
    for id, node in promised.items():
        lines = {kind: ",\n".join(f"   {json.dumps(item)}" for item in node[kind]) for kind in ("inputs", "outputs")}
        kinds = ",\n".join(f'  "{kind}": [\n{content}\n  ]' for kind, content in lines.items())
        nodes.append(f' "{id}": {{\n{kinds}\n }}')
    return "{\n" + ",\n".join(nodes) + "\n}\n"


def main() -> None:
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    # An empty base: options that are files of an artist are none of ours.
    base = tempfile.TemporaryDirectory(prefix="cogvideox-signatures-", ignore_cleanup_errors=True)
    sys.argv = ["x", "--cpu", "--base-directory", base.name]
    import comfy.options

    comfy.options.enable_args_parsing()
    pack = sys.modules["pack"] = types.ModuleType("pack")
    pack.__path__ = [str(ROOT)]
    from pack.nodes import CogVideoXExtension
    from pack.nodes.host.files import register_folders

    register_folders()
    now = signatures(asyncio.run(CogVideoXExtension().get_node_list()))
    if problems := list(broken(read(), now)):
        sys.exit("\n".join(problems))
    FILE.write_text(text(now), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
