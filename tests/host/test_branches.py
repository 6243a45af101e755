"""Tora, Diffusion as Shader and ConsisID on MODEL: what they add, when, to which frames, and what they refuse."""

import copy
import gc
import shutil
import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path

import comfy.model_patcher
import comfy.sd
import latent_preview
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode
from pack.cogvideox.consisid import ConsisID, ConsisIDConfig
from pack.cogvideox.shader import DiffusionAsShader, ShaderConfig
from pack.cogvideox.tora import Tora, ToraConfig
from pack.demo import tiny_pipeline
from pack.nodes.host import consisid, shader, tora
from pack.nodes.host.conditioning import empty_latent, image_to_video
from pack.nodes.host.loading import describe, load_model
from pack.nodes.host.model import BRANCHES
from pack.nodes.patches import CogVideoXStepCache
from safetensors.torch import load_file, save_file

import nodes

from . import pipelines
from .pipelines import relative_error

SEED, STEPS, CFG, WIDTH, HEIGHT, FRAMES = 3, 2, 6.0, 48, 32, 9
TORA = ToraConfig(inner_dim=64, blocks=2, channels=8)
FACE = ConsisIDConfig(64, 1, 24, 32, 4, 64, 3, 4, 16, 2, 2, 128)
PATHS = '[{"x": 4, "y": 8}, {"x": 44, "y": 24}]'
BASE = "transformer/diffusion_pytorch_model.safetensors"

pytestmark = pytest.mark.usefixtures("inference")


@cache
def weights(name: str) -> dict[str, torch.Tensor]:
    body = replace(tiny_pipeline.VARIANTS["5b-i2v"], num_layers=1)
    made = {
        "tora": lambda: Tora(TORA),
        "shader": lambda: DiffusionAsShader(ShaderConfig(body)),
        "consisid": lambda: ConsisID(FACE),
    }
    network = made[name]()
    drawn = tiny_pipeline.random_weights(tiny_pipeline.module_shapes(network), 11)
    for key, tensor in drawn.items():
        if key.endswith("running_var"):
            tensor.abs_().add_(0.5)
        if key.endswith("num_batches_tracked"):
            drawn[key] = torch.tensor(1)
    return drawn


@cache
def file(name: str) -> Path:
    """Return a file of the branch alone."""
    path = Path(pipelines.WRITTEN.name, f"{name}.safetensors")
    save_file(weights(name), path)
    return path


def whole(name: str, folder: Path) -> Path:
    """Write a pipeline folder with the branch beside the tiny model it belongs to, as they are published."""
    shutil.copytree(pipelines.folder(VARIANT[name]), folder)
    save_file({**load_file(folder / BASE), **weights(name)}, folder / BASE)
    return folder


VARIANT = {"tora": "5b", "shader": "5b-i2v", "consisid": "5b-i2v"}
LOAD = {"tora": tora.load_tora, "shader": shader.load_shader, "consisid": consisid.load_consisid}
NAMES = tuple(VARIANT)


def pictures(count, seed=0):
    return torch.rand(count, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(seed))


@cache
def plain(variant, length=FRAMES, batch=1):
    """Return positive, negative and LATENT of a run without a branch."""
    prompts = pipelines.prompts(variant)
    if variant == "5b":
        return *prompts, empty_latent(WIDTH, HEIGHT, length, batch)
    vae = pipelines.ours(variant)[2]
    made = image_to_video(*prompts, vae, WIDTH, HEIGHT, length, batch, start_image=pictures(1))
    return made.positive, made.negative, made.latent


def identity(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 24, generator=generator), [torch.randn(1, 7, 32, generator=generator) for _ in range(2)]


def steered(name, strength=1.0, start=0.0, end=1.0, length=FRAMES, batch=1, other=0):
    """Return the same with what the branch reads attached; `other` for other paths, points or faces."""
    variant = VARIANT[name]
    positive, negative, latent = plain(variant, length, batch)
    vae, steering = pipelines.ours(variant)[2], (strength, start, end)
    if name == "tora":
        paths = PATHS if not other else "[[[44, 4], [4, 30]], [[20, 20], [30, 4]]]"
        return *tora.trajectory(positive, negative, vae, latent, paths, *steering)[:2], latent
    if name == "shader":
        tracking = pictures(length, seed=5 + other)
        return *shader.tracking_conditioning(positive, negative, vae, latent, tracking, *steering), latent
    prompts = pipelines.prompts(variant)
    size = (WIDTH, HEIGHT, length, batch)
    made = consisid.identity_to_video(*prompts, vae, *size, pictures(1), identity(other), *steering)
    return made.positive, made.negative, made.latent


