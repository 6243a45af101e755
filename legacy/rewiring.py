"""The whole graph: every old node in turn, then the links and reroutes around them."""

from __future__ import annotations

from typing import Any

from .graph import SUBGRAPH_OUTPUT, Canvas, Node, covers, free_spot, holds, widened
from .rebuilding import EMPTY, NOTE, PASSING, PRIMITIVE, Rebuilding
from .report import label


class Rewiring(Rebuilding):
    """What puts a converted graph together."""

    def run(self) -> None:
        """Convert every old node, what makes the video before what only serves it."""
        old = [node for node in self.graph.nodes.values() if self.is_old(node)]
        first = ("Sampler", "Decode", "TextEncode", "EncodePrompt")
        for part in first:
            for node in old:
                if part in node.type:
                    self.build(node)
        for node in old:
            self.build(node)
            if node.id not in self.claimed:
                self.no_equal(node, "It was not connected to anything that is made here.")
        self._tell_of_links(old)
        self._reconnect()
        self._sweep(old)
        self._assemble()
        for node in old:
            made = [*self.claimed.get(node.id, []), *self.extra.get(node.id, [])]
            self.report.converted.append((node.id, node.type, made))

    def _tell_of_links(self, old: list[Node]) -> None:
        """Say which links of other packs' nodes went nowhere."""
        used = {source for node in self.new.values() for source in node.inputs.values()}
        used |= {self.trace(source) for source in used}
        for node in old:
            if self.claimed.get(node.id) == [NOTE]:
                continue
            names = self.graph.names.get(node.id)
            lost: dict[str, list[str]] = {}
            for key, source in node.inputs.items():
                traced = self.trace(source)
                origin = self.graph.nodes.get(traced[0]) if traced else None
                if traced in used or self.is_old(origin) or (origin is not None and origin.id in self.built):
                    continue
                name = key if names is None else names[key]
                told = any(label(node) in note and label(origin) in note for note in self.report.notes)
                if origin is not None and (origin.id in self.claimed or origin.type in (PRIMITIVE, *EMPTY)) or told:
                    continue
                if (node.id, name) not in self.idle:
                    lost.setdefault(label(origin), []).append(name)
            for origin, ended in lost.items():
                links = "that link has" if len(ended) == 1 else "those links have"
                self.report.note(f"{label(node)}: its {' and '.join(ended)} came from {origin}; {links} no equal.")

    def _reconnect(self) -> None:
        """Move the links of other packs' nodes to the new outputs."""
        for node in list(self.graph.nodes.values()):
            if self.is_old(node) or node.id in self.claimed:
                continue
            for key, source in list(node.inputs.items()):
                origin = self.graph.nodes.get(source[0])
                if not self.is_old(origin):
                    continue
                moved = self.native(source)
                if moved is not None:
                    node.inputs[key] = moved
                    continue
                del node.inputs[key]
                if node.type not in PASSING:
                    self.report.note(f"{label(node)} was connected to {label(origin)}; that link has no equal.")

    def _sweep(self, old: list[Node]) -> None:
        """Take away the reroutes and Set/Get pairs through which values came to old nodes and to no others."""
        kept = [
            node
            for node in self.graph.nodes.values()
            if node.type not in PASSING and not self.is_old(node) and node.id not in self.claimed
        ]
        self.removed = self._passing(old) - self._passing([*kept, *self.new.values()])

    def _passing(self, nodes: list[Node]) -> set[Any]:
        """Return the reroutes and Set/Get pairs through which values come to these nodes."""
        found: set[Any] = set()
        queue = [source for node in nodes for source in node.inputs.values()]
        while queue:
            node = self.graph.nodes.get(queue.pop()[0])
            if node is None or node.type not in PASSING or node.id in found:
                continue
            found.add(node.id)
            queue += node.inputs.values()
            if node.type == "GetNode" and (setter := self.setter(node)) is not None:
                queue.append((setter.id, 0))
        return found

    def _assemble(self) -> None:
        nodes = {}
        for id, node in self.graph.nodes.items():
            if id in self.new:
                nodes[id] = self.new[id]
            elif not self.is_old(node) and id not in self.removed:
                nodes[id] = node
        for id, node in self.new.items():
            nodes.setdefault(id, node)
        for node in nodes.values():  # a link to what is gone would be a broken graph
            node.inputs = {
                key: source
                for key, source in node.inputs.items()
                if source[0] in nodes or source[0] not in self.graph.nodes
            }
        if isinstance(self.graph, Canvas):
            shown = [node for id, node in nodes.items() if id != SUBGRAPH_OUTPUT]
            self._settle(shown)
            self._regroup(shown)
        if SUBGRAPH_OUTPUT in nodes:
            nodes[SUBGRAPH_OUTPUT] = nodes.pop(SUBGRAPH_OUTPUT)
        self.graph.nodes = nodes

    def _settle(self, nodes: list[Node]) -> None:
        """Move new nodes, which may be larger, off those that the old ones in their places did not cover."""
        boxes = {node.id: node.box for node in nodes}

        def covered(node: Node, other: Node) -> bool:
            before = [self.graph.nodes.get(one.id) for one in (node, other)]
            return None not in before and covers(*(one.box for one in before))

        for node in nodes:
            others = [one for one in nodes if one is not node] if node.id in self.new else []
            if any(covers(boxes[node.id], boxes[one.id]) and not covered(node, one) for one in others):
                around = [boxes[one.id] for one in others if not covered(node, one)]
                old = self.graph.nodes.get(self.anchors.get(node.id, node.id))
                node.pos = free_spot(node.pos, node.size, around, old and self.graph.home(old))
                boxes[node.id] = node.box

    def _regroup(self, nodes: list[Node]) -> None:
        """Widen groups around what stands for their nodes now, where that takes in no others and meets no group."""
        groups = list(self.graph.groups())
        frames = [frame for _, frame in groups]
        for place, (group, frame) in enumerate(groups):
            held = {id for id, node in self.graph.nodes.items() if holds(frame, node.box)}
            own = [node for node in nodes if node.id in self.new and self.anchors.get(node.id, node.id) in held]
            for node in own:
                wide = widened(frames[place], node.box)
                taken = [one for one in nodes if holds(wide, one.box) and not holds(frame, one.box)]
                met = [one for one in frames if covers(wide, one) and not covers(frame, one)]
                if not met and all(one in own for one in taken):
                    frames[place] = wide
            left, top, right, bottom = frames[place]
            if frames[place] != frame:
                group["bounding"] = [left, top, right - left, bottom - top]
