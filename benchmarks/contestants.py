"""Ours, diffusers and ComfyUI's own model behind the same calls, each to be run in a process of its own."""

from __future__ import annotations

import functools
import gc
import inspect
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pack.cogvideox.variants import OFS, TEXT_TOKENS, TransformerConfig

from . import common
from .weights import WEIGHT_SCALE, variant_of

CONTESTANTS = ("ours", "diffusers", "core")
COMPILED = "compiled"  # ours, by PyTorch's compiler
PROMPT, NEGATIVE = "A red ball rolls to the left over a wooden floor, seen from above.", ""
SEED, GUIDANCE = 1, 6.0

Forward = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One piece of work: `kind` on latents of `shape` [T, H, W]; 0 `layers` or `heads` are those of the variant.

    A pipeline is read from `folder` and takes `steps`.
    """

    kind: str
    shape: tuple[int, int, int]
    variant: str = "CogVideoX-5B"
    layers: int = 0
    heads: int = 0
    dtype: str = "bfloat16"
    folder: str = ""
    steps: int = 0

    @property
    def frames(self) -> int:
        """Frames of the video that the latents hold."""
        return 4 * (self.shape[0] - 1) + 1

    @property
    def name(self) -> str:
        frames, (_, height, width) = self.frames, self.shape
        size = f"{frames} frame{'s' if frames > 1 else ''} of {8 * width}x{8 * height}"
        config = variant_of(self.variant, self.layers, self.heads).transformer
        model = f"{self.variant} ({config.num_layers} layers, {config.inner_dim} wide)"
        if self.kind == "transformer":
            return f"{model}, {size}"
        if self.kind == "pipeline":
            return f"pipeline, {model}, {self.steps} steps, {size}"
        return f"{self.kind}, {size}"


def fill(parameters: dict[str, torch.Tensor]) -> None:
    """Fill parameters in the order of their diffusers names, so that every contestant has the same."""
    generator = torch.Generator(parameters[min(parameters)].device).manual_seed(0)
    for name in sorted(parameters):
        tensor = parameters[name]
        tensor.normal_(0, WEIGHT_SCALE, generator=generator)
        if tensor.ndim == 1 and name.endswith("weight"):
            tensor.add_(1)  # norms


def inputs(case: Case, device: str) -> dict[str, torch.Tensor]:
    """Return the inputs of a single network in float32."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    if case.kind == "encode":
        return {"pixels": normal(1, 3, case.frames, 8 * case.shape[1], 8 * case.shape[2]).clamp(-1, 1)}
    if case.kind == "decode":
        return {"latents": normal(1, 16, *case.shape)}
    config = variant_of(case.variant).transformer
    given = {
        "x": normal(1, config.in_channels, *case.shape),
        "text": normal(1, TEXT_TOKENS, config.text_embed_dim),
        "timestep": torch.tensor([500], device=device),
    }
    if config.ofs_embed_dim:
        given["ofs"] = torch.tensor([OFS], device=device)
    return given


def taken_by(model: type, config: TransformerConfig) -> dict[str, Any]:
    """Return the fields of `config` that another implementation takes."""
    known = inspect.signature(model.__init__).parameters
    return {name: value for name, value in asdict(config).items() if name in known}


# --- single networks --------------------------------------------------------------------------------------------------


def ours(case: Case, dtype: torch.dtype, device: str) -> tuple[torch.nn.Module, Forward]:
    import comfy.ops
    from pack.cogvideox.vae import AutoencoderKLCogVideoX
    from pack.cogvideox.variants import VAEConfig
    from pack.nodes.host.model import Transformer

    operations = comfy.ops.disable_weight_init
    if case.kind == "transformer":
        config = variant_of(case.variant, case.layers, case.heads).transformer
        model = Transformer(config, dtype=dtype, device=device, operations=operations)
        return model, lambda x, text, timestep, ofs=None: model(x, timestep, text, ofs=ofs)
    model = AutoencoderKLCogVideoX(VAEConfig(), dtype=dtype, operations=operations).to(device)
    if case.kind == "decode":
        return model, lambda latents: model.decode(latents)
    return model, lambda pixels: model.encode(pixels).mode()


def compiled(case: Case, dtype: torch.dtype, device: str) -> tuple[torch.nn.Module, Forward]:
    model, forward = ours(case, dtype, device)
    return model, torch.compile(forward)


