"""Convert files of graphs: `python legacy FOLDER...` writes `NAME.native.json` beside each graph of the older wrapper.

Both formats are read, the editor's and the API's, the latter also as it is posted, below "prompt". Files without the
wrapper's nodes are left alone, and so is a file that is there already. A graph inside a picture or a video is converted
when it is dropped into the page.
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

from . import convert, is_prompt

SUFFIX = ".native.json"
WRITTEN = "Written to"


def files(paths: list[Path]) -> Iterator[Path]:
    """Yield the JSON files named, and those in the folders named, without what this command wrote."""
    for path in paths:
        found = [path]
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() == ".json" and file.is_file())
        yield from (file for file in found if not file.name.endswith(SUFFIX))


def convert_file(path: Path) -> list[str]:
    """Convert one file; return what is to be said of it."""
    try:
        graph = json.loads(path.read_bytes())  # as bytes: with or without a byte order mark, UTF-8 or UTF-16
    except (OSError, ValueError, RecursionError) as error:
        return [f"{path}: not read ({error})"]
    posted = isinstance(graph, dict) and is_prompt(graph.get("prompt"))
    converted, report = convert(graph["prompt"] if posted else graph)
    if not report.converted:
        return [f"{path}: {note}" for note in report.notes]
    target = path.with_name(path.stem + SUFFIX)
    text = json.dumps({**graph, "prompt": converted} if posted else converted, ensure_ascii=False)
    try:
        with target.open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except FileExistsError:
        return [f"{path}: not converted, because {target.name} is there. Move it away to convert again."]
    except OSError as error:
        return [f"{path}: {target.name} was not written ({error})"]
    return [f"{path}: {report.summary} {WRITTEN} {target.name}.", *(f"  {note}" for note in report.notes)]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 1 where a file could not be read or converted."""
    parser = argparse.ArgumentParser(prog="legacy", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="files or folders of saved graphs")
    for stream in (sys.stdout, sys.stderr):  # a console that cannot show a file's name still gets the rest
        stream.reconfigure(errors="backslashreplace")
    failed = False
    for path in files(parser.parse_args(arguments).paths):
        lines = convert_file(path)
        failed |= bool(lines) and f" {WRITTEN} " not in lines[0]
        sys.stdout.writelines(f"{line}\n" for line in lines)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
