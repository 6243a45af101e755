"""Run one of the measurements beside this file: `python dev.py bench NAME [arguments]`."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SHARED = ("run", "common", "weights", "contestants", "counting")


def main() -> int:
    names = {path.stem: path for path in sorted(FOLDER.glob("*.py")) if path.stem not in SHARED}
    if len(sys.argv) > 1 and sys.argv[1] in names:
        return subprocess.call([sys.executable, names[sys.argv[1]], *sys.argv[2:]])
    print(__doc__)
    for name, path in names.items():
        print(f"  {name:12} {ast.get_docstring(ast.parse(path.read_text('utf-8'))).splitlines()[0]}")
    return int(len(sys.argv) > 1)


if __name__ == "__main__":
    sys.exit(main())
