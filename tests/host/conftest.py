"""Put the real host on the path, told to run on the CPU, before any test imports `comfy`."""

import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

COMFYUI = os.environ.get("COMFYUI_PATH", str(Path(__file__).parents[2] / ".dev" / "ComfyUI"))

base = tempfile.TemporaryDirectory(prefix="cogvideox-host-", ignore_cleanup_errors=True)  # gone with this process
sys.path.insert(0, COMFYUI)
sys.argv = ["x", "--cpu", "--base-directory", base.name]

import comfy.options  # noqa: E402
import utils.json_util  # noqa: E402, F401 - of the host, before another package brings a module of this name

comfy.options.enable_args_parsing()

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture
def inference():
    """Run a test in the mode in which the host runs nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture
def shown_on(monkeypatch):
    """Return a function that lets a node class run as node 7, and gives the list of the (text, id) it then shows."""

    def run(node: type) -> list[tuple[str, str]]:
        shown = []
        server = SimpleNamespace(send_progress_text=lambda text, node_id: shown.append((text, node_id)))
        monkeypatch.setattr("pack.nodes.host.server.running_server", lambda: server)
        monkeypatch.setattr(node, "hidden", SimpleNamespace(unique_id="7"))
        return shown

    return run


@pytest.fixture
def cancel_at(monkeypatch):
    """Return a function that presses cancel when the progress bar reaches a value; the values seen are its result."""

    import comfy.model_management
    import comfy.utils

    def press(value):
        seen = []

        def hook(done, total, *_, **__):
            seen.append(done)
            if done >= value:
                comfy.model_management.interrupt_current_processing(True)

        monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
        return seen

    yield press
    assert not comfy.model_management.processing_interrupted()


@pytest.fixture(scope="session", autouse=True)
def _release_models():
    """Let go of the models that test modules keep, while the host is still there to see them off."""
    yield
    here = Path(__file__).parent
    for module in list(sys.modules.values()):
        if Path(getattr(module, "__file__", None) or "/").parent == here:
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()
