"""The command line that sets up the host, and the workflow runner of the demo: what they do without a network."""

import argparse
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from pack import dev
from pack.demo import run

ROOT = Path(__file__).parents[1]


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    """Send everything dev.py writes to a temporary folder."""
    paths = {"DEV": tmp_path, "VENV": tmp_path / "venv", "BASE": tmp_path / "base"}
    paths |= {"PYTHON": tmp_path / "venv" / "python", "STAMP": tmp_path / "venv" / "installed.json"}
    for name, path in paths.items():
        monkeypatch.setattr(dev, name, path)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return tmp_path


@pytest.fixture
def comfyui(tmp_path):
    folder = tmp_path / "host"
    folder.mkdir()
    (folder / "main.py").write_text("")
    (folder / "requirements.txt").write_text("numpy\n")
    return folder


def archive_of(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def arguments(**values):
    return argparse.Namespace(**{"comfyui": None, "host": None, "comfyui_tag": None, **values})


# Refusals: one clear line each


def one_line(error):
    text = str(error.value)
    assert "\n" not in text and "Traceback" not in text
    return text


@pytest.mark.parametrize("version", [(3, 9), (3, 14), (2, 7)])
def test_other_python_is_refused(version):
    with pytest.raises(dev.Stop) as error:
        dev.check_python(version)
    assert "3.10 to 3.13" in one_line(error) and "{}.{}".format(*version) in one_line(error)


@pytest.mark.parametrize("version", [(3, 10), (3, 13)])
def test_supported_python_is_taken(version):
    dev.check_python(version)


def test_wrong_sha256_is_refused(tmp_path):
    archive = archive_of(tmp_path / "host.tar.gz", {"top/main.py": "x"})
    with pytest.raises(dev.Stop) as error:
        dev.check_archive(archive, "0" * 64)
    assert hashlib.sha256(archive.read_bytes()).hexdigest() in one_line(error) and "0" * 64 in one_line(error)


@pytest.mark.parametrize("version", dev.HOSTS)
def test_wrong_archive_is_not_unpacked(sandbox, monkeypatch, version):
    def download(command, what, env=None):
        archive_of(Path(command[-1], "host.tar.gz"), {f"top/{dev.HOST_FOLDER}/main.py": "evil"})

    monkeypatch.setattr(dev, "run", download)
    with pytest.raises(dev.Stop, match=dev.HOSTS[version][1]):
        dev.download_comfyui(version)
    assert not list(sandbox.rglob("main.py"))


def test_two_hosts_live_side_by_side(sandbox, monkeypatch):
    """Each archive that is asked for is unpacked into its own folder, once."""
    asked = []

    def download(command, what, env=None):
        wanted = Path(command[command.index("-r") + 1]).read_text("utf-8").split()
        asked.append(wanted[0])
        archive_of(Path(command[-1], "host.tar.gz"), {f"top/{dev.HOST_FOLDER}/main.py": wanted[0]})

    monkeypatch.setattr(dev, "run", download)
    monkeypatch.setattr(dev, "check_archive", lambda archive, expected: None)
    for _ in range(2):
        folders = [dev.download_comfyui(version) for version in (dev.NEWEST, dev.OLDEST)]
    assert folders == [sandbox / "ComfyUI", sandbox / f"ComfyUI-{dev.OLDEST}"]
    assert asked == [f"{dev.HOST_PACKAGE}=={dev.HOSTS[version][0]}" for version in (dev.NEWEST, dev.OLDEST)]
    assert [(folder / "main.py").read_text("utf-8") for folder in folders] == asked


def test_pip_refusing_the_hash_is_one_line(sandbox, monkeypatch):
    def refuse(command, what, env=None):
        raise dev.Stop(
            "downloading ComfyUI failed: ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS"
        )

    monkeypatch.setattr(dev, "run", refuse)
    with pytest.raises(dev.Stop) as error:
        dev.download_comfyui()
    assert "expected sha256" in one_line(error)


def test_unpacking_takes_one_folder_and_stays_inside(tmp_path):
    files = {"top/vendor/ComfyUI/main.py": "main", "top/vendor/ComfyUI/comfy/sd.py": "sd", "top/other.py": "other"}
    target = tmp_path / "ComfyUI"
    dev.unpack(archive_of(tmp_path / "good.tar.gz", files), dev.HOST_FOLDER, target)
    assert sorted(path.name for path in target.rglob("*.py")) == ["main.py", "sd.py"]
    files["top/vendor/ComfyUI/../../../outside.py"] = "evil"
    with pytest.raises(dev.Stop, match="outside"):
        dev.unpack(archive_of(tmp_path / "bad.tar.gz", files), dev.HOST_FOLDER, tmp_path / "second")
    assert not (tmp_path / "second").exists() and not list(tmp_path.rglob("outside.py"))


def test_own_comfyui_without_main_is_refused(sandbox, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(dev.Stop, match="no main.py"):
        dev.set_up(arguments(comfyui=str(tmp_path / "empty")))
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "missing"))
    with pytest.raises(dev.Stop, match="no main.py"):
        dev.set_up(arguments())


