"""The T5 text encoder as a host CLIP, and a prompt as a host CONDITIONING of exactly 226 tokens.

CogVideoX reads T5 v1.1 embeddings of padded prompts without an attention mask ("CogVideoX", arXiv 2408.06072, section
2.2; diffusers `CogVideoXPipeline._get_t5_prompt_embeds`). The encoder is the host's own, so its quantised files, LoRA
and offloading work; only the sizes, fixed to XXL in the host, are read from the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.sd
import comfy.text_encoders.cogvideo
import comfy.utils
import folder_paths
import torch
from comfy.text_encoders.sd3_clip import t5_xxl_detect

from ...cogvideox.prompts import T5_END, T5_PAD, WORD_MARK, blend, dropped_words, split_pieces, token_report
from ...cogvideox.variants import TEXT_TOKENS

_FIRST_KEY = "encoder.block.0.layer.0.SelfAttention.q.weight"
_VOCABULARY = 32100  # tokens of the host's bundled T5 tokenizer; the released files round up to 32128
_MEND = (
    "Use a T5 v1.1 XXL encoder such as t5xxl_fp16.safetensors or t5xxl_fp8_e4m3fn_scaled.safetensors "
    "in models/text_encoders, or the text_encoder folder of a CogVideoX pipeline."
)
_ACTIVATIONS = {"gelu_new": "gelu_pytorch_tanh", "gelu_pytorch_tanh": "gelu_pytorch_tanh", "relu": "relu"}
# What T5 files carry beside the encoder: the other half of a full T5, tied copies, an embedded tokenizer, markers.
_SPARE_KEYS = ("decoder.", "lm_head.", "encoder.embed_tokens.", "spiece_model", "scaled_fp8", "logit_scale")
_QUANT_SUFFIXES = (".comfy_quant", ".weight_scale", ".weight_scale_2", ".input_scale", ".scale_weight", ".scale_input")


def load_text_encoder(
    state_dict: dict[str, torch.Tensor],
    config: dict[str, Any] | None = None,
    reload: tuple[Callable, tuple] | None = None,
    disable_dynamic: bool = False,
    metadata: dict[str, str] | None = None,
) -> comfy.sd.CLIP:
    """Build a host CLIP from the weights of a T5 encoder of any size (keys as in transformers, any prefix).

    `config` is the text_encoder/config.json of a diffusers folder and tells what shapes cannot; `metadata` is
    that of the safetensors file. `reload` is `(factory, args)`: the host calls `factory(*args, disable_dynamic=True)`
    for a new patcher.
    """
    prefix = _t5_prefix(state_dict)
    weights, _ = comfy.utils.convert_old_quants(dict(state_dict), model_prefix=prefix, metadata=metadata)
    weights = {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
    if "encoder.embed_tokens.weight" in weights:
        weights.setdefault("shared.weight", weights["encoder.embed_tokens.weight"])
    weights = {key: value for key, value in weights.items() if not key.startswith(_SPARE_KEYS)}
    sizes = _sizes(weights, config or {})
    _check_weights(weights, sizes)

    clip = comfy.sd.CLIP(
        _Target(weights),
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        parameters=comfy.utils.calculate_parameters(weights),
        state_dict=[weights],
        model_options={"t5xxl_model_config": sizes},
        disable_dynamic=disable_dynamic,
    )
    clip.tokenizer.clip_t5xxl.embedding_size = sizes["d_model"]
    clip.patcher.cached_patcher_init = reload
    return clip


class _Target:
    """What `comfy.sd.CLIP` builds from: the stock classes of CLIPLoader type "cogvideox"."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        self.params = {}
        self.clip = comfy.text_encoders.cogvideo.cogvideo_te(**t5_xxl_detect(weights))
        self.tokenizer = comfy.text_encoders.cogvideo.CogVideoXTokenizer


def _t5_prefix(state_dict: dict[str, torch.Tensor]) -> str:
    """Return what stands before the T5 encoder's keys, such as "text_encoders.t5xxl.transformer."."""
    found = [key[: -len(_FIRST_KEY)] for key in state_dict if key.endswith(_FIRST_KEY)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"This file holds {len(found)} T5 encoders ({', '.join(found)}), one was needed. {_MEND}")
    raise ValueError(f"This file is {_kind_of(state_dict)}, a T5 text encoder was needed. {_MEND}")


