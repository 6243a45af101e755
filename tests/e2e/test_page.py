"""The page: every template opens whole and readable, means what `demo/run.py` makes of it, and runs."""

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pack.legacy import ERAS
from pack.tests.old_graphs import whole
from PIL import Image

from . import videos
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
COLOUR_ERROR = 60  # levels of 255, of the mean of the last preview, from 3 to 40, against that of the finished video
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
            # Else the page greets with the template browser, and its map covers a corner of the pictures.
            server.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False})
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
    server.require_nodes(name)
    open_template(page, name)
    screenshot(page, name)
    assert page.execute_script(COMPLAINTS) == []
    assert page.execute_script(TOO_SMALL) == []
    assert page.execute_script("return document.querySelectorAll('.dom-widget .tiptap').length") == 1
    assert page.execute_script("return app.graph.nodes.length") == len(
        json.loads(WORKFLOWS[name].read_text("utf-8"))["nodes"]
    )

    made = page.execute_async_script("const [done] = arguments; app.graphToPrompt().then(made => done(made.output))")
    for node in made.values():
        node["inputs"].pop("video-preview", None)  # the player in LoadVideo counts as a widget of the page
    expected = {id: (node["class_type"], dict(node["inputs"])) for id, node in server.prompt(name).items()}
    for id, (_, inputs) in expected.items():
        inputs.update({key: made[id]["inputs"][key] for key in inputs if is_choice_of(inputs[key], made[id], key)})
    assert {id: (node["class_type"], node["inputs"]) for id, node in made.items()} == expected


def test_missing_model_is_offered_for_download(server: Server, page):
    """The check above can fail: a file that is not there is complained about, with its address."""
    graph = json.loads(WORKFLOWS["t2v_15"].read_text("utf-8").replace("cogvideox_vae_bf16", "cogvideox_vae_gone"))
    page.execute_async_script("const [graph, done] = arguments; app.loadGraphData(graph).then(() => done())", graph)
    wait_for("the complaint", lambda: "error on CogVideoXLoadVAE" in page.execute_script(COMPLAINTS))
    screenshot(page, "missing_model")


SET = """
const [settings, done] = arguments;
Promise.all(Object.entries(settings).map(([name, value]) => app.extensionManager.setting.set(name, value)))
  .then(() => done(""), done);
"""
FILL = """
const [values, prompt] = arguments;
for (const node of app.graph.nodes) for (const widget of node.widgets ?? []) {
  if (widget.name in values) widget.value = values[widget.name];
  if (widget.name === "text" && node.title === "Positive prompt") widget.value = prompt;
}
window.heard = [];
comfyAPI.api.api.addEventListener("progress", ({ detail }) => {
  const node = app.graph.getNodeById(detail.node);
  heard.push([node?.type, detail.value, detail.max, document.querySelectorAll("video").length]);
});
"""
CLIP = 'return document.querySelector(\'.dom-widget img[src^="blob:"], img[alt="Live sampling preview"]\')'
COLOUR = """
const canvas = document.createElement("canvas");
[canvas.width, canvas.height] = [16, 16];
const context = canvas.getContext("2d");
context.drawImage(arguments[0], 0, 0, 16, 16);
return [...context.getImageData(0, 0, 16, 16).data];
"""
VIDEO = """
const video = document.querySelector("video");
return video?.duration ? [video.videoWidth, video.videoHeight, video.duration] : null;
"""
STEPS = 8
MINI = {"pipeline": "cogvideox-mini", "width": 96, "height": 64, "length": 9, "steps": STEPS, "seed": 1}
RANDOM = {**MINI, "pipeline": "CogVideoX-5b", "length": 25}
VUE = "Comfy.VueNodes.Enabled"


def assert_moves(page) -> None:
    """See the clip change in the page at two moments between which no other came."""
    from selenium.common.exceptions import StaleElementReferenceException

    def look() -> tuple[str, np.ndarray]:
        image = page.execute_script(CLIP)
        drawn = Image.open(BytesIO(image.screenshot_as_png)).convert("RGB")
        return image.get_attribute("src"), np.asarray(drawn, float)

    def moved() -> bool:
        try:
            (one, before), (other, after) = look(), look()
        except StaleElementReferenceException:  # the next clip came
            return False
        return one == other and before.shape == after.shape and np.abs(before - after).mean() > 1

    wait_for("a clip that moves", moved)


def colours(page) -> np.ndarray | None:
    """Return the red, green and blue of 16x16 places of the clip that is shown, [256, 3], or None for none."""
    from selenium.common.exceptions import JavascriptException, StaleElementReferenceException

    try:
        image = page.execute_script(CLIP)
        return image and np.reshape(page.execute_script(COLOUR, image), (-1, 4))[:, :3]
    except (JavascriptException, StaleElementReferenceException):  # the next clip came
        return None


