"""Names, shapes and variants of every known CogVideoX file: nothing missing, nothing left over, no wrong guess."""

import math
from dataclasses import replace

import pytest
import torch
from pack.cogvideox.checkpoint import CheckpointError, check_keys, normalise_transformer, normalise_vae, split_add_on
from pack.cogvideox.detection import (
    VARIANT_OVERRIDE_NOTES,
    VARIANT_OVERRIDES,
    detect_variant,
    transformer_config,
    vae_config,
)
from pack.cogvideox.variants import (
    COGVIDEOX_2B,
    COGVIDEOX_5B,
    COGVIDEOX_5B_I2V,
    COGVIDEOX_15_5B,
    COGVIDEOX_15_5B_I2V,
    TransformerConfig,
    VAEConfig,
)
from pack.tests.data.make_key_lists import fold, load, sat_transformer, sat_vae, unfold

RELEASED = {
    "2b": COGVIDEOX_2B,
    "5b": COGVIDEOX_5B,
    "5b-i2v": COGVIDEOX_5B_I2V,
    "1.5-5b": COGVIDEOX_15_5B,
    "1.5-5b-i2v": COGVIDEOX_15_5B_I2V,
}


def meta(shapes, dtype=torch.bfloat16):
    return {key: torch.empty(shape, device="meta", dtype=dtype) for key, shape in shapes.items()}


def shapes(state_dict):
    return {key: tuple(value.shape) for key, value in state_dict.items()}


def tiny(width=16, layers=2, channels=4, patch_t=None, learned=False, ofs=None, head=8, text=24, time=12, seed=0):
    """Return the random weights of a small transformer, diffusers names; nothing but this test knows the layout."""
    volume = 4 * (patch_t or 1)
    linears = {
        "patch_embed.text_proj": (text, width),
        "time_embedding.linear_1": (width, time),
        "time_embedding.linear_2": (time, time),
        "norm_out.linear": (time, 2 * width),
        "proj_out": (width, volume * 4),
    }
    norms = {"norm_final": width, "norm_out.norm": width}
    if ofs:
        linears |= {"ofs_embedding.linear_1": (ofs, ofs), "ofs_embedding.linear_2": (ofs, ofs)}
    for n in range(layers):
        block = f"transformer_blocks.{n}"
        linears |= {f"{block}.attn1.{name}": (width, width) for name in ("to_q", "to_k", "to_v", "to_out.0")}
        linears |= {f"{block}.norm1.linear": (time, 6 * width), f"{block}.norm2.linear": (time, 6 * width)}
        linears |= {f"{block}.ff.net.0.proj": (width, 4 * width), f"{block}.ff.net.2": (4 * width, width)}
        norms |= {f"{block}.attn1.norm_q": head, f"{block}.attn1.norm_k": head}
        norms |= {f"{block}.norm1.norm": width, f"{block}.norm2.norm": width}
    sizes = {f"{name}.weight": (out, into) for name, (into, out) in linears.items()}
    sizes |= {f"{name}.bias": (out,) for name, (_, out) in linears.items()}
    sizes |= {f"{name}.{part}": (size,) for name, size in norms.items() for part in ("weight", "bias")}
    sizes["patch_embed.proj.weight"] = (width, channels, 2, 2) if patch_t is None else (width, channels * volume)
    sizes["patch_embed.proj.bias"] = (width,)
    if learned:
        sizes["patch_embed.pos_embedding"] = (1, 226 + 8, width)
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(size, generator=generator) for key, size in sizes.items()}


