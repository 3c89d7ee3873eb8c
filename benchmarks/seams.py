"""Seams: how far the sky jumps where windows meet, beside how far it jumps elsewhere.

    python benchmarks/seams.py --clips 20
    python benchmarks/seams.py --clips 20 --resolution 544p --frames 5 --json seams.json

What a border's rank is, `ultragen/evaluation/seams.py` says: 0.5 where it is like the others. Real
clips of the same captions have no windows, and tell how far the numbers vary by chance.

Rows differ in `window_motion`, see `UltraGenPipeline`. The shipped model was not trained with
windows that move.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ultragen.cli import console
from ultragen.evaluation.rows import Maker, Row
from ultragen.evaluation.seams import FIRST, borders_of, jumps, ranks
from ultragen.runs.loading import load_models
from ultragen.runs.request import Request
from ultragen.world.heldout import held_out_clips

CLIP = Row("clip", "Clip", "ultragen")
TITLES = {
    "none": "Windows at rest",
    "alternate": "Windows moved in every second step",
    "real": "Real clips",
}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Ranks of each border, for each row the mean over its clips, and where windows meet."""
    models = load_models(options.model)
    request = Request(
        "any",
        options.resolution,
        num_frames=options.frames,
        num_inference_steps=options.steps,
        noise="independent",  # as in the tables so far
    )
    maker = Maker(lambda name: models, request)
    size, transformer = maker.request.size, models.native.transformer
    token = models.preset.pixels_per_token
    height, width = size.height // token, size.width // token
    windows = transformer.resolve_windows("auto", height, width)
    meet = {
        kind: borders_of(transformer.rule.partition(height, width, windows, odd))
        for kind, odd in (("even", False), ("odd", True))
    }
    rows: dict[str, list[np.ndarray]] = {name: [] for name in TITLES}
    for number, case in enumerate(held_out_clips(options.clips, edition=models.edition)):
        for name, found in rows.items():
            if name == "real":
                frames = case.frames(size.height, size.width, options.frames, models.device)
            else:
                models.native.register_to_config(window_motion=name)
                [(frames, _)] = maker.make(CLIP, [(number, case)])
            found.append(jumps(frames, token))
        print(f"{number + 1} of {options.clips}: {case.caption}", file=sys.stderr, flush=True)
    return {
        "command": "python benchmarks/seams.py " + " ".join(options.given),
        "resolution": options.resolution,
        "frames": options.frames,
        "clips": options.clips,
        "windows": windows,
        "meet": meet,
        "first": FIRST,
        "ranks": {name: ranks(np.array(found)).mean(0).tolist() for name, found in rows.items()},
    }


def markdown(found: dict[str, Any]) -> str:
    """The table: a row's mean over the borders of even layers, odd layers and no layers, and the
    highest one."""
    lines = [
        "| | even layers | odd layers | elsewhere | highest |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for name, values in found["ranks"].items():
        border = dict(enumerate(values, found["first"]))
        kinds = [
            [border[b] for b in found["meet"][kind] if b in border] for kind in ("even", "odd")
        ]
        known = {b for borders in found["meet"].values() for b in borders}
        kinds.append([value for b, value in border.items() if b not in known])
        largest = max(border, key=lambda b: border[b])
        cells = [f"{np.mean(kind):.2f}" if kind else "–" for kind in kinds]
        cells.append(f"{border[largest]:.2f} at column {largest}")
        lines.append(f"| {TITLES[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Reads the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--resolution", default="1080p")
    parser.add_argument("--frames", type=int, default=1, help="Of each clip, 4n + 1.")
    parser.add_argument("--steps", type=int, help="Of denoising; the model's own by default.")
    parser.add_argument("--model", help="A pipeline's folder; the shipped one by default.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    options.given, options.model = arguments, options.model or "embedded"
    found = measure(options)
    print(markdown(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(console.run(lambda: main(sys.argv[1:])))
