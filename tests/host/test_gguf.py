"""GGUF: each type from each kind of file, in memory as blocks, with LoRAs, offloaded, cloned, saved and refused."""

import math
import subprocess
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import folder_paths
import gguf
import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from comfy_extras.nodes_train import TrainLoraNode
from pack.cogvideox import ggml
from pack.cogvideox.checkpoint import CheckpointError
from pack.cogvideox.transformer import CogVideoXTransformer3DModel
from pack.demo import tiny_pipeline
from pack.nodes.host import files, loading
from pack.nodes.host.files import ModelFileError
from pack.nodes.host.precision import EIGHT_BIT
from pack.tests.model.test_checkpoint import prefixed, to_core
from pack.tools import gguf_convert
from safetensors.torch import load_file

from .pipelines import relative_error
from .test_loading import fused, parameters, released_sizes, save_with_stock_node, saved, velocity, video
from .versions import newer_only

# Relative error of one forward on random weights against the same weights in fp32: bounds about twice what they give.
FORWARD = {"Q8_0": 5e-3, "Q6_K": 2e-2, "Q5_K": 4e-2, "Q5_0": 4e-2, "Q4_K": 7e-2, "Q4_0": 8e-2}
# The same numbers in fp32, from memory that is aligned otherwise: up to 4e-7.
ROUNDING = 2e-6
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("inference")


@cache
def weights() -> dict[str, torch.Tensor]:
    """Return a tiny model whose rows are whole blocks of every type."""
    config = replace(tiny_pipeline.VARIANTS["1.5"], num_attention_heads=4, attention_head_dim=64)
    shapes = tiny_pipeline.module_shapes(CogVideoXTransformer3DModel(released_sizes(config)))
    return tiny_pipeline.random_weights(shapes, 0)


def in_blocks(kind: str) -> dict[str, torch.Tensor]:
    """Return the weights with the large matrices as `<layer>.<type>_qweight`."""
    out = {}
    for key, tensor in weights().items():
        if EIGHT_BIT.fullmatch(key):
            out[f"{key.removesuffix('weight')}{kind}_qweight"] = ggml.quantise(tensor, kind)
        else:
            out[key] = tensor
    return out


def rounded(kind: str) -> dict[str, torch.Tensor]:
    """Return the numbers that those blocks hold."""
    return {
        key: ggml.dequantise(ggml.quantise(tensor, kind), kind) if EIGHT_BIT.fullmatch(key) else tensor
        for key, tensor in weights().items()
    }


