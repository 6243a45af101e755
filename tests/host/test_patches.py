"""Step cache, guidance window, attention, Enhance-A-Video: exact where off, at work where on, gone afterwards."""

import copy
import gc
import logging
import math
import weakref
from contextlib import contextmanager

import comfy.ldm.modules.attention as host_attention
import comfy.model_patcher
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from comfy_extras.nodes_torch_compile import TorchCompileModel
from pack.cogvideox import patches as arithmetic
from pack.cogvideox.variants import RELEASED
from pack.nodes.host import patches
from pack.nodes.host.conditioning import empty_latent
from pack.nodes.patches import CogVideoXAttention, CogVideoXEnhanceVideo, CogVideoXGuidanceWindow, CogVideoXStepCache
from pack.nodes.sampling import CogVideoXDynamicCFG

import nodes

from . import pipelines
from .pipelines import relative_error

SEED, STEPS, CFG, WIDTH, HEIGHT, FRAMES = 3, 10, 6.0, 32, 32, 9
MODES = arithmetic.STEP_CACHE_MODES
# In small random models every step changes as much again; these leave out some of ten steps.
THRESHOLD = {"teacache": 1500.0, "first block cache": 1.1}
ALL = 1e9

pytestmark = pytest.mark.usefixtures("inference")


def run(model, steps=STEPS, cfg=CFG, batch=1, length=FRAMES, sampler="euler", variant="5b"):
    latent = empty_latent(WIDTH, HEIGHT, length, batch)
    positive, negative = pipelines.prompts(variant)
    out = nodes.KSampler().sample(model, SEED, steps, cfg, sampler, "simple", positive, negative, latent, 1.0)
    return out[0]["samples"]


def cached(model, mode="teacache", threshold=None, start=0.0, end=1.0, device="main device"):
    threshold = THRESHOLD[mode] if threshold is None else threshold
    return CogVideoXStepCache.execute(model, mode, threshold, start, end, device).result[0]


def attending(model, name):
    return CogVideoXAttention.execute(model, name).result[0]


@host_attention.wrap_attn
def in_eight_bits(q, k, v, heads, **kwargs):
    """Attend as SageAttention does to queries and keys: rounded to eight bits token by token."""
    scales = [x.abs().amax(-1, keepdim=True).clamp(min=1e-6) / 127 for x in (q, k)]
    q, k = ((x / scale).round() * scale for x, scale in zip((q, k), scales, strict=True))
    return host_attention.attention_pytorch(q, k, v, heads, **kwargs)


@pytest.fixture(autouse=True)
def sage(monkeypatch):
    """Let the host have an eight-bit kernel, which it offers where the package is installed."""
    monkeypatch.setitem(host_attention.REGISTERED_ATTENTION_FUNCTIONS, "sage", in_eight_bits)


@contextmanager
def counted(model, block=-1):
    """Count the rows of latents that pass a block, the last one unless told."""
    rows = []
    module = model.model.diffusion_model.transformer_blocks[block]
    hook = module.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        yield rows
    finally:
        hook.remove()


@pytest.fixture
def one_by_one(monkeypatch):
    """Leave no memory for positive and negative in one batch."""
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "get_free_memory", lambda *_: 0)


@pytest.fixture
def model():
    return pipelines.ours("5b")[0]


# --- all of them ---------------------------------------------------------------------------------------------------

OFF = {
    "step cache": lambda model: cached(model, threshold=0.0),
    "first block cache": lambda model: cached(model, "first block cache", 0.0),
    "guidance window": lambda model: CogVideoXGuidanceWindow.execute(model, 0.0, 1.0).result[0],
    "attention": lambda model: attending(model, "pytorch"),
    "enhance": lambda model: CogVideoXEnhanceVideo.execute(model, 0.0, 0.0, 1.0).result[0],
}
ON = {
    "step cache": lambda model: cached(model),
    "first block cache": lambda model: cached(model, "first block cache"),
    "guidance window": lambda model: CogVideoXGuidanceWindow.execute(model, 0.0, 0.5).result[0],
    "attention": lambda model: attending(model, "sage"),
    "enhance": lambda model: CogVideoXEnhanceVideo.execute(model, 4.0, 0.0, 1.0).result[0],
}


@pytest.mark.parametrize("name", OFF)
def test_off_is_exact(model, name):
    assert torch.equal(run(OFF[name](model), 4), run(model, 4))


