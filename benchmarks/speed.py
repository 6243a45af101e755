"""Ours, diffusers and ComfyUI's own model side by side: seconds, peak memory and error of the same work.

    python dev.py bench speed [--only PART ...] [--rounds 5] [--dtype bfloat16] [--quick]
    python dev.py bench speed --show FILE [FILE ...]

Parts: transformer (one pass of each variant; ours once more by PyTorch's compiler), decode, encode, pipeline (text to
frames), growth (with frames and with size) and, on a graphics card, released (the real thing: see released.py). Each
contestant is a process of its own with the same weights and inputs; they take turns, so that whatever else the machine
does meets all of them. Medians and spread go to results/speed-cpu.json or speed-gpu.json, with a plot of the growth
beside it. Figures of different runs are never compared.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    from common import import_host, import_pack

    import_pack()

from pack.benchmarks import common, weights
from pack.benchmarks.contestants import COMPILED, CONTESTANTS, STAGES, Case, Contestant
from pack.cogvideox.convolution import bfloat16_is_native
from pack.cogvideox.variants import RELEASED

ON_GPU = torch.cuda.is_available()
BASE = "diffusers"  # what the others are measured by
NETWORKS = ("transformer", "decode", "encode")
GROWING = ("transformer", "decode")
AXES = ("frames", "size")


# --- the work ---------------------------------------------------------------------------------------------------------


def cases(dtype: str, quick: bool) -> dict[str, list[Case]]:
    """Return the work by part: the released sizes on a card, what a processor does in seconds, or next to nothing."""
    names = [variant.name for variant in RELEASED]
    if quick:
        names = ["CogVideoX-2B", "CogVideoX1.5-5B-I2V"]
        one, coded, small = (3, 4, 6), [(1, 2, 3)], dict(layers=1, heads=6)
        film = Case("pipeline", (1, 4, 6), layers=1, heads=6, dtype=dtype, steps=2)
        frames = {kind: [(1, 4, 6), (3, 4, 6)] for kind in GROWING}
        sizes = {kind: [(1, 2, 4), (1, 4, 6)] for kind in GROWING}
    elif ON_GPU:
        one, coded, small = (13, 60, 90), [(3, 60, 90), (13, 60, 90)], {}
        film = Case("pipeline", (13, 60, 90), dtype=dtype, steps=10)
        frames = {kind: [(t, 60, 90) for t in (1, 3, 5, 7, 9, 11, 13)] for kind in GROWING}
        sizes = {kind: [(5, 4 * n, 6 * n) for n in (5, 8, 11, 15, 20)] for kind in GROWING}
    else:
        names.remove("CogVideoX-5B-I2V")  # diffusers takes it in its own size alone
        one, coded, small = (5, 30, 46), [(3, 20, 30), (7, 12, 18)], dict(layers=2)
        film = Case("pipeline", (3, 10, 16), layers=4, heads=8, dtype=dtype, steps=4)
        frames = {"transformer": [(t, 20, 30) for t in (1, 3, 5, 9, 13)], "decode": [(t, 8, 12) for t in (1, 3, 5, 9)]}
        sizes = {
            "transformer": [(3, 8 * n, 12 * n) for n in (1, 2, 3, 4)],
            "decode": [(3, 4 * n, 6 * n) for n in (1, 2, 3)],
        }
    shapes = {name: one if "1.5" not in name else (one[0] + 1, *one[1:]) for name in names}  # even: nothing is padded
    if ON_GPU and not quick:
        shapes |= {name: (22, 96, 170) for name in names if "1.5" in name}
    few = dict(small, layers=1) if small else dict(layers=4)  # growth is that of one layer
    options = {"transformer": dict(few, dtype=dtype), "decode": dict(dtype=dtype)}
    grown = [
        Case(kind, shape, **options[kind]) for kind in GROWING for shape in dict.fromkeys(frames[kind] + sizes[kind])
    ]
    return {
        "transformer": [Case("transformer", shape, name, dtype=dtype, **small) for name, shape in shapes.items()],
        "decode": [Case("decode", shape, dtype=dtype) for shape in coded],
        "encode": [Case("encode", shape, dtype=dtype) for shape in coded],
        "pipeline": [film],
        "growth": grown,
    }


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(workers: dict[str, common.Worker], case: Case, rounds: int, folder: Path) -> dict[str, Any]:
    """Run one case by all contestants in turn; errors are against diffusers, a single network's in float32."""
    reference = str(folder / "reference.pt")
    exact = case if case.kind == "pipeline" else replace(case, dtype="float32")
    workers[BASE].ask(case=asdict(exact), write=reference)
    errors = {BASE: {"error": 0.0}} if exact == case else {}
    for name in workers.keys() - errors.keys():
        errors[name] = workers[name].ask(case=asdict(case), compare=reference)
    runs = common.in_turn(
        {name: lambda worker=worker: worker.ask(run=True) for name, worker in workers.items()}, rounds
    )
    for worker in workers.values():
        worker.ask()  # let go of the case
    rows = {name: common.measured(runs[name]) | errors[name] for name in workers}
    return {**asdict(case), "frames": case.frames, "rows": rows}


def measure_part(workers: dict[str, common.Worker], part: str, work: list[Case], rounds: int) -> dict[str, Any]:
    """Measure the cases of a part and show each as it comes."""
    results = {}
    if part != "transformer":
        workers = {name: worker for name, worker in workers.items() if name != COMPILED}
    with tempfile.TemporaryDirectory() as folder:
        for case in work:
            if case.kind == "pipeline":
                sizes = weights.T5_XXL if ON_GPU and not case.heads else weights.T5_SMALL
                variant = weights.variant_of(case.variant, case.layers, case.heads, sizes["d_model"])
                weights.write_pipeline(Path(folder) / "pipeline", variant, sizes, getattr(torch, case.dtype))
                case = replace(case, folder=str(Path(folder) / "pipeline"))
            results[case.name] = measure(workers, case, rounds, Path(folder))
            results[case.name].pop("folder")
            show({case.name: results[case.name]})
    return results