def write_gguf(path: Path, state_dict, architecture: str = "cogvideox") -> str:
    """Write a file with the package's own writer; `<layer>.<type>_qweight` become weights of that type."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, tensor in state_dict.items():
        layer, _, suffix = key.rpartition(".")
        kind, packed, _ = suffix.partition("_qweight")
        if packed:
            writer.add_tensor(f"{layer}.weight", tensor.numpy(), raw_dtype=gguf.GGMLQuantizationType[kind])
        elif tensor.dtype == torch.bfloat16:
            data = tensor.contiguous().view(torch.uint8).numpy()
            writer.add_tensor(key, data, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(key, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


FILES = {
    "gguf": lambda folder, kind: write_gguf(folder / "a.gguf", in_blocks(kind)),
    "qweight": lambda folder, kind: saved(folder / "a.safetensors", in_blocks(kind)),
}


@pytest.fixture
def dense(tmp_path_factory):
    return lambda kind: loading.load_model(saved(tmp_path_factory.mktemp("dense") / "a.safetensors", rounded(kind)))


def in_memory(kind: str) -> dict[str, torch.Tensor]:
    return {key.replace(f"{kind}_qweight", "weight"): tensor for key, tensor in in_blocks(kind).items()}


@cache
def adapter() -> dict[str, torch.Tensor]:
    """Return a LoRA of rank 4 on every matrix of the blocks, about half of them in size."""
    generator, out = torch.Generator().manual_seed(3), {}
    for key, tensor in weights().items():
        if EIGHT_BIT.fullmatch(key):
            layer, (rows, columns) = f"diffusion_model.{key.removesuffix('.weight')}", tensor.shape
            down, up = (torch.randn(shape, generator=generator) for shape in ((4, columns), (rows, 4)))
            out |= {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": 0.25 * up / columns**0.5}
    return out


def with_lora(patcher, strength: float = 1.0):
    return comfy.sd.load_lora_for_models(patcher, None, adapter(), strength, 0.0)[0]


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", ggml.QUANTISED)
def test_each_type_computes_with_the_numbers_of_its_blocks(kind, file, dense, tmp_path):
    patcher = loading.load_model(FILES[file](tmp_path, kind))
    content = parameters(patcher)
    for key, tensor in in_memory(kind).items():
        assert torch.equal(content[key], tensor), key
    result = velocity(patcher)
    assert relative_error(result, velocity(dense(kind))) < ROUNDING
    exact = velocity(loading.load_model(saved(tmp_path / "exact.safetensors", weights())))
    assert FORWARD[kind] / 4 < relative_error(result, exact) < FORWARD[kind]
    assert f", {kind} quantised, " in loading.describe(patcher)


def test_a_model_in_blocks_takes_their_size_in_memory(tmp_path):
    patcher = loading.load_model(FILES["gguf"](tmp_path, "Q4_K"))
    blocks = sum(tensor.nbytes for tensor in in_blocks("Q4_K").values())
    marks = sum(tensor.nbytes for key, tensor in parameters(patcher).items() if key.endswith("comfy_quant"))
    buffers = sum(tensor.nbytes for tensor in patcher.model.model_sampling.state_dict().values())
    assert patcher.model_size() == blocks + marks + buffers
    large = patcher.model.diffusion_model.transformer_blocks[0].ff.net[2].weight
    assert isinstance(large, QuantizedTensor) and large._qdata.nbytes == 256 * 1024 * 4.5 / 8


def blocks_under(rename) -> dict[str, torch.Tensor]:
    """Return the blocks under the names that `rename` gives to weights."""
    named = {key.replace("Q5_K_qweight", "weight"): tensor for key, tensor in in_blocks("Q5_K").items()}
    return {
        key.removesuffix("weight") + "Q5_K_qweight" if tensor.dtype == torch.uint8 else key: tensor
        for key, tensor in rename(named).items()
    }


LAYOUTS = {
    "ComfyUI core": to_core,
    "with a prefix": lambda state_dict: prefixed(state_dict, "model.diffusion_model."),
    "fused qkv": fused,
}


@pytest.mark.parametrize("file", ["gguf", "qweight"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_names_lead_to_the_same_blocks(layout, file, tmp_path):
    state_dict = blocks_under(LAYOUTS[layout])
    write = {"gguf": write_gguf, "qweight": saved}[file]
    path = write(tmp_path / {"gguf": "a.gguf", "qweight": "a.safetensors"}[file], state_dict)
    content = parameters(loading.load_model(path))
    for key, tensor in in_memory("Q5_K").items():
        assert torch.equal(content[key], tensor), key


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_unquantised_gguf_files_are_like_safetensors(dtype, tmp_path):
    state_dict = {key: tensor.to(dtype) for key, tensor in weights().items()}
    patcher = loading.load_model(write_gguf(tmp_path / "a.gguf", state_dict))
    assert "quantised" not in loading.describe(patcher)
    again = loading.load_model(saved(tmp_path / "a.safetensors", state_dict))
    assert parameters(patcher).keys() == parameters(again).keys()
    assert relative_error(velocity(patcher), velocity(again)) < ROUNDING
    assert "fp8_e4m3fn quantised" in loading.describe(loading.load_model(str(tmp_path / "a.gguf"), "fp8_e4m3fn"))


def test_types_may_be_mixed_and_embeddings_quantised(tmp_path):
    """As other converters write: several types in one file, and every matrix but the smallest."""
    state_dict, expected = dict(weights()), dict(weights())
    for number, (key, tensor) in enumerate(weights().items()):
        if tensor.ndim == 2 and tensor.shape[1] % 256 == 0:
            kind = ggml.QUANTISED[number % len(ggml.QUANTISED)]
            blocks = ggml.quantise(state_dict.pop(key), kind)
            state_dict[f"{key.removesuffix('weight')}{kind}_qweight"] = blocks
            expected[key] = ggml.dequantise(blocks, kind)
    assert "proj_out.weight" not in state_dict and "norm_out.linear.weight" in state_dict
    patcher = loading.load_model(write_gguf(tmp_path / "a.gguf", state_dict))
    whole = loading.load_model(saved(tmp_path / "a.safetensors", expected))
    assert relative_error(velocity(patcher), velocity(whole)) < ROUNDING


def test_the_blocks_are_mapped_from_the_file(tmp_path):
    patcher = loading.load_model(FILES["gguf"](tmp_path, "Q8_0"))
    weight = patcher.model.diffusion_model.transformer_blocks[0].ff.net[2].weight
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        pytest.skip("needs the list of mapped files")
    spans = [line.split()[0].split("-") for line in maps.read_text().splitlines() if line.endswith("a.gguf")]
    assert any(int(start, 16) <= weight._qdata.data_ptr() < int(end, 16) for start, end in spans)


@pytest.mark.parametrize("weight_dtype", ["bf16", "fp16", "fp32"])
def test_a_chosen_type_unpacks_the_blocks(weight_dtype, tmp_path):
    patcher = loading.load_model(FILES["gguf"](tmp_path, "Q4_K"), weight_dtype)
    dtype = loading.WEIGHT_DTYPES[weight_dtype]
    content = parameters(patcher)
    assert content.keys() == weights().keys()
    for key, tensor in rounded("Q4_K").items():
        assert torch.equal(content[key], tensor.to(dtype)), key
    assert f", {weight_dtype}, " in loading.describe(patcher)


def test_unpacking_can_be_cancelled(cancel_at, tmp_path):
    seen = cancel_at(1)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        loading.load_model(FILES["gguf"](tmp_path, "Q4_K"), "bf16")
    assert seen == [1]


def test_it_samples_through_the_stock_node(tmp_path):
    state_dict = {key: tensor for key, tensor in in_blocks("Q4_0").items()}
    latent = video(loading.load_model(saved(tmp_path / "a.safetensors", state_dict)), "1.5")
    assert torch.isfinite(latent).all() and latent.std() > 0.1


# --- patches --------------------------------------------------------------------------------------------------------


LOADED = {"whole": 0, "in part": 2_000_000, "not": 1}


@pytest.mark.parametrize("loaded", LOADED)
def test_a_lora_is_added_to_the_dequantised_weight(loaded, dense, tmp_path):
    """Nothing of it is rounded into the blocks, on the card or off it."""
    narrow, wide = loading.load_model(FILES["gguf"](tmp_path, "Q4_K")), dense("Q4_K")
    plain, results = velocity(narrow), []
    for patcher, memory in ((with_lora(narrow), LOADED[loaded]), (with_lora(wide), 0)):
        assert len(patcher.patches) == 12
        patcher.patch_model(CPU, memory)
        results.append(velocity(patcher))
        patcher.unpatch_model(CPU)
    assert relative_error(results[0], plain) > 0.1
    assert relative_error(*results) < ROUNDING
    assert relative_error(velocity(wide), plain) < ROUNDING
    narrow.patch_model(CPU, LOADED[loaded])
    assert relative_error(velocity(narrow), plain) < ROUNDING
    narrow.unpatch_model(CPU)


def test_layers_offloaded_later_keep_their_lora_once(dense, tmp_path):
    patcher = with_lora(loading.load_model(FILES["gguf"](tmp_path, "Q4_K")))
    patcher.patch_model(CPU, 0)
    before = velocity(patcher)
    assert patcher.partially_unload(CPU, 1e9) > 0
    assert relative_error(velocity(patcher), before) < ROUNDING
    patcher.partially_load(CPU, 1e9)
    assert relative_error(velocity(patcher), before) < ROUNDING
    patcher.unpatch_model(CPU)


def test_clones_with_other_strengths_share_the_blocks(tmp_path):
    patcher = loading.load_model(FILES["gguf"](tmp_path, "Q8_0"))
    results = {}
    for strength in (0.5, 1.0, 0.5, 0.0):
        clone = with_lora(patcher, strength) if strength else patcher
        assert clone.model is patcher.model
        comfy.model_management.load_models_gpu([clone])
        result = velocity(clone)
        assert relative_error(result, results.setdefault(strength, result)) < ROUNDING
    assert len({result.sum().item() for result in results.values()}) == 3
    for key, tensor in in_memory("Q8_0").items():
        assert torch.equal(parameters(patcher)[key], tensor), key


def test_the_host_can_load_it_anew(tmp_path, monkeypatch):
    class Dynamic(comfy.model_patcher.ModelPatcher):
        """Stands for the patcher of graphics cards, which does not run on a CPU."""

        def is_dynamic(self):
            return True

    path = FILES["gguf"](tmp_path, "Q6_K")
    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Dynamic)
    patcher = with_lora(loading.load_model(path))
    again = patcher.clone(disable_dynamic=True)
    assert type(again) is comfy.model_patcher.ModelPatcher and again.model is not patcher.model
    again.patch_model(CPU, 0)
    reference = with_lora(again.__class__.clone(loading.load_model(path, disable_dynamic=True)))
    reference.patch_model(CPU, 0)
    assert relative_error(velocity(again), velocity(reference)) < ROUNDING


def test_the_dynamic_memory_of_cards_is_never_given_a_lora(tmp_path):
    """It would round the sum into the blocks it holds; the layer adds the LoRA itself."""
    patcher = with_lora(loading.load_model(FILES["gguf"](tmp_path, "Q8_0")))
    layer = patcher.model.diffusion_model.transformer_blocks[0].attn1.to_q
    layer.weight_lowvram_function = comfy.model_patcher.LowVramPatch("x.weight", {})
    assert layer.weight_lowvram_function is None


def test_a_backward_pass_keeps_blocks(tmp_path):
    path, kept = FILES["gguf"](tmp_path, "Q4_K"), []
    with torch.inference_mode(False), torch.enable_grad():
        layer = loading.load_model(path).model.diffusion_model.transformer_blocks[0].ff.net[2]
        dense = layer.weight.dequantize()
        x = torch.randn(2, 5, 1024, generator=torch.Generator().manual_seed(4), requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
        ):
            y = layer(x)
        y.square().sum().backward()
        plain = x.detach().clone().requires_grad_()
        torch.nn.functional.linear(plain, dense, layer.bias).square().sum().backward()
    assert relative_error(x.grad, plain.grad) < ROUNDING
    assert any(isinstance(tensor, QuantizedTensor) for tensor in kept)
    assert all(isinstance(tensor, QuantizedTensor) for tensor in kept if tensor.numel() == dense.numel())


TRAINING = dict(
    batch_size=1,
    steps=3,
    grad_accumulation_steps=1,
    learning_rate=1e-3,
    rank=2,
    optimizer="AdamW",
    loss_function="MSE",
    seed=1,
    training_dtype="fp32",
    lora_dtype="fp32",
    quantized_backward=False,
    algorithm="LoRA",
    gradient_checkpointing=True,
    checkpoint_depth=1,
    offloading=False,
    existing_lora="[None]",
    bucket_mode=False,
)


@newer_only
@pytest.mark.parametrize("bypass", [False, True])
def test_the_stock_node_trains_a_lora_on_blocks(bypass, tmp_path):
    patcher = loading.load_model(FILES["gguf"](tmp_path, "Q4_K"))
    latent = torch.randn(1, 16, 3, 8, 12, generator=torch.Generator().manual_seed(5))
    text = torch.randn(1, 226, 32, generator=torch.Generator().manual_seed(6))
    values = {name: [value] for name, value in (TRAINING | {"bypass_mode": bypass}).items()}
    out = TrainLoraNode.execute(model=[patcher], latents=[{"samples": latent}], positive=[[[text, {}]]], **values)
    trained, losses = out.result[0], out.result[1]["loss"]
    ups = [tensor for key, tensor in trained.items() if "ff.net.2" in key and key.endswith("lora_up.weight")]
    assert len(losses) == 3 and all(map(math.isfinite, losses))
    assert len(ups) == 2 and all(tensor.any() for tensor in ups)
    content = parameters(patcher)
    assert all(torch.equal(content[key], tensor) for key, tensor in in_memory("Q4_K").items())
    plain = velocity(patcher)
    learned = comfy.sd.load_lora_for_models(patcher, None, trained, 1.0, 0.0)[0]
    learned.patch_model(CPU, 0)
    assert relative_error(velocity(learned), plain) > 1e-5
    learned.unpatch_model(CPU)


# --- saving and converting ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ggml.QUANTISED)
def test_the_stock_node_saves_the_blocks(kind, tmp_path):
    patcher = loading.load_model(FILES["gguf"](tmp_path, kind))
    path = save_with_stock_node(patcher, f"blocks-{kind}")
    content = load_file(path)
    assert content.keys() - {"v_pred", "ztsnr"} == in_blocks(kind).keys()
    assert all(torch.equal(content[key], tensor) for key, tensor in in_blocks(kind).items())
    again = loading.load_model(str(path))
    assert relative_error(velocity(again), velocity(patcher)) < ROUNDING


def test_a_lora_is_not_saved_into_blocks(tmp_path):
    patcher = with_lora(loading.load_model(FILES["gguf"](tmp_path, "Q4_K")))
    with pytest.raises(ModelFileError, match="A LoRA or merge cannot be saved into weights in GGUF blocks"):
        save_with_stock_node(patcher, "blocks-with-lora")
    wide = with_lora(loading.load_model(str(tmp_path / "a.gguf"), "fp32"))
    again = loading.load_model(str(save_with_stock_node(wide, "unpacked-with-lora")))
    assert not torch.equal(
        parameters(again)["transformer_blocks.0.attn1.to_q.weight"],
        rounded("Q4_K")["transformer_blocks.0.attn1.to_q.weight"],
    )


def convert(*arguments) -> None:
    gguf_convert.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("kind", ggml.BLOCKS)
def test_the_converter_writes_what_the_loader_reads(kind, tmp_path):
    source = saved(tmp_path / "a.safetensors", to_core(weights()))
    convert(source, tmp_path / "a.gguf", "--type", kind)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert {tensor.name for tensor in reader.tensors} == weights().keys()
    assert reader.get_field("general.architecture").contents() == "cogvideox"
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert {types[key] for key in types if EIGHT_BIT.fullmatch(key)} == {kind}
    assert {types[key] for key in types if not EIGHT_BIT.fullmatch(key)} == {"F32"}
    loaded = parameters(loading.load_model(str(tmp_path / "a.gguf")))
    if kind in ggml.QUANTISED:
        assert all(torch.equal(loaded[key], tensor) for key, tensor in in_memory(kind).items())
    convert(tmp_path / "a.gguf", tmp_path / "back.safetensors", "--type", "F32")
    for key, tensor in load_file(tmp_path / "back.safetensors").items():
        expected = weights()[key]
        if EIGHT_BIT.fullmatch(key):
            expected = ggml.dequantise(ggml.quantise(expected, kind), kind)
        assert torch.equal(tensor, expected), key


def test_the_converter_runs_as_a_file(tmp_path):
    """Alone, outside ComfyUI; what it cannot convert ends in a sentence."""
    run = partial(subprocess.run, capture_output=True, text=True)
    done = run(
        [sys.executable, gguf_convert.__file__, saved(tmp_path / "a.safetensors", weights()), tmp_path / "a.gguf"]
    )
    assert done.returncode == 0 and "a.gguf" in done.stdout, done.stderr
    assert "Q8_0 quantised" in loading.describe(loading.load_model(str(tmp_path / "a.gguf")))
    other = saved(tmp_path / "b.safetensors", {"double_blocks.0.img_attn.qkv.weight": torch.zeros(4, 4)})
    done = run([sys.executable, gguf_convert.__file__, other, tmp_path / "b.gguf"])
    assert done.returncode == 1 and "The file holds a Flux" in done.stderr and "Traceback" not in done.stderr


def test_the_converter_keeps_blocks_and_finds_a_type_that_fits(tmp_path):
    convert(saved(tmp_path / "a.safetensors", in_blocks("Q4_0")), tmp_path / "a.gguf", "--type", "Q8_0")
    content = parameters(loading.load_model(str(tmp_path / "a.gguf")))
    assert all(torch.equal(content[key], tensor) for key, tensor in in_memory("Q4_0").items())
    narrow = tiny_pipeline.module_shapes(CogVideoXTransformer3DModel(tiny_pipeline.VARIANTS["2b"]))
    convert(
        saved(tmp_path / "b.safetensors", tiny_pipeline.random_weights(narrow, 0)),
        tmp_path / "b.gguf",
        "--type",
        "Q4_K",
    )
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "b.gguf").tensors}
    assert types["transformer_blocks.0.attn1.to_q.weight"] == "Q5_0"  # 64 numbers a row
    assert types["transformer_blocks.0.ff.net.2.weight"] == "Q4_K"  # 256


# --- what is refused ------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def cut_early(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def no_gguf(path: Path) -> None:
    path.write_bytes(b"PK" + path.read_bytes())


def old_version(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"GGUF\x03", b"GGUF\x01", 1))


DAMAGE = {
    cut: "is cut short or damaged",
    cut_early: "is cut short or damaged",
    no_gguf: "is not a GGUF file, whatever its name says",
    old_version: "is of a GGUF version that",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damaged_files_are_refused(damage, tmp_path):
    path = Path(FILES["gguf"](tmp_path, "Q4_0"))
    damage(path)
    with pytest.raises(ModelFileError, match=DAMAGE[damage]) as error:
        loading.load_model(str(path))
    assert path.name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["Q2_K", "IQ4_NL", "Q4_1"])
def test_other_types_are_named(kind, tmp_path):
    state_dict = dict(weights())
    key = "transformer_blocks.0.ff.net.2.weight"
    rows, numbers = state_dict.pop(key).shape
    size, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = torch.zeros(rows, numbers // size * width, dtype=torch.uint8)
    path = write_gguf(tmp_path / "a.gguf", state_dict | {key.removesuffix("weight") + f"{kind}_qweight": blocks})
    with pytest.raises(ModelFileError, match=f"holds weights of the type {kind} .*which this node does not read"):
        loading.load_model(path)


def test_types_that_the_package_does_not_know_are_named(tmp_path):
    path = Path(FILES["gguf"](tmp_path, "Q4_0"))
    reader = gguf.GGUFReader(path)
    offset = next(t.field.parts[4] for t in reader.tensors if t.tensor_type.name == "Q4_0")
    start = offset.ctypes.data - reader.data.ctypes.data
    content = bytearray(path.read_bytes())
    content[start : start + 4] = (250).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="a type that the installed package gguf does not know"):
        loading.load_model(str(path))


OTHER = {
    "flux": "double_blocks.0.img_attn.qkv.weight",
    "wan": "blocks.0.cross_attn.k.weight",
    "llama": "blk.0.attn_q.weight",
    "t5": "enc.blk.0.attn_q.weight",
}


@pytest.mark.parametrize("architecture", OTHER)
def test_models_of_another_architecture_are_refused(architecture, tmp_path):
    state_dict = {OTHER[architecture]: torch.zeros(4, 4), "token_embd.weight": torch.zeros(4, 4)}
    path = write_gguf(tmp_path / "a.gguf", state_dict, architecture)
    with pytest.raises(ModelFileError, match=f"holds a model of the architecture {architecture}, but a CogVideoX"):
        loading.load_model(path)


def test_blocks_that_do_not_fit_the_model_are_refused(tmp_path):
    state_dict = in_blocks("Q8_0")
    key = "transformer_blocks.1.ff.net.2.Q8_0_qweight"
    state_dict[key] = state_dict[key][:, :-34].contiguous()
    with pytest.raises(CheckpointError, match="of another shape"):
        loading.load_model(write_gguf(tmp_path / "a.gguf", state_dict))
    state_dict[key] = state_dict[key][:, :-3].contiguous()
    with pytest.raises(CheckpointError, match="The file is damaged in transformer_blocks.1.ff.net.2"):
        loading.load_model(saved(tmp_path / "a.safetensors", state_dict))


def test_the_package_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    path = FILES["gguf"](tmp_path, "Q4_0")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelFileError, match="pip install gguf"):
        loading.load_model(path)
    assert "Q4_0 quantised" in loading.describe(loading.load_model(FILES["qweight"](tmp_path, "Q4_0")))


@pytest.mark.parametrize("weight_dtype", ["fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"])
@pytest.mark.parametrize("file", FILES)
def test_blocks_are_not_rounded_to_eight_bits(file, weight_dtype, tmp_path):
    with pytest.raises(ModelFileError, match=r"is quantised already \(Q4_0\)"):
        loading.load_model(FILES[file](tmp_path, "Q4_0"), weight_dtype)


# --- lists ----------------------------------------------------------------------------------------------------------


def test_gguf_files_are_listed_here_and_nowhere_else(tmp_path, monkeypatch):
    paths, extensions = folder_paths.folder_names_and_paths["diffusion_models"]
    known = folder_paths.folder_names_and_paths | {"diffusion_models": ([str(tmp_path)], extensions)}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    files.register_folders()
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "a.gguf"
    path.touch()
    (tmp_path / "b.safetensors").touch()
    kinds = ("diffusion_models", "unet", files.GGUF_FOLDER)
    name = str(path.relative_to(tmp_path))
    assert files.listed(kinds) == ["b.safetensors", name]
    assert files.model_file(kinds, name) == path
    assert folder_paths.get_filename_list("diffusion_models") == ["b.safetensors"]
    later = tmp_path / "later"
    later.mkdir()
    folder_paths.add_model_folder_path("diffusion_models", str(later))
    assert str(later) in folder_paths.get_folder_paths(files.GGUF_FOLDER)
    with pytest.raises(ModelFileError, match="in models/diffusion_models or models/unet. Put"):
        files.model_file(kinds, "c.gguf")
