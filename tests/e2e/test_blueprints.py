"""Blueprints: the server offers them, they run, and in the page they are found, put on the canvas and run."""

import json
import time
from typing import Any

import numpy as np
import pytest
from pack.demo import detector
from pack.demo.run import graph_to_prompt
from pack.tools.make_blueprints import BLUEPRINTS, INPUTS, OUTPUTS
from PIL import Image

from . import test_page, videos
from .server import PACK, ROOT, Prompt, Server, on_the_built_in_model

page = test_page.page
FILES = {path.stem: path for path in sorted((ROOT / "subgraphs").glob("*.json"))}
SMALL = {"width": 96, "height": 64, "length": 9, "steps": 2, "seed": 5}
MINI = {"pipeline": "cogvideox-mini", "prompt": "a red square moves to the right", "negative_prompt": ""}
each_blueprint = pytest.mark.parametrize("title", FILES)
in_the_page = pytest.mark.skipif(not (test_page.BROWSER and test_page.DRIVER), reason="no Chromium with its driver")


def expanded(server: Server, title: str, values: dict[str, Any]) -> Prompt:
    """Return what the one node stands for as API prompt; `values` are those of its inputs by their names outside."""
    (subgraph,) = json.loads(FILES[title].read_text("utf-8"))["definitions"]["subgraphs"]
    entering = [link for link in subgraph["links"] if link["origin_id"] == INPUTS]
    inner = {**subgraph, "links": [link for link in subgraph["links"] if link not in entering]}
    prompt = graph_to_prompt(inner, server.object_info)
    nodes = {node["id"]: node for node in subgraph["nodes"]}
    for link in entering:
        name = subgraph["inputs"][link["origin_slot"]]["name"]
        if name in values:
            into = nodes[link["target_id"]]["inputs"][link["target_slot"]]["name"]
            prompt[str(link["target_id"])]["inputs"][into] = values[name]
    (leaving,) = [link for link in subgraph["links"] if link["target_id"] == OUTPUTS]
    assert values.keys() <= {entry["name"] for entry in subgraph["inputs"]}
    saved = {"video": [str(leaving["origin_id"]), leaving["origin_slot"]], "filename_prefix": "video/blueprint"}
    saver = {"class_type": "SaveVideo", "inputs": {**saved, "format": "auto", "codec": "auto"}}
    return {**prompt, "saver": saver}


def of_node_titles(prompt: Prompt) -> dict[str, dict[str, Any]]:
    """Return the inputs of each node by its title, links as titles too: ids change with each use of a blueprint."""
    titles = {id: node["_meta"]["title"] for id, node in prompt.items()}
    assert len(set(titles.values())) == len(titles)
    return {
        titles[id]: {
            name: [titles[value[0]], value[1]] if isinstance(value, list) else value
            for name, value in node["inputs"].items()
        }
        for id, node in prompt.items()
    }


def test_every_blueprint_is_offered_as_it_is_in_the_pack(server: Server):
    entries = server.get("/global_subgraphs")
    ours = {id: entry["name"] for id, entry in entries.items() if entry["info"]["node_pack"] == f"custom_nodes.{PACK}"}
    assert sorted(ours.values()) == sorted(BLUEPRINTS)
    for id, title in ours.items():
        assert server.get(f"/global_subgraphs/{id}")["data"] == FILES[title].read_text("utf-8")


def test_text_to_video_makes_what_its_widgets_say(server: Server):
    values = {**MINI, "width": 96, "height": 64, "length": 17, "fps": 16, "steps": 20, "seed": 7}
    prompt = expanded(server, "Text to Video (CogVideoX)", values)
    run = server.run(prompt)
    assert run.end == "execution_success", run.message
    video = videos.read(run.files[0])
    assert video.frames.shape == (17, 64, 96, 3) and video.fps == 16
    seen = detector.measure(video.frames)
    assert (seen.colour, seen.direction) == ("red", "right")


