"""Tiny models with random weights under the names that the workflows ask for."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from pack.cogvideox.consisid import ConsisID, ConsisIDConfig
from pack.cogvideox.controlnet import CogVideoXControlNet
from pack.cogvideox.shader import DiffusionAsShader, ShaderConfig
from pack.cogvideox.tiny_decoder import TinyDecoder
from pack.cogvideox.tora import Tora, ToraConfig
from pack.cogvideox.variants import ControlNetConfig
from pack.demo import tiny_pipeline
from safetensors.torch import load_file, save_file
from torchvision.models.optical_flow import raft_large

WEIGHTS = "diffusion_pytorch_model.safetensors"
# The learned table of a single file is read as the released 5B-I2V's, so this one has that size.
tiny_i2v = tiny_pipeline.VARIANTS["5b-i2v"]
RELEASED_GRID = replace(tiny_i2v, sample_height=60, sample_width=90, sample_frames=49)

# Models with a branch beside the transformer, in one folder.
BRANCHES = {
    "Tora_T2V_diffusers": lambda: Tora(ToraConfig(inner_dim=64, blocks=2, channels=8)),
    "Diffusion-As-Shader": lambda: DiffusionAsShader(ShaderConfig(replace(tiny_i2v, num_layers=1))),
    "ConsisID-preview": lambda: ConsisID(ConsisIDConfig(64, 1, 24, 32, 4, 64, 3, 4, 16, 2, 2, 128)),
}
FOLDERS = {
    "CogVideoX-5b": "5b",
    "CogVideoX-2b": "2b",
    "CogvideoX-Interpolation": "5b-i2v",
    "DOVE": "1.5",
    "KoolCogVideoX-5b": "5b",
    "CogVideoX-Fun-V1.1-5b-InP": "fun-inp",
    "CogVideoX-Fun-V1.1-5b-Control": "fun-control",
    "CogVideoX-Fun-V1.1-5b-Pose": "fun-control",
}
FILES = {
    "diffusion_models/CogVideoX_1_0_5b_I2V_bf16.safetensors": ("5b-i2v", f"transformer/{WEIGHTS}"),
    "diffusion_models/CogVideoX_1_0_5b_I2V_Tora_bf16.safetensors": ("5b-i2v", f"transformer/{WEIGHTS}"),
    "diffusion_models/CogVideoX_Fun_1_1_5b_Control_bf16.safetensors": ("fun-control", f"transformer/{WEIGHTS}"),
    "diffusion_models/CogVideoX_1_5_5b_T2V_bf16.safetensors": ("1.5", f"transformer/{WEIGHTS}"),
    "diffusion_models/CogVideoX_1_5_5b_I2V_bf16.safetensors": ("1.5-i2v", f"transformer/{WEIGHTS}"),
    "diffusion_models/void_pass1.safetensors": ("void", f"transformer/{WEIGHTS}"),
    "diffusion_models/void_pass2.safetensors": ("void", f"transformer/{WEIGHTS}"),
    "vae/cogvideox_vae_bf16.safetensors": ("5b", f"vae/{WEIGHTS}"),
    "text_encoders/t5xxl_fp16.safetensors": ("5b", "text_encoder/model.safetensors"),
}


# Language models, which have no tiny form that the host builds: names for its lists.
NAMES = ("text_encoders/qwen_3_4b.safetensors", "text_encoders/gemma4_e4b_it_fp8_scaled.safetensors")


def upscaler() -> dict[str, torch.Tensor]:
    """Return the weights of a small SRVGGNetCompact that enlarges four times."""
    conv, act = torch.nn.Conv2d, torch.nn.PReLU
    body = torch.nn.Sequential(conv(3, 8, 3), act(8), conv(8, 8, 3), act(8), conv(8, 3 * 4**2, 3))
    return {f"body.{name}": tensor for name, tensor in body.state_dict().items()}


def interpolator(width: int = 8, head: int = 2) -> dict[str, torch.Tensor]:
    """Return the weights of a small RIFE (IFNet)."""
    convs = {
        "encode.cnn0": (16, 3, 3, 3),
        "encode.cnn1": (16, 16, 3, 3),
        "encode.cnn2": (16, 16, 3, 3),
        "encode.cnn3": (16, head, 4, 4),
    }
    for block in range(5):
        name, inputs = f"blocks.{block}", (20 if block else 7) + 2 * head
        convs |= {
            f"{name}.conv0.0.0": (width // 2, inputs, 3, 3),
            f"{name}.conv0.1.0": (width, width // 2, 3, 3),
            f"{name}.lastconv.0": (width, 4 * 13, 4, 4),
        }
        convs |= {f"{name}.convblock.{layer}.conv": (width, width, 3, 3) for layer in range(8)}
    weights = {}
    for name, shape in convs.items():
        outputs = shape[1] if shape[-1] == 4 else shape[0]  # the 4x4 ones are transposed
        weights |= {f"{name}.weight": 0.1 * torch.randn(shape), f"{name}.bias": torch.zeros(outputs)}
        if ".convblock." in name:
            weights[f"{name.removesuffix('.conv')}.beta"] = torch.ones(1, width, 1, 1)
    return weights


def lora(rank: int = 4) -> dict[str, torch.Tensor]:
    """Return a LoRA in diffusers' layout for the attention of the tiny transformers."""
    config, weights = tiny_pipeline.VARIANTS["5b"], {}
    for block in range(config.num_layers):
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            stem = f"transformer.transformer_blocks.{block}.attn1.{name}"
            weights[f"{stem}.lora_A.weight"] = 0.1 * torch.randn(rank, config.inner_dim)
            weights[f"{stem}.lora_B.weight"] = 0.1 * torch.randn(config.inner_dim, rank)
    return weights


