"""Peak memory and time of loading a transformer of real size from one file, in the real host.

    python dev.py bench loading [--variant CogVideoX-5B]

Writes a file with random weights to .dev/, loads it in a process of its own and prints what that took as JSON. Resident
memory counts the mapped pages of the file.
"""

from __future__ import annotations

import argparse
import json
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path

from common import ROOT, import_host, import_pack, machine

GB = 1e9


def write_weights(path: Path, name: str) -> None:
    """Write random bfloat16 weights of a released variant, tensor by tensor, in the safetensors format."""
    import torch
    from pack.cogvideox.transformer import CogVideoXTransformer3DModel
    from pack.cogvideox.variants import RELEASED

    variant = next(v for v in RELEASED if v.name == name)
    with torch.device("meta"):
        shapes = {k: list(v.shape) for k, v in CogVideoXTransformer3DModel(variant.transformer).state_dict().items()}
    header, end = {}, 0
    for key, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            file.write((torch.randn(shape) * 0.02).bfloat16().view(torch.int16).numpy().tobytes())


def load(path: Path) -> dict:
    """Load the file in this process and return what it took."""
    import_host()
    from pack.nodes.host.loading import describe, load_model

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    patcher = load_model(str(path))
    seconds = time.perf_counter() - start
    touched = sum(float(p.float().sum()) for p in patcher.model.parameters())  # every page of the file, as a run would
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "model": describe(patcher),
        "seconds": round(seconds, 2),
        "file_gb": round(path.stat().st_size / GB, 2),
        "before_gb": round(before / GB, 2),
        "peak_gb": round(peak / GB, 2),
        "over_file_gb": round((peak - path.stat().st_size) / GB, 2),
        "finite": touched == touched,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", default="CogVideoX-5B")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    import_pack()
    if args.load:
        print(json.dumps(load(args.load)))
        return
    path = ROOT / ".dev" / f"{args.variant}-random.safetensors"
    write_weights(path, args.variant)
    try:
        command = [sys.executable, __file__, "--load", str(path)]
        line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    finally:
        path.unlink()
    print(json.dumps({"machine": machine(), **json.loads(line)}, indent=2))


if __name__ == "__main__":
    main()
