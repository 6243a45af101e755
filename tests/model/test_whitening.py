"""The last part of the demo's VAE training: latents of like size, and the same pictures."""

import pytest
import torch
from pack.demo import mini, train_vae, world

CLIPS = 6


@pytest.fixture(scope="module")
def vae():
    """Return a fresh VAE whose latents have mean zero, so that padding with zeros means the same twice."""
    torch.manual_seed(0)
    vae = mini.new_vae().eval().requires_grad_(False)
    mean, _, _ = train_vae.moments(vae, CLIPS)
    vae.encoder.conv_out.conv.bias[:16] -= mean.float()
    return vae


def test_whitening_evens_the_latents_and_keeps_the_pictures(vae):
    pixels = train_vae.to_pixels(world.render(world.scene(1, "test"), 17, 64, 96))[None]
    before = vae.decode(vae.encode(pixels).mode())
    _, covariance, variance = train_vae.moments(vae, CLIPS)
    deviation = train_vae.whiten(vae, CLIPS)
    after = vae.decode(vae.encode(pixels).mode())
    assert torch.allclose(before, after, atol=1e-4 * before.std())

    mean, white, noise = train_vae.moments(vae, CLIPS)
    sizes = torch.linalg.eigvalsh(covariance)
    torch.testing.assert_close(torch.linalg.eigvalsh(white), sizes / (sizes + train_vae.FLOOR), rtol=1e-3, atol=1e-4)
    assert mean.abs().max() < 1e-3 and deviation == pytest.approx(white.diagonal().mean().sqrt().item(), rel=1e-3)
    assert (noise > variance).all()  # the posterior's noise grew with the latents
