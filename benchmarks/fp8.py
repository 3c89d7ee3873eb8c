"""Large linear layers in FP8: how far the embedded model's clips drift, and on a CUDA GPU what the
1.3B model gains.

    OMP_NUM_THREADS=1 python benchmarks/fp8.py --json fp8.json --markdown fp8.md
    python benchmarks/fp8.py --only speed --case 1088x1920x81 --variant auto
    python benchmarks/fp8.py --tiny

Drift: the same prompts and noise with each of the layers' groups in FP8, beside the plain model, in
float32 on a CPU and in bfloat16 on a GPU, and beside the other of these two types. Speed: forward
passes with random weights in the true shapes, without and with FP8 in turn, after a warm-up that
compiles kernels. Memory is what a model takes without the other one's weights. `--tiny` runs toys.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from caching import Runner, decibels, drift
from caching import Variant as Run
from diffusers.models.attention_dispatch import attention_backend
from torch import Tensor, nn

from ultragen.benchmark.bench import free_memory, once
from ultragen.benchmark.cases import CASES, VARIANTS, Case, Family, Variant, arguments, build
from ultragen.benchmark.machine import card_name, default_dtype
from ultragen.benchmark.parts import PartMeter, device_clock
from ultragen.model.fp8 import LAYERS, check_machine, quantize
from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.presets import EMBEDDED, EMBEDDED_MODEL, PROMPTS

GROUPS = {
    "FP8": LAYERS,
    "FP8, self-attention only": rf"(?=.*\.attn1\.){LAYERS}",
    "FP8, attention to the text only": rf"(?=.*\.attn2\.){LAYERS}",
    "FP8, feed-forward only": rf"(?=.*\.ffn\.){LAYERS}",
}
"""Layers that are put into FP8."""
PLAIN, FP8 = "plain", "FP8"
SIZES = ("1088x1920x81", "2176x3840x29")
LAYOUTS = ("auto", "released", "dense")
PARTS = ("projections", "cross-attention projections", "feed-forward")


@dataclass
class Drift:
    """How far clips with some layers in FP8 are from those without, a number for each prompt.

    Attributes:
        name: Of the layers, or the type.
        layers: How many are in FP8.
        error: Of the latents, relative.
        psnr: Of the frames, in dB; None where they are the same.
    """

    name: str
    layers: int
    error: list[float] = field(default_factory=list)
    psnr: list[float | None] = field(default_factory=list)


@dataclass(frozen=True)
class Speed:
    """Forward passes of one size and layout.

    Attributes:
        case: Name of the size.
        variant: Name of the layout.
        precision: `plain`, or `FP8`.
        first: Seconds of the first pass, which compiles.
        seconds: Of each later one.
        peak: Most bytes of device memory, without the other model's weights; None on a CPU.
        weights: Bytes of the weights; None on a CPU.
        parts: Seconds by part.
        error: Of the output, relative to the plain model's.
    """

    case: str
    variant: str
    precision: str
    first: float
    seconds: list[float]
    peak: int | None
    weights: int | None
    parts: dict[str, float]
    error: float


# Drift


def transformers(device: str) -> Iterator[tuple[str, int, nn.Module]]:
    """Name, layers in FP8 and transformer; the plain one first."""
    plain = default_dtype(device)
    other = {torch.float32: torch.bfloat16, torch.bfloat16: torch.float32}[plain]

    def load(dtype: torch.dtype) -> nn.Module:
        folder = EMBEDDED_MODEL / "transformer"
        return UltraGenTransformer3DModel.from_pretrained(folder, torch_dtype=dtype).to(device)

    yield PLAIN, 0, load(plain)
    for name, layers in GROUPS.items():
        model = load(plain)
        yield name, len(quantize(model, layers)), model
    yield str(other).removeprefix("torch."), 0, load(other)


def measure_drift(options: argparse.Namespace) -> list[Drift]:
    """Runs every prompt with every transformer; says each result as it comes."""
    runner = Runner(options)
    expected: dict[str, Any] = {}
    rows = []
    for name, count, model in transformers(runner.device):
        runner.pipe.register_modules(transformer=model)
        row = Drift(name, count)
        for prompt in PROMPTS[: options.prompts]:
            latents, seconds, _ = runner(prompt, Run(name))
            clip = latents, runner.pipe.decode(latents, "uint8")
            error, psnr = drift(clip, expected.setdefault(prompt, clip))
            row.error.append(error)
            row.psnr.append(psnr)
            print(
                f"  {name:32}{count:4} layers {seconds:6.1f} s  latents {error:.3f}  "
                f"{decibels([psnr])} dB",
                flush=True,
            )
        rows.append(row)
    return rows[1:]


def drift_table(rows: list[Drift]) -> str:
    """Means over the prompts, as Markdown."""
    lines = ["| | layers | error of the latents | PSNR, dB |", "|---|---:|---:|---:|"]
    lines += [
        f"| {row.name} | {row.layers or '–'} | {fmean(row.error):.3f} | {decibels(row.psnr)} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


# Speed


def allocated(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else 0


@torch.no_grad()
def measure_speed(case: Case, variant: Variant, device: str, repeats: int) -> list[Speed]:
    """The plain model and the one in FP8 in turn."""
    dtype = torch.bfloat16
    models, weights = {}, {}
    for name in (PLAIN, FP8):
        before = allocated(device)
        if name == FP8:
            models[name] = deepcopy(models[PLAIN])
            quantize(models[name])
        else:
            models[name] = build(case.family, variant, device, dtype)
        weights[name] = allocated(device) - before
    torch.manual_seed(0)
    given = arguments(case, variant, device, dtype)
    first, outputs = {}, {}
    for name, model in models.items():
        found: list[Tensor] = []
        first[name] = once(lambda m=model, f=found: f.append(m(**given)[0]), device)
        outputs[name] = found[0].float()
    plain = outputs[PLAIN]
    errors = {name: ((x - plain).norm() / plain.norm()).item() for name, x in outputs.items()}
    del outputs, plain, found
    seconds: dict[str, list[float]] = {name: [] for name in models}
    peaks = dict.fromkeys(models, 0)
    for _ in range(repeats):
        for name, model in models.items():
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds[name].append(once(lambda m=model: m(**given), device))
            if device == "cuda":
                peaks[name] = torch.cuda.max_memory_allocated()
    on_gpu = device == "cuda"
    other = {PLAIN: FP8, FP8: PLAIN}
    return [
        Speed(
            case.name,
            variant.name,
            name,
            first[name],
            seconds[name],
            peaks[name] - weights[other[name]] if on_gpu else None,
            weights[name] if on_gpu else None,
            parts_of(model, given, device),
            errors[name],
        )
        for name, model in models.items()
    ]


def parts_of(model: nn.Module, given: dict[str, Any], device: str) -> dict[str, float]:
    """Seconds of one more pass, of the parts that FP8 is about."""
    with PartMeter(model, device_clock(device)) as meter:
        model(**given)
    found = meter.totals()
    return {part: found[part] for part in PARTS}


def speed_table(rows: list[Speed]) -> str:
    """Medians, as Markdown; parts in milliseconds."""
    heads = ("seconds", "speed-up", "first pass, s", "peak, GiB", "weights, GiB", "error", *PARTS)
    lines = [
        f"| case | layout | precision | {' | '.join(heads)} |",
        "|---|---|---|" + "---:|" * len(heads),
    ]
    without = {(row.case, row.variant): median(row.seconds) for row in rows[::2]}
    for row in rows:
        seconds = median(row.seconds)
        cells = [
            f"{seconds:.3f}",
            f"{without[row.case, row.variant] / seconds:.2f}×",
            f"{row.first:.1f}",
            gib(row.peak),
            gib(row.weights),
            f"{row.error:.3f}" if row.precision == FP8 else "–",
            *(f"{1000 * row.parts[part]:.0f}" for part in PARTS),
        ]
        lines.append(f"| {row.case} | {row.variant} | {row.precision} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def gib(size: int | None) -> str:
    return "–" if size is None else f"{size / 2**30:.1f}"


def speeds(options: argparse.Namespace, device: str) -> Iterator[list[Speed]]:
    """Every size and layout that was asked for; says each result as it comes."""
    family: Family = "tiny" if options.tiny else "wan"
    chosen = options.variant or LAYOUTS[:2]
    for name in ["tiny"] if options.tiny else options.case or SIZES[:1]:
        for variant in VARIANTS[family]:
            if variant.name in chosen:
                found = measure_speed(CASES[name], variant, device, options.repeats)
                for row in found:
                    print(
                        f"  {row.case}, {row.variant}, {row.precision}: "
                        f"{median(row.seconds):.3f} s, the first {row.first:.1f} s",
                        flush=True,
                    )
                free_memory()
                yield found


# Output


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for name, value in (("height", 544), ("width", 960), ("frames", 5), ("prompts", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--steps", type=int, default=EMBEDDED.num_inference_steps)
    parser.add_argument("--guidance", type=float, default=EMBEDDED.guidance_scale)
    parser.add_argument("--only", choices=("drift", "speed"))
    parser.add_argument("--case", choices=SIZES, action="append", help="May be repeated.")
    parser.add_argument("--variant", choices=LAYOUTS, action="append", help="May be repeated.")
    parser.add_argument("--repeats", type=int, default=3, help="Of which the median counts.")
    parser.add_argument("--attention", default="native", help="One of diffusers' back ends.")
    parser.add_argument("--tiny", action="store_true", help="Speed of toys, on any machine.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    if options.only == "speed" and not options.tiny and not torch.cuda.is_available():
        parser.error("the speed of the 1.3B model needs a CUDA GPU: choose --tiny.")
    return options


def save(drifts: list[Drift], rows: list[Speed], heading: str, options: argparse.Namespace) -> None:
    tables = [drift_table(drifts)] if drifts else []
    tables += [speed_table(rows)] if rows else []
    if options.json:
        found = {"drift": list(map(asdict, drifts)), "speed": list(map(asdict, rows))}
        text = json.dumps({"heading": heading, **found}, indent=1) + "\n"
        options.json.write_text(text, encoding="utf-8")
    if options.markdown:
        options.markdown.write_text("\n".join([f"{heading}\n", *tables]), encoding="utf-8")


def main() -> None:
    options = parse()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        check_machine(torch.device(device))
    heading = (
        f"{options.height} × {options.width} × {options.frames} frames, {options.steps} steps, "
        f"guidance {EMBEDDED.guidance_scale:g}, {options.prompts} prompts; {card_name(device)}, "
        f"torch {torch.__version__}"
    )
    print(heading, flush=True)
    drifts: list[Drift] = []
    rows: list[Speed] = []
    if options.only != "speed":
        drifts = measure_drift(options)
        print(drift_table(drifts), flush=True)
        save(drifts, rows, heading, options)
    if options.only != "drift" and (device == "cuda" or options.tiny):
        with attention_backend(options.attention):
            for found in speeds(options, device):
                rows += found
                save(drifts, rows, heading, options)
        print(speed_table(rows))


if __name__ == "__main__":
    main()
