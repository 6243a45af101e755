"""The help pages against the nodes: every page says what its node's schema says, and quotes messages that exist.

No host is needed: schemas are read from the source, names of constants and of shared inputs are looked up in it.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "web" / "docs"
LINES = range(30, 63)
SECTIONS = ["Inputs", "Outputs", "Typical values", "What goes wrong and why"]
INPUT_COLUMNS = ["Input", "What it does", "Range", "Typical"]
OUTPUT_COLUMNS = ["Output", "Type", "What it is"]
SOCKET_NAMES = {"ControlNet": "CONTROL_NET", "AnyType": "*"}  # where the host's name is not the class in capitals
WIDGETS = {"INT", "FLOAT", "COMBO", "STRING", "BOOLEAN"}
QUOTED_SHARE = 0.5  # of a quoted message that must be fixed text of the code; the rest stands for values
QUOTED_LEAST = 10  # characters


# --- schemas -------------------------------------------------------------------------------------------------------


class Unknown(Exception):
    """A value that only the host can tell, such as the files an artist has."""


@dataclass(frozen=True)
class Found:
    """Where a name leads: a piece of source and the module it stands in."""

    node: ast.AST
    module: "Module"


class Module:
    """One source file and what its top-level names mean."""

    def __init__(self, path: Path):
        self.path = path
        self.tree = ast.parse(path.read_text("utf-8"), str(path))
        self.names: dict[str, ast.AST] = {}
        self.imports: dict[str, tuple[Path, str]] = {}
        for node in self.tree.body:
            self._collect(node)

    def _collect(self, node: ast.stmt) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            self.names[node.name] = node
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                self._assign(target, node.value)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self._assign(node.target, node.value)
        elif isinstance(node, ast.ImportFrom) and node.level:
            source = self.path.parents[node.level - 1].joinpath(*(node.module or "").split(".")).with_suffix(".py")
            for alias in node.names:
                self.imports[alias.asname or alias.name] = (source, alias.name)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = value
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, part in zip(target.elts, value.elts, strict=True):
                self._assign(one, part)

    def find(self, name: str) -> Found:
        if name in self.names:
            return Found(self.names[name], self)
        path, original = self.imports.get(name, (None, name))
        if path is None or not path.is_file():
            raise Unknown(name)
        return module(path).find(original)

    def value(self, node: ast.expr):
        """Return what a constant expression is worth, or raise Unknown."""
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                found = self.find(node.id)
                return found.module.value(found.node)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=number)):
                return -number
            case ast.List() | ast.Tuple():
                return [one for part in node.elts for one in self._items(part)]
            case ast.Dict():
                return {self.value(key): None for key in node.keys}
            case ast.Subscript():
                return self.value(node.value)[self.value(node.slice)]
            case ast.BinOp(op=ast.Add()):
                return self.value(node.left) + self.value(node.right)
            case ast.BinOp(op=ast.Mult()):
                return self.value(node.left) * self.value(node.right)
            case ast.Call(func=ast.Name(id="list" | "tuple"), args=[inner], keywords=[]):
                return list(self.value(inner))
        raise Unknown(ast.unparse(node))

    def _items(self, node: ast.expr) -> list:
        return list(self.value(node.value)) if isinstance(node, ast.Starred) else [self.value(node)]


@cache
def module(path: Path) -> Module:
    return Module(path)


@dataclass(frozen=True)
class Socket:
    """One input or output of a schema; `options` is None where the list depends on the artist's files."""

    name: str
    type: str
    fields: dict = field(default_factory=dict, hash=False)

    @property
    def options(self) -> list[str] | None:
        return self.fields.get("options")

    @property
    def default(self):
        return self.fields.get("default", self.options[0] if self.options else None)


@dataclass(frozen=True)
class Node:
    id: str
    inputs: tuple[Socket, ...]
    outputs: tuple[Socket, ...]


