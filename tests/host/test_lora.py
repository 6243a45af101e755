"""LoRAs on the host's MODEL: our node and the stock loaders against weights merged by hand, and nothing left behind."""

import asyncio
import json
import logging
import math
import pickle
import re

import comfy.lora
import comfy.model_base
import comfy.model_management
import comfy.sd
import folder_paths
import pytest
import torch
from comfy_extras import nodes_train
from pack.cogvideox.checkpoint import CheckpointError
from pack.nodes import CogVideoXExtension
from pack.nodes.host import lora as adapter
from pack.nodes.host.conditioning import empty_latent
from pack.nodes.host.files import ModelFileError
from pack.nodes.host.loading import load_model
from pack.nodes.lora import CogVideoXLoadLoRA
from safetensors.torch import save_file

import nodes

from . import pipelines
from .pipelines import relative_error

VARIANT, RANK = "5b", 4
ATTENTION = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
TARGETS = [f"transformer_blocks.{n}.{m}" for n in (0, 1) for m in (*ATTENTION, "ff.net.0.proj", "norm1.linear")]
TARGETS += ["patch_embed.proj", "proj_out"]
PREFIX = "diffusion_model."
LOUD = 5.0  # strength at which a LoRA stands out from the rounding of eight bits
EXACT = 1e-6  # float32, where the host adds in another order

pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture(scope="module", autouse=True)
def extension():
    asyncio.run(CogVideoXExtension().on_load())


def model(variant=VARIANT):
    return pipelines.ours(variant)[0]


def weights_of(patcher) -> dict[str, torch.Tensor]:
    """Return the weights a patcher computes with, as the host patches them, and put the model's own back."""
    comfy.model_management.load_models_gpu([patcher])
    out = {key: tensor.clone() for key, tensor in patcher.model.diffusion_model.state_dict().items()}
    patcher.unpatch_model()
    comfy.model_management.unload_all_models()
    return out


def random_lora(targets=TARGETS, variant=VARIANT, rank=RANK, seed=0):
    """Return (A, B) by module, of a tenth of the size of the weights."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {key: tensor.shape for key, tensor in model(variant).model.diffusion_model.state_dict().items()}
    out = {}
    for module in targets:
        rows, *columns = shapes[f"{module}.weight"]
        up = torch.randn(rows, rank, *[1] * (len(columns) - 1), generator=generator)
        out[module] = 0.05 * torch.randn(rank, *columns, generator=generator), 0.2 * up
    return out


def merged(lora, scale=1.0, base=None, variant=VARIANT):
    out = base or {key: tensor.clone() for key, tensor in model(variant).model.diffusion_model.state_dict().items()}
    for module, (down, up) in lora.items():
        key = f"{module}.weight"
        out[key] = out[key] + scale * (up.flatten(1) @ down.flatten(1)).reshape(out[key].shape)
    return out


def written(lora, form="transformer.{}", down=".lora_A.weight", up=".lora_B.weight", alpha=None):
    out = {}
    for module, (a, b) in lora.items():
        name = form.format(module if "." in form else module.replace(".", "_"))
        out |= {name + down: a, name + up: b}
        if alpha is not None:
            out[f"{name}.alpha"] = torch.tensor(float(alpha))
    return out


@pytest.fixture
def loras(tmp_path, monkeypatch):
    """Save tensors as a file of the host's `loras` and return its name."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors", ".pt"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})

    def save(tensors, name="lora.safetensors", metadata=None):
        file = tmp_path / name
        if file.suffix == ".pt":
            torch.save(tensors, file)
        else:
            save_file({key: tensor.clone() for key, tensor in tensors.items()}, file, metadata)
        return name

    save.folder = tmp_path
    return save


def ours(patcher, name, strength=1.0, scaling="auto"):
    return CogVideoXLoadLoRA.execute(patcher, name, strength, scaling).result[0]


def stock(patcher, name, strength=1.0):
    return nodes.LoraLoaderModelOnly().load_lora_model_only(patcher, name, strength)[0]


def differences(actual, expected):
    assert actual.keys() == expected.keys()
    return {key: e for key in expected if (e := relative_error(actual[key].float(), expected[key])) > 0}


