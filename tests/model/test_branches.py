"""Diffusion as Shader and ConsisID against their authors' definitions, same weights, float32."""

from dataclasses import replace

import pytest
import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from diffusers.models.transformers.consisid_transformer_3d import ConsisIDTransformer3DModel
from pack.cogvideox.checkpoint import CheckpointError, normalise_branch, normalise_transformer
from pack.cogvideox.consisid import ConsisID, ConsisIDConfig
from pack.cogvideox.detection import consisid_config, shader_config
from pack.cogvideox.keys import CONSISID, DIFFUSION_AS_SHADER
from pack.cogvideox.shader import DiffusionAsShader, ShaderConfig
from pack.cogvideox.variants import COGVIDEOX_5B, TransformerConfig

from .test_transformer import TINY_VARIANTS, TOLERANCE, inputs, ours, reference, reference_rope, relative_error

NAME, LAYERS, COPIES = "CogVideoX-5B-I2V", 4, 2
SIZE, GRID, TOKENS = (3, 8, 12), (3, 4, 6), 12
CONFIG = replace(TINY_VARIANTS[NAME], num_layers=LAYERS, max_text_seq_length=TOKENS)


def loud(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else 0.15)
    return module


class Branch(torch.nn.Module):
    """The modules that the authors' CogVideoXTransformer3DModelTracking adds, by their names."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        dim, heads = config.inner_dim, config.num_attention_heads
        block = dict(num_attention_heads=heads, attention_head_dim=dim // heads, time_embed_dim=config.time_embed_dim)
        self.initial_combine_linear = torch.nn.Linear(dim, dim)
        self.transformer_blocks_copy = torch.nn.ModuleList(
            [CogVideoXBlock(dim=dim, attention_bias=True, **block) for _ in range(COPIES)]
        )
        self.combine_linears = torch.nn.ModuleList([torch.nn.Linear(dim, dim) for _ in range(COPIES)])


def defined_shading(model, branch: Branch, x, tracking, context, timestep, rope):
    """Its forward, for x and tracking [B, F, C, H, W]."""
    emb = model.time_embedding(model.time_proj(timestep))
    hidden, track = model.patch_embed(context, x), model.patch_embed(context, tracking)[:, TOKENS:]
    text, hidden = hidden[:, :TOKENS], hidden[:, TOKENS:]
    track = branch.initial_combine_linear(hidden + track)
    for index, block in enumerate(model.transformer_blocks):
        hidden, text = block(hidden, text, emb, image_rotary_emb=rope)
        if index < COPIES:
            track, _ = branch.transformer_blocks_copy[index](track, text, emb, image_rotary_emb=rope)
            track = branch.combine_linears[index](track)
            hidden = hidden + track
    hidden = model.proj_out(model.norm_out(model.norm_final(hidden), temb=emb))
    t, h, w = GRID
    return hidden.reshape(-1, t, h, w, 16, 2, 2).permute(0, 4, 1, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)


@torch.no_grad()
def test_the_velocity_with_a_shader_equals_the_definition(record_property):
    theirs, branch = reference(CONFIG), loud(Branch(CONFIG), 6)
    x, timestep, context, _ = inputs(CONFIG, SIZE, batch=2, tokens=TOKENS)
    tracking = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    args = x.movedim(2, 1), tracking.movedim(2, 1), context, timestep, reference_rope(CONFIG, GRID)
    expected = defined_shading(theirs, branch, *args)

    whole = {**theirs.state_dict(), **branch.state_dict()}
    state_dict = normalise_branch(whole, DIFFUSION_AS_SHADER, "Diffusion as Shader")
    network = DiffusionAsShader(shader_config(state_dict)).eval()
    network.load_state_dict(state_dict, strict=True)
    model = ours(CONFIG, theirs.state_dict())
    rope, fixed = model.tables(GRID, TOKENS, x.device, x.dtype, None)

    def tokens(latents):
        return model.add_positions(model.patch_embed(latents, context), fixed, GRID, TOKENS)[:, TOKENS:]

    state = [network.begin(tokens(x), tokens(tracking))]

    def shade(args):
        if args["block_index"] >= COPIES:
            return {"img": args["img"]}
        state[0] = network.step(args["block_index"], state[0], args["txt"], args["vec"], args["pe"])
        return {"img": args["img"] + state[0]}

    actual = model(x, timestep, context, transformer_options={"patches": {"double_block": [shade]}})
    record_property("shader", relative_error(actual, expected))
    assert relative_error(actual, expected) <= TOLERANCE
    assert relative_error(model(x, timestep, context), expected) > 0.05


# diffusers reads tokens two thirds as wide as the transformer: 42 of 64.
FACE = dict(id_dim=24, vit_dim=32, depth=4, num_id_token=3, output_dim=42, ff_mult=2, num_scale=2)


@torch.no_grad()
def test_the_velocity_with_an_identity_equals_diffusers(record_property):
    fields = {name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}
    known = ConsisIDTransformer3DModel.__init__.__wrapped__.__code__.co_varnames
    fields = {name: value for name, value in fields.items() if name in known}
    face = {f"LFE_{name}": value for name, value in FACE.items()}
    theirs = ConsisIDTransformer3DModel(
        **fields,
        **face,
        is_train_face=True,
        cross_attn_interval=2,
        cross_attn_dim_head=128,
        cross_attn_num_heads=1,
        LFE_dim_head=64,
        LFE_num_heads=2,
        LFE_num_querie=4,
        local_face_scale=0.8,
    )
    theirs = loud(theirs, 3).eval()
    torch.nn.init.normal_(theirs.patch_embed.pos_embedding, std=0.3)
    for attention in theirs.perceiver_cross_attention:
        attention.to_out.weight.mul_(20)  # so that the face matters beside the blocks
    x, timestep, context, _ = inputs(CONFIG, SIZE, batch=2, tokens=TOKENS)
    generator = torch.Generator().manual_seed(8)
    embedding = torch.randn(2, 24, generator=generator)
    maps = [torch.randn(2, 7, 32, generator=generator) for _ in range(2)]
    expected = theirs(
        x.movedim(2, 1),
        context,
        timestep,
        image_rotary_emb=reference_rope(CONFIG, GRID),
        id_cond=embedding,
        id_vit_hidden=maps,
        return_dict=False,
    )[0].movedim(1, 2)

    state_dict = normalise_branch(theirs.state_dict(), CONSISID, "ConsisID")
    config = consisid_config(state_dict)
    assert config == ConsisIDConfig(
        inner_dim=64, num_cross_attn=2, extractor_dim=128, num_queries=4, cross_dim=128, **FACE
    )
    network = ConsisID(config).eval()
    network.load_state_dict(state_dict, strict=True)
    tokens = network.local_facial_extractor(embedding, maps)
    record_property("face", relative_error(tokens, theirs.local_facial_extractor(embedding, maps)))

    def look(args):
        index, rest = divmod(args["block_index"], 2)
        if rest or index >= config.num_cross_attn:
            return {"img": args["img"]}
        return {"img": args["img"] + 0.8 * network.perceiver_cross_attention[index](tokens, args["img"])}

    base = {key: tensor for key, tensor in theirs.state_dict().items() if key not in state_dict}
    model = ours(CONFIG, base)
    actual = model(x, timestep, context, transformer_options={"patches": {"double_block": [look]}})
    record_property("identity", relative_error(actual, expected))
    assert relative_error(actual, expected) <= TOLERANCE
    assert relative_error(model(x, timestep, context), expected) > 0.005


# --- files ---------------------------------------------------------------------------------------------------------


def test_released_shapes_are_read_from_whole_files():
    """Diffusion as Shader has 18 copies, ConsisID 21 attentions; both lie beside the transformer in one file."""
    body = replace(COGVIDEOX_5B.transformer, num_layers=18)
    with torch.device("meta"):
        shader = DiffusionAsShader(ShaderConfig(body)).state_dict()
        face = ConsisID(ConsisIDConfig(inner_dim=3072, num_cross_attn=21)).state_dict()
    whole = {f"transformer.{key}": tensor for key, tensor in {**shader, **face}.items()}
    read = shader_config(normalise_branch(whole, DIFFUSION_AS_SHADER, "Diffusion as Shader")).transformer
    assert (read.num_layers, read.inner_dim, read.attention_head_dim) == (18, 3072, 64)
    assert consisid_config(normalise_branch(whole, CONSISID, "ConsisID")) == ConsisIDConfig(3072, 21)
    # 577 tokens of 1024 in, 32 of 2048 out, as published
    assert face["local_facial_extractor.latents"].shape == (1, 32, 1024)
    assert face["local_facial_extractor.id_embedding_mapping.6.bias"].shape == (5 * 1024,)
    assert face["perceiver_cross_attention.0.to_kv.weight"].shape == (4096, 2048)


def test_a_plain_transformer_has_no_branch():
    state_dict = reference(CONFIG).state_dict()
    assert normalise_transformer(state_dict)
    with pytest.raises(CheckpointError, match="holds a CogVideoX transformer, but ConsisID was needed"):
        normalise_branch(state_dict, CONSISID, "ConsisID")
