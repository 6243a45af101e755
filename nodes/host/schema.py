"""What the server would answer in `object_info`, for nodes of either kind."""

from __future__ import annotations

from typing import Any


def node_info(node: type) -> dict[str, Any]:
    """Return inputs, outputs and display name of a node class."""
    if hasattr(node, "GET_NODE_INFO_V1"):
        return node.GET_NODE_INFO_V1()
    outputs = list(node.RETURN_TYPES)
    names = list(getattr(node, "RETURN_NAMES", outputs))
    return {"input": node.INPUT_TYPES(), "output": outputs, "output_name": names, "display_name": ""}
