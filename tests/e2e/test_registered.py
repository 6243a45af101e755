"""What the server and the page get from the pack: nodes with their texts, help pages and templates."""

import re

import pytest

from .server import PACK, ROOT, WORKFLOWS, Server

NODES = sorted(
    id for path in (ROOT / "nodes").glob("*.py") for id in re.findall(r'\bnode_id="(\w+)"', path.read_text("utf-8"))
)
FAMILIES = ("loaders", "text", "latent", "conditioning", "sampling", "vae", "control", "patches")


def test_the_pack_is_imported_without_a_complaint(server: Server):
    start, found, _ = server.log.partition("Starting server")
    imported = [line for line in start.splitlines() if PACK in line]
    assert found and imported
    assert [line for line in imported if "FAILED" in line or "WARNING" in line or "Error" in line] == []
    assert "Traceback" not in start


def test_the_server_has_exactly_the_nodes_of_the_schemas(server: Server):
    ours = [id for id, info in server.object_info.items() if info["python_module"] == f"custom_nodes.{PACK}"]
    assert sorted(ours) == NODES


@pytest.mark.parametrize("id", NODES)
def test_node_is_described(server: Server, id: str):
    info = server.object_info[id]
    assert info["display_name"] != id
    assert info["description"]
    root, family = info["category"].split("/")
    assert root == "CogVideoX" and family in FAMILIES
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    without = [name for name, spec in inputs.items() if len(spec) < 2 or not spec[1].get("tooltip")]
    assert without == [], "inputs without a tooltip"
    assert all(info["output_tooltips"]), "outputs without a tooltip"


@pytest.mark.parametrize("id", NODES)
def test_node_has_a_help_page(server: Server, id: str):
    page = ROOT / "web" / "docs" / f"{id}.md"
    assert len(page.read_text("utf-8").split()) > 20
    assert server.read(f"/extensions/{PACK}/docs/{id}.md") == page.read_bytes()


def test_the_page_gets_every_template_with_its_picture(server: Server):
    assert sorted(server.get("/workflow_templates")[PACK]) == sorted(WORKFLOWS)
    for name, path in WORKFLOWS.items():
        address = f"/api/workflow_templates/{PACK}/{name}"
        assert server.read(f"{address}.json") == path.read_bytes()
        assert server.read(f"{address}.jpg").startswith(b"\xff\xd8")


def test_a_node_shows_its_line(server: Server):
    inputs = {"model": "5B", "size": "trained size", "seconds": 6.0, "base": 512}
    prompt = {
        "size": {"class_type": "CogVideoXResolution", "inputs": inputs, "_meta": {}},
        "shown": {"class_type": "PreviewAny", "inputs": {"source": ["size", 0]}, "_meta": {}},
    }
    run = server.run(prompt)
    assert run.end == "execution_success", run.message
    assert run.texts["size"].startswith("720x480, 49 frames (6.1 s): 13x60x90 latents")
