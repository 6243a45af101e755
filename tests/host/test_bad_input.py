"""What does not fit is refused in words an artist can act on, before sampling is spent, and nothing is left behind."""

import copy
import json
import pickle
import re
import shutil
from functools import cache
from pathlib import Path

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.taesd.taesd
import comfy.utils
import folder_paths
import pytest
import torch
from pack.cogvideox.checkpoint import CheckpointError
from pack.nodes.conditioning import CogVideoXImageToVideo
from pack.nodes.host import loading, sampling
from pack.nodes.host.conditioning import empty_latent, image_to_video
from pack.nodes.host.files import ModelFileError, check_numbers, find_pipeline, model_file, read_state_dict
from pack.nodes.host.loading import load_clip, load_model, load_pipeline, load_vae
from pack.nodes.latent import EmptyCogVideoXLatentVideo
from pack.nodes.text import CogVideoXTextEncode
from pack.nodes.vae import CogVideoXVAEDecode, CogVideoXVAEEncode
from safetensors.torch import save_file
from torch.utils._pytree import tree_leaves

import nodes

from . import pipelines
from .pipelines import FRAMES, HEIGHT, WIDTH

SEED, STEPS, CFG = 11, 2, 6.0
WEIGHTS = "diffusion_pytorch_model.safetensors"
PARTS = {"transformer": load_model, "vae": load_vae, "text_encoder": load_clip}
NAN = float("nan")

pytestmark = pytest.mark.usefixtures("inference")


def refused(*parts: str, error: type[Exception] = ValueError):
    """Expect an error whose message holds `parts`, as they read and in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(re.escape(part) for part in parts))


# --- files ---------------------------------------------------------------------------------------------------------


def weights_file(part: str, variant="5b") -> Path:
    (file,) = (pipelines.folder(variant) / part).glob("*.safetensors")
    return file


def broken_copy(path: Path, change) -> Path:
    path.write_bytes(change(weights_file("vae").read_bytes()))
    return path


DAMAGE = {
    "empty": (lambda data: b"", "is empty: the download did not finish. Download it again."),
    "cut in the header": (lambda data: data[:100], "is not a safetensors file, whatever its name says. Download it"),
    "cut in the weights": (lambda data: data[:-1], "is cut short: the download did not finish. Download it again."),
    "a page of text": (lambda data: b"<!DOCTYPE html><html>Sign in", "is not a safetensors file, whatever its name"),
    "a letter": (lambda data: b"x", "is not a safetensors file, whatever its name says."),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_safetensors_file_is_named(tmp_path, part, damage):
    change, message = DAMAGE[damage]
    file = broken_copy(tmp_path / "mine.safetensors", change)
    with refused("mine.safetensors ", message, error=ModelFileError):
        PARTS[part](str(file))


def test_the_undamaged_file_loads(tmp_path):
    """Guards the cases above."""
    file = broken_copy(tmp_path / "mine.safetensors", lambda data: data)
    assert load_vae(str(file)).latent_channels == 16


class Harm:
    """An object that, unpickled, writes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", PARTS)
