"""What the measurements share: the pack and the host on the path, results as files."""

from __future__ import annotations

import json
import os
import platform
import sys
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def import_pack() -> None:
    """Name the pack without putting its folder on sys.path, where its `nodes` would shadow the host's."""
    pack = sys.modules.setdefault("pack", types.ModuleType("pack"))
    pack.__path__ = [str(ROOT)]


def import_host() -> None:
    """Put ComfyUI (COMFYUI_PATH, else the one of dev.py) on the path, on the CPU where there is no card."""
    import torch

    folder = Path(os.environ.get("COMFYUI_PATH", ROOT / ".dev" / "ComfyUI")).resolve()
    if not (folder / "main.py").is_file():
        raise SystemExit(f"There is no ComfyUI in {folder}. Run `python dev.py bench`, or set COMFYUI_PATH.")
    sys.path.insert(0, str(folder))
    arguments, sys.argv = sys.argv, [sys.argv[0], *([] if torch.cuda.is_available() else ["--cpu"])]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args  # noqa: F401  reads sys.argv

    sys.argv = arguments


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    import torch

    facts = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        return {"device": torch.cuda.get_device_name(), **facts}
    return {"device": f"CPU, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}", **facts}


def load(name: str) -> dict[str, Any]:
    """Return what results/NAME.json holds, or nothing."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def save(name: str, results: dict[str, Any]) -> Path:
    """Write results/NAME.json and print it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    text = json.dumps({"machine": machine(), **results}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")
    print(text)
    return path
