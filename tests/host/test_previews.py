"""The moving clip while sampling: what is shown, when, what it costs, and what nodes say they took."""

import re
from io import BytesIO

import comfy.utils
import folder_paths
import numpy as np
import pytest
import torch
from comfy.cli_args import LatentPreviewMethod, args
from pack.cogvideox.checkpoint import CheckpointError
from pack.cogvideox.tiny_decoder import TinyDecoder, read_tiny_decoder
from pack.nodes.host import coding, long_video, preview, sampling
from pack.nodes.host.conditioning import empty_latent
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

import nodes

from . import pipelines

SEED, STEPS, CFG = 1, 4, 6.0
WIDTH, HEIGHT, FRAMES = pipelines.WIDTH, pipelines.HEIGHT, pipelines.FRAMES
LATENTS = (FRAMES - 1) // 4 + 1


@pytest.fixture
def sent(monkeypatch):
    """Return the list that fills with (step, preview) as the host's progress hook gets them; every step has time."""
    sent = []

    def hook(value, total, preview, node_id=None):
        if preview is not None:
            sent.append((value, preview))

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    monkeypatch.setattr(preview, "SHARE", float("inf"))
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Auto)
    return sent


def stock(variant="5b"):
    latent = empty_latent(WIDTH, HEIGHT, FRAMES, 1)
    conds = pipelines.prompts(variant)
    model = pipelines.ours(variant)[0]
    return nodes.KSampler().sample(model, SEED, STEPS, CFG, "euler", "simple", *conds, latent, 1.0)[0]["samples"]


def own(variant="5b"):
    latent = empty_latent(WIDTH, HEIGHT, FRAMES, 1)
    model = pipelines.ours(variant)[0]
    return sampling.sample(model, *pipelines.prompts(variant), latent, SEED, STEPS, CFG, "ddim", 1.0)["samples"]


def as_the_page_gets_it(shown) -> list[np.ndarray]:
    """Return the frames of a preview after the host's server has written it."""
    name, image, size = shown
    assert size is None  # else the host scales it, and one frame is left
    buffer = BytesIO()
    image.save(buffer, format=name, quality=95, compress_level=1)
    read = Image.open(buffer)
    assert read.info["loop"] == 0
    frames = []
    for index in range(read.n_frames):
        read.seek(index)
        frames.append(np.asarray(read.convert("RGB")).astype(float))
        assert read.info["duration"] == preview.FRAME_MS
    return frames


@pytest.mark.parametrize("variant", ["5b", "1.5"])
@pytest.mark.parametrize("sample", [stock, own])
def test_each_step_shows_the_whole_video_as_one_clip(sent, sample, variant):
    sample(variant)
    assert [step for step, _ in sent] == list(range(1, STEPS + 1))  # one picture a step, not a still beside it
    for _, shown in sent:
        frames = as_the_page_gets_it(shown)
        assert len(frames) == LATENTS  # without the extra latent of 1.5
        assert max(shown[1].size) == preview.SIDE


def test_the_clip_shows_the_latents_in_their_colours():
    """A video that goes from dark to light does so in the clip, which begins one latent later in each step."""
    factors = torch.tensor(preview.PREVIEW_FACTORS)
    lightness = torch.tensor([-0.8, 0.0, 0.8])
    wanted = lightness[:, None] - torch.tensor(preview.PREVIEW_BIAS)
    latents = (wanted @ torch.linalg.pinv(factors)).T[None, :, :, None, None].expand(-1, -1, -1, 8, 12)
    scale = 0.7
    assert preview.colours(latents[0]).mean((1, 2, 3)) == pytest.approx((lightness + 1) / 2, abs=1e-4)
    clips = preview.ClipPreview(scale, clock=lambda: 0.0)
    for step in range(4):
        frames = as_the_page_gets_it(("WEBP", clips.clip(step, latents * scale), None))
        means = [frame.mean() / 255 for frame in frames]
        assert means == pytest.approx(np.roll((lightness.numpy() + 1) / 2, -step), abs=0.02)


