"""CogVideoX's ControlNet behind the stock Apply ControlNet: what it adds, when, to which frames, what it refuses."""

import copy
import gc
import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path

import comfy.controlnet
import comfy.model_patcher
import comfy.sampler_helpers
import folder_paths
import latent_preview
import node_helpers
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode
from pack.cogvideox.controlnet import CogVideoXControlNet
from pack.cogvideox.variants import ControlNetConfig
from pack.demo import tiny_pipeline
from pack.nodes.host.conditioning import empty_latent
from pack.nodes.host.controlnet import load_controlnet
from pack.nodes.loaders import CogVideoXLoadControlNet
from pack.nodes.patches import CogVideoXStepCache
from safetensors.torch import save_file

import nodes

from . import pipelines
from .pipelines import relative_error

SEED, STEPS, CFG, WIDTH, HEIGHT, FRAMES = 3, 4, 6.0, 32, 32, 9
LAYERS = 1  # of two in the tiny models

pytestmark = pytest.mark.usefixtures("inference")


@cache
def file(variant: str = "5b", seed: int = 7, out_proj_dim: int | None = None) -> str:
    """Return a ControlNet file for the tiny model of `variant`."""
    body = replace(tiny_pipeline.VARIANTS[variant], in_channels=64, num_layers=LAYERS)
    shapes = tiny_pipeline.module_shapes(CogVideoXControlNet(ControlNetConfig(body, out_proj_dim=out_proj_dim)))
    path = Path(pipelines.WRITTEN.name, f"controlnet-{variant}-{seed}-{out_proj_dim}.safetensors")
    save_file(tiny_pipeline.random_weights(shapes, seed), path)
    return str(path)


@cache
def control_net(variant: str = "5b", seed: int = 7):
    return load_controlnet(file(variant, seed), "fp32")


def video(frames=FRAMES, seed=0, width=WIDTH, height=HEIGHT):
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(seed))


def apply(conds, net, image, strength=1.0, start=0.0, end=1.0):
    return nodes.ControlNetApplyAdvanced().apply_controlnet(*conds, net, image, strength, start, end)


def run(model, conds, steps=STEPS, cfg=CFG, batch=1, length=FRAMES, latent=None):
    latent = latent or empty_latent(WIDTH, HEIGHT, length, batch)
    out = nodes.KSampler().sample(model, SEED, steps, cfg, "euler", "simple", *conds, latent, 1.0)
    return out[0]["samples"]


def controlled(variant="5b", strength=1.0, start=0.0, end=1.0, image=None, net=None, **kwargs):
    conds = apply(
        pipelines.prompts(variant),
        net or control_net(variant),
        video() if image is None else image,
        strength,
        start,
        end,
    )
    return run(pipelines.ours(variant)[0], conds, **kwargs)


def plain(variant="5b", **kwargs):
    return run(pipelines.ours(variant)[0], pipelines.prompts(variant), **kwargs)


@pytest.mark.parametrize("variant", ["2b", "5b"])
def test_a_control_video_changes_the_video_and_leaves_nothing_behind(variant):
    model, net = pipelines.ours(variant)[0], control_net(variant)
    before, options = plain(variant), copy.deepcopy(model.model_options)
    first = controlled(variant)
    assert 1e-3 < relative_error(first, before)
    assert torch.equal(controlled(variant), first)
    assert not torch.allclose(controlled(variant, image=video(seed=1)), first)
    assert torch.equal(plain(variant), before)
    assert model.model_options == options
    assert net.cond_hint is None and net.main is None and net.cond_hint_original is None


def test_the_states_of_a_step_are_those_of_the_network():
    """One step at guidance 1: the host's plumbing adds exactly the network's states to the model's blocks."""
    model, net = pipelines.ours("5b")[0], control_net()
    conds = apply(pipelines.prompts("5b"), net, video(), 0.6)
    seen = {}

    def capture(apply_model, args):
        seen.update(args)
        return apply_model(args["input"], args["timestep"], **args["c"])

    spied = model.clone()
    spied.set_model_unet_function_wrapper(capture)
    run(spied, conds, steps=1, cfg=1.0)
    (state,) = seen["c"]["control"]["output"]
    network, sampling, main = net.control_model, model.model.model_sampling, model.model.diffusion_model
    x = sampling.calculate_input(seen["timestep"], seen["input"])
    context = seen["c"]["c_crossattn"]
    hint = network.encode_hint(video().movedim(-1, 1).movedim(0, 1)[None] * 2 - 1)
    tables = main.tables(main.token_grid(x.shape[2:]), context.shape[1], x.device, x.dtype, None)
    (expected,) = network(x, hint, sampling.timestep(seen["timestep"]), context, tables)
    assert relative_error(state, expected * 0.6) <= 1e-6