def test_code_in_a_pickle_does_not_run(tmp_path, part, zipped, suffix):
    marker, file = tmp_path / "harm", tmp_path / f"mine{suffix}"
    content = {"module": {"encoder.conv_in.conv.weight": torch.ones(1)}, "extra": Harm(marker)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    pickle.loads(pickle.dumps(Harm(marker)))
    assert marker.exists(), "the harm of this test is none"
    marker.unlink()
    with refused(f"mine{suffix} holds more than tensors and was not opened", "run code", "Use the .safetensors file"):
        PARTS[part](str(file))
    assert not marker.exists()


@pytest.mark.parametrize("content", [torch.ones(3), [torch.ones(3)], {0: torch.ones(3)}], ids=["tensor", "list", "int"])
@pytest.mark.parametrize("part", PARTS)
def test_a_pickle_without_names_is_no_model(tmp_path, part, content):
    torch.save(content, tmp_path / "mine.pt")
    with refused("mine.pt holds no named weights", "Choose another file", error=ModelFileError):
        PARTS[part](str(tmp_path / "mine.pt"))


def test_a_text_file_as_pickle_is_refused(tmp_path):
    (tmp_path / "mine.pt").write_text("not a model")
    with refused("mine.pt ", error=ModelFileError):
        load_vae(str(tmp_path / "mine.pt"))


def test_a_file_that_is_gone_is_named(tmp_path):
    with refused("gone.safetensors is not there: ", str(tmp_path), error=ModelFileError):
        read_state_dict(tmp_path / "gone.safetensors")


FLUX = ["double_blocks.0.img_attn.qkv.weight", "img_in.weight"]
WAN = ["blocks.0.cross_attn.k.weight", "blocks.0.self_attn.q.weight", "patch_embedding.weight"]
SD = ["model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.middle_block.0.in_layers.0.weight"]
SD_VAE = [
    "encoder.conv_in.weight",
    "encoder.mid.block_1.conv1.weight",
    "decoder.conv_in.weight",
    "post_quant_conv.bias",
]
WAN_VAE = ["encoder.conv1.weight", "encoder.middle.0.residual.0.gamma", "decoder.conv1.weight"]
LORA = [
    "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight",
    "transformer.transformer_blocks.0.attn1.to_q.lora_B.weight",
]
CLIP_L = ["text_model.encoder.layers.0.self_attn.q_proj.weight", "text_model.embeddings.position_embedding.weight"]
STOCK = "Load it with the stock Load Diffusion Model or Load Checkpoint"
OTHER_FILES = [
    ("transformer", FLUX, ["holds a Flux or HunyuanVideo model, but a CogVideoX transformer was needed", STOCK]),
    ("transformer", WAN, ["holds a Wan or Cosmos model, but a CogVideoX transformer was needed", STOCK]),
    ("transformer", SD, ["holds a Stable Diffusion (UNet) model, but a CogVideoX transformer was needed", STOCK]),
    ("transformer", LORA, ["holds a LoRA, but a CogVideoX transformer was needed", "Load CogVideoX LoRA"]),
    ("transformer", SD_VAE, ["holds the VAE of another model, but a CogVideoX transformer was needed"]),
    ("transformer", "vae", ["holds a CogVideoX VAE, but a CogVideoX transformer was needed", "Load CogVideoX VAE"]),
    ("transformer", "text_encoder", ["holds a T5 text encoder, but", "Load it with Load CogVideoX Text Encoder"]),
    ("transformer", ["a.weight"], ["holds an unknown model (a.weight), but a CogVideoX", "Choose a CogVideoX file"]),
    ("vae", SD_VAE, ["holds the VAE of another model, but a CogVideoX VAE was needed", "the stock Load VAE"]),
    ("vae", WAN_VAE, ["holds the VAE of another model, but a CogVideoX VAE was needed", "the stock Load VAE"]),
    ("vae", "transformer", ["holds a CogVideoX transformer, but a CogVideoX VAE was needed", "Load CogVideoX Model"]),
    ("vae", FLUX, ["holds a Flux or HunyuanVideo model, but a CogVideoX VAE was needed", STOCK]),
    ("text_encoder", CLIP_L, ["a T5 text encoder was needed", "models/text_encoders"]),
    ("text_encoder", "transformer", ["is a diffusion model, a T5 text encoder was needed", "models/text_encoders"]),
    ("text_encoder", "vae", ["is a VAE, a T5 text encoder was needed", "models/text_encoders"]),
]


@pytest.mark.parametrize(("part", "content", "message"), OTHER_FILES)
def test_the_file_of_another_model_is_recognised(tmp_path, part, content, message):
    if isinstance(content, str):
        file = weights_file(content)
    else:
        file = tmp_path / "mine.safetensors"
        save_file({key: torch.zeros(2, 2) for key in content}, file)
    with refused(*message):
        PARTS[part](str(file))


def test_a_t5_of_another_family_is_refused(tmp_path):
    umt5 = dict(read_state_dict(weights_file("text_encoder"))[0])
    umt5["shared.weight"] = torch.zeros(256384, 1).expand(-1, 32).contiguous()  # UMT5 of Wan
    save_file(umt5, tmp_path / "umt5.safetensors")
    with refused("relative of T5 with its own tokens", "256384", "a T5 with 32128 tokens was needed", "t5xxl_fp16"):
        load_clip(str(tmp_path / "umt5.safetensors"))


def test_half_a_transformer_is_not_complete(tmp_path):
    """One shard of two, loaded as a file."""
    whole = read_state_dict(weights_file("transformer"))[0]
    save_file({key: value for key, value in whole.items() if "blocks.1" not in key}, tmp_path / "half.safetensors")
    config = pipelines.folder("5b") / "transformer" / "config.json"
    shutil.copy(config, tmp_path / "config.json")
    with refused("missing (transformer_blocks.1.", "Is the file complete?", error=CheckpointError):
        load_model(str(tmp_path))


# --- folders -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A pipeline folder of its own to damage."""
    return Path(shutil.copytree(pipelines.folder("5b"), tmp_path / "My-CogVideoX"))


def sharded(folder: Path, names=("a.safetensors", "b.safetensors")) -> Path:
    """Split the transformer of a pipeline into shards with an index; return the index."""
    part = folder / "transformer"
    weights = dict(read_state_dict(part / WEIGHTS)[0])
    (part / WEIGHTS).unlink()
    weight_map = {key: names[index % 2] for index, key in enumerate(sorted(weights))}
    for name in names:
        save_file({key: weights[key].clone() for key in weights if weight_map[key] == name}, part / name)
    index = part / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("part", PARTS)
def test_a_pipeline_without_a_part_names_it(folder, part):
    shutil.rmtree(folder / part)
    with refused("pipeline My-CogVideoX is not complete. Missing: ", f"{part}.", "whole folder", error=ModelFileError):
        load_pipeline(folder)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_without_weights_is_named(folder, part):
    for file in (folder / part).glob("*.safetensors"):
        file.unlink()
    with refused(f"My-CogVideoX/{part} holds no weights. Missing: a .safetensors file.", error=ModelFileError):
        load_pipeline(folder)


def test_a_missing_shard_is_named(folder):
    index = sharded(folder)
    load_model(str(folder))
    (index.parent / "b.safetensors").unlink()
    with refused("My-CogVideoX/transformer is not complete. Missing: b.safetensors. Download", error=ModelFileError):
        load_model(str(folder))


@pytest.mark.parametrize("name", ["../vae/" + WEIGHTS, "{folder}/vae/" + WEIGHTS, "..\\vae\\" + WEIGHTS])
def test_an_index_cannot_name_a_file_outside_its_folder(folder, name):
    index = sharded(folder)
    name = name.format(folder=folder)
    index.write_text(json.dumps({"weight_map": {"proj_out.weight": name}}))
    message = ["index.json in ", f"names a file outside its folder ({name}), which was not opened. Download"]
    with refused(*message, error=ModelFileError):
        load_model(str(folder))


def test_shards_may_be_links_into_a_download_cache(folder, tmp_path):
    index = sharded(folder)
    shard, blob = index.parent / "b.safetensors", tmp_path / "blob"
    shard.rename(blob)
    shard.symlink_to(blob)
    assert load_model(str(folder)).model.variant == pipelines.ours("5b")[0].model.variant


@pytest.mark.parametrize("text", ["{}", '{"weight_map": 5}', '{"weight_map": {}}', '{"weight_map": {"a": 5}}'])
def test_an_index_without_a_list_is_refused(folder, text):
    sharded(folder).write_text(text)
    with refused("index.json in ", "transformer lists no files. Download it again.", error=ModelFileError):
        load_model(str(folder))


CONFIGS = {
    "transformer": ("transformer/config.json", load_model),
    "scheduler": ("scheduler/scheduler_config.json", load_model),
    "vae": ("vae/config.json", load_vae),
    "text encoder": ("text_encoder/config.json", load_clip),
}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON. Download it again."),
        ("", "is not valid JSON. Download it again."),
        ("\xff\xfe", "is not valid JSON. Download it again."),
        ("[]", "is not a config file. Download it again."),
    ],
)
@pytest.mark.parametrize("config", CONFIGS)
def test_a_broken_config_is_named(folder, config, text, message):
    name, load = CONFIGS[config]
    (folder / name).write_bytes(text.encode("latin-1"))
    with refused(f"{Path(name).name} in {(folder / name).parent} {message}", error=ModelFileError):
        load(str(folder))


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        ("transformer", "num_layers", "many"),
        ("transformer", "num_layers", -1),
        ("transformer", "num_layers", 1.5),
        ("transformer", "patch_size", 0),
        ("transformer", "patch_size_t", "two"),
        ("transformer", "in_channels", None),
        ("transformer", "use_rotary_positional_embeddings", "yes"),
        ("transformer", "num_attention_heads", True),
        ("scheduler", "snr_shift_scale", 0),
        ("scheduler", "snr_shift_scale", "3.0"),
        ("vae", "block_out_channels", 128),
        ("vae", "block_out_channels", []),
        ("vae", "norm_num_groups", 0),
    ],
)
def test_a_config_with_an_impossible_entry_names_it(folder, config, key, value):
    name, load = CONFIGS[config]
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    message = f"{file.name} in {file.parent} gives {key} as {json.dumps(value)}, which no model has. Download it again."
    with refused(message, error=ModelFileError):
        load(str(folder))


