"""Which files of the repository the registry's archive holds."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def shipped() -> list[str] | None:
    """Return the files of the repository without those that .comfyignore names; None where git cannot tell them."""
    if not (shutil.which("git") and (ROOT / ".git").exists()):
        return None

    def listed(*flags: str) -> set[str]:
        command = ["git", "ls-files", "-z", "--cached", *flags]
        return set(filter(None, subprocess.check_output(command, cwd=ROOT, encoding="utf-8").split("\0")))

    return sorted(listed() - listed("--ignored", "--exclude-from=.comfyignore"))
