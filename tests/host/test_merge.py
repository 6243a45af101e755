"""Merging: the stock nodes and ours against arithmetic by hand, saved, loaded again and taken apart into a LoRA."""

import comfy.model_management
import folder_paths
import pytest
import torch
from comfy_extras import nodes_lora_extract
from comfy_extras.nodes_model_merging import ModelAdd, ModelMergeSimple, ModelSave, ModelSubtract
from pack.demo import tiny_pipeline
from pack.nodes.host import loading, merging
from pack.nodes.host.conditioning import empty_latent
from pack.nodes.merging import CogVideoXMergeBlocks

import nodes

from . import pipelines
from .pipelines import FRAMES, HEIGHT, WIDTH, relative_error

PREFIX = "diffusion_model."
SEED = 3
VARIANTS = ("2b", "5b-i2v", "1.5-i2v")

pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Return pipelines of the same shapes with other weights."""
    folders = {}
    for variant in VARIANTS:
        folders[variant] = tmp_path_factory.mktemp("other") / variant
        tiny_pipeline.write(folders[variant], variant, seed=SEED)
    return folders


@pytest.fixture
def pair(others, request):
    """Return two MODELs of a variant and the weights of both, under diffusers' names."""
    variant = getattr(request, "param", "5b-i2v")
    models = pipelines.ours(variant)[0], loading.load_model(str(others[variant]), "fp32")
    comfy.model_management.unload_all_models()  # clones share the weights, which hold the patches of what ran last
    before = [weights(model) for model in models]
    yield *models, *before
    comfy.model_management.unload_all_models()
    for model, held in zip(models, before, strict=True):
        after = weights(model)
        assert all(torch.equal(after[key], held[key]) for key in held), "merging changed what it was given"


def weights(model) -> dict[str, torch.Tensor]:
    """Return the weights of a MODEL without its patches."""
    return {key: value.clone() for key, value in model.model.diffusion_model.state_dict().items()}


def patched(model) -> dict[str, torch.Tensor]:
    """Return the weights of a MODEL as sampling has them."""
    keys = [key for key in model.model.state_dict() if key.startswith(PREFIX)]
    return {
        key.removeprefix(PREFIX): model.patch_weight_to_device(key, return_weight=True)
        if key in model.patches
        else model.model.state_dict()[key]
        for key in keys
    }


def assert_weights(model, expected: dict[str, torch.Tensor], tolerance: float = 1e-6) -> None:
    actual = patched(model)
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=tolerance, atol=tolerance, msg=key)


def blocks_merge(model1, model2, block_ratios="", **ratios):
    names = ("embeddings", "time", "first_blocks", "middle_blocks", "last_blocks", "output")
    given = {name: ratios.get(name, 1.0) for name in names}
    return CogVideoXMergeBlocks.execute(model1, model2, **given, block_ratios=block_ratios).result[0]


each_variant = pytest.mark.parametrize("pair", VARIANTS, indirect=True)


@each_variant
def test_stock_merges_are_arithmetic(pair):
    one, two, w1, w2 = pair
    assert_weights(ModelMergeSimple().merge(one, two, 0.3)[0], {k: 0.3 * w1[k] + 0.7 * w2[k] for k in w1})
    assert_weights(ModelAdd().merge(one, two)[0], {k: w1[k] + w2[k] for k in w1})
    assert_weights(ModelSubtract().merge(one, two, 0.5)[0], {k: 0.5 * w1[k] - 0.5 * w2[k] for k in w1})


@each_variant
def test_each_part_is_merged_with_its_own_ratio(pair):
    one, two, w1, w2 = pair
    ratios = dict(embeddings=0.1, time=0.2, first_blocks=0.3, middle_blocks=0.4, last_blocks=0.5, output=0.6)

    def ratio(key):
        if key.startswith("transformer_blocks."):  # of two blocks the second begins with the middle third
            return (0.3, 0.4)[int(key.split(".")[1])]
        return {"patch_embed": 0.1, "time_embedding": 0.2, "ofs_embedding": 0.2}.get(key.split(".")[0], 0.6)

    expected = {key: ratio(key) * w1[key] + (1 - ratio(key)) * w2[key] for key in w1}
    merged = blocks_merge(one, two, **ratios)
    assert_weights(merged, expected)
    expected |= {key: w2[key] for key in w1 if key.startswith("transformer_blocks.1.")}
    assert_weights(blocks_merge(one, two, "1: 0", **ratios), expected)