def to_sat(state_dict):
    """Write a diffusers-named transformer the way SAT stores it."""
    plain = {
        "patch_embed.proj": "mixins.patch_embed.proj",
        "patch_embed.text_proj": "mixins.patch_embed.text_proj",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "ofs_embedding.linear_1": "ofs_embed.0",
        "ofs_embedding.linear_2": "ofs_embed.2",
        "norm_final": "transformer.final_layernorm",
        "norm_out.norm": "mixins.final_layer.norm_final",
        "norm_out.linear": "mixins.final_layer.adaLN_modulation.1",
        "proj_out": "mixins.final_layer.linear",
    }
    per_block = {
        "norm1.norm": "transformer.layers.{}.input_layernorm",
        "norm2.norm": "transformer.layers.{}.post_attention_layernorm",
        "attn1.to_out.0": "transformer.layers.{}.attention.dense",
        "attn1.norm_q": "mixins.adaln_layer.query_layernorm_list.{}",
        "attn1.norm_k": "mixins.adaln_layer.key_layernorm_list.{}",
        "ff.net.0.proj": "transformer.layers.{}.mlp.dense_h_to_4h",
        "ff.net.2": "transformer.layers.{}.mlp.dense_4h_to_h",
    }
    layers = 1 + max(int(key.split(".")[1]) for key in state_dict if key.startswith("transformer_blocks."))
    for n in range(layers):
        plain |= {f"transformer_blocks.{n}.{ours}": theirs.format(n) for ours, theirs in per_block.items()}
    out = {}
    for part in ("weight", "bias"):
        out |= {f"{b}.{part}": state_dict[f"{a}.{part}"] for a, b in plain.items() if f"{a}.{part}" in state_dict}
        for n in range(layers):
            block = f"transformer_blocks.{n}"
            qkv = [state_dict[f"{block}.attn1.to_{name}.{part}"] for name in "qkv"]
            out[f"transformer.layers.{n}.attention.query_key_value.{part}"] = torch.cat(qkv)
            (image1, text1), (image2, text2) = (
                state_dict[f"{block}.{norm}.linear.{part}"].chunk(2) for norm in ("norm1", "norm2")
            )
            rows = torch.cat([image1, image2, text1, text2])  # MSA and MLP of the image, then of the text
            out[f"mixins.adaln_layer.adaLN_modulations.{n}.1.{part}"] = rows
    if "patch_embed.pos_embedding" in state_dict:
        out["mixins.pos_embed.pos_embedding"] = state_dict["patch_embed.pos_embedding"]
    out = {f"model.diffusion_model.{key}": value for key, value in out.items()}
    return {"module": out, "dp_world_size": 1}


CORE = {
    "attn1.to_q": "q",
    "attn1.to_k": "k",
    "attn1.to_v": "v",
    "attn1.to_out.0": "attn_out",
    "attn1.norm_q": "norm_q",
    "attn1.norm_k": "norm_k",
    "ff.net.0.proj": "ff_proj",
    "ff.net.2": "ff_out",
}


def to_core(state_dict):
    """Write a diffusers-named transformer under the names of ComfyUI's own implementation."""
    out = {}
    for key, value in state_dict.items():
        key = key.replace("embedding.linear_", "embedding_linear_")
        if key.startswith("transformer_blocks."):
            _, n, rest = key.split(".", 2)
            module = next((name for name in CORE if rest.startswith(name + ".")), None)
            rest = CORE[module] + rest[len(module) :] if module else rest
            key = f"blocks.{n}.{rest}"
        out[key] = value
    return out