@pytest.mark.parametrize("name", ON)
def test_a_patch_changes_its_clone_and_leaves_nothing_behind(model, name):
    exact = run(model)
    options = copy.deepcopy(model.model_options)
    on = ON[name](model)
    first = run(on)
    assert 1e-4 < relative_error(first, exact) < 1
    assert torch.equal(run(on), first)  # nothing of a run is left for the next
    assert torch.equal(run(on.clone()), first)
    assert torch.equal(run(model), exact)
    assert model.model_options == options


@pytest.mark.parametrize("use", [ON[name] for name in ON], ids=ON)
def test_another_model_is_refused(use):
    device = torch.device("cpu")
    other = comfy.model_patcher.ModelPatcher(torch.nn.Linear(1, 1), load_device=device, offload_device=device)
    with pytest.raises(ValueError, match=r"needs a CogVideoX model and got another one \(Linear\)\. Connect the MODEL"):
        use(other)


@pytest.mark.parametrize(
    "use",
    [
        lambda model: cached(model, start=0.5, end=0.5),
        lambda model: CogVideoXGuidanceWindow.execute(model, 0.8, 0.2),
        lambda model: CogVideoXEnhanceVideo.execute(model, 1.0, 0.8, 0.2),
    ],
)
def test_an_empty_window_is_refused(model, use):
    with pytest.raises(ValueError, match=r"start_percent is 0\.\d and end_percent 0\.\d, so nothing lies between"):
        use(model)


def test_they_work_together_and_with_dynamic_guidance(model):
    for name in ("attention", "enhance", "step cache", "guidance window"):
        model = ON[name](model)
    model = CogVideoXDynamicCFG.execute(model, "cosine over steps").result[0]
    with counted(model) as rows:
        out = run(model)
    assert torch.isfinite(out).all()
    assert {1, 2} >= set(rows) and 0 < len(rows) < STEPS


# --- step cache ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_skipped_steps_are_not_computed_and_said(model, mode, caplog):
    first_block = mode == "first block cache"
    with counted(model) as rows, counted(model, 0) as first, caplog.at_level(logging.INFO):
        run(cached(model, mode))
    assert 1 < len(rows) < STEPS and set(rows) == {2}
    assert len(first) == (STEPS if first_block else len(rows))
    (line,) = [record.getMessage() for record in caplog.records if "Step Cache" in record.getMessage()]
    assert line == f"CogVideoX Step Cache ({mode}): {STEPS - len(rows)} of {STEPS} steps skipped."


@pytest.mark.parametrize("mode", MODES)
def test_first_and_last_step_are_computed_whatever_the_threshold(model, mode):
    with counted(model) as rows:
        run(cached(model, mode, ALL))
    assert len(rows) == 2


def test_a_higher_threshold_skips_more(model):
    computed = []
    for threshold in (10.0, 1000.0, 3000.0, ALL):
        with counted(model) as rows:
            run(cached(model, threshold=threshold))
        computed.append(len(rows))
    assert computed == sorted(computed, reverse=True) and len(set(computed)) > 2


@pytest.mark.parametrize("mode", MODES)
def test_prompts_one_by_one_are_those_of_a_batch(model, mode, one_by_one, monkeypatch):
    with counted(model) as rows:
        apart = run(cached(model, mode))
    assert set(rows) == {1} and len(rows) % 2 == 0  # positive and negative skip the same steps
    monkeypatch.undo()
    with counted(model) as together:
        assert relative_error(run(cached(model, mode)), apart) <= 1e-4
    assert len(together) == len(rows) / 2


@pytest.mark.parametrize("mode", MODES)
def test_videos_of_a_batch_keep_their_own_cache(model, mode):
    with counted(model) as rows:
        both = run(cached(model, mode), batch=2)
    assert set(rows) == {4} and len(rows) < STEPS
    # In the batch the first video is the one that is made alone, as far as the two skip the same steps.
    if mode == "teacache":
        assert relative_error(both[:1], run(cached(model, mode))) <= 1e-4


@pytest.mark.parametrize("mode", MODES)
def test_every_context_window_has_its_own_cache(model, mode):
    windowed = WanContextWindowsManualNode.execute(model, 9, 5, "standard_static", 1, False, "pyramid", False).result[0]
    exact = run(windowed, length=25)
    with counted(model) as rows:
        run(windowed, length=25)
    windows = len(rows) // STEPS
    assert windows > 1
    tiny = 1e-12  # the cache is there and never used
    assert torch.equal(run(cached(windowed, mode, tiny), length=25), exact)
    with counted(model) as rows:
        out = run(cached(windowed, mode, ALL), length=25)
    assert len(rows) == 2 * windows
    # Residuals of other windows would move frames that do not overlap further than skipping does.
    assert relative_error(out, exact) < 1