def assert_merged(patcher, expected, bound=EXACT):
    """Expect these weights, and that patching has changed no other."""
    base = model().model.diffusion_model.state_dict()
    changed = [key for key in expected if not torch.equal(expected[key], base[key])]
    assert changed, "nothing was to change, so the test says nothing"
    found = differences(weights_of(patcher), expected)
    assert max(found.values(), default=0) <= bound
    assert set(found) <= set(changed)


def raises(*parts):
    return pytest.raises((CheckpointError, ModelFileError), match="(?s)" + ".*".join(re.escape(part) for part in parts))


DOWN, UP = ".lora_down.weight", ".lora_up.weight"
# layout -> (the file, what it is scaled by)
LAYOUTS = {
    "diffusers": (lambda x: written(x), 1),
    "ComfyUI": (lambda x: written(x, "diffusion_model.{}"), 1),
    "without prefix": (lambda x: {key.removeprefix("transformer."): value for key, value in written(x).items()}, 1),
    "peft": (lambda x: written(x, "base_model.model.{}"), 1),
    "default": (lambda x: written(x, "transformer.{}", ".lora_A.default.weight", ".lora_B.default.weight"), 1),
    "parameters": (lambda x: written(x, "transformer.{}", ".lora_A", ".lora_B"), 1),
    "alpha": (lambda x: written(x, alpha=2), 2 / RANK),
    "VideoX-Fun": (lambda x: written(x, "lora_unet__{}", DOWN, UP, 2), 2 / RANK),
    "kohya": (lambda x: written(x, "lora_unet_{}", DOWN, UP, 2), 2 / RANK),
    "OneTrainer": (lambda x: written(x, "lora_transformer_{}", DOWN, UP, 2), 2 / RANK),
    "LyCORIS": (lambda x: written(x, "lycoris_{}", DOWN, UP, 2), 2 / RANK),
    "Train LoRA": (lambda x: written(x, "diffusion_model.{}", DOWN, UP, 1), 1 / RANK),
}


@pytest.mark.parametrize("loader", [ours, stock])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_changes_the_weights_by_its_product(layout, loader, loras, caplog):
    write, scale = LAYOUTS[layout]
    lora = random_lora()
    patched = loader(model(), loras(write(lora)))
    assert "not loaded" not in caplog.text
    assert_merged(patched, merged(lora, scale))


@pytest.mark.parametrize("variant", ["2b", "5b-i2v", "1.5", "1.5-i2v"])
def test_every_variant_takes_a_lora(variant, loras):
    lora = random_lora(variant=variant)
    patched = ours(model(variant), loras(written(lora)))
    found = differences(weights_of(patched), merged(lora, variant=variant))
    assert max(found.values(), default=0) <= EXACT


def sat(lora):
    out = {}
    for module, pair in lora.items():
        block, name = re.fullmatch(r"transformer_blocks\.(\d)\.attn1\.(\S+)", module).groups()
        layer = "dense.matrix_{}.0" if name == "to_out.0" else f"query_key_value.matrix_{{}}.{'qkv'.index(name[-1])}"
        for letter, tensor in zip("AB", pair, strict=True):
            out[f"transformer.layers.{block}.attention.{layer.format(letter)}"] = tensor
    return {"module": out | {"transformer.layers.0.attention.dense.original.weight": torch.zeros(4, 4)}}


def attention_only():
    return random_lora([name for name in TARGETS if ".attn1." in name])


def test_the_save_of_sat_is_divided_by_its_rank(loras):
    lora = attention_only()
    assert_merged(ours(model(), loras(sat(lora), "mp_rank_00_model_states.pt")), merged(lora, 1 / RANK))


def test_alpha_of_the_header(loras):
    lora = random_lora()
    config = {"transformer.r": RANK, "transformer.lora_alpha": 3, "transformer.alpha_pattern": {"proj_out": 8}}
    name = loras(written(lora), metadata={"lora_adapter_metadata": json.dumps(config)})
    expected = merged({"proj_out": lora.pop("proj_out")}, 8 / RANK, merged(lora, 3 / RANK))
    assert_merged(ours(model(), name), expected)


def test_a_lora_that_would_outweigh_the_model_is_divided_by_its_rank(loras):
    loud = {module: (a, 40 * b) for module, (a, b) in random_lora().items()}
    name = loras(written(loud))
    assert_merged(ours(model(), name), merged(loud, 1 / RANK))
    assert_merged(ours(model(), name, scaling="none"), merged(loud))
    told = adapter.load_lora(model(), loras.folder / name, 1.0, "auto")[1]
    assert told == "14 of 14 layers, rank 4, scaling 1/rank 0.25"
    quiet = {module: (a, b / 2) for module, (a, b) in random_lora().items()}
    first = ours(model(), name)  # what is on the model already does not count
    weights_of(first)
    told = adapter.load_lora(first, loras.folder / loras(written(quiet), "quiet.safetensors"), 1.0, "auto")[1]
    assert told == "14 of 14 layers, rank 4, scaling none"


