"""Convert files of graphs: `python legacy FOLDER...` writes `NAME.native.json` beside each graph of the older wrapper.

Both formats are read, the editor's and the API's. Files without the wrapper's nodes are left alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path

if not __package__:  # run as a file: name the pack without putting its folder on sys.path
    pack = sys.modules["pack"] = types.ModuleType("pack")
    pack.__path__ = [str(Path(__file__).resolve().parents[1])]
    __package__ = "pack.legacy"

from . import convert

SUFFIX = ".native.json"


def files(paths: list[Path]) -> Iterator[Path]:
    """Yield the JSON files named, and those in the folders named, without what this command wrote."""
    for path in paths:
        found = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        yield from (file for file in found if not file.name.endswith(SUFFIX))


def convert_file(path: Path) -> list[str]:
    """Convert one file; return what is to be said of it."""
    try:
        graph = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        return [f"{path}: not read ({error})"]
    converted, report = convert(graph)
    if report.converted:
        target = path.with_name(path.stem + SUFFIX)
        target.write_text(json.dumps(converted, ensure_ascii=False), "utf-8")
        return [f"{path}: {report.summary} Written to {target.name}.", *(f"  {note}" for note in report.notes)]
    return [f"{path}: {note}" for note in report.notes]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 1 where a file could not be read or converted."""
    parser = argparse.ArgumentParser(prog="legacy", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="files or folders of saved graphs")
    failed = False
    for path in files(parser.parse_args(arguments).paths):
        lines = convert_file(path)
        failed |= bool(lines) and "Written to" not in lines[0]
        sys.stdout.writelines(f"{line}\n" for line in lines)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
