"""Every node as a workflow meets it: its ids and sockets, and what its `execute` does with the host's objects."""

import asyncio
import copy
import inspect
import re
import shutil
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import folder_paths
import numpy as np
import pytest
import torch
from comfy_api.latest import io
from pack.cogvideox import schedule
from pack.cogvideox.variants import SNR_SHIFT_2B, SNR_SHIFT_5B
from pack.nodes import CogVideoXExtension
from pack.nodes.conditioning import CogVideoXImageToVideo
from pack.nodes.host import sampling
from pack.nodes.host.files import WEIGHT_FILES
from pack.nodes.latent import EmptyCogVideoXLatentVideo
from pack.nodes.loaders import (
    CogVideoXLoadModel,
    CogVideoXLoadPipeline,
    CogVideoXLoadTextEncoder,
    CogVideoXLoadVAE,
)
from pack.nodes.sampling import CogVideoXDynamicCFG, CogVideoXSampler, CogVideoXSamplerSelect, CogVideoXScheduler
from pack.nodes.text import CogVideoXTextEncode
from pack.nodes.vae import CogVideoXVAEDecode, CogVideoXVAEEncode
from PIL import Image

import nodes

from . import pipelines
from .pipelines import FRAMES, HEIGHT, WIDTH, relative_error

SEED, CFG = 5, 6.0
NODES = asyncio.run(CogVideoXExtension().get_node_list())
IDS = [node.GET_SCHEMA().node_id for node in NODES]

pytestmark = pytest.mark.usefixtures("inference")


# --- the promise to shared workflows -------------------------------------------------------------------------------

