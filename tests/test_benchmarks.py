"""What the measurements compute of their figures: ratios, exponents, operations, the shape of their work."""

from dataclasses import replace

import pytest
import torch
from pack.benchmarks import common, counting, released, weights
from pack.cogvideox.transformer import CogVideoXTransformer3DModel
from pack.cogvideox.variants import RELEASED
from torch.utils.flop_counter import FlopCounterMode


def test_figures_of_one_run_are_compared_and_of_two_are_refused():
    slow, fast = (common.measured([{"seconds": seconds, "bytes": 2**20}]) for seconds in (3.0, 1.5))
    assert common.times(slow, fast) == 2
    with pytest.raises(SystemExit, match="different runs"):
        common.times(slow, fast | {"run": "another day"})


def test_medians_and_spread():
    runs = [{"seconds": seconds, "bytes": seconds * 2**20, "decode": seconds / 2} for seconds in (5, 1, 2)]
    row = common.measured(runs)
    assert (row["seconds"], row["fastest"], row["slowest"], row["decode"], row["mib"]) == (2, 1, 5, 1.0, 5)


def test_contestants_take_turns_from_either_end():
    order = []
    contestants = {name: lambda name=name: order.append(name) or {} for name in "abc"}
    runs = common.in_turn(contestants, 3)
    assert "".join(order) == "abccbaabc"
    assert {name: len(taken) for name, taken in runs.items()} == {"a": 3, "b": 3, "c": 3}


def test_the_exponent_of_a_power_law_is_found():
    assert common.exponent([1, 2, 4, 8], [3 * n**1.7 for n in (1, 2, 4, 8)]) == 1.7
    assert common.exponent([1, 2], [None, 2]) is None


def test_a_pretended_peak_is_what_is_alive_at_once_beside_inputs_and_result():
    def run(x):  # 4000 bytes
        out = torch.empty_like(x)
        waiting = [x.repeat(3).to("cpu"), x.repeat(2).to("cpu")]
        return out.add_(waiting[0].sum().to(out))

    assert counting.pretended_peak(run, {"x": torch.zeros(1000)}) == {"card": 12000, "main": 20004}


def attention(q, k, v, options):
    return (torch.softmax(q @ k.transpose(-1, -2), -1) @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("variant", RELEASED, ids=lambda variant: variant.name)
def test_operations_are_those_that_a_pass_makes(variant):
    config = replace(variant.transformer, num_layers=2)
    model = CogVideoXTransformer3DModel(config, device="meta", attention=attention)
    size = (4, 60, 90)
    given = [torch.empty(1, config.in_channels, *size), torch.ones(1), torch.empty(1, 226, config.text_embed_dim)]
    ofs = torch.ones(1, device="meta") if config.ofs_embed_dim else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*(tensor.to("meta") for tensor in given), ofs)
    assert released.flops(config, size) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_written_weights_are_those_of_the_shapes(tmp_path):
    from safetensors.torch import load_file

    shapes = {"a.weight": (3, 5), "norm.weight": (7,), "norm.bias": (7,)}
    weights.write_weights(tmp_path / "a.safetensors", shapes, torch.bfloat16)
    content = load_file(tmp_path / "a.safetensors")
    assert {key: tuple(tensor.shape) for key, tensor in content.items()} == shapes
    assert {tensor.dtype for tensor in content.values()} == {torch.bfloat16}
    assert abs(content["norm.weight"].float().mean() - 1) < 0.1 > content["norm.bias"].float().abs().mean()


WORKER = """
import sys
sys.path.insert(0, {folder!r})
import common

def answer(number):
    print("a library has something to say")
    return {{"twice": 2 * number}} if number else sys.exit("nothing comes of nothing")

common.answer_requests(answer)
"""


def test_a_worker_answers_and_its_end_is_told(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(folder=str(common.ROOT / "benchmarks")), encoding="utf-8")
    worker = common.Worker(str(script), "ours")
    assert [worker.ask(number=number)["twice"] for number in (2, 3)] == [4, 6]
    with pytest.raises(SystemExit, match="ours ended with code 1 at .*(?s:.*)nothing comes of nothing"):
        worker.ask(number=0)
    worker.close()