@cache
def model(name):
    return LOAD[name](pipelines.ours(VARIANT[name])[0], file(name), weight_dtype="fp32")


def run(patcher, conds, steps=STEPS):
    *prompts, latent = conds
    return nodes.KSampler().sample(patcher, SEED, steps, CFG, "euler", "simple", *prompts, latent, 1.0)[0]["samples"]


@pytest.mark.parametrize("name", NAMES)
def test_a_branch_changes_the_video_and_its_clone_alone(name):
    base = pipelines.ours(VARIANT[name])[0]
    options = copy.deepcopy(base.model_options)
    before = run(base, plain(VARIANT[name]))
    first = run(model(name), steered(name))
    assert relative_error(first, before) > 1e-3
    assert torch.equal(run(model(name), steered(name)), first)
    assert torch.equal(run(model(name).clone(), steered(name)), first)
    assert relative_error(run(model(name), steered(name, other=1)), first) > 1e-4
    assert torch.equal(run(model(name), plain(VARIANT[name])), before)  # nothing attached
    assert torch.equal(run(base, plain(VARIANT[name])), before)
    assert base.model_options == options and not base.additional_models


@pytest.mark.parametrize("name", NAMES)
def test_strength_and_percents_are_followed(name):
    before, full = run(model(name), plain(VARIANT[name])), run(model(name), steered(name))
    assert torch.equal(run(model(name), steered(name, 0.0)), before)
    assert torch.equal(run(model(name), steered(name, start=0.9999)), before)
    weak, half = run(model(name), steered(name, 0.1)), run(model(name), steered(name, end=0.5))
    assert 0 < relative_error(weak, before) < relative_error(full, before)
    assert not torch.equal(half, full) and not torch.equal(half, before)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_with_the_model_in_it_is_the_model_with_the_branch(name, tmp_path):
    both = LOAD[name](None, whole(name, tmp_path / "both"), weight_dtype="fp32")
    # Nearly: one row times a matrix is rounded by where the matrix lies in memory.
    assert relative_error(run(both, steered(name)), run(model(name), steered(name))) < 1e-4
    assert "left out" not in describe(both)
    assert "alone: the layers that" in describe(load_model(str(tmp_path / "both")))


@pytest.mark.parametrize("name", NAMES)
def test_a_lora_works_below_a_branch_and_above_it(name):
    key = "diffusion_model.transformer_blocks.0.attn1.to_v"
    width = pipelines.ours(VARIANT[name])[0].model.diffusion_model.config.inner_dim
    lora = {f"{key}.lora_up.weight": torch.ones(width, 2), f"{key}.lora_down.weight": 0.2 * torch.eye(2, width)}
    base = pipelines.ours(VARIANT[name])[0]
    above, _ = comfy.sd.load_lora_for_models(model(name), None, lora, 1.0, 0.0)
    changed, _ = comfy.sd.load_lora_for_models(base, None, lora, 1.0, 0.0)
    below = LOAD[name](changed, file(name), weight_dtype="fp32")
    plainly = run(model(name), steered(name))
    assert relative_error(run(above, steered(name)), plainly) > 1e-3
    assert relative_error(run(above, steered(name)), run(below, steered(name))) < 1e-5
    assert relative_error(run(changed, plain(VARIANT[name])), run(above, steered(name))) > 1e-3
    assert relative_error(run(model(name), steered(name)), plainly) < 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("weight_dtype", "bound"), [("bf16", 1e-2), ("fp8_e4m3fn", 1e-1), ("fp8_e5m2", 2e-1)])
def test_a_branch_in_fewer_bits_stays_near(name, weight_dtype, bound):
    """Eight bits are for large matrices; Tora has none, its fusers are convolutions.

    Measured: bf16 2.6e-3 at most; fp8_e4m3fn 1.6e-2 (Diffusion as Shader) and 3.9e-2 (ConsisID), fp8_e5m2 twice that.
    """
    narrow = LOAD[name](pipelines.ours(VARIANT[name])[0], file(name), weight_dtype=weight_dtype)
    error = relative_error(run(narrow, steered(name)), run(model(name), steered(name)))
    assert error < bound
    assert (error > 1e-6) == (weight_dtype == "bf16" or name != "tora")


