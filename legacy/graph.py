"""Saved graphs as plain nodes and links, whichever of the two formats they are in.

The editor's format holds nodes with slots, positions and widget values, and links with numbers of their own; the API
format holds nodes with named inputs. Both become `Graph`: nodes by id, each with its widget values by name where the
node is one of ours to read, and its links by input (`inputs`: input -> (node id, output slot)). What a graph holds
beyond that (groups, notes, view, titles, colours) stays in the JSON it came from.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

Source = tuple[Any, int]  # node id, output slot
SUBGRAPH_OUTPUT = -20  # the editor's id for where a subgraph's results leave it

NEVER, BYPASS = 2, 4  # `mode` of a muted and of a bypassed node
TITLE_HEIGHT, GAP = 30, 40


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
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom, the title included."""
        return self.pos[0], self.pos[1] - TITLE_HEIGHT, self.pos[0] + self.size[0], self.pos[1] + self.size[1]


def pair(value: Any, default: tuple[float, float]) -> tuple[float, float]:
    """Read a position or size, which the editor has saved as a list and as a dict of its indices."""
    if isinstance(value, dict):
        value = [value.get("0", value.get(0)), value.get("1", value.get(1))]
    if isinstance(value, list) and len(value) >= 2 and all(isinstance(one, int | float) for one in value[:2]):
        return float(value[0]), float(value[1])
    return default


class Graph:
    """A graph to convert: nodes by id, and what is needed to write it back."""

    def __init__(self) -> None:
        self.nodes: dict[Any, Node] = {}
        self.names: dict[Any, list[str]] = {}  # input names by slot, of nodes of others

    def add(self, node: Node) -> Node:
        """Add a node; its id must be new or that of a node that was removed."""
        self.nodes[node.id] = node
        return node

    def consumers(self, source: Source) -> Iterator[tuple[Node, Any]]:
        """Yield (node, input) for every link that leaves an output."""
        for node in self.nodes.values():
            for key, origin in node.inputs.items():
                if origin == source:
                    yield node, key

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
            node.title = meta.get("title", "") if isinstance(meta, dict) else ""
            given = raw.get("inputs")
            for name, value in given.items() if isinstance(given, dict) else ():
                if (
                    isinstance(value, list)
                    and len(value) == 2
                    and isinstance(value[1], int)
                    and str(value[0]) in prompt
                ):
                    node.inputs[name] = (str(value[0]), value[1])
                else:
                    node.values[name] = value
            self.nodes[id] = node
        self._next = max([int(id) for id in prompt if id.isdigit()], default=0)

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