SIZE = "width:INT height:INT length:INT batch_size:INT"
STEERING = "strength:FLOAT start_percent:FLOAT end_percent:FLOAT"
# id: inputs (`?` is optional), outputs. Add rows, and inputs at the end or optional ones; never change what is here.
PROMISE = {
    "CogVideoXLoadPipeline": ("pipeline:COMBO weight_dtype:COMBO variant:COMBO?", "MODEL CLIP VAE"),
    "CogVideoXLoadModel": ("model_name:COMBO weight_dtype:COMBO variant:COMBO", "MODEL"),
    "CogVideoXLoadVAE": ("vae_name:COMBO weight_dtype:COMBO?", "VAE"),
    "CogVideoXLoadTextEncoder": ("text_encoder_name:COMBO", "CLIP"),
    "CogVideoXLoadLoRA": ("model:MODEL lora_name:COMBO strength:FLOAT scaling:COMBO", "MODEL"),
    "CogVideoXLoadControlNet": ("control_net_name:COMBO weight_dtype:COMBO?", "CONTROL_NET"),
    "CogVideoXLoadTora": ("tora_name:COMBO weight_dtype:COMBO model:MODEL? extractor_name:COMBO?", "MODEL"),
    "CogVideoXTrajectory": (
        f"positive:CONDITIONING negative:CONDITIONING vae:VAE latent:LATENT coordinates:STRING {STEERING} "
        "optical_flow:IMAGE? image:IMAGE?",
        "CONDITIONING CONDITIONING IMAGE",
    ),
    "CogVideoXLoadDiffusionAsShader": ("shader_name:COMBO weight_dtype:COMBO model:MODEL?", "MODEL"),
    "CogVideoXTrackingVideo": (
        f"positive:CONDITIONING negative:CONDITIONING vae:VAE latent:LATENT tracking_video:IMAGE {STEERING}",
        "CONDITIONING CONDITIONING",
    ),
    "CogVideoXLoadConsisID": ("consisid_name:COMBO weight_dtype:COMBO model:MODEL?", "MODEL"),
    "CogVideoXIdentityToVideo": (
        f"positive:CONDITIONING negative:CONDITIONING vae:VAE image:IMAGE {SIZE} identity_name:COMBO {STEERING} "
        "identity:*? face_keypoints:IMAGE?",
        "CONDITIONING CONDITIONING LATENT",
    ),
    "CogVideoXTextEncode": ("clip:CLIP text:STRING long_prompt:COMBO prompt_weights:BOOLEAN?", "CONDITIONING"),
    "CogVideoXPromptTemplate": ("task:COMBO idea:STRING words:INT", "STRING"),
    "EmptyCogVideoXLatentVideo": (SIZE, "LATENT"),
    "CogVideoXResolution": ("model:COMBO size:COMBO seconds:FLOAT base:INT image:IMAGE?", "INT INT INT"),
    "CogVideoXImageToVideo": (
        f"positive:CONDITIONING negative:CONDITIONING vae:VAE {SIZE} "
        "start_image:IMAGE? end_image:IMAGE? noise_augmentation:FLOAT? noise_seed:INT? image_strength:FLOAT? "
        "image_start_percent:FLOAT? image_end_percent:FLOAT? keyframes:IMAGE? keyframe_positions:STRING?",
        "CONDITIONING CONDITIONING LATENT",
    ),
    "CogVideoXInpaintVideo": (
        f"positive:CONDITIONING negative:CONDITIONING vae:VAE {SIZE} video:IMAGE mask:MASK "
        "strength:FLOAT start_percent:FLOAT end_percent:FLOAT "
        "noise_augmentation:FLOAT? noise_seed:INT? start_from_video:BOOLEAN?",
        "CONDITIONING CONDITIONING LATENT",
    ),
    "CogVideoXControlToVideo": (
        f"positive:CONDITIONING negative:CONDITIONING vae:VAE {SIZE} control_video:IMAGE "
        "strength:FLOAT start_percent:FLOAT end_percent:FLOAT start_image:IMAGE?",
        "CONDITIONING CONDITIONING LATENT",
    ),
    "CogVideoXVOIDConditioning": (
        f"positive:CONDITIONING negative:CONDITIONING vae:VAE {SIZE} video:IMAGE quadmask:MASK void_pass:COMBO",
        "CONDITIONING CONDITIONING LATENT",
    ),
    "CogVideoXScheduler": ("model:MODEL steps:INT denoise:FLOAT", "SIGMAS"),
    "CogVideoXSamplerSelect": ("sampler_name:COMBO", "SAMPLER"),
    "CogVideoXDynamicCFG": ("model:MODEL schedule:COMBO", "MODEL"),
    "CogVideoXStepCache": (
        "model:MODEL mode:COMBO threshold:FLOAT start_percent:FLOAT end_percent:FLOAT cache_device:COMBO",
        "MODEL",
    ),
    "CogVideoXGuidanceWindow": ("model:MODEL start_percent:FLOAT end_percent:FLOAT", "MODEL"),
    "CogVideoXAttention": ("model:MODEL attention:COMBO", "MODEL"),
    "CogVideoXMergeBlocks": (
        "model1:MODEL model2:MODEL embeddings:FLOAT time:FLOAT first_blocks:FLOAT middle_blocks:FLOAT "
        "last_blocks:FLOAT output:FLOAT block_ratios:STRING?",
        "MODEL",
    ),
    "CogVideoXEnhanceVideo": ("model:MODEL weight:FLOAT start_percent:FLOAT end_percent:FLOAT", "MODEL"),
    "CogVideoXSampler": (
        "model:MODEL positive:CONDITIONING negative:CONDITIONING latent_image:LATENT seed:INT steps:INT cfg:FLOAT "
        "sampler_name:COMBO dynamic_cfg:COMBO denoise:FLOAT",
        "LATENT",
    ),
    "CogVideoXVAEDecode": ("samples:LATENT vae:VAE memory:COMBO", "IMAGE"),
    "CogVideoXWarpedNoise": (
        "seed:INT downsampling:COMBO degradation:FLOAT video:IMAGE? optical_flow:OPTICAL_FLOW? flow:IMAGE? "
        "flow_range:FLOAT? detail:INT?",
        "NOISE",
    ),
    "CogVideoXRIFLEx": ("model:MODEL k:INT share:FLOAT frames:INT", "MODEL"),
    "CogVideoXContinueVideo": (
        "positive:CONDITIONING negative:CONDITIONING vae:VAE video:IMAGE length:INT overlap:INT start_image:BOOLEAN",
        "CONDITIONING CONDITIONING LATENT",
    ),
    "CogVideoXJoinVideos": ("first:IMAGE second:IMAGE overlap:INT", "IMAGE"),
    "CogVideoXDecodeToVideo": ("samples:LATENT vae:VAE fps:FLOAT crf:FLOAT memory:COMBO", "VIDEO"),
    "CogVideoXVAEEncode": ("pixels:IMAGE vae:VAE posterior:COMBO seed:INT", "LATENT"),
}
# Widget values that shared workflows hold; more may come.
CHOICES = {
    ("CogVideoXLoadPipeline", "weight_dtype"): {"auto", "bf16", "fp16", "fp32", "fp8_e4m3fn", "fp8_e5m2"},
    ("CogVideoXLoadModel", "weight_dtype"): {"auto", "bf16", "fp16", "fp32", "fp8_e4m3fn", "fp8_e5m2"},
    ("CogVideoXLoadModel", "variant"): {"auto", "2b", "5b", "image_latents", "image_unscaled", "image_diffusers"},
    ("CogVideoXLoadLoRA", "scaling"): {"auto", "alpha/rank", "1/rank", "none"},
    ("CogVideoXLoadVAE", "weight_dtype"): {"auto", "bf16", "fp16", "fp32"},
    ("CogVideoXLoadControlNet", "weight_dtype"): {"auto", "bf16", "fp16", "fp32", "fp8_e4m3fn", "fp8_e5m2"},
    ("CogVideoXTextEncode", "long_prompt"): {"truncate", "blend"},
    ("CogVideoXPromptTemplate", "task"): {"text to video", "image to video", "video to prompt"},
    ("CogVideoXResolution", "model"): {"2B", "5B", "1.5", "Fun 2B", "Fun 5B", "Fun 1.5"},
    ("CogVideoXResolution", "size"): {"trained size", "shape of the image", "size of the image"},
    ("CogVideoXVOIDConditioning", "void_pass"): {"pass 1", "pass 2"},
    ("CogVideoXSamplerSelect", "sampler_name"): {"ddim", "dpm"},
    ("CogVideoXSampler", "sampler_name"): {"ddim", "dpm"},
    ("CogVideoXSampler", "dynamic_cfg"): {"off", "cosine over steps", "reference"},
    ("CogVideoXDynamicCFG", "schedule"): {"cosine over steps", "reference"},
    ("CogVideoXStepCache", "mode"): {"teacache", "first block cache"},
    ("CogVideoXStepCache", "cache_device"): {"main device", "offload device"},
    ("CogVideoXAttention", "attention"): {"sage", "sage3", "flash", "xformers", "pytorch"},
    ("CogVideoXVAEDecode", "memory"): {"auto", "whole frame", "slabs", "tiles"},
    ("CogVideoXVAEEncode", "posterior"): {"mode", "sample"},
    ("CogVideoXWarpedNoise", "downsampling"): {"nearest", "blend", "blend_norm"},
    ("CogVideoXDecodeToVideo", "memory"): {"auto", "whole frame", "slabs"},
}
# DESIGN section 4: what an untouched node makes.
DEFAULTS = {
    "EmptyCogVideoXLatentVideo": {"width": 720, "height": 480, "length": 49, "batch_size": 1},
    "CogVideoXPromptTemplate": {"task": "text to video", "words": 120},
    "CogVideoXResolution": {"model": "5B", "size": "trained size", "seconds": 6.0, "base": 512},
    "CogVideoXImageToVideo": {"width": 720, "height": 480, "length": 49, "batch_size": 1, "noise_augmentation": 0.0},
    "CogVideoXInpaintVideo": {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "start_from_video": False},
    "CogVideoXControlToVideo": {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0},
    "CogVideoXVOIDConditioning": {"void_pass": "pass 1"},
    "CogVideoXSampler": {"steps": 50, "cfg": 6.0, "denoise": 1.0, "dynamic_cfg": "off"},
    "CogVideoXScheduler": {"steps": 50, "denoise": 1.0},
    "CogVideoXTextEncode": {"long_prompt": "truncate", "prompt_weights": False},
    "CogVideoXStepCache": {"mode": "teacache", "threshold": 0.1, "start_percent": 0.0, "end_percent": 1.0},
    "CogVideoXGuidanceWindow": {"start_percent": 0.0, "end_percent": 0.7},
    "CogVideoXAttention": {"attention": "sage"},
    "CogVideoXEnhanceVideo": {"weight": 1.0, "start_percent": 0.0, "end_percent": 1.0},
    "CogVideoXVAEDecode": {"memory": "auto"},
    "CogVideoXWarpedNoise": {"downsampling": "nearest", "degradation": 0.5, "flow_range": 64.0, "detail": 32},
    "CogVideoXRIFLEx": {"k": 2, "share": 0.9, "frames": 0},
    "CogVideoXContinueVideo": {"length": 49, "overlap": 9, "start_image": True},
    "CogVideoXJoinVideos": {"overlap": 9},
    "CogVideoXDecodeToVideo": {"fps": 8.0, "crf": 18.0, "memory": "auto"},
    "CogVideoXVAEEncode": {"posterior": "mode"},
    "CogVideoXLoadModel": {"weight_dtype": "auto", "variant": "auto"},
    "CogVideoXLoadLoRA": {"strength": 1.0, "scaling": "auto"},
}
# Ids of kijai/ComfyUI-CogVideoXWrapper, today's and those that old workflows still hold; both packs may be installed.
TAKEN = """
CogVideoContextOptions CogVideoControlImageEncode CogVideoControlNet CogVideoDecode CogVideoDualTextEncode_311
CogVideoEncodePrompt CogVideoEnhanceAVideo CogVideoImageEncode CogVideoImageEncodeFunInP
CogVideoImageInterpolationEncode CogVideoLatentPreview CogVideoLoraSelect CogVideoLoraSelectComfy CogVideoPABConfig
CogVideoSampler CogVideoTextEncode CogVideoTextEncodeCombine CogVideoTransformerEdit CogVideoXFasterCache
CogVideoXFunControlSampler CogVideoXFunResizeToClosestBucket CogVideoXFunSampler CogVideoXFunVid2VidSampler
CogVideoXModelLoader CogVideoXTeaCache CogVideoXTorchCompileSettings CogVideoXVAELoader
DownloadAndLoadCogVideoControlNet DownloadAndLoadCogVideoGGUFModel DownloadAndLoadCogVideoModel
DownloadAndLoadToraModel ToraEncodeOpticalFlow ToraEncodeTrajectory
""".split()
HOST_TYPES = set(
    "MODEL CLIP VAE CONDITIONING LATENT SIGMAS SAMPLER GUIDER NOISE CONTROL_NET IMAGE MASK VIDEO OPTICAL_FLOW "
    "INT FLOAT STRING BOOLEAN COMBO *".split()  # *: features of a face, for which the host has no type
)
FAMILIES = ("loaders", "text", "latent", "conditioning", "sampling", "vae", "control", "patches")