def test_blocks_patched_for_another_guidance_have_their_own_cache(model):
    skipping = SkipLayerGuidanceDiT.execute(model, 3.0, 0.0, 1.0, double_layers="1", single_layers="").result[0]
    tiny = cached(skipping, threshold=1e-12)
    assert torch.equal(run(tiny), run(skipping))
    guided = run(cached(skipping, threshold=ALL))
    assert relative_error(guided, run(cached(model, threshold=ALL))) > 1e-4


def test_nothing_is_skipped_outside_the_window(model):
    with counted(model) as rows:
        run(cached(model, threshold=ALL, start=0.3, end=0.69))
    # 4 of 10 steps lie between, at 30, 40, 50 and 60 %, and the first of them fills the cache
    assert len(rows) == STEPS - 3


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpmpp_2m_sde", "euler_ancestral"])
def test_other_samplers_finish(model, sampler):
    with counted(model) as rows:
        out = run(cached(model), sampler=sampler)
    assert torch.isfinite(out).all() and len(rows) >= 2


def test_a_noise_level_drops_what_the_last_one_did_not_meet(model):
    cache = patches.StepCache(patches.StepCacheSettings("teacache", 1.0, patches.Window(0, 1), "main device", ()), 0.1)

    def evaluate(sigma, *keys):
        cache.begin(model.model, torch.tensor([sigma]))
        cache.met.update(keys)
        cache.residuals.update({key: torch.zeros(1) for key in keys})
        return set(cache.residuals)

    assert evaluate(3.0, "a") == {"a"}
    assert evaluate(3.0, "b") == {"a", "b"}  # another window, or a sampler that looks twice
    assert evaluate(2.0, "b") == {"a", "b"}
    assert evaluate(1.0, "b") == {"b"}
    assert evaluate(2.0, "c") == {"c"}  # back to more noise: begin anew
    assert cache.evaluations == 5


def test_moving_context_windows_do_not_pile_up(model, monkeypatch):
    moving = WanContextWindowsManualNode.execute(model, 17, 1, "standard_uniform", 1, False, "pyramid", False).result[0]
    held, seen, keep = [], set(), patches.StepCache.keep

    def spy(self, residual, options):
        keep(self, residual, options)
        held.append(len(self.residuals))
        seen.update(self.keys(options))

    monkeypatch.setattr(patches.StepCache, "keep", spy)
    assert torch.isfinite(run(cached(moving), length=81)).all()
    assert max(held) < len(seen)


@pytest.mark.parametrize("device", patches.CACHE_DEVICES)
@pytest.mark.parametrize("fails", [False, True])
def test_the_cache_is_freed_when_the_run_ends(model, device, fails, monkeypatch):
    held = []
    kept = patches.StepCache.kept

    def spy(self, tensor):
        out = kept(self, tensor)
        held.append(weakref.ref(out))
        if fails and len(held) > 3:
            raise InterruptedError
        return out

    monkeypatch.setattr(patches.StepCache, "kept", spy)
    if fails:
        with pytest.raises(InterruptedError):
            run(cached(model, device=device))
    else:
        run(cached(model, device=device))
    gc.collect()
    assert held and all(tensor() is None for tensor in held)


def test_compiled_blocks_are_skipped_as_well(model):
    plain = cached(model)
    with counted(model) as rows:
        expected = run(plain)
    torch.compiler.reset()
    try:
        compiled = TorchCompileModel.execute(plain, "eager").result[0]
        torch._dynamo.utils.counters.clear()
        assert relative_error(run(compiled), expected) <= 1e-4
        frames = torch._dynamo.utils.counters["frames"]["ok"]
        assert frames > 1
        assert relative_error(run(compiled), expected) <= 1e-4
        assert torch._dynamo.utils.counters["frames"]["ok"] == frames  # the next run compiles nothing anew
    finally:
        torch.compiler.reset()
    assert 1 < len(rows) < STEPS


@pytest.mark.parametrize("variant", RELEASED, ids=lambda variant: variant.name)
def test_released_models_have_their_polynomial(variant):
    assert arithmetic.teacache_model(variant.transformer) == (variant, True)


