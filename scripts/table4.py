"""Trains the rows of the paper's Table 4 in miniature and measures them.

    python scripts/table4.py OUT [--gpus 0 1] [--start-from ultragen/embedded]

All rows start from the same base model and get the same minutes; in the same step all see the same
clips with the same noise (`train ultragen --render-every`), a faster row more of them. Without
`--distill-minutes` no row is distilled, with them all are, alike. When the first seed's tables are
there, the full model and the two rows whose HD-FVD is closest to its (through ImageNet's network,
at the first resolution) are trained from other seeds too; `--repeat` names other rows.

Every step is a command of `python -m ultragen`: it is printed, and what it says goes to OUT/logs.
The same call goes on where an earlier one was stopped; a training that is stopped on its way sees
other clips from there on than other rows do. `--only train` and `--only measure` split the work,
`--dry-run` only prints it.

    OUT/base                      the base model, trained on
    OUT/training/seed-0/ROW       what the stages leave
    OUT/models/seed-0/ROW         a pipeline for each row
    OUT/tables/1080p-seed-0       table.md, results.json and contact_sheet.jpg
    OUT/table4.md                 all seeds beside the paper's numbers
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

from train_and_measure import SHARED, Work

from ultragen.cli.console import run
from ultragen.evaluation.rows import SETS
from ultragen.evaluation.scores import MISSING, Estimate, number, percent
from ultragen.files import write_text
from ultragen.presets import EMBEDDED_MODEL
from ultragen.training.stage_order import edition_of

FULL = "full"
ROWS: dict[str, tuple[object, ...]] = {
    FULL: (),
    "without-global": ("--without", "global"),
    "without-crossing": ("--crossing", "none"),
    "without-hierarchical": ("--without", "hierarchical"),
    "without-lora": ("--lora-rank", 0),
    "swin": ("--crossing", "shift"),
}
"""Rows of the table, and what `train ultragen` is told for each."""
PAPER = {
    FULL: (214.12, 0.2654),
    "without-global": (328.98, 0.2302),
    "without-crossing": (419.15, 0.2488),
    "without-hierarchical": (376.49, 0.2581),
    "without-lora": (284.08, 0.2603),
    "swin": (458.93, 0.2548),
}
"""HD-FVD and CLIP score of the paper's Table 4 (arXiv 2510.18775), at 1080p."""
CLOSEST = 2
TITLES = {row.key: row.title for row in SETS["table4"]}
BATCHES = {"544p": (8, 2), "1080p": (4, 4), "4k": (1, 1)}
"""Clips that are denoised together, and processes that make clips at once on each GPU."""


def train_base(work: Work, options: argparse.Namespace) -> None:
    """The base model of all rows, trained on without its distillation.

    Raises:
        ValueError: It is another one now than rows have started from.
    """
    command = ["train", "base", "--start-from", options.start_from, "--freeze-text"]
    command += ["--minutes", options.base_minutes, "--out", work.out / "base"]
    command += shared(options, options.seed)
    started = (work.out / "training").exists()
    if work.step("base", command, options.gpus[0]) and started and not work.dry:
        raise ValueError(
            f"The base model in {work.out} has changed, and there are rows that started from it as "
            "it was: choose another OUT."
        )


def shared(options: argparse.Namespace, seed: int) -> list[object]:
    """What all trainings are told."""
    return ["--seed", seed, "--edition", options.edition, *["--tiny"] * options.tiny]


def train_rows(work: Work, options: argparse.Namespace, seed: int, rows: Sequence[str]) -> None:
    """Trains rows from one seed, as many at once as there are GPUs, and puts them together."""
    free: Queue[str] = Queue()
    for gpu in options.gpus:
        free.put(gpu)

    def train_one(row: str) -> bool:
        gpu = free.get()
        try:
            return train_row(work, options, seed, row, gpu)
        finally:
            free.put(gpu)

    work.at_once([partial(train_one, row) for row in rows], len(options.gpus))


