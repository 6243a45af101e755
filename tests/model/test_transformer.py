"""The transformer against diffusers, same weights, float32."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import CogVideoXTransformer3DModel as Reference
from diffusers.models import embeddings
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from pack.cogvideox.positions import rope_positions, shift_positions
from pack.cogvideox.transformer import CogVideoXTransformer3DModel, scaled_dot_product
from pack.cogvideox.variants import RELEASED, TransformerConfig

TOLERANCE = 1e-5
TEXT_WIDTH = 32
SAMPLE = dict(sample_height=8, sample_width=12, sample_frames=9)
TINY = dict(num_attention_heads=2, num_layers=2, attention_head_dim=32, text_embed_dim=TEXT_WIDTH)
TINY_VARIANTS = {
    variant.name: replace(
        variant.transformer,
        **TINY,
        **(SAMPLE if variant.transformer.patch_size_t is None else {}),
    )
    for variant in RELEASED
}


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).norm() / theirs.norm()).item()


def reference(config: TransformerConfig, seed: int = 0) -> Reference:
    torch.manual_seed(seed)
    fields = {name: getattr(config, name) for name in config.__dataclass_fields__}
    model = Reference(**fields).eval()
    for name, parameter in model.named_parameters():
        # Large enough that norms, gates and attention all matter, which diffusers' own start values hide.
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 or "pos_embedding" in name else 0.15)
    return model


def ours(config: TransformerConfig, state_dict) -> CogVideoXTransformer3DModel:
    model = CogVideoXTransformer3DModel(config).eval()
    if not config.use_learned_positional_embeddings:
        state_dict = {k: v for k, v in state_dict.items() if k != "patch_embed.pos_embedding"}
    model.load_state_dict(state_dict, strict=True)
    return model


def reference_rope(config: TransformerConfig, grid: tuple[int, int, int]):
    """diffusers' rotary table; off 3:2, where its grid departs from the original, made of the original grid."""
    t, h, w = grid
    dim = config.attention_head_dim
    if config.patch_size_t is not None:
        return embeddings.get_3d_rotary_pos_embed(dim, None, (h, w), t, grid_type="slice", max_size=(h, w))
    base_h, base_w = config.sample_grid[1:]
    (top, left), (bottom, right) = get_resize_crop_region_for_grid((h, w), base_w, base_h)
    if (top, left) == (0, 0):
        return embeddings.get_3d_rotary_pos_embed(dim, ((top, left), (bottom, right)), (h, w), t)
    axes = (np.arange(t), np.linspace(top, bottom, h, endpoint=False), np.linspace(left, right, w, endpoint=False))
    dims = (dim // 4, dim // 8 * 3, dim // 8 * 3)
    tables = [
        embeddings.get_1d_rotary_pos_embed(d, axis.astype("f4"), use_real=True)
        for d, axis in zip(dims, axes, strict=True)
    ]
    index = torch.cartesian_prod(torch.arange(t), torch.arange(h), torch.arange(w)).unbind(1)
    return tuple(torch.cat([table[i][rows] for table, rows in zip(tables, index, strict=True)], dim=1) for i in (0, 1))


def inputs(config: TransformerConfig, size, batch=1, tokens=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, config.in_channels, *size, generator=generator)
    context = torch.randn(batch, tokens, TEXT_WIDTH, generator=generator)
    timestep = torch.tensor([999, 403, 17][:batch])
    ofs = torch.full((1,), 2.0) if config.ofs_embed_dim else None
    return x, timestep, context, ofs


@torch.no_grad()
def run_reference(model: Reference, config: TransformerConfig, x, timestep, context, ofs) -> torch.Tensor:
    grid = (x.shape[2] // (config.patch_size_t or 1), x.shape[3] // 2, x.shape[4] // 2)
    rope = reference_rope(config, grid) if config.use_rotary_positional_embeddings else None
    out = model(x.movedim(2, 1), context, timestep, ofs=ofs, image_rotary_emb=rope, return_dict=False)[0]
    return out.movedim(1, 2)


SIZES = {"trained": (3, 8, 12), "portrait": (3, 12, 8), "square": (3, 8, 8), "odd": (1, 10, 22), "long": (5, 6, 14)}
CASES = [
    (name, size)
    for name, config in TINY_VARIANTS.items()
    for size in SIZES
    # diffusers refuses learned positions at any other size; those have tests of their own below
    if size == "trained" or not config.use_learned_positional_embeddings
]


@pytest.mark.parametrize(("name", "size"), CASES)
def test_forward_equals_diffusers(name, size, record_property):
    config, (t, h, w) = TINY_VARIANTS[name], SIZES[size]
    theirs = reference(config)
    tokens = 12 if config.use_rotary_positional_embeddings and not config.use_learned_positional_embeddings else 226
    args = inputs(config, (t + t % (config.patch_size_t or 1), h, w), tokens=tokens)
    with torch.no_grad():
        actual = ours(config, theirs.state_dict())(*args)
    error = relative_error(actual, run_reference(theirs, config, *args))
    record_property("relative_error", error)
    assert error <= TOLERANCE


@pytest.mark.parametrize("name", TINY_VARIANTS)
def test_batch_of_different_timesteps_and_training_mode_equal_diffusers(name):
    config = TINY_VARIANTS[name]
    theirs = reference(config)
    args = inputs(config, (4 if config.patch_size_t else 3, 8, 12), batch=3, tokens=226)
    expected = run_reference(theirs, config, *args)
    model = ours(config, theirs.state_dict())
    assert relative_error(model(*args), expected) <= TOLERANCE  # gradients on: nothing is overwritten
    with torch.no_grad():
        assert relative_error(model(*args), expected) <= TOLERANCE


@pytest.mark.parametrize("size", [(2, 8, 12), (1, 8, 12), (3, 12, 8), (5, 8, 12), (3, 10, 14)])
def test_learned_positions_are_sliced_for_fewer_frames_and_interpolated_for_other_sizes(size):
    config = TINY_VARIANTS["CogVideoX-5B-I2V"]
    trained = reference(config)
    text, frames = config.max_text_seq_length, config.sample_grid[0]
    table = trained.patch_embed.pos_embedding.data
    volume = table[:, text:].unflatten(1, config.sample_grid)[:, : min(size[0], frames)].movedim(-1, 1)
    target = (size[0], size[1] // 2, size[2] // 2)
    if target[1:] != config.sample_grid[1:] or target[0] > frames:
        volume = F.interpolate(volume, size=target, mode="trilinear", align_corners=False)
    resized = replace(config, sample_height=size[1], sample_width=size[2], sample_frames=4 * size[0] - 3)
    theirs = reference(resized)
    state = dict(trained.state_dict())
    state["patch_embed.pos_embedding"] = torch.cat((table[:, :text], volume.flatten(2).mT), dim=1)
    theirs.load_state_dict(state)
    args = inputs(config, size, tokens=226)
    # The rotary base stays the trained one whatever table diffusers was built with.
    with torch.no_grad():
        rope = reference_rope(config, target)
        x, timestep, context, _ = args
        expected = theirs(x.movedim(2, 1), context, timestep, image_rotary_emb=rope, return_dict=False)[0].movedim(1, 2)
        actual = ours(config, trained.state_dict())(*args)
    assert relative_error(actual, expected) <= TOLERANCE


def test_learned_positions_refuse_a_longer_text():
    config = TINY_VARIANTS["CogVideoX-5B-I2V"]
    model = ours(config, reference(config).state_dict())
    with pytest.raises(ValueError, match="226 text tokens and got 300"):
        model(*inputs(config, (3, 8, 12), tokens=300))


def test_odd_frames_of_15_get_the_first_frame_twice():
    config = TINY_VARIANTS["CogVideoX1.5-5B"]
    model = ours(config, reference(config).state_dict())
    x, *rest = inputs(config, (3, 8, 12))
    with torch.no_grad():
        padded = model(torch.cat((x[:, :, :1], x), dim=2), *rest)
        assert torch.equal(model(x, *rest), padded[:, :, 1:])


def test_odd_latent_size_is_refused():
    config = TINY_VARIANTS["CogVideoX-5B"]
    model = ours(config, reference(config).state_dict())
    with pytest.raises(ValueError, match="height 9 .* patch size 2"):
        model(*inputs(config, (3, 9, 12)))


def test_original_rotary_grid():
    """480x720 counts whole patches; 720x480 spreads over the crop 5 to 25 of the width, as the original does."""
    assert [p.tolist() for p in rope_positions((2, 30, 45), (30, 45))] == [[0, 1], list(range(30)), list(range(45))]
    _, h, w = rope_positions((1, 45, 30), (30, 45))
    assert torch.allclose(h, torch.from_numpy(np.linspace(0, 30, 45, endpoint=False, dtype="f4")))
    assert torch.allclose(w, torch.from_numpy(np.linspace(12, 32, 30, endpoint=False, dtype="f4")), atol=1e-5)


def test_rope_options_scale_and_shift_positions():
    t, h, w = shift_positions(rope_positions((3, 2, 2), None), {"scale_t": 0.5, "shift_y": 3.0, "scale_x": 2.0})
    assert [t.tolist(), h.tolist(), w.tolist()] == [[0, 0.5, 1], [3, 4], [0, 2]]


def test_block_replacement_sees_both_streams_and_can_run_the_original():
    config = TINY_VARIANTS["CogVideoX-5B"]
    model = ours(config, reference(config).state_dict())
    args = inputs(config, (3, 8, 12))
    seen = []

    def same(block_args, extra):
        seen.append((block_args["txt"].shape[1], block_args["img"].shape[1]))
        before = block_args["img"].clone()
        out = extra["original_block"](block_args)
        assert torch.equal(block_args["img"], before)
        return out

    def skip(block_args, extra):
        return {"img": block_args["img"]}

    with torch.no_grad():
        plain = model(*args)
        options = {"patches_replace": {"dit": {("double_block", 1): same}}}
        assert torch.equal(model(*args, transformer_options=options), plain)
        assert seen == [(12, 3 * 4 * 6)]
        options = {"patches_replace": {"dit": {("double_block", 1): skip}}}
        assert relative_error(model(*args, transformer_options=options), plain) > 0.01


def test_attention_receives_the_block_it_runs_in():
    config = TINY_VARIANTS["CogVideoX-5B"]
    seen = []

    def attention(q, k, v, options):
        seen.append((options["block_index"], options["total_blocks"], options["mark"]))
        return scaled_dot_product(q, k, v, options)

    model = CogVideoXTransformer3DModel(config, attention=attention)
    options = {"mark": "kept"}
    with torch.no_grad():
        model(*inputs(config, (3, 8, 12)), transformer_options=options)
    assert seen == [(0, 2, "kept"), (1, 2, "kept")]
    assert options == {"mark": "kept"}


@pytest.mark.parametrize("variant", RELEASED, ids=lambda variant: variant.name)
def test_released_shapes_equal_diffusers(variant):
    fields = {name: getattr(variant.transformer, name) for name in variant.transformer.__dataclass_fields__}
    with torch.device("meta"):
        theirs = {k: v.shape for k, v in Reference(**fields).state_dict().items()}
        mine = {k: v.shape for k, v in CogVideoXTransformer3DModel(variant.transformer).state_dict().items()}
    if not variant.transformer.use_learned_positional_embeddings:
        theirs.pop("patch_embed.pos_embedding", None)  # a fixed table, not a weight
    assert mine == theirs


@pytest.mark.parametrize("name", TINY_VARIANTS)
def test_position_tables_are_made_once_per_shape(name, monkeypatch):
    config = TINY_VARIANTS[name]
    model = ours(config, reference(config).state_dict())
    made, make_tables = [], model.make_tables
    monkeypatch.setattr(model, "make_tables", lambda *args: made.append(args[0]) or make_tables(*args))
    wide, tall = inputs(config, (3, 8, 12), tokens=226), inputs(config, (3, 12, 8), tokens=226)
    with torch.inference_mode():
        first = model(*wide)
        assert torch.equal(model(*wide), first)
        assert len(made) == 1
        model(*tall)
        assert len(made) == 2
        model(*wide, transformer_options={"rope_options": {"scale_t": 0.5}})
        assert torch.equal(model(*wide), first)
        assert len(made) == 4
    model(*wide).sum().backward()  # tables made while sampling serve training


@pytest.mark.parametrize("name", TINY_VARIANTS)
def test_compiling_finds_one_graph(name):
    config = TINY_VARIANTS[name]
    model = ours(config, reference(config).state_dict())
    args = inputs(config, (3, 8, 12), tokens=226)  # odd: padded where patches are temporal
    torch.compiler.reset()
    try:
        with torch.inference_mode():
            explained = torch._dynamo.explain(model)(*args)
    finally:
        torch.compiler.reset()
    assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained.break_reasons


def test_an_override_of_the_blocks_may_run_parts_of_them():
    config = TINY_VARIANTS["CogVideoX-5B"]
    model = ours(config, reference(config).state_dict())
    args = inputs(config, (3, 8, 12))
    seen = []

    def in_two(run, x, emb, options):
        seen.append((tuple(emb.shape), options["text_tokens"], options["token_grid"]))
        return run(run(x, 0, 1), 1)

    with torch.no_grad():
        plain = model(*args)
        assert torch.equal(model(*args, transformer_options={"blocks_override": in_two}), plain)
        skipped = model(*args, transformer_options={"blocks_override": lambda run, x, emb, options: x})
    assert seen == [((1, config.time_embed_dim), 12, (3, 4, 6))]
    assert relative_error(skipped, plain) > 0.01


def test_a_patch_sees_the_output_of_every_attention():
    config = TINY_VARIANTS["CogVideoX-5B"]
    model = ours(config, reference(config).state_dict())
    args = inputs(config, (3, 8, 12))
    outputs, seen = [], []
    for block in model.transformer_blocks:
        block.attn1.to_out[0].register_forward_hook(lambda module, args, out: outputs.append(out.clone()))

    def patch(x, options):
        seen.append((options["block_index"], x.clone()))
        return x * 0

    with torch.no_grad():
        plain = model(*args)
        outputs.clear()
        patched = model(*args, transformer_options={"patches": {"attn1_output_patch": [patch]}})
    assert [index for index, _ in seen] == [0, 1]
    assert all(torch.equal(x, out) for (_, x), out in zip(seen, outputs, strict=True))
    assert relative_error(patched, plain) > 0.01
