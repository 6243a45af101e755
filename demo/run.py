"""Run a saved workflow on a ComfyUI server and say what it does; `dev.py demo` calls this.

`graph_to_prompt` does what the editor does when a workflow is queued: it turns the saved graph (nodes, links, widgets)
into the server's API format. It knows plain graphs: no subgraphs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import types
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: name the pack without putting its folder on sys.path
    pack = sys.modules["pack"] = types.ModuleType("pack")
    pack.__path__ = [str(Path(__file__).resolve().parents[1])]
    __package__ = "pack.demo"

from . import world

NEVER, BYPASS = 2, 4  # `mode` of a muted and of a bypassed node
NOTES = ("Note", "MarkdownNote")
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR")
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"  # a combo that brings further widgets with each of its options
AFTER_GENERATE = ("fixed", "increment", "decrement", "randomize")  # values of the widget that follows a seed
IMAGE_TO_VIDEO = "CogVideoXImageToVideo"
UPLOADS = ("image_upload", "video_upload", "audio_upload")

Graph = dict[str, Any]
Prompt = dict[str, dict[str, Any]]


class Refused(Exception):
    """The one line a user reads when the server or a node refuses."""


# ---------------------------------------------------------------------------------------------------------------------
# Saved graph to API prompt


def _schema_inputs(inputs: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yield (name, type, options) in the order in which the editor makes widgets."""
    for group in ("required", "optional"):
        for name, spec in inputs.get(group, {}).items():
            yield prefix + name, spec[0], spec[1] if len(spec) > 1 else {}


def _default(kind: Any, options: dict[str, Any]) -> Any:
    if "default" in options:
        return options["default"]
    choices = kind if isinstance(kind, list) else options.get("options", [None])
    return choices[0]["key"] if kind == DYNAMIC_COMBO else choices[0]


