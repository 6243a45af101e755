"""Train cogvideox-mini, stage by stage; README.md beside this file explains it.

    python demo/train.py all       every stage in turn: vae, text, latents, transformer, export
    python demo/train.py STAGE     one of them

Each stage saves every few minutes and, started again, goes on from there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import types
from pathlib import Path

import torch

if not __package__:  # run as a file: name the pack without putting its folder on sys.path
    pack = sys.modules["pack"] = types.ModuleType("pack")
    pack.__path__ = [str(Path(__file__).resolve().parents[1])]
    __package__ = "pack.demo"

from . import evaluate, latent_cache, mini, text, train_text, train_transformer, train_vae

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "demo" / "cogvideox-mini"
MANIFEST = "manifest.json"
COMMAND = "python demo/train.py all --threads 2"


def latent_scale(folder: Path) -> float:
    """Return what makes the VAE's latents unit size: its `scaling_factor`, to four digits."""
    facts = torch.load(folder / "vae.pt", map_location="cpu", weights_only=True)["facts"]
    return float(f"{1 / facts['deviation']:.4g}")


def run_vae(args: argparse.Namespace) -> bool:
    train_vae.train(args.folder, args.limit)
    return finished(args.folder / "vae.pt", train_vae.STEPS)


def run_text(args: argparse.Namespace) -> bool:
    train_text.train(args.folder, args.limit)
    return finished(args.folder / "text.pt", train_text.STEPS)


def run_latents(args: argparse.Namespace) -> bool:
    plans = (*latent_cache.LOW, *latent_cache.HIGH, *latent_cache.MORE)
    latent_cache.build(args.folder / "latents", evaluate.load_vae(args.folder), plans)
    return True


def run_transformer(args: argparse.Namespace) -> bool:
    train_transformer.train(args.folder, latent_scale(args.folder), args.limit, args.threads)
    return finished(args.folder / "transformer.pt", train_transformer.STEPS)


def finished(checkpoint: Path, steps: int) -> bool:
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["step"] >= steps


def averaged_model(folder: Path) -> train_transformer.Model:
    """Return the averaged weights of the last checkpoint, unknown words filled in."""
    model = train_transformer.Model().eval().requires_grad_(False)
    model.load_state_dict(
        torch.load(folder / "transformer.pt", map_location="cpu", weights_only=True)["parts"]["averaged"]
    )
    shared = model.text_encoder.shared.weight
    shared.copy_(text.fill_unknown(shared))
    return model


def write_manifest(output: Path, folder: Path) -> None:
    """Write what the exported files are (sha256) and what training they come from."""
    stages = {}
    for name in ("vae", "text", "transformer"):
        saved = torch.load(folder / f"{name}.pt", map_location="cpu", weights_only=True)
        stages[name] = {"steps": saved["step"], "hours": round(saved["seconds"] / 3600, 2), **saved["facts"]}
    files = sorted(path for path in output.rglob("*") if path.is_file() and path.name != MANIFEST)
    sums = {path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    values = {"command": COMMAND, "trained": stages, "sha256": sums}
    (output / MANIFEST).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def run_export(args: argparse.Namespace) -> bool:
    model = averaged_model(args.folder)
    text_weights = {
        key: value for key, value in model.text_encoder.state_dict().items() if key != "encoder.embed_tokens.weight"
    }
    vae = evaluate.load_vae(args.folder)
    scale, colours = latent_scale(args.folder), train_vae.colours(vae)
    mini.write(args.output, vae.state_dict(), text_weights, model.transformer.state_dict(), scale, colours)
    # The pack takes the tokenizer from ComfyUI; this copy is for other programs, that look for it here.
    shutil.copyfile(text.tokenizer_file(), args.output / "tokenizer" / "tokenizer.json")
    write_manifest(args.output, args.folder)
    size = sum(path.stat().st_size for path in args.output.rglob("*") if path.is_file())
    print(f"wrote {args.output}, {size / 2**20:.1f} MiB")
    return True


STAGES = {
    "vae": run_vae,
    "text": run_text,
    "latents": run_latents,
    "transformer": run_transformer,
    "export": run_export,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("all", *STAGES))
    parser.add_argument("--folder", type=Path, default=ROOT / ".dev" / "mini", help="checkpoints, logs and pictures")
    parser.add_argument("--threads", type=int, default=2, help="processor cores to use")
    parser.add_argument("--limit", type=int, help="stop after this step")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where export writes the pipeline")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in STAGES if args.stage == "all" else (args.stage,):
        print(f"stage {name}", flush=True)
        if not STAGES[name](args):
            break


if __name__ == "__main__":
    main()
