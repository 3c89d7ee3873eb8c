"""Attention and linear layers in 8 bits beside bfloat16, in one run on one Hopper GPU.

    python benchmarks/fp8_attention.py --json fp8_attention.json
    python benchmarks/fp8_attention.py --only kernels --tiny

Kernels: attention and linear layers in Wan's shapes. Passes: forward passes of the 1.3B model with
random weights, in bfloat16, with FP8 linear layers, and with attention in 8 bits as well, in turn;
dense Wan once; and the relative error of each self-attention, given the input that it has in the
bfloat16 model. Results are saved after each measurement. `--tiny` tries the kernels' part on small
shapes, in Triton's interpreter where TRITON_INTERPRET=1 is set.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ultragen.benchmark.bench import free_memory, once
from ultragen.benchmark.cases import CASES, VARIANTS, arguments, build
from ultragen.benchmark.machine import card_name
from ultragen.model.fp8 import quantize
from ultragen.ops import key_parts, triton_fp8_attention
from ultragen.ops.dispatch import prepare

Row = dict[str, Any]
WAYS = [(logits, values) for logits in ("int8", "fp8") for values in ("bf16", "fp8")]
ATTENTION = ((16, 12, 10_752), (1, 12, 65_536), (1, 12, 171_392))  # windows, heads, tokens
LINEAR = ((171_360, 1536, 1536), (171_360, 1536, 8960), (171_360, 8960, 1536))
SIZES = (
    ("1088x1920x81", "auto"),
    ("1088x1920x81", "released"),
    ("2176x3840x81", "released"),
)
HEAD, CHECKED = 128, 256  # features; queries that are compared with float32


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def attend_as(way: tuple[str, str] | None) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """Attention with these types of queries and keys and of values; None for none in 8 bits."""
    if way is None:
        return None
    return partial(triton_fp8_attention.attend, logits=way[0], values=way[1])


def times(ways: dict[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, float]:
    """Medians in seconds; all ways in turn, after a call of each that compiles."""
    for call in ways.values():
        call()
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, call in ways.items():
            took[name].append(once(call, device))
    return {name: median(seconds) for name, seconds in took.items()}


def attention(shape: tuple[int, int, int], repeats: int, device: str) -> Iterator[Row]:
    """Rates with the quantisation, which is timed alone as well, and errors."""
    windows, heads, tokens = shape
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    query, key, value = torch.randn(3, windows, heads, tokens, HEAD, device=device).to(dtype)
    key += 2 * torch.randn(HEAD, device=device).to(dtype)
    ways: dict[str, Callable[[], Any]] = {"bf16": lambda: key_parts.attend(query, key, value)}
    for way in WAYS:
        ways[" ".join(way)] = lambda w=way: triton_fp8_attention.attend(query, key, value, *w)
    block, int8 = triton_fp8_attention.KEYS, torch.int8
    mean = key.mean(-2, keepdim=True, dtype=torch.float32)
    ways["keys into int8"] = lambda: triton_fp8_attention.quantize(key, mean, block, int8)
    seconds = times(ways, repeats, device)
    q, k, v = (x[:1, :1].float() for x in (query[:, :, :CHECKED], key, value))
    expected = (q @ k.mT * HEAD**-0.5).softmax(-1) @ v
    for name, took in seconds.items():
        row: Row = {"attention": shape, "way": name, "seconds": took}
        if name != "keys into int8":
            row["tflops"] = 4 * windows * heads * tokens**2 * HEAD / took / 1e12
            row["error"] = relative(ways[name]()[0][:1, :1, :CHECKED], expected)
        yield row


def by_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in FP8 and what to multiply each by, n 1."""
    scale = x.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / 448
    return (x / scale).to(torch.float8_e4m3fn), scale


def linear(shape: tuple[int, int, int], repeats: int, device: str) -> Iterator[Row]:
    """The product alone, and with what puts its input into FP8."""
    n, d, out = shape
    torch.manual_seed(0)
    x, weight = (torch.randn(rows, d, device=device, dtype=torch.bfloat16) for rows in (n, out))
    (x8, scale), (weight8, of_weight) = by_rows(x), by_rows(weight)
    quantise = torch.compile(by_rows) if device == "cuda" else by_rows

    def product(rows: Tensor, of_rows: Tensor) -> Tensor:
        return torch._scaled_mm(
            rows, weight8.T, of_rows, of_weight.T, out_dtype=torch.bfloat16, use_fast_accum=True
        )

    ways: dict[str, Callable[[], Tensor]] = {
        "bf16": lambda: x @ weight.T,
        "fp8": lambda: product(x8, scale),
        "fp8, with the input's quantisation": lambda: product(*quantise(x)),
    }
    wanted = x[:CHECKED].float() @ weight.T.float()
    for name, took in times(ways, repeats, device).items():
        error = relative(ways[name]()[:CHECKED], wanted)
        rate = 2 * n * d * out / took / 1e12
        yield {"linear": shape, "way": name, "seconds": took, "tflops": rate, "error": error}


