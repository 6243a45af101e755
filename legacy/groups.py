"""Group nodes, the editor's way to fold nodes before it had subgraphs: those that fold old nodes are unfolded.

A graph keeps what is folded in `extra.groupNodes`, by name; a node of type `workflow>NAME` shows the sockets of the
inside that are not linked there, in the order of the nodes, and holds the values of all their widgets.
"""

from __future__ import annotations

import copy
from typing import Any

from .graph import entries, is_slot, number, pair

PREFIXES = ("workflow>", "workflow/")
MOST = 100  # group nodes in one graph; a group that holds itself ends here


def folded(graph: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what the group nodes of a graph hold, by their type."""
    extra = graph.get("extra")
    groups = extra.get("groupNodes") if isinstance(extra, dict) else None
    groups = groups if isinstance(groups, dict) else {}
    return {f"{prefix}{name}": group for prefix in PREFIXES for name, group in groups.items() if _is_group(group)}


def _is_group(group: Any) -> bool:
    nodes = entries(group, "nodes") if isinstance(group, dict) else []
    return bool(nodes) and all(isinstance(node, dict) for node in nodes)


def unfold(graph: dict[str, Any], kinds: set[str]) -> None:
    """Put the nodes of every group that holds one of `kinds` in the place of its group nodes."""
    groups = folded(graph)
    wanted = {kind for kind, group in groups.items() if any(str(node.get("type")) in kinds for node in group["nodes"])}
    for _ in groups:  # a group may hold another
        wanted |= {
            kind for kind, group in groups.items() if any(str(node.get("type")) in wanted for node in group["nodes"])
        }
    for _ in range(MOST):
        shown = [node for node in graph["nodes"] if isinstance(node, dict) and str(node.get("type")) in wanted]
        if not shown:
            break
        _unfold(graph, shown[0], groups[shown[0]["type"]])
    if wanted:
        kept = {name: group for name, group in graph["extra"]["groupNodes"].items() if f"workflow>{name}" not in wanted}
        graph["extra"] = {**graph["extra"], "groupNodes": kept}


def _unfold(graph: dict[str, Any], shown: dict[str, Any], group: dict[str, Any]) -> None:
    inner = copy.deepcopy(group["nodes"])
    first = 1 + max(number(node.get("id")) for node in graph["nodes"] if isinstance(node, dict))
    first = max(first, number(graph.get("last_node_id")) + 1)
    last = max([number(graph.get("last_link_id")), *(number(link[0]) for link in graph["links"] if link)])
    left, top = pair(shown.get("pos"), (0.0, 0.0))
    corners = [pair(node.get("pos"), (0.0, 0.0)) for node in inner]
    corner = min(x for x, _ in corners), min(y for _, y in corners)
    for place, (node, (x, y)) in enumerate(zip(inner, corners, strict=True)):
        node |= {"id": first + place, "pos": [left + x - corner[0], top + y - corner[1]]}
        node["mode"] = shown.get("mode") or node.get("mode", 0)
    _give_values(inner, shown)

    inside, fed, read = [], set(), set()
    for link in entries(group, "links"):
        ends = link[:4] if isinstance(link, list) else []
        if len(ends) == 4 and all(map(is_slot, ends)) and max(ends[0], ends[2]) < len(inner):
            inside.append((ends, link[5] if len(link) > 5 else "*"))
            fed.add((ends[2], ends[3]))
            read.add((ends[0], ends[1]))
    outside = {tuple(one[:2]) for one in entries(group, "external") if isinstance(one, list)}
    inputs = _shown_inputs(inner, fed)
    outputs = [
        (place, slot)
        for place, node in enumerate(inner)
        for slot in range(len(entries(node, "outputs")))
        if (place, slot) not in read or (place, slot) in outside
    ]
    links = []
    for link in graph["links"]:
        id, origin, out, target, into, *rest = link
        if target == shown["id"]:
            name = next(iter(entries(shown, "inputs")[into : into + 1]), {}).get("name")
            if name not in inputs:
                continue
            target, into = first + inputs[name][0], inputs[name][1]
        if origin == shown["id"]:
            if out >= len(outputs):
                continue
            origin, out = first + outputs[out][0], outputs[out][1]
        links.append([id, origin, out, target, into, *rest])
    for (origin, out, target, into), kind in inside:
        last += 1
        links.append([last, first + origin, out, first + target, into, kind])
    graph["nodes"] = [*(node for node in graph["nodes"] if node is not shown), *inner]
    for node in inner:
        for place, slot in enumerate(entries(node, "inputs")):
            slot["link"] = next((link[0] for link in links if link[3:5] == [node["id"], place]), None)
        for place, slot in enumerate(entries(node, "outputs")):
            slot["links"] = [link[0] for link in links if link[1:3] == [node["id"], place]]
    graph |= {"links": links, "last_link_id": last, "last_node_id": first + len(inner) - 1}


def _give_values(inner: list[dict[str, Any]], shown: dict[str, Any]) -> None:
    """Hand out the widget values of a group node, where they are as many as those of its inside."""
    values = list(entries(shown, "widgets_values"))
    if len(values) == sum(len(entries(node, "widgets_values")) for node in inner):
        for node in inner:
            count = len(entries(node, "widgets_values"))
            if count:
                node["widgets_values"], values = values[:count], values[count:]


def _shown_inputs(inner: list[dict[str, Any]], fed: set[tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Return (node, slot) by the name a group node shows: a name met before has the node's title in front."""
    found: dict[str, tuple[int, int]] = {}
    met: dict[str, int] = {}
    for place, node in enumerate(inner):
        for slot, entry in enumerate(entries(node, "inputs")):
            if (place, slot) in fed or not isinstance(entry, dict):
                continue
            own = str(entry.get("name"))
            name = key = str(entry.get("label") or own)
            if name in met:
                prefix = node.get("title") or node.get("type")
                name = key = f"{prefix} {own}"
                if name in met:
                    name = f"{prefix} {met[name]} {own}"
            met[key] = met.get(key, 1) + 1
            found.setdefault(name, (place, slot))
    return found
