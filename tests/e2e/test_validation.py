"""Every workflow is one that this host takes: nodes, sockets and values, without running it; quick, for older hosts."""

import pytest

from .server import WORKFLOWS, Server


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_server_takes_the_workflow(server: Server, name: str):
    server.require_nodes(name)
    answer = server.post("/prompt", {"prompt": server.prompt(name)})
    server.post("/queue", {"delete": [answer["prompt_id"]]})
    server.post("/interrupt", {"prompt_id": answer["prompt_id"]})
    assert answer["node_errors"] == {}