def widget_values(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return the value of every widget of a saved node by input name."""
    saved = node.get("widgets_values") or []
    converted = {entry["name"] for entry in node.get("inputs", []) if entry.get("widget")}
    by_name = saved if isinstance(saved, dict) else None
    queue = [] if by_name is not None else list(saved)
    values: dict[str, Any] = {}

    def read(inputs: dict[str, Any], prefix: str = "") -> None:
        for name, kind, options in _schema_inputs(inputs, prefix):
            is_widget = isinstance(kind, list) or kind in WIDGETS or kind == DYNAMIC_COMBO or name in converted
            if not is_widget or options.get("forceInput"):
                continue
            if by_name is not None:
                value = by_name.get(name, _default(kind, options))
            else:
                value = queue.pop(0) if queue else _default(kind, options)
                seed = options.get("control_after_generate") or (kind == "INT" and name in ("seed", "noise_seed"))
                upload = any(options.get(key) for key in UPLOADS)
                if queue and ((seed and queue[0] in AFTER_GENERATE) or (upload and queue[0] == "image")):
                    queue.pop(0)  # a widget of the editor, not an input of the node
            values[name] = value
            if kind == DYNAMIC_COMBO:
                chosen = next((option for option in options["options"] if option["key"] == value), None)
                read(chosen["inputs"] if chosen else {}, f"{name}.")

    read(schema["input"])
    return values


def graph_to_prompt(graph: Graph, object_info: dict[str, Any]) -> Prompt:
    """Convert a saved workflow to the server's API format; `object_info` is the server's answer of that name."""
    nodes = {node["id"]: node for node in graph["nodes"]}
    links: dict[int, tuple[Any, int]] = {}
    for link in graph.get("links", []):
        if isinstance(link, dict):
            links[link["id"]] = (link["origin_id"], link["origin_slot"])
        else:
            links[link[0]] = (link[1], link[2])

    def source(link: int | None) -> list[Any] | None:
        """Follow a link through reroutes and bypassed nodes to the node that makes the value."""
        while link in links:
            origin, slot = links[link]
            node = nodes.get(origin)
            if node is None or node.get("mode") == NEVER or node["type"] == "PrimitiveNode":
                return None
            if node["type"] != "Reroute" and node.get("mode") != BYPASS:
                return [str(origin), slot]
            inputs = node.get("inputs", [])
            if node["type"] != "Reroute":  # a bypassed node passes on the input of the output's type, same slot first
                kind = node["outputs"][slot]["type"]
                inputs = [entry for entry in inputs[slot : slot + 1] + inputs if entry["type"] == kind]
            link = inputs[0].get("link") if inputs else None
        return None

    prompt: Prompt = {}
    for node in graph["nodes"]:
        kind = node["type"]
        if node.get("mode") in (NEVER, BYPASS) or kind in (*NOTES, "Reroute", "PrimitiveNode"):
            continue
        if kind not in object_info:
            raise Refused(f"The server has no node {kind!r}, which the workflow uses.")
        schema = object_info[kind]
        # The server takes a list for a link unless it is wrapped.
        inputs = {
            name: {"__value__": value} if isinstance(value, list) else value
            for name, value in widget_values(node, schema).items()
        }
        for entry in node.get("inputs", []):
            if (origin := source(entry.get("link"))) is not None:
                inputs[entry["name"]] = origin
        title = node.get("title") or schema.get("display_name") or kind
        prompt[str(node["id"])] = {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}
    return prompt


def set_values(prompt: Prompt, values: dict[str, Any]) -> None:
    """Set every unlinked input of these names."""
    for node in prompt.values():
        for name, value in values.items():
            if name in node["inputs"] and not isinstance(node["inputs"][name], list):
                node["inputs"][name] = value


def text_nodes(prompt: Prompt) -> list[dict[str, Any]]:
    """Return the nodes whose text feeds a `positive` input."""
    origins = [node["inputs"]["positive"] for node in prompt.values() if "positive" in node["inputs"]]
    texts = [prompt[origin[0]] for origin in origins if "text" in prompt[origin[0]]["inputs"]]
    if not texts:
        raise Refused("The workflow has no text node that feeds a `positive` input.")
    return texts


def set_prompt(prompt: Prompt, text: str) -> None:
    """Set the text of the nodes that feed a `positive` input."""
    for node in text_nodes(prompt):
        node["inputs"]["text"] = text


def set_images(prompt: Prompt, images: dict[str, str | None]) -> None:
    """Give the workflow's image-to-video nodes these files of the server's input folder, and no other images."""
    nodes = [node for node in prompt.values() if node["class_type"] == IMAGE_TO_VIDEO]
    if not nodes:
        raise Refused(f"The workflow has no {IMAGE_TO_VIDEO} node to take an image.")
    for name, file in images.items():
        key = f"{name} file"
        if file is not None:
            prompt[key] = {"class_type": "LoadImage", "inputs": {"image": file}, "_meta": {"title": "Load Image"}}
        for node in nodes:
            node["inputs"].pop(name, None)
            node["inputs"] |= {name: [key, 0]} if file is not None else {}


# ---------------------------------------------------------------------------------------------------------------------
# The server


def _reason(answer: dict[str, Any]) -> str:
    """Return what the server says against a prompt."""
    for node in answer.get("node_errors", {}).values():
        for error in node.get("errors", []):
            return f"{node.get('class_type')}: {error.get('message')}: {error.get('details')}"
    error = answer.get("error", answer)
    return str(error.get("message", error) if isinstance(error, dict) else error)


async def upload(session: Any, image: Path) -> str:
    """Put a file into the server's input folder; return its name there."""
    if not image.is_file():
        raise Refused(f"There is no file {image}.")
    async with session.post("/upload/image", data={"image": image.open("rb")}) as reply:
        if reply.status != 200:
            raise Refused(f"The server does not take {image.name} ({reply.status}).")
        return (await reply.json())["name"]


async def queue(url: str, workflow: Graph, edit: Any, images: dict[str, Path | None]) -> list[dict[str, str]]:
    """Run a saved workflow, printing what happens; `edit(prompt)` may change it first. Returns the files it saved.

    Where `images` has a file, its images stand for those of the workflow, by the name of the input they go to.
    """
    import aiohttp  # here, so that the rest needs the standard library only

    client = uuid.uuid4().hex
    async with aiohttp.ClientSession(url) as session:
        async with session.get("/object_info") as reply:
            prompt = graph_to_prompt(workflow, await reply.json())
        edit(prompt)
        if any(images.values()):
            uploaded = {name: await upload(session, file) if file else None for name, file in images.items()}
            set_images(prompt, uploaded)
        async with session.ws_connect("/ws", params={"clientId": client}, max_msg_size=0) as socket:
            body = {"prompt": prompt, "client_id": client, "extra_data": {"extra_pnginfo": {"workflow": workflow}}}
            async with session.post("/prompt", json=body) as reply:
                answer = await reply.json(content_type=None)
                if reply.status != 200:
                    raise Refused(_reason(answer))
            job = answer["prompt_id"]
            async for message in socket:
                if message.type != aiohttp.WSMsgType.TEXT:
                    continue  # preview images
                event = json.loads(message.data)
                data = event["data"]
                if data.get("prompt_id") != job:
                    continue
                title = prompt.get(str(data.get("node")), {}).get("_meta", {}).get("title", "")
                if event["type"] == "executing" and title:
                    print(title, flush=True)
                elif event["type"] == "progress":
                    print(f"  {data['value']}/{data['max']}", flush=True)
                elif event["type"] == "execution_error":
                    raise Refused(f"{data['node_type']}: {data['exception_message'].strip()}")
                elif event["type"] == "execution_success":
                    break
            else:
                raise Refused("The server went away.")
        history: dict[str, Any] = {}
        while job not in history:  # the server says that a job has ended before it records it
            async with session.get(f"/history/{job}") as reply:
                history = await reply.json()
            await asyncio.sleep(0.05)
    outputs = history[job]["outputs"]
    lists = [value for node in outputs.values() for value in node.values() if isinstance(value, list)]
    return [entry for value in lists for entry in value if isinstance(entry, dict) and entry.get("type") == "output"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("url")
    parser.add_argument("workflow", type=Path)
    parser.add_argument("--output", type=Path, default=Path(), help="the server's output folder, to name the files")
    parser.add_argument("--prompt")
    parser.add_argument("--image", type=Path, help="the first frame")
    parser.add_argument("--last-image", type=Path, help="the last frame")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--steps", type=int)
    args = parser.parse_args()
    values = {"seed": args.seed, "noise_seed": args.seed, "steps": args.steps}
    values = {name: value for name, value in values.items() if value is not None}

    def edit(prompt: Prompt) -> None:
        set_values(prompt, values)
        if args.prompt is not None:
            set_prompt(prompt, args.prompt)
        text = text_nodes(prompt)[0]["inputs"]["text"]
        print(f"prompt: {text}", flush=True)
        if line := world.outside(text):
            print(line, flush=True)

    start = time.monotonic()
    images = {"start_image": args.image, "end_image": args.last_image}
    try:
        files = asyncio.run(queue(args.url, json.loads(args.workflow.read_text("utf-8")), edit, images))
    except Refused as error:
        print(error, file=sys.stderr)
        return 1
    if not files:
        print("The workflow saved no file.", file=sys.stderr)
        return 1
    for file in files:
        print(f"saved {args.output / file['subfolder'] / file['filename']} after {time.monotonic() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
