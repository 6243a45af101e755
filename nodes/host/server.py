"""The server that runs in this process, where there is one: ComfyUI's parts are used without it as well."""

from __future__ import annotations

import sys


def running_server():
    """Return the server, or None; its module is not imported for that, which would take seconds."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def show_on_node(node: type, text: str) -> None:
    """Show `text` below the widgets of the node class that is running; nothing happens without a server."""
    server, hidden = running_server(), node.hidden
    if text and server is not None and hidden and hidden.unique_id is not None:
        server.send_progress_text(text, hidden.unique_id)
