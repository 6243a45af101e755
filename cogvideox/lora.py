"""From the tensors of any CogVideoX LoRA file to one form, and the rule by which it is scaled.

A layer holds its tensors under the names of LyCORIS (`lora_down.weight`, `hada_w1_a`, `diff`, ...), which ComfyUI's
weight adapters read, below the diffusers name of the module it changes. Sources (read, not copied): the PEFT mixin of
diffusers 0.42 and peft's `get_pattern_key`; `create_network` in cogvideox/utils/lora_utils.py of VideoX-Fun;
tools/export_sat_lora_weight.py of github.com/THUDM/CogVideo and LoraMixin of SwissArmyTransformer (alpha is 1);
finetrainers' `lora_config` header; comfy_extras/nodes_train.py of ComfyUI 0.30.0.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import keys
from .checkpoint import CheckpointError, rename, some, unwrap, wrong_file
from .variants import COGVIDEOX_2B, COGVIDEOX_5B

AUTO, ALPHA_RANK, ONE_RANK, NONE = SCALINGS = ("auto", "alpha/rank", "1/rank", "none")

DOWN, MID, UP, UP_BIAS, ALPHA, MAGNITUDE = (
    "lora_down.weight",
    "lora_mid.weight",
    "lora_up.weight",
    "lora_up.bias",
    "alpha",
    "dora_scale",
)
DIFF, DIFF_BIAS = "diff", "diff_b"

# How a key ends, and the tensor that is. PEFT writes the adapter's name into keys it does not save itself:
# `lora_A.default.weight`. None keeps the ending as it is.
_ADAPTER = r"(?:\.(?!weight$|bias$)[^.]+)?"
_ENDINGS = tuple(
    (re.compile(ending + "$"), name)
    for ending, name in (
        (rf"\.lora_A{_ADAPTER}(?:\.weight)?", DOWN),
        (rf"\.lora_B{_ADAPTER}(?:\.weight)?", UP),
        (rf"\.lora_B{_ADAPTER}\.bias", UP_BIAS),
        (r"\.lora_down(?:\.weight)?", DOWN),
        (r"\.lora_up(?:\.weight)?", UP),
        (r"(?:\.lora|_lora|\.lora_linear_layer)\.down\.weight", DOWN),  # diffusers before PEFT
        (r"(?:\.lora|_lora|\.lora_linear_layer)\.up\.weight", UP),
        (r"\.matrix_A\.(?P<part>\d)", DOWN),  # SAT
        (r"\.matrix_B\.(?P<part>\d)", UP),
        (rf"\.lora_magnitude_vector{_ADAPTER}(?:\.weight)?", MAGNITUDE),
        (r"\.(?:network_)?alpha", ALPHA),
        (
            r"\.(?P<name>lora_mid\.weight|dora_scale|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2"
            r"|[ab][12]\.weight|oft_blocks|rescale|diff|diff_b|set_weight|w_norm|b_norm)",
            None,
        ),
    )
)

# The first tensor that a layer has says what it is.
_KINDS = (
    (UP, "lora"),
    (DOWN, "lora"),
    ("hada_w1_a", "loha"),
    ("lokr_w1", "lokr"),
    ("lokr_w1_a", "lokr"),
    ("oft_blocks", "oft"),
    ("a1.weight", "glora"),
)
# Matrices of one product: the columns of the first are the rows of the second, and their number is the rank.
_PRODUCTS = (
    (UP, DOWN),
    ("hada_w1_a", "hada_w1_b"),
    ("hada_w2_a", "hada_w2_b"),
    ("lokr_w1_a", "lokr_w1_b"),
    ("lokr_w2_a", "lokr_w2_b"),
)

_TUCKER = {"hada_t1", "hada_t2", "lokr_t2"}  # with a core between them the matrices stand the other way

# What a kind cannot do without: one of each group.
_NEEDED = {
    "loha": (("hada_w1_a",), ("hada_w2_a",)),
    "lokr": (("lokr_w1", "lokr_w1_a"), ("lokr_w2", "lokr_w2_a")),
    "glora": (("a2.weight",), ("b1.weight",), ("b2.weight",)),
}

_BLOCK_MODULES = (
    "norm1.linear",
    "norm1.norm",
    "attn1.norm_q",
    "attn1.norm_k",
    "attn1.to_q",
    "attn1.to_k",
    "attn1.to_v",
    "attn1.to_out.0",
    "norm2.linear",
    "norm2.norm",
    "ff.net.0.proj",
    "ff.net.2",
)
# Without the learned positions, the one weight that is no module's `weight`: ComfyUI patches none of that kind.
_MODULES = (
    "patch_embed.proj",
    "patch_embed.text_proj",
    "time_embedding.linear_1",
    "time_embedding.linear_2",
    "ofs_embedding.linear_1",
    "ofs_embedding.linear_2",
    "norm_final",
    "norm_out.linear",
    "norm_out.norm",
    "proj_out",
)
_PATCH = "patch_embed.proj"
_DOTTED = {name.replace(".", "_"): name for name in (*_MODULES, *_BLOCK_MODULES)} | {
    "attn1_to_out": "attn1.to_out.0",
    **{f"attn1_processor_to_{part}": f"attn1.to_{part}" for part in "qkv"},
    "attn1_processor_to_out": "attn1.to_out.0",
}
_SAT_QKV = ("to_q", "to_k", "to_v")
# `transformer` is a prefix of diffusers and, before `layers`, a module of SAT.
_PREFIX = re.compile(
    r"(?:(?:base_model\.model|model|module|diffusion_model|_orig_mod|unet|transformer(?!\.layers\.|\.final_))\.)*"
    r"(?:lora_unet_{1,2}|lora_transformer_|lycoris_)?"
)
_TEXT = re.compile(r"(?:lora_te\d?_|(?:base_model\.model\.)?text_encoder\w*\.|cond_stage_model\.)")

# Names that CogVideoX does not have, and the family they speak of; the first that is found wins.
OTHER_LORAS = (
    (r"single_transformer_blocks|(?:double|single)_blocks", "Flux or HunyuanVideo"),
    (r"(?:^|[._])blocks[._]\d+[._](?:self_attn|cross_attn)", "Wan or Cosmos"),
    (r"attn1[._]add_[qkv]_proj|(?:^|[._])blocks[._]\d+[._]attn[._]qkv_", "Mochi"),
    (r"joint_blocks|transformer_blocks[._]\d+[._]attn[._]", "Stable Diffusion 3, Flux or Qwen-Image"),
    (r"(?:^|[._])(?:down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)[._]", "Stable Diffusion"),
    (r"attn2[._]", "LTX-Video or PixArt"),
    (r"layers[._]\d+[._](?:self_attn|attention[._]to_|feed_forward)", "a language model, Lumina or Z-Image"),
)
CHOOSE = "Choose a LoRA that was trained on CogVideoX."
_FAMILY_OF_WIDTH = {model.transformer.inner_dim: model.name for model in (COGVIDEOX_2B, COGVIDEOX_5B)}


@dataclass(frozen=True)
class Layer:
    """What a LoRA does to one module: its kind, its tensors by their LyCORIS names, and alpha (None: scale 1)."""

    kind: str
    tensors: dict[str, Tensor]
    alpha: float | None = None

    @property
    def rank(self) -> int | None:
        """The inner size of the product, or None where there is none."""
        return next((int(self.tensors[b].shape[0]) for _, b in _PRODUCTS if b in self.tensors), None)

    @property
    def scale(self) -> float:
        """What the product is multiplied with."""
        return 1.0 if self.alpha is None or self.rank is None else self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, int] | None:
        """Rows and columns of the change to the weight, the latter flat; None where the kind does not tell."""
        tensors = {name: tensor for name, tensor in self.tensors.items() if tensor.ndim}
        sizes = {name: (tensor.shape[0], math.prod(tensor.shape[1:])) for name, tensor in tensors.items()}
        if self.kind == "lora" and MID not in sizes:
            return sizes[UP][0], sizes[DOWN][1]
        if self.kind == "loha" and "hada_t1" not in sizes:
            return sizes["hada_w1_a"][0], sizes["hada_w1_b"][1]
        if self.kind == "lokr" and "lokr_t2" not in sizes:
            one, two = (sizes.get(f"lokr_w{n}") or (sizes[f"lokr_w{n}_a"][0], sizes[f"lokr_w{n}_b"][1]) for n in (1, 2))
            return one[0] * two[0], one[1] * two[1]
        return next((sizes[name] for name in (DIFF, "set_weight", "w_norm") if name in sizes), None)

    def norm(self) -> float:
        """Return the Frobenius norm of up @ down, without making the product; 0 for other kinds."""
        if self.kind != "lora" or MID in self.tensors:
            return 0.0
        up, down = self.tensors[UP].flatten(1).float(), self.tensors[DOWN].flatten(1).float()
        return math.sqrt(max(((up.T @ up) * (down @ down.T)).sum().item(), 0.0))


@dataclass(frozen=True)
class LoRA:
    """A LoRA by module.

    `sat`: the training code of the authors wrote it. `unknown` names modules that no CogVideoX has, `text` counts the
    tensors for a text encoder, `others` those that are no part of a LoRA.
    """

    layers: dict[str, Layer]
    sat: bool = False
    unknown: tuple[str, ...] = ()
    text: int = 0
    others: int = 0


def module_name(name: str, part: int | None = None) -> str | None:
    """Return the diffusers name of a module from any layout's, or None; `part` counts the matrices of a SAT layer."""
    name = name[_PREFIX.match(name).end() :]
    if part is not None and name.endswith(".attention.query_key_value"):
        block = re.fullmatch(r"transformer\.layers\.(\d+)\.attention\.query_key_value", name)
        return f"transformer_blocks.{block[1]}.attn1.{_SAT_QKV[part]}" if block and part < len(_SAT_QKV) else None
    flat = (rename(name, keys.TRANSFORMER_RENAMES) or "").replace(".", "_")
    if block := re.fullmatch(r"transformer_blocks_(\d+)_(.+)", flat):
        inner = _DOTTED.get(block[2])
        return f"transformer_blocks.{block[1]}.{inner}" if inner and inner not in _MODULES else None
    module = _DOTTED.get(flat)
    return module if module in _MODULES else None