def test_a_config_of_another_size_than_the_weights_is_refused(folder):
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_layers": 3}))
    with refused("24 missing (transformer_blocks.2.", error=CheckpointError):
        load_model(str(folder))


# --- names ---------------------------------------------------------------------------------------------------------

OUTSIDE = ["../../secret", "../secret.safetensors", "..\\secret.safetensors", "{models}/secret.safetensors", "", "."]


@pytest.fixture
def secret():
    """A file and a pipeline that are there, next to the folders that may be read."""
    models = Path(folder_paths.models_dir)
    models.mkdir(parents=True, exist_ok=True)
    shutil.copy(weights_file("vae"), models / "secret.safetensors")
    pipeline = Path(shutil.copytree(pipelines.folder("5b"), models.parent / "secret"))
    yield models
    (models / "secret.safetensors").unlink()
    shutil.rmtree(pipeline)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_outside_the_models_is_no_pipeline(secret, name):
    name = name.format(models=secret)
    with refused(f"There is no CogVideoX pipeline named {name}. Put ", "into models/CogVideo", error=ModelFileError):
        find_pipeline(name)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_outside_the_models_is_no_file(secret, name):
    name = name.format(models=secret)
    message = f"There is no file named {name} in models/diffusion_models or models/unet. Put it there"
    with refused(message, error=ModelFileError):
        model_file(("diffusion_models", "unet"), name)