@pytest.mark.parametrize("name", ["shader", "consisid"])
def test_a_branch_saved_in_eight_bits_is_read(name, tmp_path):
    base = pipelines.ours(VARIANT[name])[0]
    narrow = LOAD[name](base, file(name), weight_dtype="fp8_e4m3fn")
    (branch,) = [patcher for (patcher,) in narrow.additional_models.values()]
    state_dict = branch.model.state_dict()
    assert any(key.endswith("comfy_quant") for key in state_dict)
    save_file({key: tensor.contiguous() for key, tensor in state_dict.items()}, tmp_path / "fp8.safetensors")
    again = LOAD[name](base, tmp_path / "fp8.safetensors")
    assert relative_error(run(again, steered(name)), run(narrow, steered(name))) < 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_videos(name):
    together = run(model(name), steered(name, batch=2))
    one_by_one = steered(name, batch=1)
    assert relative_error(together[:1], run(model(name), one_by_one)) < 1e-3


def windows(patcher):
    """Return a clone that runs in windows of 9 frames, 3 latents."""
    return WanContextWindowsManualNode.execute(
        patcher, 9, 0, "standard_static", 1, False, "pyramid", False, False, 0
    ).result[0]


def test_a_context_window_sees_its_part_of_the_tracking_video(monkeypatch):
    """Windows of a longer video get latents as long as they are, and different ones."""
    seen = []
    monkeypatch.setattr(
        f"{shader.__name__}.attached",
        lambda options, key, real=shader.attached: seen.append(real(options, key)) or seen[-1],
    )
    loaded = LOAD["shader"](pipelines.ours(VARIANT["shader"])[0], file("shader"), weight_dtype="fp32")
    out = run(windows(loaded), steered("shader", length=17), steps=1)
    assert torch.isfinite(out).all()
    parts = {tuple(given[shader.TRACKING][0, 0, :, 0, 0].tolist()) for given, _ in seen}
    assert len(parts) >= 2 and all(len(part) < 5 for part in parts)


class Spied:
    """Counts what a network's extractor makes and keeps what the first fuser gets, while it is open."""

    def __init__(self, patcher, name):
        (branch,) = patcher.get_additional_models_with_key({"tora": tora.NAME, "consisid": consisid.NAME}[name])
        self.network = branch.model
        extractor = self.network.traj_extractor if name == "tora" else self.network.local_facial_extractor
        self.made, self.fused = [], []
        self.hooks = [extractor.register_forward_hook(self.extracted)]
        if name == "tora":
            self.hooks.append(self.network.fuser[0].register_forward_pre_hook(self.fuse))

    def extracted(self, _, args, out):
        self.made.append(weakref.ref(out[0] if isinstance(out, list) else out))

    def fuse(self, _, args):
        self.fused.append(args[1].clone())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def whole(self, conds):
        """Return what the first fuser gets of the whole video, [T, channels, H / 2, W / 2]."""
        flow = conds[0][0][1][BRANCHES][tora.NAME].videos[tora.FLOW]
        return self.network.traj_extractor(flow * pipelines.ours("5b")[0].model.variant.latent_scale)[0]


def test_a_context_window_sees_its_part_of_the_paths():
    conds = steered("tora", length=17)
    with Spied(model("tora"), "tora") as spied:
        run(windows(model("tora")), conds, steps=1)
    whole = spied.whole(conds)
    starts = {
        start for part in spied.fused for start in range(5) if torch.equal(part, whole[start : start + len(part)])
    }
    assert len(starts) >= 2 and all(len(part) <= 4 for part in spied.fused)
    assert all(any(torch.equal(part, whole[start : start + len(part)]) for start in starts) for part in spied.fused)


def test_an_area_sees_its_part_of_the_paths():
    """The right two thirds of the lower half of the picture: latents 2 to 6 of 6, and 2 to 4 of 4."""
    positive, negative, latent = steered("tora")
    (positive,) = nodes.ConditioningSetArea().append(positive, 32, 16, 16, 16, 1.0)
    with Spied(model("tora"), "tora") as spied:
        run(model("tora"), (positive, negative, latent), steps=1)
    whole = spied.whole((negative,))
    assert {part.shape[2:] for part in spied.fused} == {(2, 3), (1, 2)}  # the negative prompt's is whole
    assert all(torch.equal(part, whole[:, :, 1:, 1:]) for part in spied.fused if part.shape[3] == 2)


