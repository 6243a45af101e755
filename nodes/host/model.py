"""MODEL: the transformer inside the host's own BaseModel, with the sampling and latent numbers of its variant."""

from __future__ import annotations

import logging
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.ldm.modules.attention as host_attention
import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import comfy.patcher_extension
import comfy.samplers
import comfy.supported_models_base
import torch
from comfy.cli_args import args

from ...cogvideox.latents import (
    check_latent_size,
    latent_frames,
    leading_frames,
    pixel_frames,
    repeat_first_frame,
    repeat_last_frame,
)
from ...cogvideox.samplers import sample_cogvideox_ddim
from ...cogvideox.schedule import sigmas
from ...cogvideox.transformer import CogVideoXTransformer3DModel
from ...cogvideox.variants import LATENT_CHANNELS, OFS, SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION, TEXT_TOKENS, Variant
from .conditioning import CONTROL_VIDEO, KNOWN_FRAMES, KNOWN_STRENGTH, MASKED_VIDEO, KnownFrames
from .gguf import name_blocks
from .preview import with_clip
from .regions import PLACES, fit_regions, places
from .windows import freenoise, windows_of

log = logging.getLogger(__name__)

PREFIX = "diffusion_model."  # what the host puts before the names of a model's weights

# Keeps the noise of the extra leading latent apart from what the host draws from the same seed.
PAD_SEED = 0x436F67566964

# Working memory of one forward, in widths of the token stream D per token. Counted as the tensors alive at once in
# bfloat16: 10.6 (2B) to 11.2, where rotary positions turn queries and keys in float32; the feed-forward holds 10. Some
# more for what a kernel keeps to itself. Not measured on a graphics card.
WORKING_WIDTHS = 12

# What a network beside the transformer adds to that, by the key of what it reads. Counted in the same way; Tora's are
# its maps of features, 42 x 128 numbers for each token of a video, held for two prompts.
BRANCH_WIDTHS = {"diffusion_as_shader_attachment": 2, "tora_attachment": 1}

# What networks beside the transformer read, in CONDITIONING and in the options of a forward.
BRANCHES = "cogvideox_branches"

PROMPT_NEEDED = "Connect CogVideoX Text Encode; the negative prompt may be empty text."


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """Attend with the host's kernel, overrides included: three [B, heads, S, head_dim] -> [B, S, heads * head_dim]."""
    kernel = host_attention.optimized_attention
    unchosen = kernel is host_attention.attention_sub_quad and not args.use_quad_cross_attention
    if unchosen and comfy.model_management.is_device_cpu(q.device):
        # The host's choice for a CPU when nobody chose; PyTorch's own takes half to a third of its time there.
        kernel = host_attention.attention_pytorch
    return kernel(q, k, v, heads=q.shape[1], skip_reshape=True, transformer_options=options)


class Transformer(CogVideoXTransformer3DModel):
    """The transformer behind the host's DIFFUSION_MODEL wrappers (EasyCache and its like)."""

    def __init__(self, config, *, dtype=None, device=None, operations=None):
        super().__init__(config, dtype=dtype, device=device, operations=operations, attention=attention)

    def forward(self, x, timestep, context=None, control=None, transformer_options={}, ofs=None, **kwargs):  # noqa: B006
        wrappers = comfy.patcher_extension.get_all_wrappers(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, transformer_options
        )
        if kwargs:
            transformer_options = {**transformer_options, BRANCHES: kwargs}
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(super().forward, self, wrappers)
        # Wrappers take the latents as the first and the options as the last positional argument.
        return executor.execute(x, timestep, context, ofs, control, transformer_options)


class CogVideoXLatentFormat(comfy.latent_formats.LatentFormat):
    """Latents [B, 16, T, H/8, W/8]; LATENT sockets hold them unscaled, the model sees them times `latent_scale`."""

    latent_channels = LATENT_CHANNELS
    latent_dimensions = 3
    temporal_downscale_ratio = TEMPORAL_COMPRESSION
    # No latent_rgb_factors: they would make a still of each step, and the run itself shows the moving clip.

    def __init__(self, latent_scale: float):
        self.scale_factor = latent_scale


class CogVideoXSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
    """v-prediction on the variant's SNR-shifted, zero-terminal sigmas, in the VE space the host samples in."""

    def __init__(self, snr_shift_scale: float):
        super().__init__()
        self.zsnr = True
        self.set_sigmas(sigmas(snr_shift_scale))


class ModelConfig(comfy.supported_models_base.BASE):
    """What the host asks of a model family, filled from one `Variant`."""

    unet_extra_config: dict[str, Any] = {}

    def __init__(self, variant: Variant, add_on: str = ""):
        self.variant = variant
        self.add_on = add_on  # whose layers the file held beside this model
        self.latent_format = lambda: CogVideoXLatentFormat(variant.latent_scale)
        super().__init__({"config": variant.transformer})
        config = variant.transformer
        half = [torch.bfloat16, torch.float32]
        # 2B was trained in float16; the 5B family overflows in it.
        self.supported_inference_dtypes = half if config.use_rotary_positional_embeddings else [torch.float16, *half]
        tokens_per_latent = 1 / (config.patch_size**2 * (config.patch_size_t or 1))
        # The host reckons area * bytes * 0.01 * factor MiB, area in latents.
        self.memory_usage_factor = WORKING_WIDTHS * config.inner_dim * tokens_per_latent / (0.01 * 1024 * 1024)

    def get_model(self, state_dict, prefix="", device=None):
        return CogVideoX(self, device=device)

    def process_unet_state_dict_for_saving(self, state_dict):
        return name_blocks(state_dict)  # diffusers' key names, as they were read