# --- invalid numbers -----------------------------------------------------------------------------------------------


def poisoned(path: Path, part: str, key: str, value: float, variant="5b") -> Path:
    weights = {name: tensor.clone() for name, tensor in read_state_dict(weights_file(part, variant))[0].items()}
    weights[key].view(-1)[-1] = value
    save_file(weights, path)
    return path


@pytest.mark.parametrize("value", [NAN, float("inf")])
@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("transformer", "transformer_blocks.1.attn1.to_q.bias"),
        ("transformer", "proj_out.weight"),
        ("vae", "decoder.conv_out.conv.bias"),
    ],
)
def test_a_file_with_invalid_numbers_is_refused(tmp_path, part, key, value):
    file = poisoned(tmp_path / "mine.safetensors", part, key, value)
    with refused(f"holds invalid numbers (NaN) in {key}: it is damaged", "Download it again", error=ModelFileError):
        PARTS[part](str(file))


def test_the_matrices_of_a_large_file_stay_unread(monkeypatch):
    """Their numbers are seen in the first step instead."""
    seen = []
    monkeypatch.setattr(torch, "isfinite", lambda tensor, original=torch.isfinite: seen.append(1) or original(tensor))
    large, small = torch.full((2**11, 2**10 + 1), NAN), torch.zeros(2)
    check_numbers({"large": large, "small": small})
    assert seen == [1]


def run_poisoned(model, variant="5b"):
    inputs = good(variant)
    before = copy.deepcopy(inputs)
    try:
        nodes.KSampler().sample(model, SEED, STEPS, CFG, "euler", "simple", *inputs, 1.0)
    finally:
        assert same(before, inputs)


def test_invalid_numbers_stop_the_first_step_and_name_the_weight(unharmed, monkeypatch, tmp_path):
    """Rather than a black video."""
    unharmed("5b")
    key = "transformer_blocks.0.ff.net.2.weight"
    monkeypatch.setattr(loading, "check_numbers", lambda state_dict: None)  # as in a matrix of released size
    model = load_model(str(poisoned(tmp_path / "mine.safetensors", "transformer", key, NAN)))
    with refused("computed invalid numbers (NaN), which would be a black video. Its weights hold some", f"({key})"):
        run_poisoned(model)


def test_a_5b_model_in_fp16_is_told_why_its_video_is_black(unharmed):
    unharmed("5b")
    model = load_model(str(pipelines.folder("5b")), "fp32")
    model.set_model_compute_dtype(torch.float16)
    model.model.manual_cast_dtype = torch.float16
    block = model.model.diffusion_model.transformer_blocks[0]
    with torch.no_grad():
        block.ff.net[2].weight.mul_(3e4)  # finite, and too large for half precision once added up
    with refused("computed invalid numbers (NaN)", "The 5B models overflow in fp16: set weight_dtype to bf16"):
        run_poisoned(model)