# --- showing ----------------------------------------------------------------------------------------------------------


def show(part: dict[str, Any]) -> None:
    """Print a table for each case of a part."""
    for name, result in part.items():
        rows = result["rows"]
        print(f"\n{name}, {result['dtype']}")
        for contestant, row in rows.items():
            stages = ", ".join(f"{stage} {row[stage]:.2f}" for stage in STAGES if stage in row)
            print(
                f"  {contestant:10} {row['seconds']:8.3f} s ({row['fastest']:.3f} to {row['slowest']:.3f})"
                f"  {common.times(row, rows[BASE]):5.2f} of {BASE}  {row['mib']} MiB  error {row['error']:.1e}"
                f"{'  ' + stages if stages else ''}",
                flush=True,
            )


def show_files(paths: list[Path]) -> None:
    """Print the tables of results written before; those of two runs are refused, for they would be compared."""
    found = [json.loads(path.read_text("utf-8")) for path in paths]
    for results in found[1:]:
        for part in NETWORKS:
            for name in found[0].get(part, {}).keys() & results.get(part, {}).keys():
                common.times(found[0][part][name]["rows"][BASE], results[part][name]["rows"][BASE])
    for results in found:
        print(json.dumps(results["machine"], indent=2))
        for part in (*NETWORKS, "pipeline", "growth"):
            show(results.get(part, {}))


def growth_along(grown: dict[str, Any], kind: str, axis: str) -> list[dict[str, Any]]:
    """Return the results of `kind` in which only `axis` grows, smallest first."""
    found = [result for result in grown.values() if result["kind"] == kind]
    fixed = (lambda r: r["shape"][1:]) if axis == "frames" else (lambda r: r["shape"][0])
    groups: dict[Any, list[dict[str, Any]]] = {}
    for result in found:
        groups.setdefault(str(fixed(result)), []).append(result)
    return sorted(max(groups.values(), key=len), key=lambda result: extent(result, axis))


def extent(result: dict[str, Any], axis: str) -> float:
    """Return how far a result goes along `axis`: frames, or megapixels of one frame."""
    return result["frames"] if axis == "frames" else result["shape"][1] * result["shape"][2] * 64 / 1e6


def plot_growth(grown: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Plot seconds and memory against frames and against size; return the figure and the exponents."""
    fields = (("seconds", "seconds"), ("mib", "peak memory beside weights, MiB"))
    figure, axes = common.figure(2, 4)
    exponents: dict[str, Any] = {}
    for line, kind in zip(axes, GROWING, strict=True):
        for column, (axis, (field, title)) in enumerate((axis, field) for axis in AXES for field in fields):
            results = growth_along(grown, kind, axis)
            x = [extent(result, axis) for result in results]
            for contestant in CONTESTANTS:
                y = [result["rows"][contestant][field] for result in results]
                if None not in y:
                    line[column].plot(x, y, "o-", label=contestant)
                power = common.exponent(x[1:] if axis == "frames" else x, y[1:] if axis == "frames" else y)
                exponents.setdefault(f"{kind}, {field} with {axis}", {})[contestant] = power
            line[column].set(xlabel="frames" if axis == "frames" else "megapixels", title=f"{kind}: {title}")
            line[column].legend()
    return figure, exponents


# --- the command ------------------------------------------------------------------------------------------------------


def main() -> None:
    parts = ("transformer", "decode", "encode", "pipeline", "growth", "released")
    native = ON_GPU or bfloat16_is_native()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, metavar="PART", help=", ".join(parts))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--dtype", default="bfloat16" if native else "float32", choices=("bfloat16", "float16", "float32")
    )
    parser.add_argument("--quick", action="store_true", help="next to nothing, to see that it runs; nothing is written")
    parser.add_argument("--show", nargs="+", type=Path, metavar="FILE", help="print the tables of results")
    parser.add_argument("--work", choices=(*CONTESTANTS, COMPILED), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        import_host()
        common.answer_requests(Contestant(args.work).answer)
        return
    if args.show:
        show_files(args.show)
        return
    name = f"speed-{'gpu' if ON_GPU else 'cpu'}"
    results = common.load(name)
    if results.get("machine") != common.machine():
        results = {}
    print(json.dumps(common.machine(), indent=2))
    workers = {each: common.Worker(__file__, each) for each in (*CONTESTANTS, COMPILED)}
    for part, work in cases(args.dtype, args.quick).items():
        if part in args.only:
            results[part] = measure_part(workers, part, work, 1 if args.quick else args.rounds)
            if not args.quick:
                common.save(name, results)  # parts take long; none is lost when a later one is interrupted
    for worker in workers.values():
        worker.close()
    if "growth" in args.only:
        figure, results["exponents"] = plot_growth(results["growth"])
        print(json.dumps(results["exponents"], indent=2))
        if not args.quick:
            common.save_figure(figure, name)
    if "released" in args.only and (ON_GPU or args.quick):
        from pack.benchmarks import released

        results["released"] = released.measure_all(args.quick)
    elif "released" in args.only:
        print("\nThe released sizes need a graphics card; on one this command measures them too.")
    if not args.quick:
        common.save(name, results)


if __name__ == "__main__":
    main()