def normalise_lora(state_dict: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> LoRA:
    """Return a LoRA file of any known layout by module; `metadata` is the header, where alpha may be.

    Raises CheckpointError for a file that is no LoRA, one of another family, and one that is damaged.
    """
    state_dict = unwrap(state_dict)
    tensors: dict[str, dict[str, Tensor]] = {}
    unknown: dict[str, None] = {}
    found, text, sat = 0, 0, False
    for key, tensor in state_dict.items():
        match, name = next(((m, name) for ending, name in _ENDINGS if (m := ending.search(key))), (None, None))
        if match is None:
            continue
        found += 1
        stem, part = key[: match.start()], match.groupdict().get("part")
        if _TEXT.match(key):
            text += 1
        elif module := module_name(stem, None if part is None else int(part)):
            tensors.setdefault(module, {})[name or match["name"]] = tensor
            sat |= part is not None
        else:
            unknown[stem] = None
    if not found:
        raise wrong_file(state_dict, keys.LORA, ["lora_A"])
    _refuse_other_families([*tensors, *unknown])
    if not tensors and text:
        raise CheckpointError(f"The LoRA changes only a text encoder ({text} tensors). {CHOOSE}")
    if not tensors:
        raise CheckpointError(f"The LoRA is of an unknown model ({some(unknown)}). {CHOOSE}")
    header = _header(metadata or {})
    layers = {module: _layer(module, parts, header) for module, parts in tensors.items() if parts.keys() - {ALPHA}}
    return LoRA(layers, sat, tuple(unknown), text, len(state_dict) - found)


def _refuse_other_families(modules: Iterable[str]) -> None:
    lines = "\n".join(f"{module}." for module in modules)
    for pattern, family in OTHER_LORAS:
        if re.search(rf"(?m:{pattern})", lines):
            raise CheckpointError(f"The file holds a LoRA of another model ({family}). {CHOOSE}")


def _header(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return PEFT's config of the transformer from a file's header; empty where there is none that can be read."""
    try:
        config = json.loads(metadata.get("lora_adapter_metadata") or metadata.get("lora_config") or "{}")
    except json.JSONDecodeError:
        return {}
    if not isinstance(config, dict):
        return {}
    return {key.removeprefix("transformer."): value for key, value in config.items()}


def _header_alpha(header: Mapping[str, Any], module: str, rank: int | None) -> float | None:
    """Return alpha of one module: `alpha_pattern` holds module names, or how they end, that differ."""
    patterns = header.get("alpha_pattern")
    patterns = patterns.items() if isinstance(patterns, dict) else ()
    patterns = {name.lstrip("^").rstrip("$").replace("\\", ""): value for name, value in patterns}
    ends = (value for name, value in patterns.items() if f".{module}".endswith(f".{name}"))
    alpha = next(ends, header.get("lora_alpha"))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        return None
    # rank-stabilised LoRA: alpha over the root of the rank
    return alpha * math.sqrt(rank) if header.get("use_rslora") and rank else float(alpha)


def _layer(module: str, tensors: dict[str, Tensor], header: Mapping[str, Any]) -> Layer:
    """Return one layer, or raise where its tensors are broken or do not belong together."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor.float() if tensor.itemsize == 1 else tensor).all()):
            raise CheckpointError(
                f"The LoRA holds invalid numbers (NaN) in {module}.{name}: its training failed, or the file is "
                "damaged. Download it again, or take an earlier save of the training."
            )
    tensors = dict(tensors)
    alpha = tensors.pop(ALPHA, None)
    kind = next((kind for name, kind in _KINDS if name in tensors), DIFF)
    pairs = [pair for pair in _PRODUCTS if any(name in tensors for name in pair)]
    missing = [name for pair in pairs for name in pair if name not in tensors]
    missing += [group[0] for group in _NEEDED.get(kind, ()) if not any(name in tensors for name in group)]
    if missing or alpha is not None and alpha.numel() != 1:
        raise CheckpointError(
            f"The LoRA is not whole: {module} has no {missing[0] if missing else ALPHA}. Download it again, or save it "
            "again where it was trained."
        )
    for pair in pairs if not tensors.keys() & _TUCKER else ():
        first, second = (tensors[name] for name in pair)
        if first.ndim < 2 or second.ndim < 2 or first.shape[1] != second.shape[0]:
            raise CheckpointError(
                f"The LoRA's matrices do not fit each other in {module}: {pair[0]} is {list(first.shape)} and "
                f"{pair[1]} {list(second.shape)}, so their ranks differ. Download it again."
            )
    layer = Layer(kind, tensors)
    return replace(layer, alpha=_header_alpha(header, module, layer.rank) if alpha is None else float(alpha))


# --- fit -----------------------------------------------------------------------------------------------------------


def fit(lora: LoRA, shapes: Mapping[str, torch.Size], model: str) -> tuple[dict[str, Layer], list[str]]:
    """Return the layers that fit a model and, in words, those that do not.

    `shapes` are those of its weights by name, `model` is its name. Raises CheckpointError where the LoRA is of a model
    of another width, or nothing fits.
    """
    _check_width(lora, shapes, model)
    fitting, misfits = {}, []
    for module, layer in lora.layers.items():
        weight = shapes.get(f"{module}.weight")
        if weight is None:
            misfits.append(f"{module} (the model has none)")
            continue
        if module == _PATCH and layer.kind == "lora":
            layer = _fit_patch(layer, weight)
        wanted, bias = (weight[0], math.prod(weight[1:])), layer.tensors.get(DIFF_BIAS)
        unfit_bias = bias is not None and bias.shape != shapes.get(f"{module}.bias")
        if layer.shape not in (None, wanted) or unfit_bias:
            misfits.append(f"{module} ({list(layer.shape or bias.shape)} on {list(wanted)})")
            continue
        if MAGNITUDE in layer.tensors and layer.tensors[MAGNITUDE].ndim == 1:
            column = layer.tensors[MAGNITUDE].reshape(-1, *[1] * (len(weight) - 1))
            layer = replace(layer, tensors=layer.tensors | {MAGNITUDE: column})
        fitting[module] = layer
    if not fitting:
        raise CheckpointError(f"None of the LoRA's {len(lora.layers)} layers fits {model}: {some(misfits)}. {CHOOSE}")
    return fitting, misfits


def _check_width(lora: LoRA, shapes: Mapping[str, torch.Size], model: str) -> None:
    width = shapes["patch_embed.text_proj.weight"][0]
    for module, layer in lora.layers.items():
        if ".attn1.to_" in module and layer.shape and layer.shape != (width, width):
            theirs = layer.shape[1]
            family = _FAMILY_OF_WIDTH.get(theirs)
            raise CheckpointError(
                f"The LoRA was trained on a model {theirs} wide{f' ({family})' if family else ''}, and {model} is "
                f"{width} wide. Choose a LoRA for this model, or load the model it was made for."
            )


def _fit_patch(layer: Layer, weight: torch.Size) -> Layer:
    """Return the layer of the patch embedding on as many input channels as the model has.

    The noise comes first in every variant. Image channels that the LoRA does not know stay unchanged; those that the
    model does not have are left out, which is what zeros in them would do.
    """
    down = layer.tensors[DOWN]
    if down.ndim != len(weight) or down.shape[2:] != weight[2:]:
        return layer
    wanted = math.prod(weight[1:])
    flat = down.flatten(1)[:, :wanted]
    flat = torch.nn.functional.pad(flat, (0, wanted - flat.shape[1]))
    return replace(layer, tensors=layer.tensors | {DOWN: flat.reshape(len(flat), *weight[1:])})


def input_channels(lora: LoRA, shapes: Mapping[str, torch.Size]) -> float:
    """Return how many times the model's input channels the LoRA was trained on; 1 where it does not say."""
    layer, weight = lora.layers.get(_PATCH), shapes[f"{_PATCH}.weight"]
    if layer is None or layer.kind != "lora" or layer.tensors[DOWN].ndim != len(weight):
        return 1.0
    return layer.shape[1] / math.prod(weight[1:])


# --- scale ---------------------------------------------------------------------------------------------------------


def choose_scaling(lora: LoRA, wanted: str, outweighs: Callable[[], bool]) -> str:
    """Return the rule to scale by: what is asked for, or what the file says, or what it suggests.

    alpha/rank where the file has alphas. Without any, 1/rank where SAT wrote it, or where `outweighs` says that the
    plain product would be larger than the weights it is added to; else none, as diffusers does.
    """
    known = any(layer.alpha is not None for layer in lora.layers.values())
    if wanted == ALPHA_RANK and not known:
        raise CheckpointError(
            f"The LoRA holds no alpha, so scaling {ALPHA_RANK} cannot be worked out. Set scaling to {AUTO}, or to "
            f"{NONE} and strength to alpha divided by rank."
        )
    if wanted != AUTO:
        return wanted
    if known:
        return ALPHA_RANK
    return ONE_RANK if lora.sat or outweighs() else NONE


def scaled(layer: Layer, rule: str) -> Layer:
    """Return the layer with the alpha that makes alpha/rank the scale of the rule; OFT's alpha is no scale."""
    if layer.rank is None or rule == ALPHA_RANK:
        return layer
    return replace(layer, alpha=1.0 if rule == ONE_RANK else None)


def span(values: Iterable[float], form: str = "g") -> str:
    """Say one number, or the least and the most of several: "0.5", "4 to 128"."""
    values = sorted(set(values))
    return " to ".join(format(value, form) for value in dict.fromkeys((values[0], values[-1])))