@pytest.mark.parametrize(
    ("method", "vue", "values"),
    [("auto", False, MINI), ("auto", True, MINI), ("taesd", False, RANDOM)],
    ids=["classic canvas", "vue nodes", "tiny decoder"],
)
def test_template_opens_from_its_address_runs_and_shows_what_it_makes(server: Server, page, method, vue, values):
    page.get(f"{server.url}/?template=t2v&source={PACK}")
    wait_for("loading the page", lambda: page.execute_script(READY))
    loaded = "return app.graph?.nodes.some(node => node.type == 'CogVideoXLoadPipeline')"
    wait_for("the template", lambda: page.execute_script(loaded))
    assert page.execute_script(COMPLAINTS) == []
    assert page.execute_async_script(SET, {"Comfy.Execution.PreviewMethod": method, VUE: vue}) == ""
    page.execute_script(FILL, {**values, "seed": 1 + vue}, "a red ball moves to the right on a blue ground")
    page.execute_script("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    wait_for("an idle server", lambda: not any(server.get("/queue").values()))
    before = set(server.get("/history"))
    page.execute_script("app.queuePrompt(0)")
    try:
        wait_for("the preview", lambda: page.execute_script(CLIP))
        assert_moves(page)
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        page.save_screenshot(str(ARTIFACTS / f"t2v_preview_{method}{'_vue' * vue}.png"))
        pixels = colours(page)

        def ended() -> set[str]:
            nonlocal pixels
            pixels = pixels if (last := colours(page)) is None else last
            return set(server.get("/history")) - before

        (job,) = wait_for("the run", ended)
        assert pixels is not None and pixels.std() > 1, "the preview is of one colour"
        ran = server.get(f"/history/{job}")[job]
        assert ran["status"]["status_str"] == "success"
        assert wait_for("the video in the page", lambda: page.execute_script(VIDEO)) == [
            values["width"],
            values["height"],
            pytest.approx(values["length"] / 8, abs=0.02),
        ]
        screenshot(page, f"t2v_done_{method}{'_vue' * vue}")
    finally:
        page.execute_async_script(SET, {"Comfy.Execution.PreviewMethod": "default", VUE: False})
    heard = page.execute_script("return heard")
    assert [(value, most) for node, value, most, _ in heard if node == "CogVideoXSampler"][-1] == (STEPS, STEPS)
    decoded = [(value, most) for node, value, most, _ in heard if node == "VAEDecode"]
    assert decoded == [(value, values["length"]) for value in range(9, values["length"] + 1, 8)]  # by chunks of eight
    assert not any(finished for *_, finished in heard)  # what was seen so far was no finished video
    if values is MINI:  # of the last clip; the first ones are rough
        (saved,) = (entry for output in ran["outputs"].values() for entry in output["images"])
        frames = videos.read(server.base / "output" / saved["subfolder"] / saved["filename"]).frames
        error = np.abs(pixels[:, :3].mean(0) - frames.mean((0, 1, 2))).max()
        assert error <= COLOUR_ERROR, "the preview has other colours"
    assert page.execute_script(COMPLAINTS) == []
    assert page.execute_script(TOO_SMALL) == []


NAME = "return app.extensionManager.workflow.activeWorkflow.filename"
TOASTS = "return [...document.querySelectorAll('.p-toast-message')].map(one => one.innerText).join()"
NODE_TYPES = "return app.graph.nodes.map(node => node.type)"
HISTORY = (
    "const [done] = arguments; app.extensionManager.workflow.activeWorkflow.changeTracker.{}().then(() => done(), done)"
)


def drop(page, file: Path) -> None:
    """Drop a file on the canvas as the browser itself does for a hand, once the page has its first graph."""
    wait_for("a graph", lambda: page.execute_script(NODE_TYPES))
    data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        page.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "x": 900, "y": 900, "data": data})


def test_a_dropped_graph_of_the_older_wrapper_opens_native_and_undo_brings_it_back(page, tmp_path):
    old = whole("CogVideoSampler", -1).editor()
    old["groups"][0]["bounding"] = [-40, -80, 1980, 860]  # around its nodes
    file = tmp_path / "old workflow.json"
    file.write_text(json.dumps(old), encoding="utf-8")
    drop(page, file)
    wait_for("the file", lambda: page.execute_script(NAME).startswith(file.stem))
    wait_for("the conversion", lambda: "CogVideoXSampler" in page.execute_script(NODE_TYPES))
    told = wait_for("the word on it", lambda: page.execute_script(TOASTS))
    assert re.search(r"\d+ nodes of the older CogVideoX wrapper became native CogVideoX nodes", told)
    history = "return app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length"
    wait_for("the original in the history", lambda: page.execute_script(history))
    screenshot(page, "old_graph")
    page.execute_async_script(HISTORY.format("undo"))
    wait_for("the original", lambda: "CogVideoSampler" in page.execute_script(NODE_TYPES))
    assert sorted(page.execute_script(NODE_TYPES)) == sorted(node["type"] for node in old["nodes"])
    page.execute_async_script(HISTORY.format("redo"))
    wait_for("the conversion again", lambda: "CogVideoXSampler" in page.execute_script(NODE_TYPES))
    assert not {node["type"] for node in old["nodes"]} & ERAS.keys() & set(page.execute_script(NODE_TYPES))


