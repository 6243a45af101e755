"""What a conversion did, in sentences for artists."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .graph import Node

WRAPPER = "the older CogVideoX wrapper"
NEEDS = "It needs {}, which this version does not have."


@dataclass
class Report:
    """What a conversion did: (old id, old type, new types) of each node, and sentences on what is not the same."""

    converted: list[tuple[Any, str, list[str]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add a sentence once."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def summary(self) -> str:
        """One line, empty where nothing was converted."""
        count = len(self.converted)
        if not count:
            return ""
        return f"{count} node{'s' * (count != 1)} of {WRAPPER} became native CogVideoX nodes."

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON."""
        converted = [{"id": id, "from": old, "to": new} for id, old, new in self.converted]
        return {"summary": self.summary, "converted": converted, "notes": self.notes}


class Missing(Exception):
    """A native node that this version does not have."""


def _plain(name: str) -> str:
    name = name.lower().replace("(down)load", "downloadandload").replace("cogvideox", "cogvideo").removesuffix("_311")
    return "".join(letter for letter in name if letter.isalnum())


def own_title(node: Node) -> str:
    """Return the title somebody gave a node, empty where it is the name that the node came with."""
    return node.title if _plain(node.title) != _plain(node.type) else ""


def label(node: Node | None) -> str:
    """Name a node for a sentence."""
    if node is None:
        return "an input of the subgraph"
    return f"{own_title(node) or node.type} (#{node.id})"