def diffusers(case: Case, dtype: torch.dtype, device: str) -> tuple[torch.nn.Module, Forward]:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel

    if case.kind == "transformer":
        config = variant_of(case.variant, case.layers, case.heads).transformer
        with torch.device(device):
            model = CogVideoXTransformer3DModel(**taken_by(CogVideoXTransformer3DModel, config)).to(dtype)
        rope = None
        if config.use_rotary_positional_embeddings:
            maker = type("Maker", (), {"transformer": model, "vae_scale_factor_spatial": 8})()
            prepare = CogVideoXPipeline._prepare_rotary_positional_embeddings
            frames, height, width = case.shape
            rope = prepare(maker, 8 * height, 8 * width, frames, torch.device(device))

        def forward(x, text, timestep, ofs=None):
            out = model(x.transpose(1, 2), text, timestep, ofs=ofs, image_rotary_emb=rope, return_dict=False)[0]
            return out.transpose(1, 2)

        return model, forward
    with torch.device(device):
        model = AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(128, 256, 256, 512),
            latent_channels=16,
            layers_per_block=3,
        ).to(dtype)
    if case.kind == "decode":
        return model, lambda latents: model.decode(latents).sample
    return model, lambda pixels: model.encode(pixels).latent_dist.mode()


def core(case: Case, dtype: torch.dtype, device: str) -> tuple[torch.nn.Module, Forward]:
    import comfy.ops
    from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel
    from comfy.ldm.cogvideo.vae import AutoencoderKLCogVideoX

    if case.kind == "transformer":
        config = variant_of(case.variant, case.layers, case.heads).transformer
        kwargs = dict(dtype=dtype, device=device, operations=comfy.ops.disable_weight_init)
        model = CogVideoXTransformer3DModel(**taken_by(CogVideoXTransformer3DModel, config), **kwargs)
        return model, lambda x, text, timestep, ofs=None: model(x, timestep, text, ofs=ofs)
    model = AutoencoderKLCogVideoX().to(device, dtype)
    if case.kind == "decode":
        return model, lambda latents: model.decode(latents)
    return model, lambda pixels: model.encode(pixels)


def named_parameters(model: torch.nn.Module, contestant: str, kind: str) -> dict[str, torch.Tensor]:
    """Return the parameters by their diffusers names."""
    parameters = {name: tensor.data for name, tensor in model.named_parameters()}
    if contestant != "core" or kind != "transformer":
        return parameters
    from pack.cogvideox.checkpoint import normalise_transformer

    return normalise_transformer(parameters)


# --- whole pipelines --------------------------------------------------------------------------------------------------


class HostPipeline:
    """Ours as an artist runs it: Load Pipeline, Text Encode, stock KSampler, VAE Decode."""

    def __init__(self, case: Case, dtype: torch.dtype):
        from pack.nodes.host.conditioning import empty_latent
        from pack.nodes.host.loading import load_pipeline
        from pack.nodes.host.text_encoder import encode_prompt

        import nodes

        self.host, self.encode_prompt, self.case = nodes, encode_prompt, case
        self.model, self.clip, self.vae = load_pipeline(Path(case.folder), weight_dtype_of(dtype))
        self.latent = empty_latent(8 * case.shape[2], 8 * case.shape[1], case.frames, 1)

    def text(self) -> None:
        self.prompts = [self.encode_prompt(self.clip, prompt).conditioning for prompt in (PROMPT, NEGATIVE)]

    def sampling(self) -> torch.Tensor:
        run = self.host.KSampler().sample
        args = (SEED, self.case.steps, GUIDANCE, "euler", "simple", *self.prompts, self.latent, 1.0)
        self.samples = run(self.model, *args)[0]
        return self.samples["samples"]

    def decode(self) -> torch.Tensor:
        return self.host.VAEDecode().decode(self.vae, self.samples)[0]

    def wake(self) -> None:
        """Bring the model to the card, as far as the host sees fit; that is not part of what is timed."""
        import comfy.model_management

        comfy.model_management.load_models_gpu([self.model])

    def rest(self) -> None:
        """Leave the card to the others."""
        import comfy.model_management

        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()


# Our module names to those of ComfyUI's own model, in this order.
CORE_NAMES = (
    ("transformer_blocks.", "blocks."),
    (".attn1.to_out.0.", ".attn_out."),
    (".attn1.to_", "."),
    (".attn1.", "."),
    (".ff.net.0.proj.", ".ff_proj."),
    (".ff.net.2.", ".ff_out."),
    ("_embedding.linear_", "_embedding_linear_"),
)


class CorePipeline(HostPipeline):
    """The host's own model and VAE, which load neither the released files nor the text encoder of a small pipeline."""

    def __init__(self, case: Case, dtype: torch.dtype):
        super().__init__(case, dtype)
        import comfy.sd
        from safetensors.torch import load_file

        weights = Path("diffusion_pytorch_model.safetensors")
        renamed = {}
        for name, tensor in load_file(Path(case.folder) / "transformer" / weights).items():
            renamed[functools.reduce(lambda name, pair: name.replace(*pair), CORE_NAMES, name)] = tensor
        self.model = comfy.sd.load_diffusion_model_state_dict(renamed, {"dtype": dtype})
        self.vae = comfy.sd.VAE(sd=load_file(Path(case.folder) / "vae" / weights), dtype=dtype)