def test_strength_and_percents_are_followed():
    before, full = plain(), controlled()
    assert torch.equal(controlled(strength=0.0), before)
    assert 0 < relative_error(controlled(strength=0.1), before) < relative_error(full, before)
    assert not torch.equal(controlled(end=0.5), full)
    assert not torch.equal(controlled(end=0.5), before)
    assert not torch.equal(controlled(start=0.5), controlled(end=0.5))
    assert torch.equal(controlled(start=0.999), before)


def test_several_are_chained():
    model, prompts = pipelines.ours("5b")[0], pipelines.prompts("5b")
    both = apply(apply(prompts, control_net(seed=7), video(), 0.5), control_net(seed=8), video(seed=1), 0.5)
    out = run(model, both)
    alone = [controlled(net=control_net(seed=seed), image=video(seed=seed - 7), strength=0.5) for seed in (7, 8)]
    assert all(relative_error(out, one) > 1e-3 for one in alone)
    # the same network twice at half strength is once at full strength
    twice = apply(apply(prompts, control_net(), video(), 0.5), control_net(), video(), 0.5)
    assert relative_error(run(model, twice), controlled()) <= 1e-4


def test_one_image_serves_every_frame():
    image = video(1)
    assert torch.equal(controlled(image=image), controlled(image=image.expand(FRAMES, -1, -1, -1)))


def test_another_size_is_scaled_to_the_video():
    image = video(1, width=1, height=1)
    assert (
        relative_error(
            controlled(image=image.expand(FRAMES, 2 * HEIGHT, 2 * WIDTH, 3)),
            controlled(image=image.expand(FRAMES, HEIGHT, WIDTH, 3)),
        )
        <= 1e-2
    )  # the scaled one is rounded to 8 bits


def test_a_batch_shares_a_control_video_or_has_one_each():
    a, b = video(seed=0), video(seed=1)
    shared = controlled(image=a, batch=2)
    each = controlled(image=torch.cat((a, b)), batch=2)
    assert relative_error(each[0], shared[0]) <= 1e-5
    assert relative_error(each[1], controlled(image=b, batch=2)[1]) <= 1e-5
    assert relative_error(each[1], shared[1]) > 1e-3


def test_prompts_one_by_one_are_the_batch(monkeypatch):
    together = controlled(batch=2)
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "get_free_memory", lambda *_: 0)
    assert relative_error(controlled(batch=2), together) <= 1e-4


@pytest.mark.parametrize("overlap", [0, 4])
def test_a_context_window_sees_its_part_of_the_control_video(overlap):
    """Two static windows without overlap and anchor are two videos with each half of the control."""
    model = pipelines.ours("5b")[0]
    seen = []
    network = control_net().control_model
    length = 17  # 5 latents in windows of 3
    windowed = WanContextWindowsManualNode.execute(
        model, 9, overlap, "standard_static", 1, False, "pyramid", False, False, 0
    ).result[0]
    conds = apply(pipelines.prompts("5b"), control_net(), video(length))
    full = network.encode_hint(video(length).movedim(-1, 1).movedim(0, 1)[None] * 2 - 1)
    hook = network.register_forward_pre_hook(lambda _, args: seen.append((args[0].shape[2], args[1])))
    try:
        out = run(windowed, conds, steps=2, length=length)
    finally:
        hook.remove()
    assert torch.isfinite(out).all()
    assert all(hint.shape[2] == frames < full.shape[2] for frames, hint in seen)
    parts = [full[:, :, start : start + frames] for frames, _ in seen[:1] for start in range(5 - frames + 1)]
    assert all(any(torch.allclose(hint[:1], part, atol=1e-5) for part in parts) for frames, hint in seen if frames == 3)
    assert len({tuple(hint[0, 0, :, 0, 0].tolist()) for _, hint in seen}) >= 2  # windows see different parts


def test_the_control_is_part_of_what_a_step_cache_keeps():
    model = CogVideoXStepCache.execute(pipelines.ours("5b")[0], "teacache", 1e9, 0.0, 1.0, "main device").result[0]
    conds = apply(pipelines.prompts("5b"), control_net(), video())
    out = run(model, conds, steps=6)
    assert torch.isfinite(out).all()
    assert relative_error(out, run(model, pipelines.prompts("5b"), steps=6)) > 1e-3


