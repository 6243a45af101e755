"""Ours, diffusers and ComfyUI's own model side by side: seconds, peak memory and error of the same work.

    python dev.py bench speed [--only transformer decode encode growth] [--rounds 5] [--dtype bfloat16] [--quick]

Each contestant is a process of its own with the same weights and inputs; they take turns, so that whatever else the
machine does meets all of them. Results (medians, and the spread) go to results/speed-MACHINE.json with a plot of how
the decoder grows; figures of different runs are never compared.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    from common import import_host, import_pack

    import_pack()

from pack.benchmarks import common
from pack.cogvideox.variants import RELEASED, TEXT_TOKENS, Variant

CONTESTANTS = ("ours", "diffusers", "core")
WEIGHT_SCALE = 0.02
ON_GPU = torch.cuda.is_available()


@dataclass(frozen=True)
class Case:
    """One piece of work: `kind` on latents of `shape` [T, H, W]; `layers` of the transformer, 0 for all."""

    kind: str
    shape: tuple[int, int, int]
    variant: str = "CogVideoX-5B"
    layers: int = 0
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"{self.kind} {size}" if self.kind != "transformer" else f"{self.variant} {size}, {self.layers} layers"


def cases(dtype: str, quick: bool) -> dict[str, list[Case]]:
    """Return the work by part; on a card the released sizes, on a processor what it does in seconds."""
    if ON_GPU:
        full, small = (13, 60, 90), (3, 60, 90)
        transformers = [("CogVideoX-2B", full, 30), ("CogVideoX-5B", full, 42), ("CogVideoX1.5-5B", (22, 96, 170), 42)]
        coded, grown = [small, full], [(t, 60, 90) for t in (3, 5, 7, 9, 11, 13)]
    else:
        transformers = [
            ("CogVideoX-2B", (5, 30, 46), 4),
            ("CogVideoX-5B", (5, 30, 46), 4),
            ("CogVideoX1.5-5B", (6, 30, 46), 4),
        ]
        coded, grown = [(3, 20, 30), (7, 20, 30)], [(t, 10, 15) for t in (1, 3, 5, 7, 9, 13)]
    if quick:
        transformers, coded, grown = transformers[1:2], coded[:1], grown[:3]
    return {
        "transformer": [Case("transformer", shape, name, layers, dtype) for name, shape, layers in transformers],
        "decode": [Case("decode", shape, dtype=dtype) for shape in coded],
        "encode": [Case("encode", shape, dtype=dtype) for shape in coded],
        "growth": [Case("decode", shape, dtype=dtype) for shape in grown],
    }


# ---------------------------------------------------------------------------------------------------------------------
# In a contestant's process


def variant_of(case: Case) -> Variant:
    variant = next(variant for variant in RELEASED if variant.name == case.variant)
    layers = case.layers or variant.transformer.num_layers
    return replace(variant, transformer=replace(variant.transformer, num_layers=layers))


def fill(parameters: dict[str, torch.Tensor]) -> None:
    """Fill parameters in the order of their diffusers names, so that every contestant has the same."""
    generator = torch.Generator(parameters[min(parameters)].device).manual_seed(0)
    for name in sorted(parameters):
        tensor = parameters[name]
        tensor.normal_(0, WEIGHT_SCALE, generator=generator)
        if tensor.ndim == 1 and name.endswith("weight"):
            tensor.add_(1)  # norms


def inputs(case: Case, device: str) -> dict[str, torch.Tensor]:
    """Return the inputs of a case in float32."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    frames, height, width = case.shape
    if case.kind == "encode":
        return {"pixels": normal(1, 3, 4 * (frames - 1) + 1, 8 * height, 8 * width).clamp(-1, 1)}
    config = variant_of(case).transformer
    x = normal(1, config.in_channels, *case.shape)
    if case.kind == "decode":
        return {"latents": x[:, :16]}
    return {
        "x": x,
        "text": normal(1, TEXT_TOKENS, config.text_embed_dim),
        "timestep": torch.tensor([500], device=device),
    }