def sockets(node: ast.expr, where: Module, kind: str) -> Iterator[Socket]:
    """Yield the `io.X.Input` or `io.X.Output` calls of a list, those made by helper functions included."""
    match node:
        case ast.List():
            for one in node.elts:
                yield from sockets(one, where, kind)
        case ast.Starred():
            yield from sockets(node.value, where, kind)
        case ast.Call(func=ast.Attribute(value=ast.Attribute(value=ast.Name(id="io"), attr=name), attr=made)):
            assert made == kind, f"{ast.unparse(node)} among the {kind}s"
            yield socket(node, where, SOCKET_NAMES.get(name, name.upper()))
        case ast.Call(func=ast.Attribute(value=ast.Name(id=custom), attr=made)):
            assert made == kind, f"{ast.unparse(node)} among the {kind}s"
            found = where.find(custom)  # a socket of another pack's or of the host's: io.Custom("ITS_TYPE")
            assert ast.unparse(found.node.func) == "io.Custom"
            yield socket(node, where, found.module.value(found.node.args[0]))
        case ast.Call(func=ast.Name(id=helper)):
            found = where.find(helper)
            returned = [part.value for part in ast.walk(found.node) if isinstance(part, ast.Return)]
            assert len(returned) == 1, f"{helper} must return its inputs in one statement"
            yield from sockets(returned[0], found.module, kind)
        case _:
            raise AssertionError(f"{where.path.name}: cannot read {ast.unparse(node)}")


def socket(call: ast.Call, where: Module, kind: str) -> Socket:
    fields = {}
    for word in call.keywords:
        try:
            fields[word.arg] = where.value(word.value)
        except Unknown:
            fields[word.arg] = None
    name = where.value(call.args[0]) if call.args else fields.get("display_name") or kind
    return Socket(name, kind, fields)


def schema_nodes() -> dict[str, Node]:
    """Return the nodes of the pack by id."""
    found = {}
    for path in sorted((ROOT / "nodes").glob("*.py")):
        where = module(path)
        for call in ast.walk(where.tree):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "io.Schema":
                words = {word.arg: word.value for word in call.keywords}
                inputs = tuple(sockets(words["inputs"], where, "Input"))
                outputs = tuple(sockets(words["outputs"], where, "Output"))
                node = Node(where.value(words["node_id"]), inputs, outputs)
                found[node.id] = node
    return found


# --- messages ------------------------------------------------------------------------------------------------------


def fixed_parts(text: ast.expr) -> list[str] | None:
    """Return the fixed text between the values of a string, or None where it is no string."""
    if isinstance(text, ast.Constant) and isinstance(text.value, str):
        return [text.value]
    if not isinstance(text, ast.JoinedStr):
        return None
    parts = [""]
    for part in text.values:
        if isinstance(part, ast.Constant):
            parts[-1] += part.value
        else:
            parts.append("")
    return parts


@cache
def messages() -> tuple[tuple[str, ...], ...]:
    """Return the fixed text of every message the pack raises."""
    found = []
    for room in ("cogvideox", "nodes"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for call in ast.walk(module(path).tree):
                if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("Error"):
                    found += [tuple(parts) for text in call.args if (parts := fixed_parts(text))]
    return tuple(found)


def matched(quote: str, parts: tuple[str, ...]) -> int:
    """Return how many characters of `quote` are fixed text of a message that begins like it; -1 where none does."""

    @cache
    def best(start: int, index: int) -> int:
        rest, part = quote[start:], parts[index]
        if len(rest) <= len(part):
            return len(rest) if part.startswith(rest) else -1
        if not rest.startswith(part) or index + 1 == len(parts):
            return -1
        after = start + len(part)
        ends = (best(end, index + 1) for end in range(after + 1, len(quote) + 1))
        return max((len(part) + end for end in ends if end >= 0), default=-1)

    return best(0, 0)


def is_raised(quote: str) -> bool:
    """Say whether the code raises a message that begins with `quote`, in which "…" stands for a value."""
    quote = re.sub(r"…$", "", quote).strip()
    needed = max(QUOTED_LEAST, QUOTED_SHARE * len(quote.replace("…", "")))
    return any(matched(quote, parts) >= needed for parts in messages())


# --- pages ---------------------------------------------------------------------------------------------------------


def sections(page: str) -> dict[str, list[str]]:
    """Return the lines of a page below each of its headings; "" holds what comes before."""
    found: dict[str, list[str]] = {"": []}
    for line in page.splitlines():
        if line.startswith("#"):
            found[line.lstrip("# ")] = []
        else:
            found[list(found)[-1]].append(line)
    return found


def rows(lines: list[str]) -> list[list[str]]:
    """Return the cells of the first table in `lines`, the heading first and without the line below it."""
    table = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines if line.startswith("|")]
    return table[:1] + table[2:]


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def numbers(text: str) -> list[int | float]:
    return [float(one) if "." in one else int(one) for one in re.findall(r"-?\d+(?:\.\d+)?", text)]


