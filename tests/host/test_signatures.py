"""Ids, sockets and widgets that shared workflows hold: a change of any of them is seen here before it is shipped."""

import asyncio
import copy

import pytest
from pack.nodes import CogVideoXExtension
from pack.tests.data import make_signatures
from pack.tests.data.make_signatures import broken

PROMISED = make_signatures.read()
NOW = make_signatures.signatures(asyncio.run(CogVideoXExtension().get_node_list()))
SAMPLER = PROMISED["CogVideoXSampler"]


def test_every_promise_is_kept():
    assert list(broken(PROMISED, NOW)) == []


def test_the_file_holds_every_node_and_socket_of_today():
    told = "run tests/data/make_signatures.py, which takes additions and refuses changes"
    assert NOW.keys() == PROMISED.keys(), told
    for id, node in NOW.items():
        for kind in ("inputs", "outputs"):
            # Files of an artist may stand among the options.
            now, held = ([{**item, "options": ...} for item in of[kind]] for of in (node, PROMISED[id]))
            assert now == held, f"{id}: {told}"
    assert make_signatures.FILE.read_text("utf-8") == make_signatures.text(PROMISED), told


def changed(change) -> list[str]:
    """Return what is said of CogVideoX Sampler after `change` has had its way with the signatures."""
    nodes = copy.deepcopy(PROMISED)
    change(nodes)
    return list(broken(PROMISED, nodes))


def of_input(place: int, **values):
    return lambda nodes: nodes["CogVideoXSampler"]["inputs"][place].update(values)


def new_input(place: int, **values):
    item = {"id": "new", "type": "INT", "optional": True, "default": 1, **values}
    return lambda nodes: nodes["CogVideoXSampler"]["inputs"].insert(place, item)


SEED = [item["id"] for item in SAMPLER["inputs"]].index("seed")
STEPS, NAME, END = SEED + 1, SEED + 3, len(SAMPLER["inputs"])


@pytest.mark.parametrize(
    "change",
    [
        lambda nodes: nodes.pop("CogVideoXSampler"),
        lambda nodes: nodes["CogVideoXSampler"]["inputs"].pop(),
        lambda nodes: nodes["CogVideoXSampler"]["outputs"].pop(),
        lambda nodes: nodes["CogVideoXSampler"]["inputs"].reverse(),
        lambda nodes: nodes["CogVideoXSampler"]["outputs"][0].update(type="IMAGE"),
        of_input(STEPS, id="step_count"),
        of_input(STEPS, type="FLOAT"),
        of_input(STEPS, optional=True),
        of_input(STEPS, default=30),
        of_input(STEPS, min=2),
        of_input(STEPS, max=100),
        of_input(STEPS, force_input=True),
        of_input(SEED, control_after_generate=None),
        of_input(NAME, options=["ddim"]),
        new_input(STEPS),
        new_input(END, optional=False),
        lambda nodes: nodes["CogVideoXSampler"]["inputs"].append({"id": "new", "type": "INT", "optional": True}),
    ],
)
def test_what_breaks_a_saved_workflow_is_seen(change):
    assert changed(change)


@pytest.mark.parametrize(
    "change",
    [
        lambda nodes: nodes.update(CogVideoXNew={"inputs": [], "outputs": []}),
        lambda nodes: nodes["CogVideoXSampler"]["outputs"].append({"type": "IMAGE"}),
        of_input(STEPS, min=0, max=100_000),
        of_input(NAME, options=["new", "ddim", "dpm"]),
        new_input(END),
        lambda nodes: nodes["CogVideoXSampler"]["inputs"].append({"id": "new", "type": "IMAGE", "optional": True}),
    ],
)
def test_additions_break_nothing(change):
    assert changed(change) == []
