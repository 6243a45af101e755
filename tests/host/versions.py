"""Which ComfyUI the tests run on, and what older ones lack."""

import pytest
from comfyui_version import __version__

HOST = tuple(int(part) for part in __version__.split(".")[:3])

newer_only = pytest.mark.skipif(HOST < (0, 30), reason=f"ComfyUI {__version__} has not what this needs")
