"""Every kind of file an artist may have: put where the README says, the loader named there lists and loads it."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import folder_paths
import pytest
import torch
from comfy_extras.nodes_model_merging import CheckpointSave
from pack.cogvideox import ggml
from pack.nodes import loaders, lora
from pack.nodes.host import loading
from pack.nodes.host.files import register_folders
from pack.nodes.host.precision import EIGHT_BIT
from pack.tests.model.test_checkpoint import prefixed, to_core, to_sat
from safetensors.torch import load_file, save_file

from . import pipelines, test_fine_tunes
from .test_gguf import write_gguf
from .test_loading import described, in_host_format, scaled

WEIGHTS = "diffusion_pytorch_model.safetensors"
README = Path(__file__).parents[2] / "README.md"
HEADER = "| file you have | loader | where to put it |"
LOADERS = {
    "Load CogVideoX Pipeline": (loaders.CogVideoXLoadPipeline, "pipeline", ("auto",)),
    "Load CogVideoX Model": (loaders.CogVideoXLoadModel, "model_name", ("auto", "auto")),
    "Load CogVideoX VAE": (loaders.CogVideoXLoadVAE, "vae_name", ()),
    "Load CogVideoX Text Encoder": (loaders.CogVideoXLoadTextEncoder, "text_encoder_name", ()),
    "Load CogVideoX LoRA": (lora.CogVideoXLoadLoRA, "lora_name", (1.0, "auto")),
}

pytestmark = pytest.mark.usefixtures("inference")


def part(name: str, variant="1.5") -> dict[str, torch.Tensor]:
    (file,) = (pipelines.folder(variant) / name).glob("*.safetensors")
    return load_file(file)


def whole(path: Path) -> None:
    shutil.copytree(pipelines.folder("1.5"), path)


def sharded(path: Path) -> None:
    whole(path)
    weights = part("transformer")
    (path / "transformer" / WEIGHTS).unlink()
    index = {key: f"part-{number % 2}.safetensors" for number, key in enumerate(weights)}
    for name in set(index.values()):
        save_file({key: weights[key] for key in index if index[key] == name}, path / "transformer" / name)
    (path / "transformer" / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": index}))


def fun(path: Path) -> None:
    """33 channels, a pipeline class of its own, plain DDIM whose config has no SNR shift, entries nobody else has."""
    shutil.copytree(test_fine_tunes.folder("1.5", 33), path)
    config = path / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"add_noise_in_inpaint_model": True}))
    (path / "model_index.json").write_text(json.dumps({"_class_name": "CogVideoXFunInpaintPipeline"}))
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler"}))


def research(path: Path) -> None:
    whole(path)
    extra = {"initial_combine_linear.weight": torch.ones(2, 2)}
    save_file(part("transformer") | extra, path / "transformer" / WEIGHTS)


def all_in_one(path: Path) -> None:
    model, clip, vae = pipelines.ours("1.5")
    CheckpointSave().save(model, clip, vae, "checkpoints/whole")
    shutil.move(max(Path(folder_paths.get_output_directory()).glob("checkpoints/whole_*.safetensors")), path)


def scaled_fp8(path: Path) -> None:
    weights, _ = scaled(part("transformer"), "scale_weight")
    save_file(weights | {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}, path)


def mixed_precision(path: Path) -> None:
    weights, layers = scaled(part("transformer"), "weight_scale")
    save_file(weights, path, metadata={"_quantization_metadata": described(layers)})


def narrow(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor.to(torch.float8_e4m3fn) for key, tensor in weights.items()}


def in_blocks() -> dict[str, torch.Tensor]:
    return {
        key.replace("weight", "Q8_0_qweight") if EIGHT_BIT.fullmatch(key) else key: (
            ggml.quantise(tensor, "Q8_0") if EIGHT_BIT.fullmatch(key) else tensor
        )
        for key, tensor in part("transformer").items()
    }


def adapter(path: Path) -> None:
    """A LoRA as diffusers saves it."""
    name = "transformer.transformer_blocks.0.attn1.to_q"
    width = part("transformer")["transformer_blocks.0.attn1.to_q.weight"].shape[0]
    save_file({f"{name}.lora_A.weight": torch.ones(2, width), f"{name}.lora_B.weight": torch.ones(width, 2)}, path)


def t5(state_dict, path: Path) -> None:
    save_file({key: tensor.contiguous() for key, tensor in state_dict.items()}, path)


@dataclass(frozen=True)
class Kind:
    """One row of the README: what the file is, how it is written here, who loads it from which folder of models."""

    text: str
    write: object
    loaders: tuple[str, ...]
    folder: str
    suffix: str = ".safetensors"  # "" for a folder


PIPELINE, MODEL, VAE, T5, LORA = ((name,) for name in LOADERS)
KINDS = [
    Kind("pipeline folder as published: transformer, vae, text_encoder", whole, PIPELINE, "CogVideo", ""),
    Kind("the same with its weights in several files and an index", sharded, PIPELINE, "CogVideo", ""),
    Kind("CogVideoX-Fun folder", fun, PIPELINE, "CogVideo", ""),
    Kind("ConsisID, Diffusion as Shader or TrajectoryCrafter folder: the base of it", research, MODEL, "CogVideo", ""),
    Kind("pipeline folder that other packs use too", whole, PIPELINE, "diffusers", ""),
    Kind(
        "transformer in diffusers' layout, with or without a prefix",
        lambda path: save_file(prefixed(part("transformer"), "model.diffusion_model."), path),
        MODEL,
        "diffusion_models",
    ),
    Kind(
        "transformer in ComfyUI's layout",
        lambda path: save_file(to_core(part("transformer")), path),
        MODEL,
        "diffusion_models",
    ),
    Kind(
        "transformer of the original code (SAT)",
        lambda path: torch.save(to_sat(part("transformer")), path),
        MODEL,
        "diffusion_models",
        ".pt",
    ),
    Kind(
        "transformer of another pack, kept in its folder",
        lambda path: save_file(part("transformer"), path),
        MODEL,
        "unet",
    ),
    Kind("transformer in fp8", lambda path: save_file(narrow(part("transformer")), path), MODEL, "diffusion_models"),
    Kind("transformer in scaled fp8", scaled_fp8, MODEL, "diffusion_models"),
    Kind("transformer in ComfyUI's mixed precision", mixed_precision, MODEL, "diffusion_models"),
    Kind(
        "transformer in nvfp4, mxfp8 or int8 of ComfyUI",
        lambda path: save_file(in_host_format(part("transformer"), "nvfp4"), path),
        MODEL,
        "diffusion_models",
    ),
    Kind(
        "transformer in GGUF (`.gguf`)",
        lambda path: write_gguf(path, in_blocks()),
        MODEL,
        "diffusion_models",
        ".gguf",
    ),
    Kind(
        "transformer of the older wrapper's GGUF files (`.safetensors`)",
        lambda path: save_file(in_blocks(), path),
        MODEL,
        "diffusion_models",
    ),
    Kind(
        "fine-tune in one file (Fun, VOID, Interpolation, ...)",
        lambda path: shutil.copy(test_fine_tunes.folder("1.5", 48) / "transformer" / WEIGHTS, path),
        MODEL,
        "diffusion_models",
    ),
    Kind("LoRA of any training code", adapter, LORA, "loras"),
    Kind("VAE in diffusers' layout", lambda path: save_file(part("vae"), path), VAE, "vae"),
    Kind(
        "T5 v1.1 XXL encoder",
        lambda path: t5(part("text_encoder"), path),
        T5,
        "text_encoders",
    ),
    Kind("T5 v1.1 XXL encoder in fp8", lambda path: t5(narrow(part("text_encoder")), path), T5, "text_encoders"),
    Kind("all in one, as Save Checkpoint writes it", all_in_one, (*MODEL, *VAE, *T5), "checkpoints"),
]


@pytest.fixture
def put():
    """Return a function that writes a kind of file where it belongs and returns its name in the lists."""
    made = []

    def put(kind: Kind) -> str:
        register_folders()  # as the pack does when the host loads it
        root = Path(folder_paths.models_dir) / kind.folder
        root.mkdir(parents=True, exist_ok=True)
        path = root / f"mine{kind.suffix}"
        made.append(path)
        kind.write(path)
        return path.name

    yield put
    for path in made:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.text)
def test_the_loader_named_lists_and_loads_it(kind, put):
    name = put(kind)
    for title in kind.loaders:
        node, widget, rest = LOADERS[title]
        schema = node.GET_SCHEMA()
        assert schema.display_name == title
        (options,) = (item.options for item in schema.inputs if item.id == widget)
        assert name in options
        results = node.execute(*([pipelines.ours("1.5")[0]] if title in LORA else []), name, *rest).result
        assert len(results) == len(schema.outputs)
        for output, result in zip(schema.outputs, results, strict=True):
            assert_whole(output.get_io_type(), result, kind)


def assert_whole(socket: str, result, kind: Kind) -> None:
    """Check that what was loaded is what was written, by one tensor of it."""
    if kind.loaders == LORA:
        assert list(result.patches) == ["diffusion_model.transformer_blocks.0.attn1.to_q.weight"]
    elif socket == "MODEL":
        weights = result.model.diffusion_model.state_dict()
        channels = 33 if kind.write is fun else result.model.variant.transformer.in_channels
        source = (
            part("transformer")
            if channels == 16
            else load_file(test_fine_tunes.folder("1.5", channels) / "transformer" / WEIGHTS)
        )
        key, loose = "proj_out.weight", kind.text == "transformer in fp8"
        assert torch.allclose(weights[key].float(), source[key].float(), atol=0.1 if loose else 1e-6)
        assert result.model.variant.transformer.in_channels == channels
        assert ("left out" in loading.describe(result)) == (kind.write is research)
    elif socket == "VAE":
        assert torch.equal(
            result.get_sd()["decoder.conv_in.conv.bias"].float(), part("vae")["decoder.conv_in.conv.bias"]
        )
    else:
        tokens = result.tokenize("a red ball")
        expected = pipelines.ours("1.5")[1].encode_from_tokens(tokens)
        error = pipelines.relative_error(result.encode_from_tokens(tokens), expected)
        assert error <= (0.3 if "fp8" in kind.text else 1e-6)


def readme_rows() -> list[tuple[str, ...]]:
    """Return the rows of the README's table of files, whatever is emphasised or linked in them."""
    text = README.read_text("utf-8")
    lines = text[text.index(HEADER) :].split("\n\n")[0].splitlines()[2:]
    return [tuple(re.sub(r"[`*]", "", cell).strip() for cell in line.strip("|").split("|")) for line in lines]


def test_the_readme_says_the_same():
    ours = [(kind.text.replace("`", ""), ", ".join(kind.loaders), f"models/{kind.folder}") for kind in KINDS]
    assert readme_rows() == ours