class DiffusersPipeline:
    """CogVideoXPipeline, its transformer and VAE on the card, its text encoder there to encode."""

    def __init__(self, case: Case, dtype: torch.dtype):
        from diffusers import CogVideoXPipeline
        from transformers import T5TokenizerFast

        tokenizer = T5TokenizerFast.from_pretrained(common.comfyui() / "comfy" / "text_encoders" / "t5_tokenizer")
        self.case, self.dtype = case, dtype
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pipe = CogVideoXPipeline.from_pretrained(case.folder, tokenizer=tokenizer, torch_dtype=dtype)
        self.pipe.set_progress_bar_config(disable=True)
        noise = torch.randn(1, 16, *case.shape, generator=torch.Generator().manual_seed(SEED))
        self.noise = noise.movedim(1, 2).to(dtype)  # [B, T, C, H, W]

    def text(self) -> None:
        self.pipe.text_encoder.to(self.device)
        self.prompts = self.pipe.encode_prompt(PROMPT, NEGATIVE, device=self.device, dtype=self.dtype)
        if self.device != "cpu":
            self.pipe.text_encoder.to("cpu")

    def sampling(self) -> torch.Tensor:
        positive, negative = self.prompts
        self.pipe.transformer.to(self.device)
        self.samples = self.pipe(
            prompt_embeds=positive,
            negative_prompt_embeds=negative,
            height=8 * self.case.shape[1],
            width=8 * self.case.shape[2],
            num_frames=self.case.frames,
            num_inference_steps=self.case.steps,
            guidance_scale=GUIDANCE,
            latents=self.noise.to(self.device),
            output_type="latent",
        ).frames
        return self.samples.movedim(1, 2) / self.pipe.vae.config.scaling_factor

    def decode(self) -> torch.Tensor:
        self.pipe.vae.to(self.device)
        frames = self.pipe.decode_latents(self.samples)
        return self.pipe.video_processor.postprocess_video(frames, output_type="pt")

    def wake(self) -> None:
        """Bring the transformer to the card; that is not part of what is timed."""
        self.pipe.transformer.to(self.device)

    def rest(self) -> None:
        """Leave the card to the others."""
        self.pipe.to("cpu")
        if self.device != "cpu":
            torch.cuda.empty_cache()


PIPELINES = {"ours": HostPipeline, "diffusers": DiffusersPipeline, "core": CorePipeline}
STAGES = ("text", "sampling", "decode")


def weight_dtype_of(dtype: torch.dtype) -> str:
    """Return what the loaders' widget calls a type."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]


# --- the process ------------------------------------------------------------------------------------------------------


class Contestant:
    """What a process answers: prepare a case, run it, let go of it."""

    def __init__(self, name: str):
        self.name = name
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.peak = common.Peak()
        self.forget()

    def forget(self) -> None:
        self.run = self.model = self.pipeline = None
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def answer(self, case: dict | None = None, write: str = "", compare: str = "", run: bool = False) -> dict[str, Any]:
        if case is not None:
            return self.prepare(Case(**{**case, "shape": tuple(case["shape"])}), write, compare)
        if not run:
            self.forget()
            return {}
        return self.timed_pipeline() if self.pipeline else self.timed()

    def prepare(self, case: Case, write: str, compare: str) -> dict[str, Any]:
        """Make the models of a case and run it once, unmeasured; return the error against the file `compare`."""
        self.forget()  # before the next one is made
        dtype = getattr(torch, case.dtype)
        if case.kind == "pipeline":
            self.pipeline = PIPELINES[self.name](replace(case, steps=min(case.steps, 2)), dtype)
            self.pipeline.wake()
            self.pipeline.text()
            out = self.pipeline.sampling().float().cpu()
            self.pipeline.decode()
            self.pipeline.case = case
            self.pipeline.rest()
        else:
            self.model, forward = globals()[self.name](case, dtype, self.device)
            fill(named_parameters(self.model.eval().requires_grad_(False), self.name, case.kind))
            given = {k: v if v.dtype == torch.int64 else v.to(dtype) for k, v in inputs(case, self.device).items()}
            self.run = functools.partial(forward, **given)
            out = self.run().float().cpu()
        if write:
            torch.save(out, write)
        if not compare:
            return {}
        right = torch.load(compare, weights_only=True)
        return {"error": float((out - right).norm() / right.norm())}

    def timed(self) -> dict[str, Any]:
        self.peak.start()
        start = time.perf_counter()
        out = self.run()
        common.synchronise()
        answer = {"seconds": time.perf_counter() - start, "bytes": self.peak.stop()}
        del out
        return answer

    def timed_pipeline(self) -> dict[str, Any]:
        self.pipeline.wake()
        self.peak.start()
        answer: dict[str, Any] = {}
        for stage in STAGES:
            start = time.perf_counter()
            getattr(self.pipeline, stage)()
            common.synchronise()
            answer[stage] = time.perf_counter() - start
        answer |= {"seconds": sum(answer.values()), "bytes": self.peak.stop()}
        self.pipeline.rest()
        return answer
