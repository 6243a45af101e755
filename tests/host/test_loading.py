"""One model through every kind of file: the same weights, the same video, the types asked for, and saved again."""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from comfy_extras.nodes_model_merging import CheckpointSave, ModelSave
from pack.benchmarks.counting import peak_of
from pack.cogvideox.checkpoint import CheckpointError
from pack.cogvideox.transformer import CogVideoXTransformer3DModel
from pack.cogvideox.vae import AutoencoderKLCogVideoX
from pack.cogvideox.variants import COGVIDEOX_15_5B, TransformerConfig
from pack.demo import tiny_pipeline
from pack.nodes.host import loading, precision
from pack.nodes.host.conditioning import empty_latent, image_to_video
from pack.nodes.host.files import ModelFileError
from pack.nodes.host.model import ModelConfig
from pack.tests.model.test_checkpoint import prefixed, to_core, to_sat
from safetensors.torch import load_file, save_file

import nodes

from . import pipelines
from .pipelines import FRAMES, HEIGHT, VARIANTS, WIDTH, relative_error
from .versions import newer_only

WEIGHTS = "diffusion_pytorch_model.safetensors"
# What no key tells of a small model: which positions it has.
OVERRIDES = {"2b": "2b", "5b": "5b"}
# Relative error of one forward against the same weights in fp32: bounds about twice what these weights give.
# The same numbers may be summed in another order where they lie elsewhere in memory.
ROUNDING = 1e-6
PRECISION = {"bf16": 6e-3, "fp16": 1e-3, "fp32": ROUNDING, "fp8_e4m3fn": 2e-2, "fp8_e5m2": 4e-2}
FLOAT8 = {"fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}

pytestmark = pytest.mark.usefixtures("inference")


def released_sizes(config: TransformerConfig) -> TransformerConfig:
    """Give a tiny config the sample sizes of the released models, which a file without config.json is taken to have."""
    base = COGVIDEOX_15_5B.transformer if config.patch_size_t else TransformerConfig()
    sizes = dict(sample_height=base.sample_height, sample_width=base.sample_width, sample_frames=base.sample_frames)
    return replace(config, **sizes)


@cache
def folder(variant: str) -> Path:
    """Return the tiny pipeline of `variant` in diffusers' layout, its transformer made for the released sizes."""
    path = pipelines.folder(variant).parent / f"{variant}-released-sizes"
    shutil.copytree(pipelines.folder(variant), path)
    config = released_sizes(tiny_pipeline.VARIANTS[variant])
    shapes = tiny_pipeline.module_shapes(CogVideoXTransformer3DModel(config))
    save_file(tiny_pipeline.random_weights(shapes, 0), path / "transformer" / WEIGHTS)
    edit_json(path / "transformer" / "config.json", **vars(config))
    return path


@cache
def weights(variant: str) -> dict[str, torch.Tensor]:
    return load_file(folder(variant) / "transformer" / WEIGHTS)


@cache
def reference(variant: str):
    return loading.load_model(str(folder(variant)))


def edit_json(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def saved(path: Path, state_dict, **metadata) -> str:
    save_file({key: tensor.contiguous() for key, tensor in state_dict.items()}, path, metadata=metadata or None)
    return str(path)


def parameters(patcher) -> dict[str, torch.Tensor]:
    return patcher.model.diffusion_model.state_dict()


def velocity(patcher, variant: str = "1.5") -> torch.Tensor:
    """Run the transformer once, as the host's samplers do."""
    config, generator = patcher.model.variant.transformer, torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 3, HEIGHT // 8, WIDTH // 8, generator=generator)
    conds = {"c_crossattn": torch.randn(1, 226, config.text_embed_dim, generator=generator)}
    if variant in pipelines.IMAGE_TO_VIDEO:
        conds["c_concat"] = torch.randn(x.shape, generator=generator)
    if config.ofs_embed_dim:
        conds["ofs"] = torch.tensor([2.0])
    return patcher.model.apply_model(x, torch.tensor([1.0]), transformer_options={}, **conds)


def video(patcher, variant: str) -> torch.Tensor:
    """Sample two steps through the stock node."""
    conds, latent = pipelines.prompts(variant), empty_latent(WIDTH, HEIGHT, FRAMES, 1)
    if variant in pipelines.IMAGE_TO_VIDEO:
        image = torch.linspace(0, 1, HEIGHT * WIDTH * 3).view(1, HEIGHT, WIDTH, 3)
        made = image_to_video(*conds, pipelines.ours(variant)[2], WIDTH, HEIGHT, FRAMES, 1, start_image=image)
        conds, latent = (made.positive, made.negative), made.latent
    return nodes.KSampler().sample(patcher, 1, 2, 6.0, "euler", "simple", *conds, latent, 1.0)[0]["samples"]


def assert_same_weights(patcher, expected) -> None:
    actual = parameters(patcher)
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        assert actual[key].dtype == tensor.dtype, key
        assert torch.equal(actual[key].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), key


# --- layouts --------------------------------------------------------------------------------------------------------


def fused(state_dict):
    """Write q, k and v as one layer, as diffusers does after fuse_qkv_projections()."""
    out = {key: tensor for key, tensor in state_dict.items() if ".attn1.to_q." not in key}
    for key, q in state_dict.items():
        if ".attn1.to_q." in key:
            rows = [q, *(out.pop(key.replace("to_q", name)) for name in ("to_k", "to_v"))]
            out[key.replace("to_q", "to_qkv")] = torch.cat(rows)
    return out


def write_shards(path: Path, state_dict) -> str:
    path.mkdir()
    names = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = {key: names[number % 2] for number, key in enumerate(sorted(state_dict))}
    for name in names:
        save_file({key: state_dict[key] for key in index if index[key] == name}, path / name)
    (path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return str(path)


def write_pickle(path: Path, content) -> str:
    torch.save(content, path)
    return str(path)


def all_in_one(state_dict):
    """The transformer of a checkpoint that holds its VAE as well."""
    others = prefixed(load_file(folder("5b") / "vae" / WEIGHTS), "first_stage_model.")
    return prefixed(state_dict, "model.diffusion_model.") | others


LAYOUTS = {
    "single file": lambda path, sd: saved(path / "a.safetensors", sd),
    "single .sft": lambda path, sd: saved(path / "a.sft", sd),
    "model.diffusion_model.": lambda path, sd: saved(path / "a.safetensors", prefixed(sd, "model.diffusion_model.")),
    "transformer.": lambda path, sd: saved(path / "a.safetensors", prefixed(sd, "transformer.")),
    "all in one": lambda path, sd: saved(path / "a.safetensors", all_in_one(sd)),
    "ComfyUI core": lambda path, sd: saved(path / "a.safetensors", prefixed(to_core(sd), "diffusion_model.")),
    "fused qkv": lambda path, sd: saved(path / "a.safetensors", fused(sd)),
    "SAT": lambda path, sd: write_pickle(path / "mp_rank_00_model_states.pt", to_sat(sd)),
    "state_dict": lambda path, sd: write_pickle(path / "a.ckpt", {"state_dict": sd}),
    "shards": lambda path, sd: write_shards(path / "transformer", sd),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_model_of_the_folder(layout, variant, tmp_path):
    path = LAYOUTS[layout](tmp_path, weights(variant))
    patcher = loading.load_model(path, override=OVERRIDES.get(variant, "auto"))
    assert patcher.model.variant == reference(variant).model.variant
    assert_same_weights(patcher, weights(variant))
    assert relative_error(video(patcher, variant), video(reference(variant), variant)) <= 10 * ROUNDING


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_transformer_folder_alone_keeps_its_config(variant, tmp_path):
    shutil.copytree(folder(variant) / "transformer", tmp_path / "alone")
    override = "auto" if variant == "2b" else OVERRIDES.get(variant, "auto")  # config.json says that 2b has no rotary
    patcher = loading.load_model(str(tmp_path / "alone"), override=override)
    assert patcher.model.variant == reference(variant).model.variant
    assert_same_weights(patcher, weights(variant))


def test_without_the_override_a_small_2b_is_taken_for_a_5b(tmp_path):
    """Guards the layouts above: the override must be what tells them apart."""
    path = saved(tmp_path / "a.safetensors", weights("2b"))
    assert loading.load_model(path).model.variant != reference("2b").model.variant


def test_a_pickle_of_the_old_format_loads_as_well(tmp_path):
    torch.save(weights("1.5"), tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    assert_same_weights(loading.load_model(str(tmp_path / "a.bin")), weights("1.5"))


def test_pickled_shards_load(tmp_path):
    names = ("pytorch_model-00001.bin", "pytorch_model-00002.bin")
    index = {key: names[number % 2] for number, key in enumerate(weights("1.5"))}
    for name in names:
        torch.save({key: tensor for key, tensor in weights("1.5").items() if index[key] == name}, tmp_path / name)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    assert_same_weights(loading.load_model(str(tmp_path)), weights("1.5"))


# --- config.json ----------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path):
    """Return a copy of the 1.5 pipeline that a test may edit."""
    return Path(shutil.copytree(folder("1.5"), tmp_path / "pipeline"))


def test_scheduler_and_vae_configs_win_over_what_shapes_suggest(copy):
    edit_json(copy / "scheduler" / "scheduler_config.json", snr_shift_scale=2.5)
    edit_json(copy / "vae" / "config.json", scaling_factor=0.9)
    model = loading.load_model(str(copy)).model
    assert (model.variant.snr_shift_scale, model.variant.latent_scale) == (2.5, 0.9)
    assert model.latent_format.scale_factor == 0.9
    other = reference("1.5").model
    assert not torch.allclose(model.model_sampling.sigmas[:-1], other.model_sampling.sigmas[:-1])


def test_the_transformer_config_wins_over_what_shapes_suggest(copy):
    edit_json(copy / "transformer" / "config.json", norm_eps=1e-3, sample_height=44)
    config = loading.load_model(str(copy)).model.variant.transformer
    assert config == replace(reference("1.5").model.variant.transformer, norm_eps=1e-3, sample_height=44)


def test_a_config_with_other_heads_refuses_the_weights(copy):
    edit_json(copy / "transformer" / "config.json", num_attention_heads=4, attention_head_dim=16)
    with pytest.raises(CheckpointError, match=r"norm_q.weight \[32\] instead of \[16\]"):
        loading.load_model(str(copy))


def test_a_vae_config_wins_over_what_shapes_suggest(copy):
    assert loading.load_vae(str(copy)).first_stage_model.vae.config.norm_num_groups == 8
    edit_json(copy / "vae" / "config.json", norm_num_groups=4)
    assert loading.load_vae(str(copy)).first_stage_model.vae.config.norm_num_groups == 4


# --- types ----------------------------------------------------------------------------------------------------------


def assert_close(patcher, bound: float, variant: str = "1.5") -> None:
    """Compare one forward with the unrounded weights: within the bound, and where the weights differ not equal."""
    error = relative_error(velocity(patcher, variant), velocity(reference(variant), variant))
    assert error <= bound
    assert error > ROUNDING or bound == ROUNDING


@pytest.mark.parametrize("variant", ["2b", "5b-i2v", "1.5-i2v"])
@pytest.mark.parametrize("weight_dtype", ["bf16", "fp16", "fp32"])
def test_weights_are_stored_as_asked_and_computed_exactly(weight_dtype, variant):
    patcher = loading.load_model(str(folder(variant)), weight_dtype)
    assert {tensor.dtype for tensor in parameters(patcher).values()} == {precision.WEIGHT_DTYPES[weight_dtype]}
    assert patcher.model.get_dtype_inference() == torch.float32  # the host computes so on a CPU
    assert_close(patcher, PRECISION[weight_dtype], variant)


@pytest.mark.parametrize("weight_dtype", PRECISION)
def test_auto_keeps_the_type_of_the_file_and_copies_nothing(weight_dtype, tmp_path, monkeypatch):
    dtype, read = precision.WEIGHT_DTYPES[weight_dtype], {}
    path = saved(tmp_path / "a.safetensors", {key: tensor.to(dtype) for key, tensor in weights("1.5").items()})

    def remembered(path, original=loading.read_state_dict):
        state_dict, metadata = original(path)
        read.update(state_dict)
        return state_dict, metadata

    monkeypatch.setattr(loading, "read_state_dict", remembered)
    patcher = loading.load_model(path)
    assert {tensor.dtype for tensor in parameters(patcher).values()} == {dtype}
    assert {key: tensor.data_ptr() for key, tensor in parameters(patcher).items()} == {
        key: tensor.data_ptr() for key, tensor in read.items()
    }
    assert comfy.model_management.module_size(patcher.model.diffusion_model) == sum(t.nbytes for t in read.values())
    assert patcher.model.get_dtype_inference() == torch.float32
    whole = {"fp8_e4m3fn": 0.1, "fp8_e5m2": 0.2}  # norms and embeddings in eight bits as well
    assert_close(patcher, whole.get(weight_dtype, PRECISION[weight_dtype]))


def test_auto_keeps_the_types_of_a_file_that_mixes_them(tmp_path):
    mixed = {
        key: tensor.to(torch.float8_e4m3fn if precision.EIGHT_BIT.fullmatch(key) else torch.bfloat16)
        for key, tensor in weights("1.5").items()
    }
    patcher = loading.load_model(saved(tmp_path / "a.safetensors", mixed))
    assert_same_weights(patcher, mixed)
    assert_close(patcher, PRECISION["fp8_e4m3fn"])


@pytest.mark.parametrize("weight_dtype", ["bf16", "fp32"])
def test_an_eight_bit_file_can_be_widened(weight_dtype, tmp_path):
    narrow = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in weights("1.5").items()}
    patcher = loading.load_model(saved(tmp_path / "a.safetensors", narrow), weight_dtype)
    dtype = precision.WEIGHT_DTYPES[weight_dtype]
    assert_same_weights(patcher, {key: tensor.to(dtype) for key, tensor in narrow.items()})


def test_describe_says_what_was_loaded_and_how():
    assert loading.describe(reference("1.5")).startswith("CogVideoX (custom, 64 wide, 2 layers), fp32, ")
    narrow = loading.describe(loading.load_model(str(folder("1.5")), "fp8_e5m2"))
    assert ", fp8_e5m2 quantised, " in narrow
    assert narrow != loading.describe(reference("1.5")).replace("fp32", "fp8_e5m2 quantised")  # the size too


# --- eight bits -----------------------------------------------------------------------------------------------------

# Relative error of one forward against the same weights in fp32, as measured: bf16, fp8_e4m3fn, fp8_e5m2, and
# fp8_e4m3fn_fast where the device multiplies in eight bits.
EIGHT_BIT_ERROR = {
    "2b": (2.8e-3, 8.2e-3, 2.0e-2, 1.03e-2),
    "5b": (2.9e-3, 9.0e-3, 1.7e-2, 1.07e-2),
    "5b-i2v": (3.2e-3, 1.33e-2, 2.5e-2, 1.59e-2),
    "1.5": (2.9e-3, 7.0e-3, 1.4e-2, 7.2e-3),
    "1.5-i2v": (3.4e-3, 9.9e-3, 2.0e-2, 1.05e-2),
}
# Which layers of a block may multiply in eight bits where that is asked for.
FAST_LAYERS = {
    "5b": ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj"),
    "1.5": ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"),
}


def error_of(weight_dtype: str, variant: str) -> float:
    patcher = loading.load_model(str(folder(variant)), weight_dtype)
    return relative_error(velocity(patcher, variant), velocity(reference(variant), variant))


def marks(state_dict) -> dict[str, dict]:
    """Return what the host is told of each quantised layer."""
    return {
        key.removesuffix(".comfy_quant"): json.loads(bytes(mark.tolist()))
        for key, mark in state_dict.items()
        if key.endswith(".comfy_quant")
    }


def test_the_eight_bit_weights_are_the_matrices_of_the_blocks():
    chosen = [key for key in weights("5b-i2v") if precision.EIGHT_BIT.fullmatch(key)]
    names = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")
    assert sorted(chosen) == sorted(f"transformer_blocks.{n}.{name}.weight" for n in (0, 1) for name in names)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_error_of_eight_bits_is_as_stated(variant, record_property):
    bf16, *stated, _ = EIGHT_BIT_ERROR[variant]
    assert error_of("bf16", variant) == pytest.approx(bf16, rel=0.1)
    for weight_dtype, expected in zip(FLOAT8, stated, strict=True):
        error = error_of(weight_dtype, variant)
        record_property(weight_dtype, error)
        assert error == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_error_of_multiplying_in_eight_bits_is_as_stated(variant, monkeypatch):
    """On a CPU the host rounds what goes in to eight bits as well, and multiplies that in fp32."""
    slow = error_of("fp8_e4m3fn_fast", variant)
    assert slow == error_of("fp8_e4m3fn", variant)  # a device that cannot is not asked to
    monkeypatch.setattr(comfy.model_management, "supports_fp8_compute", lambda device=None: True)
    assert error_of("fp8_e4m3fn", variant) == slow
    assert error_of("fp8_e4m3fn_fast", variant) == pytest.approx(EIGHT_BIT_ERROR[variant][-1], rel=0.1)


@pytest.mark.parametrize("variant", ["5b", "1.5"])
@pytest.mark.parametrize("weight_dtype", [*FLOAT8, "fp8_e4m3fn_fast"])
def test_large_matrices_are_scaled_into_eight_bits_and_the_rest_stays(weight_dtype, variant):
    stored, dtype = parameters(loading.load_model(str(folder(variant)), weight_dtype)), FLOAT8[weight_dtype[:10]]
    rounding = torch.finfo(dtype).eps / 2
    for key, tensor in weights(variant).items():
        if not precision.EIGHT_BIT.fullmatch(key):
            assert stored[key].dtype == torch.float32 and torch.equal(stored[key], tensor), key
            continue
        scale = stored[f"{key}_scale"]
        assert stored[key].dtype == dtype
        assert stored[key].float().abs().max() == torch.finfo(dtype).max  # all of the range is used
        smallest = scale * torch.finfo(dtype).smallest_normal
        bound = rounding * 1.001 * tensor.abs().clamp(min=smallest)
        assert ((stored[key].float() * scale - tensor).abs() <= bound).all(), key
    fast = FAST_LAYERS[variant] if weight_dtype.endswith("fast") else ()
    number_format = str(dtype).removeprefix("torch.")
    for layer, mark in marks(stored).items():
        exact = {} if layer.split(".", 2)[2] in fast else {"full_precision_matrix_mult": True}
        assert mark == {"format": number_format, **exact}, layer


def test_scaling_loses_less_than_a_plain_cast_at_the_released_width():
    """A weight of 3072 inputs is about 0.02, where eight bits without a scale run out of exponents."""
    weight = torch.randn(256, 3072, generator=torch.Generator().manual_seed(0)) / 3072**0.5
    state_dict = {"transformer_blocks.0.ff.net.2.weight": weight}
    precision.quantise(state_dict, torch.float8_e4m3fn)
    narrow, scale, _ = state_dict.values()
    assert relative_error(weight.to(torch.float8_e4m3fn).float(), weight) == pytest.approx(0.0350, rel=0.02)
    assert relative_error(narrow.float() * scale, weight) == pytest.approx(0.0265, rel=0.02)


@pytest.mark.parametrize("value", [0.0, 1e-30, 60000.0])
def test_matrices_of_any_size_of_numbers_are_scaled(value):
    state_dict = {"transformer_blocks.0.attn1.to_q.weight": torch.full((4, 4), value, dtype=torch.bfloat16)}
    before = state_dict["transformer_blocks.0.attn1.to_q.weight"].float()
    precision.quantise(state_dict, torch.float8_e4m3fn)
    narrow, scale, _ = state_dict.values()
    assert torch.allclose(narrow.float() * scale, before, rtol=1e-6, atol=0)


def test_quantising_never_holds_two_copies_of_a_model():
    matrix, layers = (256, 128), 32

    def run():
        blocks = (f"transformer_blocks.{n}.ff.net.2.weight" for n in range(layers))
        precision.quantise({key: torch.zeros(matrix, dtype=torch.bfloat16) for key in blocks}, torch.float8_e4m3fn)

    one = 256 * 128
    assert 2 * layers * one < peak_of(run) <= (2 * layers + 12) * one  # bytes: the model and one matrix in float32


def test_what_stays_wider_in_an_eight_bit_model_keeps_the_type_of_the_file(tmp_path):
    half = {key: tensor.half() for key, tensor in weights("1.5").items()}
    stored = parameters(loading.load_model(saved(tmp_path / "a.safetensors", half), "fp8_e4m3fn"))
    for key in half:
        if precision.EIGHT_BIT.fullmatch(key):
            assert stored[key].dtype == torch.float8_e4m3fn, key
        else:  # the host takes the matrices it does not quantise in the type it computes in
            assert torch.equal(stored[key].half(), half[key]), key


@pytest.mark.parametrize("weight_dtype", ["fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"])
def test_a_plain_eight_bit_file_keeps_its_numbers(weight_dtype, tmp_path):
    narrow = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in weights("1.5").items()}
    path = saved(tmp_path / "a.safetensors", narrow)
    patcher = loading.load_model(path, weight_dtype)
    stored = parameters(patcher)
    assert all(torch.equal(stored[key].float(), tensor.float()) for key, tensor in narrow.items())
    assert all(stored[f"{layer}.weight_scale"] == 1 for layer in marks(stored))
    assert {mark["format"] for mark in marks(stored).values()} == {"float8_e4m3fn"}
    exact = [mark.get("full_precision_matrix_mult", False) for mark in marks(stored).values()]
    assert exact.count(True) == (4 if weight_dtype.endswith("fast") else 12)  # of 2 blocks
    assert relative_error(velocity(patcher), velocity(loading.load_model(path))) <= ROUNDING


def test_a_scaled_file_may_multiply_in_eight_bits_where_that_is_asked_for(tmp_path):
    state_dict, layers = scaled(weights("1.5"), "scale_weight")
    marker = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}  # two elements: widen to multiply
    path = saved(tmp_path / "a.safetensors", state_dict | marker)
    for weight_dtype in ("auto", "fp8_e4m3fn", "fp8_e4m3fn_fast"):
        stored = parameters(loading.load_model(path, weight_dtype))
        assert all(torch.equal(stored[f"{n}.weight"].float(), state_dict[f"{n}.weight"].float()) for n in layers)
        exact = {name for name, mark in marks(stored).items() if mark.get("full_precision_matrix_mult")}
        fast = weight_dtype.endswith("fast")
        assert exact == {layer for layer in layers if not fast or ".ff." in layer}


# --- LoRAs on eight bits --------------------------------------------------------------------------------------------


def lora(variant: str) -> dict[str, torch.Tensor]:
    """Return a LoRA of rank 4 on every matrix of the blocks, about half of them in size."""
    generator, out = torch.Generator().manual_seed(3), {}
    for key, tensor in weights(variant).items():
        if precision.EIGHT_BIT.fullmatch(key):
            layer, (rows, columns) = f"diffusion_model.{key.removesuffix('.weight')}", tensor.shape
            down, up = (torch.randn(shape, generator=generator) for shape in ((4, columns), (rows, 4)))
            out |= {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": 0.25 * up / columns**0.5}
    return out


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("weight_dtype", ["fp8_e4m3fn", "fp8_e4m3fn_fast"])
def test_a_lora_on_eight_bits_does_what_it_does_on_the_whole(weight_dtype, resident):
    """Resident, the sum is rounded to eight bits again; offloaded, it is made in each pass."""
    wide, narrow = (loading.load_model(str(folder("1.5")), kind) for kind in ("fp32", weight_dtype))
    whole, _ = comfy.sd.load_lora_for_models(wide, None, lora("1.5"), 1.0, 0.0)
    patched, _ = comfy.sd.load_lora_for_models(narrow, None, lora("1.5"), 1.0, 0.0)
    assert len(patched.patches) == 12
    before, plain = {key: tensor.clone() for key, tensor in parameters(narrow).items()}, velocity(narrow)
    results = []
    for patcher in (whole, patched):
        patcher.patch_model(torch.device("cpu"), 1 if patcher is patched and not resident else 0)
        results.append(velocity(patcher))
        patcher.unpatch_model(torch.device("cpu"))
    change = relative_error(results[0], velocity(wide))
    error = relative_error(results[1], results[0])
    assert change > 0.1
    assert 0 < error <= (2e-2 if resident else 1e-2)
    assert_same_weights(narrow, before)
    assert relative_error(velocity(narrow), plain) <= ROUNDING


# --- quantised files ------------------------------------------------------------------------------------------------


def scaled(state_dict, scale_name: str, dtype=torch.float8_e4m3fn):
    """Return the weights with the large matrices scaled into eight bits, and the names of those layers."""
    out, layers = {}, []
    for key, tensor in state_dict.items():
        if precision.EIGHT_BIT.fullmatch(key):
            layer = key.removesuffix(".weight")
            out[f"{layer}.{scale_name}"] = scale = tensor.abs().amax() / torch.finfo(dtype).max
            tensor, layers = (tensor / scale).to(dtype), [*layers, layer]
        out[key] = tensor
    return out, layers


def described(layers, prefix="") -> str:
    return json.dumps({"layers": {prefix + layer: {"format": "float8_e4m3fn"} for layer in layers}})


def write_quantised_folder(path: Path, weights, layers, shards: int) -> str:
    """Write a pipeline folder whose weight files say in their metadata which layers are quantised."""
    shutil.copytree(folder("1.5"), path)
    (path / "transformer" / WEIGHTS).unlink()
    names = [f"part-{number}.safetensors" for number in range(shards)]
    index = {key: names[number % shards] for number, key in enumerate(sorted(weights))}
    for name in names:
        held = {key: tensor for key, tensor in weights.items() if index[key] == name}
        told = [layer for layer in layers if f"{layer}.weight" in held]
        saved(path / "transformer" / name, held, _quantization_metadata=described(told))
    (path / "transformer" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return str(path)


def quantised_files(path: Path):
    """Write the same scaled weights in every form the host knows; return the files by name."""
    old, layers = scaled(weights("1.5"), "scale_weight")
    new, _ = scaled(weights("1.5"), "weight_scale")
    mark = list(json.dumps({"format": "float8_e4m3fn"}).encode())
    marks = {f"{layer}.comfy_quant": torch.tensor(mark, dtype=torch.uint8) for layer in layers}
    core = to_core(new)
    core_layers = [key.removesuffix(".weight_scale") for key in core if key.endswith(".weight_scale")]
    prefix = "model.diffusion_model."
    marker = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    return {
        "scaled_fp8": saved(path / "1.safetensors", old | marker),
        "scaled_fp8 with a prefix": saved(path / "2.safetensors", prefixed(old | marker, prefix)),
        "comfy_quant": saved(path / "3.safetensors", new | marks),
        "metadata": saved(path / "4.safetensors", new, _quantization_metadata=described(layers)),
        "metadata with the file's prefix": saved(
            path / "5.safetensors", prefixed(new, prefix), _quantization_metadata=described(layers, prefix)
        ),
        "metadata without the file's prefix": saved(
            path / "6.safetensors", prefixed(new, prefix), _quantization_metadata=described(layers)
        ),
        "metadata in core's names": saved(path / "7.safetensors", core, _quantization_metadata=described(core_layers)),
        "metadata in a folder": write_quantised_folder(path / "8", new, layers, 1),
        "metadata in shards": write_quantised_folder(path / "9", new, layers, 3),
    }


def test_every_form_of_scaled_weights_loads_and_runs(tmp_path):
    results = {}
    for name, path in quantised_files(tmp_path).items():
        patcher = loading.load_model(path)
        assert "quantised" in loading.describe(patcher), name
        linear = patcher.model.diffusion_model.transformer_blocks[1].ff.net[2]
        assert linear.layout_type == "TensorCoreFP8E4M3Layout", name
        assert_close(patcher, PRECISION["fp8_e4m3fn"])
        results[name] = velocity(patcher)
        assert torch.isfinite(video(patcher, "1.5")).all(), name
    first = results.pop("scaled_fp8")
    assert max(relative_error(result, first) for result in results.values()) <= ROUNDING


# Relative error of one forward against the weights in fp32, about twice what these weights give.
HOST_FORMATS = {"mxfp8": 3e-2, "nvfp4": 8e-2, "int8_tensorwise": 1e-2, "convrot_w4a4": 8e-2}


def in_host_format(state_dict, name: str):
    """Return the weights with their large matrices quantised by the host itself, as its tools write files."""
    out, algorithm = dict(state_dict), QUANT_ALGOS[name]
    for key, tensor in state_dict.items():
        fits = name != "convrot_w4a4" or tensor.shape[-1] % 256 == 0  # rotates groups of 256 numbers
        if precision.EIGHT_BIT.fullmatch(key) and fits:
            narrow = QuantizedTensor.from_float(tensor, algorithm["comfy_tensor_layout"], scale="recalculate")
            out |= narrow.state_dict(key)
            mark = {"format": name, "full_precision_matrix_mult": True}
            out[key.replace("weight", "comfy_quant")] = torch.tensor(list(json.dumps(mark).encode()), dtype=torch.uint8)
    return out


NEW_FORMATS = ("int8_tensorwise", "convrot_w4a4")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=newer_only if name in NEW_FORMATS else ()) for name in HOST_FORMATS]
)
def test_every_format_of_the_host_loads_runs_and_is_saved(name, tmp_path):
    narrow = in_host_format(weights("1.5"), name)
    patcher = loading.load_model(saved(tmp_path / "a.safetensors", narrow))
    assert f", {name} quantised, " in loading.describe(patcher)
    assert_close(patcher, HOST_FORMATS[name])
    assert torch.isfinite(video(patcher, "1.5")).all()
    path = save_with_stock_node(patcher, name)
    kept = load_file(path)
    layers = [key.removesuffix(".comfy_quant") for key in narrow if key.endswith(".comfy_quant")]
    assert layers
    for layer in layers:
        assert torch.equal(kept[f"{layer}.weight"].view(torch.uint8), narrow[f"{layer}.weight"].view(torch.uint8))
    again = loading.load_model(str(path))
    assert relative_error(velocity(again), velocity(patcher)) <= ROUNDING


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
def test_the_bytes_of_a_quantised_file_are_not_the_type_of_the_model(dtype):
    """At released sizes they are nearly all there is."""
    config = ModelConfig(COGVIDEOX_15_5B)
    config.quant_config = {"mixed_ops": True}
    state_dict = {"a.weight": torch.zeros(64, 64, dtype=dtype), "a.bias": torch.zeros(64, dtype=torch.bfloat16)}
    assert precision.choose_dtype(config, state_dict, None).is_floating_point


def test_a_format_the_host_does_not_know_is_refused(tmp_path):
    mark = torch.tensor(list(b'{"format": "int3"}'), dtype=torch.uint8)
    stranger = weights("1.5") | {"transformer_blocks.0.attn1.to_q.comfy_quant": mark}
    with pytest.raises(ModelFileError, match="quantised to int3 .* does not know. Update ComfyUI, or use a file in"):
        loading.load_model(saved(tmp_path / "a.safetensors", stranger))


@pytest.mark.parametrize("suffix", ["weight_scale", "scale_weight"])
def test_scales_nobody_explains_are_refused(suffix, tmp_path):
    """The host would use the scaled numbers as weights, and paint noise."""
    state_dict, layers = scaled(weights("1.5"), suffix)
    with pytest.raises(ModelFileError, match="quantised in a way that ComfyUI does not read"):
        loading.load_model(saved(tmp_path / "a.safetensors", state_dict))


# --- saving ---------------------------------------------------------------------------------------------------------


def save_with_stock_node(patcher, name: str) -> Path:
    ModelSave().save(patcher, f"diffusion_models/{name}")
    return max(Path(folder_paths.get_output_directory()).glob(f"diffusion_models/{name}_*.safetensors"))


SAVED = ("single file", "fused qkv", "SAT", "shards", "ComfyUI core")


@pytest.mark.parametrize("layout", SAVED)
def test_a_saved_model_holds_diffusers_names_and_loads_bit_for_bit(layout, tmp_path):
    patcher = loading.load_model(LAYOUTS[layout](tmp_path, weights("1.5")))
    path = save_with_stock_node(patcher, layout.replace(" ", "-"))
    content = load_file(path)
    assert content.keys() - {"v_pred", "ztsnr"} == weights("1.5").keys()
    assert all(torch.equal(content[key], weights("1.5")[key]) for key in weights("1.5"))
    again = loading.load_model(str(path))
    assert again.model.variant == patcher.model.variant
    assert_same_weights(again, weights("1.5"))


@pytest.mark.parametrize(
    ("weight_dtype", "variant"),
    [(weight_dtype, "1.5") for weight_dtype in ("bf16", "fp16", "fp32", "fp8_e4m3fn_fast", "fp8_e5m2")]
    + [("fp8_e4m3fn", variant) for variant in VARIANTS],
)
def test_what_is_saved_loads_again_bit_for_bit(weight_dtype, variant):
    patcher = loading.load_model(str(folder(variant)), weight_dtype)
    path = save_with_stock_node(patcher, f"{weight_dtype}-{variant}")
    assert load_file(path).keys() - {"v_pred", "ztsnr"} == parameters(patcher).keys()
    assert {key for key in parameters(patcher) if not key.endswith(("_scale", "_quant"))} == weights(variant).keys()
    again = loading.load_model(str(path), override=OVERRIDES.get(variant, "auto"))
    assert_same_weights(again, parameters(patcher))
    assert relative_error(velocity(again, variant), velocity(patcher, variant)) <= ROUNDING


def test_a_plain_eight_bit_model_is_saved_as_it_is(tmp_path):
    narrow = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in weights("1.5").items()}
    patcher = loading.load_model(saved(tmp_path / "a.safetensors", narrow))
    again = loading.load_model(str(save_with_stock_node(patcher, "plain")))
    assert_same_weights(again, narrow)


