"""Trains UltraGen on from a distilled model, distils it anew, and makes the tables of
docs/results.md, on one or several GPUs.

    python scripts/train_and_measure.py OUT [--gpus 0 1] [--start-from ultragen/embedded]

Every step is a command of `python -m ultragen`: it is printed, and what it says goes to OUT/logs.
The same call goes on where an earlier one was stopped. `--only train` and `--only measure` split
the work, `--dry-run` only prints it.

    OUT/model            what the stages leave
    OUT/teacher          the trained model, before its distillation
    OUT/pipeline         the distilled model, as `--model` takes it
    OUT/tables/NAME      table.md, results.json and contact_sheet.jpg of each table

With two GPUs the base model can be trained on beside UltraGen: `--base-minutes 5`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from time import perf_counter

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ultragen.cli.console import run  # noqa: E402
from ultragen.presets import EMBEDDED_MODEL  # noqa: E402

SHARED = ("vae", "text_encoder", "tokenizer", "upscaler", "classifier", "base_transformer")
"""Parts that the training takes from the model it starts from."""


@dataclass(frozen=True)
class Table:
    """A table of docs/results.md.

    Attributes:
        name: Of its folder.
        arguments: Of `evaluate`.
        batch: Clips that are denoised together.
        processes: That make its clips at once on each GPU.
    """

    name: str
    arguments: tuple[str, ...]
    batch: int
    processes: int


TABLES = (
    Table("table1-1080p", ("--set", "table1", "--resolution", "1080p"), 4, 4),
    Table("table1-544p", ("--set", "table1", "--resolution", "544p"), 8, 2),
    Table("table1-4k", ("--set", "table1", "--resolution", "4k"), 1, 1),
    Table("distillation-544p", ("--set", "distillation", "--resolution", "544p"), 8, 2),
)


class Work:
    """Steps that run as processes, and what of them is done.

    Args:
        out: Folder of everything.
        dry: Whether steps are only printed.
    """

    def __init__(self, out: Path, dry: bool = False) -> None:
        self.out, self.dry, self.began, self.lock = out, dry, perf_counter(), Lock()

    def step(self, name: str, command: Sequence[object], gpu: str = "", anew: bool = False) -> bool:
        """Runs `python -m ultragen COMMAND`, unless the same command is done.

        Args:
            name: Of the step's log and of its mark.
            command: What follows `python -m ultragen`.
            gpu: Number of the GPU that it sees; none of them without.
            anew: Runs it even so, because what it reads is new.

        Returns:
            Whether it ran.

        Raises:
            RuntimeError: It failed.
        """
        words = shlex.join(str(word) for word in command)
        mark, log = self.out / "done" / name, self.out / "logs" / f"{name}.log"
        if not anew and mark.exists() and mark.read_text(encoding="utf-8") == words:
            return False
        with self.lock:
            seconds = perf_counter() - self.began
            shown = f"CUDA_VISIBLE_DEVICES={gpu} python -m ultragen {words}"
            print(f"{seconds:7.0f} s  {shown}", flush=True)
        if self.dry:
            return True
        mark.unlink(missing_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu, "PYTHONPATH": path}
        with log.open("a", encoding="utf-8") as said:
            ended = subprocess.run(
                [sys.executable, "-m", "ultragen", *shlex.split(words)],
                env=environment,
                stdout=said,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if ended.returncode:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"{name} failed: {' '.join(last)} ({log})")
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(words, encoding="utf-8")
        return True

    def at_once(self, calls: Sequence[Callable[[], bool]], processes: int = 64) -> bool:
        """Makes so many of the calls at the same time, and tells whether one of them had anything
        to do; the first failure is raised when all have ended."""
        with ThreadPoolExecutor(processes) as pool:
            return any([future.result() for future in [pool.submit(call) for call in calls]])


def train(work: Work, options: argparse.Namespace) -> None:
    """UltraGen and its distillation, the base model's beside them if asked for, and what becomes of
    their weights."""
    start, model, tiny = options.start_from, work.out / "model", ["--tiny"] * options.tiny
    if not (start / "model_index.json").is_file():
        raise ValueError(f"{start} is no pipeline's folder: choose another --start-from.")
    if not work.dry:
        for part in SHARED:
            if not (model / part).is_dir():
                shutil.copytree(start / part, model / part)
        if not options.base_minutes:  # the one that is there is a student already
            kept = model / "distilled" / "base_transformer"
            shutil.copytree(start / "base_transformer", kept, dirs_exist_ok=True)
    common = ["--out", work.out, "--seed", options.seed, *tiny]
    learnt = ["--teacher-guidance", options.teacher_guidance]
    on = ["--start-from", start]

    def native() -> bool:
        gpu, minutes = options.gpus[0], ["--minutes", options.minutes]
        share = ["--render-share", 0.25]
        anew = work.step("ultragen", ["train", "ultragen", *on, *minutes, *share, *common], gpu)
        minutes = ["--minutes", options.distill_minutes]
        return work.step("distill", ["train", "distill", *learnt, *minutes, *common], gpu, anew)

    def base() -> bool:
        gpu, minutes = options.gpus[-1], ["--minutes", options.base_minutes]
        how = ["--freeze-text", "--render-share", 0.35]
        anew = work.step("base", ["train", "base", *on, *minutes, *how, *common], gpu)
        minutes = ["--minutes", options.base_distill_minutes]
        command = ["train", "base-distill", *learnt, *minutes, *common]
        return work.step("base-distill", command, gpu, anew)

    chains = [base, native] if options.base_minutes else [native]
    anew = work.at_once(chains, processes=len(options.gpus))
    assembled = ["assemble", model]
    done = ["--overwrite", *tiny]
    work.step("assemble", [*assembled, work.out / "pipeline", *done], anew=anew)
    teacher = [*assembled, work.out / "teacher", "--undistilled", *done]
    work.step("assemble-teacher", teacher, anew=anew)


def measure(work: Work, options: argparse.Namespace) -> None:
    """All tables: their clips by several processes on each GPU at once, then their scores."""
    clips: list[Callable[[], bool]] = []
    scores: list[Callable[[], bool]] = []
    for place, table in enumerate(table for table in TABLES if table.name in options.tables):
        number = options.clips_4k if "4k" in table.arguments else options.clips
        command = ["evaluate", *table.arguments, "--clips", number, "--batch", table.batch]
        command += ["--model", work.out / "pipeline", "--out", work.out / "tables" / table.name]
        command += ["--features", "classifier", "--features", "imagenet"]
        if "distillation" in table.arguments:
            command += ["--teacher", work.out / "teacher"]
        if options.tiny:
            command += ["--frames", 5, "--steps", 1]
        count = table.processes * len(options.gpus)
        for shard in range(count):
            gpu, part = options.gpus[shard % len(options.gpus)], f"{shard + 1}/{count}"
            name = f"{table.name}-{shard + 1}-of-{count}"
            clips.append(_later(work, name, [*command, "--shard", part], gpu))
        gpu = options.gpus[place % len(options.gpus)]
        scores.append(_later(work, table.name, command, gpu))
    work.at_once(clips)
    work.at_once(scores)


def _later(work: Work, name: str, command: list[object], gpu: str) -> Callable[[], bool]:
    return lambda: work.step(name, command, gpu)


def read_options(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    names = [table.name for table in TABLES]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--gpus", nargs="+", default=["0"], help="numbers; '' computes on the CPU")
    parser.add_argument("--start-from", type=Path, default=EMBEDDED_MODEL)
    parser.add_argument("--minutes", type=float, default=10, help="of UltraGen's training")
    parser.add_argument("--distill-minutes", type=float, default=8)
    parser.add_argument("--base-minutes", type=float, default=0, help="0 leaves the base model")
    parser.add_argument("--base-distill-minutes", type=float, default=4)
    parser.add_argument("--teacher-guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=256, help="a row at 544p and 1080p")
    parser.add_argument("--clips-4k", type=int, default=16)
    parser.add_argument("--tables", nargs="+", choices=names, default=names)
    parser.add_argument("--only", choices=("train", "measure"))
    parser.add_argument("--dry-run", action="store_true", help="print the steps")
    parser.add_argument("--tiny", action="store_true", help="toys, to try the steps")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Reads the command line; returns the exit code."""
    options = read_options(arguments)
    work = Work(options.out.resolve(), options.dry_run)

    def follow() -> None:
        if options.only != "measure":
            train(work, options)
        if options.only != "train":
            measure(work, options)
            print(f"Tables: {work.out / 'tables'}")

    return run(follow)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