def _kind_of(state_dict: dict[str, torch.Tensor]) -> str:
    """Name, for a message, what a state dict without T5 weights is."""
    model = comfy.sd.detect_te_model(state_dict)
    if model is not None:
        return f"another text encoder ({model.name.replace('_', ' ')})"
    if any(key.startswith("decoder.") for key in state_dict):
        return "a VAE"
    if any("blocks.0." in key for key in state_dict):
        return "a diffusion model"
    return f"not a T5 (its first weight is '{next(iter(state_dict))}')" if state_dict else "empty"


def _sizes(weights: dict[str, torch.Tensor], config: dict[str, Any]) -> dict[str, Any]:
    """Return the host's T5 config: sizes from the rows of the weights (quantisation keeps those), else config."""

    def rows(key: str) -> int:
        if key not in weights:
            raise ValueError(f"This T5 text encoder lacks the weight '{key}', a whole one was needed. {_MEND}")
        return weights[key].shape[0]

    first = "encoder.block.0.layer."
    gated = f"{first}1.DenseReluDense.wi_0.weight" in weights
    bias = "layer.0.SelfAttention.relative_attention_bias.weight"
    rows(f"encoder.block.0.{bias}")
    heads = weights[f"encoder.block.0.{bias}"].shape[1]
    sizes = {
        "d_model": rows("encoder.final_layer_norm.weight"),
        "d_ff": rows(f"{first}1.DenseReluDense.{'wi_0' if gated else 'wi'}.weight"),
        "d_kv": rows(_FIRST_KEY) // heads,
        "num_heads": heads,
        "num_layers": len({key.split(".")[2] for key in weights if key.startswith("encoder.block.")}),
        "vocab_size": rows("shared.weight"),
    }
    if f"encoder.block.1.{bias}" in weights or sizes["vocab_size"] not in range(_VOCABULARY, 2 * _VOCABULARY):
        raise ValueError(
            f"This is a relative of T5 with its own tokens (UMT5 of Wan, mT5 or ByT5; {sizes['vocab_size']} tokens), "
            f"a T5 with 32128 tokens was needed. {_MEND}"
        )
    expected = {**sizes, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise ValueError(
                f"The text encoder's config.json says {name} {config[name]}, {value} was needed to fit its weights. "
                "Download config.json and the weights again from the same place."
            )
    return {**sizes, "is_gated_act": gated, "dense_act_fn": _activation(config, gated), "model_type": "t5"}


def _activation(config: dict[str, Any], gated: bool) -> str:
    projection = config.get("feed_forward_proj", "gated-gelu" if gated else "relu")
    name = config.get("dense_act_fn") or ("gelu_new" if projection == "gated-gelu" else projection.split("-")[-1])
    if name not in _ACTIVATIONS:
        raise ValueError(
            f"The text encoder's config.json asks for the activation '{name}', one of {', '.join(_ACTIVATIONS)} was "
            f"needed. {_MEND}"
        )
    return _ACTIVATIONS[name]


def _check_weights(weights: dict[str, torch.Tensor], sizes: dict[str, Any]) -> None:
    """Refuse missing, leftover or misshapen weights: the host would only log them and encode noise."""
    needed = _needed_shapes(sizes)
    missing = sorted(needed.keys() - weights.keys())
    left_over = sorted(key for key in weights.keys() - needed.keys() if not key.endswith(_QUANT_SUFFIXES))
    plain = [key for key in needed if key in weights and f"{key.removesuffix('.weight')}.comfy_quant" not in weights]
    misshapen = sorted(key for key in plain if tuple(weights[key].shape) != needed[key])
    for keys, fault in ((missing, "lacks"), (left_over, "has unknown"), (misshapen, "has misshapen")):
        if keys:
            raise ValueError(
                f"This T5 text encoder {fault} {len(keys)} weights (first: '{keys[0]}'), exactly the "
                f"{len(needed)} of a T5 encoder with {sizes['num_layers']} blocks were needed. {_MEND}"
            )


def _needed_shapes(sizes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, hidden, inner = sizes["d_model"], sizes["d_ff"], sizes["d_kv"] * sizes["num_heads"]
    block = {f"0.SelfAttention.{name}": (inner, width) for name in "qkv"}
    block |= {"0.SelfAttention.o": (width, inner), "0.layer_norm": (width,), "1.layer_norm": (width,)}
    entrances = ("wi_0", "wi_1") if sizes["is_gated_act"] else ("wi",)
    block |= {f"1.DenseReluDense.{name}": (hidden, width) for name in entrances}
    block |= {"1.DenseReluDense.wo": (width, hidden)}
    shapes = {"shared.weight": (sizes["vocab_size"], width), "encoder.final_layer_norm.weight": (width,)}
    shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, sizes["num_heads"])
    for i in range(sizes["num_layers"]):
        shapes |= {f"encoder.block.{i}.layer.{name}.weight": shape for name, shape in block.items()}
    return shapes


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as CONDITIONING and what became of its length; `token_count` includes the end token."""

    conditioning: list
    token_count: int
    dropped: str = ""
    pieces: int = 1

    @property
    def truncated(self) -> bool:
        """Whether part of the prompt was left out."""
        return self.pieces == 1 and self.token_count > TEXT_TOKENS

    @property
    def summary(self) -> str:
        """One line for the user, such as "143 of 226 tokens"."""
        return token_report(self.token_count, TEXT_TOKENS, self.dropped, self.pieces)


def encode_prompt(
    clip: comfy.sd.CLIP, text: str, long_prompt: str = "truncate", weights: bool = False
) -> EncodedPrompt:
    """Encode `text` as CONDITIONING [1, 226, D]; a longer prompt is truncated as the reference does, or blended.

    Brackets stay text unless `weights` asks for the host's `(word:1.2)` syntax.
    """
    _check_clip(clip)
    tokens = _tokens(clip, text, weights)
    words = [_word(clip, token) for token in tokens]
    limit = TEXT_TOKENS - 1  # the end token takes one
    pieces = split_pieces(words, limit) if long_prompt == "blend" else [slice(0, limit)]
    batch = [_padded(tokens[piece]) for piece in pieces]
    conditioning = clip.encode_from_tokens_scheduled({"t5xxl": batch})  # the host joins the pieces: [1, P * 226, D]
    if len(pieces) > 1:
        counts = [piece.stop - piece.start for piece in pieces]
        for entry in conditioning:
            entry[0] = blend(entry[0].unflatten(1, (len(pieces), TEXT_TOKENS))[0], counts)
    dropped = dropped_words(words, limit) if len(pieces) == 1 and len(tokens) > limit else ""
    return EncodedPrompt(conditioning, len(tokens) + 1, dropped, len(pieces))


def _check_clip(clip: comfy.sd.CLIP | None) -> None:
    mend = "Use Load CogVideoX Text Encoder, or Load CLIP with type cogvideox."
    if clip is None:
        raise ValueError(
            f"No CLIP came (the loader's file holds no text encoder), a T5 text encoder was needed. {mend}"
        )
    kinds = clip.tokenize("")
    kinds = sorted(kinds) if isinstance(kinds, dict) else []
    if kinds != ["t5xxl"]:
        raise ValueError(f"A CLIP with {' + '.join(kinds) or 'no T5'} came, T5 alone (t5xxl) was needed. {mend}")
    model = clip.cond_stage_model
    encoder = getattr(model, getattr(model, "clip", ""), None)
    if getattr(encoder, "enable_attention_masks", False) or getattr(encoder, "zero_out_masked", False):
        raise ValueError(f"A T5 loaded for another model came, which masks the padding; none was needed. {mend}")


def _tokens(clip: comfy.sd.CLIP, text: str, weights: bool) -> list[tuple]:
    """Return the (token, weight) pairs of a prompt without its end token and padding."""
    if not weights:
        text = text.replace("\\(", "\\\\(").replace("\\)", "\\\\)")  # the host unescapes even where it reads no weights
    tokens = []
    for batch in clip.tokenize(text, disable_weights=not weights)["t5xxl"]:
        end = len(batch)
        while end and _is(batch[end - 1], T5_PAD):
            end -= 1
        tokens += batch[: end - 1] if end and _is(batch[end - 1], T5_END) else batch[:end]
    return tokens


def _is(token: tuple, number: int) -> bool:
    return not torch.is_tensor(token[0]) and token[0] == number


def _word(clip: comfy.sd.CLIP, token: tuple) -> str:
    """Return the SentencePiece string of a token; a textual-inversion vector counts as a word."""
    return f"{WORD_MARK}(embedding)" if torch.is_tensor(token[0]) else clip.tokenizer.untokenize([token])[0][1]


def _padded(tokens: list[tuple]) -> list[tuple]:
    return [*tokens, (T5_END, 1.0), *[(T5_PAD, 1.0)] * (TEXT_TOKENS - 1 - len(tokens))]