every_node = pytest.mark.parametrize("node", NODES, ids=IDS)


def sockets(schema) -> tuple[str, str]:
    """Return inputs and outputs of a schema as PROMISE writes them."""
    inputs = (f"{item.id}:{item.get_io_type()}{'?' if item.optional else ''}" for item in schema.inputs)
    return " ".join(inputs), " ".join(item.get_io_type() for item in schema.outputs)


def widget(id, name):
    (item,) = (item for item in NODES[IDS.index(id)].GET_SCHEMA().inputs if item.id == name)
    return item


def test_the_nodes_are_those_promised():
    assert sorted(IDS) == sorted(PROMISE), "a new node needs its row in PROMISE; an old one may not go"
    assert len(set(IDS)) == len(IDS)


@pytest.mark.parametrize("id", PROMISE)
def test_a_shared_workflow_finds_its_sockets(id):
    assert sockets(NODES[IDS.index(id)].GET_SCHEMA()) == PROMISE[id]


@pytest.mark.parametrize(("id", "name"), CHOICES)
def test_a_shared_workflow_finds_its_choices(id, name):
    assert CHOICES[id, name] <= set(widget(id, name).options)


@pytest.mark.parametrize("id", DEFAULTS)
def test_defaults_are_the_promised_ones(id):
    assert {name: widget(id, name).default for name in DEFAULTS[id]} == DEFAULTS[id]


@every_node
def test_a_schema_fits_its_execute(node):
    schema = node.GET_SCHEMA()
    parameters = inspect.signature(node.execute).parameters
    assert list(parameters) == [item.id for item in schema.inputs]
    for item in schema.inputs:
        default = parameters[item.id].default
        assert (default is not inspect.Parameter.empty) == item.optional, item.id
        if item.optional:
            assert default == getattr(item, "default", None)