class CogVideoX(comfy.model_base.BaseModel):
    """Every CogVideoX variant; the place where what differs between them is decided."""

    def __init__(self, model_config: ModelConfig, device=None):
        model_type = comfy.model_base.ModelType.V_PREDICTION
        super().__init__(model_config, model_type, device=device, unet_model=Transformer)
        self.variant = model_config.variant
        self.model_sampling = CogVideoXSampling(self.variant.snr_shift_scale)

    def extra_conds(self, **kwargs):
        out = super().extra_conds(**kwargs)
        context = kwargs.get("cross_attn")
        self.check_text(context)
        # Never repeated to a common length as CONDCrossAttn would: text and video attend to each other.
        # On the device from the start: the host would copy it there, and wait, in every step.
        out["c_crossattn"] = comfy.conds.CONDRegular(context.to(kwargs["device"]))
        if self.variant.transformer.ofs_embed_dim:
            out["ofs"] = comfy.conds.CONDRegular(torch.tensor([OFS], device=kwargs["device"]))
        for attachment in kwargs.get(BRANCHES, {}).values():
            out.update(attachment.conds(self, kwargs["device"]))
        if kwargs.get(PLACES):
            out[PLACES] = comfy.conds.CONDNoiseShape(places(kwargs["noise"].shape[2:], kwargs["device"]))
        return out

    def extra_conds_shapes(self, **kwargs):
        return {attachment.key: [1] for attachment in kwargs.get(BRANCHES, {}).values()}

    def memory_required(self, input_shape, cond_shapes={}):  # noqa: B006
        """Return the bytes the host has to keep free for a forward, those of the branches in its conds included."""
        beside = sum(BRANCH_WIDTHS.get(key, 0) for key in cond_shapes)
        return super().memory_required(input_shape, cond_shapes) * (1 + beside / WORKING_WIDTHS)

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):  # noqa: B006
        """Predict as the host asks, with the position tables made before the forward, which may be compiled."""
        network, rope_options = self.diffusion_model, transformer_options.get("rope_options")
        dtype = self.get_dtype_inference()
        network.tables(network.token_grid(x.shape[2:]), c_crossattn.shape[1], x.device, dtype, rope_options)
        out = super()._apply_model(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        if not torch.isfinite(out).all():
            raise ValueError(
                f"{self.variant.name} computed invalid numbers (NaN), which would be a black video. "
                f"{self.why_invalid(x)}"
            )
        return out

    def why_invalid(self, x: torch.Tensor) -> str:
        """Say why the model computed NaN from the latents `x`, and what mends it."""
        if not torch.isfinite(x).all():
            return "They came from the sampler, which went astray: choose another, or lower cfg."
        for key, tensor in self.diffusion_model.state_dict().items():
            if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
                return f"Its weights hold some ({key}): the file is damaged, or a LoRA on it is. Load others."
        if self.get_dtype_inference() == torch.float16 and self.variant.transformer.use_rotary_positional_embeddings:
            return "The 5B models overflow in fp16: set weight_dtype to bf16 and start ComfyUI without fp16."
        return "Leave out LoRAs, other attention kernels and fp8_e4m3fn_fast one by one to find what causes it."

    def check_text(self, context: torch.Tensor | None) -> None:
        """Raise unless there are text embeddings [B, L, width], numbers all, as wide as this model reads them."""
        if context is None:
            raise ValueError(f"{self.variant.name} got a CONDITIONING without text. {PROMPT_NEEDED}")
        width = self.variant.transformer.text_embed_dim
        if context.shape[-1] != width:
            raise ValueError(
                f"{self.variant.name} reads text embeddings {width} wide and got {context.shape[-1]}. "
                "Encode the prompt with the T5 text encoder of CogVideoX: Load CogVideoX Text Encoder, "
                "or Load CLIP with type cogvideox."
            )
        if not torch.isfinite(context).all():
            raise ValueError(
                "The text embeddings hold invalid numbers (NaN): the text encoder failed on this prompt. "
                "Load another file of it, for example one in bf16 or fp8 in place of fp16."
            )
        if context.shape[1] < TEXT_TOKENS:
            log.warning(
                "%s was trained on %d text tokens and got %d. Use CogVideoX Text Encode.",
                self.variant.name,
                TEXT_TOKENS,
                context.shape[1],
            )

    def concat_cond(self, **kwargs):
        """Return what is concatenated behind the noisy latents: [B or 1, image channels, T, H, W], or None.

        The host repeats one for a batch. Made here for all clips, one would be held N times for each of the N clips
        that Train LoRA brings.
        """
        noise, channels = kwargs["noise"], self.variant.image_channels
        image, masked, control = (kwargs.get(key) for key in ("concat_latent_image", MASKED_VIDEO, CONTROL_VIDEO))
        self.check_kind(image, masked, control)
        if channels == 0:
            return None
        if image is None and masked is None and control is None:
            return torch.zeros_like(noise[:1, :1]).expand(-1, channels, -1, -1, -1).to(kwargs["device"])

        parts, behind = [], LATENT_CHANNELS if control is not None else 0
        if masked is not None:
            parts.append(self.scale_image(self.align(masked, None, noise)[0]))
        elif image is not None:
            image, mask = self.align(image, kwargs.get("concat_mask"), noise)
            if channels - behind == LATENT_CHANNELS + 1:
                known = torch.zeros_like(image[:, :1]) if mask is None else 1 - mask.to(image)
                parts.append(self.scale_image(known))
            parts.append(self.scale_image(image))
        elif channels > behind:
            parts.append(torch.zeros_like(noise[:1, :1]).expand(-1, channels - behind, -1, -1, -1))
        if control is not None:
            parts.append(self.scale_image(self.align(control, None, noise)[0]))

        batch = max(map(len, parts))
        parts = [comfy.utils.repeat_to_batch_size(part, batch).to(kwargs["device"]) for part in parts]
        concat = torch.cat(parts, dim=1)
        if concat.shape[1] != channels:
            raise ValueError(
                f"{self.variant.name} takes {channels} conditioning channels and got {concat.shape[1]}. "
                "Use the CogVideoX conditioning node made for this model."
            )
        return concat

    def check_kind(self, image, masked, control) -> None:
        """Raise unless a model with these channels can take what the conditioning holds."""
        variant, channels = self.variant, self.variant.image_channels
        if channels == 0:
            for given, what, mend in (
                (control, "control video", "a control model (CogVideoX-Fun Control or Pose)"),
                (masked, "masked video", "an inpainting model (CogVideoX-Fun InP)"),
                (image, "image", "an image-to-video model (CogVideoX-5B-I2V, CogVideoX1.5-5B-I2V)"),
            ):
                if given is not None:
                    raise ValueError(
                        f"{variant.name} makes video from text and cannot take the {what} in this conditioning. "
                        f"Load {mend}, or leave the {what} out."
                    )
            return
        config = variant.transformer
        of_images = config.use_learned_positional_embeddings or config.ofs_embed_dim
        if image is None and masked is None and control is None and not variant.image_optional:
            void = channels == 2 * LATENT_CHANNELS
            node = "CogVideoX Image to Video" if of_images else "CogVideoX Control to Video (or Image to Video)"
            raise ValueError(
                f"{variant.name} makes video from {'an image' if of_images else 'another video'} and this "
                f"conditioning holds none. Put {'CogVideoX VOID Conditioning' if void else node} between the prompts "
                "and the sampler, or load a text-to-video model."
            )
        if control is not None and (of_images or channels == LATENT_CHANNELS + 1):
            raise ValueError(
                f"{variant.name} has no channels for a control video. Load CogVideoX-Fun Control or Pose, "
                "or use CogVideoX Image to Video or CogVideoX Inpaint Video with this model."
            )
        if masked is not None and channels not in (LATENT_CHANNELS + 1, 2 * LATENT_CHANNELS + 1):
            raise ValueError(
                f"{variant.name} has no channel for a mask and cannot take the masked video in this conditioning. "
                "Load an inpainting model (CogVideoX-Fun InP)."
            )
        if control is not None and image is not None and channels == LATENT_CHANNELS:
            raise ValueError(
                f"{variant.name} takes a control video and no start image beside it. Leave start_image unconnected."
            )

    def see(self, frames: KnownFrames, strength: float, length: int) -> dict[str, torch.Tensor | None]:
        """Return the conditioning values of pictures as this variant was trained to see them, for `length` latents."""
        if latent_frames(frames.length) != length:
            return {}  # concat_cond tells
        if self.variant.image_channels % LATENT_CHANNELS == 1:
            _, behind = self.extra_latents(length)  # one more is unknown video
            return {MASKED_VIDEO: frames.masked_video(behind) * strength}
        if self.variant.image_repeated:
            return {"concat_latent_image": frames.held_video() * strength, "concat_mask": None}
        return {}

    def scale_image(self, latents: torch.Tensor) -> torch.Tensor:
        """Scale raw VAE latents of conditioning images as the variant was trained to see them."""
        if self.variant.image_latent_scale == "unscaled":
            return latents
        if self.variant.image_latent_scale == "diffusers":
            return latents / self.variant.latent_scale
        return latents * self.variant.latent_scale

    def extra_latents(self, frames: int) -> tuple[int, int]:
        """Return how many latents temporal patches need in front of and behind a video of `frames` latents."""
        count = leading_frames(frames, self.variant.transformer.patch_size_t)
        return (0, count) if self.variant.pads_behind else (count, 0)

    def align(self, image: torch.Tensor, mask: torch.Tensor | None, noise: torch.Tensor):
        """Fit image latents and mask [B, C, T, H, W] to the noise, which may hold an extra latent."""
        if image.ndim != 5 or mask is not None and mask.shape[2:] != image.shape[2:]:
            shapes = " with a mask ".join(str(list(part.shape)) for part in (image, mask) if part is not None)
            raise ValueError(
                f"The image conditioning is not that of a video: its shape is {shapes}. "
                "Attach images with the CogVideoX conditioning nodes."
            )
        if image.shape[2:] == noise.shape[2:]:
            return image, mask
        leading, behind = self.extra_latents(image.shape[2])
        if (image.shape[2] + leading + behind, *image.shape[3:]) != noise.shape[2:]:
            if self.variant.transformer.patch_size_t:
                noise = noise[:, :, 1:]  # the artist does not know of the extra latent
            raise ValueError(
                f"The image conditioning is {size_text(image)} and the video {size_text(noise)}. "
                "Connect the LATENT of the same CogVideoX conditioning node to the sampler."
            )
        if behind:  # held: nothing is known of the frames that are not asked for
            return repeat_last_frame(image, behind), None if mask is None else repeat_last_frame(mask, behind)
        if self.variant.image_held:
            return repeat_first_frame(image, leading), None if mask is None else repeat_first_frame(mask, leading)
        return pad_image(image, mask, leading)


def size_text(latents: torch.Tensor) -> str:
    """Say the size of latents [B, C, T, H, W] as an artist reads it."""
    t, h, w = latents.shape[2:]
    frames = pixel_frames(t)
    return f"{w * SPATIAL_COMPRESSION}x{h * SPATIAL_COMPRESSION} px, {frames} frame{'s' if frames > 1 else ''}"


def pad_image(image: torch.Tensor, mask: torch.Tensor | None, leading: int):
    """Put `leading` latents in front of image latents and mask, as the reference does.

    The first frame moves to the front. Where the frame behind it is unknown (mask 1, an image to start from) the slot
    it leaves is unknown too, otherwise (a control video) it is held twice.
    """
    if leading == 0:
        return image, mask
    image = repeat_first_frame(image, leading)
    if mask is None:
        return image, mask
    mask = repeat_first_frame(mask, leading)
    behind = mask[:, :, leading + 1 : leading + 2]
    if behind.shape[2] and bool((behind == 1).all()):
        image[:, :, 1 : leading + 1], mask[:, :, 1 : leading + 1] = 0, 1
    return image, mask


def sample_with_leading_latent(
    executor,
    noise,
    latent_image,
    sampler,
    sigmas,
    denoise_mask=None,
    callback=None,
    disable_pbar=False,
    seed=None,
    **kwargs,
):
    """Sample with the extra latent that temporal patches need (1.5, odd T), and trim it from what comes out.

    An OUTER_SAMPLE wrapper of the host, so every sampler, guider and preview sees only the video that was asked for.
    """
    if type(sampler).__name__ == "VOID_DDIM":
        # The stock VOIDSampler writes DDIM out for the space of ComfyUI's own CogVideoX; this is DDIM in ours.
        sampler = comfy.samplers.KSAMPLER(sample_cogvideox_ddim)
    guider = executor.class_obj
    check_run(guider, noise, latent_image)
    model, frames = guider.model_patcher.model, noise.shape[2]
    variant = model.variant
    prompts = prompts_of(guider)
    guided = any(prompt.get("control") or prompt.get(BRANCHES) for prompt in prompts)
    for prompt in prompts:  # the guider's own copies, before the host loads the model
        prompt[PLACES] = guided  # for all, or they would not run as one batch
        if prompt.get(KNOWN_FRAMES) is not None:
            prompt.update(model.see(prompt[KNOWN_FRAMES], prompt[KNOWN_STRENGTH], frames))
    device = guider.model_patcher.load_device
    callback = with_clip(callback, variant.latent_scale, device, len(sigmas) - 1, variant.colours)
    leading, behind = model.extra_latents(frames)
    fit_to_video(guider, tuple(noise.shape[2:]), (leading, behind), variant.transformer.patch_size)
    noise = freenoise(guider.model_options.get("context_handler"), noise, seed)
    if leading + behind == 0:
        return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **kwargs)

    extra = leading_noise(noise, leading + behind, seed)
    noise = torch.cat((extra, noise) if leading else (noise, extra), dim=2)
    latent_image = repeat_last_frame(repeat_first_frame(latent_image, leading), behind)
    if denoise_mask is not None:
        denoise_mask = repeat_last_frame(repeat_first_frame(denoise_mask, leading), behind)
    if "latent_shapes" in kwargs:
        kwargs["latent_shapes"] = [latent_image.shape]
    asked = slice(leading, leading + frames)

    def trimmed(step, x0, x, total_steps):
        return callback(step, x0[:, :, asked], x[:, :, asked], total_steps)

    trimmed = trimmed if callback is not None else None
    out = executor(noise, latent_image, sampler, sigmas, denoise_mask, trimmed, disable_pbar, seed, **kwargs)
    return out[:, :, asked]


