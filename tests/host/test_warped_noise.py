"""The NOISE of Go-with-the-Flow in the host: against its own port of the authors' code, and in both latent layouts."""

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import pytest
import torch
import torch.nn.functional as F
from comfy_extras import void_noise_warp
from comfy_extras.nodes_custom_sampler import BasicScheduler, CFGGuider, SamplerCustomAdvanced
from pack.benchmarks.counting import peak_of
from pack.cogvideox import warped_noise as warping
from pack.nodes.host import warped_noise
from pack.nodes.host.conditioning import empty_latent
from torchvision.models.optical_flow import raft_large

from . import pipelines
from .test_chain import CFG, STEPS, conditioned

SEED = 5
HEIGHT, WIDTH, FRAMES = pipelines.HEIGHT, pipelines.WIDTH, 17

pytestmark = pytest.mark.usefixtures("inference")


def waves(height, width, strength):
    coarse = torch.randn(1, 2, 4, 5, generator=torch.Generator().manual_seed(SEED)) * strength
    return F.interpolate(coarse, (height, width), mode="bicubic")[0]


@pytest.mark.parametrize("strength", [1.0, 6.0])
def test_a_step_is_that_of_the_authors_code(strength):
    """Density everywhere, and noise wherever no fresh noise is drawn; the host carries their code for VOID."""
    height, width = 48, 64
    generator = torch.Generator().manual_seed(SEED)
    noise, density = torch.randn(4, height, width, generator=generator), torch.rand(height, width) + 0.1
    flow = waves(height, width, strength)
    state = torch.cat((torch.zeros(2, height, width), density[None], noise))
    theirs = void_noise_warp.warp_state(state, flow)
    out, total = warping.warp(noise, density, flow, generator)
    torch.testing.assert_close(total, theirs[2], rtol=1e-5, atol=1e-8)
    (moving, reached), (stretching, grown), leaving, entering = warping.edges(flow)
    count = torch.bincount(torch.cat((moving, stretching)), minlength=height * width)
    fixed = torch.ones(height * width, dtype=torch.bool)
    fixed[torch.cat((reached[count[moving] > 1], grown[count[stretching] > 1], leaving, entering))] = False
    assert fixed.sum() > 500
    torch.testing.assert_close(out.flatten(1)[:, fixed], theirs[3:].flatten(1)[:, fixed], rtol=1e-5, atol=1e-6)


def pictures(frames=FRAMES, height=HEIGHT, width=WIDTH, right=8.0, flow_range=64.0):
    """Return pictures of a flow that goes `right` px a frame."""
    out = torch.full((frames - 1, height, width, 3), 0.5)
    out[..., 0] += right / (2 * flow_range)
    return out


def source(flow, seed=SEED, downsampling="nearest", degradation=0.0, detail=4):
    return warped_noise.warped_noise_source(seed, downsampling, degradation, detail, 64.0, flow=flow)


@pytest.mark.parametrize("strength", [0.5, 3.0])
def test_the_host_makes_room_for_what_a_step_holds(strength, monkeypatch):
    freed = []
    monkeypatch.setattr(comfy.model_management, "free_memory", lambda memory, device: freed.append(memory))
    flow = torch.randn(8, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(SEED)) * strength / 64 + 0.5
    made, latent = source(flow, detail=32), empty_latent(WIDTH, HEIGHT, 9, 1)
    peak = peak_of(lambda: made.generate_noise(latent), made.flows)
    assert peak <= freed[0] <= 1.25 * peak


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (64, 64), (96, 64)])
def test_noise_has_the_latents_size_and_moves_as_the_pictures_say(size):
    latent = empty_latent(size[1], size[0], FRAMES, 2)
    noise = source(pictures(height=size[0], width=size[1])).generate_noise(latent)
    assert noise.shape == latent["samples"].shape
    assert abs(float(noise.mean())) < 0.1 and abs(float(noise.std()) - 1) < 0.05
    # 8 px a frame are 4 latents from one latent frame to the next.
    torch.testing.assert_close(noise[:, :, 1, :, 4:-1], noise[:, :, 0, :, :-5], rtol=0.05, atol=0.05)
    assert abs(float((noise[0] * noise[1]).mean())) < 0.1  # each video of the batch has its own


