"""Prompts through the host's T5 against transformers with the same weights; sizes, refusals and the node."""

import inspect
import json
import logging
from pathlib import Path

import comfy.hooks
import comfy.sd
import comfy.text_encoders.cogvideo
import comfy.text_encoders.genmo
import comfy.text_encoders.sd3_clip
import pytest
import torch
from pack.nodes.host import text_encoder
from pack.nodes.host.text_encoder import encode_prompt, load_text_encoder
from pack.nodes.text import NODES, CogVideoXTextEncode
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from .versions import newer_only

SIZES = dict(d_model=32, d_ff=64, d_kv=8, num_heads=4, num_layers=2, vocab_size=32128, feed_forward_proj="gated-gelu")
LONG = " ".join(f"A golden light {i} falls, softly." for i in range(60))
PROMPTS = [
    "",
    "a cat",
    "(ok) [x]",
    "((a:1.3) \\(b\\) c\\",
    "a </s> b",
    "x  y\nz",
    "ünïcode 猫",
    " ".join(["cat"] * 300),
    LONG,
]


def tiny_t5(seed=0, **sizes):
    torch.manual_seed(seed)
    return T5EncoderModel(T5Config(**{**SIZES, **sizes})).eval()


def weights_of(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def t5():
    return tiny_t5()


@pytest.fixture(scope="module")
def clip(t5):
    return load_text_encoder(weights_of(t5), t5.config.to_dict())


@pytest.fixture(scope="module")
def tokenizer():
    return T5TokenizerFast.from_pretrained(Path(text_encoder.comfy.sd.__file__).parent / "text_encoders/t5_tokenizer")


def reference_ids(tokenizer, prompt):
    return tokenizer(prompt, max_length=226, truncation=True, padding="max_length", return_tensors="pt").input_ids


def recorded(clip, monkeypatch):
    """Return the list that the token dicts reaching the encoder are appended to."""
    seen, encode = [], clip.encode_from_tokens_scheduled
    monkeypatch.setattr(clip, "encode_from_tokens_scheduled", lambda tokens: seen.append(tokens) or encode(tokens))
    return seen


def embedding(encoded):
    ((cond, extra),) = encoded.conditioning
    assert extra["pooled_output"] is None and "attention_mask" not in extra
    return cond


def error(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_embeddings_and_ids_equal_transformers(prompt, t5, clip, tokenizer, monkeypatch):
    seen = recorded(clip, monkeypatch)
    result = embedding(encode_prompt(clip, prompt))
    ids = reference_ids(tokenizer, prompt)
    assert [token for token, _ in seen[0]["t5xxl"][0]] == ids[0].tolist()
    with torch.no_grad():
        expected = t5(ids).last_hidden_state
    assert result.shape == (1, 226, 32)
    assert error(result, expected) <= 1e-5


@pytest.mark.parametrize(
    "sizes",
    [
        dict(d_model=48, d_kv=4, num_heads=2, num_layers=1),
        dict(feed_forward_proj="relu"),
        dict(d_kv=16, d_ff=40, num_layers=3),
    ],
)
@pytest.mark.parametrize("with_config", [True, False])
def test_any_size_loads_with_and_without_config(sizes, with_config, tokenizer):
    model = tiny_t5(1, **sizes)
    clip = load_text_encoder(weights_of(model), model.config.to_dict() if with_config else None)
    with torch.no_grad():
        expected = model(reference_ids(tokenizer, "a cat")).last_hidden_state
    assert error(embedding(encode_prompt(clip, "a cat")), expected) <= 1e-5
    assert clip.tokenizer.clip_t5xxl.embedding_size == model.config.d_model


def test_config_of_the_released_folders_is_read():
    published = {"dense_act_fn": "gelu_new", "is_gated_act": True, "feed_forward_proj": "gated-gelu"}
    model = tiny_t5()
    config = {**json.loads(model.config.to_json_string()), **published}
    assert load_text_encoder(weights_of(model), config)


@pytest.mark.parametrize(
    "prefix", ["text_encoders.t5xxl.transformer.", "t5xxl.transformer.", "transformer.", "text_encoder."]
)
def test_prefixed_files_load(prefix, t5, clip):
    prefixed = {prefix + key: value for key, value in weights_of(t5).items()}
    prefixed |= {"text_encoders.t5xxl.logit_scale": torch.ones(())}
    other = load_text_encoder(prefixed)
    assert torch.equal(embedding(encode_prompt(other, "a cat")), embedding(encode_prompt(clip, "a cat")))


def test_full_t5_with_decoder_and_without_tied_copy_loads(t5, clip):
    weights = weights_of(t5)
    weights["encoder.embed_tokens.weight"] = weights.pop("shared.weight")
    weights |= {"decoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(1), "lm_head.weight": torch.ones(1)}
    before = set(weights)
    other = load_text_encoder(weights)
    assert set(weights) == before
    assert torch.equal(embedding(encode_prompt(other, "a cat")), embedding(encode_prompt(clip, "a cat")))


def _dequantised(model, scaled):
    """Return weights laid out as in the host's `*_fp8_e4m3fn[_scaled]` files, and the model they stand for."""
    reference, weights = tiny_t5(), {}
    for key, value in weights_of(model).items():
        linear = value.ndim == 2 and "DenseReluDense" in key or "SelfAttention." in key and "bias" not in key
        scale = value.abs().max() / 448 if scaled and linear else torch.ones(())
        fp8 = (value / scale).to(torch.float8_e4m3fn) if linear or not scaled else value
        weights[key] = fp8
        if scaled and linear:
            weights[key.replace(".weight", ".scale_weight")] = scale
        reference.state_dict()[key].copy_(fp8.float() * scale)
    if scaled:
        weights["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    return weights, reference


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("prefix", ["", "t5xxl.transformer."])
def test_fp8_files_equal_their_dequantised_weights(scaled, prefix, t5, tokenizer):
    weights, reference = _dequantised(t5, scaled)
    clip = load_text_encoder({prefix + key: value for key, value in weights.items()})
    assert torch.float8_e4m3fn in {value.dtype for value in clip.get_sd().values()}
    with torch.no_grad():
        expected = reference(reference_ids(tokenizer, "a cat")).last_hidden_state
    assert error(embedding(encode_prompt(clip, "a cat")), expected) <= 1e-5


def test_short_prompt_reports_its_tokens(clip):
    encoded = encode_prompt(clip, "a cat")
    assert (encoded.token_count, encoded.dropped, encoded.pieces, encoded.truncated) == (4, "", 1, False)
    assert encoded.summary == "4 of 226 tokens"
    assert encode_prompt(clip, "").token_count == 1


def test_225_words_fit_and_one_more_is_dropped(clip):
    words = ["cat"] * 225
    assert not encode_prompt(clip, " ".join(words)).truncated
    encoded = encode_prompt(clip, " ".join([*words, "dog"]))
    assert encoded.truncated and encoded.dropped == "dog"
    assert encoded.summary == "227 of 226 tokens: cut from “dog…”"


def test_blend_keeps_the_shape_uses_the_tail_and_is_the_documented_mean(clip, monkeypatch):
    seen = recorded(clip, monkeypatch)
    other_tail = LONG.rsplit("falls", 1)[0] + "rises, softly."
    truncated, blended = encode_prompt(clip, LONG), encode_prompt(clip, LONG, "blend")
    assert embedding(blended).shape == (1, 226, 32)
    assert error(embedding(blended), embedding(truncated)) > 1e-2
    assert error(embedding(encode_prompt(clip, other_tail, "blend")), embedding(blended)) > 1e-3
    assert torch.equal(embedding(encode_prompt(clip, other_tail)), embedding(truncated))
    assert blended.dropped == "" and not blended.truncated and blended.pieces > 1

    pieces = seen[1]["t5xxl"]
    assert all(len(piece) == 226 for piece in pieces)
    counts = [[token for token, _ in piece].index(1) for piece in pieces]
    assert sum(counts) + 1 == blended.token_count == truncated.token_count
    alone = [clip.encode_from_tokens({"t5xxl": [piece]}) * count for piece, count in zip(pieces, counts, strict=True)]
    assert error(embedding(blended), sum(alone) / sum(counts)) <= 1e-5


def test_blend_of_a_short_prompt_changes_nothing(clip):
    assert torch.equal(embedding(encode_prompt(clip, "a cat", "blend")), embedding(encode_prompt(clip, "a cat")))


def test_weights_follow_the_host_only_when_asked(clip):
    plain = embedding(encode_prompt(clip, "a cat", weights=True))
    strong = embedding(encode_prompt(clip, "a (cat:1.5)", weights=True))
    host = clip.encode_from_tokens(clip.tokenize("a (cat:1.5)"))
    assert torch.equal(strong, host) and not torch.equal(strong, plain)
    assert not torch.equal(embedding(encode_prompt(clip, "a (cat:1.5)")), strong)
    assert embedding(encode_prompt(clip, f"({LONG}:1.5)", "blend", weights=True)).shape == (1, 226, 32)


def test_textual_inversion_vectors_of_any_width_are_used(t5, tmp_path):
    torch.save({"emb": torch.randn(3, 32)}, tmp_path / "style.pt")
    clip = load_text_encoder(weights_of(t5))
    clip.tokenizer.clip_t5xxl.embedding_directory = str(tmp_path)
    encoded = encode_prompt(clip, "a cat embedding:style")
    assert encoded.token_count == 4 + 3
    assert embedding(encoded).shape == (1, 226, 32)
    long = encode_prompt(clip, " ".join(["cat"] * 225) + " embedding:style")
    assert long.dropped.startswith("(embedding)") and embedding(long).shape == (1, 226, 32)


def test_tokenizer_options_do_not_change_the_length(clip):
    other = clip.clone()
    other.set_tokenizer_option("t5xxl_min_length", 512)
    other.set_tokenizer_option("t5xxl_min_padding", 7)
    assert torch.equal(embedding(encode_prompt(other, "a cat")), embedding(encode_prompt(clip, "a cat")))


def test_scheduled_hooks_are_kept_in_every_entry_also_when_blending(clip):
    hooked = clip.clone()
    layer = "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.v"
    lora = {f"{layer}.lora_up.weight": torch.randn(32, 2), f"{layer}.lora_down.weight": torch.randn(2, 32)}
    (hook,) = comfy.hooks.create_hook_lora(lora, 1.0, 1.0).hooks
    hook.hook_keyframe = comfy.hooks.HookKeyframeGroup()
    hook.hook_keyframe.add(comfy.hooks.HookKeyframe(1.0, start_percent=0.0))
    hook.hook_keyframe.add(comfy.hooks.HookKeyframe(0.5, start_percent=0.5))
    group = comfy.hooks.HookGroup()
    group.add(hook)
    hooked.patcher.forced_hooks = group
    hooked.patcher.register_all_hook_patches(group, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Clip))
    hooked.use_clip_schedule = True
    hooked.apply_hooks_to_conds = group
    conditioning = encode_prompt(hooked, LONG, "blend").conditioning
    assert [extra["clip_start_percent"] for _, extra in conditioning] == [0.0, 0.5]
    for cond, extra in conditioning:
        assert cond.shape == (1, 226, 32) and extra["hooks"] is group
    assert not torch.equal(conditioning[0][0], conditioning[1][0])


def test_patches_of_a_clone_do_not_leak(t5, clip):
    before = embedding(encode_prompt(clip, "a cat"))
    patched = clip.clone()
    key = "t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight"
    assert patched.add_patches({key: ("diff", (torch.randn(32, 32),))}, 1.0)
    assert not torch.equal(embedding(encode_prompt(patched, "a cat")), before)
    assert torch.equal(embedding(encode_prompt(clip, "a cat")), before)


@newer_only
def test_reload_reaches_the_patcher(t5):
    def factory(path, disable_dynamic=False):
        return load_text_encoder(weights_of(t5), disable_dynamic=disable_dynamic).patcher

    clip = load_text_encoder(weights_of(t5), reload=(factory, ("x",)))
    assert clip.patcher.cached_patcher_init == (factory, ("x",))
    copy = clip.patcher.clone(disable_dynamic=True, force_deepcopy=True)
    assert (
        copy.model is not clip.patcher.model
        and copy.model.state_dict().keys() == clip.patcher.model.state_dict().keys()
    )


CLIP_L = {"text_model.encoder.layers.0.mlp.fc1.weight": torch.ones(1)}


@pytest.mark.parametrize(
    ("weights", "came"),
    [
        (CLIP_L, "CLIP L"),
        ({"h.0.attn.c_attn.weight": torch.ones(1)}, "h.0.attn.c_attn.weight"),
        ({"transformer_blocks.0.attn1.to_q.weight": torch.ones(1)}, "a diffusion model"),
        ({"decoder.up_blocks.0.resnets.0.conv1.conv.weight": torch.ones(1)}, "a VAE"),
        ({}, "empty"),
    ],
)
def test_other_files_are_refused_by_name(weights, came):
    with pytest.raises(ValueError, match=rf"This file is .*{came}.*needed.*t5xxl_fp16"):
        load_text_encoder(weights)


@pytest.mark.parametrize(
    "key", ["shared.weight", "encoder.final_layer_norm.weight", "encoder.block.1.layer.1.DenseReluDense.wo.weight"]
)
def test_missing_weights_are_refused(t5, key):
    weights = weights_of(t5)
    del weights["encoder.embed_tokens.weight"], weights[key]
    with pytest.raises(ValueError, match=rf"lacks .*{key}.*needed"):
        load_text_encoder(weights)


def test_leftover_and_misshapen_weights_are_refused(t5):
    with pytest.raises(ValueError, match="unknown 1 weights.*lora_up"):
        load_text_encoder({**weights_of(t5), "encoder.block.0.lora_up": torch.ones(1)})
    key = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    with pytest.raises(ValueError, match=f"misshapen 1 weights.*{key}"):
        load_text_encoder({**weights_of(t5), key: torch.ones(32, 63)})


def test_umt5_and_small_vocabularies_are_refused(t5):
    bias = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
    with pytest.raises(ValueError, match="UMT5"):
        load_text_encoder({**weights_of(t5), bias: torch.ones(32, 4)})
    with pytest.raises(ValueError, match="ByT5; 1472 tokens"):
        load_text_encoder(weights_of(tiny_t5(vocab_size=1472)))


@pytest.mark.parametrize("entry", [{"d_model": 64}, {"num_layers": 24}, {"relative_attention_num_buckets": 64}])
def test_a_config_of_other_sizes_is_refused(t5, entry):
    (name,) = entry
    with pytest.raises(ValueError, match=f"config.json says {name} {entry[name]}, .* was needed"):
        load_text_encoder(weights_of(t5), entry)


def test_an_activation_the_host_lacks_is_refused(t5):
    with pytest.raises(ValueError, match="activation 'silu'"):
        load_text_encoder(weights_of(t5), {"dense_act_fn": "silu"})


def stock_clip(t5, encoder, tokenizer):
    """Build a CLIP as the host does for a stock CLIPLoader, with tiny weights."""

    class Target:
        params = {}

    Target.clip, Target.tokenizer = encoder, tokenizer
    options = {"t5xxl_model_config": {**SIZES, "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True}}
    return comfy.sd.CLIP(Target, state_dict=[weights_of(t5)], model_options=options)


def test_stock_cogvideox_clip_works(t5, clip):
    stock = stock_clip(
        t5, comfy.text_encoders.cogvideo.cogvideo_te(torch.float32), comfy.text_encoders.cogvideo.CogVideoXTokenizer
    )
    for prompt in ("a cat", LONG):
        assert torch.equal(embedding(encode_prompt(stock, prompt)), embedding(encode_prompt(clip, prompt)))


def test_other_clips_are_refused(t5):
    sd3 = comfy.text_encoders.sd3_clip
    mixed = stock_clip(t5, sd3.sd3_clip(clip_l=False, clip_g=False, t5=True), sd3.SD3Tokenizer)
    with pytest.raises(ValueError, match=r"g \+ l \+ t5xxl came.*Load CLIP with type cogvideox"):
        encode_prompt(mixed, "a cat")
    genmo = comfy.text_encoders.genmo
    with pytest.raises(ValueError, match="masks the padding"):
        encode_prompt(stock_clip(t5, genmo.mochi_te(), genmo.MochiT5Tokenizer), "a cat")
    with pytest.raises(ValueError, match="No CLIP came"):
        encode_prompt(None, "a cat")


def test_node_schema_fits_execute():
    for node in NODES:
        schema = node.define_schema()
        schema.validate()
        parameters = [name for name in inspect.signature(node.execute).parameters if name != "cls"]
        assert [item.id for item in schema.inputs] == parameters
        assert schema.description and all(item.tooltip for item in schema.inputs)
    assert "CogVideoTextEncode" in CogVideoXTextEncode.define_schema().search_aliases


def test_node_encodes_and_warns_once_of_a_cut(clip, caplog):
    with caplog.at_level(logging.WARNING):
        (conditioning,) = CogVideoXTextEncode.execute(clip, "a cat", "truncate").args
        assert not caplog.records
        CogVideoXTextEncode.execute(clip, LONG, "blend", prompt_weights=True)
        assert not caplog.records
        CogVideoXTextEncode.execute(clip, LONG, "truncate")
    assert torch.equal(conditioning[0][0], embedding(encode_prompt(clip, "a cat")))
    (record,) = caplog.records
    assert "of 226 tokens: cut from “" in record.getMessage()


def test_node_shows_the_count_on_itself(clip, shown_on):
    shown = shown_on(CogVideoXTextEncode)
    CogVideoXTextEncode.execute(clip, "a cat", "truncate")
    assert shown == [("4 of 226 tokens", "7")]
