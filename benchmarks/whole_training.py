"""The whole way of a training at the true sizes: 4K MP4 files → latents → steps at 1088×1920×81,
killed with SIGKILL → resumed → exported → a clip; and the same steps on one GPU and on several.

    python benchmarks/whole_training.py --work work --json whole_training.json
    python benchmarks/whole_training.py --work work --gpus 2 --steps 8 --clips 2 --only several-gpus
    python benchmarks/whole_training.py --work work --tiny --gpus 2

Weights are random: the transformer and the autoencoder of Wan2.1-T2V-1.3B in their true sizes, the
text encoder in its true width with one layer and 128 words. Everything that the package has a
command for is done by that command, in a process of its own, as people do it: `dataset`, `train
wan`, `accelerate launch`. MP4 files are written by PyAV, from frames of the renderer and, for the
clip at the end, of `UltraGenPipeline`.

Needs one GPU of 60 GB, or those of `--gpus`, 64 GB of disk, no network, and neither moviepy nor
ffmpeg. Each stage leaves its results in the work folder, where the next run finds them and leaves
the stage out; stages that another one needs are run before it. The first two steps of a process
also build kernels, and are left out of the seconds. `--tiny` does the same with toys on a CPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, time

import numpy as np
import torch
from whole_training_commands import Output, at_step, clip_size, folder_bytes, run, write_clip
from whole_training_table import Results, rows

from ultragen.benchmark.machine import card_name, default_dtype
from ultragen.dataset.shard_files import TEXT
from ultragen.pictures import to_frames
from ultragen.pipeline import UltraGenPipeline
from ultragen.presets import WAN
from ultragen.world.captions import caption
from ultragen.world.renderer import render
from ultragen.world.scene import Scene, sample_scene

RANDOM_WEIGHTS = Path(__file__).parents[1] / "scripts" / "make_random_wan.py"
PROMPT = "a calm lake under snowy mountains at sunset"
STEPS = {"training": 20, "several-gpus": 8}
WARM_UP = 2  # steps of a process that also build kernels
LOST = 3  # steps after the checkpoint at which the training is killed
RENDERED = 8  # frames at once: in float32, at 4K, 0.8 GB and what they are drawn from


@dataclass(frozen=True)
class Plan:
    """Sizes.

    Attributes:
        weights: A size of the script that makes weights.
        parts: What that is.
        rows: Of the MP4 files.
        columns: Of them.
        bucket: Rows, columns and frames that are trained.
        sampling_steps: Of the clip at the end.
    """

    weights: str
    parts: str
    rows: int
    columns: int
    bucket: tuple[int, int, int]
    sampling_steps: int


TRUE = Plan(
    "short-text",
    "transformer and autoencoder of the true size, a text encoder of one layer and 128 words",
    2160, 3840, (1088, 1920, 81), 4,
)  # fmt: skip
TINY = Plan("tiny", "toys", 192, 320, (96, 160, 9), 2)


class WholeTraining:
    """The stages, each of which returns what it measured.

    Args:
        work: Where everything lies.
        plan: The sizes.
        clips: MP4 files.
        steps: Of a training; None takes those of `STEPS`.
        gpus: Most processes of a training.
        environment: Of the commands; None for this process's.
        label: Before each line that a command prints.
    """

    def __init__(
        self,
        work: Path,
        plan: Plan,
        clips: int,
        steps: int | None = None,
        gpus: int = 1,
        environment: Mapping[str, str] | None = None,
        label: str = "",
    ) -> None:
        self.work, self.plan, self.clips, self.steps = work, plan, clips, steps
        self.gpus, self.environment, self.label = gpus, environment, label
        self.base = work / "weights" / "wan"
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def weights(self) -> Results:
        out = self.cleared("weights")
        words = (RANDOM_WEIGHTS, out, "--size", self.plan.weights, "--jobs", 4, "--base-only")
        return {"seconds": self.run(words).seconds, "bytes": folder_bytes(out)}

    def mp4_files(self) -> Results:
        """Renders clips, with captions beside them."""
        out = self.cleared("clips")
        out.mkdir()
        began = perf_counter()
        for seed in range(self.clips):
            scene = sample_scene(seed)
            write_clip(self.frames(scene), out / f"{seed}.mp4", WAN.fps)
            (out / f"{seed}.txt").write_text(caption(scene, seed=seed), encoding="utf-8")
            print(f"{out / f'{seed}.mp4'}: {perf_counter() - began:.1f} s", flush=True)
        seconds = perf_counter() - began
        if self.device == "cuda":
            torch.cuda.empty_cache()  # for the commands
        size = f"{self.plan.rows}x{self.plan.columns}x{self.plan.bucket[2]}"
        return {"seconds": seconds, "clips": self.clips, "size": size, "bytes": folder_bytes(out)}

    def frames(self, scene: Scene) -> Iterator[np.ndarray]:
        frames = self.plan.bucket[2]
        for first in range(0, frames, RENDERED):
            chosen = range(first, min(first + RENDERED, frames))
            yield from to_frames(
                render(
                    [scene], self.plan.rows, self.plan.columns, frames, chosen=chosen,
                    device=self.device,
                )[0]
            )  # fmt: skip

    def dataset(self) -> Results:
        out, bucket = self.cleared("latents"), "x".join(map(str, self.plan.bucket))
        words = ("-m", "ultragen", "dataset", self.work / "clips", "--out", out)
        began = time()
        output = self.run((*words, "--base", self.base, "--bucket", bucket))
        taken = f"{self.clips}  {bucket}"
        if not any(taken in line for _, line in output.lines):
            raise RuntimeError(f"Not all clips were taken: {taken!r} is missing.")
        captions = max(path.stat().st_mtime for path in (out / TEXT).iterdir()) - began
        return {
            "seconds": output.seconds,
            "captions_seconds": captions,
            "clips_seconds": output.seconds - captions,
            "clips": self.clips,
            "bytes": folder_bytes(out),
        }

    def training(self) -> Results:
        """Trains until a checkpoint and some steps more, kills it, and lets the same command go
        on to the end."""
        out, steps = self.cleared("training"), self.steps or STEPS["training"]
        checkpoint = 2 * steps // 5
        command = self.command(out, steps)
        first = self.run((*command, "--checkpoint-every", checkpoint), at_step(checkpoint + LOST))
        second = self.run(command)  # which saves at its end alone
        (at, resumed), before, after = second.resumed(), first.steps(), second.steps()
        if at != checkpoint or list(after) != list(range(at + 1, steps + 1)):
            raise RuntimeError(f"After a checkpoint at {checkpoint} came the steps {list(after)}.")
        saved, again = first.saved()[checkpoint], before.keys() & after.keys()
        return {
            "seconds": first.seconds + second.seconds,
            "first_step_seconds": before[1]["at"],
            **figures_of(first, second),
            "checkpoint_step": at,
            "checkpoint_seconds": saved["checkpoint"],
            "checkpoint_bytes": folder_bytes(out / "checkpoint"),
            "export_seconds": saved["export"],
            "export_bytes": folder_bytes(out / "export"),
            "killed_after_step": max(before),
            "resumed_seconds": resumed,
            "first_resumed_step_seconds": after[at + 1]["at"],
            "last_step": max(after),
            "losses_again": {n: [before[n]["loss"], after[n]["loss"]] for n in sorted(again)},
        }

    def clip(self) -> Results:
        """Makes a clip of what was trained."""
        height, width, num_frames = self.plan.bucket
        out, began = self.work / "clip.mp4", perf_counter()
        pipe = UltraGenPipeline.from_wan(
            self.base, self.work / "training" / "export", default_dtype(self.device)
        ).to(self.device)
        loaded = perf_counter()
        video = pipe(
            PROMPT,
            height=height,
            width=width,
            num_frames=num_frames,
            num_inference_steps=self.plan.sampling_steps,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).frames[0]
        made = perf_counter()
        write_clip(to_frames(video.transpose(0, 1)), out, WAN.fps)
        print(f"{out}: {perf_counter() - began:.1f} s", flush=True)
        return {
            "loading_seconds": loaded - began,
            "seconds": made - loaded,
            "steps": self.plan.sampling_steps,
            "size": clip_size(out),
            "bytes": out.stat().st_size,
        }

    def several_gpus(self) -> Results:
        """The same steps with one process, and with two, four, ... to all GPUs."""
        counts = [2**power for power in range(self.gpus.bit_length())]
        return {"processes": {str(count): self.trained_by(count) for count in counts}}

    def trained_by(self, processes: int) -> Results:
        """Some steps of so many processes, one clip in each; killed after the last one, to leave
        out the checkpoint."""
        steps = self.steps or STEPS["several-gpus"]
        command = self.command(self.cleared(f"processes-{processes}"), steps + 1)
        if processes > 1:
            command = (
                "-m", "accelerate.commands.launch", "--multi_gpu",
                f"--num_processes={processes}", "--num_machines=1", "--mixed_precision=no",
                "--dynamo_backend=no", "--main_process_port=0", *command,
            )  # fmt: skip
        figures = figures_of(self.run(command, at_step(steps)))
        figures["clips_a_second"] = processes / figures["step_seconds"]
        return figures

    def run(self, words: Iterable[object], until: Callable[[str], bool] | None = None) -> Output:
        return run(words, until, self.environment, self.label)

    def command(self, out: Path, steps: int) -> tuple[object, ...]:
        """A training of one clip in each process at a time."""
        return (
            "-m", "ultragen", "train", "wan", "--data", self.work / "latents",
            "--base", self.base, "--out", out, "--batch", 1, "--accumulation", 1,
            "--max-steps", steps, "--warmup-steps", 2, "--log-steps", 1,
            "--checkpoint-minutes", 600, "--sample-minutes", 600, "--sample-prompt", PROMPT,
            "--sample-steps", 2,
        )  # fmt: skip

    def cleared(self, name: str) -> Path:
        """A folder in the work folder, without what a run that failed left there."""
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder


def figures_of(*outputs: Output) -> Results:
    """Seconds and memory of trainings' steps, but those that each began with."""
    steps = [step for output in outputs for step in list(output.steps().values())[WARM_UP:]]
    return {
        "steps_timed": len(steps),
        "step_seconds": median(step["seconds_per_step"] for step in steps),
        "peak_gib": max(step.get("memory_gib", 0.0) for step in steps),
        "states_gib": max(step.get("states_gib", 0.0) for step in steps),
    }