def test_ratios_of_one_keep_model1_and_of_zero_take_model2(pair):
    one, two, w1, w2 = pair
    assert blocks_merge(one, two).patches == {}
    zeros = dict.fromkeys(("embeddings", "time", "first_blocks", "middle_blocks", "last_blocks", "output"), 0.0)
    assert_weights(blocks_merge(one, two, **zeros), w2, 1e-7)


@pytest.mark.parametrize(("count", "thirds"), [(30, (10, 10, 10)), (42, (14, 14, 14)), (2, (1, 1, 0))])
def test_the_thirds_of_the_released_models(count, thirds):
    assert merging.block_thirds(count, ("a", "b", "c")) == [
        x for x, n in zip("abc", thirds, strict=True) for _ in range(n)
    ]


def test_block_ratios_are_read():
    assert merging.parse_block_ratios(" 0-2: 0.5, 1 : 1;\n41: 0 ", 42) == {0: 0.5, 1: 1.0, 2: 0.5, 41: 0.0}
    assert merging.parse_block_ratios("", 30) == {}
    for text, message in (
        ("30: 1", "blocks 0 to 29"),
        ("3-1: 1", "blocks 0 to 29"),
        ("half", 'holds "half"'),
        ("1: 1.5", "between 0 and 1"),
        ("1: -0.5", 'holds "1: -0.5"'),
    ):
        with pytest.raises(ValueError, match=f"block_ratios .*{message}"):
            merging.parse_block_ratios(text, 30)


def test_models_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="model1 is .*, model2 is .*differ in shape.*Load two models"):
        blocks_merge(pipelines.ours("2b")[0], pipelines.ours("5b-i2v")[0], embeddings=0.5)


def sample(model, variant="2b"):
    latent, (prompt, negative) = empty_latent(WIDTH, HEIGHT, FRAMES, 1), pipelines.prompts(variant)
    out = nodes.KSampler().sample(model, SEED, 2, 6.0, "euler", "simple", prompt, negative, latent, 1.0)
    return out[0]["samples"]


@pytest.mark.parametrize("pair", ["2b"], indirect=True)
def test_a_saved_merge_loads_again_with_the_same_weights(pair, tmp_path):
    one, two, _, _ = pair
    merged = blocks_merge(one, two, "1: 0.25", embeddings=0.9, first_blocks=0.5)
    expected, video = patched(merged), sample(merged)
    comfy.model_management.unload_all_models()
    saver = ModelSave()
    saver.output_dir = str(tmp_path)
    saver.save(merged, "merged")
    (file,) = tmp_path.glob("*.safetensors")
    again = loading.load_model(str(file), "fp32")
    actual = weights(again)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], expected[key]) for key in expected)
    assert relative_error(video, sample(one)) > 1e-2


@pytest.mark.parametrize("pair", ["2b"], indirect=True)
def test_a_lora_taken_from_the_difference_gives_back_the_weights(pair, tmp_path, monkeypatch):
    one, two, w1, w2 = pair
    difference = ModelSubtract().merge(two, one, 1.0)[0]
    monkeypatch.setattr(nodes_lora_extract, "CLAMP_QUANTILE", 1.0)  # the host cuts the largest hundredth of the factors
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    for kind in ("standard", "full_diff"):
        nodes_lora_extract.LoraSave.execute(kind, 4096, kind, True, difference)
        (file,) = tmp_path.glob(f"{kind}*")
        (again,) = nodes.LoraLoaderModelOnly().load_lora_model_only(one, file.name, 1.0)
        actual = patched(again)
        changed = {key for key in w1 if not torch.equal(w1[key], w2[key])}
        if kind == "standard":
            changed.remove("patch_embed.proj.weight")  # the host gives a convolution no more ranks than channels
        errors = {key: relative_error(actual[key] - w1[key], w2[key] - w1[key]) for key in changed}
        assert max(errors.values()) < 0.03, (kind, errors)  # float16, and what is left of the cut
