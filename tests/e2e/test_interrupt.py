"""Cancel works within a step or a chunk, and what comes after runs as if nothing had been."""

import pytest

from .server import Server

SMALL = {"width": 96, "height": 64}
MANY_STEPS, LONG = 400, 513


@pytest.mark.parametrize(
    ("node", "values"),
    [
        ("CogVideoXSampler", {"steps": MANY_STEPS, "length": 9}),
        ("VAEDecode", {"steps": 1, "length": LONG}),
    ],
    ids=["while sampling", "while decoding"],
)
def test_interrupted_prompt_ends_early_and_the_next_one_runs(server: Server, node: str, values: dict):
    interrupted = []

    def interrupt(running: str) -> None:
        if running == node and not interrupted:
            interrupted.append(running)
            server.post("/interrupt", {})

    run = server.run(server.prompt("t2v", seed=7, **SMALL, **values), on_progress=interrupt)
    assert run.end == "execution_interrupted"
    assert run.events[-1][1]["node_type"] == node
    value, total = run.progress(node)[-1]
    assert 0 < value < total / 2
    assert run.files == []

    again = server.run(server.prompt("t2v", seed=8, **SMALL, length=9, steps=2))
    assert again.end == "execution_success", again.message
    assert len(again.files) == 1