def test_one_layer_may_have_another_rank(loras):
    lora = random_lora() | random_lora(["proj_out"], rank=7)
    told = adapter.load_lora(model(), loras.folder / loras(written(lora, alpha=2)), 1.0, "auto")[1]
    assert told == "14 of 14 layers, rank 4 to 7, scaling alpha/rank 0.285714 to 0.5"


# --- kinds -----------------------------------------------------------------------------------------------------------


def test_dora_has_the_magnitudes_it_was_trained_with(loras):
    lora = {"proj_out": random_lora()["proj_out"]}
    plain = merged(lora)["proj_out.weight"]
    magnitude = torch.rand(len(plain)) + 0.5
    expected = merged(lora) | {"proj_out.weight": plain * (magnitude / plain.norm(dim=1))[:, None]}
    for ending in (".lora_magnitude_vector", ".lora_magnitude_vector.default.weight", ".dora_scale"):
        part = magnitude[:, None] if ending == ".dora_scale" else magnitude
        name = loras(written(lora) | {f"transformer.proj_out{ending}": part})
        assert_merged(ours(model(), name), expected)
    half = (expected["proj_out.weight"] + merged({})["proj_out.weight"]) / 2
    assert_merged(ours(model(), name, 0.5), expected | {"proj_out.weight": half})


@pytest.mark.parametrize("loader", [ours, stock])
def test_lokr_and_loha(loader, loras):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return 0.1 * torch.randn(*shape, generator=generator)

    one, two, three = (f"transformer_blocks.0.attn1.{name}" for name in ("to_q", "to_k", "to_v"))
    base = merged({})
    tensors, expected = {}, dict(base)
    w1, w2, w2a, w2b = draw(8, 8), draw(8, 8), draw(8, 2), draw(2, 8)
    tensors |= {f"lycoris_{one.replace('.', '_')}.lokr_{name}": w for name, w in (("w1", w1), ("w2", w2))}
    expected[f"{one}.weight"] = base[f"{one}.weight"] + torch.kron(w1, w2)
    parts = {"lokr_w1": w1, "lokr_w2_a": w2a, "lokr_w2_b": w2b, "alpha": torch.tensor(1.0)}
    tensors |= {f"transformer.{two}.{name}": tensor for name, tensor in parts.items()}
    expected[f"{two}.weight"] = base[f"{two}.weight"] + torch.kron(w1, w2a @ w2b) / 2
    a, b, c, d = draw(64, 4), draw(4, 64), draw(64, 4), draw(4, 64)
    parts = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": torch.tensor(2.0)}
    tensors |= {f"diffusion_model.{three}.{name}": tensor for name, tensor in parts.items()}
    expected[f"{three}.weight"] = base[f"{three}.weight"] + (a @ b) * (c @ d) / 2
    assert_merged(loader(model(), loras(tensors)), expected)


@pytest.mark.parametrize("loader", [ours, stock])
def test_plain_differences_of_weights_norms_and_biases(loader, loras):
    base = merged({})
    changes = {
        "norm_final.weight": "diff",
        "proj_out.bias": "diff_b",
        "transformer_blocks.0.attn1.norm_q.weight": "diff",
    }
    tensors = {f"{PREFIX}{key.rpartition('.')[0]}.{end}": torch.randn(base[key].shape) for key, end in changes.items()}
    expected = dict(base)
    for key, tensor in zip(changes, tensors.values(), strict=True):
        expected[key] = base[key] + tensor
    assert_merged(loader(model(), loras(tensors)), expected)


def test_bias_of_the_up_matrix(loras):
    lora, bias = {"proj_out": random_lora()["proj_out"]}, torch.randn(64)
    name = loras(written(lora, alpha=2) | {"transformer.proj_out.lora_B.bias": bias})
    base = merged(lora, 2 / RANK)
    assert_merged(ours(model(), name), base | {"proj_out.bias": base["proj_out.bias"] + bias * 2 / RANK})