def prefixed(state_dict, prefix):
    return {prefix + key: value for key, value in state_dict.items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


# --- the released files ---------------------------------------------------------------------------------------------


def test_a_folded_key_list_unfolds_to_itself():
    keys = {
        "a.0.w": (1, 2),
        "a.1.w": (1, 2),
        "a.3.w": (1, 2),
        "a.2.w": (3,),
        "b.to_q.w": (4,),
        "b.to_k.w": (4,),
        "c": (),
    }
    assert unfold(fold(keys)) == keys


@pytest.mark.parametrize("name", RELEASED)
def test_released_diffusers_file_maps_whole_and_is_recognised(name):
    expected = load(name)
    assert len(expected) >= 24 * RELEASED[name].transformer.num_layers + 16
    normalised = normalise_transformer(meta(expected))
    check_keys(normalised, expected)
    assert shapes(normalised) == expected
    assert detect_variant(normalised) == RELEASED[name]


@pytest.mark.parametrize("name", RELEASED)
def test_released_sat_file_maps_whole_and_is_recognised(name):
    expected = load(name)
    normalised = normalise_transformer({"module": meta(load(f"sat-{name}"))})
    check_keys(normalised, expected)
    assert shapes(normalised) == expected
    assert detect_variant(normalised) == RELEASED[name]


def test_core_file_maps_whole_and_is_recognised():
    expected = load("1.5-5b-i2v")
    normalised = normalise_transformer(prefixed(meta(load("core-1.5-5b-i2v")), "diffusion_model."))
    assert shapes(normalised) == expected
    assert detect_variant(normalised) == COGVIDEOX_15_5B_I2V


def test_committed_sat_lists_are_those_of_the_script():
    assert load("sat-vae") == sat_vae()
    assert load("sat-2b") == sat_transformer(1920, 30, "sincos")


@pytest.mark.parametrize("name", ["vae", "sat-vae"])
@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
def test_released_vae_maps_whole(name, prefix):
    expected = load("vae")
    normalised = normalise_vae({"state_dict": prefixed(meta(load(name)), prefix)})
    check_keys(normalised, expected)
    assert shapes(normalised) == expected
    assert vae_config(normalised) == VAEConfig()


def test_vae_of_any_width_is_read_from_its_shapes():
    normalised = normalise_vae(meta(sat_vae(widths=(8, 8, 16), layers=2, latent=4)))
    config = vae_config(normalised)
    assert config.block_out_channels == (8, 8, 16)
    assert (config.layers_per_block, config.latent_channels, config.norm_num_groups) == (2, 4, 8)


def test_sat_up_blocks_are_counted_from_the_other_end():
    source = {key: torch.randn(shape) for key, shape in sat_vae((8, 8, 16), 1, 4).items()}
    normalised = normalise_vae(source)
    name = "block.0.conv1.conv.weight"
    for theirs, ours in ((0, 2), (1, 1), (2, 0)):
        key = f"decoder.up_blocks.{ours}.resnets.0.conv1.conv.weight"
        assert normalised[key] is source[f"decoder.up.{theirs}.{name}"]


# --- weights, bit for bit -------------------------------------------------------------------------------------------

TINY = {
    "1.0": dict(),
    "1.0 learned": dict(learned=True, channels=8),
    "1.5 ofs": dict(patch_t=2, ofs=6, channels=8),
    "eleven layers": dict(layers=11),
}


@pytest.mark.parametrize("kind", TINY)
def test_sat_weights_come_back_bit_for_bit(kind):
    weights = tiny(**TINY[kind])
    assert_same(normalise_transformer(to_sat(weights)), weights)


@pytest.mark.parametrize("kind", TINY)
def test_core_weights_come_back_bit_for_bit(kind):
    weights = tiny(**TINY[kind])
    core = to_core(weights)
    assert "blocks.0.attn_out.weight" in core and not any("attn1" in key for key in core)
    assert_same(normalise_transformer(core), weights)


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "model.diffusion_model.",
        "diffusion_model.",
        "transformer.",
        "model.",
        "model.transformer.",
        "_orig_mod.module.",
    ],
)
@pytest.mark.parametrize("write", [dict, to_core, lambda w: prefixed(to_sat(w)["module"], "")])
def test_any_prefix_comes_off(prefix, write):
    weights = tiny()
    source = write(weights)
    source = {key.removeprefix("model.diffusion_model."): value for key, value in source.items()}
    assert_same(normalise_transformer(prefixed(source, prefix)), weights)


def test_other_parts_of_a_checkpoint_are_left_out():
    weights = tiny()
    others = {
        "first_stage_model.encoder.conv_in.conv.weight": torch.zeros(1),
        "conditioner.embedders.0.transformer.shared.weight": torch.zeros(1),
        "cond_stage_model.logit_scale": torch.zeros(1),
    }
    for prefix in ("", "model.diffusion_model."):
        assert_same(normalise_transformer(prefixed(weights, prefix) | others), weights)


def test_fused_diffusers_projection_splits_into_copies():
    weights = tiny()
    fused = dict(weights)
    for n in range(2):
        for part in ("weight", "bias"):
            parts = [fused.pop(f"transformer_blocks.{n}.attn1.to_{name}.{part}") for name in "qkv"]
            fused[f"transformer_blocks.{n}.attn1.to_qkv.{part}"] = torch.cat(parts)
    before = dict(fused)
    normalised = normalise_transformer(fused)
    assert_same(normalised, weights)
    assert fused == before
    # safetensors refuses to save tensors that share storage.
    tensors = [*normalised.values(), *(fused[key] for key in fused if ".to_qkv." in key)]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)


