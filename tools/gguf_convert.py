"""Write a CogVideoX transformer as a GGUF file, or a GGUF file as safetensors.

    python tools/gguf_convert.py model.safetensors model-Q8_0.gguf --type Q8_0
    python tools/gguf_convert.py model-Q8_0.gguf model.safetensors --type BF16

The model may be a file or a component folder, in any layout that Load CogVideoX Model reads. Tensors get diffusers'
names (`transformer_blocks.0.attn1.to_q.weight`), `general.architecture` is `cogvideox`. The large matrices of the
blocks get the type; embeddings, norms with their linear layers and biases keep their own. Needs the package `gguf`.
"""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file, save_file

if not __package__:  # run as a file: name the pack without putting its folder on sys.path
    pack = sys.modules["pack"] = types.ModuleType("pack")
    pack.__path__ = [str(Path(__file__).resolve().parents[1])]
    __package__ = "pack.tools"

from ..cogvideox.checkpoint import CheckpointError, normalise_transformer
from ..cogvideox.ggml import ARCHITECTURE, BLOCKS, PLAIN, dequantise, quantise
from ..cogvideox.keys import LARGE_MATRIX, PACKED_SUFFIXES, QUANT_SUFFIXES

# What takes the place of a type whose blocks do not fit the rows (2B is 1920 wide, which blocks of 256 do not divide).
NARROWER = {"Q4_K": "Q5_0", "Q5_K": "Q8_0", "Q6_K": "Q8_0"}


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the transformer of a file or folder of safetensors in diffusers' names."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    state_dict: dict[str, torch.Tensor] = {}
    for file in files:
        state_dict |= load_file(file)
    state_dict = normalise_transformer(state_dict)
    for key in state_dict:
        suffix = key.rpartition(".")[2]
        if suffix in QUANT_SUFFIXES and suffix not in PACKED_SUFFIXES:
            raise CheckpointError(f"{path.name} is quantised ({key}). Convert the unquantised file of the model.")
    return state_dict


def kind_of(key: str, tensor: torch.Tensor, kind: str) -> str:
    """Return the type in which a tensor is written, given the type asked for."""
    own = next((name for name, dtype in PLAIN.items() if dtype == tensor.dtype), "F16")  # F16 holds plain 8 bits
    if not LARGE_MATRIX.fullmatch(key):
        return "F32" if tensor.ndim < 2 else own
    return kind if tensor.shape[-1] % BLOCKS[kind][0] == 0 else NARROWER[kind]


def write_gguf(path: Path, state_dict: dict[str, torch.Tensor], kind: str) -> None:
    """Write tensors in diffusers' names as a GGUF file; what is in blocks already stays as it is."""
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, tensor in state_dict.items():
        layer, _, suffix = key.rpartition(".")
        if written := PACKED_SUFFIXES.get(suffix):
            key, data = f"{layer}.weight", tensor
        else:
            written = kind_of(key, tensor, kind)
            data = quantise(tensor, written)
        raw = gguf.GGMLQuantizationType[written]
        writer.add_tensor(key, data.numpy(), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=True)
    writer.close()


def read_gguf(path: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the tensors of a GGUF file, every one as `dtype`."""
    state_dict = {}
    for tensor in gguf.GGUFReader(path, "c").tensors:
        kind = tensor.tensor_type.name
        if kind not in BLOCKS:
            raise CheckpointError(
                f"{path.name} holds weights of the type {kind}, which is none of {', '.join(BLOCKS)}."
            )
        data = torch.from_numpy(tensor.data)
        state_dict[tensor.name] = dequantise(data, kind, dtype) if data.dtype == torch.uint8 else data.to(dtype)
    return normalise_transformer(state_dict)


def main(arguments: list[str] | None = None) -> None:
    """Convert as the command line says, or `arguments` in its place."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--type", choices=list(BLOCKS), help="Q8_0 for .gguf, BF16 for .safetensors if not given")
    chosen = parser.parse_args(arguments)
    if chosen.target.suffix == ".gguf":
        write_gguf(chosen.target, read_safetensors(chosen.source), chosen.type or "Q8_0")
    elif chosen.target.suffix == ".safetensors" and (kind := chosen.type or "BF16") in PLAIN:
        save_file(read_gguf(chosen.source, PLAIN[kind]), chosen.target)
    else:
        parser.error(f"the target must end in .gguf, or in .safetensors with one of the types {', '.join(PLAIN)}")
    print(f"{chosen.target} ({chosen.target.stat().st_size / 1e9:.2f} GB)")


if __name__ == "__main__":
    try:
        main()
    except CheckpointError as error:
        sys.exit(str(error))
