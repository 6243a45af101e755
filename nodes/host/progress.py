"""The host's progress bar and its cancel button, for loops of our own, and what a node took."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager

import comfy.model_management
import comfy.utils
import torch

log = logging.getLogger(__name__)


def host_progress(total: int):
    """Return a callback that moves the node's progress bar and stops where the artist pressed cancel."""
    bar = comfy.utils.ProgressBar(total)

    def step(done: int, total: int) -> None:
        bar.update_absolute(done, total)
        comfy.model_management.throw_exception_if_processing_interrupted()

    return step


@contextmanager
def reported(node: str):
    """Say in one log line how many seconds `node` took and, on an NVIDIA or AMD card, the most memory PyTorch held."""
    device = comfy.model_management.get_torch_device()
    card = device.type == "cuda"
    if card:
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    yield
    if card:
        torch.cuda.synchronize(device)
    text = f"{node}: {time.perf_counter() - began:.1f} s"
    if card:
        text += f", {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB at most"
    log.info(text)