@every_node
def test_a_node_says_what_it_is(node):
    schema = node.GET_SCHEMA()
    assert schema.display_name and schema.display_name != schema.node_id
    assert len(schema.description.split()) >= 8
    root, family = schema.category.split("/")
    assert root == "CogVideoX" and family in FAMILIES
    assert [item.id for item in schema.inputs if len((item.tooltip or "").split()) < 2] == [], "needs a tooltip"
    assert [item.id for item in schema.outputs if len((item.tooltip or "").split()) < 2] == [], "needs a tooltip"


@every_node
def test_sockets_are_host_types(node):
    schema = node.GET_SCHEMA()
    assert {item.get_io_type() for item in (*schema.inputs, *schema.outputs)} <= HOST_TYPES
    # ComfyUI names some of its own sockets by their type alone.
    custom = re.findall(r"(?<!`)io\.Custom\((.*?)\)", Path(inspect.getfile(node)).read_text(encoding="utf-8"))
    assert {name.strip('"') for name in custom} <= HOST_TYPES


def host_ids() -> set[str]:
    """Return every word in quotes in the host's node files, which holds the ids of all its nodes."""
    host = Path(nodes.__file__).parent
    files = [host / "nodes.py", *host.glob("comfy_extras/*.py"), *host.glob("comfy_api_nodes/**/*.py")]
    return {word for file in files for word in re.findall(r"""["'](\w+)["']""", file.read_text(encoding="utf-8"))}


def test_ids_are_not_taken():
    host = host_ids()
    assert {"KSampler", "EmptyHunyuanLatentVideo", "SamplerCustomAdvanced"} | set(nodes.NODE_CLASS_MAPPINGS) <= host
    assert set(IDS) & host == set()
    assert set(IDS) & set(TAKEN) == set()
    assert len(TAKEN) == 33


# --- loaders -------------------------------------------------------------------------------------------------------


@pytest.fixture
def models():
    """Put the tiny 5B as a pipeline and as single files where an artist would."""
    asyncio.run(CogVideoXExtension().on_load())
    root, made = Path(folder_paths.models_dir), []
    pipeline = root / "CogVideo" / "Tiny-5b"
    shutil.copytree(pipelines.folder("5b"), pipeline)
    parts = {"diffusion_models": "transformer", "vae": "vae", "text_encoders": "text_encoder"}
    for kind, part in parts.items():
        (root / kind).mkdir(parents=True, exist_ok=True)
        (source,) = (pipeline / part).glob("*.safetensors")
        made.append(Path(shutil.copy(source, root / kind / f"tiny-{part}.safetensors")))
    yield root
    shutil.rmtree(pipeline)
    for file in made:
        file.unlink()


def test_dropdowns_list_folders_and_files(models):
    assert "Tiny-5b" in widget("CogVideoXLoadPipeline", "pipeline").options
    for id, name, file in (
        ("CogVideoXLoadModel", "model_name", "tiny-transformer.safetensors"),
        ("CogVideoXLoadVAE", "vae_name", "tiny-vae.safetensors"),
        ("CogVideoXLoadTextEncoder", "text_encoder_name", "tiny-text_encoder.safetensors"),
    ):
        options = widget(id, name).options
        assert {file, "Tiny-5b"} <= set(options)
        assert len(set(options)) == len(options)
        assert "Tiny-5b" not in [option for option in options if option.endswith(WEIGHT_FILES)]


def test_a_removed_folder_leaves_the_dropdown(models):
    (models / "CogVideo" / "Tiny-5b" / "transformer" / "config.json").unlink()
    assert "Tiny-5b" not in widget("CogVideoXLoadPipeline", "pipeline").options


def test_load_pipeline_gives_all_three(models):
    model, clip, vae = CogVideoXLoadPipeline.execute("Tiny-5b", "fp32").result
    assert_same_video(model, clip, vae)


def test_the_single_loaders_give_what_the_pipeline_gives(models):
    model = CogVideoXLoadModel.execute("Tiny-5b", "fp32", "auto").result[0]
    clip = CogVideoXLoadTextEncoder.execute("Tiny-5b").result[0]
    vae = CogVideoXLoadVAE.execute("Tiny-5b", "fp32").result[0]
    assert_same_video(model, clip, vae)