def prompts_of(guider) -> list[dict[str, Any]]:
    """Return every prompt of a run, positive and negative."""
    return [prompt for prompts in guider.conds.values() for prompt in prompts]


def check_run(guider, noise: torch.Tensor, latent_image: torch.Tensor) -> None:
    """Raise where the latents of a run, or what its prompts hold, cannot be sampled with its model."""
    model = guider.model_patcher.model
    check_latent_size(noise, model.variant.transformer.patch_size)
    if not torch.isfinite(latent_image).all():
        raise ValueError(
            "The LATENT holds invalid numbers (NaN). The node that made it failed; decode it and look at the frames."
        )
    for name, prompts in guider.conds.items():
        if not prompts:
            raise ValueError(f"The {name} CONDITIONING is empty. {PROMPT_NEEDED}")
    for prompt in prompts_of(guider):
        check_control(prompt.get("control"), model, noise.shape)
        for attachment in prompt.get(BRANCHES, {}).values():
            attachment.check(guider.model_patcher, noise.shape)


def fit_to_video(guider, size: tuple[int, int, int], extra: tuple[int, int], patch: int) -> None:
    """Fit areas, masks and context windows of a run to latents of `size` (T, H, W); the host made them for this run.

    `extra` counts the latents that are put in front of and behind the video.
    """
    guider.conds = {name: fit_regions(conds, size, extra, patch) for name, conds in guider.conds.items()}
    handler = guider.model_options.get("context_handler")
    if handler is not None:
        guider.model_options["context_handler"] = windows_of(handler, extra[0])


