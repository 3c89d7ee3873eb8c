"""What four and eight GPUs of one machine give: one clip by all, many clips, a training.

    python benchmarks/scaling.py --work work --json scaling.json
    python benchmarks/scaling.py --work work --gpus 4 --only frame decoding
    python benchmarks/scaling.py --work work --tiny --gpus 2

Everything is measured with one GPU, with two, four, ... and with all that the machine has, by the
commands that people use, at the true shapes of the 1.3B model with random weights (the text encoder
with one layer and 128 words):

Part      what                                                   bar for four and eight
frame     a forward pass at 2176×3840×81, both layouts           3.4 and 6 times one GPU
decoding  2176×3840×29 and ×81                                   3 times on four
batch     clips of 1088×1920×17 in four steps, after the first   3.8 and 7.4 times
training  steps at 1088×1920×81, one clip on each GPU            3.7 and 7 times

A GPU that a measurement leaves free is given to the next one, so that what one GPU takes is
measured by several at once; `--apart` measures one after the other. Results are written after
each, and the same command goes on where it was stopped; after `--minutes` nothing new is begun.
What fails is said at the end. `--tiny` does the same with toys on a CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter

import torch
from scaling_machine import Machine, Results, Task
from whole_training import RANDOM_WEIGHTS, TINY, TRUE, WholeTraining
from whole_training_commands import run

from ultragen.benchmark.machine import card_name
from ultragen.cli import console
from ultragen.presets import PROMPTS

BENCHMARK = Path(__file__).with_name("context_parallel.py")
PARTS = ("frame", "decoding", "batch", "training")
BARS = {
    "frame": {4: 3.4, 8: 6.0},
    "decoding": {4: 3.0},
    "batch": {4: 3.8, 8: 7.4},
    "training": {4: 3.7, 8: 7.0},
}
"""How many times as fast as one GPU so many are to be."""
CLIPS_EACH = 4  # of a batch, for each process; its first one is not timed
TRAINING_STEPS = 6


# What is measured


class Measurements:
    """All of them.

    Args:
        work: Where files lie.
        gpus: Most of them.
        tiny: Whether toys stand for the true shapes.
    """

    def __init__(self, work: Path, gpus: int, tiny: bool) -> None:
        self.work, self.gpus, self.tiny = work, gpus, tiny
        self.counts = sorted({2**power for power in range(gpus.bit_length())} | {gpus})

    def tasks(self, parts: Sequence[str]) -> Iterator[Task]:
        """In the order in which they are begun: what one GPU takes comes first."""
        if "batch" in parts or "training" in parts:
            yield Task("weights", 1, (), self.weights)
        if "training" in parts:
            yield Task("latents", 1, ("weights",), self.latents)
        makers = {
            "frame": (self.frame, ()),
            "decoding": (self.decoding, ()),
            "batch": (self.batch, ("weights",)),
            "training": (self.training, ("latents",)),
        }
        for count in self.counts:
            for part in parts:
                make, needs = makers[part]
                yield Task(f"{part} {count}", count, needs, make(count))

    def frame(self, count: int) -> Callable[[Mapping[str, str]], Results]:
        return lambda environment: self.together(count, environment, "--no-decoding")

    def decoding(self, count: int) -> Callable[[Mapping[str, str]], Results]:
        return lambda environment: self.together(count, environment, "--no-layers")

    def together(self, count: int, environment: Mapping[str, str], left_out: str) -> Results:
        """Seconds by size and layout, from `context_parallel.py`."""
        out = self.work / f"{left_out.strip('-')}-{count}.json"
        sizes = [] if left_out == "--no-decoding" else ["2176x3840x29"]
        cases = [word for size in (*sizes, "2176x3840x81") for word in ("--case", size)]
        words: list[object] = [BENCHMARK, *(["--tiny"] if self.tiny else cases), left_out]
        if count > 1:
            starter = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}")
            words = [*starter, *words]
        only = "together" if count > 1 else "one"
        words += ["--only", only, "--runs", 1, "--json", out]
        run(words, None, environment, f"{left_out} {count}: ")
        found = json.loads(out.read_text(encoding="utf-8"))["results"]
        return {
            f"{each['case']} {each['what']}": {
                "seconds": each["one" if count == 1 else "all"],
                "peak_gib": each["peaks"][0] / 2**30,
            }
            for each in found
        }

    def weights(self, environment: Mapping[str, str]) -> Results:
        """Files of both models."""
        size = "tiny" if self.tiny else "short-text"
        words = (RANDOM_WEIGHTS, self.work / "weights", "--size", size, "--jobs", 4)
        return {"seconds": run(words, None, environment, "weights: ").seconds}

    def latents(self, environment: Mapping[str, str]) -> Results:
        """A clip for each process."""
        whole = self.whole(environment)
        return {"clips": whole.mp4_files(), "dataset": whole.dataset()}

    def training(self, count: int) -> Callable[[Mapping[str, str]], Results]:
        return lambda environment: {"steps": self.whole(environment, count).trained_by(count)}

    def whole(self, environment: Mapping[str, str], count: int = 1) -> WholeTraining:
        return WholeTraining(
            self.work,
            TINY if self.tiny else TRUE,
            self.gpus,
            TRAINING_STEPS,
            self.gpus,
            environment,
            f"training {count}: ",
        )

    def batch(self, count: int) -> Callable[[Mapping[str, str]], Results]:
        return lambda environment: self.clips_by(count, environment)

    def clips_by(self, count: int, environment: Mapping[str, str]) -> Results:
        """Clips a second, from the time at which every process has made one."""
        out, clips = self.work / f"batch-{count}", CLIPS_EACH * count
        prompts = out.with_suffix(".txt")
        lines = [PROMPTS[number % len(PROMPTS)] for number in range(clips)]
        prompts.write_text("\n".join(lines), encoding="utf-8")
        sizes = ("--resolution", "1080p", "--frames", 17, "--steps", 4)
        if self.tiny:
            sizes = ("--resolution", "544p", "--frames", 5, "--steps", 1)
        words: tuple[object, ...] = ("-m", "ultragen", "batch", prompts, "--out", out, *sizes)
        if count > 1:
            words = (
                "-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={count}",
                "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no",
                "--main_process_port=0", *words,
            )  # fmt: skip
        weights = self.work / "weights"
        files = {
            "ULTRAGEN_MODEL": "wan",
            "ULTRAGEN_WAN": str(weights / "wan"),
            "ULTRAGEN_WEIGHTS": str(weights / "ultragen_1080p.ckpt"),
        }
        model = {"ULTRAGEN_MODEL": "embedded"} if self.tiny else files
        run((*words, "--overwrite"), None, {**environment, **model}, f"batch {count}: ")
        made = sorted(path.stat().st_mtime for path in out.glob("*.mp4"))
        if len(made) != clips:
            raise RuntimeError(f"{len(made)} of {clips} clips were made")
        rate = (clips - count) / (made[-1] - made[count - 1])
        return {"clips": {"clips_a_second": rate, "seconds": 1 / rate}}


# The table


def table(results: Mapping[str, Results]) -> Iterator[str]:
    """Seconds on each number of GPUs, times one GPU, and the bar."""
    yield "| | GPUs | one | all | times one | bar |"
    yield "|---|---:|---:|---:|---:|---:|"
    for part in PARTS:
        one = results.get(f"{part} 1")
        counts = [int(name.split()[1]) for name in results if name.startswith(f"{part} ")]
        for count in sorted(counts):
            if one and count > 1:
                for what, figures in results[f"{part} {count}"].items():
                    yield row(part, what, count, one[what], figures)


def row(part: str, what: str, count: int, one: Results, all_: Results) -> str:
    if "clips_a_second" in one:
        ratio = all_["clips_a_second"] / one["clips_a_second"]
        shown = [f"{each['clips_a_second']:.4g} clips a second" for each in (one, all_)]
    else:
        ratio = one["seconds"] / all_["seconds"]
        shown = [f"{each['seconds']:.4g} s" for each in (one, all_)]
    if one.get("states_gib"):
        what += f", states {all_['states_gib'] / one['states_gib']:.3f}"
    bar = BARS[part].get(count)
    reached = "" if bar is None else f"{bar}, {'reached' if ratio >= bar else 'missed'}"
    return f"| {part}, {what} | {count} | {shown[0]} | {shown[1]} | {ratio:.2f} | {reached} |"


# The command


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="Folder; may hold results.")
    parser.add_argument("--gpus", type=int, help="Most of them, instead of all.")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--apart", action="store_true", help="One measurement at a time.")
    parser.add_argument("--minutes", type=float, default=60, help="Nothing is begun after them.")
    parser.add_argument("--tiny", action="store_true", help="Toys, on a CPU.")
    parser.add_argument("--json", type=Path, help="A copy of the results.")
    options = parser.parse_args(words)
    there = torch.cuda.device_count()
    options.gpus = options.gpus or there
    if not options.tiny and not 1 < options.gpus <= there:
        parser.error(f"{there} GPUs are here: take a machine of several, or choose --tiny.")
    if options.gpus < 2:
        parser.error("--tiny needs --gpus 2, or more.")
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Measures, and prints the table; returns the exit code."""
    options = parse(words)
    work: Path = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    files = [work / "scaling.json", *([options.json] if options.json else [])]
    card = card_name("cpu" if options.tiny else "cuda")
    machine = f"{options.gpus} × {card}, torch {torch.__version__}"
    content: Results = {"machine": machine, "results": {}}
    if files[0].is_file():
        content = json.loads(files[0].read_text(encoding="utf-8"))
    if content["machine"] != machine:
        raise ValueError(f"{work} holds results of {content['machine']}: choose another --work.")
    results = content["results"]
    gpus = Machine(options.gpus, options.apart, perf_counter() + 60 * options.minutes)
    tasks = Measurements(work, options.gpus, options.tiny).tasks(options.only)
    for name, found in gpus.work_off(tasks, results):
        results[name] = found
        for file in files:
            file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"\n{machine}; random weights.\n")
    print(*table(results), sep="\n")
    for name, reason in gpus.failed.items():
        print(f"{name}: {reason}", file=sys.stderr)
    return int(bool(gpus.failed))


if __name__ == "__main__":
    sys.exit(console.run(main))