def test_a_patch_that_breaks_the_model_is_told_from_a_bad_file(unharmed):
    unharmed("5b")
    model = pipelines.ours("5b")[0].clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = lambda f, *a, **k: f(*a, **k) * NAN
    with refused("computed invalid numbers (NaN)", "Leave out LoRAs, other attention kernels and fp8_e4m3fn_fast"):
        run_poisoned(model)


# --- refused loads leave no trace ------------------------------------------------------------------------------------


def test_a_refused_file_leaves_the_loaded_model_as_it_was(unharmed, tmp_path):
    unharmed("5b")
    model = pipelines.ours("5b")[0]
    before = {key: tensor.clone() for key, tensor in model.model.diffusion_model.state_dict().items()}
    save_file({key: torch.zeros(1) for key in WAN}, tmp_path / "wan.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(weights_file("transformer").read_bytes()[:-1])
    poisoned(tmp_path / "nan.safetensors", "transformer", "proj_out.weight", NAN)
    for name in ("wan", "cut", "nan"):
        with pytest.raises(ValueError):
            load_model(str(tmp_path / f"{name}.safetensors"))
    after = model.model.diffusion_model.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


def test_shards_of_two_models_are_refused(folder):
    """As when two downloads end up in one folder."""
    index = sharded(folder)
    other = read_state_dict(weights_file("transformer", "1.5-i2v"))[0]
    shard = index.parent / "b.safetensors"
    keys = read_state_dict(shard)[0]
    save_file({key: other[key].clone() for key in keys}, shard)
    with refused("The tensors do not fit the model they look like", "of another shape", error=CheckpointError):
        load_model(str(folder))


# --- sampling ------------------------------------------------------------------------------------------------------


@cache
def good(variant: str):
    """Return positive, negative and LATENT that the variant samples."""
    conds = pipelines.prompts(variant)
    if variant in pipelines.TEXT_TO_VIDEO:
        return *conds, empty_latent(WIDTH, HEIGHT, FRAMES, 1)
    made = image_to_video(*conds, pipelines.ours(variant)[2], WIDTH, HEIGHT, FRAMES, 1, start_image=image())
    return made.positive, made.negative, made.latent


def image(count=1, width=WIDTH, height=HEIGHT) -> torch.Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(0))


def ksampler(variant, positive, negative, latent):
    model = pipelines.ours(variant)[0]
    return nodes.KSampler().sample(model, SEED, STEPS, CFG, "euler", "simple", positive, negative, latent, 1.0)[0]


@cache
def expected(variant: str) -> torch.Tensor:
    return ksampler(variant, *good(variant))["samples"]


@pytest.fixture
def unharmed():
    """Return a function to call the variants with that a test uses; each then samples as if nothing had been."""
    used = []

    def use(variant):
        expected(variant)
        used.append((variant, copy.deepcopy(good(variant))))

    yield use
    assert used
    for variant, inputs in used:
        assert torch.equal(ksampler(variant, *inputs)["samples"], expected(variant))


def same(one, other) -> bool:
    """Say whether nested inputs hold the same things, NaN for NaN."""
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(
        torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
        if torch.is_tensor(a)
        else a == b
        for a, b in pairs
    )


def assert_refused(variant, inputs, *message):
    """Sample with bad inputs: refused before the model runs, and inputs left as they were."""
    model = pipelines.ours(variant)[0].model.diffusion_model
    runs = []
    hook = model.register_forward_pre_hook(lambda *_: runs.append(1))
    before = copy.deepcopy(inputs)
    try:
        with refused(*message):
            ksampler(variant, *inputs)
    finally:
        hook.remove()
    assert runs == []
    assert same(before, inputs)


def with_text(cond, change):
    """Return CONDITIONING with its embeddings changed."""
    return [[change(text), values] for text, values in cond]