def check_control(control, model: CogVideoX, shape: torch.Size) -> None:
    """Raise where a ControlNet of a prompt, or one chained before it, does not fit the model or latents of `shape`."""
    while control is not None:
        if not hasattr(control, "check_video"):
            raise ValueError(
                f"{model.variant.name} got a ControlNet of another model family. "
                "Load one made for CogVideoX 2B or 5B with Load CogVideoX ControlNet."
            )
        control.check_video(model, shape)
        control = control.previous_controlnet


def let_go(executor, *args, **kwargs):
    """Let go of position tables and of what ControlNets hold when a run ends; an OUTER_SAMPLE wrapper of the host.

    The host itself cleans up after runs that come to their end, and not after cancelled ones.
    """
    try:
        return executor(*args, **kwargs)
    finally:
        guider = executor.class_obj
        guider.model_patcher.model.diffusion_model.held_tables = None
        for prompt in prompts_of(guider):
            if prompt.get("control") is not None:
                prompt["control"].cleanup()


def leading_noise(noise: torch.Tensor, count: int, seed: int | None) -> torch.Tensor:
    """Return the noise of `count` extra latents [B, C, count, H, W]: from the seed, or zeros where noise is off."""
    shape = (*noise.shape[:2], count, *noise.shape[3:])
    if not torch.any(noise):
        return noise.new_zeros(shape)
    generator = torch.Generator().manual_seed((seed or 0) ^ PAD_SEED)
    return torch.randn(shape, generator=generator, dtype=torch.float32).to(noise)
