"""Every workflow is one that this host takes: nodes, sockets and values, without running it; quick, for older hosts."""

import pytest

from .server import WORKFLOWS, Server

# Stock nodes that came after the oldest host supported; the workflow is not for that one.
NEWER = {"train_lora": "LoadVideoTextDataSetFromFolder"}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_server_takes_the_workflow(server: Server, name: str):
    if NEWER.get(name, "KSampler") not in server.object_info:
        pytest.skip(f"this ComfyUI has no {NEWER[name]}")
    answer = server.post("/prompt", {"prompt": server.prompt(name)})
    server.post("/queue", {"delete": [answer["prompt_id"]]})
    server.post("/interrupt", {"prompt_id": answer["prompt_id"]})
    assert answer["node_errors"] == {}