def default_text(socket: Socket) -> str:
    if socket.type == "BOOLEAN":
        return "on" if socket.default else "off"
    return f"`{socket.default}`" if socket.type in ("COMBO", "STRING") else f"{socket.default:g}"


def input_problems(socket: Socket, does: str, limits: str, typical: str) -> Iterator[str]:
    name = socket.name
    if not (does and limits and typical):
        yield f"{name} has an empty cell"
    if ("Advanced." in does) != bool(socket.fields.get("advanced")):
        yield f"{name} is {'' if socket.fields.get('advanced') else 'not '}advanced"
    if socket.type not in WIDGETS:
        expected = f"{socket.type}, optional" if socket.fields.get("optional") else socket.type
        if limits != expected:
            yield f"{name} is {expected}, not {limits}"
    elif socket.type in ("INT", "FLOAT"):
        step = socket.fields.get("step")
        expected = [socket.fields["min"], socket.fields["max"], *([step] if step not in (None, 1) else [])]
        if numbers(limits) != expected:
            yield f"{name} has the range {expected}, not {numbers(limits)}"
    elif socket.type == "COMBO" and socket.options is not None and code(limits) != list(socket.options):
        yield f"{name} has the choices {socket.options}, not {code(limits)}"
    elif socket.type == "BOOLEAN" and limits != "on or off":
        yield f"{name} is on or off, not {limits}"
    if socket.default is not None and not typical.startswith(f"{default_text(socket)} (default)"):
        yield f"{name} has the default {default_text(socket)}"


def problems(page: str, node: Node) -> list[str]:
    """Return what is wrong with the help page of `node`."""
    found = []
    parts = sections(page)
    if len(page.splitlines()) not in LINES:
        found.append(f"has {len(page.splitlines())} lines")
    if not re.match(r"[A-Z].*\.\n", page):
        found.append("does not begin with a sentence")
    if list(parts)[1:] != SECTIONS:
        return [*found, f"has the sections {list(parts)[1:]}"]

    head, *table = rows(parts["Inputs"]) or [[]]
    given = [code(row[0])[0] for row in table]
    if head != INPUT_COLUMNS or any(len(row) != len(head) for row in table):
        found.append(f"needs an input table with the columns {INPUT_COLUMNS}")
    elif given != [socket.name for socket in node.inputs]:
        found.append(f"documents the inputs {given} of {[socket.name for socket in node.inputs]}")
    else:
        for socket, row in zip(node.inputs, table, strict=True):
            found += input_problems(socket, *row[1:])

    head, *table = rows(parts["Outputs"]) or [[]]
    expected = [[f"`{socket.name}`", socket.type] for socket in node.outputs]
    if head != OUTPUT_COLUMNS or [row[:2] for row in table] != expected:
        found.append(f"documents the outputs {[row[:2] for row in table]} of {expected}")

    _, *table = rows(parts["What goes wrong and why"]) or [[]]
    quotes = [quote for row in table for quote in re.findall(r'"([^"]+)"', row[0])]
    found += [f'quotes "{quote}", which the code does not raise' for quote in quotes if not is_raised(quote)]
    if not table or any(len(row) != 3 or not all(row) for row in table):
        found.append("needs a table of what goes wrong with three filled columns")
    return found


NODES = schema_nodes()
PAGES = {path.stem: path.read_text("utf-8") for path in sorted(DOCS.glob("*.md"))}


def test_the_schemas_are_read_whole():
    sampler = {socket.name: socket for socket in NODES["CogVideoXSampler"].inputs}
    assert {"model", "steps", "denoise", "dynamic_cfg"} <= set(sampler)  # two of them from helper functions
    assert sampler["dynamic_cfg"].options[0] == "off" and len(sampler["dynamic_cfg"].options) > 1
    assert sampler["seed"].fields["max"] == 2**64 - 1
    size = {socket.name: socket.fields for socket in NODES["CogVideoXImageToVideo"].inputs}
    assert size["width"]["step"] == 16 and size["length"]["step"] == 8  # imported constants
    for node in NODES.values():
        for socket in node.inputs:
            if socket.type in ("INT", "FLOAT"):
                assert None not in [socket.fields[name] for name in ("default", "min", "max")], socket
                assert socket.fields.get("step", 1) is not None, socket


def test_every_node_has_a_page_and_every_page_a_node():
    assert set(PAGES) == set(NODES)
    files = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*") if path.is_file()}
    assert files == {f"{node}{end}" for node in NODES for end in (".md", "/zh.md", "/en.webp", "/zh.webp")}