def test_plain_tensors_are_passed_on_not_copied():
    weights = tiny()
    normalised = normalise_transformer(to_core(weights))
    assert all(normalised[key] is weights[key] for key in weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_splitting_keeps_the_dtype(dtype):
    sat = to_sat({key: value.to(dtype) for key, value in tiny().items()})
    assert {value.dtype for value in normalise_transformer(sat).values()} == {dtype}


def test_constant_sat_table_is_dropped_and_a_learned_one_kept():
    weights = tiny(learned=True)
    table = weights["patch_embed.pos_embedding"]
    assert "patch_embed.pos_embedding" in normalise_transformer(to_sat(weights))
    table[:, :226] = 0  # the sincos table has no text positions
    assert "patch_embed.pos_embedding" not in normalise_transformer(to_sat(weights))
    assert "patch_embed.pos_embedding" in normalise_transformer(weights)  # a diffusers file says what it says


def test_sat_leftovers_are_dropped():
    weights = tiny()
    sat = to_sat(weights)
    for key in ("transformer.position_embeddings.weight", "mixins.pos_embed.freqs_sin", "mixins.pos_embed.freqs_cos"):
        sat["module"][f"model.diffusion_model.{key}"] = torch.zeros(2, 2)
    assert_same(normalise_transformer(sat), weights)


# --- quantised files ------------------------------------------------------------------------------------------------

SUFFIXES = ("weight_scale", "input_scale", "comfy_quant", "scale_weight", "scale_input")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_quantisation_entries_travel_with_their_layer(suffix):
    weights = tiny()
    mark = torch.tensor(3.0)
    source = to_core(weights) | {f"blocks.1.ff_proj.{suffix}": mark, "scaled_fp8": torch.zeros(0)}
    normalised = normalise_transformer(prefixed(source, "model.diffusion_model."))
    assert normalised[f"transformer_blocks.1.ff.net.0.proj.{suffix}"] is mark
    assert "scaled_fp8" in normalised
    check_keys(normalised, shapes(weights))


def test_global_fp8_mark_outside_the_prefix_is_kept():
    assert "scaled_fp8" in normalise_transformer(prefixed(tiny(), "transformer.") | {"scaled_fp8": torch.zeros(0)})


def test_scales_of_a_fused_layer_follow_its_rows():
    source = to_sat(tiny())
    stem = "model.diffusion_model.transformer.layers.0.attention.query_key_value"
    rows, whole, note = torch.arange(48.0)[:, None], torch.tensor([2.0]), torch.arange(48, dtype=torch.uint8)
    source["module"] |= {f"{stem}.weight_scale": rows, f"{stem}.input_scale": whole, f"{stem}.comfy_quant": note}
    normalised = normalise_transformer(source)
    for index, name in enumerate("qkv"):
        layer = f"transformer_blocks.0.attn1.to_{name}"
        assert torch.equal(normalised[f"{layer}.weight_scale"], rows[16 * index : 16 * index + 16])
        assert normalised[f"{layer}.input_scale"] is whole
        assert normalised[f"{layer}.comfy_quant"] is note


def packed(weights):
    """Write every matrix in the blocks of a type of 4 bits, patch and text projections among them."""
    out = {}
    for key, value in weights.items():
        if key.endswith("weight") and value.ndim == 2:
            rows, numbers = value.shape
            blocks = torch.arange(rows, dtype=torch.uint8)[:, None].repeat(1, numbers // 32 * 18)
            out[key.removesuffix("weight") + "Q4_0_qweight"] = blocks
        else:
            out[key] = value
    return out


PACKED = {"1.0": dict(), "1.5": dict(patch_t=2, channels=8)}


@pytest.mark.parametrize("kind", PACKED)
def test_packed_weights_do_not_hide_the_shape_of_the_model(kind):
    weights = tiny(width=64, text=96, time=32, **PACKED[kind])
    normalised = normalise_transformer(packed(weights))
    assert transformer_config(normalised) == transformer_config(weights)
    check_keys(normalised, shapes(weights))


def test_blocks_of_a_fused_layer_follow_its_rows():
    layers = {f"transformer_blocks.0.attn1.to_{name}.Q4_0_qweight": name for name in "qkv"}
    state_dict = packed(tiny(width=64, text=96, time=32))
    rows = [state_dict.pop(key) + 64 * index for index, key in enumerate(layers)]
    state_dict["transformer_blocks.0.attn1.to_qkv.Q4_0_qweight"] = torch.cat(rows)
    normalised = normalise_transformer(state_dict)
    assert all(torch.equal(normalised[key], part) for key, part in zip(layers, rows, strict=True))


@pytest.mark.parametrize("columns", [17, 18])
def test_blocks_that_do_not_make_the_weight_are_refused(columns):
    weights = tiny(width=64, text=96, time=32)
    state_dict = packed(weights)
    state_dict["transformer_blocks.1.ff.net.2.Q4_0_qweight"] = torch.zeros(64, columns, dtype=torch.uint8)
    message = "damaged in transformer_blocks.1.ff.net.2" if columns == 17 else "weight \\[64, 32\\] instead of"
    with pytest.raises(CheckpointError, match=message):
        check_keys(state_dict, shapes(weights))


# --- variants -------------------------------------------------------------------------------------------------------


def with_channels(name, channels):
    keys = load(name)
    weight = keys["patch_embed.proj.weight"]
    size = (weight[0], channels, 2, 2) if len(weight) == 4 else (weight[0], channels * 8)
    return meta(keys | {"patch_embed.proj.weight": size})


# Key list of a fine-tune -> the released model it was made from, its input channels, the name shown.
FINE_TUNES = {
    "fun-2b-inp": ("2b", 33, "CogVideoX-Fun 2B InP (V1.0, V1.1)"),
    "fun-5b-inp": ("5b", 33, "CogVideoX-Fun 5B InP (V1.0, V1.1)"),
    "fun-1.5-5b-inp": ("1.5-5b", 33, "CogVideoX-Fun V1.5 InP"),
    "fun-2b-control": ("2b", 32, "CogVideoX-2B image-to-video (NimVideo) or CogVideoX-Fun 2B Control/Pose"),
    "fun-5b-control": ("5b", 32, "CogVideoX-Fun 5B Control/Pose"),
    "void": ("1.5-5b", 48, "VOID"),
    "void-stacked": ("1.5-5b", 36, "VOID (stacked masks)"),
}


@pytest.mark.parametrize("layout", [dict, lambda weights: prefixed(to_core(weights), "diffusion_model.")])
@pytest.mark.parametrize("name", FINE_TUNES)
def test_fine_tune_maps_whole_and_is_recognised(name, layout):
    base, channels, shown = FINE_TUNES[name]
    expected, released = load(name), RELEASED[base]
    normalised = normalise_transformer(layout(meta(expected)))
    check_keys(normalised, expected)
    assert shapes(normalised) == expected == shapes(with_channels(base, channels))
    transformer = replace(released.transformer, in_channels=channels)
    changes = dict(image_optional=channels == 33)  # a mask that covers everything and no video: text alone
    changes |= dict(image_repeated=name == "fun-2b-control")  # NimVideo
    variant = detect_variant(normalised)
    assert variant == replace(released, name=shown, transformer=transformer, **changes)
    assert variant.image_channels == channels - 16
    assert variant.image_latent_scale == "latents"


def test_unknown_channels_are_said():
    assert detect_variant(with_channels("5b", 48)).name == "CogVideoX 5B (custom, 48 input channels)"


# Retrained without a new layer or channel: nothing in the file tells them from the model they come from.
RETRAINED = {
    "KoolCogVideoX-5b": "5b",
    "AniSora": "5b-i2v",
    "CogvideoX-Interpolation": "5b-i2v",
    "DOVE-2B": "2b",
    "DOVE": "1.5-5b",
    "SparkVSR": "1.5-5b-i2v",
}


@pytest.mark.parametrize("name", RETRAINED)
def test_retrained_weights_are_the_model_they_come_from(name):
    """Whatever their file is called and however a trainer prefixes it."""
    base = RETRAINED[name]
    source = prefixed(meta(load(base)), "module.model.diffusion_model.")
    assert detect_variant(normalise_transformer({"state_dict": source})) == RELEASED[base]


ADD_ONS = {
    "consisid": ("5b-i2v", "ConsisID"),
    "das": ("5b-i2v", "Diffusion as Shader"),
    "trajectorycrafter": ("fun-5b-inp", "TrajectoryCrafter"),
}


@pytest.mark.parametrize("name", ADD_ONS)
def test_the_base_of_a_research_model_is_split_from_what_it_adds(name):
    base, what = ADD_ONS[name]
    source = meta(load(name))
    kept, add_on = split_add_on(normalise_transformer(source))
    assert (shapes(kept), add_on) == (load(base), what)
    assert len(source) > len(kept)
    assert split_add_on(kept) == (kept, "")


def test_a_text_to_video_folder_may_have_image_channels():
    keys = normalise_transformer(meta(load("5b-i2v")))
    assert detect_variant(keys, pipeline="CogVideoXPipeline").image_optional
    assert not detect_variant(keys, pipeline="CogVideoXImageToVideoPipeline").image_optional
    assert not detect_variant(normalise_transformer(meta(load("5b"))), pipeline="CogVideoXPipeline").image_optional


def test_longer_learned_table_gives_its_frame_count():
    keys = load("5b-i2v") | {"patch_embed.pos_embedding": (1, 226 + 37 * 30 * 45, 3072)}
    assert transformer_config(meta(keys)).sample_frames == 145


def test_small_model_is_read_from_its_shapes():
    weights = tiny(width=48, layers=3, channels=8, patch_t=2, ofs=6, head=16, text=24, time=12)
    variant = detect_variant(normalise_transformer(weights))
    config = variant.transformer
    assert (config.num_attention_heads, config.attention_head_dim, config.num_layers) == (3, 16, 3)
    assert (config.in_channels, config.out_channels, config.patch_size, config.patch_size_t) == (8, 4, 2, 2)
    assert (config.time_embed_dim, config.text_embed_dim, config.ofs_embed_dim) == (12, 24, 6)
    assert config.use_rotary_positional_embeddings and not config.use_learned_positional_embeddings
    assert variant.name == "CogVideoX (custom, 48 wide, 3 layers)"
    assert variant.image_latent_scale == "unscaled"


def test_width_of_2b_means_sincos_only_without_temporal_patches():
    wide = {patch_t: normalise_transformer(meta(sat_transformer(1920, 1, patch_t=patch_t))) for patch_t in (None, 2)}
    assert not transformer_config(wide[None]).use_rotary_positional_embeddings
    assert transformer_config(wide[2]).use_rotary_positional_embeddings


def test_config_files_win_over_shapes():
    weights = normalise_transformer(tiny())
    config = replace(transformer_config(weights), use_rotary_positional_embeddings=False, sample_height=8)
    variant = detect_variant(weights, config=config)
    assert variant.transformer is config
    assert (variant.latent_scale, variant.snr_shift_scale) == (1.15258426, 3.0)
    variant = detect_variant(weights, config, {"snr_shift_scale": 2.5}, {"scaling_factor": 0.9})
    assert (variant.latent_scale, variant.snr_shift_scale) == (0.9, 2.5)


def test_plain_ddim_config_leaves_the_snr_shift_alone():
    weights = meta(load("2b"))
    assert detect_variant(weights, scheduler={"_class_name": "DDIMScheduler"}).snr_shift_scale == 3.0


def test_invert_scale_latents_does_not_change_the_default():
    vae = {"scaling_factor": 0.7, "invert_scale_latents": True}
    assert detect_variant(meta(load("1.5-5b-i2v")), vae=vae) == COGVIDEOX_15_5B_I2V


@pytest.mark.parametrize(
    ("base", "override", "changes"),
    [
        ("5b", None, {}),
        ("5b", "auto", {}),
        ("5b", "snr_shift_3", dict(snr_shift_scale=3.0)),
        ("2b", "snr_shift_1", dict(snr_shift_scale=1.0)),
        ("1.5-5b-i2v", "image_latents", dict(image_latent_scale="latents")),
        ("1.5-5b-i2v", "image_diffusers", dict(image_latent_scale="diffusers")),
        ("5b-i2v", "image_unscaled", dict(image_latent_scale="unscaled")),
        ("5b-i2v", "image_repeated", dict(image_repeated=True)),
        ("1.5-5b-i2v", "sparkvsr", dict(image_latent_scale="latents", image_held=True, image_optional=True)),
    ],
)
def test_override_changes_what_it_says_and_no_more(base, override, changes):
    assert detect_variant(meta(load(base)), override=override) == replace(RELEASED[base], **changes)


def test_position_overrides_swap_the_families():
    small = detect_variant(tiny(), scheduler={"snr_shift_scale": 2.0}, override="2b")
    assert not small.transformer.use_rotary_positional_embeddings
    assert (small.latent_scale, small.snr_shift_scale) == (1.15258426, 3.0)
    rotary = detect_variant(meta(load("2b")), override="5b")
    assert rotary.transformer == replace(COGVIDEOX_2B.transformer, use_rotary_positional_embeddings=True)
    assert (rotary.latent_scale, rotary.snr_shift_scale) == (0.7, 1.0)


def test_overrides_that_do_not_fit_are_refused():
    for override in ("image_diffusers", "image_repeated", "sparkvsr"):
        with pytest.raises(CheckpointError, match="takes none. Set variant to auto"):
            detect_variant(meta(load("5b")), override=override)
    with pytest.raises(CheckpointError, match="learned positions"):
        detect_variant(meta(load("5b-i2v")), override="2b")
    with pytest.raises(CheckpointError, match="no variant '7b'; choose one of auto"):
        detect_variant(meta(load("5b")), override="7b")


def test_every_override_has_a_note():
    assert VARIANT_OVERRIDES[0] == "auto"
    assert tuple(VARIANT_OVERRIDE_NOTES) == VARIANT_OVERRIDES
    assert all(note.endswith(".") for note in VARIANT_OVERRIDE_NOTES.values())


# --- wrong and broken files -----------------------------------------------------------------------------------------

WRONG = {
    "lora": ("transformer.transformer_blocks.0.attn1.to_q.lora_A.weight", "a LoRA.*Load CogVideoX LoRA"),
    "kohya lora": ("lora_unet__transformer_blocks_0_attn1_to_q.lora_down.weight", "a LoRA.*Load CogVideoX LoRA"),
    "t5": ("encoder.block.0.layer.0.SelfAttention.q.weight", "T5 text encoder.*Load CogVideoX Text Encoder"),
    "clip": ("text_model.encoder.layers.0.mlp.fc1.weight", "text encoder of another model"),
    "wan": ("blocks.0.cross_attn.k.weight", "a Wan or Cosmos model.*Load Diffusion Model"),
    "flux": ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "a Flux or HunyuanVideo model"),
    "sd3": ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "a Stable Diffusion 3 model"),
    "sdxl": ("model.diffusion_model.input_blocks.0.0.weight", "Stable Diffusion.*Load Checkpoint"),
    "ltx": ("model.diffusion_model.patchify_proj.weight", "LTX-Video"),
    "sd controlnet": ("control_model.zero_convs.0.0.weight", "a ControlNet of another model"),
    "qwen": ("transformer_blocks.0.img_mlp.net.2.weight", "another diffusion model"),
    "sd vae": ("decoder.mid.block_1.norm1.weight", "the VAE of another model"),
    "unknown": ("a.b.c", r"an unknown model \(a.b.c\)"),
}


