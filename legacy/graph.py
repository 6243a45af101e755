"""Saved graphs as plain nodes and links, whichever of the two formats they are in.

The editor's format holds nodes with slots, positions and widget values, and links with numbers of their own; the API
format holds nodes with named inputs. Both become `Graph`: nodes by id, each with its widget values by name where the
node is one of ours to read, and its links by input (`inputs`: input -> (node id, output slot)). What a graph holds
beyond that (groups, notes, view, titles, colours) stays in the JSON it came from.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

Source = tuple[Any, int]  # node id, output slot
Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom
ENDS = ("origin_id", "origin_slot", "target_id", "target_slot")
SUBGRAPH_OUTPUT = -20  # the editor's id for where a subgraph's results leave it
EDGES = (-10, SUBGRAPH_OUTPUT)

NEVER, BYPASS = 2, 4  # `mode` of a muted and of a bypassed node
TITLE_HEIGHT, GAP = 30, 20
REACH = 600  # px around a node that are searched first for a free place
FAR = 1e9  # px; no canvas is as wide


class StrangeGraph(ValueError):
    """A graph of a shape nobody knows; it is left as it is."""


@dataclass
class Node:
    """One node; `inputs` is keyed by slot number for nodes of others and by name for those we read or make."""

    id: Any
    type: str
    raw: dict[str, Any] | None = None
    inputs: dict[Any, Source] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    made: dict[str, Any] | None = None  # the schema of a node that the conversion made
    mode: int = 0
    title: str = ""
    look: dict[str, Any] = field(default_factory=dict)
    pos: tuple[float, float] = (0.0, 0.0)
    size: tuple[float, float] = (300.0, 100.0)

    @property
    def box(self) -> Box:
        """What the node covers, its title included."""
        return self.pos[0], self.pos[1] - TITLE_HEIGHT, self.pos[0] + self.size[0], self.pos[1] + self.size[1]


def entries(raw: Any, name: str) -> list[Any]:
    """Return a list of a node or a graph, empty where the file holds something else."""
    found = raw.get(name)
    return found if isinstance(found, list) else []


def is_id(value: Any) -> bool:
    """Say whether a value can be the number of a node or a link, which some files write as text."""
    return isinstance(value, int | str) and not isinstance(value, bool)


def is_slot(value: Any) -> bool:
    """Say whether a value can be the place of an input or an output."""
    return type(value) is int and value >= 0


def number(value: Any) -> int:
    """Return a whole number of a file, 0 where there is none."""
    return value if type(value) is int else 0


def pair(value: Any, default: tuple[float, float]) -> tuple[float, float]:
    """Read a position or size, which the editor has saved as a list and as a dict of its indices."""
    if isinstance(value, dict):
        value = [value.get("0", value.get(0)), value.get("1", value.get(1))]
    if (
        isinstance(value, list)
        and len(value) >= 2
        and all(isinstance(one, int | float) and abs(one) < FAR for one in value[:2])
    ):
        return float(value[0]), float(value[1])
    return default


def covers(one: Box, other: Box) -> bool:
    """Say whether two nodes lie over each other."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def holds(frame: Box, box: Box) -> bool:
    """Say whether a group holds a node, which the editor tells by the node's centre."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return frame[0] <= x <= frame[2] and frame[1] <= y <= frame[3]


def widened(frame: Box, box: Box) -> Box:
    """Return a group's frame, widened for a node that stands out of it."""
    return (
        frame[0] if frame[0] <= box[0] else box[0] - GAP,
        frame[1] if frame[1] <= box[1] else box[1] - GAP - TITLE_HEIGHT,
        frame[2] if frame[2] >= box[2] else box[2] + GAP,
        frame[3] if frame[3] >= box[3] else box[3] + GAP,
    )


def free_spot(wish: Point, size: Point, boxes: list[Box], home: Box | None) -> Point:
    """Return the place nearest to `wish` where a node of `size` covers none of `boxes`: there or at their edges.

    Places in the group `home` come before all others.
    """
    wide, tall = size

    def rank(spot: Point) -> tuple[bool, float]:
        x, y = spot
        return home is not None and not holds(home, (x, y, x + wide, y + tall)), math.dist(spot, wish)

    span = (wish[0] - REACH, wish[1] - REACH, wish[0] + wide + REACH, wish[1] + tall + REACH)
    for around in ([box for box in boxes if covers(box, span)], boxes):
        columns = [wish[0], *(x for box in around for x in (box[0] - GAP - wide, box[2] + GAP))]
        rows = [wish[1], *(y for box in around for y in (box[1] - GAP - tall, box[3] + GAP + TITLE_HEIGHT))]
        for x, y in sorted(product(columns, rows), key=rank):
            place = (x, y - TITLE_HEIGHT, x + wide, y + tall)
            if not any(covers(place, box) for box in boxes):
                return x, y
    return wish