def test_previews_do_not_change_the_video_and_can_be_switched_off(sent, monkeypatch):
    shown = stock()
    assert len(sent) == STEPS
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.NoPreviews)
    assert torch.equal(stock(), shown)
    assert len(sent) == STEPS
    assert preview.with_clip(None, 0.7, torch.device("cpu"), STEPS) is None  # nobody looks


@pytest.mark.parametrize("step_seconds", [0.1, 1.0, 4.0])
def test_clips_take_at_most_their_share_of_the_run(step_seconds):
    """A clip of 40 ms is left out where steps are short; only the first is free."""
    now, cost = 0.0, 0.04

    def clock():
        return now

    def decode(latents):
        nonlocal now
        now += cost
        return torch.zeros(latents.shape[1], 3, 8, 8)

    clips, made = preview.ClipPreview(1.0, decode, clock), 0
    for step in range(50):
        made += clips.clip(step, torch.zeros(1, 16, 3, 1, 1)) is not None
        assert clips.spent <= max(cost, preview.SHARE * now) + 1e-9
        now += step_seconds
    assert made >= min(50, 1 + int(49 * step_seconds * preview.SHARE / cost) - 1)
    assert made == 50 or step_seconds < 4


# --- the tiny decoder ---------------------------------------------------------------------------------------------