@pytest.mark.parametrize(
    ("variant", "nearest"),
    [
        ("2b", "CogVideoX-2B"),
        ("5b", "CogVideoX-5B"),
        ("5b-i2v", "CogVideoX-5B"),
        ("1.5", "CogVideoX1.5-5B"),
        ("1.5-i2v", "CogVideoX1.5-5B-I2V"),
    ],
)
def test_another_model_takes_the_nearest_polynomial_and_says_so(variant, nearest, shown_on):
    shown = shown_on(CogVideoXStepCache)
    model = pipelines.ours(variant)[0]
    cached(model, "first block cache")
    assert shown == []
    cached(model)
    ((text, id),) = shown
    assert id == "7" and text.endswith(f"that of {nearest} is used.") and model.model.variant.name in text


def test_polynomial_and_change():
    assert arithmetic.polynomial((2.0, 0.0, -3.0), 4.0) == 29
    assert arithmetic.relative_change(torch.tensor([3.0, -1.0]), torch.tensor([2.0, -2.0])) == 0.5


# --- guidance window -----------------------------------------------------------------------------------------------


def windowed(model, start, end):
    return CogVideoXGuidanceWindow.execute(model, start, end).result[0]


@pytest.mark.parametrize(
    ("start", "end", "guided"),
    [(0.0, 0.45, range(0, 5)), (0.25, 1.0, range(3, 10)), (0.25, 0.65, range(3, 7)), (0.0, 1.0, range(10))],
)
def test_the_negative_prompt_is_computed_in_the_window_only(model, start, end, guided):
    with counted(model) as rows:
        run(windowed(model, start, end))
    assert rows == [2 if step in guided else 1 for step in range(STEPS)]


def test_outside_the_window_the_run_is_unguided(model):
    outside = windowed(model, 0.999, 1.0)
    assert relative_error(run(outside), run(model, cfg=1.0)) <= 1e-5
    dynamic = CogVideoXDynamicCFG.execute(outside, "reference").result[0]
    assert relative_error(run(dynamic), run(model, cfg=1.0)) <= 2e-4  # the host goes through x - denoised at sigma 4519


def test_the_window_holds_in_context_windows_and_with_dynamic_guidance(model):
    model = WanContextWindowsManualNode.execute(model, 9, 5, "standard_static", 1, False, "pyramid", False).result[0]
    model = CogVideoXDynamicCFG.execute(windowed(model, 0.0, 0.45), "cosine over steps").result[0]
    with counted(model) as rows:
        out = run(model, length=25)
    assert torch.isfinite(out).all()
    windows = len(rows) // STEPS
    assert rows == [2] * 5 * windows + [1] * 5 * windows


# --- attention -----------------------------------------------------------------------------------------------------


def test_every_attention_is_that_of_the_kernel_named(model, monkeypatch):
    shapes = []
    counting = host_attention.wrap_attn(
        lambda q, *args, **kwargs: shapes.append(q.shape) or in_eight_bits(q, *args, **kwargs)
    )
    monkeypatch.setitem(host_attention.REGISTERED_ATTENTION_FUNCTIONS, "flash", counting)
    error = relative_error(run(attending(model, "flash"), 4), run(model, 4))
    config = model.model.variant.transformer
    assert len(shapes) == 4 * config.num_layers and {shape[1] for shape in shapes} == {config.num_attention_heads}
    assert 1e-4 < error < 0.05  # the price of eight bits


def test_the_last_attention_chosen_holds(model):
    assert torch.equal(run(attending(attending(model, "sage"), "pytorch"), 4), run(model, 4))


def test_enhancing_measures_in_full_and_attends_with_the_kernel_chosen(model):
    both = ON["enhance"](attending(model, "sage"))
    for other in (ON["enhance"](model), attending(model, "sage")):
        assert relative_error(run(both, 4), run(other, 4)) > 1e-4
    assert torch.equal(run(both, 4), run(attending(ON["enhance"](model), "sage"), 4))


def test_an_attention_that_is_not_available_leaves_the_video_as_it_was(model, monkeypatch, caplog):
    monkeypatch.delitem(host_attention.REGISTERED_ATTENTION_FUNCTIONS, "sage")
    with caplog.at_level(logging.WARNING):
        assert torch.equal(run(attending(model, "sage"), 4), run(model, 4))
    assert "sage attention is not available here, so ComfyUI's own choice is used." in caplog.text


# --- Enhance-A-Video -----------------------------------------------------------------------------------------------


def enhanced(model, weight=4.0, start=0.0, end=1.0):
    return CogVideoXEnhanceVideo.execute(model, weight, start, end).result[0]


