"""What the 1.3B model takes of a GPU: memory, the longest clips, whole runs, units of work.

    python scripts/make_random_wan.py models/random --jobs 4
    python benchmarks/hardware.py --json hardware.json --wan models/random/wan \
        --ultragen models/random/ultragen_1080p.ckpt
    python benchmarks/hardware.py --render hardware.json

Weights are random, in the true shapes: what they cost does not depend on their values. The JSON
file is written after every measurement; the same command goes on where it was stopped. `--render`
puts the tables into docs/hardware.md.

Part          what it measures                                              seconds on an H100
tokens        memory of a forward pass at several sizes                     20
memory        peaks of the whole pipeline by stage, whole and in turn       150
frames        the longest clips that cards of 24, 48 and 80 GB take         150
runs          prompt to MP4 by the command line: 1080p, then 4K             330 and 560
dense         the same by diffusers' own WanPipeline, one or two steps      130 and 180
coefficients  what a unit of work costs, for both models                    350

`runs`, `dense` and `coefficients` read files, the others build their weights on the GPU. `--clip`
and `--only` split the work; `--steps` shortens the runs, and the tables then say so.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
from hardware_frames import measure_frames
from hardware_memory import measure_memory, measure_tokens
from hardware_plan import CLIPS, TINY, TRUE, Files, Plan
from hardware_results import Results
from hardware_runs import measure_coefficients, measure_dense, measure_runs
from hardware_tables import DOC, render

from ultragen.benchmark.bench import free_memory, what_failed
from ultragen.cli import console
from ultragen.hardware import let_segments_grow

PARTS = ("tokens", "memory", "frames", "runs", "dense", "coefficients")
NEED_FILES = ("runs", "dense", "coefficients")


def measure(part: str, plan: Plan, results: Results, clips: list[str], files: Files | None) -> bool:
    """Measures one part and returns whether all went well: what fails is said, and another part
    may not."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if part == "tokens":
            measure_tokens(plan, results, device)
        elif part == "memory":
            measure_memory(plan, results, device, clips)
        elif part == "frames":
            measure_frames(plan, results, device)
        elif files is None:  # the options were checked
            raise ValueError(f"The part '{part}' reads files: give --wan and --ultragen.")
        elif part == "coefficients":
            measure_coefficients(plan, results, files)
        else:
            (measure_runs if part == "runs" else measure_dense)(plan, results, clips, files)
    except Exception as error:
        traceback.print_exc()
        print(f"Left out: {part}: {what_failed(error)}", file=sys.stderr, flush=True)
        return False
    return True


def read_options(arguments: list[str]) -> argparse.Namespace:
    """The command line.

    Raises:
        ValueError: for a combination that can't work.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file of all results, which are added to")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--clip", nargs="+", choices=CLIPS, default=list(CLIPS))
    parser.add_argument("--wan", type=Path, help="the base model's folder")
    parser.add_argument("--ultragen", type=Path, help="the UltraGen weights")
    parser.add_argument("--steps", type=int, help="of the runs")
    parser.add_argument("--again", action="store_true", help="measure anew what is there")
    parser.add_argument("--tiny", action="store_true", help="toys, on any machine")
    parser.add_argument("--render", type=Path, nargs="+", help="results to put into the document")
    parser.add_argument("--markdown", type=Path, default=DOC, help="the document")
    options = parser.parse_args(arguments)
    missing = [part for part in options.only if part in NEED_FILES]
    if missing and not options.render and not (options.wan and options.ultragen):
        raise ValueError(
            f"{', '.join(missing)} need files: give --wan and --ultragen, as "
            "scripts/make_random_wan.py writes them, or choose other parts with --only."
        )
    return options


def main(arguments: list[str]) -> int:
    """Measures what is asked for, or renders what was measured; returns the exit code."""
    options = read_options(arguments)
    if options.render:
        render(options.render, options.markdown)
        print(f"Written: {options.markdown}")
        return 0
    console.quiet_libraries()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        let_segments_grow()  # as the program does
    results = Results(options.json, device, options.again)
    plan = TINY if options.tiny else TRUE
    plan = replace(plan, steps=options.steps or plan.steps)
    files = Files(options.wan, options.ultragen) if options.wan and options.ultragen else None
    for part in options.only:
        results.check(part)
    failed = False
    for part in options.only:
        began = perf_counter()
        failed |= not measure(part, plan, results, options.clip, files)
        free_memory()  # here the traceback, which keeps models alive, is gone
        print(f"{part}: {perf_counter() - began:.0f} s", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(console.run(lambda: main(sys.argv[1:])))