@pytest.mark.parametrize("name", ["tora", "consisid"])
def test_what_does_not_change_is_made_once_in_a_run(name, monkeypatch):
    """For both prompts and every step, whether they run as one batch or not, for a batch of videos, and not kept."""
    for batch, free in ((1, None), (2, None), (2, 0)):
        if free is not None:
            monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "get_free_memory", lambda *_: 0)
        with Spied(model(name), name) as spied:
            run(model(name), steered(name, batch=batch), steps=3)
            assert len(spied.made) == 1
            run(model(name).clone(), steered(name, other=1), steps=1)
            assert len(spied.made) == 2
        gc.collect()
        assert not any(made() is not None for made in spied.made)


@pytest.mark.parametrize("name", ["tora", "consisid"])
def test_a_cancelled_run_keeps_nothing(name, monkeypatch):
    options = copy.deepcopy(model(name).model_options)

    def cancel(*_):
        raise InterruptProcessingException

    expected = run(model(name), steered(name))
    with Spied(model(name), name) as spied:
        monkeypatch.setattr(latent_preview, "prepare_callback", lambda *_: cancel)
        with pytest.raises(InterruptProcessingException):
            run(model(name), steered(name))
        monkeypatch.undo()
        assert len(spied.made) == 1
        gc.collect()
        assert spied.made[0]() is None
        assert model(name).model_options == options
        assert torch.equal(run(model(name), steered(name)), expected)


def test_prompts_may_hold_paths_of_their_own():
    """Each prompt follows its own paths: as with two runs, one for each."""
    (positive, _, latent), (_, negative, _) = steered("tora"), steered("tora", other=1)
    with Spied(model("tora"), "tora") as spied:
        out = run(model("tora"), (positive, negative, latent), steps=1)
    assert len(spied.made) == 2
    for conds in (steered("tora"), steered("tora", other=1)):
        assert relative_error(out, run(model("tora"), conds, steps=1)) > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_it_chains_with_a_step_cache(name):
    cached = CogVideoXStepCache.execute(model(name), "teacache", 1e9, 0.0, 1.0, "main device").result[0]
    out = run(cached, steered(name), steps=4)
    assert torch.isfinite(out).all()
    assert relative_error(out, run(cached, plain(VARIANT[name]), steps=4)) > 1e-4


def test_branches_stand_beside_each_other():
    both = consisid.load_consisid(model("shader"), file("consisid"), weight_dtype="fp32")
    positive, negative, latent = steered("consisid")
    vae = pipelines.ours("5b-i2v")[2]
    conds = shader.tracking_conditioning(positive, negative, vae, latent, pictures(FRAMES, 5), 1.0, 0.0, 1.0)
    out = run(both, (*conds, latent))
    for alone in ("shader", "consisid"):
        assert relative_error(out, run(model(alone), steered(alone))) > 1e-4


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_model_without_the_branch_is_refused(name, monkeypatch):
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "pre_run", lambda *_: pytest.fail("sampling has begun"))
    with pytest.raises(ValueError, match=r"The prompts hold .* conditioning and the model has no .* on it\. Put Load"):
        run(pipelines.ours(VARIANT[name])[0], steered(name))


@pytest.mark.parametrize("name", ["tora", "shader"])
def test_a_latent_of_another_size_is_refused(name):
    positive, negative, _ = steered(name)
    _, _, latent = plain(VARIANT[name], 17)
    with pytest.raises(ValueError, match=r"conditioning is 48x32 px, 9 frames and the video 48x32 px, 17 frames"):
        run(model(name), (positive, negative, latent))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("tora", "does not fit .*, which has patches in time"),
        ("shader", "belongs to an image-to-video model 64 wide without patches in time"),
        ("consisid", "belongs to a model 64 wide without patches in time"),
    ],
)
def test_a_model_of_another_kind_is_refused(name, match):
    with pytest.raises(ValueError, match=match):
        LOAD[name](pipelines.ours("1.5-i2v")[0], file(name), weight_dtype="fp32")


def test_a_tora_of_another_depth_is_refused(tmp_path):
    deeper = Tora(replace(TORA, blocks=3)).state_dict()
    save_file(deeper, tmp_path / "deep.safetensors")
    with pytest.raises(ValueError, match="This Tora serves 3 blocks 64 wide and .* has 2 blocks 64 wide"):
        tora.load_tora(pipelines.ours("5b")[0], tmp_path / "deep.safetensors")