def test_full_disk_is_refused_before_anything_is_made(sandbox, monkeypatch):
    monkeypatch.setattr(dev.shutil, "disk_usage", lambda path: argparse.Namespace(free=1e9))
    with pytest.raises(dev.Stop, match="8 GB"):
        dev.make_venv()
    assert not dev.VENV.exists()


def test_taken_port_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(dev.Stop, match="taken"):
            dev.check_port(taken.getsockname()[1])
    dev.check_port(dev.free_port())


@pytest.mark.parametrize("tag", ["--upload-pack=x", "../x", "a b", ""])
def test_odd_tag_is_refused(sandbox, tag):
    with pytest.raises(dev.Stop, match="not a tag"):
        dev.clone_comfyui(tag)


def test_command_line_reports_without_traceback(tmp_path):
    command = [sys.executable, ROOT / "dev.py", "serve", "--comfyui", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"dev.py: {tmp_path} is not a ComfyUI folder: it has no main.py.\n"


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("Collecting x\nERROR: No matching distribution found for x\n", "ERROR: No matching distribution found for x"),
        ("ERROR: No match\nWARNING: you are on an old pip\n", "ERROR: No match"),
        (
            "error: Failed to fetch\n  Caused by: dns error\nhint: try later",
            "the network cannot be reached (Caused by: dns error)",
        ),
        (
            "WARNING: Retrying after NewConnectionError\nERROR: No matching distribution found for x",
            "the network cannot be reached (ERROR: No matching distribution found for x)",
        ),
        ("error: Failed to read\n  Caused by: no such file\n", "Caused by: no such file"),
        ("first\nlast\n\n", "last"),
        ("", "no reason given"),
    ],
)
def test_last_word_is_the_reason(output, reason):
    assert dev.last_word(output) == reason


# Set-up runs once


def test_second_set_up_installs_nothing(sandbox, comfyui, monkeypatch):
    calls = []

    def make_venv():
        calls.append("venv")
        dev.VENV.mkdir()
        dev.PYTHON.touch()

    monkeypatch.setattr(dev, "make_venv", make_venv)
    monkeypatch.setattr(dev, "install", lambda parts: calls.append([Path(part).name for part in parts if part != "-r"]))
    args = arguments(comfyui=str(comfyui))
    assert dev.set_up(args) == comfyui.resolve()
    assert calls == ["venv", [*dev.TORCH, "requirements.txt", "requirements.txt"]]
    dev.set_up(args)
    assert len(calls) == 2
    dev.set_up(args, with_tests=True)
    assert calls[2][-1] == "requirements-dev.txt"
    dev.set_up(args, with_tests=True)
    dev.set_up(args)
    assert len(calls) == 3
    (comfyui / "requirements.txt").write_text("numpy>=2\n")
    dev.set_up(args)
    assert len(calls) == 4


def test_failed_install_is_tried_again(sandbox, comfyui, monkeypatch):
    dev.VENV.mkdir()
    dev.PYTHON.touch()
    calls = []

    def fail(parts):
        calls.append(parts)
        raise dev.Stop("no network")

    monkeypatch.setattr(dev, "install", fail)
    for _ in range(2):
        with pytest.raises(dev.Stop):
            dev.install_packages(comfyui, False)
    assert len(calls) == 2


def test_other_python_makes_the_environment_again(sandbox, comfyui, monkeypatch):
    dev.VENV.mkdir()
    dev.PYTHON.touch()
    dev.STAMP.write_text(json.dumps(dev.fingerprint([]) | {"python": "3.9"}))
    made = []
    monkeypatch.setattr(dev, "make_venv", lambda: made.append(1))
    monkeypatch.setattr(dev, "install", lambda parts: None)
    dev.set_up(arguments(comfyui=str(comfyui)))
    assert made


