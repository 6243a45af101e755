"""Memory at the released sizes, counted without computing: ours, diffusers and ComfyUI's own model.

    python dev.py bench memory [--only PART ...] [--quick]

Parts: transformer (one pass of each variant for two prompts), decode, encode. A figure is the most bytes of tensors
alive at once in bfloat16, beside weights, input and result; attention counts as a kernel that holds no more than its
result, and what libraries take inside an operator is not seen. The table goes to results/memory.json.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

if __name__ == "__main__":
    from common import import_host, import_pack

    import_pack()
    import_host()

from pack.benchmarks import common, contestants
from pack.benchmarks.contestants import Case
from pack.benchmarks.counting import pretended_peak
from pack.cogvideox.variants import RELEASED

PROMPTS = 2
# latents [T, H, W]: 49 frames of 720x480; 81 of 1360x768 and the one that 1.5 wants in front
SIZES = {"1.0": (13, 60, 90), "1.5": (22, 96, 170)}
LATENTS = 7  # three chunks: from the first that has one before and one behind it on, memory stays the same
SLABS, TILES = "ours, slabs", "ours, tiles"
DECODERS = ("ours", SLABS, TILES, "diffusers", "diffusers, tiles", "core")
ENCODERS = ("ours", TILES, "diffusers", "diffusers, tiles", "core")


def stand_in(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Stand for PyTorch's attention as a kernel that holds its result alone: [B, heads, S, head_dim]."""
    return torch.empty_like(q)


def host_stand_in(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *args: Any, **kwargs: Any):
    """Stand for the host's attention: [B, heads, S, head_dim] -> [B, S, heads * head_dim], or what it is given."""
    return torch.empty_like(q) if q.ndim == 3 else torch.empty_like(q).transpose(1, 2).flatten(2)


def count(name: str, case: Case) -> dict[str, int]:
    """Return the bytes that one of DECODERS takes for `case`, on the card and in main memory."""
    contestant, _, way = name.partition(", ")
    model, run = getattr(contestants, contestant)(case, torch.bfloat16, "meta")
    if name == SLABS:
        run = lambda latents: model.decode(latents, slabs=True, cache_device=torch.device("cpu"))  # noqa: E731
    elif name == TILES and case.kind == "decode":
        run = model.decode_tiled
    elif name == TILES:
        run = lambda pixels: model.encode_tiled(pixels).mode()  # noqa: E731
    elif way:
        model.enable_tiling()
    model.requires_grad_(False)
    given = contestants.inputs(case, "cpu")
    prompts = PROMPTS if case.kind == "transformer" else 1
    given = {key: x.expand(prompts, *x.shape[1:]) for key, x in given.items()}
    return pretended_peak(run, {key: x if x.dtype == torch.int64 else x.bfloat16() for key, x in given.items()})


def measure(names: tuple[str, ...], case: Case) -> dict[str, Any]:
    """Count one case for all contestants and show it."""
    rows = {name: count(name, case) for name in names}
    print(f"\n{case.name}")
    for name, row in rows.items():
        waiting = f", {row['main'] / 1e9:.1f} GB waiting in main memory" if row["main"] > 1e8 else ""
        print(f"  {name:18} {row['card'] / 1e9:6.2f} GB{waiting}", flush=True)
    return {"shape": case.shape, "frames": case.frames, "rows": rows}


def cases(quick: bool) -> dict[str, tuple[tuple[str, ...], list[Case]]]:
    """Return by part who is counted with what."""
    networks = [Case("transformer", SIZES["1.5" if "1.5" in v.name else "1.0"], v.name, layers=2) for v in RELEASED]
    coded = [(LATENTS, *size[1:]) for size in SIZES.values()]
    if quick:
        networks, coded = [Case("transformer", (4, 8, 8), RELEASED[-1].name, layers=1)], [(3, 8, 8)]
    return {
        "transformer": (contestants.CONTESTANTS, networks),
        "decode": (DECODERS, [Case("decode", shape) for shape in coded]),
        "encode": (ENCODERS, [Case("encode", shape) for shape in coded]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=tuple(cases(True)), default=tuple(cases(True)), metavar="PART")
    parser.add_argument("--quick", action="store_true", help="next to nothing, to see that it runs; nothing is written")
    args = parser.parse_args()

    import comfy.ldm.cogvideo.model
    import comfy.ldm.modules.attention

    comfy.ldm.cogvideo.model.optimized_attention = host_stand_in
    comfy.ldm.modules.attention.optimized_attention = host_stand_in
    torch.nn.functional.scaled_dot_product_attention = stand_in
    results = common.load("memory")
    for part, (names, work) in cases(args.quick).items():
        if part in args.only:
            results[part] = {case.name: measure(names, case) for case in work}
            if not args.quick:
                common.save("memory", results)


if __name__ == "__main__":
    main()
