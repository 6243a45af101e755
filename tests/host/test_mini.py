"""The demo's own models, untrained: what its training writes is a pipeline like any other."""

import numpy as np
import pytest
import torch
from pack.demo import mini
from pack.demo.train_transformer import explicit_uniform_timesteps
from pack.nodes.host import loading
from pack.nodes.host.conditioning import empty_latent, image_to_video
from pack.nodes.host.text_encoder import encode_prompt

import nodes

SEED, STEPS, CFG = 1, 2, 6.0
FRAMES = 9


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return the folder of a pipeline with fresh weights, the output layer loud enough to be heard."""
    torch.manual_seed(SEED)
    transformer = mini.new_transformer()
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.5)
    text = {k: v for k, v in mini.new_text_encoder().state_dict().items() if k != "encoder.embed_tokens.weight"}
    folder = tmp_path_factory.mktemp("mini")
    return mini.write(folder, mini.new_vae().state_dict(), text, transformer.state_dict(), 0.9)


def test_the_written_pipeline_makes_video_from_text_and_from_pictures(inference, written):
    model, clip, vae = loading.load_pipeline(written)
    assert model.model.variant.image_optional
    assert model.model.variant.latent_scale == 0.9
    conds = encode_prompt(clip, "a red ball moves left").conditioning, encode_prompt(clip, "").conditioning
    latent = empty_latent(mini.WIDTH, mini.HEIGHT, FRAMES, 1)
    picture = torch.rand(1, mini.HEIGHT, mini.WIDTH, 3, generator=torch.Generator().manual_seed(SEED))
    made = image_to_video(*conds, vae, mini.WIDTH, mini.HEIGHT, FRAMES, 1, end_image=picture)
    results = []
    for positive, negative in (conds, (made.positive, made.negative)):
        out = nodes.KSampler().sample(model, SEED, STEPS, CFG, "euler", "simple", positive, negative, latent, 1.0)
        results.append(nodes.VAEDecode().decode(vae, out[0])[0])
    assert all(frames.shape == (FRAMES, mini.HEIGHT, mini.WIDTH, 3) for frames in results)
    assert all(torch.isfinite(frames).all() for frames in results)
    assert not torch.equal(*results)


def test_the_written_pipeline_fits_the_repository(written):
    assert sum(path.stat().st_size for path in written.rglob("*") if path.is_file()) < 30e6


def test_timesteps_are_spread_over_the_whole_range():
    draw = np.random.default_rng(SEED)
    for count in (1, 7, 32):
        steps = explicit_uniform_timesteps(count, draw).sort().values
        part = torch.arange(count) * 1000 / count
        assert ((steps > part - 1) & (steps < part + 1000 / count)).all()
