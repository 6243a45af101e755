"""LoRA files of every layout against peft in diffusers' transformer, same base, same matrices, float32."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from diffusers import CogVideoXPipeline
from diffusers import CogVideoXTransformer3DModel as Reference
from diffusers.models import embeddings
from pack.cogvideox import lora as files
from pack.cogvideox.checkpoint import CheckpointError
from pack.cogvideox.lora import choose_scaling, fit, input_channels, module_name, normalise_lora, scaled, span
from pack.cogvideox.transformer import CogVideoXTransformer3DModel
from pack.cogvideox.variants import RELEASED
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, safe_open

from .test_transformer import relative_error

TOLERANCE = 5e-6  # measured: 8.5e-7
RANK = 4
TINY = dict(
    num_attention_heads=2, attention_head_dim=32, num_layers=2, text_embed_dim=32, sample_height=8, sample_width=12
)
CONFIGS = {
    variant.name: replace(
        variant.transformer, **TINY, **({} if variant.transformer.patch_size_t else {"sample_frames": 9})
    )
    for variant in RELEASED
}
TEXT_TO_VIDEO = "CogVideoX-5B"
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
EVERY = [*ATTENTION, "ff.net.0.proj", "ff.net.2", "norm1.linear", "norm2.linear", "norm_out.linear", "proj_out"]
EVERY += ["patch_embed.proj", "patch_embed.text_proj", "time_embedding.linear_1", "time_embedding.linear_2"]


def reference(name: str, seed: int = 0) -> Reference:
    config = CONFIGS[name]
    torch.manual_seed(seed)
    model = Reference(**{field: getattr(config, field) for field in config.__dataclass_fields__}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else 0.15)
    return model.requires_grad_(False)


def adapted(name: str, targets=tuple(ATTENTION), **options) -> Reference:
    """Return diffusers' model with a random adapter of peft on it, loud enough to matter."""
    model = reference(name)
    model.add_adapter(LoraConfig(**{"r": RANK, "lora_alpha": RANK, "target_modules": list(targets), **options}))
    for key, parameter in model.named_parameters():
        if "lora_magnitude" in key:
            parameter.data *= 1 + 0.2 * torch.rand_like(parameter)
        elif "lora_" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def matrices(model: Reference) -> dict[str, torch.Tensor]:
    """Return the adapter under peft's names, `transformer_blocks.0.attn1.to_q.lora_A.weight`."""
    return {key: tensor.detach().clone() for key, tensor in get_peft_model_state_dict(model).items()}