def optical_flow() -> dict[str, torch.Tensor]:
    """Return random weights of torchvision's RAFT, the host's flow model, whose update block ends in no motion."""
    weights = raft_large().state_dict()
    last = "update_block.flow_head.conv2."
    return {name: torch.zeros_like(value) if name.startswith(last) else value for name, value in weights.items()}


def controlnet() -> dict[str, torch.Tensor]:
    """Return the weights of a ControlNet of one block for the tiny 5B."""
    body = replace(tiny_pipeline.VARIANTS["5b"], in_channels=64, num_layers=1)
    shapes = tiny_pipeline.module_shapes(CogVideoXControlNet(ControlNetConfig(body)))
    return tiny_pipeline.random_weights(shapes, seed=7)


def tiny_decoder() -> dict[str, torch.Tensor]:
    """Return random weights of the tiny decoder for previews that keep its signals at one size, around grey."""
    shapes = {key: value.shape for key, value in TinyDecoder().state_dict().items()}
    weights = {key: torch.randn(shape) * (shape[1:].numel() or 16) ** -0.5 for key, shape in shapes.items()}
    last = weights["decoder.22.weight"]
    weights["decoder.22.weight"] = 0.3 * (last - last.mean((1, 2, 3), keepdim=True))
    weights["decoder.22.bias"] = torch.full((3,), 0.5)
    return weights


def write(models: Path) -> None:
    """Write every model of the workflows below the folder `models`."""
    torch.manual_seed(0)
    pipelines = {variant: models / "tiny" / variant for variant in tiny_pipeline.VARIANTS}
    for variant, folder in pipelines.items():
        tiny_pipeline.write(folder, variant)
    for name, variant in FOLDERS.items():
        shutil.copytree(pipelines[variant], models / "CogVideo" / name)
    branches = {}
    for name, make in BRANCHES.items():
        folder = models / "CogVideo" / name
        shutil.copytree(pipelines["5b-i2v"], folder)
        branch = tiny_pipeline.random_weights(tiny_pipeline.module_shapes(make()), seed=9)
        branch = {key: tensor.abs() if key.endswith("running_var") else tensor for key, tensor in branch.items()}
        save_file({**load_file(folder / "transformer" / WEIGHTS), **branch}, folder / "transformer" / WEIGHTS)
        branches[name] = branch
    (models / "embeddings").mkdir(parents=True, exist_ok=True)
    torch.save(
        {"id_cond": torch.randn(1, 24), "id_vit_hidden": torch.randn(1, 2, 7, 32)}, models / "embeddings" / "face.pt"
    )
    tiny_pipeline.VARIANTS["5b-i2v"] = RELEASED_GRID
    try:
        tiny_pipeline.write(pipelines["5b-i2v"], "5b-i2v")
    finally:
        tiny_pipeline.VARIANTS["5b-i2v"] = tiny_i2v
    for name, (variant, source) in FILES.items():
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pipelines[variant] / source, models / name)
    tora, files = branches["Tora_T2V_diffusers"], models / "diffusion_models"
    for part in ("fuser", "traj_extractor"):  # named as the older wrapper's two files name them
        own = {key.removeprefix(f"{part}."): tensor for key, tensor in tora.items() if key.startswith(f"{part}.")}
        save_file(own, files / f"{part}_I2V.safetensors")
    model = load_file(files / "CogVideoX_1_0_5b_I2V_bf16.safetensors")
    save_file({**model, **branches["Diffusion-As-Shader"]}, files / "CogVideoX_1_0_5b_I2V_DaS_bf16.safetensors")
    for name in NAMES:
        save_file({"nothing": torch.zeros(1)}, models / name)
    for folder, name, weights in (
        ("upscale_models", "RealESRGAN_x4plus", upscaler()),
        ("frame_interpolation", "film_net_fp16", interpolator()),
        ("loras", "pytorch_lora_weights", lora()),
        ("loras", "I2V5B_final_i38800_nearest_lora_weights", lora()),
        ("loras", "orbit_left_lora_weights", lora()),
        ("optical_flow", "raft_large_C_T_SKHT_V2-ff5fadd5", optical_flow()),
        ("controlnet", "diffusion_pytorch_model", controlnet()),
        ("vae_approx", "taecvx", tiny_decoder()),
    ):
        (models / folder).mkdir(parents=True, exist_ok=True)
        save_file(weights, models / folder / f"{name}.safetensors")