@torch.no_grad()
def passes(case_name: str, layout: str, repeats: int) -> Iterator[Row]:
    """Forward passes of one size and layout; their peak is without the other model's weights."""
    case, device, dtype = CASES[case_name], "cuda", torch.bfloat16
    (variant,) = (v for v in VARIANTS["wan"] if v.name == layout)
    plain = build(case.family, variant, device, dtype)
    before = torch.cuda.memory_allocated()
    fp8 = deepcopy(plain)
    quantize(fp8)
    other = torch.cuda.memory_allocated() - before
    torch.manual_seed(0)
    given = arguments(case, variant, device, dtype)
    settings = [("bf16", plain, None), ("fp8 linear", fp8, None)]
    settings += [(f"fp8 linear, attention {' '.join(way)}", fp8, way) for way in WAYS]
    expected: Tensor | None = None
    for name, model, way in settings:
        with key_parts.in_8_bits(attend_as(way)):
            found = model(**given)[0].float()
            expected = found if expected is None else expected
            error = relative(found, expected)
            torch.cuda.reset_peak_memory_stats()
            took = [once(lambda m=model: m(**given), device) for _ in range(repeats)]
        peak = torch.cuda.max_memory_allocated() - (other if model is plain else 0)
        row = {"case": case_name, "layout": layout, "way": name, "seconds": took, "error": error}
        yield {**row, "peak": peak, "peak_counts_both_models": model is fp8}
    del fp8, model, settings
    for way in WAYS:
        errors = layer_errors(plain, given, way)
        yield {"case": case_name, "layout": layout, "way": " ".join(way), "layers": errors}


def layer_errors(model: nn.Module, given: dict[str, Any], way: tuple[str, str]) -> list[float]:
    """Relative errors of the self-attention of each layer, given what it has in bfloat16."""
    errors: list[float] = []
    inside = False

    def compare(layer: nn.Module, args: Any, kwargs: Any, found: Tensor) -> None:
        nonlocal inside
        if not inside:
            inside = True
            with key_parts.in_8_bits(attend_as(way)):
                errors.append(relative(layer(*args, **kwargs), found))
            inside = False

    with ExitStack() as stack:
        for block in model.blocks:
            handle = block.attn1.register_forward_hook(compare, with_kwargs=True)
            stack.callback(handle.remove)
        model(**given)
    return errors


@torch.no_grad()
def measure(options: argparse.Namespace, device: str) -> Iterator[Row]:
    """Everything that was asked for, the kernels first."""
    if options.only != "passes":
        for shape in ((2, 1, 130),) if options.tiny else ATTENTION:
            yield from attention(shape, options.repeats, device)
            free_memory()
        for shape in ((256, 64, 64),) if options.tiny else LINEAR:
            yield from linear(shape, options.repeats, device)
            free_memory()
    if options.only != "kernels" and not options.tiny:
        dense = CASES[SIZES[0][0]]
        (variant,) = (v for v in VARIANTS["wan"] if v.name == "dense")
        model = build(dense.family, variant, device, torch.bfloat16)
        given = arguments(dense, variant, device, torch.bfloat16)
        took = times({"dense": lambda: model(**given)}, 1, device)
        yield {"case": dense.name, "layout": "dense", "way": "bf16", "seconds": [took["dense"]]}
        del model
        free_memory()
        for case, layout in SIZES:
            yield from passes(case, layout, options.repeats)
            free_memory()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", choices=("kernels", "passes"))
    parser.add_argument("--repeats", type=int, default=3, help="Of which the median counts.")
    parser.add_argument("--tiny", action="store_true", help="Small kernels, on any machine.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        parser.error("this needs a Hopper GPU: choose --tiny to try the kernels elsewhere.")
    if device == "cuda":
        prepare(torch.device(device))
        triton_fp8_attention.try_on(torch.device(device))
    rows: list[Row] = []
    heading = f"{card_name(device)}, torch {torch.__version__}"
    print(heading, flush=True)
    for row in measure(options, device):
        rows.append(row)
        print(json.dumps(row), flush=True)
        if options.json:
            text = json.dumps({"heading": heading, "rows": rows}, indent=1) + "\n"
            options.json.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