def test_a_dropped_graph_in_the_api_format_opens_native(server: Server, page, tmp_path):
    page.get(server.url)
    wait_for("loading the page", lambda: page.execute_script(READY))
    old = whole("CogVideoSampler", -1)
    file = tmp_path / "old api.json"
    file.write_text(json.dumps(old.prompt()), encoding="utf-8")
    drop(page, file)
    wait_for("the file", lambda: page.execute_script(NAME).startswith(file.stem))
    types = page.execute_script(NODE_TYPES)
    assert "CogVideoXSampler" in types and not ERAS.keys() & set(types)
    told = wait_for("the word on it", lambda: page.execute_script(TOASTS))
    assert "became native CogVideoX nodes" in told
    made = page.execute_async_script("const [done] = arguments; app.graphToPrompt().then(made => done(made.output))")
    (sampler,) = [node["inputs"] for node in made.values() if node["class_type"] == "CogVideoXSampler"]
    assert (sampler["seed"], sampler["steps"], sampler["cfg"]) == (11, 20, 5)
    assert made[sampler["latent_image"][0]]["inputs"] == {"width": 640, "height": 384, "length": 49, "batch_size": 1}
    assert not any("CogVideoSampler" in complaint for complaint in page.execute_script(COMPLAINTS))
    screenshot(page, "old_api_graph")


TITLES = "return Object.fromEntries(app.graph.nodes.map(node => [node.type, node.constructor.title]))"
PLACE = """
const node = app.graph.nodes.find(node => node.type === arguments[0]), widget = node.widgets[arguments[1]];
const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + node.size[0] / 2, node.pos[1] + widget.y + 10]);
const canvas = app.canvas.canvas.getBoundingClientRect();
return [widget.name, canvas.left + x, canvas.top + y];
"""
SELECT_AND_ASK = """
const node = app.graph.nodes.find(node => node.type === arguments[0]);
if (!app.canvas.selectedItems.has(node)) {
  app.canvas.deselectAll();
  app.canvas.selectNode(node);
  app.extensionManager.command.execute("Comfy.Canvas.FitView");
  return false;
}
const button = document.querySelector("[data-testid=info-button]");
button?.click();
window.asked = (window.asked ?? 0) + 1;
if (!button && asked % 20 === 0) app.canvas.deselectAll(); // the page was not ready for the selection: once more
return !!button;
"""
HELP = """
const [first, picture] = arguments;
const help = document.querySelector(".node-help-content"), image = help?.querySelector("img");
return image?.naturalWidth > 0 && new URL(image.src).pathname === picture && help.innerText.startsWith(first);
"""


@pytest.mark.parametrize(
    ("locale", "nodes"),
    [("zh", ("CogVideoXTextEncode", "CogVideoXSampler")), ("en", ("CogVideoXSampler",))],
)
def test_names_tooltips_and_help_are_in_the_language_of_the_page(server: Server, page, locale, nodes):
    names = json.loads((ROOT / "locales" / locale / "nodeDefs.json").read_text("utf-8"))
    server.post("/settings", {"Comfy.Locale": locale})
    try:
        page.get(f"{server.url}/?template=t2v&source={PACK}")
        wait_for("loading the page", lambda: page.execute_script(READY))
        wait_for("the template", lambda: "CogVideoXLoadPipeline" in page.execute_script(NODE_TYPES))
        titles = wait_for("the names", lambda: page.execute_script(TITLES))
        for node in nodes:
            assert titles[node] == names[node]["display_name"]
            wait_for("the button", partial(page.execute_script, SELECT_AND_ASK, node))
            file = ROOT / "web" / "docs" / (f"{node}.md" if locale == "en" else f"{node}/zh.md")
            first, picture = file.read_text("utf-8").splitlines()[0], f"/extensions/{PACK}/docs/{node}/{locale}.webp"
            wait_for(f"the help of {node}", partial(page.execute_script, HELP, first, picture))
        time.sleep(LAYOUT_SECONDS)
        name, x, y = page.execute_script(PLACE, node, 0)
        for aside in (40, 0):
            page.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x + aside, "y": y})
        tooltip = "return document.querySelector('.node-tooltip')?.innerText"
        told = wait_for(f"the tooltip of {name}", partial(page.execute_script, tooltip))
        assert told == names[node]["inputs"][name]["tooltip"]
        page.save_screenshot(str(ARTIFACTS / f"help_{locale}.png"))
    finally:
        server.post("/settings", {"Comfy.Locale": "en"})


def test_the_console_has_no_error_of_ours(server: Server, page):
    """Of all the tests before this one; what names neither our files nor our nodes is the page's own affair."""
    errors = [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    # The page asks for the help in its language and takes the English one where there is none: no error of ours.
    errors = [error for error in errors if not re.search(rf"/extensions/{PACK}/docs/\w+/en\.md ", error)]
    ours = re.compile(rf"/extensions/{PACK}/|\bCogVideoX[A-Z][a-z]\w*\b(?!-)")  # a script or a node, no model's name
    assert [error for error in errors if error.startswith(server.url) and ours.search(error)] == []