def plain_scale(q, k, frames, text, weight):
    """The paper's formula word for word, for one video: maps of frames at each place and head, off-diagonal mean."""
    heads, tokens, width = q.shape
    places = (tokens - text) // frames
    total = 0.0
    for head in range(heads):
        for place in range(places):
            rows = [text + frame * places + place for frame in range(frames)]
            attention = torch.softmax(q[head, rows] @ k[head, rows].T / math.sqrt(width), dim=-1)
            off = [attention[i, j].item() for i in range(frames) for j in range(frames) if i != j]
            total += sum(off) / len(off)
    return max(1.0, (frames + weight) * total / (heads * places))


@pytest.mark.parametrize("weight", [0.5, 4.0])
@pytest.mark.parametrize("grid", [(3, 2, 2), (5, 1, 3), (2, 2, 1)])
def test_the_scale_is_the_papers(grid, weight):
    generator = torch.Generator().manual_seed(0)
    text = 4
    q, k = (torch.randn(2, 3, text + math.prod(grid), 8, generator=generator) for _ in range(2))
    scale = arithmetic.cross_frame_scale(q, k, grid, text, weight)
    expected = [plain_scale(q[row], k[row], grid[0], text, weight) for row in range(2)]
    assert torch.allclose(scale, torch.tensor(expected), rtol=1e-5)
    assert (scale > 1).any()
    assert torch.equal(arithmetic.cross_frame_scale(q, k, (1, 2, 2), text, weight), torch.ones(2))


@pytest.mark.parametrize(("variant", "frames"), [("5b", 3), ("1.5", 2)])
def test_the_video_half_of_every_attention_is_scaled(variant, frames):
    """Against the same run with each attention's output scaled by hand; 1.5 holds two latent frames in a token."""
    model = pipelines.ours(variant)[0]
    out = run(enhanced(model), 2, variant=variant)
    network = model.model.diffusion_model
    hooks, seen = [], []

    def by_hand(attention, inputs, output):
        x, rope, options = inputs
        q, k = (
            norm(linear(x).unflatten(-1, (attention.heads, -1)).transpose(1, 2))
            for linear, norm in ((attention.to_q, attention.norm_q), (attention.to_k, attention.norm_k))
        )
        cos, sin = rope

        def turn(t):
            pairs = t.unflatten(-1, (-1, 2))
            return t * cos + torch.stack((-pairs[..., 1], pairs[..., 0]), dim=-1).flatten(-2) * sin

        text = pipelines.prompts(variant)[0][0][0].shape[1]
        seen.append((x.shape[1] - text) // frames)
        scales = [plain_scale(turn(q[row]), turn(k[row]), frames, text, 4.0) for row in range(len(x))]
        output = output.clone()
        for row, scale in enumerate(scales):
            output[row, text:] *= scale
        return output

    try:
        hooks += [block.attn1.register_forward_hook(by_hand) for block in network.transformer_blocks]
        expected = run(model, 2, variant=variant)
    finally:
        for hook in hooks:
            hook.remove()
    assert set(seen) == {(WIDTH // 16) * (HEIGHT // 16)}
    assert relative_error(out, expected) <= 1e-5
    assert relative_error(out, run(model, 2, variant=variant)) > 1e-4


def test_each_video_of_a_batch_has_its_own_scale(model, one_by_one, monkeypatch):
    apart = run(enhanced(model), 2)
    monkeypatch.undo()
    assert relative_error(run(enhanced(model), 2), apart) <= 1e-5
    assert relative_error(run(enhanced(model), 2, batch=2)[:1], apart) <= 1e-5


def test_enhancing_stacks_with_another_attention_override_and_has_its_window(model):
    model = model.clone()
    used = []

    def override(func, *call, **kwargs):
        used.append(kwargs["transformer_options"]["block_index"])
        return func(*call, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    measured = []
    plain = arithmetic.cross_frame_scale
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "cross_frame_scale", lambda *args: measured.append(1) or plain(*args))
        run(enhanced(model, start=0.25, end=0.65))
    assert used == [0, 1] * STEPS
    assert len(measured) == 2 * 4


def test_enhancing_compiles_without_a_break(model):
    expected = run(enhanced(model), 2)
    torch.compiler.reset()
    try:
        torch._dynamo.utils.counters.clear()
        compiled = TorchCompileModel.execute(enhanced(model), "eager").result[0]
        assert relative_error(run(compiled, 2), expected) <= 1e-5
        assert not torch._dynamo.utils.counters["graph_break"]
    finally:
        torch.compiler.reset()