def train_row(work: Work, options: argparse.Namespace, seed: int, row: str, gpu: str) -> bool:
    """One row: UltraGen, its distillation if asked for, and the pipeline of both."""
    out, name = work.out / "training" / f"seed-{seed}" / row, f"{row}-seed-{seed}"
    common = ["--out", out, *shared(options, seed)]
    if not work.dry:
        bring_parts(work, options, out / "model")
    command = ["train", "ultragen", *ROWS[row], "--minutes", options.minutes]
    command += ["--render-every", options.render_every, *common]
    anew = work.step(f"ultragen-{name}", command, gpu)
    if options.distill_minutes:
        command = ["train", "distill", "--teacher-guidance", options.teacher_guidance]
        command += ["--minutes", options.distill_minutes, *common]
        anew = work.step(f"distill-{name}", command, gpu, anew)
    pipeline = work.out / "models" / f"seed-{seed}" / row
    command = ["assemble", out / "model", pipeline, "--overwrite", *["--tiny"] * options.tiny]
    return work.step(f"assemble-{name}", command, anew=anew)


def bring_parts(work: Work, options: argparse.Namespace, model: Path) -> None:
    """Copies what a row starts from: there is no transformer, so that the base is converted."""
    for part in SHARED:
        trained = work.out / "base" / "model" / part
        source = trained if options.base_minutes and part == "base_transformer" else None
        if not (model / part).is_dir():
            shutil.copytree(source or options.start_from / part, model / part)
    student = model / "distilled" / "base_transformer"  # `assemble` takes both or none
    if options.distill_minutes and not student.is_dir():
        shutil.copytree(options.start_from / "base_transformer", student)


def measure(work: Work, options: argparse.Namespace, seed: int) -> None:
    """A seed's table at each resolution: the clips by several processes, then the scores."""
    clips: list[Callable[[], bool]] = []
    scores: list[Callable[[], bool]] = []
    for place, resolution in enumerate(options.resolutions):
        batch, processes = BATCHES[resolution]
        name, models = f"{resolution}-seed-{seed}", work.out / "models" / f"seed-{seed}"
        command = ["evaluate", "--set", "table4", "--models", models, "--resolution", resolution]
        command += ["--clips", options.clips, "--batch", batch, "--edition", options.edition]
        command += ["--features", "classifier", "--features", "imagenet"]
        command += ["--out", work.out / "tables" / name]
        command += ["--frames", 5] if options.tiny else []
        if not options.distill_minutes:  # students bring their own
            steps = 1 if options.tiny else options.steps
            command += ["--steps", steps, "--guidance", options.guidance]
        count = processes * len(options.gpus)
        for shard in range(count):
            part = [*command, "--shard", f"{shard + 1}/{count}"]
            gpu = options.gpus[shard % len(options.gpus)]
            clips.append(later(work, f"{name}-{shard + 1}-of-{count}", part, gpu))
        scores.append(later(work, name, command, options.gpus[place % len(options.gpus)]))
    work.at_once(clips)
    work.at_once(scores)


def later(work: Work, name: str, command: list[object], gpu: str) -> Callable[[], bool]:
    """A step to run when it is called."""
    return lambda: work.step(name, command, gpu)


