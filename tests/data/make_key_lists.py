"""Write the key lists (names and shapes) of the released files: `python tests/data/make_key_lists.py`.

The diffusers lists come from diffusers' own classes on the meta device; the core list from comfy/ldm/cogvideo/model.py
of ComfyUI 0.30.0 likewise (`--comfyui DIR`); the SAT lists from reading sat/dit_video_concat.py and
sat/vae_modules/cp_enc_dec.py of github.com/THUDM/CogVideo at e519ece, and SwissArmyTransformer 0.4.12; what Diffusion
as Shader and TrajectoryCrafter add, from models/cogvideox_tracking.py of github.com/IGL-HKUST/DiffusionAsShader and
models/crosstransformer3d.py of github.com/TrajectoryCrafter/TrajectoryCrafter. A list is a tree of name parts whose
leaves are shapes; siblings that are alike share a branch ("0-41", "to_q,to_k,to_v").
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from itertools import groupby
from pathlib import Path

DATA = Path(__file__).parent

_5B = dict(num_attention_heads=48, num_layers=42, use_rotary_positional_embeddings=True)
_15 = dict(_5B, patch_size_t=2, patch_bias=False, sample_height=300, sample_width=300, sample_frames=81)
DIFFUSERS = {
    "2b": {},
    "5b": _5B,
    "5b-i2v": dict(_5B, in_channels=32, use_learned_positional_embeddings=True),
    "1.5-5b": _15,
    "1.5-5b-i2v": dict(_15, in_channels=32, ofs_embed_dim=512),
    "fun-2b-inp": dict(in_channels=33, out_channels=16),
    "fun-5b-inp": dict(_5B, in_channels=33, out_channels=16),
    "fun-1.5-5b-inp": dict(_15, in_channels=33, out_channels=16),
    "fun-2b-control": dict(in_channels=32, out_channels=16),  # NimVideo's 2B image-to-video too
    "fun-5b-control": dict(_5B, in_channels=32, out_channels=16),
    "void": dict(_15, in_channels=48, out_channels=16),
    "void-stacked": dict(_15, in_channels=36, out_channels=16),
}
SAT = {
    "sat-2b": dict(width=1920, layers=30, positions="sincos"),
    "sat-5b": dict(width=3072, layers=42, positions="rotary"),
    "sat-5b-i2v": dict(width=3072, layers=42, channels=32, positions="learned"),
    "sat-1.5-5b": dict(width=3072, layers=42, patch_t=2),
    "sat-1.5-5b-i2v": dict(width=3072, layers=42, patch_t=2, channels=32, ofs=512),
}


def _runs(numbers: list[int]) -> str:
    groups = groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])
    runs = [[number for _, number in run] for _, run in groups]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def fold(keys: dict[str, tuple[int, ...]]) -> dict:
    """Fold names and shapes into a tree whose equal branches are written once."""
    branches: dict[str, dict] = {}
    tree: dict = {}
    for key, shape in keys.items():
        head, _, rest = key.partition(".")
        if rest:
            branches.setdefault(head, {})[rest] = shape
        else:
            tree[head] = list(shape)
    tree |= {head: fold(below) for head, below in branches.items()}
    alike: dict[str, list[str]] = {}
    for head, below in tree.items():
        alike.setdefault(json.dumps(below, sort_keys=True), []).append(head)
    names = (_runs([int(h) for h in heads]) if heads[0].isdigit() else ",".join(heads) for heads in alike.values())
    return {name: json.loads(below) for name, below in zip(names, alike, strict=True)}


def unfold(tree: dict) -> dict[str, tuple[int, ...]]:
    """Undo `fold`."""
    keys = {}
    for names, below in tree.items():
        for name in names.split(","):
            first, _, last = name.partition("-")
            heads = map(str, range(int(first), int(last or first) + 1)) if first.isdigit() else [name]
            for head in heads:
                if isinstance(below, list):
                    keys[head] = tuple(below)
                else:
                    keys |= {f"{head}.{rest}": shape for rest, shape in unfold(below).items()}
    return keys


def load(name: str) -> dict[str, tuple[int, ...]]:
    """Read the names and shapes of one list."""
    return unfold(json.loads((DATA / f"{name}.keys.json").read_text("utf-8"))["keys"])


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def sat_transformer(
    width, layers, positions="rotary", channels=16, patch_t=None, ofs=None, text=4096, time=512, head=64
):
    """Return the names and shapes of a SAT transformer as its training code builds it."""
    volume = 4 * (patch_t or 1)
    proj = {"weight": (width, channels, 2, 2) if patch_t is None else (width, channels * volume), "bias": (width,)}
    keys = {f"mixins.patch_embed.proj.{name}": shape for name, shape in proj.items()}
    keys |= linear("mixins.patch_embed.text_proj", text, width)
    keys |= linear("time_embed.0", width, time) | linear("time_embed.2", time, time)
    if ofs:
        keys |= linear("ofs_embed.0", ofs, ofs) | linear("ofs_embed.2", ofs, ofs)
    if positions != "rotary":  # 226 text rows, then 13 frames of 30 x 45 patches
        keys["mixins.pos_embed.pos_embedding"] = (1, 226 + 13 * 30 * 45, width)
    if positions != "sincos":  # the rotary mixin leaves SAT's own unused table in place
        keys["transformer.position_embeddings.weight"] = (64, width)
    if positions == "rotary" and patch_t is None:  # buffers of the code at the time of 1.0
        keys |= {f"mixins.pos_embed.freqs_{name}": (13 * 30 * 45, head) for name in ("sin", "cos")}
    for n in range(layers):
        layer = f"transformer.layers.{n}"
        keys |= norm(f"{layer}.input_layernorm", width) | norm(f"{layer}.post_attention_layernorm", width)
        keys |= linear(f"{layer}.attention.query_key_value", width, 3 * width)
        keys |= linear(f"{layer}.attention.dense", width, width)
        keys |= linear(f"{layer}.mlp.dense_h_to_4h", width, 4 * width)
        keys |= linear(f"{layer}.mlp.dense_4h_to_h", 4 * width, width)
        keys |= linear(f"mixins.adaln_layer.adaLN_modulations.{n}.1", time, 12 * width)
        keys |= norm(f"mixins.adaln_layer.query_layernorm_list.{n}", head)
        keys |= norm(f"mixins.adaln_layer.key_layernorm_list.{n}", head)
    keys |= norm("transformer.final_layernorm", width) | norm("mixins.final_layer.norm_final", width)
    keys |= linear("mixins.final_layer.linear", width, 16 * volume)
    keys |= linear("mixins.final_layer.adaLN_modulation.1", time, 2 * width)
    return {f"model.diffusion_model.{key}": shape for key, shape in keys.items()}


def conv(name: str, inputs: int, outputs: int, *kernel: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs, *kernel), f"{name}.bias": (outputs,)}


def _sat_resnet(name: str, inputs: int, outputs: int, latent: int = 0) -> dict[str, tuple[int, ...]]:
    keys = {}
    for index, width in (("1", inputs), ("2", outputs)):
        keys |= norm(f"{name}.norm{index}" + (".norm_layer" if latent else ""), width)
        for modulation in ("conv_y", "conv_b") if latent else ():
            keys |= conv(f"{name}.norm{index}.{modulation}.conv", latent, width, 1, 1, 1)
        keys |= conv(f"{name}.conv{index}.conv", width, outputs, 3, 3, 3)
    return keys | (conv(f"{name}.nin_shortcut", inputs, outputs, 1, 1, 1) if inputs != outputs else {})


def sat_vae(widths=(128, 256, 256, 512), layers=3, latent=16):
    """Return the names and shapes of the SAT VAE, with one tensor of the training loss."""
    keys = conv("encoder.conv_in.conv", 3, widths[0], 3, 3, 3)
    width = widths[0]
    for level, out in enumerate(widths):
        for index in range(layers):
            keys |= _sat_resnet(f"encoder.down.{level}.block.{index}", width, out)
            width = out
        if level < len(widths) - 1:
            keys |= conv(f"encoder.down.{level}.downsample.conv", out, out, 3, 3)
    for index in (1, 2):
        keys |= _sat_resnet(f"encoder.mid.block_{index}", width, width)
        keys |= _sat_resnet(f"decoder.mid.block_{index}", width, width, latent)
    keys |= norm("encoder.norm_out", width) | conv("encoder.conv_out.conv", width, 2 * latent, 3, 3, 3)
    keys |= conv("decoder.conv_in.conv", latent, width, 3, 3, 3)
    for level in reversed(range(len(widths))):  # SAT numbers the up-blocks from the pixels
        for index in range(layers + 1):
            keys |= _sat_resnet(f"decoder.up.{level}.block.{index}", width, widths[level], latent)
            width = widths[level]
        if level > 0:
            keys |= conv(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    keys |= norm("decoder.norm_out.norm_layer", width) | conv("decoder.conv_out.conv", width, 3, 3, 3, 3)
    keys |= conv("decoder.norm_out.conv_y.conv", latent, width, 1, 1, 1)
    keys |= conv("decoder.norm_out.conv_b.conv", latent, width, 1, 1, 1)
    return keys | {"loss.logvar": ()}


def tracking_layers(base: dict[str, tuple[int, ...]], blocks: int = 18) -> dict[str, tuple[int, ...]]:
    """Return what Diffusion as Shader adds to `base`, 5B-I2V: copied blocks and what joins them."""
    width = base["norm_final.weight"][0]
    rests = {key.split(".", 2)[2]: shape for key, shape in base.items() if key.startswith("transformer_blocks.0.")}
    keys = {f"transformer_blocks_copy.{n}.{rest}": shape for n in range(blocks) for rest, shape in rests.items()}
    for n in range(blocks):
        keys |= linear(f"combine_linears.{n}", width, width)
    return keys | linear("initial_combine_linear", width, width)


def reference_layers(width: int = 3072, layers: int = 21, heads: int = 16, head: int = 128):
    """Return what TrajectoryCrafter adds to Fun 5B InP: attention to the patches of a reference video."""
    keys = conv("ref_patch_embed.proj", 16, width, 2, 2)
    for n in range(layers):
        layer = f"perceiver_cross_attention.{n}"
        keys |= norm(f"{layer}.norm1", width) | norm(f"{layer}.norm2", width)
        keys[f"{layer}.to_q.weight"] = (heads * head, width)
        keys[f"{layer}.to_kv.weight"] = (2 * heads * head, width)
        keys[f"{layer}.to_out.weight"] = (width, heads * head)
    return keys


def _shapes(module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def _write(name: str, source: str, keys: dict[str, tuple[int, ...]]) -> None:
    tree = fold(keys)
    if unfold(tree) != keys:
        raise RuntimeError(f"{name} does not survive folding")
    text = json.dumps(dict(source=source, keys=tree), indent=1)
    (DATA / f"{name}.keys.json").write_text(_compact(text) + "\n", encoding="utf-8", newline="\n")


def _compact(text: str) -> str:
    """Put each shape on one line."""
    lines, open_shape = [], False
    for line in text.split("\n"):
        if open_shape:
            lines[-1] += line.strip() + (" " if re.fullmatch(r" +\d+,", line) else "")
        else:
            lines.append(line)
        open_shape = (open_shape or line.endswith("[")) and not line.strip().startswith("]")
    return "\n".join(lines)


def _core(comfyui: Path) -> dict[str, tuple[int, ...]]:
    sys.path.insert(0, str(comfyui))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.ldm.cogvideo.model as core
    import torch

    with torch.device("meta"):
        model = core.CogVideoXTransformer3DModel(
            num_attention_heads=48, num_layers=42, in_channels=32, patch_size_t=2, ofs_embed_dim=512,
            use_rotary_positional_embeddings=True, operations=torch.nn, device="meta",
        )  # fmt: skip
    return _shapes(model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, help="a ComfyUI checkout, to write the list of its own layout too")
    arguments = parser.parse_args()
    import diffusers
    import torch

    with torch.device("meta"):
        for name, config in DIFFUSERS.items():
            model = diffusers.CogVideoXTransformer3DModel(**config)
            _write(name, f"diffusers {diffusers.__version__}, CogVideoXTransformer3DModel", _shapes(model))
        face = diffusers.ConsisIDTransformer3DModel(**DIFFUSERS["5b-i2v"], is_train_face=True, is_kps=True)
        _write("consisid", f"diffusers {diffusers.__version__}, ConsisIDTransformer3DModel", _shapes(face))
        levels = dict(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(128, 256, 256, 512),
        )
        _write("vae", f"diffusers {diffusers.__version__}, AutoencoderKLCogVideoX",
               _shapes(diffusers.AutoencoderKLCogVideoX(**levels)))  # fmt: skip
    base = load("5b-i2v")
    _write("das", "IGL-HKUST/DiffusionAsShader, models/cogvideox_tracking.py, read", base | tracking_layers(base))
    _write("trajectorycrafter", "TrajectoryCrafter/TrajectoryCrafter, models/crosstransformer3d.py, read",
           load("fun-5b-inp") | reference_layers())  # fmt: skip
    for name, config in SAT.items():
        _write(name, "THUDM/CogVideo e519ece, sat/dit_video_concat.py, read", sat_transformer(**config))
    _write("sat-vae", "THUDM/CogVideo e519ece, sat/vae_modules/cp_enc_dec.py, read", sat_vae())
    if arguments.comfyui:
        _write("core-1.5-5b-i2v", "ComfyUI 0.30.0, comfy/ldm/cogvideo/model.py", _core(arguments.comfyui.resolve()))


if __name__ == "__main__":
    main()