STAGES: dict[str, tuple[Callable[[WholeTraining], Results], tuple[str, ...]]] = {
    "weights": (WholeTraining.weights, ()),
    "clips": (WholeTraining.mp4_files, ()),
    "dataset": (WholeTraining.dataset, ("weights", "clips")),
    "training": (WholeTraining.training, ("dataset",)),
    "clip": (WholeTraining.clip, ("training",)),
    "several-gpus": (WholeTraining.several_gpus, ("dataset",)),
}
"""What each stage does, and which ones it needs."""


class Record:
    """Results in files: of the work folder, and a copy.

    Raises:
        ValueError: The work folder holds results of other sizes or another machine.
    """

    def __init__(self, work: Path, copy: Path | None, setting: Results) -> None:
        self.files = [work / "results.json", *([copy] if copy else [])]
        setting = json.loads(json.dumps(setting))  # as it is read again: tuples are lists
        self.content: Results = {"setting": setting, "stages": {}}
        if self.files[0].is_file():
            self.content = json.loads(self.files[0].read_text(encoding="utf-8"))
        if self.content["setting"] != setting:
            raise ValueError(
                f"{work} holds results of {self.content['setting']}, not of {setting}: choose "
                "another --work."
            )

    @property
    def stages(self) -> Results:
        return self.content["stages"]

    def add(self, stage: str, results: Results) -> None:
        self.stages[stage] = results
        self.write()

    def write(self) -> None:
        for file in self.files:
            file.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")


