"""Many prompts on Ray, while actors are killed: what is lost, what is made twice, how fast it is.

    python benchmarks/killed_actors.py runs/killed
    python benchmarks/killed_actors.py runs/killed --prompts 8 --kills 1

Each kill is SIGKILL for an actor at work, as the kernel does where memory runs out; they come at
equal parts of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter

import psutil

from ultragen.batch.clip_folder import ATTEMPTS
from ultragen.presets import PROMPTS

POLL = 0.02  # seconds


def actors(process: psutil.Process) -> list[psutil.Process]:
    """Processes below another one in which Ray Data's actors run."""
    below = process.children(recursive=True)
    return [each for each in below if "MapWorker" in " ".join(each.cmdline())]


def kill_one_at_work(out: Path, process: psutil.Process) -> bool:
    """Kills an actor of a run, once a clip is begun.

    Args:
        out: The run's folder.
        process: What started the run.

    Returns:
        Whether there was one.
    """
    notes = out / ATTEMPTS
    if not notes.is_dir() or all(note.name.startswith(".") for note in notes.iterdir()):
        return False
    found = actors(process)
    if found:
        os.kill(found[0].pid, signal.SIGKILL)
    return bool(found)


def killed_run(command: Sequence[str], out: Path, clips: int, kills: int) -> Iterator[str]:
    """Runs a command and kills actors meanwhile; yields what it printed, by line."""
    log = out.with_suffix(".log")
    with log.open("w") as file:
        run = subprocess.Popen(command, stdout=file)
        done = 0
        while run.poll() is None:
            there = len(list(out.glob("*.mp4")))
            due = (done + 1) * clips // (kills + 1)
            if done < kills and there >= due and kill_one_at_work(out, psutil.Process(run.pid)):
                done += 1
            time.sleep(POLL)
    if done < kills:
        raise RuntimeError(f"only {done} of {kills} actors were killed: see {log}")
    yield from log.read_text().splitlines()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="Folder of the clips; it does not exist yet.")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=3)
    arguments = parser.parse_args(argv)
    out = arguments.out.absolute()
    if out.exists():
        parser.error(f"{out} is there already: choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    prompts = out.with_suffix(".txt")
    lines = [PROMPTS[i % len(PROMPTS)] for i in range(arguments.prompts)]
    prompts.write_text("\n".join(lines))
    command = [
        *(sys.executable, "-m", "ultragen", "batch", str(prompts), "--out", str(out)),
        *("--model", "embedded", "--resolution", "544p", "--frames", "5", "--steps", "2"),
        *("--ray", "auto", "--workers", str(arguments.workers)),
    ]
    began = perf_counter()
    printed = list(killed_run(command, out, arguments.prompts, arguments.kills))
    seconds = perf_counter() - began
    told = Counter(line.split()[1] for line in printed if f"/{arguments.prompts} " in line)
    there = {path.stem for path in out.glob("*.mp4")}
    report = {
        "clips": len(there),
        "lost": arguments.prompts - len(there),
        "twice": sum(count - 1 for count in told.values()),
        "killed": arguments.kills,
        "seconds": round(seconds, 1),
        "clips_an_hour": round(len(there) / seconds * 3600),
    }
    print(json.dumps(report, indent=2))
    return int(report["lost"] or report["twice"])


if __name__ == "__main__":
    sys.exit(main())
