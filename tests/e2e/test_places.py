"""The pack as others have it: unpacked with Windows' line ends, on a path of any name, beside the older wrapper.

The pack's own folder has a plain name, as from the registry or git: of one with a space or a letter beyond ASCII
ComfyUI serves no help page, script or template, whatever the pack (web.static of aiohttp does not find such prefixes).
"""

import json
import shutil
from pathlib import Path
from urllib.parse import quote

import pytest
from pack.legacy import ERAS
from pack.tests.old_graphs import whole
from pack.tests.shipping import shipped

from .server import PACK, ROOT, WORKFLOWS, Server, running
from .test_registered import NODES

WRAPPER = "ComfyUI-CogVideoXWrapper"
TEXT = {".py", ".md", ".json", ".txt", ".toml", ".js", ".svg"}
KEPT = "demo/cogvideox-mini/"  # which git leaves as it is as well: its sums are kept
SCRIPT = "js/legacy.js"
OLD_TYPES = {
    *("COGVIDEOMODEL", "COGLORA", "TRANSFORMERBLOCKS", "COMPILEARGS", "COGCONTEXT", "COGVIDECONTROLNETMODEL"),
    *("COGVIDECONTROLNET", "TORAMODEL", "TORAFEATURES", "FASTERCACHEARGS", "TEACACHEARGS", "FETAARGS"),
}

# A pack with the older wrapper's node ids, model folder and a script of the same name as ours; no code of that pack.
STAND_IN = """
import os
import folder_paths

folder_paths.add_model_folder_path("cogvideox_loras", os.path.join(folder_paths.models_dir, "CogVideo", "loras"))


class Node:
    RETURN_TYPES = ("COGVIDEOMODEL",)
    FUNCTION = "run"
    CATEGORY = "CogVideoWrapper"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}, "optional": {"prompt": ("STRING", {"default": ""})}}

    def run(self, prompt=""):
        return {"ui": {"text": ["the wrapper's own node"]}, "result": (prompt,)}


WEB_DIRECTORY = "./web"
NODE_CLASS_MAPPINGS = {name: type(name, (Node,), {}) for name in IDS}
"""


def unpack(folder: Path) -> None:
    """Write the archive's files to `folder` as a Windows machine may hold them."""
    files = shipped()
    if files is None:
        skipped = shutil.ignore_patterns(".*", "__pycache__", "tests", "benchmarks")
        shutil.copytree(ROOT, folder, ignore=skipped)
        files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = (ROOT / name).read_bytes()
        if path.suffix in TEXT and not name.startswith(KEPT):
            content = content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        path.write_bytes(content)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    base = tmp_path_factory.mktemp("base") / "Künstler 视频" / "Comfy UI"
    for folder in ("custom_nodes", "input", "output", "models"):
        (base / folder).mkdir(parents=True)
    unpack(base / "custom_nodes" / PACK)
    wrapper = base / "custom_nodes" / WRAPPER
    wrapper.mkdir()
    (wrapper / "__init__.py").write_text(STAND_IN.replace("IDS", repr(sorted(ERAS))), "utf-8")
    script = wrapper / "web" / SCRIPT
    script.parent.mkdir(parents=True)
    script.write_text("// the wrapper's own script", "utf-8")
    with running(base) as server:
        yield server


def owned(server: Server, folder: str) -> set[str]:
    return {id for id, info in server.object_info.items() if info["python_module"] == f"custom_nodes.{folder}"}


def served(server: Server, path: str) -> bytes:
    return server.read(quote(path))


def plain(content: bytes) -> bytes:
    return content.replace(b"\r\n", b"\n")


# Any path, Windows' line ends


def test_every_node_is_there(place: Server):
    start = place.log.partition("Starting server")[0]
    assert "Traceback" not in start and "IMPORT FAILED" not in start
    assert owned(place, PACK) == set(NODES)


def test_help_and_script_are_served(place: Server):
    for name in ("docs/CogVideoXSampler.md", "docs/CogVideoXSampler/zh.md", SCRIPT):
        content = served(place, f"/extensions/{PACK}/{name}")
        assert b"\r\n" in content and plain(content) == plain((ROOT / "web" / name).read_bytes())
    assert f"/extensions/{PACK}/{SCRIPT}" in place.get("/extensions")


def test_names_in_other_languages_are_served(place: Server):
    known = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text("utf-8"))
    assert known.items() <= place.get("/i18n")["zh"]["nodeDefs"].items()


def test_templates_are_served(place: Server):
    assert sorted(place.get("/workflow_templates")[PACK]) == sorted(WORKFLOWS)
    for name, path in WORKFLOWS.items():
        address = f"/api/workflow_templates/{PACK}/{name}"
        assert json.loads(served(place, f"{address}.json")) == json.loads(path.read_text("utf-8"))
        assert served(place, f"{address}.jpg") == path.with_suffix(".jpg").read_bytes()


def test_the_built_in_demo_runs(place: Server):
    run = place.run(place.prompt("demo_t2v", width=96, height=64, length=9, steps=2))
    assert run.end == "execution_success", run.message
    assert [file.is_file() for file in run.files] == [True]


# Beside the older wrapper


def test_no_id_is_taken_from_either(place: Server):
    assert owned(place, WRAPPER) == set(ERAS)
    assert not set(ERAS) & set(NODES)


def test_no_socket_of_the_wrapper_is_ours(place: Server):
    ours = [place.object_info[id] for id in NODES]
    inputs = [spec[0] for info in ours for group in info["input"].values() for spec in group.values()]
    types = {type for type in inputs if isinstance(type, str)} | {type for info in ours for type in info["output"]}
    assert "MODEL" in types and not types & OLD_TYPES


def test_scripts_and_model_folders_do_not_meet(place: Server):
    assert served(place, f"/extensions/{WRAPPER}/{SCRIPT}") == b"// the wrapper's own script"
    assert {"CogVideo", "cogvideox_loras"} <= set(place.get("/models"))


@pytest.mark.parametrize("id", ["CogVideoSampler", "CogVideoTextEncode", "DownloadAndLoadCogVideoModel"])
def test_graphs_of_the_wrapper_are_left_alone(place: Server, id: str):
    answer = place.post("/cogvideox/convert", whole(id, 0).editor())
    assert answer["graph"] is None and answer["report"]["converted"] == []


def test_prompts_of_the_wrapper_run_in_its_own_nodes(place: Server):
    prompt = {"1": {"class_type": "CogVideoTextEncode", "inputs": {"prompt": "a fox"}, "_meta": {}}}
    run = place.run(prompt)
    assert run.end == "execution_success", run.message
    assert [data["output"]["text"] for data in run.of("executed")] == [["the wrapper's own node"]]