@torch.no_grad()
def forwards(name: str, theirs: Reference, state_dict: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one pass of our model with `state_dict` and of theirs, on the same input."""
    config = CONFIGS[name]
    size = (4 if config.patch_size_t else 3, 8, 12)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, config.in_channels, *size, generator=generator)
    context = torch.randn(1, 226, config.text_embed_dim, generator=generator)
    timestep, ofs = torch.tensor([403]), torch.full((1,), 2.0) if config.ofs_embed_dim else None
    grid, rope = (size[1] // 2, size[2] // 2), None
    if config.patch_size_t:
        rope = embeddings.get_3d_rotary_pos_embed(32, None, grid, size[0] // 2, grid_type="slice", max_size=grid)
    elif config.use_rotary_positional_embeddings:
        rope = embeddings.get_3d_rotary_pos_embed(32, ((0, 0), grid), grid, size[0])
    model = CogVideoXTransformer3DModel(config).eval()
    known = model.state_dict().keys()
    model.load_state_dict({key: tensor for key, tensor in state_dict.items() if key in known}, strict=True)
    expected = theirs(x.movedim(2, 1), context, timestep, ofs=ofs, image_rotary_emb=rope, return_dict=False)[0]
    return model(x, timestep, context, ofs), expected.movedim(1, 2)


def shapes(name: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {key: tensor.shape for key, tensor in CogVideoXTransformer3DModel(CONFIGS[name]).state_dict().items()}


def layers_of(name: str, state_dict, metadata=None, scaling="auto"):
    lora = normalise_lora(state_dict, metadata)
    layers, misfits = fit(lora, shapes(name), name)
    assert misfits == [] and lora.unknown == ()
    rule = choose_scaling(lora, scaling, lambda: False)
    return {module: scaled(layer, rule) for module, layer in layers.items()}


def merged(name: str, layers) -> dict[str, torch.Tensor]:
    """Return the weights of the reference's base with the layers added by hand."""
    weights = {key: tensor.clone() for key, tensor in reference(name).state_dict().items()}
    for module, layer in layers.items():
        parts, weight = layer.tensors, weights[f"{module}.weight"]
        delta = layer.scale * parts[files.UP].flatten(1) @ parts[files.DOWN].flatten(1)
        weight += delta.reshape(weight.shape)
        if files.MAGNITUDE in parts:
            weight *= parts[files.MAGNITUDE] / weight.norm(dim=1, keepdim=True)
        if files.UP_BIAS in parts:
            weights[f"{module}.bias"] += layer.scale * parts[files.UP_BIAS]
    return weights


def assert_same(name, theirs, layers, record_property=None):
    ours, expected = forwards(name, theirs, merged(name, layers))
    base, _ = forwards(name, theirs, reference(name).state_dict())
    error = relative_error(ours, expected)
    if record_property:
        record_property("relative_error", error)
    assert error <= TOLERANCE
    assert relative_error(base, expected) > 1e-3, "the LoRA does nothing, so the test says nothing"


# --- layouts -------------------------------------------------------------------------------------------------------


def renamed(tensors, module, down, up, alpha=None):
    """Write peft's tensors with `module` of the dotted name and the two endings, and alpha beside them."""
    out = {}
    for key, tensor in tensors.items():
        dotted, end = key.rsplit(".lora_", 1)
        out[module(dotted) + {"A.weight": down, "B.weight": up}[end]] = tensor
        if alpha is not None:
            out[module(dotted) + ".alpha"] = torch.tensor(float(alpha))
    return out


def kohya(prefix):
    return lambda dotted: prefix + dotted.replace(".", "_")


def sat(tensors):
    out = {}
    for key, tensor in tensors.items():
        block, part, matrix = re.fullmatch(
            r"transformer_blocks\.(\d+)\.attn1\.(\S+)\.lora_([AB])\.weight", key
        ).groups()
        layer, number = ("dense", 0) if part == "to_out.0" else ("query_key_value", "qkv".index(part[-1]))
        out[f"model.diffusion_model.transformer.layers.{block}.attention.{layer}.matrix_{matrix}.{number}"] = tensor
    return out


A, B = ".lora_A.weight", ".lora_B.weight"
DOWN, UP = ".lora_down.weight", ".lora_up.weight"
# layout -> (targets, alpha peft has, the file of peft's tensors)
LAYOUTS = {
    "diffusers": (EVERY, RANK, lambda t: {f"transformer.{k}": v for k, v in t.items()}),
    "without prefix": (EVERY, RANK, lambda t: t),
    "peft": (EVERY, RANK, lambda t: {f"base_model.model.{k}": v for k, v in t.items()}),
    "named adapter": (EVERY, RANK, lambda t: renamed(t, str, ".lora_A.default.weight", ".lora_B.default.weight")),
    "another name": (EVERY, RANK, lambda t: renamed(t, str, ".lora_A.crush.weight", ".lora_B.crush.weight")),
    "parameters": (ATTENTION, RANK, lambda t: renamed(t, str, ".lora_A", ".lora_B")),
    "alpha tensors": (EVERY, 2, lambda t: renamed(t, "transformer.{}".format, A, B, 2)),
    "VideoX-Fun": (EVERY, 2, lambda t: renamed(t, kohya("lora_unet__"), DOWN, UP, 2)),
    "kohya": (EVERY, 2, lambda t: renamed(t, kohya("lora_unet_"), DOWN, UP, 2)),
    "OneTrainer": (EVERY, 2, lambda t: renamed(t, kohya("lora_transformer_"), DOWN, UP, 2)),
    "LyCORIS": (EVERY, 2, lambda t: renamed(t, kohya("lycoris_"), DOWN, UP, 2)),
    "ComfyUI A B": (EVERY, RANK, lambda t: renamed(t, "diffusion_model.{}".format, A, B)),
    "ComfyUI up down": (EVERY, 1, lambda t: renamed(t, "diffusion_model.{}".format, DOWN, UP, 1)),
    "checkpoint": (EVERY, RANK, lambda t: renamed(t, "model.diffusion_model.{}".format, A, B)),
    "processors": (
        ATTENTION,
        RANK,
        lambda t: renamed(
            t,
            lambda m: "transformer." + m.replace(".to_", ".processor.to_").removesuffix(".0"),
            "_lora.down.weight",
            "_lora.up.weight",
        ),
    ),
    "SAT": (ATTENTION, 1, sat),
    "SAT in a save": (ATTENTION, 1, lambda t: {"module": sat(t), "iteration": 1000}),
    "bias": (EVERY, 2, lambda t: {f"transformer.{k}": v for k, v in t.items()}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [TEXT_TO_VIDEO, "CogVideoX1.5-5B-I2V"])
def test_a_layout_gives_what_peft_gives(layout, name, record_property):
    targets, alpha, write = LAYOUTS[layout]
    theirs = adapted(name, targets, lora_alpha=alpha, lora_bias=layout == "bias")
    header = {"lora_config": json.dumps({"lora_alpha": alpha})} if layout == "bias" else None
    assert_same(name, theirs, layers_of(name, write(matrices(theirs)), header), record_property)


@pytest.mark.parametrize("name", CONFIGS)
def test_diffusers_own_save_with_its_header_is_read(name, tmp_path):
    theirs = adapted(
        name,
        EVERY,
        lora_alpha=2,
        rank_pattern={"to_q": 8, "transformer_blocks.1.ff.net.0.proj": 3},
        alpha_pattern={"to_q": 6, "transformer_blocks.1.ff.net.0.proj": 9},
    )
    config = {"transformer_lora_adapter_metadata": theirs.peft_config["default"].to_dict()}
    CogVideoXPipeline.save_lora_weights(tmp_path, matrices(theirs), **config)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    with safe_open(file, "pt") as opened:
        layers = layers_of(name, load_file(file), opened.metadata())
    assert {layer.rank for layer in layers.values()} == {3, 4, 8}
    assert layers["transformer_blocks.0.attn1.to_q"].scale == 6 / 8
    assert layers["transformer_blocks.0.attn1.to_k"].scale == 2 / 4
    assert layers["transformer_blocks.1.ff.net.0.proj"].scale == 9 / 3
    assert_same(name, theirs, layers)


def test_rank_stabilised_scale_of_the_header():
    theirs = adapted(TEXT_TO_VIDEO, lora_alpha=3, use_rslora=True)
    header = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 3, "transformer.use_rslora": True})}
    layers = layers_of(TEXT_TO_VIDEO, matrices(theirs), header)
    assert {layer.scale for layer in layers.values()} == {3 / math.sqrt(RANK)}
    assert_same(TEXT_TO_VIDEO, theirs, layers)