def test_a_quantised_model_is_saved_quantised(tmp_path):
    patcher = loading.load_model(quantised_files(tmp_path)["metadata"])
    again = loading.load_model(str(save_with_stock_node(patcher, "quantised")))
    assert "quantised" in loading.describe(again)
    assert relative_error(velocity(again), velocity(patcher)) <= ROUNDING


def test_a_patch_is_saved_with_the_weights():
    patcher = loading.load_model(str(folder("1.5")))  # of its own: older hosts leave it patched
    change = torch.full_like(weights("1.5")["proj_out.weight"], 0.5)
    patcher.add_patches({"diffusion_model.proj_out.weight": (change,)}, 1.0)
    again = loading.load_model(str(save_with_stock_node(patcher, "patched")))
    assert_same_weights(again, weights("1.5") | {"proj_out.weight": weights("1.5")["proj_out.weight"] + change})


def test_model_clip_and_vae_of_a_stock_checkpoint_load_again():
    model, clip, vae = loading.load_pipeline(folder("1.5"), "fp32")
    CheckpointSave().save(model, clip, vae, "checkpoints/all")
    path = str(max(Path(folder_paths.get_output_directory()).glob("checkpoints/all_*.safetensors")))
    assert_same_weights(loading.load_model(path), weights("1.5"))
    again = loading.load_vae(path, "fp32").get_sd()
    assert again.keys() == vae.get_sd().keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in vae.get_sd().items())
    tokens = clip.tokenize("a red ball")
    assert torch.equal(
        loading.load_clip(path).encode_from_tokens(tokens, return_pooled=False),
        clip.encode_from_tokens(tokens, return_pooled=False),
    )