class Graph:
    """A graph to convert: nodes by id, and what is needed to write it back."""

    def __init__(self) -> None:
        self.nodes: dict[Any, Node] = {}
        self.names: dict[Any, list[str]] = {}  # input names by slot, of nodes of others

    def users(self, node: Node) -> Iterator[tuple[Node, int]]:
        """Yield (node, output) for every link that leaves a node."""
        for user in self.nodes.values():
            for id, slot in user.inputs.values():
                if id == node.id:
                    yield user, slot

    def new_id(self) -> Any:
        raise NotImplementedError

    def input_of(self, node: Node, name: str) -> Source | None:
        """Return where the input `name` of a node comes from."""
        if name in node.inputs:
            return node.inputs[name]
        names = self.names.get(node.id, [])
        return node.inputs.get(names.index(name)) if name in names else None


# ---------------------------------------------------------------------------------------------------------------------
# API format


class Prompt(Graph):
    """A graph in the server's API format."""

    def __init__(self, prompt: dict[str, Any]):
        super().__init__()
        for id, raw in prompt.items():
            if not isinstance(raw, dict) or not isinstance(raw.get("class_type"), str):
                raise StrangeGraph("a node without a type")
            node = Node(id, raw["class_type"], raw)
            meta = raw.get("_meta")
            title = meta.get("title") if isinstance(meta, dict) else None
            node.title = title if isinstance(title, str) else ""
            given = raw.get("inputs")
            for name, value in given.items() if isinstance(given, dict) else ():
                if isinstance(value, list) and len(value) == 2 and is_slot(value[1]) and str(value[0]) in prompt:
                    node.inputs[name] = (str(value[0]), value[1])
                else:
                    node.values[name] = value
            self.nodes[id] = node
        self._next = max([int(id) for id in prompt if id.isdecimal()], default=0)

    def new_id(self) -> str:
        self._next += 1
        return str(self._next)

    def write(self) -> dict[str, Any]:
        """Return the prompt as JSON."""
        out = {}
        for node in self.nodes.values():
            inputs = {**node.values, **{name: list(source) for name, source in node.inputs.items()}}
            raw = {key: value for key, value in (node.raw or {}).items() if key != "inputs"}
            out[node.id] = {**raw, "class_type": node.type, "inputs": inputs}
            if node.title or node.made:
                out[node.id]["_meta"] = {"title": node.title or node.made.get("display_name") or node.type}
        return out


# ---------------------------------------------------------------------------------------------------------------------
# Editor format


NATIVE_TYPES = {"COGVIDEOMODEL": "MODEL", "COGVIDEOPIPE": "MODEL", "COGVIDECONTROLNETMODEL": "CONTROL_NET"}


def _native_type(kind: Any) -> Any:
    return NATIVE_TYPES.get(kind, kind) if isinstance(kind, str) else kind


def retype(graph: dict[str, Any], slots: Iterable[Any]) -> None:
    """Give slots that hand on what was the wrapper's, and all links of a graph, the types that are native."""
    for slot in slots:
        if isinstance(slot, dict) and "type" in slot:
            slot["type"] = _native_type(slot["type"])
    for link in entries(graph, "links"):
        if isinstance(link, dict):
            link |= {"type": _native_type(link["type"])} if "type" in link else {}
        elif isinstance(link, list):
            link[5:6] = map(_native_type, link[5:6])


def move_widgets(node: dict[str, Any], moved: dict[tuple[str, str], tuple[str, str]]) -> None:
    """Let a subgraph's node show the widgets of its inside where they are now."""
    properties = node.get("properties")
    shown = properties.get("proxyWidgets") if isinstance(properties, dict) else None
    if isinstance(shown, list):
        properties["proxyWidgets"] = [
            [*moved.get((str(one[0]), str(one[1])), one[:2]), *one[2:]] if isinstance(one, list) and one[1:] else one
            for one in shown
        ]


