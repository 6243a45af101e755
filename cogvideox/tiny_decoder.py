"""The tiny decoder of madebyollin/taehv for CogVideoX (taecvx): rough pictures of latents in little time.

Of the published decoder this runs what a preview needs: one picture for each latent frame, at half the sides.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from .checkpoint import CheckpointError
from .variants import LATENT_CHANNELS

PREFIX = "decoder."
WIDTHS = (256, 128, 64, 64)  # channels of its three levels and of what they end in
LIMIT = 3.0  # latents are bent to stay between -LIMIT and LIMIT


class MemoryBlock(nn.Module):
    """Three convolutions over a frame and the frame before it, around a skip."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
        """Return the features of x [1, C, H, W]; `before` are those that came in a frame earlier, None at the first."""
        before = torch.zeros_like(x) if before is None else before
        return functional.relu(self.conv(torch.cat((x, before), dim=1)) + x)


class LastMoment(nn.Module):
    """Where the published decoder makes one or two frames of one, the last of them."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class TinyDecoder(nn.Module):
    """Latents to pictures; modules are numbered as in the published file."""

    def __init__(self):
        super().__init__()
        layers = [nn.Identity(), nn.Conv2d(LATENT_CHANNELS, WIDTHS[0], 3, padding=1), nn.ReLU()]
        for level, (width, narrower) in enumerate(zip(WIDTHS, WIDTHS[1:], strict=False)):
            layers += [MemoryBlock(width) for _ in range(3)]
            last = level == len(WIDTHS) - 2  # not enlarged: a preview is small, and this takes most of the time
            layers += [nn.Identity() if last else nn.Upsample(scale_factor=2), LastMoment(width)]
            layers += [nn.Conv2d(width, narrower, 3, padding=1, bias=False)]
        layers += [nn.ReLU(), nn.Conv2d(WIDTHS[-1], 3, 3, padding=1)]
        self.decoder = nn.ModuleList(layers)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode unscaled latents [16, T, H, W] to pictures [T, 3, 4H, 4W] in 0 to 1, frame by frame."""
        weight = self.decoder[1].weight
        bent = torch.tanh(latents.to(weight) / LIMIT) * LIMIT
        before: dict[int, torch.Tensor] = {}
        pictures = []
        for frame in bent.unbind(1):
            x = frame[None]
            for index, layer in enumerate(self.decoder):
                if isinstance(layer, MemoryBlock):
                    x, before[index] = layer(x, before.get(index)), x
                else:
                    x = layer(x)
            pictures.append(x[0].clamp(0, 1))
        return torch.stack(pictures)


def read_tiny_decoder(state_dict: dict[str, torch.Tensor]) -> TinyDecoder:
    """Return the decoder of a published file (its encoder is left), or raise where the file holds something else."""
    decoder = TinyDecoder()
    wanted = decoder.state_dict()
    given = {key: value for key, value in state_dict.items() if key.startswith(PREFIX)}
    for index, layer in enumerate(decoder.decoder):
        key = f"{PREFIX}{index}.conv.weight"
        if isinstance(layer, LastMoment) and key in given:
            given[key] = given[key][-len(wanted[key]) :]
    if {key: value.shape for key, value in given.items()} != {key: value.shape for key, value in wanted.items()}:
        raise CheckpointError("The file holds no tiny decoder of CogVideoX (taecvx), which has layers of other shapes.")
    decoder.load_state_dict(given)
    return decoder.eval().requires_grad_(False)
