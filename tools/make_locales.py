"""Write locales/en/nodeDefs.json from the nodes, and say what of it locales/zh lacks.

    COMFYUI_PATH=path/to/ComfyUI python tools/make_locales.py

ComfyUI's page looks up each text of a node in the file of its language, and takes the node's own where there is none.
Names of widgets and sockets are in no file: tooltips, help pages and workflows call them by their ids.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path

if not __package__:  # run as a file: name the pack without putting its folder on sys.path
    pack = sys.modules["pack"] = types.ModuleType("pack")
    pack.__path__ = [str(Path(__file__).resolve().parents[1])]
    __package__ = "pack.tools"

LOCALES = Path(__file__).resolve().parents[1] / "locales"
# What vue-i18n, which the page reads the files with, takes for its own syntax.
SYNTAX = re.compile(r"[{}@|]")


def definitions(nodes: Iterable[type]) -> dict[str, dict]:
    """Return the display name, description and tooltips of nodes, in the shape of ComfyUI's nodeDefs.json."""
    result = {}
    for node in nodes:
        schema = node.GET_SCHEMA()
        result[schema.node_id.replace(".", "_")] = {  # as the page writes ids in its keys
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {one.id.replace(".", "_"): {"tooltip": one.tooltip} for one in schema.inputs},
            "outputs": {str(slot): {"tooltip": one.tooltip} for slot, one in enumerate(schema.outputs)},
        }
    return result


def texts(tree: dict, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text of a locale file with its key, such as `CogVideoXSampler.inputs.cfg.tooltip`."""
    for key, value in tree.items():
        where = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            yield from texts(value, where)
        else:
            yield where, value


def readable(tree: dict) -> dict:
    """Return a locale tree without the texts that hold syntax of vue-i18n, for which the page takes the node's own."""
    kept = {key: readable(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return {
        key: value for key, value in kept.items() if value and not (isinstance(value, str) and SYNTAX.search(value))
    }


def read(language: str, name: str = "nodeDefs") -> dict:
    """Return a locale file."""
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def main() -> None:
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    from ..nodes import CogVideoXExtension

    english = definitions(asyncio.run(CogVideoXExtension().get_node_list()))
    path = LOCALES / "en" / "nodeDefs.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(readable(english), indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    print(f"wrote {path}")
    wanted, there = dict(texts(english)), dict(texts(read("zh")))
    for key in sorted(wanted.keys() ^ there.keys()):
        print(f"zh lacks {key}: {wanted[key]}" if key in wanted else f"zh has {key}, which no node has")


if __name__ == "__main__":
    main()