def test_uv_failing_falls_back_to_pip(sandbox, monkeypatch):
    commands = []

    def record(command, what, env=None):
        commands.append([str(part) for part in command[1:]])
        if "uv" in command:
            raise dev.Stop("uv failed: none")
        return ""

    monkeypatch.setattr(dev, "run", record)
    dev.install(["x"])
    assert commands[-1] == ["-m", "pip", "install", "x"]


def test_pack_is_linked_without_containing_itself(sandbox):
    dev.link_pack()
    folder = dev.BASE / "custom_nodes" / dev.PACK
    assert (folder / "__init__.py").samefile(ROOT / "__init__.py")
    assert (folder / "cogvideox").samefile(ROOT / "cogvideox")
    assert not (folder / ".dev").exists()
    (folder / "gone").symlink_to(ROOT / "gone")
    before = os.lstat(folder / "cogvideox").st_ino
    dev.link_pack()
    assert not (folder / "gone").is_symlink()
    assert os.lstat(folder / "cogvideox").st_ino == before


def test_pytest_arguments_pass_through():
    args, extra = dev.parse(["test", "-q", "-k", "x", "tests/a.py", "--comfyui", "there"])
    assert args.comfyui == "there" and extra == ["-q", "-k", "x", "tests/a.py"]
    with pytest.raises(SystemExit):
        dev.parse(["serve", "--prot", "1"])
    args, extra = dev.parse(["test", "--host", dev.OLDEST, "-x"])
    assert args.host == dev.OLDEST and extra == ["-x"]
    for other in (["--comfyui-tag", "v1"], ["--host", dev.OLDEST]):
        with pytest.raises(SystemExit):
            dev.parse(["serve", "--comfyui", "there", *other])
    with pytest.raises(SystemExit):
        dev.parse(["serve", "--host", "0.1.0"])


def test_the_part_for_older_hosts_is_run_on_those_alone(monkeypatch):
    ran = []
    monkeypatch.setattr(dev, "set_up", lambda args, with_tests: ROOT)
    monkeypatch.setattr(dev, "find_browser", lambda: True)
    monkeypatch.setattr(dev.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(dev.subprocess, "call", lambda command, **_: ran.append(command[3:]) or 0)
    for host, extra in ((None, []), (dev.NEWEST, []), (dev.OLDEST, []), (dev.OLDEST, ["-x"])):
        assert dev.test(arguments(host=host), extra) == 0
    workers = ["-n", "2", "--dist", "loadfile"]
    assert ran[2::3] == [workers, workers, [*workers, *dev.PART], ["-x"]]
    files = [part.partition("::")[0] for part in dev.PART if part.startswith("tests/")]
    assert all((ROOT / file).is_file() for file in files) and len(files) > 10


def test_the_one_test_command_runs_on_oldest_and_newest():
    lines = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    assert [line.split("dev.py ")[1].split(" <")[0] for line in lines if "dev.py " in line] == [
        f"test --host {dev.OLDEST}",
        "test",
    ]


# Saved graph to API prompt

INFO = {
    "Load": {"input": {"required": {"name": [["a", "b"], {}]}}},
    "Text": {
        "display_name": "Text Encode",
        "input": {"required": {"clip": ["CLIP"], "text": ["STRING", {"default": "", "multiline": True}]}},
    },
    "Sample": {
        "input": {
            "required": {
                "model": ["MODEL"],
                "positive": ["CONDITIONING"],
                "negative": ["CONDITIONING"],
                "seed": ["INT", {"default": 0, "control_after_generate": True}],
                "steps": ["INT", {"default": 20}],
                "sampler": ["COMBO", {"options": ["ddim", "dpm"]}],
                "forced": ["INT", {"forceInput": True}],
            },
            "optional": {"cfg": ["FLOAT", {"default": 6.0}], "sizes": ["STRING", {}]},
        }
    },
    "Patch": {"input": {"required": {"first": ["CLIP"], "model": ["MODEL"], "scale": ["FLOAT", {"default": 1.0}]}}},
    "Save": {
        "input": {
            "required": {
                "images": ["IMAGE"],
                "codec": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {
                        "options": [
                            {"key": "auto", "inputs": {}},
                            {"key": "h264", "inputs": {"required": {"crf": ["FLOAT", {"default": 23.0}]}}},
                        ]
                    },
                ],
                "format": ["COMBO", {"options": ["mp4", "webm"], "default": "mp4"}],
            }
        }
    },
}


