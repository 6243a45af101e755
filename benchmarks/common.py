"""What the measurements share: the pack and the host on the path, processes that take turns, results as files."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import types
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

# Names this run in every figure it gives. Only figures of one run are compared: no machine is as busy, as warm and as
# full the next time.
RUN = f"{time.strftime('%Y-%m-%d %H:%M')} {uuid.uuid4().hex[:8]}"


# --- the pack and the host --------------------------------------------------------------------------------------------


def import_pack() -> None:
    """Name the pack without putting its folder on sys.path, where its `nodes` would shadow the host's."""
    pack = sys.modules.setdefault("pack", types.ModuleType("pack"))
    pack.__path__ = [str(ROOT)]


def comfyui() -> Path:
    """Return the folder of ComfyUI: COMFYUI_PATH, else the one of dev.py."""
    folder = Path(os.environ.get("COMFYUI_PATH", ROOT / ".dev" / "ComfyUI")).resolve()
    if not (folder / "main.py").is_file():
        raise SystemExit(f"There is no ComfyUI in {folder}. Run `python dev.py bench`, or set COMFYUI_PATH.")
    return folder


def import_host() -> None:
    """Put ComfyUI on the path, on the CPU where there is no card."""
    import torch

    sys.path.insert(0, str(comfyui()))
    arguments, sys.argv = sys.argv, [sys.argv[0], *([] if torch.cuda.is_available() else ["--cpu"])]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args  # noqa: F401  reads sys.argv

    sys.argv = arguments


# --- what is measured -------------------------------------------------------------------------------------------------


def _cpu_name() -> str:
    with contextlib.suppress(OSError, TypeError):
        return re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text("utf-8"))[1]
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    import torch

    cpu = f"{_cpu_name()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    facts = {"cpu": cpu, "system": platform.system(), "python": platform.python_version(), "torch": torch.__version__}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        return {"device": f"{card.name}, {card.total_memory / 2**30:.0f} GiB", "cuda": torch.version.cuda, **facts}
    return {"device": cpu, **facts}


def synchronise() -> None:
    """Wait for the graphics card, where there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Peak:
    """The most memory used since `start`, in bytes above what was in use then: resident, or of PyTorch on a card."""

    def start(self) -> None:
        import torch

        gc.collect()
        self.cuda = torch.cuda if torch.cuda.is_available() else None
        if self.cuda:
            self.cuda.synchronize()
            self.cuda.reset_peak_memory_stats()
            self.before = self.cuda.memory_allocated()
            return
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM (Linux)
        self.before = self.resident("VmRSS")

    def stop(self) -> int | None:
        if self.cuda:
            self.cuda.synchronize()
            return self.cuda.max_memory_allocated() - self.before
        peak = self.resident("VmHWM")
        return None if peak is None else peak - self.before

    @staticmethod
    def resident(field: str) -> int | None:
        """Return a field of what Linux says of this process, in bytes."""
        with contextlib.suppress(OSError, TypeError):
            return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text("ascii"))[1])
        return None


def measured(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians and spread of runs [{"seconds", "bytes", stages ...}], marked with the name of this run."""
    stages = [key for key in runs[0] if key not in ("seconds", "bytes")]
    seconds = [run["seconds"] for run in runs]
    peaks = [run["bytes"] for run in runs if run["bytes"] is not None]
    return {
        "seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        **{stage: statistics.median(run[stage] for run in runs) for stage in stages},
        "mib": round(max(peaks) / 2**20) if peaks else None,
        "run": RUN,
    }


def times(row: dict[str, Any], base: dict[str, Any], field: str = "seconds") -> float:
    """Return how many times `field` of `base` that of `row` is; figures of different runs are refused."""
    if row["run"] != base["run"]:
        raise SystemExit(
            f"These figures are of different runs ({row['run']}; {base['run']}), so they say nothing about each other. "
            "Measure both in one run."
        )
    return row[field] / base[field]


def in_turn(contestants: dict[str, Callable[[], dict[str, Any]]], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Run each contestant once in every round, in turn and every other round backwards."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for number in range(rounds):
        order = list(contestants) if number % 2 == 0 else list(contestants)[::-1]
        for name in order:
            runs[name].append(contestants[name]())
    return runs


# --- processes --------------------------------------------------------------------------------------------------------


class Worker:
    """A process of its own that answers requests, one line of JSON each."""

    def __init__(self, script: str, name: str):
        command = [sys.executable, script, "--work", name]
        self.name = name
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.log.seek(0)
            raise SystemExit(f"{self.name} ended with code {code} at {request}.\n{self.log.read()[-2000:]}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def answer_requests(answer: Callable[..., dict[str, Any]]) -> None:
    """Answer the requests of a `Worker` until there are no more; what libraries print goes to its log."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), file=answers, flush=True)


# --- results ----------------------------------------------------------------------------------------------------------


def load(name: str) -> dict[str, Any]:
    """Return what results/NAME.json holds, or nothing."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def save(name: str, results: dict[str, Any]) -> Path:
    """Write results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **results}, indent=2) + "\n", encoding="utf-8")
    return path


def figure(rows: int, columns: int, width: float = 5, height: float = 3.6):
    """Return a figure of pyplot, drawn without a screen, and its axes [rows][columns]."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)


def save_figure(drawn, name: str) -> Path:
    """Write results/NAME.png."""
    RESULTS.mkdir(exist_ok=True)
    drawn.tight_layout()
    path = RESULTS / f"{name}.png"
    drawn.savefig(path, dpi=80)
    return path


def exponent(sizes: Iterable[float], values: Iterable[float | None]) -> float | None:
    """Return p of values ~ sizes^p by least squares on logarithms; None where a value is missing or 0."""
    import numpy as np

    sizes, values = list(sizes), list(values)
    if len(sizes) < 2 or any(value is None or value <= 0 for value in values):
        return None
    return round(float(np.polyfit(np.log(sizes), np.log(values), 1)[0]), 2)