BAD_TEXT = [
    (lambda text: torch.zeros(1, 77, 768), ["reads text embeddings 32 wide and got 768. ", "Load CLIP with type cog"]),
    (lambda text: None, ["got a CONDITIONING without text. Connect CogVideoX Text Encode"]),
    (lambda text: text * NAN, ["text embeddings hold invalid numbers (NaN)", "Load another file"]),
]


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(("change", "message"), BAD_TEXT, ids=["width", "none", "nan"])
@pytest.mark.parametrize("variant", pipelines.VARIANTS)
def test_text_that_does_not_fit_is_refused(unharmed, variant, change, message, side):
    unharmed(variant)
    inputs = list(good(variant))
    inputs[side] = with_text(inputs[side], change)
    assert_refused(variant, inputs, *message)


@pytest.mark.parametrize(("side", "name"), [(0, "positive"), (1, "negative")])
def test_no_prompt_at_all_is_refused(unharmed, side, name):
    unharmed("5b")
    inputs = list(good("5b"))
    inputs[side] = []
    assert_refused("5b", inputs, f"The {name} CONDITIONING is empty. Connect CogVideoX Text Encode")


def test_a_latent_of_invalid_numbers_is_refused(unharmed):
    unharmed("5b")
    inputs = list(good("5b"))
    inputs[2] = {"samples": inputs[2]["samples"] * NAN}
    assert_refused("5b", inputs, "The LATENT holds invalid numbers (NaN)", "look at the frames")


def test_no_clip_is_refused():
    with refused("No CLIP came", "Load CogVideoX Text Encoder"):
        CogVideoXTextEncode.execute(None, "a cat", "truncate")


@pytest.mark.parametrize(("variant", "other"), [("2b", "5b-i2v"), ("5b", "5b-i2v"), ("1.5", "1.5-i2v")])
def test_an_image_for_a_text_model_is_refused(unharmed, variant, other):
    unharmed(variant)
    message = ["makes video from text and cannot take the image in this conditioning. Load an image-to-video model"]
    assert_refused(variant, good(other), *message)


@pytest.mark.parametrize(("variant", "other"), [("5b-i2v", "5b"), ("1.5-i2v", "1.5")])
def test_no_image_for_an_image_model_is_refused(unharmed, variant, other):
    unharmed(variant)
    message = ["makes video from an image and this conditioning holds none. Put CogVideoX Image to Video between"]
    assert_refused(variant, good(other), *message)


# shape, what the message says of it
SHAPES = [
    ((1, 16, 3, 9, 12), ["needs a height divisible by 16, not 72. Set height to 64 or 80."]),
    ((1, 16, 3, 8, 13), ["needs a width divisible by 16, not 104. Set width to 96 or 112."]),
    ((1, 16, 3, 1, 12), ["needs a height divisible by 16, not 8. Set height to 16."]),
    ((1, 4, 8, 12), ["video latents with 16 channels and got [1, 4, 1, 8, 12]. Connect Empty CogVideoX Latent Video"]),
    ((1, 48, 3, 8, 12), ["video latents with 16 channels and got [1, 48, 3, 8, 12]. Connect Empty CogVideoX"]),
]


@pytest.mark.parametrize(("shape", "message"), SHAPES)
@pytest.mark.parametrize("variant", ["5b", "1.5"])
def test_a_latent_that_does_not_fit_is_refused(unharmed, variant, shape, message):
    unharmed(variant)
    positive, negative, _ = good(variant)
    assert_refused(variant, (positive, negative, {"samples": torch.ones(shape)}), *message)


@pytest.mark.parametrize("variant", pipelines.IMAGE_TO_VIDEO)
@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((WIDTH, HEIGHT, 17), "96x64 px, 17 frames"),
        ((WIDTH, HEIGHT, 1), "96x64 px, 1 frame."),
        ((112, HEIGHT, 9), "112x64 px, 9 frames"),
        ((WIDTH, 80, 9), "96x80 px, 9 frames"),
    ],
)
def test_images_for_another_size_are_refused(unharmed, variant, size, words):
    unharmed(variant)
    positive, negative, _ = good(variant)
    message = ["image conditioning is 96x64 px, 9 frames and the video ", words, "LATENT of the same CogVideoX"]
    assert_refused(variant, (positive, negative, empty_latent(*size, 1)), *message)