def test_the_largest_seed_serves_a_batch():
    noise = source(pictures(), seed=2**64 - 1).generate_noise(empty_latent(WIDTH, HEIGHT, FRAMES, 2))
    assert not torch.equal(noise[0], noise[1])


def test_pictures_for_every_frame_are_as_good_as_for_every_step():
    latent = empty_latent(WIDTH, HEIGHT, FRAMES, 1)
    flow = pictures()
    same = torch.cat((flow, torch.rand_like(flow[:1])))
    assert torch.equal(source(flow).generate_noise(latent), source(same).generate_noise(latent))


@pytest.mark.parametrize("variant", ["5b", "5b-i2v", "1.5", "1.5-i2v"])
def test_both_layouts_sample_with_it(variant):
    model = pipelines.ours(variant)[0]
    positive, negative, latent = conditioned(variant, FRAMES)

    def run(noise):
        guider = CFGGuider.execute(model, positive, negative, CFG).result[0]
        sigmas = BasicScheduler.execute(model, "simple", STEPS, 1.0).result[0]
        sampler = comfy.samplers.sampler_object("euler")
        return SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).result[0]["samples"]

    noise = source(pictures())
    out = run(noise)
    assert out.shape == (1, 16, 5, HEIGHT // 8, WIDTH // 8) and torch.isfinite(out).all()
    assert torch.equal(run(noise), out)
    assert not torch.equal(run(source(pictures(right=-8.0))), out)


@pytest.fixture(scope="module")
def raft():
    torch.manual_seed(SEED)
    return comfy.model_patcher.ModelPatcher(raft_large().eval(), torch.device("cpu"), torch.device("cpu"))


def test_flow_of_a_video_is_what_the_hosts_own_wrapper_sees(raft):
    video = torch.rand(2, 256, 384, 3, generator=torch.Generator().manual_seed(SEED))
    half = F.interpolate(video.movedim(-1, 1), (128, 192), mode="area")
    expected = void_noise_warp.RaftOpticalFlow(raft.model, device=torch.device("cpu"))(half[0], half[1])
    flow = warped_noise.video_flow(video, raft)
    assert flow.shape == (1, 2, 128, 192)
    assert pipelines.relative_error(flow[0], expected) <= 1e-5


def test_a_small_video_is_enlarged_for_the_flow_model(raft):
    video = torch.rand(3, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(SEED))
    flow = warped_noise.video_flow(video, raft)
    assert flow.shape == (2, 2, HEIGHT // 2, WIDTH // 2)


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "follows either a video or an optical flow"),
        ({"video": torch.rand(9, 64, 96, 3), "flow": pictures()}, "and not both"),
        ({"video": torch.rand(9, 64, 96, 3)}, "nothing to see its motion with"),
        ({"flow": torch.full((4, 8, 8, 3), float("nan"))}, "holds invalid numbers"),
        ({"video": torch.rand(1, 64, 96, 3), "optical_flow": 1}, "needs 2 frames or more"),
    ],
)
def test_what_cannot_be_followed_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        warped_noise.warped_noise_source(SEED, "nearest", 0.5, 8, 64.0, **given)


def test_a_flow_of_another_length_or_shape_is_refused_before_sampling():
    noise = source(pictures())
    with pytest.raises(ValueError, match="that of 17 frames and the video to make has 25"):
        noise.generate_noise(empty_latent(WIDTH, HEIGHT, 25, 1))
    with pytest.raises(ValueError, match="has the shape of 96x64 px"):
        noise.generate_noise(empty_latent(64, 64, FRAMES, 1))
    with pytest.raises(ValueError, match="noise for a video"):
        noise.generate_noise({"samples": torch.zeros(1, 4, 8, 8)})