def published(seed=SEED, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """Return random weights under the keys and in the shapes of taecvx, a part of its encoder among them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"encoder.0.weight": (64, 3, 3, 3), "decoder.1.weight": (256, 16, 3, 3), "decoder.1.bias": (256,)}
    for first, width, narrower, frames in ((3, 256, 128, 1), (9, 128, 64, 2), (15, 64, 64, 2)):
        for block in range(first, first + 3):
            for conv, inputs in ((0, 2 * width), (2, width), (4, width)):
                shapes[f"decoder.{block}.conv.{conv}.weight"] = (width, inputs, 3, 3)
                shapes[f"decoder.{block}.conv.{conv}.bias"] = (width,)
        shapes[f"decoder.{first + 4}.conv.weight"] = (frames * width, width, 1, 1)
        shapes[f"decoder.{first + 5}.weight"] = (narrower, width, 3, 3)
    shapes |= {"decoder.22.weight": (3, 64, 3, 3), "decoder.22.bias": (3,)}
    weights = {}
    for key, shape in shapes.items():
        fan = shape[1] * shape[2] * shape[3] if len(shape) == 4 else 16
        weights[key] = (torch.randn(shape, generator=generator) * fan**-0.5).to(dtype)
    return weights


def defined(weights, latents):
    """Return what the published definition gives with time and the last level not enlarged, all frames at once."""
    x = (latents.movedim(0, 1) / 3).tanh() * 3
    x = functional.conv2d(x, weights["decoder.1.weight"], weights["decoder.1.bias"], padding=1).relu()
    for first, enlarge in ((3, 2), (9, 2), (15, 1)):
        for block in range(first, first + 3):
            y = torch.cat((x, torch.cat((torch.zeros_like(x[:1]), x[:-1]))), 1)
            for conv in (0, 2, 4):
                name = f"decoder.{block}.conv.{conv}"
                y = functional.conv2d(y, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)
                y = y if conv == 4 else y.relu()
            x = (x + y).relu()
        x = x.repeat_interleave(enlarge, 2).repeat_interleave(enlarge, 3)
        grown = functional.conv2d(x, weights[f"decoder.{first + 4}.conv.weight"])
        x = functional.conv2d(grown[:, -x.shape[1] :], weights[f"decoder.{first + 5}.weight"], padding=1)
    return functional.conv2d(x.relu(), weights["decoder.22.weight"], weights["decoder.22.bias"], padding=1).clamp(0, 1)


def test_the_tiny_decoder_computes_what_is_published():
    weights = published()
    latents = torch.randn(16, 4, 3, 5, generator=torch.Generator().manual_seed(SEED)) * 3
    expected = defined(weights, latents)
    actual = read_tiny_decoder(weights)(latents)
    assert actual.shape == (4, 3, 12, 20)
    assert ((expected > 0) & (expected < 1)).float().mean() > 0.2  # not all cut off
    assert (actual - expected).abs().max() <= 1e-5


def test_the_tiny_decoder_has_the_published_keys():
    assert set(TinyDecoder().state_dict()) == {key for key in published() if key.startswith("decoder.")}


@pytest.mark.parametrize("change", ["channels", "missing", "more"])
def test_other_files_are_no_tiny_decoder(change):
    weights = published()
    if change == "channels":  # HunyuanVideo 1.5
        weights["decoder.1.weight"] = torch.zeros(256, 32, 3, 3)
    elif change == "missing":
        del weights["decoder.22.bias"]
    else:
        weights["decoder.23.weight"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match="holds no tiny decoder of CogVideoX"):
        read_tiny_decoder(weights)


@pytest.fixture
def approximations(monkeypatch, tmp_path):
    """Return an empty folder that is models/vae_approx for the host, with TAESD previews switched on."""
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    types = folder_paths.folder_names_and_paths["vae_approx"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae_approx", ([str(tmp_path)], types))
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.TAESD)
    return tmp_path


def test_taesd_previews_come_from_the_tiny_decoder(sent, approximations):
    save_file(published(seed=2), approximations / "taehv.safetensors")  # HunyuanVideo's, the same keys and shapes
    save_file(published(), approximations / "taecvx.safetensors")
    latents = torch.randn(1, 16, LATENTS, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(SEED))
    callback = preview.with_clip(lambda *step: None, 0.7, torch.device("cpu"), STEPS)
    callback(0, latents * 0.7, None, STEPS)
    expected = preview.images(defined(published(), latents[0]))
    frames = as_the_page_gets_it(sent[0][1])
    assert len(frames) == LATENTS
    for frame, image in zip(frames, expected, strict=True):
        assert np.abs(frame - np.asarray(image)).mean() <= 12  # what WEBP loses of noise


@pytest.mark.parametrize("file", ["none", "another", "cut short"])
def test_without_a_tiny_decoder_the_clip_is_in_rough_colours(sent, approximations, caplog, file):
    path = approximations / "taecvx.safetensors"
    if file == "another":
        save_file({"decoder.1.weight": torch.zeros(3)}, path)
    elif file == "cut short":
        save_file(published(), path)
        path.write_bytes(path.read_bytes()[:-1000])
    with caplog.at_level("WARNING"):
        stock()
    assert len(sent) == STEPS
    assert "Rough colours are shown" in caplog.text


# --- the log line -------------------------------------------------------------------------------------------------


def test_nodes_say_what_they_took(caplog):
    vae = pipelines.ours("5b")[2]
    with caplog.at_level("INFO"):
        samples = own()
        coding.encode(vae, coding.decode(vae, samples))
        long_video.decode_to_video(vae, samples, 8.0, 18.0, "auto")
    lines = [r.getMessage() for r in caplog.records if re.fullmatch(r"CogVideoX [\w ]+: \d+\.\d s", r.getMessage())]
    names = ["CogVideoX Sampler", "CogVideoX VAE Decode", "CogVideoX VAE Encode", "CogVideoX Decode to Video"]
    assert [line.partition(":")[0] for line in lines] == names


def test_a_card_is_asked_for_its_peak(monkeypatch, caplog):
    from pack.nodes.host import progress

    monkeypatch.setattr(progress.comfy.model_management, "get_torch_device", lambda: torch.device("cuda"))
    for name in ("reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2_345_000_000)
    with caplog.at_level("INFO"), progress.reported("Node"):
        pass
    assert "Node: 0.0 s, 2.3 GB at most" in caplog.text
