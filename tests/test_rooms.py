"""Every file keeps to its room: who may import whom, and what no file may hold."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
STDLIB = frozenset(sys.stdlib_module_names)
SKIPPED = {".git", ".dev", "__pycache__", ".pytest_cache", ".ruff_cache", ".venv", "node_modules"}
TEXT = {".py", ".md", ".json", ".toml", ".txt", ".yml", ".yaml", ".js", ".css", ".html", ".sh", ""}

# ComfyUI's own modules.
HOST = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview", "node_helpers", "server"}
# Top-level modules a room may import besides the standard library; relative imports are judged by `_relative`.
OUTSIDE = {
    "cogvideox": {"torch", "einops"},
    "legacy": set(),
    "nodes/host": {"torch", "einops", "safetensors", "numpy", "PIL", "av", "gguf", "aiohttp"} | HOST,
    "nodes": {"torch", "folder_paths", "comfy_api"},
    "demo": {"torch", "einops", "safetensors", "numpy", "PIL", "av", "aiohttp"},
    "tools": {"torch", "safetensors", "numpy", "gguf", "comfy", "PIL", "av", "selenium"},
    "dev.py": set(),
    "__init__.py": set(),
}
# Rooms of the pack a relative import of that room may reach.
INSIDE = {
    "cogvideox": {"cogvideox"},
    "legacy": {"legacy"},
    "nodes/host": {"nodes/host", "cogvideox", "legacy"},
    "nodes": {"nodes", "nodes/host", "cogvideox"},
    "demo": {"demo", "cogvideox"},
    "tools": {"tools", "cogvideox", "nodes"},
    "dev.py": set(),
    "__init__.py": {"nodes"},
}
SHIPPED = ("cogvideox", "legacy", "nodes", "nodes/host", "__init__.py")
PEERS = {"diffusers", "transformers", "peft"}  # what tests and benchmarks compare with
REGISTRY = {"nodes/host/legacy.py": {"nodes"}}  # the host's own `nodes`, its table of all nodes
TRAINING = {"demo/mini.py": {"transformers"}, "demo/text.py": {"tokenizers"}}  # a T5 with gradients; never shipped

REGISTRIES = re.compile(
    "|".join(("py" + r"pi\.org", "python" + r"hosted\.org", "npm" + r"js\.(org|com)", "ana" + r"conda\.org"))
)
MACHINE_PATH = re.compile(r"(?<![\w.:/~-])(/(work|root|home|Users|opt|mnt|tmp)/\w|[A-Z]:\\+Users\b)")


def room_of(path: str) -> str:
    """Return the room of a file of the pack, by its path from the root; "" where anything may be imported."""
    parts = PurePosixPath(path).parts
    if parts[:2] == ("nodes", "host"):
        return "nodes/host"
    return parts[0] if parts[0] in INSIDE else ""


def _relative(path: str, node: ast.ImportFrom) -> Iterator[str]:
    """Yield the files or folders of the pack a relative import reaches, as paths from the root."""
    folder = PurePosixPath(path).parent
    parents = [folder, *folder.parents]
    if node.level > len(parents):
        yield ".."
        return
    base = parents[node.level - 1].joinpath(*(node.module or "").split("."))
    yield from [str(base)] if node.module else [str(base / alias.name) for alias in node.names]


def import_problems(path: str, tree: ast.AST) -> Iterator[str]:
    room = room_of(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        else:
            names = []
        for name in names:
            top = name.partition(".")[0]
            if top in TRAINING.get(path, ()) or top in REGISTRY.get(path, ()):
                continue
            if top in PEERS and not path.startswith(("tests/", "benchmarks/")):
                yield f"imports {name}, which is for tests and benchmarks only"
            elif room and top not in STDLIB and top not in OUTSIDE[room]:
                yield f"imports {name}, which {room} may not"
            elif room == "nodes" and top == "comfy_api" and not re.match(r"comfy_api\.latest\b", name):
                yield f"imports {name} and not comfy_api.latest"
        if isinstance(node, ast.ImportFrom) and node.level and room:
            for target in _relative(path, node):
                reached = room_of(target)
                if reached not in INSIDE[room]:
                    yield f"imports {target}, which {room} may not"
                elif (room, reached) == ("nodes", "cogvideox"):
                    lower = [alias.name for alias in node.names if not alias.name.isupper()]
                    if lower:
                        yield f"imports {', '.join(lower)} of {target}, and nodes take constants of it only"


def code_problems(path: str, tree: ast.AST) -> Iterator[str]:
    shipped = room_of(path) in SHIPPED
    testing = path.startswith(("tests/", "benchmarks/"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield "has a bare except"
        if isinstance(node, ast.Name | ast.Attribute) and not testing:
            name = node.id if isinstance(node, ast.Name) else node.attr
            if name == "NODE_CLASS_MAPPINGS" and path not in REGISTRY:
                yield "names NODE_CLASS_MAPPINGS, which would silence the entry point"
        if shipped and isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path":
            yield "touches sys.path"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called == "print" and shipped:
            yield "prints"
        if called in ("eval", "exec", "builtins.eval", "builtins.exec"):
            yield f"calls {called}"
        if called in ("logging.basicConfig", "basicConfig"):
            yield "configures logging for everyone"
        if called == "torch.load":
            safe = [word.value for word in node.keywords if word.arg == "weights_only"]
            if not (safe and isinstance(safe[0], ast.Constant) and safe[0].value is True):
                yield "calls torch.load without weights_only=True"


def entry_problems(tree: ast.Module) -> Iterator[str]:
    """The root `__init__.py`: a docstring, WEB_DIRECTORY and a lazy entry point, no work at import."""
    names = []
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AsyncFunctionDef):
            names.append(node.name)
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            names.append(f"{type(node).__name__} in line {node.lineno}")
    if sorted(names) != ["WEB_DIRECTORY", "comfy_entrypoint"]:
        yield f"holds {', '.join(sorted(names))} instead of WEB_DIRECTORY and comfy_entrypoint"


def text_problems(source: str) -> Iterator[str]:
    for number, line in enumerate(source.splitlines(), 1):
        if match := REGISTRIES.search(line):
            yield f"line {number} names the package registry {match[0]}"
        if match := MACHINE_PATH.search(line):
            yield f"line {number} holds the path of one machine: {match[0]}..."


def problems(path: str, source: str) -> list[str]:
    """Return what is wrong with the file at `path` (from the root, with slashes)."""
    found = list(text_problems(source))
    if path.endswith(".py"):
        tree = ast.parse(source, path)
        found += [*import_problems(path, tree), *code_problems(path, tree)]
        if path == "__init__.py":
            found += entry_problems(tree)
    return found


def pack_files() -> list[str]:
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.suffix in TEXT and path.name != "LICENSE")
    return sorted(path.as_posix() for path in paths if not SKIPPED & set(path.parts) and (ROOT / path).is_file())


FILES = pack_files()


@pytest.mark.parametrize("path", FILES)
def test_file_keeps_to_its_room(path):
    assert problems(path, (ROOT / path).read_text("utf-8")) == []


def test_the_files_are_found():
    assert {"__init__.py", "dev.py", "cogvideox/variants.py", "demo/run.py", "pyproject.toml"} <= set(FILES)
    assert not any(path.startswith(".dev") for path in FILES)


GOOD = [
    (
        "cogvideox/x.py",
        "import math\nimport torch\nfrom einops import rearrange\nfrom .vae import A\nfrom . import keys",
    ),
    ("cogvideox/sub/x.py", "from ..vae import A\nmodel.eval()"),
    (
        "nodes/host/x.py",
        "import comfy.sd\nimport folder_paths\nfrom comfy import ops\nfrom ...cogvideox.vae import make",
    ),
    ("nodes/host/x.py", "from . import load\nfrom .load import f"),
    ("nodes/host/x.py", "from ...legacy import convert"),
    ("legacy/x.py", "import json\nfrom .graph import Node"),
    (
        "nodes/x.py",
        "from comfy_api.latest import io\nfrom .host.load import f\nfrom ..cogvideox.variants import TEXT_TOKENS",
    ),
    ("nodes/__init__.py", "from .loaders import A\nfrom . import text"),
    ("demo/x.py", "from ..cogvideox.vae import A\nprint(1)"),
    ("tests/x.py", "import diffusers\nfrom nodes import NODE_CLASS_MAPPINGS\nprint(NODE_CLASS_MAPPINGS)"),
    ("cogvideox/x.py", "torch.load(f, weights_only=True)"),
    ("README.md", "See https://example.com/home/page and models/tmp/x, ~/work/x, ./tmp/x."),
]
BAD = [
    ("cogvideox/x.py", "import comfy.ops"),
    ("cogvideox/x.py", "from safetensors import safe_open"),
    ("cogvideox/x.py", "from ..nodes import loaders"),
    ("cogvideox/x.py", "from .. import nodes"),
    ("cogvideox/x.py", "from ... import anything"),
    ("cogvideox/x.py", "def f():\n    import diffusers"),
    ("cogvideox/x.py", "print(1)"),
    ("legacy/x.py", "import torch"),
    ("legacy/x.py", "from ..cogvideox.vae import A"),
    ("cogvideox/x.py", "torch.load(f)"),
    ("cogvideox/x.py", "torch.load(f, weights_only=False)"),
    ("cogvideox/x.py", "import sys\nsys.path.insert(0, 'x')"),
    ("nodes/host/x.py", "import transformers"),
    ("nodes/host/x.py", "from ..loaders import A"),
    ("nodes/host/x.py", "from .. import loaders"),
    ("nodes/host/x.py", "try:\n    pass\nexcept:\n    pass"),
    ("nodes/x.py", "import comfy.sd"),
    ("nodes/x.py", "from comfy_api.v0_0_2 import io"),
    ("nodes/x.py", "from comfy_api import latest"),
    ("nodes/x.py", "from ..cogvideox.vae import AutoencoderKLCogVideoX"),
    ("nodes/x.py", "from ..cogvideox import vae"),
    ("nodes/x.py", "import numpy"),
    ("nodes/x.py", "NODE_CLASS_MAPPINGS = {}"),
    ("nodes/x.py", "import logging\nlogging.basicConfig()"),
    ("nodes/x.py", "eval('1')"),
    ("demo/x.py", "from ..nodes import text"),
    ("demo/x.py", "exec('1')"),
    ("demo/x.py", "import diffusers"),
    ("dev.py", "import torch"),
    ("dev.py", "from .cogvideox import vae"),
    ("__init__.py", "WEB_DIRECTORY = './web'\nfrom .nodes import x"),
    ("__init__.py", "WEB_DIRECTORY = './web'\nNODE_CLASS_MAPPINGS = {}\nasync def comfy_entrypoint(): pass"),
    ("__init__.py", "def comfy_entrypoint(): pass"),
    ("README.md", "see https://py" + "pi.org/simple"),
    ("README.md", "put it in /ho" + "me/me/ComfyUI"),
    ("nodes/x.py", "path = '/wo" + "rk/main'"),
    ("nodes/x.py", "path = 'C:\\\\Us" + "ers\\\\me'"),
]


@pytest.mark.parametrize(("path", "source"), GOOD)
def test_checker_accepts(path, source):
    assert problems(path, source) == []


@pytest.mark.parametrize(("path", "source"), BAD)
def test_checker_refuses(path, source):
    assert problems(path, source)