def test_dora_of_peft():
    theirs = adapted(TEXT_TO_VIDEO, use_dora=True)
    state_dict = matrices(theirs)
    assert any("lora_magnitude_vector" in key for key in state_dict)
    assert_same(TEXT_TO_VIDEO, theirs, layers_of(TEXT_TO_VIDEO, state_dict))


@pytest.mark.parametrize("header", ["{", "[]", '{"lora_alpha": "much"}', '{"lora_alpha": true, "alpha_pattern": null}'])
def test_a_header_that_says_nothing_is_passed_over(header):
    tensors = matrices(adapted(TEXT_TO_VIDEO))
    lora = normalise_lora(tensors, {"lora_adapter_metadata": header})
    assert {layer.alpha for layer in lora.layers.values()} == {None}


@pytest.mark.parametrize("module", ["norm1.norm", "attn1.norm_q", "attn1.to_out.0", "ff.net.2", "norm2.linear"])
@pytest.mark.parametrize("form", ["transformer.{}", "lora_unet__{}", "lora_unet_{}", "diffusion_model.{}", "{}"])
def test_every_spelling_of_a_module_is_known(form, module):
    dotted = f"transformer_blocks.41.{module}"
    assert module_name(form.format(dotted.replace(".", "_") if form.startswith("lora") else dotted)) == dotted


@pytest.mark.parametrize("name", CONFIGS)
def test_every_weight_of_every_variant_has_a_module_name(name):
    modules = {key.removesuffix(".weight") for key in shapes(name) if key.endswith(".weight")}
    assert {module_name(f"lora_unet__{module.replace('.', '_')}") for module in modules} == modules


@pytest.mark.parametrize(
    "name", ["", "transformer_blocks.0", "transformer_blocks.0.proj_out", "controlnet.transformer_blocks.0.attn1.to_q",
             "transformer_blocks_copy.0.attn1.to_q", "transformer_blocks.x.attn1.to_q", "proj_out.1"]
)  # fmt: skip
def test_other_modules_have_none(name):
    assert module_name(name) is None


