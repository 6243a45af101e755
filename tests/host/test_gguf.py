"""GGUF: each type from each kind of file, in memory as blocks, with LoRAs, offloaded, cloned, saved and refused."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import gguf
import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from pack.cogvideox import ggml
from pack.cogvideox.transformer import CogVideoXTransformer3DModel
from pack.demo import tiny_pipeline
from pack.nodes.host import loading
from pack.nodes.host.precision import EIGHT_BIT

from .pipelines import relative_error
from .test_loading import parameters, released_sizes, saved, velocity

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
    assert torch.equal(velocity(narrow), plain)
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
        assert torch.equal(results.setdefault(strength, result), result)
    assert len({result.sum().item() for result in results.values()}) == 3
    for key, tensor in in_memory("Q8_0").items():
        assert torch.equal(parameters(patcher)[key], tensor), key