# --- the host's own clones ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["MODEL", "CLIP", "VAE"])
def test_the_host_can_load_a_patcher_anew(part, monkeypatch):
    class Dynamic(comfy.model_patcher.ModelPatcher):
        """Stands for the patcher of graphics cards, which does not run on a CPU."""

    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Dynamic)
    path = str(folder("1.5"))
    load = {
        "MODEL": lambda: loading.load_model(path, "bf16", "snr_shift_3"),
        "CLIP": lambda: loading.load_clip(path).patcher,
        "VAE": lambda: loading.load_vae(path, "bf16").patcher,
    }
    patcher = load[part]()
    assert type(patcher) is Dynamic
    factory, args = patcher.cached_patcher_init
    assert type(factory(*args)) is Dynamic
    again = factory(*args, disable_dynamic=True)
    assert type(again) is comfy.model_patcher.ModelPatcher
    assert again.model is not patcher.model
    before, after = patcher.model.state_dict(), again.model.state_dict()
    assert before.keys() == after.keys()
    assert all(before[key].dtype == after[key].dtype and torch.equal(before[key], after[key]) for key in before)
    if part == "MODEL":
        assert again.model.variant == patcher.model.variant
        assert relative_error(video(again, "1.5"), video(patcher, "1.5")) <= 10 * ROUNDING


