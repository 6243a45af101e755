"""Tora against its authors' definition, written anew, same weights, float32."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pack.cogvideox.checkpoint import CheckpointError, normalise_tora
from pack.cogvideox.detection import tora_config
from pack.cogvideox.tora import (
    BLUR_SIGMA,
    BLUR_SIZE,
    Tora,
    ToraConfig,
    colour_wheel,
    flow_picture,
    path_flow,
    place_path,
    spread_points,
)
from torchvision.utils import flow_to_image

from .test_transformer import TINY_VARIANTS, TOLERANCE, inputs, ours, reference, reference_rope, relative_error

CONFIG = ToraConfig(inner_dim=64, blocks=2, channels=16, blocks_each=2)
GRID, TOKENS = (3, 4, 6), 12


def weights(config: ToraConfig = CONFIG) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    network = Tora(config)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            torch.nn.init.normal_(tensor, std=0.3 if tensor.ndim == 1 else 0.15)
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)
    return network.state_dict()


def loaded(state_dict) -> Tora:
    state_dict = normalise_tora(state_dict)
    network = Tora(tora_config(state_dict)).eval()
    network.load_state_dict(state_dict, strict=True)
    return network


def defined_features(weight, latents):
    """TrajExtractor.forward for `sk=True, nums_rb=2`: latents [B, C, T, H, W], a list of [B * T, C, H / 2, W / 2]."""
    b, c, t, h, w = latents.shape
    patches = latents.reshape(b, c, t, h // 2, 2, w // 2, 2).permute(0, 1, 4, 6, 2, 3, 5).flatten(1, 3)
    x = patches.permute(0, 2, 1, 3, 4).flatten(0, 1)

    def conv(x, name):
        return F.conv2d(x, weight[f"{name}.weight"], weight[f"{name}.bias"], padding=1)

    def norm(x, name):
        parts = (weight[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    x, features = conv(x, "traj_extractor.conv_in"), []
    for block in range(CONFIG.blocks):
        for number in range(2):
            name = f"traj_extractor.body.{2 * block + number}"
            hidden = conv(F.relu(norm(x, f"{name}.bn1")), f"{name}.block1")
            x = conv(F.relu(norm(hidden, f"{name}.bn2")), f"{name}.block2") + x
        features.append(x)
    return features


def defined_fusion(weight, index, x, flow):
    """MGF.forward on tokens [B, T * H * W, D]."""
    t, h, w = GRID
    h2d = x.unflatten(1, GRID).permute(0, 1, 4, 2, 3).flatten(0, 1)

    def field(name):
        stem = f"fuser.{index}.flow_{name}"
        y = F.conv2d(flow, weight[f"{stem}_spatial.weight"], weight[f"{stem}_spatial.bias"], padding=1)
        y = y.unflatten(0, (-1, t)).permute(0, 3, 4, 2, 1).flatten(0, 2)  # [B * H * W, C, T]
        y = F.pad(y, (1, 1), mode="replicate")
        y = F.conv1d(y, weight[f"{stem}_temporal.weight"], weight[f"{stem}_temporal.bias"])
        return y.unflatten(0, (-1, h, w)).permute(0, 4, 3, 1, 2).flatten(0, 1)

    norm = f"fuser.{index}.flow_cond_norm"
    h2d = h2d + F.group_norm(h2d, 32, weight[f"{norm}.weight"], weight[f"{norm}.bias"]) * field("gamma") + field("beta")
    return h2d.unflatten(0, (-1, t)).permute(0, 1, 3, 4, 2).flatten(1, 3)


@torch.no_grad()
def test_features_and_fusion_equal_the_definition(record_property):
    weight, network = weights(), loaded(weights())
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 16, 3, 8, 12, generator=generator)
    expected = defined_features(weight, latents)
    actual = network.traj_extractor(latents)
    errors = [relative_error(a, e) for a, e in zip(actual, expected, strict=True)]
    record_property("features", errors)
    assert max(errors) <= TOLERANCE
    x = torch.randn(2, 72, 64, generator=generator)
    for index, features in enumerate(expected):
        fused = network.fuser[index](x, features, GRID)
        error = relative_error(fused, defined_fusion(weight, index, x, features))
        record_property("fused", error)
        assert error <= TOLERANCE
        assert relative_error(fused, x) > 0.1


@pytest.mark.parametrize("name", ["CogVideoX-5B", "CogVideoX-5B-I2V"])
@torch.no_grad()
def test_the_velocity_with_tora_equals_the_definition(name, record_property):
    """The transformer of diffusers with features fused into the video behind norm1, as the authors' block does."""
    config = replace(TINY_VARIANTS[name], max_text_seq_length=TOKENS)
    theirs, weight, network = reference(config), weights(), loaded(weights())
    x, timestep, context, _ = inputs(config, (3, 8, 12), batch=2, tokens=TOKENS)
    latents = torch.randn(2, 16, 3, 8, 12, generator=torch.Generator().manual_seed(4))
    features = defined_features(weight, latents)
    hooks = []
    for index, block in enumerate(theirs.transformer_blocks):

        def fuse(module, args, out, index=index):
            return (defined_fusion(weight, index, out[0], features[index]), *out[1:])

        hooks.append(block.norm1.register_forward_hook(fuse))
    rope = reference_rope(config, GRID)
    expected = theirs(x.movedim(2, 1), context, timestep, image_rotary_emb=rope, return_dict=False)[0].movedim(1, 2)

    def patch(h, options):
        length, index = options["text_tokens"], options["block_index"]
        video = network.fuser[index](h[:, length:], made[index], options["token_grid"])
        return torch.cat((h[:, :length], video), dim=1)

    made, model = network.traj_extractor(latents), ours(config, theirs.state_dict())
    actual = model(x, timestep, context, transformer_options={"patches": {"norm1_patch": [patch]}})
    record_property("velocity", relative_error(actual, expected))
    assert relative_error(actual, expected) <= TOLERANCE
    assert relative_error(model(x, timestep, context), expected) > 0.01


