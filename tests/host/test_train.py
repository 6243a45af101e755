"""The stock Train LoRA on our MODEL: it trains what sampling computes, and cogvideox-mini learns from clips."""

from dataclasses import replace
from typing import Any

import comfy.model_sampling
import comfy.sd
import comfy_extras.nodes_train as stock
import folder_paths
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_train import SaveLoRA
from pack.benchmarks.mini import HostPainter
from pack.benchmarks.train_lora import Clips, Settings, clips_in_new_colour, error_on, train
from pack.cogvideox.latents import leading_frames, repeat_first_frame
from pack.nodes.host import loading
from pack.nodes.host.conditioning import empty_latent, image_to_video
from pack.nodes.host.text_encoder import encode_prompt

import nodes

from . import pipelines
from .pipelines import FRAMES, HEIGHT, WIDTH, relative_error

SEED = 3
TINY = Settings(steps=3, accumulation=1, rate=1e-2, rank=2)


def clips_of(variant: str, count: int = 2, frames: int = FRAMES) -> Clips:
    """Return random clips; image-to-video variants get each clip's own first picture."""
    _, clip, vae = pipelines.ours(variant)
    with torch.inference_mode():
        latents = torch.randn(
            empty_latent(WIDTH, HEIGHT, frames, count)["samples"].shape, generator=torch.Generator().manual_seed(SEED)
        )
        prompts = [encode_prompt(clip, f"clip number {index}").conditioning for index in range(count)]
        if variant in pipelines.IMAGE_TO_VIDEO:
            pictures = torch.rand(count, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(SEED))
            prompts = [
                image_to_video(prompt, prompt, vae, WIDTH, HEIGHT, frames, 1, picture[None]).positive
                for prompt, picture in zip(prompts, pictures, strict=True)
            ]
    return Clips(latents, prompts)


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[key].float() - other[key].float()).abs().max()) for key in one)


@pytest.mark.parametrize("variant", pipelines.VARIANTS)
def test_gradient_checkpointing_trains_the_same_lora(variant):
    model, clips = pipelines.ours(variant)[0], clips_of(variant)
    weights = {key: value.clone() for key, value in model.model.state_dict().items()}
    plain, losses = train(model, clips, TINY)
    assert max(abs(value).max() for key, value in plain.items() if "lora_up" in key) > 1e-3, "nothing was learnt"
    for depth in (1, 2):  # the whole network at once, block by block
        again, other = train(model, clips, replace(TINY, checkpoint_depth=depth))
        assert other == pytest.approx(losses, abs=1e-6)
        assert largest_difference(plain, again) < 1e-5
    after = model.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in weights.items()), "training changed the model"


def test_checkpointed_blocks_are_told_their_own_place():
    places = []

    def note(x, options):
        places.append(options["block_index"])
        return x

    model = pipelines.ours("5b")[0].clone()
    model.set_model_attn1_output_patch(note)
    train(model, clips_of("5b"), replace(TINY, steps=1, checkpoint_depth=2))
    assert places == [0, 1, 1, 0]  # forward, then again on the way back


def entries(model) -> tuple[Any, list[tuple[torch.Tensor, torch.Tensor | None]]]:
    """Return a clone of MODEL and a list that fills with what enters its network: latents with conditions, and ofs."""
    seen = []

    def note(executor, x, timestep, context, ofs, control, options):
        seen.append((x.detach().clone(), ofs))
        return executor(x, timestep, context, ofs, control, options)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", note)
    return model, seen


