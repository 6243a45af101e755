"""The real thing on a graphics card: whole videos at the released sizes, random weights of true size, stage by stage.

    python dev.py bench released [--only MODEL ...] [--modes MODE ...] [--steps 50] [--quick]

Modes: plain, compile (the stock TorchCompileModel), fp8 (fp8_e4m3fn_fast), step cache (TeaCache at its usual
threshold) and all together. For each it gives the seconds of text encoding, sampling and decoding, peak memory, the
share of the card's matrix throughput that sampling reaches, and how the host's estimate of memory compares with what a
pass takes. `speed` runs this as its last part. Results go to results/released-gpu.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    from common import import_host, import_pack

    import_pack()

from pack.benchmarks import common, weights
from pack.benchmarks.contestants import GUIDANCE, NEGATIVE, PROMPT, SEED, weight_dtype_of
from pack.cogvideox.patches import TEACACHE
from pack.cogvideox.variants import TEXT_TOKENS, TransformerConfig

ON_GPU = torch.cuda.is_available()
PLAIN, COMPILE, FP8, STEP_CACHE, ALL = MODES = ("plain", "compile", "fp8", "step cache", "all together")
THRESHOLD = 0.1  # of the step cache: its default
PROMPTS = 2
TOLERANCE = 0.15  # of the host's estimate against the real peak


@dataclass(frozen=True)
class Film:
    """A video of a model: `frames` of `height` x `width` pixels in `steps`; 0 `layers` or `heads` are the model's."""

    model: str
    frames: int
    height: int
    width: int
    steps: int = 50
    layers: int = 0
    heads: int = 0
    dtype: str = "bfloat16"
    folder: str = ""

    @property
    def latents(self) -> tuple[int, int, int]:
        """Latents [T, H, W], the extra leading one of 1.5 included."""
        t = (self.frames - 1) // 4 + 1
        temporal = self.config.patch_size_t or 1
        return -(-t // temporal) * temporal, self.height // 8, self.width // 8

    @property
    def config(self) -> TransformerConfig:
        return weights.variant_of(self.model, self.layers, self.heads).transformer


FILMS = (
    Film("CogVideoX-5B", 49, 480, 720),
    Film("CogVideoX-2B", 49, 480, 720, dtype="float16"),
    Film("CogVideoX1.5-5B", 81, 768, 1360),
)
QUICK = Film("CogVideoX1.5-5B", 9, 32, 48, steps=3, layers=1, heads=2, dtype="float32")


def flops(config: TransformerConfig, latents: tuple[int, int, int]) -> float:
    """Return the multiplications and additions of one pass for one prompt: its matrices and its attention."""
    t, h, w = latents
    patch = config.patch_size**2 * (config.patch_size_t or 1)
    video = t * h * w // patch
    tokens, width = TEXT_TOKENS + video, config.inner_dim
    block = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    ends = 2 * video * patch * (config.in_channels + config.out_channels) * width
    return config.num_layers * block + ends + 2 * TEXT_TOKENS * config.text_embed_dim * width


# --- in a process of its own ------------------------------------------------------------------------------------------


def matmul_peak(dtype: torch.dtype) -> float:
    """Return the best of several large matrix products in floating point operations per second."""
    size, device = (8192, "cuda") if ON_GPU else (512, "cpu")
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(20):
        common.synchronise()
        start = time.perf_counter()
        a @ b
        common.synchronise()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


class Studio:
    """One model in one mode, from prompt to frames."""

    def __init__(self, film: Film, mode: str):
        from pack.nodes.host import loading
        from pack.nodes.host.patches import MAIN_DEVICE, with_step_cache

        import nodes

        self.film, self.nodes = film, nodes
        folder = Path(film.folder)
        plain = weight_dtype_of(getattr(torch, film.dtype))
        self.model = loading.load_model(str(folder), "fp8_e4m3fn_fast" if mode in (FP8, ALL) else plain)
        self.clip, self.vae = loading.load_clip(str(folder)), loading.load_vae(str(folder))
        if mode in (STEP_CACHE, ALL):
            self.model, _ = with_step_cache(self.model, TEACACHE, THRESHOLD, 0.0, 1.0, MAIN_DEVICE)
        if mode in (COMPILE, ALL):
            from comfy_extras.nodes_torch_compile import TorchCompileModel

            self.model = TorchCompileModel.execute(self.model, "inductor").result[0]

    def text(self) -> None:
        from pack.nodes.host.text_encoder import encode_prompt

        self.prompts = [encode_prompt(self.clip, prompt).conditioning for prompt in (PROMPT, NEGATIVE)]

    def sampling(self, steps: int = 0) -> None:
        from pack.nodes.host.conditioning import empty_latent

        film = self.film
        latent = empty_latent(film.width, film.height, film.frames, 1)
        args = (SEED, steps or film.steps, GUIDANCE, "euler", "simple", *self.prompts, latent, 1.0)
        (self.samples,) = self.nodes.KSampler().sample(self.model, *args)

    def decode(self) -> None:
        from pack.nodes.host.coding import decode

        self.frames = decode(self.vae, self.samples["samples"])

    def pass_memory(self) -> dict[str, float | None]:
        """Return what the host reckons one pass for both prompts needs beside the weights, and what it takes."""
        import comfy.model_management

        model, shape = self.model.model, (PROMPTS, 16, *self.film.latents)
        comfy.model_management.load_models_gpu([self.model], force_full_load=True)
        device = comfy.model_management.get_torch_device()
        width = model.variant.transformer.text_embed_dim
        text = torch.zeros(PROMPTS, TEXT_TOKENS, width, device=device)
        given = dict(c_crossattn=text.to(model.get_dtype_inference()), transformer_options={})
        x, sigma, peak = torch.zeros(shape, device=device), torch.ones(PROMPTS, device=device), common.Peak()
        self.model.pre_run()
        model.apply_model(x, sigma, **given)  # position tables and what libraries keep are made
        peak.start()
        model.apply_model(x, sigma, **given)
        real = peak.stop() or None
        self.model.cleanup()
        return {"estimated": model.memory_required(list(shape)), "real": real}


@torch.inference_mode()
def shoot(film: dict[str, Any], mode: str) -> dict[str, Any]:
    """Make the video of a film in a mode and return what each stage took."""
    film = Film(**film)
    studio, answer = Studio(film, mode), {}
    studio.text()
    start = time.perf_counter()
    studio.sampling(2)  # compiles, fills caches
    common.synchronise()
    answer["warm_up"] = time.perf_counter() - start
    if mode == PLAIN:
        answer["memory"] = studio.pass_memory()
        answer["matmul_flops"] = matmul_peak(getattr(torch, film.dtype))
    peak = common.Peak()
    peak.start()
    stages: dict[str, Callable[[], None]] = {s: getattr(studio, s) for s in ("text", "sampling", "decode")}
    for name, stage in stages.items():
        start = time.perf_counter()
        stage()
        common.synchronise()
        answer[name] = time.perf_counter() - start
    answer["seconds"] = sum(answer[name] for name in stages)
    over = peak.stop()
    answer["bytes"] = None if over is None else over + peak.before
    return answer


# --- in the process that asks -----------------------------------------------------------------------------------------


def measure_film(film: Film, modes: tuple[str, ...], text: dict[str, int]) -> dict[str, Any]:
    """Make one video in every mode, each in a process of its own; the processes have the card to themselves."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        variant = weights.variant_of(film.model, film.layers, film.heads, text["d_model"])
        weights.write_pipeline(Path(folder), variant, text, getattr(torch, film.dtype))
        for mode in modes:
            worker = common.Worker(__file__, mode)
            row = {**worker.ask(film={**asdict(film), "folder": folder}, mode=mode), "run": common.RUN}
            worker.close()
            if mode == PLAIN:
                speed = flops(film.config, film.latents) * PROMPTS * film.steps / row["sampling"]
                row |= {"tflops": speed / 1e12, "of_matmul": speed / row["matmul_flops"]}
            rows[mode] = row
            show(film, mode, rows)
    return {**asdict(film), "rows": rows}


def show(film: Film, mode: str, rows: dict[str, Any]) -> None:
    """Print the line of a mode, and what only the plain one tells."""
    row = rows[mode]
    if len(rows) == 1:
        print(f"\n{film.model}, {film.frames} frames of {film.width}x{film.height}, {film.steps} steps, {film.dtype}")
    faster = f"{common.times(rows[PLAIN], row, 'sampling'):.2f} times as fast" if PLAIN in rows else ""
    memory = "" if row["bytes"] is None else f"{row['bytes'] / 1e9:.1f} GB"
    stages = ", ".join(f"{stage} {row[stage]:.1f} s" for stage in ("text", "sampling", "decode"))
    print(f"  {mode:12} {row['seconds']:7.1f} s: {stages}; {memory}; sampling {faster}", flush=True)
    if "tflops" in row:
        print(f"  {'':12} sampling at {row['tflops']:.0f} TFLOP/s, {row['of_matmul']:.0%} of a matrix product")
    if "memory" in row and row["memory"]["real"]:
        estimated, real = row["memory"]["estimated"], row["memory"]["real"]
        verdict = "within" if abs(estimated / real - 1) <= TOLERANCE else "NOT within"
        print(
            f"  {'':12} one pass: estimated {estimated / 1e9:.2f} GB, real {real / 1e9:.2f} GB, {verdict} "
            f"{TOLERANCE:.0%}; memory_usage_factor times {real / estimated:.2f} would fit"
        )


def measure_all(quick: bool = False, only: tuple[str, ...] = (), modes: tuple[str, ...] = MODES, steps: int = 0):
    """Measure the films; `quick` makes one of next to nothing, without a compiler."""
    if quick:
        return {
            QUICK.model: measure_film(QUICK, tuple(mode for mode in modes if mode in (PLAIN, FP8)), weights.T5_SMALL)
        }
    films = [film for film in FILMS if not only or film.model in only]
    films = [Film(**{**asdict(film), "steps": steps or film.steps}) for film in films]
    return {film.model: measure_film(film, modes, weights.T5_XXL) for film in films}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[film.model for film in FILMS], default=(), metavar="MODEL")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, metavar="MODE", help=", ".join(MODES))
    parser.add_argument("--steps", type=int, default=0, help="in place of 50")
    parser.add_argument("--quick", action="store_true", help="next to nothing, to see that it runs; nothing is written")
    parser.add_argument("--work", choices=MODES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        import_host()
        common.answer_requests(shoot)
        return
    if not (ON_GPU or args.quick):
        raise SystemExit("The released sizes need a graphics card. `bench speed` measures what a processor can.")
    films = measure_all(args.quick, tuple(args.only), tuple(args.modes), args.steps)
    if not args.quick:
        common.save("released-gpu", {"films": films})


if __name__ == "__main__":
    main()