def node(number, kind, links=(), values=(), outputs=(), **more):
    inputs = [{"name": name, "type": type_, "link": link} for name, type_, link in links]
    outputs = [{"name": type_, "type": type_} for type_ in outputs]
    return {
        "id": number,
        "type": kind,
        "inputs": inputs,
        "outputs": outputs,
        "widgets_values": values,
        "mode": 0,
        **more,
    }


def graph():
    return {
        "nodes": [
            node(1, "Load", values=["b"], outputs=["MODEL", "CLIP"]),
            node(2, "Text", [("clip", "CLIP", 2)], ["a dog"], ["CONDITIONING"], title="Positive"),
            node(3, "Text", [("clip", "CLIP", 3)], {"text": "bad"}, ["CONDITIONING"]),
            node(4, "Patch", [("first", "CLIP", None), ("model", "MODEL", 1)], [0.5], ["MODEL"], mode=4),
            node(5, "Reroute", [("", "*", 4)], [], ["*"]),
            node(
                6,
                "Sample",
                [("model", "MODEL", 5), ("positive", "CONDITIONING", 6), ("negative", "CONDITIONING", 7)],
                [7, "randomize", 30, "dpm"],
                ["LATENT"],
            ),
            node(7, "Save", [("images", "IMAGE", 8)], ["h264", 18.0, "webm"]),
            node(8, "Note", values=["a note"]),
            node(9, "MarkdownNote", values=["# a note"]),
            node(10, "Save", [("images", "IMAGE", 9)], ["auto", "mp4"], mode=2),
        ],
        "links": [
            [1, 1, 0, 4, 1, "MODEL"],
            [2, 1, 1, 2, 0, "CLIP"],
            [3, 1, 1, 3, 0, "CLIP"],
            [4, 4, 0, 5, 0, "MODEL"],
            [5, 5, 0, 6, 0, "*"],
            [6, 2, 0, 6, 1, "CONDITIONING"],
            {"id": 7, "origin_id": 3, "origin_slot": 0, "target_id": 6, "target_slot": 2, "type": "CONDITIONING"},
            [8, 6, 0, 7, 0, "IMAGE"],
            [9, 6, 0, 10, 0, "IMAGE"],
        ],
    }


def test_graph_becomes_a_prompt():
    prompt = run.graph_to_prompt(graph(), INFO)
    assert list(prompt) == ["1", "2", "3", "6", "7"]
    assert prompt["1"] == {"class_type": "Load", "inputs": {"name": "b"}, "_meta": {"title": "Load"}}
    assert prompt["2"] == {
        "class_type": "Text",
        "inputs": {"text": "a dog", "clip": ["1", 1]},
        "_meta": {"title": "Positive"},
    }
    assert prompt["3"]["inputs"] == {"text": "bad", "clip": ["1", 1]}
    assert prompt["3"]["_meta"] == {"title": "Text Encode"}
    assert prompt["6"]["inputs"] == {
        "model": ["1", 0],  # through the reroute and the bypassed patch, whose first input is of another type
        "positive": ["2", 0],
        "negative": ["3", 0],
        "seed": 7,
        "steps": 30,  # "randomize" is the editor's, not the node's
        "sampler": "dpm",
        "cfg": 6.0,
        "sizes": None,
    }
    assert prompt["7"]["inputs"] == {"images": ["6", 0], "codec": "h264", "codec.crf": 18.0, "format": "webm"}


def test_linked_widget_takes_the_link_and_primitives_leave_the_value():
    saved = graph()
    sampler = saved["nodes"][5]
    sampler["inputs"] += [
        {"name": "steps", "type": "INT", "link": 20, "widget": {"name": "steps"}},
        {"name": "seed", "type": "INT", "link": 21, "widget": {"name": "seed"}},
    ]
    saved["nodes"].append(node(11, "PrimitiveNode", values=[7, "fixed"], outputs=["INT"]))
    saved["links"] += [[20, 1, 0, 6, 4, "INT"], [21, 11, 0, 6, 3, "INT"]]
    inputs = run.graph_to_prompt(saved, INFO)["6"]["inputs"]
    assert inputs["steps"] == ["1", 0] and inputs["seed"] == 7 and inputs["sampler"] == "dpm"


def test_muted_source_leaves_the_input_out():
    saved = graph()
    saved["nodes"][1]["mode"] = 2
    assert "positive" not in run.graph_to_prompt(saved, INFO)["6"]["inputs"]