def test_image_to_video_begins_with_its_image(server: Server):
    picture = np.full((64, 96, 3), (168, 204, 236), np.uint8)
    picture[24:40, 12:28] = 222, 36, 36
    Image.fromarray(picture).save(server.base / "input" / "square.png")
    words = {"prompt": MINI["prompt"], "negative_prompt": ""}
    values = {**words, **SMALL, "length": 17, "steps": 12, "start_image": ["image", 0]}
    prompt = on_the_built_in_model(expanded(server, "Image to Video (CogVideoX)", values))
    prompt["image"] = {"class_type": "LoadImage", "inputs": {"image": "square.png"}}
    run = server.run(prompt)
    assert run.end == "execution_success", run.message
    first = videos.read(run.files[0]).frames[0].astype(int)
    assert np.abs(first - picture).mean() < 8, "the video does not begin with the image"


@each_blueprint
def test_blueprint_runs_on_the_models_that_it_names(server: Server, title: str):
    values = {**SMALL, "start_image": ["image", 0]} if "Image" in title else SMALL
    prompt = expanded(server, title, values)
    prompt["image"] = {"class_type": "LoadImage", "inputs": {"image": "example.png"}}
    run = server.run(prompt)
    assert run.end == "execution_success", run.message
    assert videos.read(run.files[0]).frames.shape == (9, 64, 96, 3)


SEARCH = "app.graph.clear(); app.extensionManager.command.execute('Workspace.SearchBox.Toggle')"
FILL = """
const [values] = arguments, [node] = app.graph.nodes, add = type => {
  const made = LiteGraph.createNode(type);
  app.graph.add(made);
  return made;
};
for (const widget of node.widgets) if (widget.name in values) widget.value = values[widget.name];
const saver = add("SaveVideo");
saver.pos = [node.pos[0] + node.size[0] + 60, node.pos[1]];
node.connect(0, saver, 0);
if (node.inputs[0].type == "IMAGE") {
  const image = add("LoadImage");
  image.pos = [node.pos[0] - image.size[0] - 60, node.pos[1]];
  image.connect(0, node, 0);
}
"""


@in_the_page
@each_blueprint
def test_blueprint_is_found_put_on_the_canvas_and_run(server: Server, page, title: str):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    page.execute_script(SEARCH)
    time.sleep(test_page.LAYOUT_SECONDS)
    ActionChains(page).send_keys(title).perform()
    time.sleep(test_page.LAYOUT_SECONDS)
    test_page.ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page.save_screenshot(str(test_page.ARTIFACTS / f"search {title}.png"))
    ActionChains(page).send_keys(Keys.ENTER).perform()
    on_canvas = "return app.graph.nodes.map(node => node.title)"
    test_page.wait_for("the node on the canvas", lambda: page.execute_script(on_canvas) == [title])
    canvas = page.find_element("id", "graph-canvas")
    ActionChains(page).move_to_element(canvas).click().perform()  # the node hangs on the mouse until then
    test_page.screenshot(page, title)
    assert page.execute_script("return app.graph.nodes[0].widgets.map(widget => widget.name)") == [
        name for _, _, name in BLUEPRINTS[title].widgets
    ]
    assert page.execute_script(test_page.TOO_SMALL) == []

    page.execute_script(FILL, SMALL)
    made = page.execute_async_script("const [done] = arguments; app.graphToPrompt().then(made => done(made.output))")
    assert page.execute_script(test_page.COMPLAINTS) == []
    outside = [id for id, node in made.items() if node["class_type"] in ("SaveVideo", "LoadImage")]
    titles = of_node_titles(made)
    expected = expanded(server, title, SMALL)
    del expected["saver"]
    wanted = of_node_titles(expected)
    for id in outside:
        del titles[made[id]["_meta"]["title"]]
    if "CogVideoX Image to Video" in titles:
        assert titles["CogVideoX Image to Video"].pop("start_image") == ["Load Image", 0]
    assert titles == wanted

    before = set(server.get("/history"))
    page.execute_script("app.queuePrompt(0)")
    (job,) = test_page.wait_for("the run", lambda: set(server.get("/history")) - before)
    assert server.get(f"/history/{job}")[job]["status"]["status_str"] == "success"
    test_page.wait_for("the video in the page", lambda: page.execute_script("return !!document.querySelector('video')"))
    test_page.screenshot(page, f"{title} done")
