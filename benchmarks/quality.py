"""Whether what makes the embedded model fast changes its clips: their metrics before and after.

    python benchmarks/quality.py --clips 16
    python benchmarks/quality.py --clips 64 --resolution 1080p --json quality.json

Before: float32 and the plain code. After: the type that this machine computes in, and its fused
code. Both make the same held-out captions from the same noise; real clips of the same scenes stand
beside them, and HD-FVD compares all three with real clips of other scenes. `docs/metrics.md` says
what the numbers mean.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from ultragen.cli import console
from ultragen.evaluation.instruments import Instruments, load_instruments, measure
from ultragen.evaluation.metrics import fit_gaussian
from ultragen.evaluation.rows import REFERENCE as OTHER_SCENES
from ultragen.evaluation.rows import Maker, Row
from ultragen.evaluation.scores import RowScores, markdown_table, score_row
from ultragen.ops.dispatch import use
from ultragen.runs.loading import load_models
from ultragen.runs.request import Request
from ultragen.world.heldout import REFERENCE, HeldOutClip, held_out_clips

CLIP = Row("clip", "Clip", "ultragen")
TITLES = {"before": "Before", "after": "After", "real": "Real clips"}


@contextmanager
def way(name: str) -> Iterator[None]:
    """What is computed in, and with which code."""
    dtype = {"ULTRAGEN_DTYPE": "float32" if name == "before" else "auto"}
    with patch.dict(os.environ, dtype), use("plain") if name == "before" else nullcontext():
        yield


def load(options: argparse.Namespace) -> Maker:
    """Models in the type of the way that is in force."""
    models = load_models(options.model)
    request = Request(
        "any",
        options.resolution,
        num_frames=options.frames,
        num_inference_steps=options.steps,
        noise="independent",  # as in the tables so far
    )
    return Maker(lambda name: models, request)


def compare(
    options: argparse.Namespace,
) -> tuple[list[RowScores], dict[str, Any]]:
    """The rows, and what else a report names."""
    makers = {}
    for name in ("before", "after"):
        with way(name):
            makers[name] = load(options)
    models = makers["after"].models()
    instruments = load_instruments(models.source, options.classifier, device=models.device)
    scores: dict[str, list[Any]] = {name: [] for name in TITLES}
    apart = []
    for number, case in enumerate(held_out_clips(options.clips, edition=models.edition)):
        frames = {}
        for name, maker in makers.items():
            with way(name):
                [(frames[name], seconds)] = maker.make(CLIP, [(number, case)])
            scores[name].append(measure(frames[name], case, instruments, seconds))
        scores["real"].append(real(makers["after"], number, case, instruments))
        difference = frames["before"].astype(np.int16) - frames["after"]
        apart.append(float(np.abs(difference).mean()))
        print(f"{number + 1} of {options.clips}: {apart[-1]:.2f} steps of colour", flush=True)
    others = [
        real(makers["after"], number, case, instruments).features
        for number, case in enumerate(held_out_clips(options.clips, REFERENCE, models.edition))
    ]
    names = [network.name for network in instruments.tubes]
    reference = {name: fit_gaussian(torch.cat([x[name] for x in others])) for name in names}
    rows = [score_row(name, TITLES[name], scores[name], reference) for name in TITLES]
    return rows, {
        "steps_of_colour_apart": mean(apart),
        "dtypes": {name: maker.models().dtype for name, maker in makers.items()},
        "device": models.device,
        "torch": torch.__version__,
    }


def real(maker: Maker, number: int, case: HeldOutClip, instruments: Instruments) -> Any:
    """What the real clip of a scene gives."""
    [(frames, _)] = maker.make(OTHER_SCENES, [(number, case)])
    return measure(frames, case, instruments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--resolution", default="544p")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--classifier", type=Path, help="Without it the model's own.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    console.quiet_libraries()
    rows, about = compare(options)
    print(f"\n{options.clips} clips of {options.frames} frames at {options.resolution}; {about}\n")
    print(markdown_table(rows))
    if options.json:
        content = {**about, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