def read_rows(work: Work, resolution: str, seed: int) -> dict[str, dict[str, Any]]:
    """A table's rows by their keys; none where it is not there yet."""
    path = work.out / "tables" / f"{resolution}-seed-{seed}" / "results.json"
    if not path.exists():
        return {}
    return {row["key"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}


def rows_to_repeat(work: Work, options: argparse.Namespace) -> tuple[str, ...]:
    """The rows that are trained from other seeds too: full and those closest to it; none as long
    as they are not known."""
    if options.repeat is not None:
        return tuple(dict.fromkeys((FULL, *options.repeat)))
    found = read_rows(work, options.resolutions[0], options.seed)
    others = [row for row in options.rows if row != FULL and row in found]
    if not others:
        return ()

    def far(row: str) -> float:
        # The last network is ImageNet's, which was not trained on this world.
        own, full = (list(found[key]["hd_fvd"].values())[-1]["value"] for key in (row, FULL))
        return abs(own - full)

    return (FULL, *sorted(others, key=far)[:CLOSEST])


def summary(work: Work, options: argparse.Namespace) -> str:
    """All rows and seeds at each resolution, and the paper's numbers."""
    text = ""
    for resolution in options.resolutions:
        seeds = range(options.seed, options.seed + options.seeds)
        tables = {seed: read_rows(work, resolution, seed) for seed in seeds}
        lines = [
            line(row, seed, rows[row])
            for row in TITLES
            for seed, rows in tables.items()
            if row in rows and (row in ROWS or seed == options.seed)  # real clips once
        ]
        networks = [name for rows in tables.values() for row in rows.values()
                    for name in row["hd_fvd"]]  # fmt: skip
        head = ["", "seed", *(f"HD-FVD ↓ ({name})" for name in dict.fromkeys(networks))]
        head += ["prompt ↑", "seams ↓", "horizons", "HD-MSE", "s a clip", "paper: HD-FVD ↓, CLIP ↑"]
        marks = ["---", *["---:"] * (len(head) - 1)]
        cells = "".join(f"| {' | '.join(each)} |\n" for each in (head, marks, *lines))
        text += f"## {resolution}\n\n{cells}\n"
    return text


def line(key: str, seed: int, row: dict[str, Any]) -> list[str]:
    """A row's cells."""

    def estimate(name: str) -> Estimate | None:
        return Estimate(**row[name]) if row[name] else None

    paper = PAPER.get(key)
    return [
        TITLES[key],
        str(seed),
        *(number(Estimate(**value), 1) for value in row["hd_fvd"].values()),
        percent(estimate("following")),
        number(estimate("seams"), 2),
        number(estimate("horizons"), 2),
        number(estimate("hd_mse"), 1),
        MISSING if row["seconds"] is None else f"{row['seconds']:.2f}",
        f"{paper[0]:.1f}, {paper[1]:.4f}" if paper else MISSING,
    ]


def read_options(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--gpus", nargs="+", default=["0"], help="numbers; '' computes on the CPU")
    parser.add_argument("--start-from", type=Path, default=EMBEDDED_MODEL)
    parser.add_argument(
        "--base-minutes",
        type=float,
        default=5,
        help="of the base model, which is distilled in the shipped weights; 0 takes it as it is",
    )
    parser.add_argument("--minutes", type=float, default=10, help="of each row's training")
    parser.add_argument("--render-every", type=int, default=4, help="steps with a kind of clip")
    parser.add_argument("--steps", type=int, default=30, help="of sampling, of undistilled rows")
    parser.add_argument("--guidance", type=float, default=3.0, help="of undistilled rows")
    parser.add_argument("--distill-minutes", type=float, default=0, help="0 distils no row")
    parser.add_argument("--teacher-guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--seeds", type=int, default=2, help="of full and those closest")
    parser.add_argument("--edition", type=int, help="of the world, if not that of the weights")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--repeat", nargs="+", choices=list(ROWS), help="in place of the closest")
    parser.add_argument("--clips", type=int, default=256, help="a row")
    parser.add_argument(
        "--resolutions", nargs="+", choices=list(BATCHES), default=["1080p", "544p"]
    )
    parser.add_argument("--only", choices=("train", "measure"))
    parser.add_argument("--dry-run", action="store_true", help="print the steps")
    parser.add_argument("--tiny", action="store_true", help="toys, to try the steps")
    return parser.parse_args(arguments)


def follow(options: argparse.Namespace) -> None:
    """All steps in their order."""
    if not (options.start_from / "model_index.json").is_file():
        raise ValueError(
            f"{options.start_from} is no pipeline's folder: choose another --start-from."
        )
    if FULL not in options.rows:
        raise ValueError(f"--rows needs {FULL}, which all others are compared with.")
    if options.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, not {options.seeds}.")
    options.edition = options.edition or edition_of(options.out / "base", options.start_from)
    work = Work(options.out.resolve(), options.dry_run)
    if options.only != "measure" and options.base_minutes:
        train_base(work, options)
    for seed in range(options.seed, options.seed + options.seeds):
        rows = options.rows if seed == options.seed else rows_to_repeat(work, options)
        if not rows:
            print(
                f"Seed {seed}: {FULL} and the {CLOSEST} rows closest to it, which the tables of "
                f"seed {options.seed} will tell.",
                flush=True,
            )
            continue
        if options.only != "measure":
            train_rows(work, options, seed, rows)
        if options.only != "train":
            measure(work, options, seed)
    if options.only != "train" and not work.dry:
        write_text(work.out / "table4.md", summary(work, options))
        print(f"Written: {work.out / 'table4.md'}, {work.out / 'tables'}")


def main(arguments: list[str]) -> int:
    """Reads the command line; returns the exit code."""
    options = read_options(arguments)
    return run(lambda: follow(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