class Canvas(Graph):
    """A graph of the editor: the whole workflow, or the inside of one subgraph definition."""

    def __init__(self, graph: dict[str, Any], first_free: list[int]):
        super().__init__()
        self.graph = graph
        self._free = first_free  # shared by all graphs of a workflow, whose node ids may not meet
        nodes, links = graph.get("nodes"), graph.get("links", [])
        if not isinstance(nodes, list) or not isinstance(links, list):
            raise StrangeGraph("no list of nodes and links")
        self.links: dict[Any, Any] = {}
        for link in links:
            if isinstance(link, list) and len(link) >= 5:
                self.links[link[0]] = link
            elif (
                isinstance(link, dict) and {"id", "origin_id", "origin_slot", "target_id", "target_slot"} <= link.keys()
            ):
                self.links[link["id"]] = link
        self.named_links = any(isinstance(link, dict) for link in links)
        for raw in nodes:
            if not isinstance(raw, dict) or not isinstance(raw.get("type"), str) or "id" not in raw:
                raise StrangeGraph("a node without an id or a type")
            self._read(raw)
        self._read_outputs()

    def _ends(self, link: Any) -> tuple[Source, Any, int]:
        if isinstance(link, dict):
            return (link["origin_id"], link["origin_slot"]), link["target_id"], link["target_slot"]
        return (link[1], link[2]), link[3], link[4]

    def _read(self, raw: dict[str, Any]) -> None:
        node = Node(raw["id"], raw["type"], raw)
        node.mode = raw.get("mode", 0) if isinstance(raw.get("mode", 0), int) else 0
        node.title = raw.get("title") if isinstance(raw.get("title"), str) else ""
        node.look = {key: raw[key] for key in ("color", "bgcolor", "shape", "flags") if key in raw}
        node.pos, node.size = pair(raw.get("pos"), (0.0, 0.0)), pair(raw.get("size"), (300.0, 100.0))
        slots = [slot if isinstance(slot, dict) else {} for slot in raw.get("inputs") or []]
        self.names[node.id] = [str(slot.get("name", "")) for slot in slots]
        for place, slot in enumerate(slots):
            if slot.get("link") in self.links:
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

    def new_id(self) -> int:
        self._free[0] += 1
        return self._free[0]

    def free_spot(self, anchor: Node, size: tuple[float, float], others: Iterable[Node]) -> tuple[float, float]:
        """Return a free place for a node of `size`, as near to `anchor` as there is one."""
        boxes = [node.box for node in (*self.nodes.values(), *others) if node.id != SUBGRAPH_OUTPUT]
        left, top, right, bottom = anchor.box
        best = None
        for ring in range(1, 40):
            away = (ring - 1) * 60
            for x, y in (
                (left, bottom + GAP + away + TITLE_HEIGHT),
                (left, top - GAP - away - size[1]),
                (left - GAP - away - size[0], top + TITLE_HEIGHT),
                (right + GAP + away, top + TITLE_HEIGHT),
            ):
                box = (x, y - TITLE_HEIGHT, x + size[0], y + size[1])
                if all(box[0] >= b[2] or b[0] >= box[2] or box[1] >= b[3] or b[1] >= box[3] for b in boxes):
                    return x, y
                best = best or (x, y)
        return best

    def write(self) -> dict[str, Any]:
        """Return the graph as JSON: new links, old ones under their old numbers, all else as it was."""
        graph = self.graph
        taken: set[Any] = set()
        old = {}
        for id, link in self.links.items():
            source, target, slot = self._ends(link)
            old[target, slot] = id
        last = max([id for id in self.links if isinstance(id, int)] + [graph.get("last_link_id") or 0], default=0)
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
                id = old.get((node.id, place))
                if id is None or id in taken:
                    last += 1
                    id = last
                taken.add(id)
                leaving.setdefault(source, []).append(id)
                entering.setdefault(node.id, {})[place] = id
                links.append((id, source, node.id, place))
        by_id = {raw["id"]: raw for raw in raws}
        for raw in raws:
            for place, slot in enumerate(raw.get("inputs") or []):
                if isinstance(slot, dict):
                    slot["link"] = entering.get(raw["id"], {}).get(place)
            for place, slot in enumerate(raw.get("outputs") or []):
                if isinstance(slot, dict):
                    slot["links"] = leaving.get((raw["id"], place)) or None
        kept = [self._link(*link, by_id) for link in sorted(links, key=lambda link: link[0])]
        out = {**graph, "nodes": raws, "links": kept}
        self._boundary(out, entering.get(SUBGRAPH_OUTPUT, {}), leaving)
        self._extensions(out, taken)
        numbers = [raw["id"] for raw in raws if isinstance(raw["id"], int)]
        if "last_node_id" in graph:
            out["last_node_id"] = max([*numbers, graph["last_node_id"] or 0])
        if "last_link_id" in graph:
            out["last_link_id"] = last
        if isinstance(graph.get("state"), dict):  # of a subgraph definition
            out["state"] = {**graph["state"], "lastLinkId": last, "lastNodeId": max([*numbers, self._free[0]])}
        return out

    def _link(self, id: Any, source: Source, target: Any, place: int, raws: dict[Any, dict]) -> Any:
        was = self.links.get(id)
        kind = "*"
        if source[0] in raws and source[1] < len(raws[source[0]].get("outputs") or []):
            kind = raws[source[0]]["outputs"][source[1]].get("type", "*")
        elif was is not None:
            kind = was.get("type", "*") if isinstance(was, dict) else (was + ["*"])[5]
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
        """Drop what `extra` says of bends in links that are gone."""
        extra = out.get("extra")
        if not isinstance(extra, dict) or not isinstance(extra.get("linkExtensions"), list):
            return
        kept = [one for one in extra["linkExtensions"] if isinstance(one, dict) and one.get("id") in taken]
        out["extra"] = {**extra, "linkExtensions": kept}
        if isinstance(extra.get("reroutes"), list):
            out["extra"]["reroutes"] = [
                {**one, "linkIds": [id for id in one["linkIds"] if id in taken]}
                if isinstance(one.get("linkIds"), list)
                else one
                for one in extra["reroutes"]
                if isinstance(one, dict)
            ]

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
