"""Attention over very many keys: its rate by their number, whole and with the keys in parts.

    python benchmarks/long_attention.py [--tokens 171392 261120 685440] [--parts 131072 262144]

`ultragen/ops/key_parts.py` says how parts become one result. All ways are run in turn, so that
a card that becomes hot or slow does so for all. Prints TFLOP/s, medians of some runs, and how far
the result of the parts is from the whole one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

from ultragen.benchmark.bench import once
from ultragen.cli import console
from ultragen.ops.key_parts import attend, attend_in_parts

WIDTH = 128  # of a head, as Wan has it


def measure(tokens: int, parts: Sequence[int], heads: int, runs: int, device: str) -> None:
    """Prints a line for the whole and one for each size of parts below it."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, tokens, heads, WIDTH)  # in memory, as projections give it
    query, key, value = (
        torch.randn(shape, generator=generator, device=device, dtype=dtype).transpose(1, 2)
        for _ in range(3)
    )
    apart = [x.contiguous() for x in (query, key, value)]
    ways: dict[str, Callable[[], Tensor]] = {
        "whole": lambda: attend(query, key, value)[0],
        "whole, heads one after the other": lambda: attend(*apart)[0],
    }
    for size in parts:
        if size < tokens:
            ways[f"parts of {size:,}"] = lambda n=size: attend_in_parts(query, key, value, n)[0]
    expected = ways["whole"]()
    far = {name: float((call() - expected).abs().max()) for name, call in ways.items()}
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, call in ways.items():
            took[name].append(once(call, device))
    operations = 4 * heads * tokens**2 * WIDTH
    for name, times in took.items():
        rate = operations / median(times) / 1e12
        print(
            f"{tokens:,} tokens, {name}: {median(times):.4g} s, {rate:.4g} TFLOP/s, "
            f"largest difference {far[name]:.1e} of at most {float(expected.abs().max()):.1e}",
            flush=True,
        )


def main(arguments: list[str]) -> int:
    """Reads the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[171_392, 261_120, 685_440])
    parser.add_argument("--parts", type=int, nargs="+", default=[131_072, 262_144])
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cpu", action="store_true", help="to try it")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() and not options.cpu else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {options.heads} heads of {WIDTH}")
    for tokens in options.tokens:
        measure(tokens, options.parts, options.heads, options.runs, device)
    return 0


if __name__ == "__main__":
    sys.exit(console.run(lambda: main(sys.argv[1:])))