@pytest.mark.parametrize("variant", pipelines.IMAGE_TO_VIDEO)
@pytest.mark.parametrize("frames", [1, FRAMES])
def test_the_image_conditioning_of_a_stock_inpaint_node_is_refused(unharmed, variant, frames):
    """Its mask is made for pictures."""
    unharmed(variant)
    _, prompt, vae = pipelines.ours(variant)[0], pipelines.prompts(variant), pipelines.ours(variant)[2]
    mask = torch.ones(frames, HEIGHT, WIDTH)
    positive, negative, _ = nodes.InpaintModelConditioning().encode(*prompt, image(frames), vae, mask, False)
    message = ["image conditioning is not that of a video", "Attach images with the CogVideoX conditioning nodes"]
    assert_refused(variant, (positive, negative, good(variant)[2]), *message)


# --- the nodes' own inputs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [(100, 64, "width", "96 or 112"), (96, 72, "height", "64 or 80"), (8, 64, "width", 16)]
)
def test_a_size_that_does_not_divide_names_the_nearest(size):
    width, height, side, nearest = size
    value = width if side == "width" else height
    message = f"CogVideoX needs a {side} divisible by 16, not {value}. Set {side} to {nearest}."
    with refused(message):
        EmptyCogVideoXLatentVideo.execute(width, height, FRAMES, 1)
    with refused(message):
        to_video(width=width, height=height)
    pixels = torch.zeros(FRAMES, height, width, 3)
    with refused(message):
        CogVideoXVAEEncode.execute(pixels, pipelines.ours("5b")[2], "mode", 0)


@pytest.mark.parametrize(
    ("frames", "nearest"), [(50, "49 or 57"), (48, "41 or 49"), (2, "1 or 9"), (0, "1"), (-7, "1")]
)
def test_a_length_that_is_not_8n_plus_1_names_the_nearest(frames, nearest):
    message = f"8n + 1 frames (1, 9, 17 ... 49, 81), not {frames}. Set length to {nearest}."
    with refused(message):
        EmptyCogVideoXLatentVideo.execute(WIDTH, HEIGHT, frames, 1)
    with refused(message):
        to_video(length=frames)


def test_a_video_to_encode_that_is_not_8n_plus_1_names_the_nearest():
    with refused("8n + 1 frames", "not 10. Take 9 or 17 of the video's frames"):
        CogVideoXVAEEncode.execute(image(10), pipelines.ours("5b")[2], "mode", 0)


def to_video(vae="ours", width=WIDTH, height=HEIGHT, length=FRAMES, batch_size=1, **images):
    vae = pipelines.ours("5b-i2v")[2] if vae == "ours" else vae
    images = images or {"start_image": image()}
    prompts = pipelines.prompts("5b-i2v")
    return CogVideoXImageToVideo.execute(*prompts, vae, width, height, length, batch_size, **images).result