def test_comfyuis_own_cogvideox_names_are_read():
    assert module_name("diffusion_model.blocks.3.attn_out") == "transformer_blocks.3.attn1.to_out.0"
    assert module_name("diffusion_model.blocks.3.ff_proj") == "transformer_blocks.3.ff.net.0.proj"


def test_text_encoder_and_base_weights_are_counted_and_left_out():
    state_dict = {f"transformer.{k}": v for k, v in matrices(adapted(TEXT_TO_VIDEO)).items()}
    expected = normalise_lora(state_dict)
    state_dict["lora_te_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight"] = torch.zeros(4, 8)
    state_dict["text_encoder.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight"] = torch.zeros(4, 8)
    state_dict["transformer.layers.0.attention.dense.original.weight"] = torch.zeros(8, 8)
    state_dict["base_model.model.proj_out.base_layer.weight"] = torch.zeros(8, 8)
    lora = normalise_lora(state_dict)
    assert (lora.text, lora.others, lora.unknown) == (2, 2, ())
    assert lora.layers.keys() == expected.layers.keys()


def test_the_dict_of_the_caller_is_not_changed():
    state_dict = matrices(adapted(TEXT_TO_VIDEO))
    before = {key: tensor.clone() for key, tensor in state_dict.items()}
    layers_of(TEXT_TO_VIDEO, state_dict, scaling="1/rank")
    assert state_dict.keys() == before.keys()
    assert all(torch.equal(state_dict[key], tensor) for key, tensor in before.items())


# --- patch embedding of another width --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "file"), [("CogVideoX-5B-I2V", "CogVideoX-5B"), ("CogVideoX1.5-5B-I2V", "CogVideoX1.5-5B")]
)
def test_a_narrower_patch_embedding_leaves_the_image_channels_alone(model, file):
    """A text-to-video LoRA changes only what the model makes of the noise."""
    layers = layers_of(model, matrices(adapted(file, ["patch_embed.proj"])))
    delta = layers["patch_embed.proj"].tensors[files.DOWN]
    wide, narrow = shapes(model)["patch_embed.proj.weight"], shapes(file)["patch_embed.proj.weight"]
    assert delta.shape[1:] == wide[1:]
    assert torch.equal(
        delta[:, : narrow[1]], matrices(adapted(file, ["patch_embed.proj"]))["patch_embed.proj.lora_A.weight"]
    )
    assert not delta[:, narrow[1] :].any()


@pytest.mark.parametrize(
    ("model", "file"), [("CogVideoX-5B", "CogVideoX-5B-I2V"), ("CogVideoX1.5-5B", "CogVideoX1.5-5B-I2V")]
)
def test_a_wider_patch_embedding_does_what_zeros_in_the_image_channels_do(model, file):
    state_dict = matrices(adapted(file, ["patch_embed.proj"]))
    lora = normalise_lora(state_dict)
    assert input_channels(lora, shapes(model)) == 2
    (layer,) = fit(lora, shapes(model), model)[0].values()
    narrow = shapes(model)["patch_embed.proj.weight"]
    assert torch.equal(layer.tensors[files.DOWN], state_dict["patch_embed.proj.lora_A.weight"][:, : narrow[1]])


def test_the_patch_embedding_of_another_generation_is_left_out():
    state_dict = matrices(adapted("CogVideoX1.5-5B", [*ATTENTION, "patch_embed.proj"]))
    layers, misfits = fit(normalise_lora(state_dict), shapes(TEXT_TO_VIDEO), TEXT_TO_VIDEO)
    assert len(layers) == 8 and [text.split()[0] for text in misfits] == ["patch_embed.proj"]
    assert input_channels(normalise_lora(state_dict), shapes(TEXT_TO_VIDEO)) == 1


# --- scale -----------------------------------------------------------------------------------------------------------


def lora_of(alpha=None, sat=False, rank=4):
    parts = {files.UP: torch.ones(64, rank), files.DOWN: torch.ones(rank, 64)}
    return files.LoRA({"transformer_blocks.0.attn1.to_q": files.Layer("lora", parts, alpha)}, sat)