def ours(case: Case, dtype: torch.dtype, device: str) -> tuple[torch.nn.Module, Callable[..., torch.Tensor]]:
    import comfy.ops
    from pack.cogvideox.vae import AutoencoderKLCogVideoX
    from pack.cogvideox.variants import VAEConfig
    from pack.nodes.host.model import Transformer

    kwargs = dict(dtype=dtype, device=device, operations=comfy.ops.disable_weight_init)
    if case.kind == "transformer":
        model = Transformer(variant_of(case).transformer, **kwargs)
        return model, lambda x, text, timestep: model(x, timestep, text)
    model = AutoencoderKLCogVideoX(VAEConfig(), dtype=dtype, operations=comfy.ops.disable_weight_init).to(device)
    if case.kind == "decode":
        return model, lambda latents: model.decode(latents)
    return model, lambda pixels: model.encode(pixels).mode()


def diffusers(case: Case, dtype: torch.dtype, device: str) -> tuple[torch.nn.Module, Callable[..., torch.Tensor]]:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline

    if case.kind == "transformer":
        config = variant_of(case).transformer
        known = CogVideoXTransformer3DModel.__init__.__code__.co_varnames
        with torch.device(device):
            model = CogVideoXTransformer3DModel(**{k: v for k, v in asdict(config).items() if k in known}).to(dtype)
        rope = None
        if config.use_rotary_positional_embeddings:
            maker = type("Maker", (), {"transformer": model, "vae_scale_factor_spatial": 8})()
            prepare = CogVideoXPipeline._prepare_rotary_positional_embeddings
            frames, height, width = case.shape
            rope = prepare(maker, 8 * height, 8 * width, frames, torch.device(device))

        def forward(x, text, timestep):
            out = model(x.transpose(1, 2), text, timestep, image_rotary_emb=rope, return_dict=False)[0]
            return out.transpose(1, 2)

        return model, forward
    with torch.device(device):
        model = AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(128, 256, 256, 512),
            latent_channels=16,
            layers_per_block=3,
        ).to(dtype)
    if case.kind == "decode":
        return model, lambda latents: model.decode(latents).sample
    return model, lambda pixels: model.encode(pixels).latent_dist.mode()


def core(case: Case, dtype: torch.dtype, device: str) -> tuple[torch.nn.Module, Callable[..., torch.Tensor]]:
    import comfy.ops
    from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel
    from comfy.ldm.cogvideo.vae import AutoencoderKLCogVideoX

    if case.kind == "transformer":
        config = variant_of(case).transformer
        known = CogVideoXTransformer3DModel.__init__.__code__.co_varnames
        values = {k: v for k, v in asdict(config).items() if k in known}
        model = CogVideoXTransformer3DModel(
            **values, dtype=dtype, device=device, operations=comfy.ops.disable_weight_init
        )
        return model, lambda x, text, timestep: model(x, timestep, text)
    model = AutoencoderKLCogVideoX().to(device, dtype)
    if case.kind == "decode":
        return model, lambda latents: model.decode(latents)
    return model, lambda pixels: model.encode(pixels)


def named_parameters(model: torch.nn.Module, contestant: str, kind: str) -> dict[str, torch.Tensor]:
    """Return the parameters by their diffusers names."""
    parameters = {name: tensor.data for name, tensor in model.named_parameters()}
    if contestant != "core" or kind != "transformer":
        return parameters
    from pack.cogvideox.checkpoint import normalise_transformer

    return normalise_transformer(parameters)


class Peak:
    """The most memory used since `start`, in bytes above what was in use then."""

    def start(self) -> None:
        gc.collect()
        if ON_GPU:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM (Linux)
        self.before = self._resident("VmRSS")

    def stop(self) -> int | None:
        if ON_GPU:
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - self.before
        peak = self._resident("VmHWM")
        return None if peak is None else peak - self.before

    @staticmethod
    def _resident(field: str) -> int | None:
        with contextlib.suppress(OSError):
            return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text("ascii"))[1])
        return None