BAD_IMAGES = {
    "nan": (image() * NAN, "holds invalid numbers (NaN). The node that made it failed; look at it with Preview Image"),
    "inf": (image() / 0, "holds invalid numbers (NaN)"),
    "none of a batch": (image()[:0], "is empty or no RGB picture: its shape is [0, 64, 96, 3]"),
    "no height": (image()[:, :0], "is empty or no RGB picture: its shape is [1, 0, 96, 3]"),
    "grey": (image()[..., :1], "is empty or no RGB picture: its shape is [1, 64, 96, 1]"),
    "a mask": (image()[..., 0], "is empty or no RGB picture: its shape is [1, 64, 96]"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_an_image_that_is_none_is_refused(kind):
    bad, message = BAD_IMAGES[kind]
    for name in ("start_image", "end_image"):
        with refused(f"The {name.replace('_', ' ')} ", message):
            to_video(**{name: bad})
    with refused("The video ", message):
        CogVideoXVAEEncode.execute(bad, pipelines.ours("5b")[2], "mode", 0)


def test_image_to_video_without_an_image_is_refused():
    with refused("has no image. Connect start_image, end_image or both."):
        to_video(start_image=None)


def test_one_frame_cannot_start_and_end():
    with refused("A video of 1 frame cannot both start and end with an image. Set length to 9 or more."):
        to_video(length=1, start_image=image(), end_image=image())


@pytest.mark.parametrize(("starts", "ends", "batch_size"), [(2, 0, 3), (2, 3, 1), (3, 1, 2)])
def test_images_that_do_not_pair_up_are_refused(starts, ends, batch_size):
    images = {"start_image": image(starts), "end_image": image(ends) if ends else None}
    with refused("do not pair up: ", f"{starts} of start image", f"batch_size {batch_size}. Give one image for all"):
        to_video(batch_size=batch_size, **images)


@cache
def other_vae() -> comfy.sd.VAE:
    """Return the smallest VAE that the host knows."""
    return comfy.sd.VAE(sd=comfy.taesd.taesd.TAESD().state_dict())


@pytest.mark.parametrize(("made", "got"), [(other_vae, "another one (TAESD)"), (lambda: None, "none")])
def test_another_vae_is_refused(made, got):
    vae, message = made(), f"needs CogVideoX's VAE and got {got}. Connect the VAE of Load CogVideoX VAE"
    with refused(message):
        to_video(vae=vae)
    with refused(message):
        CogVideoXVAEDecode.execute(empty_latent(WIDTH, HEIGHT, FRAMES, 1), vae, "auto")
    with refused(message):
        CogVideoXVAEEncode.execute(image(FRAMES), vae, "mode", 0)


@pytest.mark.parametrize("shape", [(1, 4, 8, 12), (1, 4, 3, 8, 12), (1, 16, 8, 12), (1, 128, 3, 8, 12)])
def test_latents_of_another_model_are_not_decoded(shape):
    vae, samples = pipelines.ours("5b")[2], {"samples": torch.ones(shape)}
    message = f"decodes video latents with 16 channels and got {list(shape)}. Connect the LATENT of a sampler that ran"
    for memory in ("auto", "whole frame", "slabs", "tiles"):
        with refused(message):
            CogVideoXVAEDecode.execute(samples, vae, memory)
    with refused(message):
        nodes.VAEDecode().decode(vae, samples)
    with refused(message):
        nodes.VAEDecodeTiled().decode(vae, samples, 64, 16)


# --- cancel --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddim", "dpm", "heun"])
@pytest.mark.parametrize("variant", pipelines.VARIANTS)
def test_a_run_cancelled_in_the_middle_leaves_model_and_inputs_alone(unharmed, variant, name):
    unharmed(variant)
    positive, negative, latent = inputs = copy.deepcopy(good(variant))
    model = pipelines.ours(variant)[0]
    sampler = comfy.samplers.sampler_object(name) if name == "heun" else sampling.sampler(name)
    options, steps = list(model.model_options["transformer_options"]), []

    def cancel(step, *_):
        steps.append(step)
        if step == 2:
            raise comfy.model_management.InterruptProcessingException

    noise = comfy.sample.prepare_noise(latent["samples"], SEED)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        comfy.sample.sample_custom(
            model,
            noise,
            CFG,
            sampler,
            sampling.scheduler_sigmas(model, 10),
            positive,
            negative,
            latent["samples"],
            callback=cancel,
            disable_pbar=True,
            seed=SEED,
        )
    assert steps == [0, 1, 2]
    assert same(inputs, good(variant))
    assert list(model.model_options["transformer_options"]) == options


@pytest.mark.parametrize("memory", ["whole frame", "slabs", "tiles"])
def test_a_decode_cancelled_in_the_middle_leaves_the_vae_alone(cancel_at, monkeypatch, memory):
    vae = pipelines.ours("5b")[2]
    samples = {"samples": torch.randn(1, 16, 5, 4, 6, generator=torch.Generator().manual_seed(0))}
    before = CogVideoXVAEDecode.execute(samples, vae, memory).result[0]
    seen = cancel_at(1)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        CogVideoXVAEDecode.execute(samples, vae, memory)
    monkeypatch.undo()
    assert 0 < seen[-1] < 17, "cancelled in the middle"
    assert torch.equal(CogVideoXVAEDecode.execute(samples, vae, memory).result[0], before)


def test_an_encode_cancelled_in_the_middle_leaves_the_vae_alone(cancel_at, monkeypatch):
    vae, video = pipelines.ours("5b")[2], image(17, 48, 32)
    before = CogVideoXVAEEncode.execute(video, vae, "mode", 0).result[0]["samples"]
    seen = cancel_at(1)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        CogVideoXVAEEncode.execute(video, vae, "mode", 0)
    monkeypatch.undo()
    assert 0 < seen[-1] < 5, "cancelled in the middle"
    assert torch.equal(CogVideoXVAEEncode.execute(video, vae, "mode", 0).result[0]["samples"], before)


@pytest.mark.parametrize("weight_dtype", ["bf16", "fp8_e4m3fn"])
def test_a_load_can_be_cancelled(cancel_at, weight_dtype):
    seen = cancel_at(1)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        load_model(str(pipelines.folder("5b")), weight_dtype)
    assert seen == [1]
