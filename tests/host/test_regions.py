"""Areas and masks on text conditioning: stock nodes, two regions, two prompts, each seen where it belongs."""

import pytest
import torch
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode
from pack.benchmarks.mini import HostPainter
from pack.benchmarks.regions import colours_of_halves, regional
from pack.nodes.host.conditioning import empty_latent
from pack.nodes.host.regions import EVERY_FRAME, fit_region

import nodes

from . import pipelines
from .pipelines import HEIGHT, WIDTH, relative_error
from .test_chain import CFG, SEED, conditioned

FRAMES = 17
SIZE = (5, 8, 12)

pytestmark = pytest.mark.usefixtures("inference")


def run(variant, positive, model=None, length=FRAMES):
    _, negative, latent = conditioned(variant, length)
    model = model or pipelines.ours(variant)[0]
    return nodes.KSampler().sample(model, SEED, 2, CFG, "euler", "simple", positive, negative, latent, 1.0)[0][
        "samples"
    ]


def two(variant, length=FRAMES):
    """Return two different prompts, with the image where the variant wants one."""
    positive, negative, _ = conditioned(variant, length)
    return positive, negative


def left(frames=1):
    mask = torch.zeros(frames, HEIGHT, WIDTH)
    mask[:, :, : WIDTH // 2] = 1
    return mask


def masked(cond, mask, bounds="default"):
    return nodes.ConditioningSetMask().append(cond, mask, bounds, 1.0)[0]


@pytest.mark.parametrize("variant", pipelines.VARIANTS)
@pytest.mark.parametrize("frames", [1, 5, FRAMES])
def test_a_mask_of_everything_changes_nothing_and_two_halves_do(variant, frames):
    one, other = two(variant)
    plain = run(variant, one)
    assert relative_error(run(variant, masked(one, torch.ones(frames, HEIGHT, WIDTH))), plain) <= 1e-5
    halves = masked(one, left(frames)) + masked(other, 1 - left(frames))
    assert relative_error(run(variant, halves), plain) > 1e-4


def test_a_mask_for_each_frame_weighs_each_latent():
    mask = torch.zeros(FRAMES, HEIGHT, WIDTH)
    mask[9:] = 1  # the frames of the last two latents
    fitted = fit_region({"mask": mask}, SIZE, (0, 0), 2)["mask"]
    assert fitted.shape == (1, *SIZE)
    assert fitted[0, :, 0, 0].tolist() == [0, 0, 0, 1, 1]
    assert fit_region({"mask": mask}, SIZE, (1, 0), 2)["mask"][0, :, 0, 0].tolist() == [0, 0, 0, 0, 1, 1]
    assert fit_region({"mask": mask}, SIZE, (0, 1), 2)["mask"][0, :, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("variant", ["2b", "5b", "1.5", "1.5-i2v"])
@pytest.mark.parametrize("kind", ["area", "percentage", "bounds"])
def test_areas_of_every_kind_run_and_stay_inside(variant, kind):
    one, other = two(variant)
    if kind == "area":
        part = nodes.ConditioningSetArea().append(one, 48, HEIGHT, 0, 0, 1.0)[0]
    elif kind == "percentage":
        part = nodes.ConditioningSetAreaPercentage().append(one, 0.5, 1.0, 0.0, 0.0, 1.0)[0]
    else:
        part = masked(one, left(), "mask bounds")
    out = run(variant, part + other)
    plain = run(variant, other)
    assert torch.isfinite(out).all() and out.shape == plain.shape
    first = nodes.KSampler().sample(
        pipelines.ours(variant)[0],
        SEED,
        1,
        1.0,
        "euler",
        "simple",
        part + other,
        other,
        conditioned(variant, FRAMES)[2],
        1.0,
    )[0]["samples"]
    alone = nodes.KSampler().sample(
        pipelines.ours(variant)[0], SEED, 1, 1.0, "euler", "simple", other, other, conditioned(variant, FRAMES)[2], 1.0
    )[0]["samples"]
    reach = 8 if kind == "bounds" else 6
    assert relative_error(first[..., reach:], alone[..., reach:]) <= 1e-4
    assert relative_error(first[..., :reach], alone[..., :reach]) > 1e-3


@pytest.mark.parametrize(
    "area, fitted",
    [
        ((3, 5, 1, 3), (EVERY_FRAME, 4, 6, 0, 0, 2)),
        (("percentage", 0.5, 0.5, 0.5, 0.5), (5, 4, 6, 0, 4, 6)),
        (("percentage", 0.4, 1.0, 1.0, 0.6, 0.0, 0.0), (2, 8, 12, 3, 0, 0)),
        ((100, 100, 0, 0), (EVERY_FRAME, 8, 12, 0, 0, 0)),
    ],
)
def test_areas_land_on_whole_patches(area, fitted):
    assert fit_region({"area": area}, SIZE, (0, 0), 2)["area"] == fitted


def test_regions_go_through_context_windows():
    one, other = two("1.5", 33)
    model = pipelines.ours("1.5")[0]
    model = WanContextWindowsManualNode.execute(model, 17, 9, "standard_static", 1, False, "pyramid", True).result[0]
    for frames in (1, 9, 33):
        conds = masked(one, left(frames)) + masked(other, 1 - left(frames), "mask bounds")
        out = run("1.5", conds, model, 33)
        assert out.shape[2] == 9 and torch.isfinite(out).all()


@pytest.mark.parametrize(
    "part, message",
    [
        ({"mask": torch.ones(4, HEIGHT, WIDTH)}, "Give one mask for the whole video"),
        ({"area": (4, 4, 0, 12)}, "outside the video"),
        ({"area": (4, 4, 9, 0)}, "begins at y 72 px"),
    ],
)
def test_regions_of_another_video_are_refused_before_sampling(part, message):
    one, _ = two("5b")
    with pytest.raises(ValueError, match=message):
        run("5b", [[one[0][0], {**one[0][1], **part}]])


def test_the_conditioning_given_is_not_changed():
    one, _ = two("5b")
    part = masked(one, left(), "mask bounds")
    before = dict(part[0][1])
    run("5b", part)
    assert part[0][1].keys() == before.keys() and part[0][1]["mask"] is before["mask"]


def test_two_prompts_are_seen_in_two_regions():
    painter = HostPainter()
    positive = regional(painter.clip, "a red ball moves up", "a blue ball moves down", 96, 64)
    negative = pipelines.encode_prompt(painter.clip, "").conditioning
    latent = empty_latent(96, 64, FRAMES, 1)
    out = nodes.KSampler().sample(painter.model, 0, 20, 6.0, "euler", "simple", positive, negative, latent, 1.0)[0]
    frames = nodes.VAEDecode().decode(painter.vae, out)[0]
    assert colours_of_halves((frames * 255).numpy()) == ("red", "blue")