def test_fusers_and_extractor_may_be_two_files(tmp_path):
    for part in ("fuser", "traj_extractor"):
        tensors = {
            key.removeprefix(f"{part}."): tensor for key, tensor in weights("tora").items() if key.startswith(part)
        }
        save_file(tensors, tmp_path / f"{part}.safetensors")
    base, paths = pipelines.ours("5b")[0], (tmp_path / "fuser.safetensors", tmp_path / "traj_extractor.safetensors")
    assert torch.equal(run(tora.load_tora(base, *paths, "fp32"), steered("tora")), run(model("tora"), steered("tora")))
    with pytest.raises(ValueError, match="only a part of Tora: its extractor is missing"):
        tora.load_tora(base, paths[0])


# --- paths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ('[{"x": 0, "y": 0}, {"x": 24, "y": 16.5}]', [[(0, 0), (128, 132)]]),
        ("[{'x': 0, 'y': 0}, {'x': 24, 'y': 16}]", [[(0, 0), (128, 128)]]),
        ("[[0, 0], [48, 32]]", [[(0, 0), (256, 256)]]),
        ("[[[0, 0], [48, 32]], [[24, 16]]]", [[(0, 0), (256, 256)], [(128, 128)]]),
        ('[[{"x": 0, "y": 0}], [{"x": 24, "y": 16}]]', [[(0, 0)], [(128, 128)]]),
        ('["[{\\"x\\": 0, \\"y\\": 0}]", "[[24, 16]]"]', [[(0, 0)], [(128, 128)]]),
        (['[{"x": 0, "y": 0}]', "[[24, 16]]"], [[(0, 0)], [(128, 128)]]),
    ],
)
def test_coordinates_of_editors_are_read(text, paths):
    assert tora.read_paths(text, WIDTH, HEIGHT) == paths


OTHER_TEXT = ["", "left", "[]", "[[]]", "{}", "[1, 2]", '[{"x": 1}]', "[[1, 2, 3]]", "[[[[1, 2], [3, 4]]]]", "null"]
# Numbers that no picture has, and what is none.
OTHER_TEXT += ["[[1e308, 1], [2, 2]]", f"[[1{'0' * 400}, 1], [2, 2]]", "[[NaN, 1]]", "[[true, 1]]", "[" * 100_000]


@pytest.mark.parametrize("text", OTHER_TEXT, ids=range(len(OTHER_TEXT)))
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match="The coordinates are no paths: they must be JSON"):
        tora.read_paths(text, WIDTH, HEIGHT)


def test_the_paths_are_drawn_and_points_outside_move_to_the_edge():
    positive, negative, latent = plain("5b")
    vae = pipelines.ours("5b")[2]
    outside = "[[-100, -100], [4000, 4000]]"
    made = tora.trajectory(positive, negative, vae, latent, outside, 1.0, 0.0, 1.0, image=torch.zeros(1, 32, 48, 3))
    preview = made[2]
    assert preview.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert preview[0, 0, 0].sum() > 0.5 and preview[-1, -1, -1].sum() > 0.5  # the dots at both ends
    assert not torch.equal(preview[0], preview[-1])


def test_an_optical_flow_video_takes_the_place_of_paths():
    positive, negative, latent = plain("5b")
    vae = pipelines.ours("5b")[2]
    args = (positive, negative, vae, latent)
    flow = pictures(FRAMES)
    made = tora.trajectory(*args, "", 1.0, 0.0, 1.0, optical_flow=flow)
    assert torch.equal(made[2], flow)
    assert relative_error(run(model("tora"), (*made[:2], latent)), run(model("tora"), steered("tora"))) > 1e-4
    with pytest.raises(ValueError, match="The optical flow has 5 frames and the video 9"):
        tora.trajectory(*args, "", 1.0, 0.0, 1.0, optical_flow=flow[:5])


# --- tracking and identity -----------------------------------------------------------------------------------------


def test_a_tracking_video_of_another_length_is_refused():
    positive, negative, latent = plain("5b-i2v")
    vae = pipelines.ours("5b-i2v")[2]
    with pytest.raises(ValueError, match="The tracking video has 5 frames and the video 9"):
        shader.tracking_conditioning(positive, negative, vae, latent, pictures(5), 1.0, 0.0, 1.0)