@pytest.mark.parametrize("node_id", sorted(set(PAGES) & set(NODES)))
def test_page_agrees_with_its_node(node_id):
    assert problems(PAGES[node_id], NODES[node_id]) == []


def drawn_height(node: Node) -> int:
    """Return the height of the node's picture as tools/make_help_pictures.py takes it, in pixels."""
    zoom, margin, title, foot, slot, widget, text = 1.1, 6, 30, 14, 20, 24, 54  # the page's sizes of its parts
    widgets = [socket for socket in node.inputs if socket.type in WIDGETS]
    texts = [socket for socket in widgets if socket.fields.get("multiline")]
    seeds = [socket for socket in widgets if socket.name in ("seed", "noise_seed")]  # with their control beneath
    slots = max(len(node.inputs) - len(widgets), len(node.outputs))
    rows = slot * slots + widget * (len(widgets) - len(texts) + len(seeds)) + text * len(texts)
    return round(zoom * (title + rows + foot) + 2 * margin)


@pytest.mark.parametrize("locale", ["en", "zh"])
@pytest.mark.parametrize("node_id", sorted(set(PAGES) & set(NODES)))
def test_page_shows_the_node_as_it_is(node_id, locale):
    """The page's folder is what ComfyUI looks for pictures in, whatever the language; a row more is a new picture."""
    page = PAGES[node_id] if locale == "en" else (DOCS / node_id / "zh.md").read_text("utf-8")
    lead, picture, *_ = page.split("\n\n")
    (place,) = re.findall(r"!\[[^]]+\]\((.*?)\)", page)
    assert picture.startswith("![") and place == f"{node_id}/{locale}.webp"
    assert (DOCS / place).stat().st_size <= 25_000
    with Image.open(DOCS / place) as image:
        assert image.format == "WEBP"
        assert abs(image.height - drawn_height(NODES[node_id])) <= 2, "run tools/make_help_pictures.py"


WRONG = {
    "an input is missing": (r"(?m)^\| `steps`.*\n", ""),
    "an input does not exist": (r"(?m)^(\| `)steps(`.*\n)", r"\g<0>\1shift\2"),
    "a limit is wrong": ("1 to 1000 steps", "1 to 100 steps"),
    "a step is wrong": ("in steps of 0.1 ", "in steps of 0.5 "),
    "a step is missing": ("0 to 30, in steps of 0.1 ", "0 to 30 "),
    "a large number is off by one": ("18446744073709551615", "18446744073709551616"),
    "a choice is missing": (r"`ddim`, `dpm` ", "`dpm` "),
    "a choice is misspelt": ("`off`, `cosine over steps`", "`off`, `cosine`"),
    "a default is wrong": (r"50 \(default\)", "20 (default)"),
    "a socket has another type": (r"(?m)^(\| `model`.*)MODEL", r"\1CLIP"),
    "a socket is not optional": (r"(?m)^(\| `latent_image`.*)LATENT \|", r"\1LATENT, optional |"),
    "an input is not advanced": (r"(?m)^(\| `cfg` \|)", r"\1 Advanced."),
    "an output is missing": (r"(?m)^\| `LATENT`.*\n", ""),
    "an output has another type": (r"\| `LATENT` \| LATENT", "| `LATENT` | IMAGE"),
    "a section is missing": (r"(?m)^## Typical values\n", ""),
    "a message is not raised": ("CogVideoX has 1000 noise levels", "CogVideoX ran out of noise levels"),
    "a message has no mend": (r"(?m)^(\| \"CogVideoX has 1000.*\|)[^|]*\|$", r"\1 |"),
    "the page is a stub": (r"(?s)\n\| .*?\n\n", "\n\n"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_checker_refuses(wrong):
    page = PAGES["CogVideoXSampler"]
    changed = re.sub(*WRONG[wrong], page)
    assert changed != page
    assert problems(changed, NODES["CogVideoXSampler"])


@pytest.mark.parametrize(
    ("quote", "raised"),
    [
        ("The images do not pair up", True),
        ("CogVideoX needs a width divisible by 16, not …", True),
        ("… is cut short: the download did not finish", True),
        ("The images do not fit", False),
        ("… went wrong in the sampler", False),
        ("do not pair up", False),
        ("…", False),
    ],
)
def test_only_messages_of_the_code_count_as_quoted(quote, raised):
    assert is_raised(quote) is raised