@newer_only
def test_a_deep_copy_for_another_device_has_weights_of_its_own():
    patcher = reference("1.5")
    copy = patcher.clone(force_deepcopy=True)
    assert copy.model is not patcher.model
    assert relative_error(video(copy, "1.5"), video(patcher, "1.5")) <= 10 * ROUNDING


# --- layers without weights -----------------------------------------------------------------------------------------


def lazy(layer: type) -> type:
    """Return a layer of the host that has no weights until they are loaded, as its layers on a graphics card."""

    class Lazy(layer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.shapes = {name: p.shape for name, p in self.named_parameters()}
            for name in self.shapes:
                setattr(self, name, None)

        def _load_from_state_dict(self, state_dict, prefix, *args):
            for name, shape in self.shapes.items():
                assert state_dict[prefix + name].shape == shape
                setattr(self, name, torch.nn.Parameter(state_dict[prefix + name], requires_grad=False))

    return Lazy


class LazyOps(comfy.ops.manual_cast):
    Linear = lazy(comfy.ops.manual_cast.Linear)
    Conv2d = lazy(comfy.ops.manual_cast.Conv2d)
    Conv3d = lazy(comfy.ops.manual_cast.Conv3d)
    LayerNorm = lazy(comfy.ops.manual_cast.LayerNorm)
    GroupNorm = lazy(comfy.ops.manual_cast.GroupNorm)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_transformer_never_looks_at_weights_before_they_are_loaded(variant, monkeypatch):
    monkeypatch.setattr(comfy.ops, "pick_operations", lambda *args, **kwargs: LazyOps)
    patcher = loading.load_model(str(folder(variant)))
    assert isinstance(patcher.model.diffusion_model.proj_out, LazyOps.Linear)
    assert_same_weights(patcher, weights(variant))
    assert relative_error(velocity(patcher, variant), velocity(reference(variant), variant)) <= ROUNDING


def test_the_vae_never_looks_at_weights_before_they_are_loaded():
    state_dict = load_file(folder("5b") / "vae" / WEIGHTS)
    vae = AutoencoderKLCogVideoX(tiny_pipeline.VAE, operations=LazyOps)
    assert not list(vae.parameters())
    vae.load_state_dict(state_dict, strict=True, assign=True)
    whole = AutoencoderKLCogVideoX(tiny_pipeline.VAE)
    whole.load_state_dict(state_dict)
    latents = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    frames = vae.decode(latents)
    assert torch.equal(frames, whole.decode(latents))
    assert torch.equal(vae.encode(frames).mode(), whole.encode(frames).mode())
