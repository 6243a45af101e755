"""Peak memory and time of loading a transformer of real size from one file, in the real host.

    python dev.py bench loading [--variant CogVideoX-5B] [--layers N] [--weight-dtype auto fp8_e4m3fn ...]

Writes a file with random weights to .dev/, loads it in a process of its own for each type asked for and writes what
that took to results/loading.json. Resident memory counts the mapped pages of the file, which the system takes back when
it needs them; `own_gb` is what it cannot take back.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    from common import import_host, import_pack

    import_pack()

from pack.benchmarks import common, weights
from pack.cogvideox.transformer import CogVideoXTransformer3DModel
from pack.demo.tiny_pipeline import module_shapes

GB = 1e9


def in_gb(size: int | None) -> float | None:
    return None if size is None else round(size / GB, 2)


def load(path: str, weight_dtype: str) -> dict[str, Any]:
    """Load the file in this process and return what it took."""
    from pack.nodes.host.loading import describe, load_model

    peak = common.Peak()
    peak.start()
    before = peak.resident("VmRSS")
    start = time.perf_counter()
    patcher = load_model(path, weight_dtype)
    seconds = time.perf_counter() - start
    own = peak.resident("RssAnon")
    # Every page of the file, as a run would.
    touched = sum(float(tensor.float().sum()) for tensor in patcher.model.diffusion_model.state_dict().values())
    return {
        "model": describe(patcher),
        "seconds": round(seconds, 2),
        "file_gb": in_gb(Path(path).stat().st_size),
        "before_gb": in_gb(before),
        "own_gb": in_gb(own),
        "peak_gb": in_gb(peak.resident("VmHWM")),
        "finite": touched == touched,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="CogVideoX-5B")
    parser.add_argument("--layers", type=int, default=0, help="in place of the variant's")
    parser.add_argument("--weight-dtype", nargs="+", default=["auto", "fp8_e4m3fn"])
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        import_host()
        common.answer_requests(load)
        return
    with torch.device("meta"):
        config = weights.variant_of(args.variant, args.layers).transformer
        shapes = module_shapes(CogVideoXTransformer3DModel(config))
    path = common.ROOT / ".dev" / f"{args.variant}-random.safetensors"
    weights.write_weights(path, shapes, torch.bfloat16)
    try:
        results = {}
        for weight_dtype in args.weight_dtype:
            worker = common.Worker(__file__, weight_dtype)
            results[weight_dtype] = worker.ask(path=str(path), weight_dtype=weight_dtype)
            worker.close()
    finally:
        path.unlink()
    print(json.dumps({"machine": common.machine(), **results}, indent=2))
    common.save("loading", {args.variant: results})


if __name__ == "__main__":
    main()