def work(contestant: str) -> None:
    """Answer requests, one JSON line each, until there are no more."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # libraries print
    import_host()
    device = "cuda" if ON_GPU else "cpu"
    peak, run, model = Peak(), None, None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        with torch.inference_mode():
            if "case" in request:
                run = model = None  # the last case is let go before the next is made
                gc.collect()
                case = Case(**{**request["case"], "shape": tuple(request["case"]["shape"])})
                dtype = getattr(torch, case.dtype)
                model, forward = globals()[contestant](case, dtype, device)
                fill(named_parameters(model.eval().requires_grad_(False), contestant, case.kind))
                given = {k: v if v.dtype == torch.int64 else v.to(dtype) for k, v in inputs(case, device).items()}
                run = functools.partial(forward, **given)
                out = run().float().cpu()
                if "write" in request:
                    torch.save(out, request["write"])
                if "compare" in request:
                    right = torch.load(request["compare"], weights_only=True)
                    answer["error"] = float((out - right).norm() / right.norm())
                del out
            elif "run" in request:
                peak.start()
                start = time.perf_counter()
                out = run()
                if ON_GPU:
                    torch.cuda.synchronize()
                answer = {"seconds": time.perf_counter() - start, "bytes": peak.stop()}
                del out
            else:
                run = model = None
                gc.collect()
        print(json.dumps(answer), file=answers, flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# In the process that asks


class Contestant:
    """A process that works on request."""

    def __init__(self, name: str):
        command = [sys.executable, __file__, "--work", name]
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with code {self.process.wait()} at {request}.")
        return json.loads(line)


def measure(contestants: list[Contestant], case: Case, rounds: int, folder: Path) -> dict[str, Any]:
    """Run one case by all contestants in turn; errors are against diffusers in float32."""
    reference = folder / "reference.pt"
    oracle = next(each for each in contestants if each.name == "diffusers")
    oracle.ask(case=asdict(replace(case, dtype="float32")), write=str(reference))
    results = {each.name: each.ask(case=asdict(case), compare=str(reference)) for each in contestants}
    runs: dict[str, list[dict[str, Any]]] = {each.name: [] for each in contestants}
    for number in range(rounds):
        for each in contestants if number % 2 == 0 else reversed(contestants):
            runs[each.name].append(each.ask(run=True))
    for each in contestants:
        each.ask()
        seconds = [run["seconds"] for run in runs[each.name]]
        peaks = [run["bytes"] for run in runs[each.name] if run["bytes"] is not None]
        results[each.name] |= {
            "seconds": statistics.median(seconds),
            "fastest": min(seconds),
            "slowest": max(seconds),
            "mib": round(max(peaks) / 2**20) if peaks else None,
        }
    return results


def show(case: Case, results: dict[str, Any]) -> None:
    base = results["diffusers"]
    print(f"\n{case.name}, {case.dtype}")
    for name, row in results.items():
        print(
            f"  {name:10} {row['seconds']:8.3f} s ({row['fastest']:.3f} to {row['slowest']:.3f})"
            f"  {row['seconds'] / base['seconds']:5.2f} of diffusers"
            f"  {row['mib']} MiB  error {row['error']:.1e}",
            flush=True,
        )


def plot_growth(grown: dict[str, dict[str, Any]], path: Path) -> dict[str, Any]:
    """Plot seconds and memory of decoding against frames; return the exponents of the seconds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    exponents = {}
    for name in CONTESTANTS:
        rows = [(row["frames"], row[name]["seconds"], row[name]["mib"]) for row in grown.values()]
        frames, seconds, mib = zip(*rows, strict=True)
        axes[0].plot(frames, seconds, "o-", label=name)
        if None not in mib:
            axes[1].plot(frames, mib, "o-", label=name)
        exponents[name] = round(float(np.polyfit(np.log(frames[1:]), np.log(seconds[1:]), 1)[0]), 2)
    for axis, title in zip(axes, ("seconds", "peak memory above weights, MiB"), strict=True):
        axis.set(xlabel="frames", title=title)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    return exponents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=("transformer", "decode", "encode", "growth"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--quick", action="store_true", help="the first of the cases only")
    parser.add_argument("--work", choices=CONTESTANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work)
        return
    name = f"speed-{'gpu' if ON_GPU else 'cpu'}"
    contestants = [Contestant(each) for each in CONTESTANTS]
    results: dict[str, Any] = {"rounds": args.rounds, "dtype": args.dtype}
    with tempfile.TemporaryDirectory() as folder:
        for part, list_ in cases(args.dtype, args.quick).items():
            if args.only and part not in args.only:
                continue
            results[part] = {}
            for case in list_:
                rows = measure(contestants, case, args.rounds, Path(folder))
                show(case, rows)
                frames = 4 * (case.shape[0] - 1) + 1
                results[part][case.name] = {"frames": frames, **rows}
    for each in contestants:
        each.process.stdin.close()
        each.process.wait()
    if "growth" in results:
        common.RESULTS.mkdir(exist_ok=True)
        results["exponents"] = plot_growth(results["growth"], common.RESULTS / f"{name}.png")
    common.save(name, results)


if __name__ == "__main__":
    main()
