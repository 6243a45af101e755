"""The ControlNet against its author's definition, written anew from the parts of diffusers, same weights, float32."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import CogVideoXPatchEmbed, TimestepEmbedding, Timesteps
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from pack.cogvideox.checkpoint import CheckpointError, normalise_controlnet, normalise_transformer
from pack.cogvideox.controlnet import CogVideoXControlNet, halve_frames
from pack.cogvideox.detection import controlnet_config
from pack.cogvideox.transformer import CogVideoXTransformer3DModel
from pack.cogvideox.variants import COGVIDEOX_2B, COGVIDEOX_5B, ControlNetConfig, TransformerConfig

from .test_transformer import TINY_VARIANTS, TOLERANCE, ours, reference, reference_rope, relative_error

HINT_CHANNELS, DOWNSCALE, LAYERS = 3, 8, 2
MAIN_LAYERS = 3  # one more than the ControlNet, so that the last block goes on alone
BATCH, TOKENS, SIZE = 2, 12, (3, 8, 12)
VARIANTS = ("CogVideoX-2B", "CogVideoX-5B")


def main_config(name: str) -> TransformerConfig:
    return replace(TINY_VARIANTS[name], num_layers=MAIN_LAYERS, max_text_seq_length=TOKENS)


class Definition(torch.nn.Module):
    """TheDenk's CogVideoXControlnet: its modules by their names, and its arithmetic."""

    def __init__(self, main: TransformerConfig, out_proj_dim: int | None = None):
        super().__init__()
        dim, width = main.inner_dim, HINT_CHANNELS * DOWNSCALE**2
        self.controlnet_encode_first = self.encoder(width, width // 2)
        self.controlnet_encode_second = self.encoder(width // 2, width // 4)
        self.patch_embed = CogVideoXPatchEmbed(
            patch_size=2,
            in_channels=16 + width // 4,
            embed_dim=dim,
            text_embed_dim=main.text_embed_dim,
            sample_width=main.sample_width,
            sample_height=main.sample_height,
            sample_frames=main.sample_frames,
            max_text_seq_length=TOKENS,
            spatial_interpolation_scale=main.spatial_interpolation_scale,
            use_positional_embeddings=not main.use_rotary_positional_embeddings,
            use_learned_positional_embeddings=False,
        )
        self.time_proj = Timesteps(dim, True, 0)
        self.time_embedding = TimestepEmbedding(dim, main.time_embed_dim, "silu")
        heads = main.num_attention_heads
        block = dict(num_attention_heads=heads, attention_head_dim=dim // heads, time_embed_dim=main.time_embed_dim)
        self.transformer_blocks = torch.nn.ModuleList(
            [CogVideoXBlock(dim=dim, attention_bias=True, **block) for _ in range(LAYERS)]
        )
        if out_proj_dim:
            self.out_projectors = torch.nn.ModuleList([torch.nn.Linear(dim, out_proj_dim) for _ in range(LAYERS)])
        torch.manual_seed(5)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else 0.15)

    @staticmethod
    def encoder(before: int, after: int):
        return torch.nn.Sequential(torch.nn.Conv2d(before, after, 1), torch.nn.GroupNorm(2, after), torch.nn.ReLU())

    @staticmethod
    def compress_time(x: torch.Tensor, batch: int) -> torch.Tensor:
        frames = x.unflatten(0, (batch, -1))
        first, rest = frames[:, :0], frames
        if frames.shape[1] % 2:
            first, rest = frames[:, :1], frames[:, 1:]
        if rest.shape[1]:
            columns = rest.permute(0, 3, 4, 2, 1).flatten(0, 2)  # [B * H * W, C, F]
            columns = F.avg_pool1d(columns, 2, 2).unflatten(0, (batch, *frames.shape[3:]))
            rest = columns.permute(0, 4, 3, 1, 2)
        return torch.cat((first, rest), dim=1).flatten(0, 1)

    def forward(self, latents, text, hint, timestep, rope):
        """Latents and hint are [B, F, C, H, W]; returns the video tokens behind each block."""
        batch = len(hint)
        x = F.pixel_unshuffle(hint.flatten(0, 1), DOWNSCALE)
        x = self.compress_time(self.controlnet_encode_first(x), batch)
        x = self.compress_time(self.controlnet_encode_second(x), batch).unflatten(0, (batch, -1))
        emb = self.time_embedding(self.time_proj(timestep))
        x = self.patch_embed(text, torch.cat((latents, x), dim=2))
        text, x = x[:, :TOKENS], x[:, TOKENS:]
        states = []
        for index, block in enumerate(self.transformer_blocks):
            x, text = block(x, text, emb, image_rotary_emb=rope)
            states.append(self.out_projectors[index](x) if hasattr(self, "out_projectors") else x)
        return states


def controlled_velocity(model, states, weight, latents, text, timestep, rope):
    """The transformer of diffusers with states added to the video behind its first blocks, as the author does."""
    emb = model.time_embedding(model.time_proj(timestep))
    x = model.patch_embed(text, latents)
    text, x = x[:, :TOKENS], x[:, TOKENS:]
    for index, block in enumerate(model.transformer_blocks):
        x, text = block(x, text, emb, image_rotary_emb=rope)
        if index < len(states):
            x = x + states[index] * weight
    x = model.proj_out(model.norm_out(model.norm_final(x), temb=emb))
    t, h, w = SIZE
    x = x.reshape(BATCH, t, h // 2, w // 2, -1, 2, 2).permute(0, 4, 1, 2, 5, 3, 6)
    return x.flatten(5, 6).flatten(3, 4)


def inputs():
    generator = torch.Generator().manual_seed(1)
    t, h, w = SIZE
    x = torch.randn(BATCH, 16, t, h, w, generator=generator)
    context = torch.randn(BATCH, TOKENS, TINY_VARIANTS["CogVideoX-5B"].text_embed_dim, generator=generator)
    hint = torch.rand(BATCH, 3, 4 * t - 3, 8 * h, 8 * w, generator=generator) * 2 - 1
    return x, context, hint, torch.tensor([999, 403])


def network(definition: Definition) -> CogVideoXControlNet:
    state_dict = normalise_controlnet(definition.state_dict())
    model = CogVideoXControlNet(controlnet_config(state_dict)).eval()
    model.load_state_dict(state_dict, strict=True)
    return model


def control_main(name: str):
    """diffusers' model and ours, on the same weights."""
    config = main_config(name)
    theirs = reference(config)
    return config, theirs, ours(config, theirs.state_dict())


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_states_and_controlled_velocity_equal_the_definition(name, record_property):
    config, theirs, model = control_main(name)
    definition = Definition(config)
    x, context, hint, timestep = inputs()
    grid = SIZE[0], SIZE[1] // 2, SIZE[2] // 2
    rope = reference_rope(config, grid) if config.use_rotary_positional_embeddings else None
    expected = definition(x.movedim(2, 1), context, hint.movedim(2, 1), timestep, rope)

    net = network(definition)
    tables = model.tables(grid, TOKENS, x.device, x.dtype, None)
    actual = net(x, net.encode_hint(hint), timestep, context, tables)
    errors = [relative_error(a, e) for a, e in zip(actual, expected, strict=True)]
    record_property("states", errors)
    assert max(errors) <= TOLERANCE

    wanted = controlled_velocity(theirs, expected, 0.7, x.movedim(2, 1), context, timestep, rope)
    velocity = model(x, timestep, context, control={"output": [state * 0.7 for state in actual]})
    record_property("velocity", relative_error(velocity, wanted))
    assert relative_error(velocity, wanted) <= TOLERANCE
    # and the control is no small matter
    assert relative_error(model(x, timestep, context), wanted) > 0.05


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 9, 16, 49])
def test_frames_are_halved_as_the_definition_halves_them(frames):
    x = torch.randn(2, 5, frames, 3, 4)
    expected = Definition.compress_time(x.movedim(2, 1).flatten(0, 1), 2).unflatten(0, (2, -1)).movedim(1, 2)
    assert relative_error(halve_frames(x), expected) <= 1e-7


@torch.no_grad()
def test_projected_states_equal_the_definition():
    """Later releases bring their states to the width of a wider model."""
    config, _, model = control_main("CogVideoX-5B")
    definition = Definition(config, out_proj_dim=96)
    x, context, hint, timestep = inputs()
    grid = SIZE[0], SIZE[1] // 2, SIZE[2] // 2
    expected = definition(x.movedim(2, 1), context, hint.movedim(2, 1), timestep, reference_rope(config, grid))
    net = network(definition)
    assert net.config.state_dim == 96
    actual = net(x, net.encode_hint(hint), timestep, context, model.tables(grid, TOKENS, x.device, x.dtype, None))
    assert max(relative_error(a, e) for a, e in zip(actual, expected, strict=True)) <= TOLERANCE


def test_control_is_the_same_while_training():
    """With gradients nothing is overwritten, and they reach the control."""
    config, _, model = control_main("CogVideoX-5B")
    x, context, _, timestep = inputs()
    state = torch.randn(BATCH, 3 * 4 * 6, config.inner_dim, requires_grad=True)
    control = {"output": [None, state]}
    velocity = model(x, timestep, context, control=control)
    velocity.square().sum().backward()
    assert state.grad.abs().sum() > 0
    with torch.no_grad():
        assert relative_error(model(x, timestep, context, control=control), velocity) <= TOLERANCE


@pytest.mark.parametrize("variant", [COGVIDEOX_2B, COGVIDEOX_5B], ids=lambda variant: variant.name)
def test_the_shape_of_a_released_file_is_read(variant):
    """Eight blocks as wide as the model, 64 channels, as the published config.json files say."""
    body = TransformerConfig(num_attention_heads=variant.transformer.num_attention_heads, num_layers=8, in_channels=64)
    config = ControlNetConfig(body)
    with torch.device("meta"):
        state_dict = CogVideoXControlNet(config).state_dict()
    assert state_dict["controlnet_encode_first.0.weight"].shape == (96, 192, 1, 1)
    prefixed = {f"controlnet.{key}": tensor for key, tensor in state_dict.items()}
    for file in (state_dict, prefixed, {"state_dict": state_dict}):
        assert controlnet_config(normalise_controlnet(file)) == config


def test_the_wrong_file_is_named():
    with torch.device("meta"):
        transformer = CogVideoXTransformer3DModel(TINY_VARIANTS["CogVideoX-5B"]).state_dict()
        controlnet = CogVideoXControlNet(ControlNetConfig(TransformerConfig(in_channels=64, num_layers=1))).state_dict()
    with pytest.raises(
        CheckpointError, match="holds a CogVideoX transformer, but a ControlNet of CogVideoX was needed"
    ):
        normalise_controlnet(transformer)
    with pytest.raises(CheckpointError, match=r"only a part of a ControlNet of CogVideoX: transformer_blocks\.0"):
        normalise_controlnet({k: v for k, v in controlnet.items() if "transformer_blocks" not in k})
    with pytest.raises(
        CheckpointError, match="holds a ControlNet of CogVideoX.*Load it with Load CogVideoX ControlNet"
    ):
        normalise_transformer(controlnet)