@pytest.mark.parametrize(
    ("lora", "wanted", "outweighs", "rule", "scale"),
    [
        (lora_of(2.0), "auto", True, "alpha/rank", 0.5),
        (lora_of(2.0, sat=True), "auto", True, "alpha/rank", 0.5),
        (lora_of(), "auto", False, "none", 1.0),
        (lora_of(), "auto", True, "1/rank", 0.25),
        (lora_of(sat=True), "auto", False, "1/rank", 0.25),
        (lora_of(2.0), "1/rank", False, "1/rank", 0.25),
        (lora_of(2.0), "none", False, "none", 1.0),
        (lora_of(), "none", True, "none", 1.0),
        (lora_of(2.0), "alpha/rank", False, "alpha/rank", 0.5),
    ],
)
def test_the_rule_and_its_scale(lora, wanted, outweighs, rule, scale):
    assert choose_scaling(lora, wanted, lambda: outweighs) == rule
    (layer,) = lora.layers.values()
    assert scaled(layer, rule).scale == scale


def test_alpha_over_rank_needs_alpha():
    with pytest.raises(CheckpointError, match="holds no alpha"):
        choose_scaling(lora_of(), "alpha/rank", lambda: False)


def test_norm_of_a_layer_is_that_of_its_product():
    up, down = torch.randn(48, 5), torch.randn(5, 16, 2, 2)
    layer = files.Layer("lora", {files.UP: up, files.DOWN: down})
    assert layer.norm() == pytest.approx((up @ down.flatten(1)).norm().item(), rel=1e-5)


def test_span():
    assert (span([128]), span([4, 128, 8]), span([0.5, 0.5])) == ("128", "4 to 128", "0.5")


# --- released sizes --------------------------------------------------------------------------------------------------


def zeros(*shape):
    """Return zeros that take no memory."""
    return torch.zeros(1).expand(*shape)


@pytest.mark.parametrize(("variant", "attention", "linear"), [("CogVideoX-2B", 120, 245), ("CogVideoX-5B", 168, 341)])
def test_files_of_released_size_fit_whole(variant, attention, linear):
    """SAT's exporter wants 240 tensors for the attention of 2B; VideoX-Fun trains every linear layer."""
    config = next(model.transformer for model in RELEASED if model.name == variant)
    with torch.device("meta"):
        modules = dict(CogVideoXTransformer3DModel(config).named_modules())
    sizes = {
        f"{name}.{key}": value.shape for name, module in modules.items() for key, value in module._parameters.items()
    }
    fun, exported = {}, {}
    for name, module in modules.items():
        if isinstance(module, torch.nn.Linear):
            stem = f"lora_unet__{name.replace('.', '_')}"
            fun |= {f"{stem}.lora_down.weight": zeros(8, module.in_features), f"{stem}.alpha": torch.tensor(4.0)}
            fun[f"{stem}.lora_up.weight"] = zeros(module.out_features, 8)
            if ".attn1.to_" in name:
                exported[f"transformer.{name}.lora_A.weight"] = zeros(2, module.in_features)
                exported[f"transformer.{name}.lora_B.weight"] = zeros(module.out_features, 2)
    assert len(exported) == 2 * attention
    for state_dict, count in ((exported, attention), (fun, linear)):
        layers, misfits = fit(normalise_lora(state_dict), sizes, variant)
        assert (len(layers), misfits) == (count, [])


# --- bad files -------------------------------------------------------------------------------------------------------


def pair(module, width=64, rank=4, down=".lora_A.weight", up=".lora_B.weight"):
    return {module + down: torch.zeros(rank, width), module + up: torch.zeros(width, rank)}


KOHYA = dict(down=".lora_down.weight", up=".lora_up.weight")