# --- strength, stacking, storage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.5, -1.0, 2.5])
def test_strength_scales_and_may_be_negative(strength, loras):
    lora = random_lora()
    assert_merged(ours(model(), loras(written(lora)), strength), merged(lora, strength))


def test_strength_zero_is_a_clone_without_the_lora(loras):
    patched = ours(model(), loras(written(random_lora())), 0.0)
    assert patched is not model() and patched.patches == {}


@pytest.mark.parametrize("second", [ours, stock])
def test_loras_stack(second, loras):
    one, two = random_lora(), random_lora(TARGETS[:5], rank=2, seed=1)
    first = ours(model(), loras(written(one), "one.safetensors"), 0.7)
    both = second(first, loras(written(two), "two.safetensors"), 0.4)
    assert_merged(both, merged(two, 0.4, merged(one, 0.7)))
    assert_merged(first, merged(one, 0.7))


def test_clones_do_not_leak_and_the_model_stays_as_it_was(loras):
    before = {key: tensor.clone() for key, tensor in model().model.state_dict().items()}
    uuid = model().patches_uuid
    patched = ours(model(), loras(written(random_lora())))
    weights_of(patched)
    assert model().patches == {} and model().patches_uuid == uuid
    assert patched.model is model().model
    after = model().model.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


def run(patcher):
    positive, negative = pipelines.prompts(VARIANT)
    latent = empty_latent(32, 32, 9, 1)
    return nodes.KSampler().sample(patcher, 3, 2, 6.0, "euler", "simple", positive, negative, latent, 1.0)[0]["samples"]


def test_another_strength_samples_on_the_same_model_without_loading_it_again(loras, monkeypatch):
    name = loras(written(random_lora()))
    plain = run(model())
    first = run(ours(model(), name, 0.3))
    monkeypatch.setattr(comfy.model_base.BaseModel, "load_model_weights", lambda *_: pytest.fail("loaded again"))
    second = run(ours(model(), name, 1.0))
    assert relative_error(first, plain) > 1e-4 and relative_error(second, first) > 1e-4
    assert torch.equal(run(ours(model(), name, 0.3)), first)
    assert torch.equal(run(model()), plain)


@pytest.mark.parametrize(("weight_dtype", "bound"), [("bf16", 6e-3), ("fp8_e4m3fn", 0.06), ("fp8_e5m2", 0.12)])
def test_a_narrow_model_takes_a_lora_as_the_stock_loader_does(weight_dtype, bound, loras):
    patcher = load_model(str(pipelines.folder(VARIANT)), weight_dtype)
    lora = random_lora()
    name = loras(written(lora))
    wide = {key: tensor.clone() for key, tensor in model().model.diffusion_model.state_dict().items()}

    def patched_weights(patched):
        comfy.model_management.load_models_gpu([patched])
        modules = dict(patched.model.diffusion_model.named_modules())
        out = {}
        for module in lora:
            weight = modules[module].weight
            out[module] = (weight.dequantize() if hasattr(weight, "dequantize") else weight).float().clone()
        patched.unpatch_model()
        comfy.model_management.unload_all_models()
        return out

    actual, theirs = (patched_weights(load(patcher, name, LOUD)) for load in (ours, stock))
    expected = merged(lora, LOUD)
    for module in lora:
        key = f"{module}.weight"
        assert torch.equal(actual[module], theirs[module])
        assert relative_error(actual[module], expected[key]) <= bound
        assert relative_error(wide[key], expected[key]) > 2 * bound, "the LoRA drowns in the rounding"


def test_weights_that_wait_in_main_memory_get_the_lora_as_they_come(loras):
    lora = random_lora()
    magnitude = {"transformer.proj_out.lora_magnitude_vector": torch.rand(64) + 0.5}
    patched = ours(model(), loras(written(lora) | magnitude))
    network, cpu = patched.model.diffusion_model, torch.device("cpu")
    x, context = torch.randn(1, 16, 3, 8, 12), torch.randn(1, 226, 32)
    outputs = []
    for memory in (0, 1):  # 1 byte: nothing stays on the device; 0: no limit
        patched.patch_model(device_to=cpu, lowvram_model_memory=memory)
        assert bool(network.proj_out.weight_function) == bool(memory)
        outputs.append(network(x, torch.tensor([403.0]), context))
        patched.unpatch_model(cpu)
    assert relative_error(*outputs) <= 1e-5
    assert relative_error(network(x, torch.tensor([403.0]), context), outputs[0]) > 1e-3


