"""Counting the tensors that are alive at once, computed with or only pretended to be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Count the bytes of all tensors that operators made and that are still alive; `peak` is their maximum by device.

    The storages of `known` tensors do not count.
    """

    def __init__(self, *known: torch.Tensor):
        super().__init__()
        self.peak: Counter[str] = Counter()
        self.total: Counter[str] = Counter()  # counts what has died since it was last above the peak
        self.live: dict[int, tuple[StorageWeakRef | None, int, str]] = {}
        self.known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                storage, device = tensor.untyped_storage(), tensor.device.type
                _, size, place = self.live.get(storage._cdata, (None, 0, device))
                self.total[place] -= size
                self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes(), device
                self.total[device] += storage.nbytes()
        if any(self.total[device] > self.peak[device] for device in self.total):
            self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
            self.total = Counter()
            for _, size, device in self.live.values():
                self.total[device] += size
            self.peak |= self.total
        return out


def peak_of(run: Callable[[], Any], *known: torch.Tensor) -> int:
    """Return the most bytes of tensors alive at once in `run`, on all devices, beside those of `known`."""
    with LiveBytes(*known) as live:
        run()
    return sum(live.peak.values())


@torch.no_grad()
def pretended_peak(run: Callable[..., torch.Tensor], inputs: dict[str, torch.Tensor]) -> dict[str, int]:
    """Return the most bytes alive at once on `card` and in `main` memory in `run`, beside `inputs`, weights, result.

    Nothing is computed: weights are on the device `meta`, which stands for the card, and `inputs` only have a shape
    there. What libraries take inside an operator is not seen.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    inputs = {name: mode.from_tensor(tensor.to("meta")) for name, tensor in inputs.items()}
    with mode, LiveBytes(*inputs.values()) as live:
        out = run(**inputs)
    return {"card": live.peak["meta"] - out.untyped_storage().nbytes(), "main": live.peak["cpu"]}
