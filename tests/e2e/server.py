"""A ComfyUI server process and what a test asks of it."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import websocket
from pack.demo.run import graph_to_prompt

ROOT = Path(__file__).parents[2]
PACK = "ComfyUI-CogVideoX"
COMFYUI = Path(os.environ.get("COMFYUI_PATH", ROOT / ".dev" / "ComfyUI"))
WORKFLOWS = {path.stem: path for path in sorted((ROOT / "workflows").glob("*.json"))}
# Stock nodes that came after the oldest host supported; the workflow is not for that one.
NEWER = {"train_lora": "LoadVideoTextDataSetFromFolder"}
START_SECONDS, RUN_SECONDS = 180, 180
TEXT = (3).to_bytes(4, "big")  # how a binary message begins that holds the length of a node's id, the id and a text
ENDS = ("execution_success", "execution_error", "execution_interrupted")

Prompt = dict[str, dict[str, Any]]
# The server is on this machine: no proxy.
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Refusal(Exception):
    """The server's answer to a prompt that it does not take."""


@dataclass
class Run:
    """What the websocket told about one prompt."""

    prompt: Prompt
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)  # what nodes show on themselves, by their ids

    @property
    def end(self) -> str:
        return self.events[-1][0]

    @property
    def message(self) -> str:
        return self.events[-1][1].get("exception_message", "")

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [data for event, data in self.events if event == kind]

    def progress(self, *classes: str) -> list[tuple[int, int]]:
        """Return (value, max) of each progress message of nodes of these classes."""
        ours = [data for data in self.of("progress") if self.prompt[data["node"]]["class_type"] in classes]
        return [(data["value"], data["max"]) for data in ours]


class Server:
    """ComfyUI with this pack on a free port, everything else in `base`; `close` ends it."""

    def __init__(self, base: Path):
        self.base = base
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_file = base / "server.log"
        command = [sys.executable, "main.py", "--cpu", "--base-directory", str(base), "--port", str(self.port)]
        command += ["--disable-api-nodes", "--disable-auto-launch", "--database-url", "sqlite:///:memory:"]
        with self.log_file.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command, cwd=COMFYUI, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def wait(self) -> None:
        """Return when the server answers; fail with its own words when it does not."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            assert self.process.poll() is None, f"ComfyUI ended before it answered:\n{self.log[-3000:]}"
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise AssertionError(f"ComfyUI did not answer in {START_SECONDS} s:\n{self.log[-3000:]}")

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @property
    def log(self) -> str:
        return self.log_file.read_text("utf-8", "replace")

    def read(self, path: str) -> bytes:
        with opener.open(self.url + path, timeout=60) as reply:
            return reply.read()

    def get(self, path: str) -> Any:
        return json.loads(self.read(path))

    def post(self, path: str, body: Any) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        try:
            with opener.open(request, timeout=60) as reply:
                content = reply.read()
        except urllib.error.HTTPError as error:
            raise Refusal(f"{error.code}: {error.read().decode()}") from error
        return json.loads(content) if content else None

    @cached_property
    def object_info(self) -> dict[str, Any]:
        return self.get("/object_info")

    def require_nodes(self, name: str) -> None:
        """Skip the test of a workflow whose stock nodes came after this host."""
        if name in NEWER and NEWER[name] not in self.object_info:
            pytest.skip(f"this ComfyUI has no {NEWER[name]}")

    def prompt(self, name: str, **values: Any) -> Prompt:
        """Return a workflow as API prompt; `values` replace unlinked inputs of these names wherever they are."""
        prompt = graph_to_prompt(json.loads(WORKFLOWS[name].read_text("utf-8")), self.object_info)
        for node in prompt.values():
            inputs = node["inputs"]
            inputs.update({key: values[key] for key in values.keys() & inputs.keys() if not is_link(inputs[key])})
        return prompt

    def run(self, prompt: Prompt, on_progress: Callable[[str], None] | None = None) -> Run:
        """Run a prompt to its end; `on_progress` is called with the class of the node of each progress message."""
        client = uuid.uuid4().hex
        run = Run(prompt)
        socket = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={client}", timeout=RUN_SECONDS)
        try:
            job = self.post("/prompt", {"prompt": prompt, "client_id": client})["prompt_id"]
            while not run.events or run.end not in ENDS:
                message = socket.recv()
                if not isinstance(message, str):
                    if message.startswith(TEXT):
                        end = 8 + int.from_bytes(message[4:8], "big")
                        run.texts[message[8:end].decode()] = message[end:].decode()
                    continue  # others are preview images
                event = json.loads(message)
                if event["data"].get("prompt_id") != job:
                    continue
                run.events.append((event["type"], event["data"]))
                if on_progress and event["type"] == "progress":
                    on_progress(prompt[event["data"]["node"]]["class_type"])
        finally:
            socket.close()
        while job not in (history := self.get(f"/history/{job}")):
            time.sleep(0.05)  # the server tells the end before it writes it down
        for output in history[job]["outputs"].values():
            for entry in output.get("images", []):
                if entry["type"] == "output":
                    run.files.append(self.base / "output" / entry["subfolder"] / entry["filename"])
        return run


@contextmanager
def running(base: Path) -> Iterator[Server]:
    """Run a server in `base` until the block ends; enters the block when it answers."""
    server = Server(base)
    try:
        server.wait()
        yield server
    finally:
        server.close()


def on_the_built_in_model(prompt: Prompt) -> Prompt:
    """Return a prompt whose model, text encoder and VAE are those of cogvideox-mini, whatever it loads."""
    outputs = {"CogVideoXLoadModel": 0, "CogVideoXLoadTextEncoder": 1, "CLIPLoader": 1, "CogVideoXLoadVAE": 2}
    loaders = {id: outputs[node["class_type"]] for id, node in prompt.items() if node["class_type"] in outputs}
    mini = {"class_type": "CogVideoXLoadPipeline", "inputs": {"pipeline": "cogvideox-mini", "weight_dtype": "auto"}}
    result = {"mini": mini} if loaders else {}
    for id, node in prompt.items():
        if id in loaders:
            continue
        inputs = {
            name: ["mini", loaders[value[0]]] if is_link(value) and value[0] in loaders else value
            for name, value in node["inputs"].items()
        }
        if node["class_type"] == "CogVideoXLoadPipeline":
            inputs["pipeline"] = mini["inputs"]["pipeline"]
        result[id] = {**node, "inputs": inputs}
    return result


def is_link(value: Any) -> bool:
    return isinstance(value, list)
