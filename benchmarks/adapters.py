"""What LoRAs cost in a forward pass of the 1.3B model, in one run on one GPU.

    python benchmarks/adapters.py --json adapters.json
    python benchmarks/adapters.py --tiny

With random weights, in the layouts `auto` (the paper's) and `released`: without an adapter, with
one and with two of rank 32 in all linear layers of the blocks, and with one of rank 128, in turn.
A merged LoRA is the model without one. `--tiny` runs a toy on any machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from ultragen.benchmark.bench import free_memory, once
from ultragen.benchmark.cases import CASES, VARIANTS, Case, Variant, arguments, build
from ultragen.benchmark.machine import card_name, default_dtype
from ultragen.ops.dispatch import prepare
from ultragen.training.trained_parts import adapter_config
from ultragen.training.wan_options import LoraOptions
from ultragen.weights.released import cast_weights

LAYOUTS = ("auto", "released")
RANKS = {"none": (), "rank 32": (32,), "two of rank 32": (32, 32), "rank 128": (128,)}
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
Row = dict[str, Any]


def with_adapters(model: nn.Module, ranks: tuple[int, ...], dtype: torch.dtype) -> nn.Module:
    """A copy with an adapter of each rank, all of them at full strength."""
    named = {
        f"number{i}": adapter_config(model, LoraOptions(rank=rank, targets=LAYERS))
        for i, rank in enumerate(ranks)
    }
    model = deepcopy(model)
    for name, config in named.items():
        model.add_adapter(config, name)
    if named:
        model.set_adapters(list(named))
    return cast_weights(model, dtype).eval()


@torch.no_grad()
def passes(case: Case, variant: Variant, repeats: int, device: str) -> Iterator[Row]:
    """Seconds of one layout's forward pass by the adapters that it has, in turn."""
    dtype = default_dtype(device)
    torch.manual_seed(0)
    plain = build(case.family, variant, device, dtype)
    models = {name: with_adapters(plain, ranks, dtype) for name, ranks in RANKS.items()}
    given = arguments(case, variant, device, dtype)
    calls = {name: partial(model, **given) for name, model in models.items()}
    for call in calls.values():
        call()
    took: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            took[name].append(once(call, device))
    without = median(took["none"])
    for name, seconds in took.items():
        found = median(seconds)
        yield {
            "case": case.name,
            "layout": variant.name,
            "adapters": name,
            "seconds": found,
            "times": found / without,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="Of which the median counts.")
    parser.add_argument("--tiny", action="store_true", help="A toy, on any machine.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        parser.error("this needs a GPU: choose --tiny to try it elsewhere.")
    heading = f"{card_name(device)}, torch {torch.__version__}"
    print(heading, flush=True)
    prepare(torch.device(device))
    case = CASES["tiny" if options.tiny else "1088x1920x81"]
    rows: list[Row] = []
    for variant in VARIANTS[case.family]:
        if variant.name not in LAYOUTS:
            continue
        for row in passes(case, variant, options.repeats, device):
            rows.append(row)
            print(json.dumps(row), flush=True)
        if options.json:
            text = json.dumps({"heading": heading, "rows": rows}, indent=1) + "\n"
            options.json.write_text(text, encoding="utf-8")
        free_memory()


if __name__ == "__main__":
    main()
