"""Where graphs of the older wrapper meet the host: when the page opens one, and when one is posted to run."""

from __future__ import annotations

import json
import logging
from typing import Any

from ...legacy import ERAS, convert, is_prompt, reduced, stored_schema
from .schema import node_info
from .server import running_server

log = logging.getLogger(__name__)

ROUTE = "/cogvideox/convert"


def known_nodes() -> dict[str, Any]:
    """Return the schema of the nodes a conversion may make, and the old ids that another pack provides."""
    import nodes  # the host's own, not there while packs are imported

    classes = nodes.NODE_CLASS_MAPPINGS
    found = {name: reduced(node_info(classes[name])) for name in stored_schema() if name in classes}
    return {**found, **{name: {} for name in ERAS if name in classes}}


def convert_prompt(data: dict[str, Any]) -> dict[str, Any]:
    """Convert a graph in the API format on its way to be run; a handler of the host."""
    prompt = data.get("prompt")
    if not is_prompt(prompt) or not any(node["class_type"] in ERAS for node in prompt.values()):
        return data
    converted, report = convert(prompt, known_nodes())
    for line in (report.summary, *report.notes):
        if line:
            log.info("CogVideoX: %s", line)
    return {**data, "prompt": converted}


def register_conversion() -> None:
    """Let the server convert graphs of the older wrapper; nothing happens without a server."""
    server = running_server()
    if server is None:
        return
    from aiohttp import web

    async def answer(request):
        try:
            graph = await request.json()
        except json.JSONDecodeError:
            return web.json_response({"error": "The graph is no JSON."}, status=400)
        converted, report = convert(graph, known_nodes())
        return web.json_response({"graph": converted if report.converted else None, "report": report.as_dict()})

    server.routes.post(ROUTE)(answer)
    server.add_on_prompt_handler(convert_prompt)
