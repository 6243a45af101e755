"""What the demo's training sees: which scenes are cached, and what the decoder's last steps heed."""

import torch
from pack.demo import latent_cache, mini, train_vae, world

STAGE = train_vae.Stage(1, 2, (9,), 32, object_weight=10.0)


def test_no_scene_is_cached_twice_and_the_last_are_half_stars():
    plans = (*latent_cache.LOW, *latent_cache.HIGH, *latent_cache.MORE)
    seeds = {plan.name: [s for i in range(plan.clips // latent_cache.SHARD) for s in plan.seeds(i)] for plan in plans}
    assert [len(seeds[plan.name]) for plan in plans] == [plan.clips for plan in plans]
    every = [seed for part in seeds.values() for seed in part]
    assert len(set(every)) == len(every)
    stars = [world.scene(seed).shape == "star" for plan in latent_cache.MORE for seed in seeds[plan.name]]
    assert 0.45 < sum(stars) / len(stars) < 0.55


def test_clips_encoded_together_are_those_encoded_alone():
    torch.manual_seed(0)
    vae, plan, seeds = mini.new_vae(), latent_cache.LOW[-1], [5, 6]
    both = latent_cache.encode_scenes(vae, plan, seeds)
    alone = [latent_cache.encode_scenes(vae, plan, [seed]) for seed in seeds]
    assert both["video"].shape == (2, 16, 5, 6, 6) and both["images"].shape == (2, 4, 16, 6, 6)
    for name, latents in both.items():
        torch.testing.assert_close(latents, torch.cat([one[name] for one in alone]), rtol=1e-2, atol=1e-3)
        assert not torch.equal(latents[0], latents[1])


def test_the_object_and_what_is_beside_it_count_more():
    for step in range(3):
        pixels, weights = train_vae.clips(step, STAGE)
        assert pixels.shape == (2, 3, 9, 32, 32) and weights.shape == (2, 1, 9, 32, 32)
        torch.testing.assert_close(weights.mean(), torch.tensor(1.0))
        torch.testing.assert_close(weights.max() / weights.min(), torch.tensor(10.0))
    _, alike = train_vae.clips(0, train_vae.STAGES[0])
    assert (alike == 1).all()


def test_drawing_trains_the_decoder_alone_and_heeds_the_weights():
    torch.manual_seed(0)
    vae = mini.new_vae()
    pixels, weights = train_vae.clips(0, STAGE)

    def loss(weights):
        return train_vae.drawing_loss(vae, pixels, weights, 0.6, torch.Generator().manual_seed(0))

    weighted, squared = loss(weights)
    plain, same = loss(torch.ones_like(weights))
    assert squared == same and weighted != plain
    weighted.backward()
    assert all(parameter.grad is None for parameter in vae.encoder.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in vae.decoder.parameters())
