"""Gradients of half batches on two processes are those of the whole batch on one."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# A file, because the second process reads the first one's main module again.
SCRIPT = f"""
import sys, types
pack = sys.modules.setdefault("pack", types.ModuleType("pack"))
pack.__path__ = [{str(ROOT)!r}]
import torch
from pack.demo.parallel import Workers

def loss(model, x, y):
    return (model(x) - y).square().mean()

def gradients(processes):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
    workers = Workers(model, loss, processes)
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(3):
        value = workers.backward(torch.randn(9, 5), torch.randn(9, 3))
        optimiser.step()
    return [value, *(parameter.grad for parameter in model.parameters())]

if __name__ == "__main__":
    for one, two in zip(gradients(1), gradients(2), strict=True):
        torch.testing.assert_close(one, two)
    print("equal")
"""


def test_two_processes_give_the_gradients_of_one(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "equal", done.stderr
