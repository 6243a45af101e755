"""Memory at the released sizes, counted without computing: ours, diffusers and ComfyUI's own model.

    python dev.py bench memory [--only PART ...] [--quick]

Parts: transformer (one pass of each variant for two prompts), decode, encode, training (forward and backward of one
clip in Train LoRA). A figure is the most bytes of tensors alive at once in bfloat16, beside weights, input and result;
attention counts as a kernel that holds no more than its result, and what libraries take inside an operator is not
seen. The table goes to results/memory.json.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch

if __name__ == "__main__":
    from common import import_host, import_pack

    import_pack()
    import_host()

from comfy.weight_adapter import adapter_maps
from comfy_extras.nodes_train import find_modules_at_depth, patch
from pack.benchmarks import common, contestants
from pack.benchmarks.contestants import Case
from pack.benchmarks.counting import peak_of, pretended_peak
from pack.cogvideox.transformer import CogVideoXTransformer3DModel
from pack.cogvideox.variants import OFS, RELEASED, TEXT_TOKENS, Variant

PROMPTS = 2
# latents [T, H, W]: 49 frames of 720x480; 81 of 1360x768 and the one that 1.5 wants in front
SIZES = {"1.0": (13, 60, 90), "1.5": (22, 96, 170)}
LATENTS = 7  # three chunks: from the first that has one before and one behind it on, memory stays the same
TRAINING, RANK = "training", 16
TRAININGS = {"plain": 0, "whole network": 1, "block by block": 2}  # by checkpoint_depth of Train LoRA
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


class Kernel(torch.autograd.Function):
    """Stands for an attention kernel that can be trained through: it keeps its inputs and its result."""

    @staticmethod
    def forward(ctx, q, k, v):
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """Attend as autocast has it, in bfloat16: three [B, heads, S, head_dim] -> [B, S, heads * head_dim]."""
    return Kernel.apply(q.bfloat16(), k.bfloat16(), v.bfloat16()).transpose(1, 2).flatten(2)


class Operations:
    """The layers as Train LoRA runs them: a host's LoRA on each weight matrix, norms in float32 as autocast does."""

    Conv2d = torch.nn.Conv2d

    class Linear(torch.nn.Linear):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.requires_grad_(False)
            with torch.device(self.weight.device):
                self.adapter = adapter_maps["LoRA"].create_train(self.weight, rank=RANK, alpha=1.0).requires_grad_(True)

        def forward(self, x):
            return torch.nn.functional.linear(x.to(self.weight.dtype), self.adapter(self.weight), self.bias)

    class LayerNorm(torch.nn.LayerNorm):
        def forward(self, x):
            weight, bias = self.weight.float(), self.bias.float()
            return torch.nn.functional.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps)


def count_training(variant: Variant, size: tuple[int, int, int], depth: int) -> dict[str, int]:
    """Return the bytes that one clip takes forward and back, and those of the LoRA with AdamW, weights beside them."""
    config = variant.transformer
    model = CogVideoXTransformer3DModel(
        config, dtype=torch.bfloat16, device="meta", operations=Operations, attention=kernel
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".adapter." in name)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.device("meta"):
        x = torch.empty(1, config.in_channels, *size, dtype=torch.bfloat16, requires_grad=True)
        text = torch.empty(1, TEXT_TOKENS, config.text_embed_dim, dtype=torch.bfloat16)
        timestep, ofs = torch.empty(1), torch.full((1,), OFS)

    def step():
        model(x, timestep, text, ofs).float().square().mean().backward()

    if depth:
        for module in find_modules_at_depth(model, depth):
            patch(module)
    peak = peak_of(step, x, text, timestep, ofs, *model.parameters())
    numbers = sum(parameter.numel() for parameter in trained)
    gradients = 4 * numbers  # counted in the peak
    return {"card": peak - gradients, "lora": 4 * gradients}  # float32: itself, its gradient and two of AdamW


def trained_variants(quick: bool) -> list[Variant]:
    """Return the text-to-video models; those from images differ by a wider patch embedding alone."""
    if quick:
        return [replace(RELEASED[-1], transformer=replace(RELEASED[-1].transformer, num_layers=1))]
    return [variant for variant in RELEASED if not variant.image_channels]


def measure_training(variant: Variant, size: tuple[int, int, int]) -> dict[str, Any]:
    """Count one model with and without gradient checkpointing and show it."""
    print(f"\n{variant.name}, training at {size}")
    rows = {name: count_training(variant, size, depth) for name, depth in TRAININGS.items()}
    for name, row in rows.items():
        print(f"  {name:18} {row['card'] / 1e9:6.2f} GB and {row['lora'] / 1e9:.2f} GB of LoRA and AdamW", flush=True)
    return {"shape": size, "rank": RANK, "rows": rows}


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
    known = (*cases(True), TRAINING)
    parser.add_argument("--only", nargs="+", choices=known, default=known, metavar="PART")
    parser.add_argument("--quick", action="store_true", help="next to nothing, to see that it runs; nothing is written")
    args = parser.parse_args()

    import comfy.ldm.cogvideo.model
    import comfy.ldm.modules.attention

    comfy.ldm.cogvideo.model.optimized_attention = host_stand_in
    comfy.ldm.modules.attention.optimized_attention = host_stand_in
    torch.nn.functional.scaled_dot_product_attention = stand_in
    results = common.load("memory")
    for variant in trained_variants(args.quick) if TRAINING in args.only else ():
        size = (4, 8, 8) if args.quick else SIZES["1.5" if "1.5" in variant.name else "1.0"]
        results[TRAINING] = results.get(TRAINING, {}) | {variant.name: measure_training(variant, size)}
        if not args.quick:
            common.save("memory", results)
    for part, (names, work) in cases(args.quick).items():
        if part in args.only:
            results[part] = {case.name: measure(names, case) for case in work}
            if not args.quick:
                common.save("memory", results)


if __name__ == "__main__":
    main()
