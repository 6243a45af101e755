"""Noise warped along a flow stays white noise and goes where the flow goes."""

import pytest
import torch
import torch.nn.functional as F
from pack.cogvideox import warped_noise as warping

SEED = 5
HEIGHT, WIDTH, CHANNELS = 40, 56, 16


def generator():
    return torch.Generator().manual_seed(SEED)


def field(strength, count=1):
    """Return smooth random flows [count, 2, HEIGHT, WIDTH]."""
    coarse = torch.randn(count, 2, 4, 5, generator=generator()) * strength
    return F.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic")


def zoom(factor):
    y, x = (torch.linspace(-(n - 1) / 2, (n - 1) / 2, n) for n in (HEIGHT, WIDTH))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))[None] * (factor - 1)


def correlation(noise, shift):
    """Return the correlation of noise [C, H, W] with itself `shift` pixels to the right and below."""
    down, right = shift
    a, b = noise[:, : noise.shape[1] - down, : noise.shape[2] - right], noise[:, down:, right:]
    return float((a * b).mean())


@pytest.mark.parametrize("flow", [field(6.0), zoom(1.6), zoom(0.6)], ids=["waves", "zoom in", "zoom out"])
def test_each_warped_frame_is_white_noise(flow):
    frames = list(warping.warped_frames(flow.expand(6, -1, -1, -1), HEIGHT, WIDTH, CHANNELS, 4, generator()))
    count = frames[0].numel()
    for frame in frames:
        assert abs(float(frame.mean())) < 5 / count**0.5
        assert abs(float(frame.std()) - 1) < 5 / (2 * count) ** 0.5
        for shift in ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0)):
            assert abs(correlation(frame, shift)) < 5 / count**0.5
        channels = torch.corrcoef(frame.flatten(1)) - torch.eye(CHANNELS)
        assert channels.abs().max() < 6 / (HEIGHT * WIDTH) ** 0.5


def test_a_picture_that_would_be_stretched_plainly_is_not_white():
    """What the test above would see of noise that is resampled and not split."""
    noise = torch.randn(CHANNELS, HEIGHT, WIDTH, generator=generator())
    stretched = F.interpolate(noise[None], scale_factor=2, mode="nearest")[0]
    assert correlation(stretched, (0, 1)) > 0.4


def test_noise_goes_where_the_flow_goes():
    flow = torch.zeros(1, 2, HEIGHT, WIDTH)
    flow[:, 0], flow[:, 1] = 3, -2
    first, second = warping.warped_frames(flow, HEIGHT, WIDTH, CHANNELS, 1, generator())
    torch.testing.assert_close(second[:, 2:-2, 3:-3], first[:, 4:, :-6])
    assert abs(float((first[:, :, :3] * second[:, :, :3]).mean())) < 0.1  # what enters is new


def test_no_motion_keeps_the_noise():
    first, *others = warping.warped_frames(torch.zeros(4, 2, 8, 8), 10, 14, 3, 4, generator())
    assert len(others) == 4
    for other in others:
        torch.testing.assert_close(other, first)


def test_what_is_stretched_sums_to_what_was_there():
    noise, density = torch.randn(CHANNELS, HEIGHT, WIDTH, generator=generator()), torch.ones(HEIGHT, WIDTH)
    flow = field(3.0)[0]
    out, _ = warping.warp(noise, density, flow, generator())
    (moving, reached), (stretching, grown), leaving, _ = warping.edges(flow)
    old, new = torch.cat((moving, stretching)), torch.cat((reached, grown))
    alone = torch.bincount(torch.cat((new, leaving)), minlength=HEIGHT * WIDTH)[new] == 1
    parts = torch.zeros(CHANNELS, HEIGHT * WIDTH).index_add_(1, old, out.flatten(1)[:, new])
    count = torch.bincount(old, minlength=HEIGHT * WIDTH)
    whole = (count > 1) & ~torch.zeros(HEIGHT * WIDTH, dtype=torch.bool).index_fill_(0, old[~alone], True)
    assert whole.sum() > 100
    expected = noise.flatten(1)[:, whole] * count[whole].sqrt()
    torch.testing.assert_close(parts[:, whole], expected, rtol=1e-4, atol=1e-4)


def test_flows_are_scaled_with_their_vectors():
    flow = torch.ones(2, 10, 20)
    scaled = warping.scale_flow(flow, 30, 40)
    assert scaled.shape == (2, 30, 40)
    assert torch.all(scaled[0] == 2) and torch.all(scaled[1] == 3)


@pytest.mark.parametrize("method", warping.DOWNSAMPLINGS)
def test_frames_become_latent_frames_as_the_authors_take_them(method):
    frames = torch.randn(49, 4, 30, 45, generator=generator())
    out = warping.downsample(frames, 13, method)
    assert out.shape == (13, 4, 30, 45)
    if method == "nearest":
        assert torch.equal(out, frames[::4])
        return
    bounds = [int(index * 49 / 13) for index in range(14)]
    mean = torch.stack([sum(frames[a:b]) / (b - a) for a, b in zip(bounds[:-1], bounds[1:], strict=True)])
    expected = mean if method == "blend" else torch.stack([x / x.std(1, keepdim=True) for x in mean])
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_degradation_mixes_in_fresh_noise_and_keeps_the_variance(share):
    noise = torch.randn(13, 16, 30, 45, generator=generator())
    out = warping.degrade(noise, share, torch.Generator().manual_seed(SEED + 1))
    assert abs(float(out.std()) - 1) < 0.01
    kept = float((out * noise).mean())
    assert abs(kept - (1 - share) / (share**2 + (1 - share) ** 2) ** 0.5) < 0.02
    if share == 0:
        assert torch.equal(out, noise)


def test_the_seed_decides():
    flows = field(2.0, 4)

    def made(seed):
        return warping.warped_noise(flows, (4, 2, 5, 7), "nearest", 0.5, seed=seed, detail=8)

    assert made(1).shape == (4, 2, 5, 7)
    assert torch.equal(made(1), made(1))
    assert not torch.equal(made(1), made(2))