@pytest.mark.parametrize(
    ("state_dict", "said"),
    [
        (pair("diffusion_model.blocks.0.self_attn.q"), "another model (Wan or Cosmos)"),
        (pair("lora_unet__blocks_0_cross_attn_k", **KOHYA), "another model (Wan or Cosmos)"),
        (pair("transformer.single_transformer_blocks.0.attn.to_q"), "another model (Flux or HunyuanVideo)"),
        (pair("lora_unet_double_blocks_0_img_attn_proj", **KOHYA), "another model (Flux or HunyuanVideo)"),
        (
            pair("transformer.transformer_blocks.0.attn.to_q") | pair("transformer.transformer_blocks.0.ff.net.0.proj"),
            "another model (Stable Diffusion 3, Flux or Qwen-Image)",
        ),
        (
            pair("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", **KOHYA),
            "another model (Stable Diffusion)",
        ),
        (
            pair("transformer.transformer_blocks.0.attn1.to_q") | pair("transformer.transformer_blocks.0.attn2.to_q"),
            "another model (LTX-Video or PixArt)",
        ),
        (
            pair("transformer_blocks.0.attn1.to_q") | pair("transformer_blocks.0.attn1.add_q_proj"),
            "another model (Mochi)",
        ),
        (pair("base_model.model.model.layers.0.self_attn.q_proj"), "another model (a language model"),
        (pair("lora_te_text_model_encoder_layers_0_mlp_fc1", **KOHYA), "changes only a text encoder (2 tensors)"),
        (pair("something.else"), "is of an unknown model (something.else)"),
        ({}, "holds no tensors"),
        ({"x": torch.zeros(1)}, "an unknown model (x), but a LoRA was needed"),
        ({"patch_embed.text_proj.bias": torch.zeros(1)}, "a CogVideoX transformer, but a LoRA was needed"),
        (
            {"decoder.mid_block.resnets.0.norm1.conv_y.conv.weight": torch.zeros(1)},
            "a CogVideoX VAE, but a LoRA was needed. Load it with Load CogVideoX VAE",
        ),
        (
            {"transformer_blocks.0.attn1.to_q.lora_A.weight": torch.zeros(4, 64)},
            "not whole: transformer_blocks.0.attn1.to_q has no lora_up.weight",
        ),
        ({"proj_out.lokr_w1": torch.zeros(4, 4)}, "not whole: proj_out has no lokr_w2"),
        ({"proj_out.hada_w1_a": torch.zeros(4, 4)}, "not whole: proj_out has no hada_w1_b"),
        (pair("proj_out") | {"proj_out.alpha": torch.zeros(2)}, "not whole: proj_out has no alpha"),
        (
            {"proj_out.lora_A.weight": torch.zeros(4, 64), "proj_out.lora_B.weight": torch.zeros(64, 8)},
            "so their ranks differ",
        ),
        (
            {"proj_out.lora_A.weight": torch.full((4, 64), math.nan), "proj_out.lora_B.weight": torch.zeros(64, 4)},
            "invalid numbers (NaN) in proj_out.lora_down.weight",
        ),
        (
            {"proj_out.lora_A.weight": torch.zeros(4, 64), "proj_out.lora_B.weight": torch.full((64, 4), math.inf)},
            "invalid numbers (NaN) in proj_out.lora_up.weight",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_is_no_such_lora_is_refused_in_words(state_dict, said):
    with pytest.raises(CheckpointError, match=re.escape(said)):
        normalise_lora(state_dict)


def test_a_lora_of_another_width_is_refused_with_both_widths():
    released = {variant.name: variant.transformer for variant in RELEASED}
    with torch.device("meta"):
        five = CogVideoXTransformer3DModel(replace(released["CogVideoX-5B"], num_layers=1))
    sizes = {key: tensor.shape for key, tensor in five.state_dict().items()}
    lora = normalise_lora(pair("transformer.transformer_blocks.0.attn1.to_q", width=1920))
    with pytest.raises(CheckpointError, match=r"1920 wide \(CogVideoX-2B\), and CogVideoX-5B is 3072 wide"):
        fit(lora, sizes, "CogVideoX-5B")


def test_of_a_lora_that_fits_in_part_the_rest_is_told():
    state_dict = pair("transformer_blocks.0.attn1.to_q") | pair("transformer_blocks.7.attn1.to_q")
    state_dict |= pair("ofs_embedding.linear_1") | pair("proj_out") | pair("transformer_blocks.0.attn9.to_q")
    lora = normalise_lora(state_dict)
    layers, misfits = fit(lora, shapes(TEXT_TO_VIDEO), TEXT_TO_VIDEO)
    assert list(layers) == ["transformer_blocks.0.attn1.to_q", "proj_out"]
    assert [text.split()[0] for text in misfits] == ["transformer_blocks.7.attn1.to_q", "ofs_embedding.linear_1"]
    assert lora.unknown == ("transformer_blocks.0.attn9.to_q",)


def test_a_lora_of_which_nothing_fits_is_refused():
    lora = normalise_lora(pair("ofs_embedding.linear_1") | pair("patch_embed.text_proj", width=7))
    with pytest.raises(CheckpointError, match="None of the LoRA's 2 layers fits CogVideoX-5B: .*ofs_embedding"):
        fit(lora, shapes(TEXT_TO_VIDEO), TEXT_TO_VIDEO)