@pytest.mark.parametrize("needed", ["transformer", "VAE"])
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_file_says_what_it_is_and_what_mends_it(kind, needed):
    key, message = WRONG[kind]
    normalise = normalise_transformer if needed == "transformer" else normalise_vae
    with pytest.raises(CheckpointError, match=message) as error:
        normalise({key: torch.zeros(1)})
    assert f"a CogVideoX {needed} was needed" in str(error.value)


def test_vae_and_transformer_point_to_each_others_node():
    with pytest.raises(CheckpointError, match="a CogVideoX VAE.*Load it with Load CogVideoX VAE"):
        normalise_transformer(meta(load("vae")))
    with pytest.raises(CheckpointError, match="a CogVideoX transformer.*Load it with Load CogVideoX Model"):
        normalise_vae(meta(load("5b")))


@pytest.mark.parametrize("source", [{}, {"module": {}}, {"step": 3}])
def test_empty_file_is_named(source):
    with pytest.raises(CheckpointError, match="no tensors, but a CogVideoX transformer was needed"):
        normalise_transformer(source)


def test_controlnet_is_not_taken_for_its_model():
    weights = {key: value for key, value in tiny().items() if not key.startswith(("proj_out", "norm_out"))}
    weights["controlnet_encode_first.0.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match="a ControlNet of CogVideoX.*Load CogVideoX ControlNet"):
        normalise_transformer(weights)


def test_cogview_is_not_taken_for_cogvideox():
    keys = (
        "patch_embed.proj.weight",
        "patch_embed.text_proj.bias",
        "time_condition_embed.timestep_embedder.linear_1.bias",
    )
    with pytest.raises(CheckpointError, match="CogView"):
        normalise_transformer(
            {key: torch.zeros(1) for key in keys} | meta({"transformer_blocks.0.attn1.to_q.bias": (1,)})
        )


def test_lora_with_a_patch_embedding_is_still_a_lora():
    with pytest.raises(CheckpointError, match="a LoRA"):
        normalise_transformer({"transformer.patch_embed.text_proj.lora_B.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("keep", "missing"),
    [(lambda k: "proj_out" not in k, "proj_out"), (lambda k: "transformer_blocks.1" in k, "patch_embed.text_proj")],
)
def test_one_shard_of_a_model_says_so(keep, missing):
    with pytest.raises(CheckpointError, match=f"only a part of a CogVideoX transformer: {missing} is missing"):
        normalise_transformer({key: value for key, value in tiny().items() if keep(key)})


def test_check_keys_counts_and_names_what_is_wrong():
    weights = tiny()
    expected = shapes(weights)
    check_keys(weights, expected)
    cut = {key: value for key, value in weights.items() if ".ff." not in key}
    with pytest.raises(CheckpointError, match=r"8 missing \(.*, \.\.\.\)\. Is the file") as error:
        check_keys(cut, expected)
    assert str(error.value).count("transformer_blocks") == 5
    with pytest.raises(CheckpointError, match=r": 1 left over \(stray\)"):
        check_keys(weights | {"stray": torch.zeros(1)}, expected)
    with pytest.raises(CheckpointError, match=r": 1 of another shape \(proj_out.bias \[3\] instead of \[16\]\)"):
        check_keys(weights | {"proj_out.bias": torch.zeros(3)}, expected)


def test_quantisation_entry_without_its_layer_is_left_over():
    weights = tiny()
    with pytest.raises(CheckpointError, match=r"left over \(nowhere.weight_scale\)"):
        check_keys(weights | {"nowhere.weight_scale": torch.zeros(1)}, shapes(weights))


def test_scaled_weight_of_a_wrong_shape_is_refused():
    weights = tiny()
    wrong = weights | {"proj_out.weight": torch.zeros(2, 2), "proj_out.weight_scale": torch.ones(())}
    with pytest.raises(CheckpointError, match="1 of another shape"):
        check_keys(wrong, shapes(weights))
    wrong["proj_out.weight"] = wrong["proj_out.weight"].to(torch.uint8)  # 4-bit: two values a byte
    check_keys(wrong, shapes(weights))


def test_a_lora_in_training_is_named():
    weights = tiny()
    stray = {"transformer_blocks.0.attn1.to_q.original.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="belong to a LoRA in training"):
        check_keys(weights | stray, shapes(weights))


def test_damaged_fused_projection_is_named():
    sat = to_sat(tiny())
    sat["module"]["model.diffusion_model.transformer.layers.0.attention.query_key_value.bias"] = torch.zeros(47)
    with pytest.raises(CheckpointError, match="47 rows, which do not split into 3"):
        normalise_transformer(sat)


def test_width_that_heads_do_not_divide_is_refused():
    weights = tiny(width=20, head=8)
    with pytest.raises(CheckpointError, match="20 does not divide into heads of 8"):
        transformer_config(weights)


def test_patch_projection_of_another_model_is_refused():
    with pytest.raises(CheckpointError, match="not that of CogVideoX 1.0 or 1.5"):
        transformer_config(tiny() | {"patch_embed.proj.weight": torch.zeros(16, 12)})


def test_errors_are_value_errors():
    assert issubclass(CheckpointError, ValueError)
    assert math.prod(TransformerConfig().sample_grid) == 13 * 30 * 45  # what the learned table counts on
