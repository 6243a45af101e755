"""The host's progress bar and its cancel button, for loops of our own."""

from __future__ import annotations

import comfy.model_management
import comfy.utils


def host_progress(total: int):
    """Return a callback that moves the node's progress bar and stops where the artist pressed cancel."""
    bar = comfy.utils.ProgressBar(total)

    def step(done: int, total: int) -> None:
        bar.update_absolute(done, total)
        comfy.model_management.throw_exception_if_processing_interrupted()

    return step
