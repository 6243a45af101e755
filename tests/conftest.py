"""Make the pack importable as `pack` without putting its folder on sys.path (its `nodes/` would shadow the host's)."""

import os
import sys
import types
from pathlib import Path

ROOT = Path(__file__).parents[1]

pack = types.ModuleType("pack")
pack.__path__ = [str(ROOT)]
sys.modules["pack"] = pack

os.environ.setdefault("HF_HUB_OFFLINE", "1")