# --- files ---------------------------------------------------------------------------------------------------------


def test_every_published_layout_is_read():
    """In a whole diffusers file, in a SAT file, and as fusers and extractor apart."""
    state_dict = weights()
    sat = {
        f"model.diffusion_model.{key.replace('fuser.', 'mixins.adaln_layer.fuser_list.', 1)}": tensor
        for key, tensor in state_dict.items()
    }
    apart = {key.removeprefix("fuser.").removeprefix("traj_extractor."): tensor for key, tensor in state_dict.items()}
    whole = {**state_dict, "patch_embed.proj.weight": torch.zeros(1)}
    bare = {key.removeprefix("model.diffusion_model.mixins.adaln_layer."): tensor for key, tensor in sat.items()}
    for file in (whole, {"module": sat}, apart, bare):
        assert normalise_tora(file).keys() == state_dict.keys()
        assert tora_config(normalise_tora(file)) == CONFIG


def test_half_of_it_is_refused():
    state_dict = weights()
    for part, missing in (("fuser", "extractor is"), ("traj_extractor", "fusers are")):
        half = {key: tensor for key, tensor in state_dict.items() if key.startswith(part)}
        with pytest.raises(CheckpointError, match=f"only a part of Tora: its {missing} missing"):
            tora_config(normalise_tora(half))


@pytest.mark.parametrize("key", ["a.weight", "a.0.flow_gamma_spatial.weight"])
def test_another_file_is_refused(key):
    with pytest.raises(CheckpointError, match="an unknown model .* but Tora was needed"):
        normalise_tora({key: torch.zeros(1)})


# --- paths ---------------------------------------------------------------------------------------------------------


def defined_points(points, frames):
    """process_points of traj_utils.py, for two points and more."""
    if len(points) >= frames:
        return points[:: len(points) // frames][: frames - 1] + points[-1:]
    gaps = [(frames - len(points)) // (len(points) - 1)] * (len(points) - 1)
    for index in range((frames - len(points)) % (len(points) - 1)):
        gaps[index] += 1
    result = []
    for (x0, y0), (x1, y1), gap in zip(points, points[1:], gaps, strict=False):
        between = [(j + 1) / (gap + 1) for j in range(gap)]
        result += [(x0, y0), *((int(x0 + s * (x1 - x0)), int(y0 + s * (y1 - y0))) for s in between)]
    return result + points[-1:]


@pytest.mark.parametrize("count", [2, 3, 7, 9, 10, 30, 121])
@pytest.mark.parametrize("frames", [9, 49])
def test_points_are_spread_as_the_authors_spread_them(count, frames):
    points = [(int(x), int(y)) for x, y in np.random.default_rng(count).integers(0, 256, (count, 2))]
    assert spread_points(points, frames) == defined_points(points, frames)
    assert len(spread_points(points, frames)) == frames


def test_one_point_rests_and_edges_hold():
    assert spread_points([(7, 9)], 3) == [(7, 9)] * 3
    assert place_path([(0, 0), (256, 256), (900, -40)], (48, 64), 3) == [(0, 0), (63, 47), (63, 0)]


@pytest.mark.parametrize("size", [(16, 24), (120, 160)])
def test_flow_is_blurred_as_the_authors_blur_it(size):
    """filter2D with a 99 x 99 kernel that is 1 at its centre, mirrored at the edges without repeating them."""
    path = place_path([(20, 30), (200, 220)], size, 5)
    flow = path_flow([path], size, 5)
    sparse = np.zeros((5, *size, 2))
    for i in range(4):
        sparse[i + 1, path[i][1], path[i][0]] = np.subtract(path[i + 1], path[i])
    axis = np.arange(-(BLUR_SIZE // 2), BLUR_SIZE // 2 + 1)
    kernel = np.exp(-0.5 * axis**2 / BLUR_SIGMA**2)
    kernel = torch.from_numpy(np.outer(kernel, kernel))[None, None]
    padded = np.pad(sparse, ((0, 0), (49, 49), (49, 49), (0, 0)), mode="reflect")
    expected = F.conv2d(torch.from_numpy(padded).permute(0, 3, 1, 2).reshape(10, 1, *padded.shape[1:3]), kernel)
    assert relative_error(flow, expected.reshape(5, 2, *size).float()) <= 1e-5
    assert flow[0].abs().max() == 0


def test_the_picture_of_a_flow_is_torchvisions():
    flow = torch.randn(3, 2, 24, 32, generator=torch.Generator().manual_seed(0))
    levels = (flow_picture(flow) * 255).round()
    expected = flow_to_image(flow)
    assert (levels - expected).abs().max() <= 1  # a level where rounding falls on its edge
    assert (levels == expected).float().mean() > 0.999
    assert flow_picture(torch.zeros(1, 2, 8, 8)).min() == 1
    assert len(colour_wheel()) == 55
