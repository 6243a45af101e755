"""What every part of a conversion shares: reading old nodes, making native ones and following links."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import signatures
from .graph import (
    BYPASS,
    GAP,
    NEVER,
    SUBGRAPH_OUTPUT,
    TITLE_HEIGHT,
    Canvas,
    Graph,
    Node,
    Prompt,
    Source,
    entries,
    free_spot,
)
from .native import Schema, make, slots
from .report import NEEDS, WRAPPER, Missing, Report, label, own_title

NOTE = "Note"  # the editor's own, which the server does not know
NOTE_LOOK = {"color": "#432", "bgcolor": "#653"}
PASSING = ("Reroute", "Reroute (rgthree)", "GetNode", "SetNode")
EMPTY = ("EmptyLatentImage", "EmptySD3LatentImage")  # of which the wrapper took the size
PRIMITIVE = "PrimitiveNode"  # the editor's own widget on a link

# What has no equal, and what to use instead.
NO_EQUAL = {
    "CogVideoXFasterCache": "CogVideoX Step Cache saves time in another way.",
    "CogVideoPABConfig": "CogVideoX Step Cache saves time in another way.",
    "CogVideoTransformerEdit": "Blocks of the model cannot be left out.",
    "CogVideoLatentPreview": "Previews come with sampling.",
}


def _path(name: Any) -> str:
    """Return a file of a list as every system reads it."""
    return str(name).replace("\\", "/").lower()


def _file(name: Any) -> str:
    return _path(name).rsplit("/", 1)[-1]


class Rebuilding:
    """One graph on its way; the method `_build_TYPE` of a subclass converts the old nodes of that type."""

    def __init__(self, graph: Graph, schema: Schema, report: Report):
        self.graph, self.schema, self.report = graph, schema, report
        self.new: dict[Any, Node] = {}
        self.claimed: dict[Any, list[str]] = {}  # id of an old or stock node: types made in its place
        self.extra: dict[Any, list[str]] = {}  # id: types that stand beside it
        self.anchors: dict[Any, Any] = {}  # id of a node that was put beside: that of the old one
        self.removed: set[Any] = set()
        self.built: dict[Any, dict[str, Source | None]] = {}
        self.vaes: dict[Any, Source | None] = {}
        self.measured: dict[Source, Any] = {}
        self.moved: dict[tuple[str, str], tuple[str, str]] = {}  # a widget's node and name: those it has now
        self.idle: set[tuple[Any, str]] = set()  # inputs of old nodes whose links need not be told of
        self._readings: dict[Any, signatures.Reading] = {}

    # --- reading ------------------------------------------------------------------------------------------------------

    def is_old(self, node: Node | None) -> bool:
        """Say whether a node is one of the wrapper's that nobody else provides."""
        return node is not None and node.type in signatures.ERAS and node.type not in self.schema

    def reading(self, node: Node) -> signatures.Reading:
        """Return what a saved node holds."""
        if node.id not in self._readings:
            if isinstance(self.graph, Prompt):
                used = 1 + max((slot for _, slot in self.graph.users(node)), default=-1)
                read = signatures.read(node.type, node.values, [*node.inputs, *node.values], used=used)
            else:
                outputs = [slot.get("name", "") for slot in entries(node.raw, "outputs") if isinstance(slot, dict)]
                read = signatures.read(node.type, node.raw.get("widgets_values"), self.graph.names[node.id], outputs)
            self._readings[node.id] = read
        return self._readings[node.id]

    def value(self, node: Node, name: str) -> Any:
        """Return a widget's value, or None where this node has none of that name."""
        if (primitive := self.primitive(node, name)) is not None:
            return primitive
        return self.reading(node).values.get(name)

    def primitive(self, node: Node, name: str) -> Any:
        """Return what a widget of the editor's own gives over a link, or None where there is none."""
        origin = self.origin(self.graph.input_of(node, name))
        widget = next((one for one in self.reading(node).era.widgets if one.name == name), None)
        if origin is None or origin.type != PRIMITIVE or widget is None:
            return None
        saved = self._stock_list(origin)[:1]
        return saved[0] if saved and widget.fits(saved[0]) else None

    def linked(self, node: Node, name: str) -> bool:
        """Say whether a widget's value comes over a link that only a run follows."""
        return self.graph.input_of(node, name) is not None and self.primitive(node, name) is None

    @staticmethod
    def runs(node: Node) -> bool:
        """Say whether a node is neither muted nor bypassed."""
        return node.mode not in (NEVER, BYPASS)

    def source(self, node: Node, *names: str) -> Source | None:
        """Return where the first connected of these inputs comes from."""
        for name in names:
            if (found := self.graph.input_of(node, name)) is not None:
                return found
        return None

    def trace(self, source: Source | None) -> Source | None:
        """Follow reroutes and Set/Get pairs back to the node that makes the value."""
        seen = set()
        while source is not None and source not in seen:
            seen.add(source)
            node = self.graph.nodes.get(source[0])
            if node is None or node.type not in PASSING:
                return source
            if node.type == "GetNode":
                node = self.setter(node)
                if node is None:
                    return source
            source = next(iter(node.inputs.values()), None)
        return source

    def setter(self, getter: Node) -> Node | None:
        """Return the SetNode whose value a GetNode gives."""

        def key(node: Node) -> Any:
            saved = (node.raw or {}).get("widgets_values")
            return saved[0] if isinstance(saved, list) and saved else None

        others = self.graph.nodes.values()
        return next((one for one in others if one.type == "SetNode" and key(one) == key(getter)), None)

    def carries_old(self, node: Node, *outputs: str) -> bool:
        """Say whether a node of another pack (a switch, an operation) hands on such outputs of the wrapper's nodes."""
        seen: set[Any] = set()
        queue = [node]
        while queue:
            one = queue.pop()
            seen.add(one.id)
            for source in map(self.trace, one.inputs.values()):
                origin = self.graph.nodes.get(source[0]) if source else None
                if self.is_old(origin):
                    names = self.reading(origin).era.outputs
                    if names[source[1] : source[1] + 1] and names[source[1]] in outputs:
                        return True
                elif origin is not None and origin.id not in seen:
                    queue.append(origin)
        return False

    def stranger(self, samples: Source | None) -> Node | None:
        """Return the node of another pack that makes latents itself, None where the wrapper's nodes made them."""
        origin = self.origin(samples)
        known = origin is None or self.is_old(origin) or self.carries_old(origin, "samples")
        return None if known else origin

    def serves_old(self, node: Node) -> bool:
        """Say whether what a node of others gives goes to the wrapper's nodes alone."""
        return all(self.is_old(user) or user.type in PASSING for user, _ in self.graph.users(node))

    def origin(self, source: Source | None) -> Node | None:
        """Return the node that makes a value."""
        traced = self.trace(source)
        return self.graph.nodes.get(traced[0]) if traced else None

    def _stock_list(self, node: Node) -> list:
        if isinstance(self.graph, Prompt):
            return list(node.values.values())
        saved = node.raw.get("widgets_values")
        return list(saved.values()) if isinstance(saved, dict) else saved if isinstance(saved, list) else []

    def _stock_values(self, node: Node, *names: str) -> dict[str, Any]:
        """Return the first widgets of a stock node by name."""
        if isinstance(self.graph, Prompt):
            return {name: node.values.get(name) for name in names}
        saved = node.raw.get("widgets_values")
        if isinstance(saved, dict):
            return {name: saved.get(name) for name in names}
        return dict(zip(names, [*(saved if isinstance(saved, list) else []), *[None] * len(names)], strict=False))

    # --- making -------------------------------------------------------------------------------------------------------

    def _schema_of(self, node_type: str) -> Mapping[str, Any]:
        if node_type not in self.schema:
            raise Missing(node_type)
        return self.schema[node_type]

    def claim(self, old: Node, node_type: str, values: Mapping[str, Any] | None = None, patch: bool = False) -> Node:
        """Make a node in the place of an old one, or beside it where the place is taken."""
        info = self._schema_of(node_type)
        saved = (old.raw or {}).get("widgets_values")
        control = (
            next((v for v in saved or [] if v in signatures.AFTER_GENERATE), "fixed")
            if isinstance(saved, list)
            else "fixed"
        )
        first = old.id not in self.claimed
        node = make(old.id if first else self.graph.new_id(), node_type, info, values or {}, control)
        node.mode = BYPASS if patch and old.mode == NEVER else old.mode
        node.raw, node.look = old.raw, dict(old.look)
        node.title = own_title(old)
        if isinstance(self.graph, Prompt):
            node.raw = None
        if first:
            node.pos, node.size = old.pos, (max(old.size[0], 210), max(old.size[1], node.made["least_height"]))
        else:
            self._place(node, old)
        self.claimed.setdefault(old.id, []).append(node_type)
        self.new[node.id] = node
        return node

    def beside(self, anchor: Node, node_type: str, values: Mapping[str, Any] | None = None) -> Node:
        """Make a node next to an old one."""
        node = make(self.graph.new_id(), node_type, self._schema_of(node_type), values or {})
        node.mode = anchor.mode
        self._place(node, anchor)
        self.extra.setdefault(anchor.id, []).append(node_type)
        self.new[node.id] = node
        return node

    def _place(self, node: Node, anchor: Node) -> None:
        self.anchors[node.id] = anchor.id
        left, _, _, bottom = anchor.box
        boxes = [one.box for one in (*self.graph.nodes.values(), *self.new.values()) if one.id != SUBGRAPH_OUTPUT]
        if isinstance(self.graph, Canvas):
            wish = left, bottom + GAP + TITLE_HEIGHT
            node.pos = free_spot(wish, node.size, boxes, self.graph.home(anchor))

    def link(self, node: Node, name: str, source: Source | None) -> None:
        """Connect an input of a new node."""
        if source is not None and name in node.made["sockets"]:
            node.inputs[name] = source

    def carry(self, new: Node, name: str, old: Node, old_name: str, change: Callable[[Any], Any] | None = None) -> None:
        """Carry a widget's value, or what is linked to it, to the widget `name` of a new node."""
        slot = new.made["slots_by_name"].get(name)
        if slot is None:
            return
        self.moved.setdefault((str(old.id), old_name), (str(new.id), name))
        source = self.graph.input_of(old, old_name)
        if source is not None and not (change is not None and self.primitive(old, old_name) is not None):
            if change is not None:
                self.report.note(
                    f"{label(old)}: what is connected to {old_name} is used as it is for {name}, which counts "
                    "differently. Look at it."
                )
            self.link(new, name, self.native(source))
            saved = self.reading(old).values.get(old_name)
            if change is None and slot.fits(saved):  # what is shown, and counts when the link is cut
                new.values[name] = slot.clamp(saved)
            return
        value = self.value(old, old_name)
        if value is None:
            return
        self.set(new, name, change(value) if change else value, old)

    def carry_link(self, new: Node, name: str, old: Node, old_name: str) -> None:
        """Carry what is linked to a widget of a node of others."""
        self.link(new, name, self.native(self.graph.input_of(old, old_name)))

    def set(self, new: Node, name: str, value: Any, old: Node) -> None:
        """Set a widget, within its range."""
        slot = new.made["slots_by_name"].get(name)
        if slot is None:
            return
        fitted = slot.clamp(value)
        if fitted != value:
            self.report.note(f"{label(old)}: {name} was {value}; {fitted} is the limit here.")
        new.values[name] = fitted

    def choose(self, node_type: str, name: str, *wanted: str) -> str:
        """Return the first of some files or folders that the host lists, else the last, as it is written there."""
        listed = self.listed(node_type, name) or ()
        for want in wanted:
            for part in (_path, _file):
                for choice in listed:
                    if part(choice) == part(want):
                        return choice
        return wanted[-1]

    def find(self, old: Node, node_type: str, name: str, wanted: Sequence[str], advice: str) -> str:
        """Choose a file or folder for an old node, and give advice where the host does not list it."""
        chosen, listed = self.choose(node_type, name, *wanted), self.listed(node_type, name)
        if listed is not None and chosen not in listed:
            self.report.note(f"{label(old)}: {advice.format(chosen)}")
        return chosen

    def listed(self, node_type: str, name: str) -> tuple | None:
        """Return the choices of a combo, or None where only the host knows them."""
        return next((slot.choices for slot in slots(self._schema_of(node_type)) if slot.name == name), None)

    # --- links --------------------------------------------------------------------------------------------------------

    def native(self, source: Source | None) -> Source | None:
        """Return where a value comes from in the new graph; values of other packs come from where they came."""
        traced = self.trace(source)
        if traced is None:
            return None
        node = self.graph.nodes.get(traced[0])
        if not self.is_old(node):
            return source
        outputs = self.reading(node).era.outputs
        made = self.build(node)
        if not 0 <= traced[1] < len(outputs):
            return None
        name = outputs[traced[1]]
        if name == "vae" and name not in made:
            return self.vae_of(node)
        return made.get(name)

    def vae_of(self, loader: Node | None) -> Source | None:
        """Return the VAE that an old loader brought along; `Loaders` knows."""
        raise NotImplementedError

    def build(self, node: Node) -> dict[str, Source | None]:
        """Convert one old node, once, and return where its outputs come from now."""
        if node.id not in self.built:
            self.built[node.id] = {}  # a graph that feeds itself ends here
            builder = getattr(self, f"_build_{node.type}", None)
            unread = [name for name in self.reading(node).unread if self.graph.input_of(node, name) is None]
            if unread:
                self.report.note(
                    f"{label(node)}: {', '.join(unread)} could not be read from the file and "
                    f"{'has its' if len(unread) == 1 else 'have their'} usual value. Look at the node."
                )
            try:
                if builder is None:
                    self.no_equal(node, NO_EQUAL.get(node.type, ""))
                else:
                    self.built[node.id] = builder(node) or {}
            except Missing as missing:
                self.no_equal(node, NEEDS.format(missing.args[0]))
        return self.built[node.id]

    def no_equal(self, node: Node, advice: str) -> None:
        """Put a note in the place of an old node."""
        name = label(node)
        self.report.note(f"{name} has no equal here and was left out. {advice}".strip())
        if node.id in self.claimed:
            return
        self.claimed[node.id] = [NOTE]
        if isinstance(self.graph, Prompt):
            return
        values = ", ".join(f"{key} {value}" for key, value in self.reading(node).values.items())
        text = f"{node.type} of {WRAPPER} stood here. {advice}\n{values}".replace("  ", " ")
        note = Node(node.id, NOTE, node.raw, look={**NOTE_LOOK}, pos=node.pos, size=node.size, title=node.title)
        note.made = {
            "slots": lambda _: {"inputs": [], "outputs": [], "widgets_values": [text]},
            "properties": {},
            "sockets": set(),
        }
        self.new[note.id] = note