@pytest.mark.parametrize("variant", pipelines.VARIANTS)
def test_training_shows_the_network_what_sampling_shows_it(variant, monkeypatch):
    clips = clips_of(variant, count=1)
    model, seen = entries(pipelines.ours(variant)[0])
    with torch.inference_mode():
        (prompt,) = clips.prompts
        nodes.KSampler().sample(model, SEED, 1, 1.0, "euler", "simple", prompt, prompt, {"samples": clips.latents}, 1.0)
    (sampled, ofs), trained, targets = seen[-1], [], []
    noise_scaling = comfy.model_sampling.V_PREDICTION.noise_scaling

    def note(self, sigma, noise, latent_image, max_denoise=False):
        targets.append(latent_image)
        return noise_scaling(self, sigma, noise, latent_image, max_denoise)

    monkeypatch.setattr(comfy.model_sampling.V_PREDICTION, "noise_scaling", note)
    model, trained = entries(pipelines.ours(variant)[0])
    train(model, clips, replace(TINY, steps=1))
    (given, trained_ofs), config = trained[0], model.model.variant.transformer
    assert given.shape == sampled.shape
    torch.testing.assert_close(given[:, 16:], sampled[:, 16:], rtol=0, atol=1e-6)  # conditions of image to video
    assert (ofs is None) == (trained_ofs is None) and (ofs is None or torch.equal(ofs, trained_ofs))
    leading = leading_frames(clips.latents.shape[2], config.patch_size_t)
    assert leading == (variant in ("1.5", "1.5-i2v"))
    scaled = clips.latents * model.model.variant.latent_scale
    torch.testing.assert_close(targets[0], repeat_first_frame(scaled, leading), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(given[:, :16, 0], given[:, :16, 1], atol=0.1), "the leading latent has noise of its own"


@pytest.mark.parametrize("weights", ("fp32", "bf16"))
def test_training_in_bf16_stays_near_that_in_fp32(weights):
    clips = clips_of("5b")
    _, right = train(pipelines.ours("5b")[0], clips, TINY)
    model = loading.load_model(str(pipelines.folder("5b")), weights)
    lora, losses = train(model, clips, replace(TINY, dtype="bf16", checkpoint_depth=2))
    assert losses == pytest.approx(right, rel=0.05)
    assert all(torch.isfinite(value).all() for value in lora.values())


def test_a_saved_lora_is_read_by_the_stock_loader(inference, tmp_path, monkeypatch, caplog):
    model, clips = pipelines.ours("5b")[0], clips_of("5b")
    lora, _ = train(model, clips, replace(TINY, steps=5))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    SaveLoRA.execute(lora, "loras/taught", 5)
    (file,) = tmp_path.rglob("*.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(file.parent)], {".safetensors"}))
    (loaded,) = nodes.LoraLoaderModelOnly().load_lora_model_only(model, file.name, 1.0)
    assert all(key.startswith("diffusion_model.") for key in lora)
    assert "not loaded" not in caplog.text
    (in_memory,) = stock.LoraModelLoader.execute(model, lora, 1.0).args
    (bypassed,) = stock.LoraModelLoader.execute(model, lora, 1.0, bypass=True).args

    def sample(model):
        latent, (prompt, negative) = empty_latent(WIDTH, HEIGHT, FRAMES, 1), pipelines.prompts("5b")
        out = nodes.KSampler().sample(model, SEED, 2, 6.0, "euler", "simple", prompt, negative, latent, 1.0)
        return out[0]["samples"]

    base, taught = sample(model), sample(loaded)
    assert relative_error(sample(in_memory), taught) < 1e-6
    assert relative_error(sample(bypassed), taught) < 1e-3
    assert relative_error(taught, base) > 1e-2


@pytest.fixture(scope="module")
def painter():
    return HostPainter()


def test_the_mini_learns_from_clips(painter):
    """A few steps on clips of a colour it has never seen; `dev.py bench train_lora` goes on until it paints it."""
    clips = clips_in_new_colour(painter, 4)
    few = Settings(steps=12, accumulation=4, rate=2e-3, rank=4)
    _, unmoved = train(painter.model, clips, replace(few, rate=1e-12))  # the same clips, noise and timesteps
    lora, losses = train(painter.model, clips, few)
    assert losses[:4] == pytest.approx(unmoved[:4], rel=1e-4)
    assert sum(losses[-16:]) < 0.92 * sum(unmoved[-16:]), (unmoved, losses)
    with torch.inference_mode():
        taught = comfy.sd.load_lora_for_models(painter.model, None, lora, 1.0, 0.0)[0]
    assert error_on(taught, clips) < 0.9 * error_on(painter.model, clips)