class Canvas(Graph):
    """A graph of the editor: the whole workflow, or the inside of one subgraph definition."""

    def __init__(self, graph: dict[str, Any], first_free: list[int]):
        super().__init__()
        self.graph = graph
        self._free = first_free  # shared by all graphs of a workflow, whose node ids may not meet
        nodes, links = graph.get("nodes"), graph.get("links") or []
        links = list(links.values()) if isinstance(links, dict) else links
        if not isinstance(nodes, list) or not isinstance(links, list):
            raise StrangeGraph("no list of nodes and links")
        self.links: dict[Any, Any] = {}
        for link in links:
            if isinstance(link, list):
                id, ends = link[0] if link else None, link[1:5]
            elif isinstance(link, dict):
                id, ends = link.get("id"), [link.get(end) for end in ENDS]
            else:
                continue
            if len(ends) == 4 and is_id(id) and all(is_id(end) for end in ends[::2]) and all(map(is_slot, ends[1::2])):
                self.links[id] = link
        self.named_links = any(isinstance(link, dict) for link in links)
        self.odd = []  # what is no node to the editor either
        for raw in nodes:
            if isinstance(raw, dict) and isinstance(raw.get("type"), str) and is_id(raw.get("id")):
                self._read(raw)
            else:
                self.odd.append(raw)
        self._read_outputs()

    def _ends(self, link: Any) -> tuple[Source, Any, int]:
        origin, slot, target, place = [link[end] for end in ENDS] if isinstance(link, dict) else link[1:5]
        return (origin, slot), target, place

    def _read(self, raw: dict[str, Any]) -> None:
        if raw["id"] in self.nodes or raw["id"] in EDGES:  # the editor too gives the second one a new number
            raw = {**raw, "id": self.new_id()}
        node = Node(raw["id"], raw["type"], raw)
        node.mode = raw.get("mode", 0) if isinstance(raw.get("mode", 0), int) else 0
        node.title = raw.get("title") if isinstance(raw.get("title"), str) else ""
        node.look = {key: raw[key] for key in ("color", "bgcolor", "boxcolor", "shape", "flags") if key in raw}
        node.pos, node.size = pair(raw.get("pos"), (0.0, 0.0)), pair(raw.get("size"), (300.0, 100.0))
        slots = [slot if isinstance(slot, dict) else {} for slot in entries(raw, "inputs")]
        self.names[node.id] = [str(slot.get("name", "")) for slot in slots]
        for place, slot in enumerate(slots):
            if is_id(slot.get("link")) and slot["link"] in self.links:
                node.inputs[place] = self._ends(self.links[slot["link"]])[0]
        self.nodes[node.id] = node

    def _read_outputs(self) -> None:
        """Let what leaves a subgraph be a node too, so that its links are kept and moved like all others."""
        leaving = Node(SUBGRAPH_OUTPUT, "")
        for link in self.links.values():
            source, target, slot = self._ends(link)
            if target == SUBGRAPH_OUTPUT:
                leaving.inputs[slot] = source
        if leaving.inputs:
            self.nodes[SUBGRAPH_OUTPUT] = leaving

    def groups(self) -> Iterator[tuple[dict[str, Any], Box]]:
        """Yield the groups, each with its frame."""
        for group in entries(self.graph, "groups"):
            bounding = entries(group, "bounding") if isinstance(group, dict) else []
            corner, size = pair(bounding[:2], (0.0, 0.0)), pair(bounding[2:], (0.0, 0.0))
            if all(size):
                yield group, (*corner, corner[0] + size[0], corner[1] + size[1])

    def home(self, node: Node) -> Box | None:
        """Return the smallest group that holds a node."""
        frames = [frame for _, frame in self.groups() if holds(frame, node.box)]
        return min(frames, key=lambda frame: (frame[2] - frame[0]) * (frame[3] - frame[1]), default=None)

    def new_id(self) -> int:
        self._free[0] += 1
        return self._free[0]

    def write(self) -> dict[str, Any]:
        """Return the graph as JSON: new links, old ones under their old numbers, all else as it was."""
        graph = self.graph
        taken: set[Any] = set()
        old = {}
        for id, link in self.links.items():
            source, target, slot = self._ends(link)
            old[target, slot] = id
        last = max([number(id) for id in self.links] + [number(graph.get("last_link_id"))])
        leaving: dict[Source, list[Any]] = {}
        links = []
        raws = []
        entering: dict[Any, dict[int, Any]] = {}
        for node in self.nodes.values():
            if node.id != SUBGRAPH_OUTPUT:
                raws.append(self._raw(node))
            places = [slot["name"] for slot in raws[-1]["inputs"]] if node.made else None
            for key, source in node.inputs.items():
                place = places.index(key) if places is not None else key
                # Bends belong to a link's number, and to where it went.
                id = old.get((node.id, place)) if node.made is None else None
                if id is None or id in taken:
                    last += 1
                    id = last
                taken.add(id)
                leaving.setdefault(source, []).append(id)
                entering.setdefault(node.id, {})[place] = id
                links.append((id, source, node.id, place))
        by_id = {raw["id"]: raw for raw in raws}
        for raw in raws:
            for place, slot in enumerate(entries(raw, "inputs")):
                if isinstance(slot, dict):
                    slot["link"] = entering.get(raw["id"], {}).get(place)
            for place, slot in enumerate(entries(raw, "outputs")):
                if isinstance(slot, dict):
                    slot["links"] = leaving.get((raw["id"], place)) or None
        kept = [self._link(*link, by_id) for link in sorted(links, key=lambda link: link[0])]
        out = {**graph, "nodes": [*raws, *self.odd], "links": kept}
        self._boundary(out, entering.get(SUBGRAPH_OUTPUT, {}), leaving)
        self._extensions(out, taken)
        numbers = [raw["id"] for raw in raws if isinstance(raw["id"], int)]
        if "last_node_id" in graph:
            out["last_node_id"] = max([*numbers, number(graph["last_node_id"])])
        if "last_link_id" in graph:
            out["last_link_id"] = last
        if isinstance(graph.get("state"), dict):  # of a subgraph definition
            out["state"] = {**graph["state"], "lastLinkId": last, "lastNodeId": max([*numbers, self._free[0]])}
        return out

    def _link(self, id: Any, source: Source, target: Any, place: int, raws: dict[Any, dict]) -> Any:
        was = self.links.get(id)
        kind = "*"
        given = entries(raws.get(source[0], {}), "outputs")[source[1] : source[1] + 1]
        if given and isinstance(given[0], dict):
            kind = given[0].get("type", "*")
        elif was is not None:
            kind = was.get("type", "*") if isinstance(was, dict) else (was + ["*"])[5]
        taken = entries(raws.get(target, {}), "inputs")[place : place + 1]
        if kind == "*" and taken and isinstance(taken[0], dict):  # from a subgraph's edge
            kind = taken[0].get("type", "*")
        if self.named_links:
            kept = {key: was[key] for key in ("parentId",) if isinstance(was, dict) and key in was}
            return {
                "id": id,
                "origin_id": source[0],
                "origin_slot": source[1],
                "target_id": target,
                "target_slot": place,
                "type": kind,
                **kept,
            }
        return [id, source[0], source[1], target, place, kind]

    def _boundary(self, out: dict[str, Any], into: dict[int, Any], leaving: dict[Source, list[Any]]) -> None:
        for key, links in (
            ("inputs", lambda place: leaving.get((-10, place), [])),
            ("outputs", lambda place: [into[place]] if place in into else []),
        ):
            if isinstance(out.get(key), list) and all(isinstance(slot, dict) for slot in out[key]):
                out[key] = [
                    {**slot, "linkIds": links(place)} if "linkIds" in slot else slot
                    for place, slot in enumerate(out[key])
                ]

    def _extensions(self, out: dict[str, Any], taken: set[Any]) -> None:
        """Drop bends of links that are gone, which lie in `extra` or, in newer files, beside the links."""
        kept = taken & self.links.keys()
        extra = out["extra"] = dict(out["extra"]) if isinstance(out.get("extra"), dict) else out.get("extra")
        for place in (extra, out):
            for name in ("linkExtensions", "reroutes", "floatingLinks") if isinstance(place, dict) else ():
                if isinstance(place.get(name), list):
                    place[name] = [one for one in (self._bend(name, one, kept) for one in place[name]) if one]
        if extra is None:
            del out["extra"]

    def _bend(self, name: str, one: Any, kept: set[Any]) -> Any:
        if not isinstance(one, dict):
            return None
        if name == "linkExtensions":
            return one if one.get("id") in kept else None
        if name == "floatingLinks":
            ends = [self.nodes.get(one.get(end)) for end in ("origin_id", "target_id")]
            return None if any(node is not None and node.made for node in ends) else one
        if isinstance(one.get("linkIds"), list):
            return {**one, "linkIds": [id for id in one["linkIds"] if id in kept]}
        return one

    def _raw(self, node: Node) -> dict[str, Any]:
        if node.made is None:
            return copy.deepcopy(node.raw)
        raw = {
            "id": node.id,
            "type": node.type,
            "pos": list(node.pos),
            "size": list(node.size),
            "flags": node.look.get("flags", {}),
            "order": (node.raw or {}).get("order", 0),
            "mode": node.mode,
            **node.made["slots"](node),
            "properties": node.made["properties"],
            **{key: value for key, value in node.look.items() if key != "flags"},
        }
        if node.title:
            raw["title"] = node.title
        return raw