def do(stage: str, whole: WholeTraining, record: Record) -> None:
    """Runs a stage that has no results yet, and before it those that it needs."""
    if stage in record.stages:
        return
    action, needed = STAGES[stage]
    for other in needed:
        do(other, whole, record)
    print(f"== {stage}", flush=True)
    record.add(stage, action(whole))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="Folder; may hold stages.")
    parser.add_argument("--only", choices=STAGES, nargs="+", help="Stages, with what they need.")
    parser.add_argument("--gpus", type=int, default=1, help="Most of them, if several train.")
    parser.add_argument("--clips", type=int, default=4, help="MP4 files.")
    parser.add_argument("--steps", type=int, help="Of a training, not 20, and 8 on several.")
    parser.add_argument("--tiny", action="store_true", help="Toys, on a CPU.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    options.only = options.only or [s for s in STAGES if s != "several-gpus" or options.gpus > 1]
    if options.steps is not None and options.steps < 8:
        parser.error(f"--steps {options.steps} are too few to kill, resume and time: take 8.")
    if options.gpus < 2 and "several-gpus" in options.only:
        parser.error("--only several-gpus needs --gpus 2.")
    if options.clips < options.gpus:
        parser.error(f"--clips {options.clips} make no step of {options.gpus} processes.")
    if not options.tiny and torch.cuda.device_count() < options.gpus:
        parser.error(f"{torch.cuda.device_count()} GPUs are here: choose --tiny.")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    whole = WholeTraining(
        options.work, TINY if options.tiny else TRUE, options.clips, options.steps, options.gpus
    )
    card = f"{card_name(whole.device)}, torch {torch.__version__}"
    record = Record(options.work, options.json, {"machine": card, **asdict(whole.plan)})
    began = perf_counter()
    for stage in options.only:
        do(stage, whole, record)
    record.write()
    print(f"\n{card}; random weights: {whole.plan.parts}.\n")
    print("| | |\n|---|---|")
    for what, value in rows(record.stages):
        print(f"| {what} | {value} |")
    print(f"\nThis run took {perf_counter() - began:.0f} s.")


if __name__ == "__main__":
    main()
