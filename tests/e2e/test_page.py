"""The page: every template opens whole and readable, means what `demo/run.py` makes of it, and runs."""

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pack.legacy import ERAS
from pack.tests.old_graphs import whole

from .server import PACK, ROOT, WORKFLOWS, Server

ARTIFACTS = Path(os.environ.get("E2E_ARTIFACTS", ROOT / ".dev" / "artifacts"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --no-proxy-server --window-size=1920,1200"
).split()
SECONDS = 120
LAYOUT_SECONDS = 1.5  # the page lays nodes and notes out over some frames and tells no end

pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with its driver: the page is not tested")

READY = "return !!(window.app && app.extensionManager && window.LiteGraph?.registered_node_types.CogVideoXSampler)"
FETCH_AND_LOAD = """
const [address, done] = arguments;
fetch(address).then(reply => reply.json()).then(graph => app.loadGraphData(graph)).then(() => done(""), done);
"""
# What the page holds against the graph: nodes without a type, marked nodes, dialogs and the box that counts errors.
COMPLAINTS = """
const shown = element => element.getClientRects().length > 0;
const dialogs = [...document.querySelectorAll("[role=dialog], .p-dialog, .p-toast-message-error")].filter(shown);
return [
  ...app.graph.nodes.filter(node => !LiteGraph.registered_node_types[node.type]).map(node => `missing ${node.type}`),
  ...app.graph.nodes.filter(node => node.has_errors).map(node => `error on ${node.type}`),
  ...dialogs.map(dialog => dialog.innerText.slice(0, 300)),
  ...(document.body.innerText.match(/.*errors? found.*/g) ?? []),
];
"""
# Prompts and notes that must be scrolled to be read.
TOO_SMALL = """
return [...document.querySelectorAll(".dom-widget .comfy-multiline-input, .dom-widget .tiptap")]
  .filter(text => text.scrollHeight > text.clientHeight + 1)
  .map(text => (text.value ?? text.innerText).slice(0, 60));
"""


def wait_for(what: str, done: Callable[[], Any]) -> Any:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if result := done():
            return result
        time.sleep(0.2)
    raise AssertionError(f"{what} did not happen in {SECONDS} s")


def screenshot(page, name: str) -> None:
    page.execute_script("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    time.sleep(LAYOUT_SECONDS)
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page.save_screenshot(str(ARTIFACTS / f"{name}.png"))


@pytest.fixture(scope="module")
def page(server: Server):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(prefix="cogvideox-browser-", ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = BROWSER
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        page = webdriver.Chrome(options=options, service=Service(DRIVER))
        try:
            page.set_script_timeout(SECONDS)
            server.post(
                "/settings", {"Comfy.TutorialCompleted": True}
            )  # else the page greets with the template browser
            page.get(server.url)
            wait_for("loading the page", lambda: page.execute_script(READY))
            yield page
        finally:
            page.quit()


def open_template(page, name: str) -> None:
    address = f"/api/workflow_templates/{PACK}/{name}.json"
    assert page.execute_async_script(FETCH_AND_LOAD, address) == ""
    time.sleep(LAYOUT_SECONDS)


def is_choice_of(saved: Any, made: dict, key: str) -> bool:
    """Say whether the page chose among the wildcards, "{one|other}", of a saved text."""
    if not isinstance(saved, str) or "{" not in saved:
        return False
    parts = re.split(r"\{([^{}]*)\}", saved)
    parts[1::2] = [f"(?:{'|'.join(map(re.escape, part.split('|')))})" for part in parts[1::2]]
    parts[::2] = map(re.escape, parts[::2])
    return bool(re.fullmatch("".join(parts), made["inputs"][key]))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_template_opens_whole_and_means_what_the_demo_runs(server: Server, page, name: str):
    open_template(page, name)
    screenshot(page, name)
    assert page.execute_script(COMPLAINTS) == []
    assert page.execute_script(TOO_SMALL) == []
    assert page.execute_script("return document.querySelectorAll('.dom-widget .tiptap').length") == 1
    assert page.execute_script("return app.graph.nodes.length") == len(json.loads(WORKFLOWS[name].read_text())["nodes"])

    made = page.execute_async_script("const [done] = arguments; app.graphToPrompt().then(made => done(made.output))")
    for node in made.values():
        node["inputs"].pop("video-preview", None)  # the player in LoadVideo counts as a widget of the page
    expected = {id: (node["class_type"], dict(node["inputs"])) for id, node in server.prompt(name).items()}
    for id, (_, inputs) in expected.items():
        inputs.update({key: made[id]["inputs"][key] for key in inputs if is_choice_of(inputs[key], made[id], key)})
    assert {id: (node["class_type"], node["inputs"]) for id, node in made.items()} == expected


def test_missing_model_is_offered_for_download(server: Server, page):
    """The check above can fail: a file that is not there is complained about, with its address."""
    graph = json.loads(WORKFLOWS["t2v_15"].read_text().replace("cogvideox_vae_bf16", "cogvideox_vae_gone"))
    page.execute_async_script("const [graph, done] = arguments; app.loadGraphData(graph).then(() => done())", graph)
    wait_for("the complaint", lambda: "error on CogVideoXLoadVAE" in page.execute_script(COMPLAINTS))
    screenshot(page, "missing_model")


def test_template_opens_from_its_address_and_runs_from_the_page(server: Server, page):
    page.get(f"{server.url}/?template=t2v&source={PACK}")
    wait_for("loading the page", lambda: page.execute_script(READY))
    loaded = "return app.graph?.nodes.some(node => node.type == 'CogVideoXLoadPipeline')"
    wait_for("the template", lambda: page.execute_script(loaded))
    assert page.execute_script(COMPLAINTS) == []
    small = {"width": 96, "height": 64, "length": 9, "steps": 2}
    page.execute_script(
        "for (const node of app.graph.nodes) for (const widget of node.widgets ?? [])"
        " if (widget.name in arguments[0]) widget.value = arguments[0][widget.name];",
        small,
    )
    before = set(server.get("/history"))
    page.execute_script("app.queuePrompt(0)")
    (job,) = wait_for("the run", lambda: set(server.get("/history")) - before)
    assert server.get(f"/history/{job}")[job]["status"]["status_str"] == "success"
    wait_for("the video in the page", lambda: page.execute_script("return !!document.querySelector('video')"))
    screenshot(page, "t2v_done")
    assert page.execute_script(COMPLAINTS) == []
    assert page.execute_script(TOO_SMALL) == []


NODE_TYPES = "return app.graph.nodes.map(node => node.type)"
HISTORY = (
    "const [done] = arguments; app.extensionManager.workflow.activeWorkflow.changeTracker.{}().then(() => done(), done)"
)


def test_a_graph_of_the_older_wrapper_opens_native_and_undo_brings_it_back(server: Server, page):
    old = whole("CogVideoSampler", -1).editor()
    page.execute_async_script("const [graph, done] = arguments; app.loadGraphData(graph).then(() => done(), done)", old)
    wait_for("the conversion", lambda: "CogVideoXSampler" in page.execute_script(NODE_TYPES))
    toasts = "return [...document.querySelectorAll('.p-toast-message')].map(one => one.innerText).join()"
    wait_for("the word on it", lambda: "became native CogVideoX nodes" in page.execute_script(toasts))
    history = "return app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length"
    wait_for("the original in the history", lambda: page.execute_script(history))
    screenshot(page, "old_graph")
    page.execute_async_script(HISTORY.format("undo"))
    wait_for("the original", lambda: "CogVideoSampler" in page.execute_script(NODE_TYPES))
    page.execute_async_script(HISTORY.format("redo"))
    wait_for("the conversion again", lambda: "CogVideoXSampler" in page.execute_script(NODE_TYPES))
    assert not {node["type"] for node in old["nodes"]} & ERAS.keys() & set(page.execute_script(NODE_TYPES))