def test_a_conditioning_mask_keeps_the_control_to_its_part():
    """The stock way to masks: the controlled prompt where the mask is, the plain one elsewhere."""
    (prompt, negative), net = pipelines.prompts("5b"), control_net()
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[:, :, : WIDTH // 2] = 1
    positive, _ = apply((prompt, negative), net, video())
    set_mask = nodes.ConditioningSetMask()
    (left,) = set_mask.append(positive, mask, "default", 1.0)
    (right,) = set_mask.append(prompt, 1 - mask, "default", 1.0)
    model = pipelines.ours("5b")[0]
    out = run(model, (left + right, negative), steps=1, cfg=1.0)
    half = out.shape[-1] // 2
    full, none = run(model, (positive, negative), steps=1, cfg=1.0), run(model, (prompt, negative), steps=1, cfg=1.0)
    assert relative_error(out[..., :half], full[..., :half]) <= 1e-5
    assert relative_error(out[..., half:], none[..., half:]) <= 1e-5
    assert relative_error(out[..., :half], none[..., :half]) > 1e-3


@pytest.mark.parametrize(("dtype", "bound"), [("bf16", 1e-2), ("fp8_e4m3fn", 4e-2), ("fp8_e5m2", 9e-2)])
def test_narrow_weights_steer_nearly_as_wide_ones(dtype, bound):
    """Measured: 2.3e-3, 1.7e-2 and 3.8e-2 of the latents after one step at guidance 6."""
    error = relative_error(controlled(net=load_controlnet(file(), dtype), steps=1), controlled(steps=1))
    assert 0 < error < bound


def test_a_quantised_file_is_read(tmp_path):
    narrow = load_controlnet(file(), "fp8_e4m3fn")
    state_dict = narrow.control_model.state_dict()
    assert any(key.endswith("comfy_quant") for key in state_dict)
    save_file({key: tensor.contiguous() for key, tensor in state_dict.items()}, tmp_path / "fp8.safetensors")
    again = load_controlnet(str(tmp_path / "fp8.safetensors"))
    assert relative_error(controlled(net=again, steps=1), controlled(net=narrow, steps=1)) <= 1e-2


def test_the_host_manages_the_weights_and_knows_what_the_states_take():
    net = control_net()
    (conds, _) = apply(pipelines.prompts("5b"), net, video())
    applied = conds[0][1]["control"]
    assert applied.get_models() == [net.control_model_wrapped]
    assert isinstance(net.control_model_wrapped, comfy.model_patcher.ModelPatcher)
    tokens, model = 3 * 2 * 2, pipelines.ours("5b")[0].model
    for videos in (1, 2):
        applied.check_video(model, torch.Size((videos, 16, 3, HEIGHT // 8, WIDTH // 8)))
        assert applied.inference_memory_requirements(torch.bfloat16) == videos * 2 * LAYERS * tokens * 64 * 2
    (conds, _) = apply(pipelines.prompts("5b"), net, video(1, width=16, height=16))  # of one frame, and smaller
    conds[0][1]["control"].check_video(model, torch.Size((1, 16, 3, HEIGHT // 8, WIDTH // 8)))
    assert conds[0][1]["control"].inference_memory_requirements(torch.bfloat16) == 2 * LAYERS * tokens * 64 * 2
    other = applied.deepclone_multigpu(torch.device("cpu"), autoregister=True)
    assert (
        other.control_model is not net.control_model and applied.get_instance_for_device(torch.device("cpu")) is other
    )


def test_a_cancelled_run_leaves_nothing_to_the_next(monkeypatch):
    """One image for all frames: what was encoded of it for a long video does not fit a short one."""
    conds = apply(pipelines.prompts("5b"), control_net(), video(1))
    expected, model = run(pipelines.ours("5b")[0], conds), pipelines.ours("5b")[0]

    def cancel(*_):
        raise InterruptProcessingException

    with monkeypatch.context() as patch, pytest.raises(InterruptProcessingException):
        patch.setattr(latent_preview, "prepare_callback", lambda *_: cancel)
        run(model, conds, length=17)
    control = conds[0][0][1]["control"]
    assert control.cond_hint is None and control.main is None and control.model_sampling_current is None
    assert torch.equal(run(model, conds), expected)


def test_an_area_sees_its_part_of_the_control_video():
    """Of the picture, the right half; of the frames, the last two of three latents."""
    network = control_net().control_model
    full = network.encode_hint(video().movedim(-1, 1).movedim(0, 1)[None] * 2 - 1)
    positive, negative = apply(pipelines.prompts("5b"), control_net(), video())
    areas = {(4, 2, 0, 2): full[..., 2:], (2, 4, 4, 1, 0, 0): full[:, :, 1:]}
    areas["percentage", 1.0, 1.0, 0.5, 0.0, 0.0, 0.5] = full[..., 2:]
    for area, part in areas.items():
        seen = []
        hook = network.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[1][:1]))
        try:
            placed = node_helpers.conditioning_set_values(positive, {"area": area})
            run(pipelines.ours("5b")[0], (placed, negative), steps=1)
        finally:
            hook.remove()
        assert {hint.shape for hint in seen} == {part.shape, full.shape}  # the negative prompt's is whole
        assert all(torch.equal(hint, part) for hint in seen if hint.shape == part.shape)


def test_the_older_apply_node_is_for_both_prompts():
    """It puts the network on the negative prompt when the run begins; they stay one batch."""
    positive, negative = pipelines.prompts("5b")
    (positive,) = nodes.ControlNetApply().apply_controlnet(positive, control_net(), video(), 1.0)
    assert relative_error(run(pipelines.ours("5b")[0], (positive, negative)), controlled()) <= 1e-5


def test_a_network_let_go_of_leaves_memory():
    net = load_controlnet(file(), "fp32")
    controlled(net=net, steps=1)
    gone = weakref.ref(net.control_model)
    comfy.model_management.unload_all_models()
    del net
    gc.collect()
    assert gone() is None


def test_the_node_loads_what_lies_in_the_folder(tmp_path, monkeypatch):
    Path(tmp_path / "mine.safetensors").write_bytes(Path(file()).read_bytes())
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "controlnet", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.clear()
    (net,) = CogVideoXLoadControlNet.execute("mine.safetensors").result
    assert isinstance(net, comfy.controlnet.ControlBase)
    with pytest.raises(ValueError, match=r"There is no file named \.\./x\.safetensors in models/controlnet"):
        CogVideoXLoadControlNet.execute("../x.safetensors")


# --- what is refused, before sampling ------------------------------------------------------------------------------


def refused(monkeypatch, match, use):
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "pre_run", lambda *_: pytest.fail("sampling has begun"))
    with pytest.raises(ValueError, match=match):
        use()


def test_a_control_video_of_another_length_is_refused(monkeypatch):
    refused(monkeypatch, "control video has 5 frames and the video 9", lambda: controlled(image=video(5)))


def test_a_control_video_of_invalid_numbers_is_refused(monkeypatch):
    refused(monkeypatch, "The control video holds invalid numbers", lambda: controlled(image=video() * torch.nan))


def test_a_control_video_without_colours_is_refused(monkeypatch):
    refused(monkeypatch, "control video is empty or no RGB picture", lambda: controlled(image=video()[..., :1]))


def test_a_model_of_another_width_is_refused(monkeypatch):
    wide = load_controlnet(file(out_proj_dim=128), "fp32")
    refused(monkeypatch, "was made for a model 128 wide and the model is", lambda: controlled(net=wide))


def test_a_model_with_patches_in_time_is_refused(monkeypatch):
    model, prompts = pipelines.ours("1.5")[0], pipelines.prompts("1.5")
    conds = apply(prompts, control_net(), video())
    refused(monkeypatch, "takes no ControlNet: there is none for its patches in time", lambda: run(model, conds))


def test_a_control_net_of_another_family_is_refused(monkeypatch):
    class Other(comfy.controlnet.ControlBase):
        def copy(self):
            other = Other()
            self.copy_to(other)
            return other

    refused(monkeypatch, "got a ControlNet of another model family", lambda: controlled(net=Other()))


def test_another_model_is_refused():
    (positive, _) = apply(pipelines.prompts("5b"), control_net(), video())
    control = positive[0][1]["control"]
    # The host asks for memory before it tells a ControlNet of the model.
    _, memory = comfy.sampler_helpers.get_additional_models({"positive": [{"control": control}]}, torch.bfloat16)
    assert memory == 0
    with pytest.raises(ValueError, match=r"steers .* and got another model \(Linear\)"):
        control.pre_run(torch.nn.Linear(1, 1), lambda percent: percent)