def test_an_identity_is_read_from_a_pair_a_mapping_and_a_file(tmp_path):
    embedding, maps = identity()
    stacked = {"id_cond": embedding, "id_vit_hidden": torch.stack(maps)}
    numbered = {"id_cond": embedding, **{f"id_vit_hidden.{index}": part for index, part in enumerate(maps)}}
    torch.save({"id_cond": embedding, "id_vit_hidden": torch.cat(maps)}, tmp_path / "face.pt")
    save_file(numbered, tmp_path / "face.safetensors")
    for source in ((embedding, maps), stacked, numbered, tmp_path / "face.pt", tmp_path / "face.safetensors"):
        read = consisid.read_identity(source)
        assert torch.equal(read[0], embedding) and torch.equal(read[1], torch.cat(maps)[None])


@pytest.mark.parametrize("source", [None, {}, (1, 2), torch.zeros(3)])
def test_anything_else_is_no_identity(source):
    with pytest.raises(ValueError, match="The identity holds no face features"):
        consisid.read_identity(source)


def test_an_identity_of_other_models_is_refused_before_sampling(monkeypatch):
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "pre_run", lambda *_: pytest.fail("sampling has begun"))
    vae, prompts = pipelines.ours("5b-i2v")[2], pipelines.prompts("5b-i2v")
    wrong = torch.zeros(1, 20), torch.zeros(1, 2, 7, 32)
    made = consisid.identity_to_video(*prompts, vae, WIDTH, HEIGHT, FRAMES, 1, pictures(1), wrong, 1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="identity holds an embedding 20 wide .* and this ConsisID reads 24, 2 and 32"):
        run(model("consisid"), (made.positive, made.negative, made.latent))


@pytest.mark.parametrize("name", NAMES)
def test_a_video_of_one_frame_is_steered(name):
    out = run(model(name), steered(name, length=1))
    assert relative_error(out, run(model(name), plain(VARIANT[name], 1))) > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_keeps_a_branch_to_its_part(name):
    """One prompt with it and one without, each in its half, in one step at guidance 1."""
    (with_it, negative, latent), (without, *_) = steered(name), plain(VARIANT[name])
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[:, :, : WIDTH // 2] = 1
    (left,) = nodes.ConditioningSetMask().append(with_it, mask, "default", 1.0)
    (right,) = nodes.ConditioningSetMask().append(without, 1 - mask, "default", 1.0)

    def step(positive):
        out = nodes.KSampler().sample(model(name), SEED, 1, 1.0, "euler", "simple", positive, negative, latent, 1.0)
        return out[0]["samples"]

    both, half = step(left + right), latent["samples"].shape[-1] // 2
    assert relative_error(both[..., :half], step(with_it)[..., :half]) < 1e-5
    assert relative_error(both[..., half:], step(without)[..., half:]) < 1e-5
    assert relative_error(both[..., :half], step(without)[..., :half]) > 1e-4


def test_pictures_with_alpha_and_of_other_sizes_are_taken():
    vae, prompts, picture = pipelines.ours("5b-i2v")[2], pipelines.prompts("5b-i2v"), torch.rand(1, 50, 70, 4)
    size = (WIDTH, HEIGHT, FRAMES, 2)
    face = (identity(), 1.0, 0.0, 1.0)
    made = consisid.identity_to_video(*prompts, vae, *size, picture, *face, face_keypoints=picture)
    assert torch.isfinite(run(model("consisid"), (made.positive, made.negative, made.latent))).all()
    video, steering = torch.rand(FRAMES, 50, 70, 4), (1.0, 0.0, 1.0)
    conds = shader.tracking_conditioning(*plain("5b-i2v")[:2], vae, made.latent, video, *steering)
    assert torch.isfinite(run(model("shader"), (*conds, made.latent))).all()
    args = *plain("5b")[:2], pipelines.ours("5b")[2], plain("5b")[2]
    for options in (dict(optical_flow=video), dict(image=picture), dict(image=video[:3])):
        assert tora.trajectory(*args, PATHS, *steering, **options)[2].shape == (FRAMES, HEIGHT, WIDTH, 3)


def test_key_points_lie_behind_the_first_frame():
    vae, prompts = pipelines.ours("5b-i2v")[2], pipelines.prompts("5b-i2v")
    args = (*prompts, vae, WIDTH, HEIGHT, FRAMES, 1, pictures(1), identity(), 1.0, 0.0, 1.0)
    known = [
        consisid.identity_to_video(*args, face_keypoints=points).positive[0][1]["concat_latent_image"]
        for points in (None, pictures(1, 4))
    ]
    assert torch.equal(known[0][:, :, 0], known[1][:, :, 0]) and torch.equal(known[0][:, :, 2:], known[1][:, :, 2:])
    assert known[0][:, :, 1].abs().max() == 0 and known[1][:, :, 1].abs().max() > 0
