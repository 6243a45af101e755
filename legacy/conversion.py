"""Graphs of the older wrapper to native graphs: what each of its nodes becomes, and what has no equal.

The wrapper's sampler did everything that native nodes do one by one, so a graph is rebuilt from its samplers: the
loader becomes a loader with LoRAs, attention and compilation behind it; what was handed to the sampler becomes a patch
of the model or a conditioning node in front of it; each old node lends its place, title and colour to the node that
does its work, and further nodes are put beside. What has no equal becomes a note that says so.
"""

from __future__ import annotations

import copy
from typing import Any

from . import signatures
from .fun_samplers import FunSamplers
from .graph import Canvas, Prompt, StrangeGraph, entries, move_widgets, number, retype
from .groups import folded, unfold
from .native import Schema, stored_schema
from .rebuilding import PASSING
from .report import WRAPPER, Report
from .rewiring import Rewiring


class Conversion(FunSamplers, Rewiring):
    """A graph's conversion, of all its parts; the type of an old node names the method that builds its place."""


def is_prompt(graph: Any) -> bool:
    """Say whether JSON is a graph in the server's API format."""
    return (
        isinstance(graph, dict)
        and bool(graph)
        and all(isinstance(node, dict) and isinstance(node.get("class_type"), str) for node in graph.values())
    )


def _types(graph: Any) -> set[str]:
    if is_prompt(graph):
        return {node["class_type"] for node in graph.values()}
    found = set()
    parts = _canvases(graph)
    for part in [*parts, *(group for whole in parts[:1] for group in folded(whole).values())]:
        found |= {str(node.get("type")) for node in part["nodes"] if isinstance(node, dict)}
    return found


def _canvases(graph: Any) -> list[dict[str, Any]]:
    """Return a workflow and its subgraphs, those of them that are graphs."""
    if not isinstance(graph, dict):
        return []
    definitions = graph.get("definitions")
    inner = definitions.get("subgraphs") if isinstance(definitions, dict) else None
    parts = [graph, *(inner if isinstance(inner, list) else [])]
    return [part for part in parts if isinstance(part, dict) and isinstance(part.get("nodes"), list)]


def convert(graph: Any, schema: Schema | None = None) -> tuple[Any, Report]:
    """Return a native copy of a saved graph, in the format it came in, and the report; never raises.

    `schema` is the server's `object_info` for the nodes it has. A graph without nodes of the wrapper, a graph of a
    shape nobody knows, and every graph where the wrapper is installed come back as they are.
    """
    schema = stored_schema() if schema is None else schema
    old = _types(graph) & signatures.ERAS.keys()
    if not old or signatures.CURRENT & schema.keys():
        return graph, Report()
    report = Report()
    try:
        converted = _convert(copy.deepcopy(graph), schema, report)
        if not report.converted:
            raise StrangeGraph("its nodes have no numbers")
        return converted, report
    except Exception as error:  # whatever a file holds, the page and the server go on
        strange = Report()
        strange.note(
            f"This graph holds nodes of {WRAPPER} ({', '.join(sorted(old))}) and could not be converted: it is not "
            f"built as graphs are ({error}). It was left as it is."
        )
        return graph, strange


def _convert(graph: dict[str, Any], schema: Schema, report: Report) -> dict[str, Any]:
    if is_prompt(graph):
        prompt = Prompt(graph)
        Conversion(prompt, schema, report).run()
        return prompt.write()
    if isinstance(graph.get("links"), list) and all(
        isinstance(link, list) and len(link) > 4 for link in graph["links"]
    ):
        unfold(graph, signatures.ERAS.keys() - schema.keys())
    free = [0]
    parts = _canvases(graph)
    for part in parts:
        state = part.get("state")
        ids = [node.get("id") for node in part["nodes"] if isinstance(node, dict)]
        ids += [part.get("last_node_id"), state.get("lastNodeId") if isinstance(state, dict) else None]
        free[0] = max([free[0], *map(number, ids)])
    moved: dict[Any, dict] = {}
    for part in parts:
        if _types({"nodes": part["nodes"]}) & signatures.ERAS.keys():
            canvas = Canvas(part, free)
            conversion = Conversion(canvas, schema, report)
            conversion.run()
            part.update(canvas.write())
            moved[str(part.get("id"))] = conversion.moved
    bridges = (*PASSING, *(part.get("id") for part in parts[1:]))
    for part in parts:
        edges = [part, *(node for node in part["nodes"] if isinstance(node, dict) and node.get("type") in bridges)]
        retype(part, [slot for edge in edges for name in ("inputs", "outputs") for slot in entries(edge, name)])
        for node in edges[1:]:
            move_widgets(node, moved.get(str(node.get("type")), {}))
    return graph
