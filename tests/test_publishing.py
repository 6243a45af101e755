"""What the registry and `comfy node validate` ask of the pack: metadata, files of the archive, no code that runs code.

After docs.comfy.org/registry (specifications, standards, publishing) and comfy-cli's registry/config_parser.py.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pack import dev
from pack.tests.shipping import shipped

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
DATA = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT, COMFY = DATA["project"], DATA["tool"]["comfy"]

VERSION = re.compile(r"\d+\.\d+\.\d+")
REQUIREMENT = re.compile(r"(?:==|>=|<=|!=|~=|>|<|<>|=)?\s*\d+\.\d+\.\d+(?:-[a-zA-Z0-9]+)?")
SYSTEMS = ("Microsoft", "POSIX", "MacOS", "OS Independent")
ACCELERATORS = {
    "GPU :: NVIDIA CUDA",
    "GPU :: AMD ROCm",
    "GPU :: Intel Arc",
    "NPU :: Huawei Ascend",
    "GPU :: Apple Metal",
}
ADDRESS = re.compile(r"https://[\w.-]+\.[a-z]+/\S+")
ICON_SIDE = 400  # pixels at most, square
ARCHIVE_MB = 35  # 25 of it are the built-in pipeline
# What the pack is made of for an artist, and what an archive without tests and tools leaves out.
NEEDED = {
    "__init__.py",
    "pyproject.toml",
    "requirements.txt",
    "LICENSE",
    "README.md",
    "CHANGELOG.md",
    "nodes/__init__.py",
    "cogvideox/transformer.py",
    "legacy/schema.json",
    "locales/zh/nodeDefs.json",
    "web/docs/CogVideoXSampler.md",
    "workflows/t2v.json",
    "workflows/t2v.jpg",
    "demo/cogvideox-mini/manifest.json",
    "tools/gguf_convert.py",
}
LEFT_OUT = {"tests", "benchmarks", "dev.py", ".ci", ".github", "requirements-dev.txt"}
# Modules that start programs, fetch from the network, or run and hide code.
FORBIDDEN = {
    *("subprocess", "pip", "ensurepip", "urllib", "requests", "httpx", "socket", "ftplib", "http"),
    *("marshal", "code", "codeop", "runpy", "base64", "binascii", "ctypes"),
}
RUNNING = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.spawnv", "pickle.load"}


def archive() -> list[str]:
    files = shipped()
    if files is None:
        pytest.skip("no git here: what is in the repository cannot be told")
    return files


# Metadata


def test_the_name_is_one_the_registry_takes():
    name = PROJECT["name"]
    assert len(name) < 100 and re.fullmatch(r"[A-Za-z][A-Za-z0-9]*([-_.][A-Za-z0-9]+)*", name)
    assert "comfyui" not in name.lower()


def test_the_version_is_the_changelogs_topmost():
    assert VERSION.fullmatch(PROJECT["version"])
    headings = re.findall(r"^## \[(.+?)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0][0] == PROJECT["version"]
    versions = [tuple(map(int, version.split("."))) for version, _ in headings]
    assert versions == sorted(set(versions), reverse=True)
    dates = [date for _, date in headings]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for date in dates[1:])
    assert dates[0] == "unreleased" or dates[:1] >= dates[1:2]


def test_description_licence_and_python_are_given():
    assert 20 < len(PROJECT["description"]) < 200
    assert list(PROJECT["license"]) == ["file"] and (ROOT / PROJECT["license"]["file"]).is_file()
    assert (ROOT / PROJECT["readme"]).is_file()
    assert PROJECT["requires-python"] == ">={}.{}".format(*dev.PYTHONS[0])


def test_dependencies_are_those_of_requirements():
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    assert PROJECT["dependencies"] == [line for line in lines if line.strip() and not line.startswith("#")]


def test_classifiers_are_those_the_registry_reads():
    names = PROJECT["classifiers"]
    systems = [name.removeprefix("Operating System :: ") for name in names if name.startswith("Operating System")]
    accelerators = [name.removeprefix("Environment :: ") for name in names if name.startswith("Environment")]
    assert systems and all(system.startswith(SYSTEMS) for system in systems)
    assert accelerators and set(accelerators) <= ACCELERATORS


def test_the_publisher_and_display_name_are_given():
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", COMFY["PublisherId"])
    assert 0 < len(COMFY["DisplayName"]) < 60
    assert COMFY.keys() <= {"PublisherId", "DisplayName", "Icon", "Banner", "Models", "includes", "requires-comfyui"}


def test_the_oldest_comfyui_asked_for_is_the_oldest_tested():
    asked = COMFY["requires-comfyui"]
    assert all(REQUIREMENT.fullmatch(part.strip()) for part in asked.split(","))
    assert asked == f">={dev.OLDEST}"
    assert f"({dev.OLDEST} or newer" in (ROOT / "README.md").read_text("utf-8")


def test_addresses_are_public_ones():
    """There are none before the repository has its public place; with the first all of them are needed."""
    urls = PROJECT.get("urls", {})
    assert not urls or {"Repository", "Documentation", "Bug Tracker"} <= urls.keys()
    for address in (*urls.values(), *(COMFY[name] for name in ("Icon", "Banner") if name in COMFY)):
        assert ADDRESS.fullmatch(address)


def test_the_icon_is_square_and_small():
    head = (ROOT / "icon.svg").read_text("utf-8").partition(">")[0]
    width, height = (int(re.search(rf'{side}="(\d+)"', head)[1]) for side in ("width", "height"))
    assert width == height <= ICON_SIDE


# The archive


def test_the_archive_holds_what_artists_need_and_no_more():
    files = archive()
    assert NEEDED <= set(files)
    assert not LEFT_OUT & {path.partition("/")[0] for path in files}
    assert [path for path in files if path.startswith("demo/") and not path.startswith("demo/cogvideox-mini/")] == []
    assert sum((ROOT / path).stat().st_size for path in files) < ARCHIVE_MB * 1e6


def code_problems(source: str) -> list[str]:
    """Return what the registry's standards forbid in a Python file."""
    found = []
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        else:
            names = []
        found += [f"imports {name}" for name in names if name.partition(".")[0] in FORBIDDEN]
        if isinstance(node, ast.Call) and (called := ast.unparse(node.func)) in RUNNING:
            found.append(f"calls {called}")
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            text = node.value if isinstance(node.value, str) else node.value.decode("latin1")
            if re.search(r"[A-Za-z0-9+/]{200}", text):
                found.append("holds a long text that reads like packed data")
    found += ["holds a line that nobody reads"] if any(len(line) > 200 for line in source.splitlines()) else []
    return found


def test_no_shipped_code_runs_code_or_programs_or_fetches():
    files = [path for path in archive() if path.endswith(".py")]
    assert len(files) > 80
    problems = {path: code_problems((ROOT / path).read_text("utf-8")) for path in files}
    assert {path: found for path, found in problems.items() if found} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import subprocess",
        "def f():\n    from urllib.request import urlopen",
        "eval('1')",
        "exec(text)",
        "import os\nos.system('x')",
        "import pip",
        f"x = '{'QUJD' * 60}'",
        f"x = [{'1, ' * 80}]",
    ],
)
def test_what_the_registry_forbids_is_seen(source):
    assert code_problems(source)


def test_the_registrys_own_check_is_silent():
    """`comfy node validate` runs these rules of ruff: exec, eval, and several statements in a line."""
    command = [sys.executable, "-m", "ruff", "check", ".", "-q", "--isolated", "--select", "S102,S307,E702"]
    done = subprocess.run([*command, "--exclude", ".dev"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