def test_single_files_give_what_the_folders_give(models):
    model = CogVideoXLoadModel.execute("tiny-transformer.safetensors", "fp32", "auto").result[0]
    ours = pipelines.ours("5b")[0]
    weights = model.model.diffusion_model.state_dict()
    for key, value in ours.model.diffusion_model.state_dict().items():
        assert torch.equal(weights[key], value)
    clip = CogVideoXLoadTextEncoder.execute("tiny-text_encoder.safetensors").result[0]
    vae = CogVideoXLoadVAE.execute("tiny-vae.safetensors", "fp32").result[0]
    latents = torch.randn(1, 16, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert vae.decode(latents).shape == (1, 1, 32, 32, 3)
    assert torch.equal(prompt(clip), prompt(pipelines.ours("5b")[1]))


def prompt(clip):
    return CogVideoXTextEncode.execute(clip, "a red ball rolls left", "truncate").result[0][0][0]


def assert_same_video(model, clip, vae):
    """Run the three as a workflow would and compare with the pipeline loaded from its own place."""

    def run(model, clip, vae):
        positive, negative = (CogVideoXTextEncode.execute(clip, text, "truncate").result[0] for text in ("a cat", ""))
        latent = EmptyCogVideoXLatentVideo.execute(32, 32, FRAMES, 1).result[0]
        inputs = (model, positive, negative, latent, SEED, 2, CFG, "dpm", "off", 1.0)
        return CogVideoXVAEDecode.execute(CogVideoXSampler.execute(*inputs).result[0], vae, "auto").result[0]

    frames = run(model, clip, vae)
    assert frames.shape == (FRAMES, 32, 32, 3)
    assert torch.equal(frames, run(*pipelines.ours("5b")))


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp8_e4m3fn"])
def test_the_weight_dtype_is_that_of_the_widget(models, name):
    model = CogVideoXLoadModel.execute("Tiny-5b", name, "auto").result[0]
    block = model.model.diffusion_model.transformer_blocks[0]
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8_e4m3fn": torch.float8_e4m3fn}[name]
    assert block.ff.net[2].state_dict()["weight"].dtype == wanted
    assert block.norm1.linear.weight.dtype == (torch.float32 if name.startswith("fp8") else wanted)


def test_the_variant_is_that_of_the_widget(models):
    plain, shifted = (CogVideoXLoadModel.execute("Tiny-5b", "fp32", name).result[0] for name in ("auto", "snr_shift_3"))
    tables = [model.get_model_object("model_sampling").sigmas for model in (plain, shifted)]
    assert torch.equal(tables[0], schedule.sigmas(SNR_SHIFT_5B))
    assert torch.equal(tables[1], schedule.sigmas(SNR_SHIFT_2B))


# --- Empty Latent --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "latents"), [(1, 1), (9, 3), (49, 13), (81, 21)])
def test_an_empty_video_has_the_size_asked_for(length, latents):
    latent = EmptyCogVideoXLatentVideo.execute(720, 480, length, 2).result[0]
    assert latent["samples"].shape == (2, 16, latents, 60, 90)
    assert not latent["samples"].any()


# --- Image to Video ------------------------------------------------------------------------------------------------

VARIANT = "5b-i2v"


def image(count=1, width=WIDTH, height=HEIGHT, seed=0, channels=3) -> torch.Tensor:
    return torch.rand(count, height, width, channels, generator=torch.Generator().manual_seed(seed))


def to_video(vae=None, width=WIDTH, height=HEIGHT, length=FRAMES, batch_size=1, conds=None, **images):
    conds = conds or pipelines.prompts(VARIANT)
    vae = vae or pipelines.ours(VARIANT)[2]
    return CogVideoXImageToVideo.execute(*conds, vae, width, height, length, batch_size, **images).result


def mode(pictures: torch.Tensor) -> torch.Tensor:
    """Return the latents [N, 16, H/8, W/8] of pictures, past the host."""
    vae = pipelines.ours(VARIANT)[2].first_stage_model.vae
    pixels = pictures.movedim(-1, 1)[:, :, None] * 2 - 1
    return vae.encode(pixels).mode()[:, :, 0]


@pytest.mark.parametrize("ends", [("start_image",), ("end_image",), ("start_image", "end_image")], ids=str)
@pytest.mark.parametrize("length", [9, 17])
def test_images_lie_at_their_frames_and_nothing_elsewhere(ends, length):
    images = {name: image(seed=seed) for seed, name in enumerate(ends)}
    positive, negative, latent = to_video(length=length, **images)
    frames = latent["samples"].shape[2]
    assert latent["samples"].shape == (1, 16, (length - 1) // 4 + 1, HEIGHT // 8, WIDTH // 8)
    assert not latent["samples"].any()
    places = {"start_image": 0, "end_image": frames - 1}
    for given, (text, values) in zip(pipelines.prompts(VARIANT), (positive[0], negative[0]), strict=True):
        assert torch.equal(text, given[0][0])
        kept = {"concat_latent_image", "concat_mask", "cogvideox_known_frames", "cogvideox_known_strength"}
        assert values.keys() - given[0][1].keys() == kept
        known, mask = values["concat_latent_image"], values["concat_mask"]
        assert known.shape == latent["samples"].shape
        assert mask.shape == (1, 1, *known.shape[2:])
        for name, picture in images.items():
            assert relative_error(known[:, :, places[name]], mode(picture)) <= 1e-6
        at = [places[name] for name in ends]
        others = [frame for frame in range(frames) if frame not in at]
        assert not known[:, :, others].any()
        assert (mask[:, :, at] == 0).all() and (mask[:, :, others] == 1).all()


def test_a_single_frame_is_its_image():
    positive, _, latent = to_video(length=1, end_image=image())
    assert latent["samples"].shape[2] == 1
    assert relative_error(positive[0][1]["concat_latent_image"][:, :, 0], mode(image())) <= 1e-6


@pytest.mark.parametrize(
    ("starts", "ends", "batch_size", "videos"),
    [(1, 0, 1, 1), (1, 0, 2, 2), (2, 0, 1, 2), (2, 0, 2, 2), (2, 1, 1, 2), (1, 2, 2, 2), (0, 2, 1, 2)],
)
def test_as_many_videos_as_images(starts, ends, batch_size, videos):
    images = {"start_image": image(starts) if starts else None, "end_image": image(ends, seed=9) if ends else None}
    positive, negative, latent = to_video(batch_size=batch_size, **images)
    assert len(latent["samples"]) == videos
    for values in (positive[0][1], negative[0][1]):
        assert len(values["concat_latent_image"]) == len(values["concat_mask"]) == videos
        for place, pictures in ((0, images["start_image"]), (-1, images["end_image"])):
            if pictures is not None:
                for video in range(videos):
                    expected = mode(pictures[video % len(pictures)][None])
                    assert relative_error(values["concat_latent_image"][[video], :, place], expected) <= 1e-6


@pytest.fixture
def notes(shown_on):
    """Return the notes shown on the node."""
    return shown_on(CogVideoXImageToVideo)


def recording_vae():
    """Return a VAE and the pictures it is given."""
    vae, seen = copy.copy(pipelines.ours(VARIANT)[2]), []
    encode = vae.encode

    def record(pixels):
        seen.append(pixels)
        return encode(pixels)

    vae.encode = record
    return vae, seen


def test_an_image_of_the_same_size_is_not_touched(notes):
    vae, seen = recording_vae()
    to_video(vae, start_image=image())
    assert torch.equal(seen[0][0], image()[0])
    assert notes == []


@pytest.mark.parametrize(
    ("width", "height", "note"),
    [
        (192, 128, "start image: 192x128 to 96x64"),
        (128, 64, "start image: 128x64 to 96x64, cropped around the centre"),
        (96, 128, "start image: 96x128 to 96x64, cropped around the centre"),
        (48, 48, "start image: 48x48 to 96x64, cropped around the centre"),
    ],
)
def test_another_size_is_scaled_and_cropped_and_said(notes, width, height, note):
    vae, seen = recording_vae()
    picture = torch.zeros(1, height, width, 3)
    picture[:, height // 4 : -height // 4, width // 4 : -width // 4] = 1  # white in the middle, black at every edge
    to_video(vae, start_image=picture)
    assert notes == [(note, "7")]
    fitted = seen[0][0]
    assert fitted.shape == (HEIGHT, WIDTH, 3)
    # The same as Pillow: crop to the video's shape around the centre, then scale.
    shape = min(width, height * WIDTH // HEIGHT), min(height, width * HEIGHT // WIDTH)
    left, top = (width - shape[0]) // 2, (height - shape[1]) // 2
    pil = Image.fromarray((picture[0] * 255).byte().numpy()).crop((left, top, left + shape[0], top + shape[1]))
    expected = torch.tensor(np.asarray(pil.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)))
    assert (fitted - expected / 255).abs().max() <= 1 / 255


def test_both_images_are_noted(notes):
    to_video(start_image=image(width=48), end_image=image(height=32))
    ((text, _),) = notes
    assert text.splitlines() == [
        "start image: 48x64 to 96x64, cropped around the centre",
        "end image: 96x32 to 96x64, cropped around the centre",
    ]


def test_an_image_with_transparency_is_taken_as_it_looks():
    rgba = image(channels=4)
    positive, _, _ = to_video(start_image=rgba)
    expected, _, _ = to_video(start_image=rgba[..., :3])
    assert torch.equal(positive[0][1]["concat_latent_image"], expected[0][1]["concat_latent_image"])


@pytest.mark.parametrize("strength", [0.02, 0.5, 1.0])
def test_noise_augmentation_has_its_strength_and_is_the_same_each_time(strength):
    vae, seen = recording_vae()
    grey = torch.full((1, HEIGHT, WIDTH, 3), 0.5)
    for _ in range(2):
        to_video(vae, start_image=grey, noise_augmentation=strength)
    assert torch.equal(seen[0], seen[1])
    noise = (seen[0] - 0.5) * 2  # in the VAE's range -1..1
    assert abs(noise.std() / strength - 1) < 0.02
    assert abs(noise.mean() / strength) < 0.02


def test_image_to_video_leaves_its_inputs_alone():
    conds = copy.deepcopy(pipelines.prompts(VARIANT))
    pictures = {"start_image": image(), "end_image": image(seed=1)}
    to_video(conds=conds, noise_augmentation=0.1, **pictures)
    for cond, given in zip(conds, pipelines.prompts(VARIANT), strict=True):
        assert cond[0][1].keys() == given[0][1].keys()
        assert torch.equal(cond[0][0], given[0][0])
    assert torch.equal(pictures["start_image"], image())
    assert torch.equal(pictures["end_image"], image(seed=1))


# --- sampling ------------------------------------------------------------------------------------------------------

TABLES = {"2b": SNR_SHIFT_2B, "5b": SNR_SHIFT_5B, "1.5": SNR_SHIFT_5B}


@pytest.mark.parametrize("variant", TABLES)
@pytest.mark.parametrize(
    ("steps", "denoise"), [(1, 1.0), (4, 1.0), (50, 1.0), (61, 1.0), (10, 0.5), (6, 0.6), (1, 0.01)]
)
def test_the_scheduler_gives_the_trailing_sigmas_of_its_variant(variant, steps, denoise):
    sigmas = CogVideoXScheduler.execute(pipelines.ours(variant)[0], steps, denoise).result[0]
    table = schedule.sigmas(TABLES[variant])
    total = int(steps / denoise)
    assert sigmas.shape == (steps + 1,)
    assert torch.equal(sigmas[:-1], table[schedule.trailing_timesteps(total)[-steps:]])
    assert sigmas[-1] == 0
    assert (sigmas[:-1] > sigmas[1:]).all()


def test_the_scheduler_tells_the_variants_apart():
    two, five = (CogVideoXScheduler.execute(pipelines.ours(name)[0], 10, 1.0).result[0] for name in ("2b", "5b"))
    assert (two[1:-1] > 1.5 * five[1:-1]).all()  # an SNR shift of 3 is a factor of about sqrt(3)


def test_too_many_steps_for_the_noise_levels_are_refused():
    with pytest.raises(ValueError, match=r"1000 noise levels; 600 steps at denoise 0.5 .* Use at most 500 steps\."):
        CogVideoXScheduler.execute(pipelines.ours("5b")[0], 600, 0.5)


def foreign_model():
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(torch.nn.Linear(1, 1), load_device=device, offload_device=device)


@pytest.mark.parametrize(
    "use",
    [
        lambda model: CogVideoXScheduler.execute(model, 4, 1.0),
        lambda model: CogVideoXDynamicCFG.execute(model, "reference"),
        lambda model: CogVideoXSampler.execute(model, [], [], {}, SEED, 4, CFG, "dpm", "off", 1.0),
        lambda model: CogVideoXSampler.execute(model, [], [], {}, SEED, 4, CFG, "dpm", "reference", 1.0),
    ],
)
def test_another_model_is_refused(use):
    message = r"needs a CogVideoX model and got another one \(Linear\)\. Connect the MODEL of Load CogVideoX Model"
    with pytest.raises(ValueError, match=message):
        use(foreign_model())


@pytest.fixture
def guidance(monkeypatch):
    """Return the guidance values that are used, in order."""
    used, guided = [], sampling.guided

    def spy(args, cfg):
        used.append(cfg)
        return guided(args, cfg)

    monkeypatch.setattr(sampling, "guided", spy)
    return used


# sampler: the steps its evaluations belong to, in a run of 5
EVALUATIONS = {
    "euler": [0, 1, 2, 3, 4],
    "ddim": [0, 1, 2, 3, 4],
    "dpm": [0, 1, 2, 3, 4],
    "heun": [0, 1, 1, 2, 2, 3, 3, 4, 4],  # looks ahead to the level of the next step
    "dpm_2": [0, 0, 1, 1, 2, 2, 3, 3, 4],  # looks in between
}


def custom(model, sampler, sigmas, cfg=CFG):
    """Run SamplerCustomAdvanced's way and return the latents."""
    positive, negative = pipelines.prompts("5b")
    latent = EmptyCogVideoXLatentVideo.execute(32, 32, FRAMES, 1).result[0]["samples"]
    noise = comfy.sample.prepare_noise(latent, SEED)
    return comfy.sample.sample_custom(
        model, noise, cfg, sampler, sigmas, positive, negative, latent, disable_pbar=True, seed=SEED
    )


@pytest.mark.parametrize("name", EVALUATIONS)
def test_cosine_guidance_follows_the_steps(guidance, name):
    model = CogVideoXDynamicCFG.execute(pipelines.ours("5b")[0], "cosine over steps").result[0]
    sigmas = CogVideoXScheduler.execute(model, 5, 1.0).result[0]
    if name in ("ddim", "dpm"):
        sampler = CogVideoXSamplerSelect.execute(name).result[0]
    else:
        sampler = comfy.samplers.sampler_object(name)
    custom(model, sampler, sigmas)
    assert guidance == [schedule.dynamic_cfg_cosine(CFG, 5, index) for index in EVALUATIONS[name]]
    assert guidance[0] == 1 and guidance == sorted(guidance) and guidance[-1] > 2


def test_reference_guidance_follows_the_timesteps(guidance):
    model = CogVideoXDynamicCFG.execute(pipelines.ours("5b")[0], "reference").result[0]
    custom(model, comfy.samplers.sampler_object("euler"), CogVideoXScheduler.execute(model, 5, 1.0).result[0])
    timesteps = schedule.trailing_timesteps(5).tolist()
    assert guidance == [schedule.dynamic_cfg_reference(CFG, 5, timestep) for timestep in timesteps]


def test_guidance_is_what_the_model_is_guided_with(monkeypatch):
    """A schedule that always says 6 is the plain run at 6, and one that says 2 the plain run at 2."""
    model = pipelines.ours("5b")[0]
    dynamic = CogVideoXDynamicCFG.execute(model, "cosine over steps").result[0]
    sampler, sigmas = comfy.samplers.sampler_object("euler"), CogVideoXScheduler.execute(model, 4, 1.0).result[0]
    # The host takes guidance as x - denoised, which at the first sigma, 4519, leaves float32 a precision of about 1e-4.
    for cfg in (2.0, 6.0):
        monkeypatch.setattr(sampling, "dynamic_cfg_cosine", lambda *_, cfg=cfg: cfg)
        assert relative_error(custom(dynamic, sampler, sigmas), custom(model, sampler, sigmas, cfg)) <= 2e-4


@pytest.mark.parametrize("dynamic", ["off", "cosine over steps", "reference"])
@pytest.mark.parametrize("name", ["ddim", "dpm"])
def test_the_sampler_node_is_the_sockets_in_one(name, dynamic):
    model = pipelines.ours("5b")[0]
    latent = EmptyCogVideoXLatentVideo.execute(32, 32, FRAMES, 1).result[0]
    inputs = (model, *pipelines.prompts("5b"), latent, SEED, 5, CFG, name, dynamic, 1.0)
    one = CogVideoXSampler.execute(*inputs).result[0]["samples"]
    if dynamic != "off":
        model = CogVideoXDynamicCFG.execute(model, dynamic).result[0]
    sigmas = CogVideoXScheduler.execute(model, 5, 1.0).result[0]
    assert torch.equal(one, custom(model, CogVideoXSamplerSelect.execute(name).result[0], sigmas))
    assert not latent["samples"].any()


def test_denoise_of_zero_changes_nothing():
    latent = {"samples": torch.randn(1, 16, 3, 4, 4), "batch_index": [0]}
    inputs = (pipelines.ours("5b")[0], *pipelines.prompts("5b"), latent, SEED, 5, CFG, "dpm", "off", 0.0)
    out = CogVideoXSampler.execute(*inputs).result[0]
    assert torch.equal(out["samples"], latent["samples"])
    assert out["batch_index"] == [0]


# --- VAE -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def vae():
    return pipelines.ours("5b")[2]


def latents(*shape, seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


TALL = (1, 16, 1, 32, 4)  # more than one tile of 30 x 45


def test_whole_frames_are_those_of_stock_decode_and_tiles_those_of_the_tiled_one(vae):
    samples = {"samples": latents(*TALL)}
    whole = CogVideoXVAEDecode.execute(samples, vae, "whole frame").result[0]
    tiles = CogVideoXVAEDecode.execute(samples, vae, "tiles").result[0]
    assert whole.shape == tiles.shape == (1, 256, 32, 3)
    assert torch.equal(whole, nodes.VAEDecode().decode(vae, samples)[0])
    assert torch.equal(tiles, vae.decode_tiled(samples["samples"]).flatten(0, 1))
    assert 0 < relative_error(tiles, whole) < 0.5


@pytest.mark.parametrize(("memory", "chosen"), [(1 << 60, "whole frame"), (4 << 30, "slabs"), (1 << 20, "tiles")])
def test_auto_takes_the_first_mode_that_fits(vae, monkeypatch, memory, chosen):
    used = []
    vae = copy.copy(vae)
    for mode, name in (("whole frame", "decode"), ("slabs", "decode_in_slabs"), ("tiles", "decode_tiled")):
        setattr(vae, name, lambda latents, mode=mode: used.append(mode) or latents.new_zeros(1, 1, 8, 8, 3))
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda *_: memory)
    monkeypatch.setattr(comfy.model_management, "vae_offload_device", lambda: "main memory")
    vae.vae_dtype = torch.bfloat16
    CogVideoXVAEDecode.execute({"samples": latents(1, 16, 3, 60, 90)}, vae, "auto")
    assert used == [chosen]


@pytest.mark.parametrize(("count", "frames"), [(1, 1), (3, 9), (5, 17)])
@pytest.mark.parametrize("memory", ["auto", "whole frame", "slabs", "tiles"])
def test_a_decoded_video_has_all_its_frames(vae, memory, count, frames):
    samples = {"samples": latents(1, 16, count, 4, 6)}
    assert CogVideoXVAEDecode.execute(samples, vae, memory).result[0].shape == (frames, 32, 48, 3)


@pytest.mark.parametrize("memory", ["whole frame", "slabs", "tiles"])
def test_the_videos_of_a_batch_follow_each_other(vae, memory):
    both = latents(2, 16, 3, 4, 4)
    frames = CogVideoXVAEDecode.execute({"samples": both}, vae, memory).result[0]
    one, two = (CogVideoXVAEDecode.execute({"samples": both[[index]]}, vae, memory).result[0] for index in (0, 1))
    assert frames.shape == (18, 32, 32, 3)
    assert relative_error(frames, torch.cat((one, two))) <= 1e-5
    assert torch.equal(both, latents(2, 16, 3, 4, 4))


def test_frames_are_pictures(vae):
    frames = CogVideoXVAEDecode.execute({"samples": 4 * latents(1, 16, 3, 4, 4)}, vae, "auto").result[0]
    assert frames.min() >= 0 and frames.max() <= 1


def test_mode_is_what_stock_encode_gives(vae):
    video = image(FRAMES, 32, 32)
    ours = CogVideoXVAEEncode.execute(video, vae, "mode", 0).result[0]["samples"]
    assert ours.shape == (1, 16, 3, 4, 4)
    assert torch.equal(ours, nodes.VAEEncode().encode(vae, video)[0]["samples"])
    assert torch.equal(ours, CogVideoXVAEEncode.execute(video, vae, "mode", 1).result[0]["samples"])
    assert torch.equal(video, image(FRAMES, 32, 32))


def test_a_sample_is_drawn_from_the_posterior_by_its_seed(vae):
    video = image(17, 64, 64)
    draws = [
        CogVideoXVAEEncode.execute(video, vae, "sample", seed).result[0]["samples"] for seed in (1, 1, 2, 2**64 - 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    pixels = video.movedim(-1, 0)[None] * 2 - 1
    posterior = vae.first_stage_model.vae.encode(pixels)
    for draw in draws:
        noise = (draw - posterior.mean) / torch.exp(0.5 * posterior.logvar)
        assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    # The draw is a choice of the node, not of the VAE.
    mean = CogVideoXVAEEncode.execute(video, vae, "mode", 1).result[0]["samples"]
    assert relative_error(mean, posterior.mean) <= 1e-6


def test_transparency_is_left_out_of_a_video(vae):
    video = image(FRAMES, 32, 32, channels=4)
    ours, plain = (CogVideoXVAEEncode.execute(pixels, vae, "mode", 0).result[0] for pixels in (video, video[..., :3]))
    assert torch.equal(ours["samples"], plain["samples"])


def test_a_video_survives_the_way_to_latents_and_back_in_size(vae):
    encoded = CogVideoXVAEEncode.execute(image(FRAMES, 48, 32), vae, "sample", 0).result[0]
    assert CogVideoXVAEDecode.execute(encoded, vae, "auto").result[0].shape == (FRAMES, 32, 48, 3)


def test_the_host_runs_every_node_under_its_own_name():
    """The host calls the class it clones; `execute` is a coroutine or a function that gives a NodeOutput."""
    output = EmptyCogVideoXLatentVideo.execute(32, 32, 1, 1)
    assert isinstance(output, io.NodeOutput)
    clone = EmptyCogVideoXLatentVideo.PREPARE_CLASS_CLONE(None)
    assert clone.EXECUTE_NORMALIZED(width=32, height=32, length=1, batch_size=1).result[0]["samples"].shape[0] == 1