# --- the stock loaders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bypass", [False, True])
def test_what_train_lora_gives_loads_in_its_own_loader(bypass, loras):
    lora = random_lora()
    tensors = written(lora, "diffusion_model.{}", DOWN, UP, 1)
    patched = nodes_train.LoraModelLoader.execute(model(), tensors, 1.0, bypass).result[0]
    expected = run(ours(model(), loras(tensors)))
    assert relative_error(run(patched), expected) <= 1e-4
    assert relative_error(run(model()), expected) > 1e-3


def test_names_are_told_once_and_of_this_model_only(monkeypatch):
    wrapped = comfy.lora.model_lora_keys_unet
    adapter.register_lora_keys()
    assert comfy.lora.model_lora_keys_unet is wrapped

    class Other(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.diffusion_model = torch.nn.ModuleDict({"proj_out": torch.nn.Linear(2, 2)})
            self.model_config = type("Config", (), {"unet_config": {}})

    assert wrapped(Other(), {}) == wrapped.__wrapped__(Other(), {})
    assert wrapped.__wrapped__(model().model, {}).items() <= wrapped(model().model).items()
    assert "transformer.proj_out" not in wrapped.__wrapped__(model().model)  # the shared default of the host is clean

    mine = {"mine": "key"}
    monkeypatch.setattr(comfy.lora, "model_lora_keys_unet", lambda *args: wrapped(*args) | mine)
    adapter.register_lora_keys()  # another pack came after
    found = comfy.lora.model_lora_keys_unet(model().model, {})
    assert mine.items() <= found.items() and found["transformer.proj_out"] == "diffusion_model.proj_out.weight"


@pytest.mark.parametrize("algorithm", ["LoRA", "LoHa", "LoKr", "OFT"])
@pytest.mark.parametrize("loader", [ours, stock])
def test_all_that_train_lora_trains_is_loaded(loader, algorithm, loras, caplog):
    with torch.inference_mode(False):
        tensors, _ = nodes_train._setup_lora_adapters(model().clone(), {}, algorithm, torch.float32, 4)
        tensors = {key: tensor.detach() for key, tensor in tensors.items()}
    generator = torch.Generator().manual_seed(0)
    for key, tensor in tensors.items():
        if not key.endswith("alpha"):
            tensors[key] = 0.05 * torch.randn(tensor.shape, generator=generator)
    patched = loader(model(), loras(tensors))
    assert "not loaded" not in caplog.text and "Left out" not in caplog.text
    base = merged({})
    changed = {key for key, tensor in weights_of(patched).items() if not torch.equal(tensor, base[key])}
    assert changed == set(base)


def test_the_loader_of_model_and_text_encoder_changes_the_model(loras):
    lora = random_lora()
    clip = pipelines.ours(VARIANT)[1]
    patched, same = nodes.LoraLoader().load_lora(model(), clip, loras(written(lora)), 1.0, 1.0)
    assert_merged(patched, merged(lora))
    assert same.patcher.patches == {}


def test_the_learned_positions_are_left_out(loras):
    """The host changes no weight of a module that holds other modules, and says nothing."""
    lora = random_lora(["proj_out"], "5b-i2v")
    table = model("5b-i2v").model.diffusion_model.patch_embed.pos_embedding
    name = loras(written(lora) | {f"{PREFIX}patch_embed.pos_embedding.diff": torch.randn(table.shape)})
    told = adapter.load_lora(model("5b-i2v"), loras.folder / name, 1.0, "none")[1]
    assert "1 of 2 layers" in told and "1 layers (diffusion_model.patch_embed.pos_embedding)" in told


# --- in part, and not at all -----------------------------------------------------------------------------------------


def test_a_part_that_does_not_fit_is_told_with_numbers_and_names(loras, caplog):
    lora = random_lora()
    pair = lora["transformer_blocks.0.attn1.to_q"]
    extra = {f"transformer_blocks.{n}.attn1.to_q": pair for n in range(2, 9)}
    tensors = written(lora | extra) | {"lora_te_encoder_x.lora_down.weight": torch.zeros(2, 2), "step": torch.zeros(1)}
    name = loras(tensors)
    with caplog.at_level(logging.WARNING):
        patched, told = adapter.load_lora(model(), loras.folder / name, 1.0, "auto")
    first, *rest = told.split("\n")
    assert first == "14 of 21 layers, rank 4, scaling none"
    assert rest[0].startswith(f"Left out, not fitting {model().model.variant.name}: 7 layers (transformer_blocks.2.")
    assert rest[0].endswith(", ...)") and rest[0].count("the model has none") == 5
    assert rest[1] == "Left out, for a text encoder: 1 tensors"
    assert rest[2] == "Left out, no part of a LoRA: 1 tensors"
    assert all(f"{name}: {line}" in caplog.text for line in rest)
    assert_merged(patched, merged(lora))


def test_a_control_lora_says_which_channels_it_misses(loras):
    lora = random_lora(["patch_embed.proj", "proj_out"], "5b-i2v")
    patched, told = adapter.load_lora(model(), loras.folder / loras(written(lora)), 1.0, "none")
    assert "trained with 32 input channels" in told and "has 16" in told
    down, up = lora["patch_embed.proj"]
    assert_merged(patched, merged(lora | {"patch_embed.proj": (down[:, :16], up)}))


def safetensors_bytes(loras):
    return (loras.folder / loras(written(random_lora()))).read_bytes()


class Code:
    def __reduce__(self):
        return (eval, ("1",))


def wan():
    return written({"blocks.0.self_attn.q": (torch.zeros(4, 64), torch.zeros(64, 4))}, "diffusion_model.{}")


BAD = {
    "cut short": (lambda loras: safetensors_bytes(loras)[:-100], "bad.safetensors", "is cut short"),
    "empty": (lambda loras: b"", "bad.safetensors", "is empty"),
    "a web page": (lambda loras: b"<html>" * 99, "bad.safetensors", "is not a safetensors file"),
    "code": (lambda loras: pickle.dumps({"x": Code()}), "bad.pt", "holds more than tensors and was not opened"),
    "Wan": (lambda loras: wan(), "bad.safetensors", "a LoRA of another model (Wan or Cosmos)"),
    "NaN": (
        lambda loras: written({"proj_out": (torch.full((4, 64), math.nan), torch.zeros(64, 4))}),
        "bad.safetensors",
        "holds invalid numbers (NaN) in proj_out",
    ),
    "ranks": (
        lambda loras: written({"proj_out": (torch.zeros(4, 64), torch.zeros(64, 8))}),
        "bad.safetensors",
        "so their ranks differ",
    ),
    "another width": (
        lambda loras: written({"transformer_blocks.0.attn1.to_q": (torch.zeros(4, 1920), torch.zeros(1920, 4))}),
        "bad.safetensors",
        "was trained on a model 1920 wide (CogVideoX-2B)",
    ),
    "nothing fits": (
        lambda loras: written({"ofs_embedding.linear_1": (torch.zeros(4, 64), torch.zeros(64, 4))}),
        "bad.safetensors",
        "None of the LoRA's 1 layers fits",
    ),
    "a model": (
        lambda loras: model().model.diffusion_model.state_dict(),
        "bad.safetensors",
        "a CogVideoX transformer, but a LoRA was needed. Load it with Load CogVideoX Model",
    ),
    "a VAE": (
        lambda loras: {"decoder.mid_block.resnets.0.norm1.conv_y.conv.weight": torch.zeros(1)},
        "bad.safetensors",
        "a CogVideoX VAE, but a LoRA was needed",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_in_a_sentence_and_the_model_stays(case, loras):
    make, name, said = BAD[case]
    made = make(loras)
    if isinstance(made, bytes):
        (loras.folder / name).write_bytes(made)
    else:
        loras(made, name)
    folder_paths.filename_list_cache.clear()
    before, uuid = dict(model().patches), model().patches_uuid
    with raises(said) as caught:
        ours(model(), name)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
    assert model().patches == before == {} and model().patches_uuid == uuid


def test_a_file_outside_the_folder_is_not_opened(loras):
    with raises("There is no file named"):
        ours(model(), "../lora.safetensors")


def test_another_model_is_refused(loras):
    other = type("Patcher", (), {"model": torch.nn.Module()})
    with pytest.raises(ValueError, match="needs a CogVideoX model and got another one"):
        ours(other(), loras(written(random_lora())))


def test_alpha_over_rank_without_alpha_is_refused(loras):
    with raises("holds no alpha"):
        ours(model(), loras(written(random_lora())), scaling="alpha/rank")
