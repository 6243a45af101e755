"""The host's context windows over a video of ours: windows that start as a video does, and never longer than asked.

A causal VAE's first latent is one frame and every other four, so the model has learnt that the first latent of what it
sees is another kind. The host's causal fix shows each later window the latent before it and drops its result. Here that
latent counts as the window's own first one, where another window covers it, so that no window is longer than the model
was trained on; and the extra leading latent of 1.5 stands in front of the first window, as in training, not inside it.
"""

from __future__ import annotations

from collections import Counter

import torch
from comfy.context_windows import IndexListContextHandler, IndexListContextWindow, apply_freenoise

TIME = 2  # the dimension of latents [B, C, T, H, W] that windows run along


class VideoWindows(IndexListContextHandler):
    """The host's handler, made for one run of a video with `leading` extra latents in front."""

    def __init__(self, handler: IndexListContextHandler, leading: int):
        vars(self).update(vars(handler))
        self.leading = leading

    def should_use_context(self, model, conds, x_in, timestep, model_options):
        return super().should_use_context(model, conds, self.video(x_in), timestep, model_options)

    def get_context_windows(self, model, x_in, model_options):
        total = x_in.size(TIME)
        windows = self.context_schedule.func(total - self.leading, self, model_options)
        windows = [[frame + self.leading for frame in window] for window in windows]
        for window in windows:
            if self.leading in window:
                at = window.index(self.leading)
                window[at:at] = range(self.leading)
        if self.causal_window_fix and not self.leading:
            give_first_away(windows)
        made = [IndexListContextWindow(window, dim=TIME, total_frames=total) for window in windows]
        for window in made:
            window.context_overlap = self.context_overlap  # which newer hosts take as an argument and blend by
        return made

    def get_resized_cond(self, cond_in, x_in, window, device=None):
        if cond_in is None:
            return None
        # The host takes a mask [1, T, H, W] for a tensor of another layout: hand it on in a tuple.
        hidden = [{key: (value,) if key == "mask" else value for key, value in cond.items()} for cond in cond_in]
        resized = super().get_resized_cond(hidden, x_in, window, device)
        for cond in resized:
            if "mask" in cond:
                (mask,) = cond["mask"]
                cond["mask"] = window.get_tensor(mask, device, dim=1) if mask.shape[1] == x_in.size(TIME) else mask
        return resized

    def video(self, x: torch.Tensor) -> torch.Tensor:
        """Return a view of x [B, C, T, H, W] without the leading latents."""
        return x[:, :, self.leading :]


def give_first_away(windows: list[list[int]]) -> None:
    """Drop the first frame of each window that another covers: the host shows it to the window all the same."""
    covers = Counter(frame for window in windows for frame in window)
    for window in windows:
        first = window[0]
        if first > 0 and covers[first] > 1 and len(window) > 1 and window[1] == first + 1:
            covers[first] -= 1
            del window[0]


def freenoise(handler, noise: torch.Tensor, seed: int) -> torch.Tensor:
    """Return noise [B, C, T, H, W] of a video as the host's FreeNoise shuffles it; the extra latents come after.

    The host's turn would shuffle them with the video, so it has none.
    """
    if not isinstance(handler, VideoWindows) or not handler.freenoise:
        return noise
    handler.freenoise = False
    return apply_freenoise(noise.clone(), TIME, handler.context_length, handler.context_overlap, seed)


def windows_of(handler, leading: int):
    """Return the context handler of a run as it fits our videos, or raise where its numbers cannot."""
    if not isinstance(handler, IndexListContextHandler):
        return handler
    if handler.dim != TIME:
        raise ValueError(
            f"The context windows run along dim {handler.dim}, and the frames of a video are dim {TIME}. "
            f"Set dim to {TIME}, or use Wan Context Windows, which counts in frames."
        )
    if handler.context_overlap >= handler.context_length:
        raise ValueError(
            f"The context windows are {handler.context_length} latents long and overlap by {handler.context_overlap}, "
            "so they never get on. Set context_overlap below context_length, for example 16 and 49 frames."
        )
    return VideoWindows(handler, leading)