def test_seed_without_the_editors_widget_is_read_too():
    saved = graph()
    saved["nodes"][5]["widgets_values"] = [7, 30, "dpm", 5.0]
    inputs = run.graph_to_prompt(saved, INFO)["6"]["inputs"]
    assert (inputs["seed"], inputs["steps"], inputs["sampler"], inputs["cfg"]) == (7, 30, "dpm", 5.0)


def test_list_value_is_not_taken_for_a_link():
    saved = graph()
    saved["nodes"][5]["widgets_values"] = [7, "fixed", 30, "dpm", 5.0, [1, 2]]
    assert run.graph_to_prompt(saved, INFO)["6"]["inputs"]["sizes"] == {"__value__": [1, 2]}


def test_unknown_node_is_named():
    saved = graph()
    saved["nodes"].append(node(12, "Gone"))
    with pytest.raises(run.Refused, match="'Gone'"):
        run.graph_to_prompt(saved, INFO)


def test_demo_changes_only_what_it_is_asked_to():
    prompt = run.graph_to_prompt(graph(), INFO)
    run.set_values(prompt, {"seed": 1, "steps": 2, "model": "x", "absent": 3})
    run.set_prompt(prompt, "a cat")
    inputs = prompt["6"]["inputs"]
    assert (inputs["seed"], inputs["steps"], inputs["model"]) == (1, 2, ["1", 0]) and "absent" not in inputs
    assert prompt["2"]["inputs"]["text"] == "a cat" and prompt["3"]["inputs"]["text"] == "bad"


def test_demo_gives_its_images_and_no_others():
    ours = {"class_type": run.IMAGE_TO_VIDEO, "inputs": {"start_image": ["1", 0], "length": 17}}
    prompt = {"1": {"class_type": "EmptyImage", "inputs": {}}, "2": ours}
    run.set_images(prompt, {"start_image": None, "end_image": "there.png"})
    assert ours["inputs"] == {"length": 17, "end_image": ["end_image file", 0]}
    assert prompt["end_image file"]["inputs"] == {"image": "there.png"}
    run.set_images(prompt, {"start_image": "here.png", "end_image": None})
    assert ours["inputs"] == {"length": 17, "start_image": ["start_image file", 0]}
    with pytest.raises(run.Refused, match="no CogVideoXImageToVideo"):
        run.set_images({"1": prompt["1"]}, {"start_image": "here.png", "end_image": None})


def test_demo_asks_for_an_image_that_is_there(sandbox):
    args, _ = dev.parse(["demo", "--last-image", "gone.png"])
    with pytest.raises(dev.Stop, match="no image gone.png"):
        dev.demo(args, [])


def test_server_refusal_is_one_line():
    errors = [{"message": "Value not in list", "details": "name: 'x'"}]
    answer = {"error": {"message": "invalid"}, "node_errors": {"1": {"class_type": "Load", "errors": errors}}}
    assert run._reason(answer) == "Load: Value not in list: name: 'x'"
    assert run._reason({"error": {"message": "invalid"}, "node_errors": {}}) == "invalid"


# The tiny pipelines


@pytest.mark.parametrize("variant", ["2b", "5b", "5b-i2v", "1.5", "1.5-i2v"])
def test_tiny_pipeline_loads_in_the_reference(tmp_path, variant):
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    from pack.demo import tiny_pipeline

    folder = tiny_pipeline.write(tmp_path / "new", variant)
    index = json.loads((folder / "model_index.json").read_text())
    for part in ("transformer", "vae"):
        loader = getattr(diffusers, index[part][1])
        _, info = loader.from_pretrained(folder, subfolder=part, output_loading_info=True, low_cpu_mem_usage=False)
        assert not any(info.values()), (part, info)
    _, info = transformers.T5EncoderModel.from_pretrained(folder / "text_encoder", output_loading_info=True)
    assert not any(info.values()), info
    scheduler = getattr(diffusers, index["scheduler"][1]).from_pretrained(folder, subfolder="scheduler")
    assert scheduler.config.snr_shift_scale == (3.0 if variant == "2b" else 1.0)


def test_tiny_pipeline_is_its_seed(tmp_path):
    from pack.demo import tiny_pipeline

    name = "transformer/diffusion_pytorch_model.safetensors"
    written = [
        (tiny_pipeline.write(tmp_path / str(n), seed=seed) / name).read_bytes() for n, seed in enumerate((3, 3, 4))
    ]
    assert written[0] == written[1] != written[2]
    with pytest.raises(ValueError, match="5b-i2v"):
        tiny_pipeline.write(tmp_path, "7b")
