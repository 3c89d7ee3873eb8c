"""The commands of `whole_training.py`: run, timed, read line by line, and killed where asked; and
clips as MP4 files, written and read by PyAV alone."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import av
import numpy as np
import psutil

STEP = re.compile(r"step +(\d+)  (.+)  lr ")
SAVED = re.compile(r"saved at step (\d+): (.+)")
RESUMED = re.compile(r"resumed at step (\d+)")


@dataclass
class Output:
    """What a command said.

    Attributes:
        seconds: How long it ran.
        lines: Each line, with the seconds after the start at which it came.
    """

    seconds: float = 0.0
    lines: list[tuple[float, str]] = field(default_factory=list)

    def steps(self) -> dict[int, dict[str, float]]:
        """Each step that a training logged, with its figures and, as `at`, when that was."""
        found = {}
        for at, line in self.lines:
            if match := STEP.search(line):
                words = match[2].split()
                figures = dict(zip(words[::2], map(float, words[1::2]), strict=True))
                found[int(match[1])] = {"at": at, **figures}
        return found

    def saved(self) -> dict[int, dict[str, float]]:
        """Each step at which a training saved, with the seconds of each part."""
        found = {}
        for _, line in self.lines:
            if match := SAVED.search(line):
                parts = (part.split() for part in match[2].split(", "))
                found[int(match[1])] = {name: float(seconds) for name, seconds, _ in parts}
        return found

    def resumed(self) -> tuple[int, float]:
        """The step at which a training went on, and when that was.

        Raises:
            RuntimeError: It began anew.
        """
        for at, line in self.lines:
            if match := RESUMED.search(line):
                return int(match[1]), at
        raise RuntimeError("The training did not go on from its checkpoint.")


def run(
    words: Iterable[object],
    until: Callable[[str], bool] | None = None,
    environment: Mapping[str, str] | None = None,
    label: str = "",
) -> Output:
    """Runs Python with arguments, and prints the command, what it says, and its seconds.

    Args:
        words: The arguments.
        until: Kills it, with all that it started, by SIGKILL at the first line for which this is
            true.
        environment: Its variables; None for this process's.
        label: Before each line that is printed, to tell commands that run at once apart.

    Raises:
        RuntimeError: It failed, or ended by itself before such a line.
    """
    command = [sys.executable, *map(str, words)]
    print(f"{label}$ {shlex.join(['python', *command[1:]])}", flush=True)
    output, began, killed = Output(), perf_counter(), False
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        env=environment,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            output.lines.append((perf_counter() - began, line.rstrip()))
            print(f"{label}  {line.rstrip()}", flush=True)
            if until and not killed and until(line):
                kill(process)
                killed = True
    output.seconds = perf_counter() - began
    ended = "killed" if killed else f"ended with {process.returncode}"
    print(f"{label}  {ended} after {output.seconds:.1f} s", flush=True)
    if killed != bool(until) or (process.returncode and not killed):
        raise RuntimeError(f"{shlex.join(command[1:])} {ended}.")
    return output


def kill(process: subprocess.Popen[Any]) -> None:
    """Kills a process and those that it started, which torchrun puts into sessions of their own."""
    below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in below:
        child.kill()
    psutil.wait_procs(below, timeout=10)  # of zombies, which nobody may reap, there is no end


def at_step(step: int) -> Callable[[str], bool]:
    """Whether a line is a training's log of that step."""

    def is_there(line: str) -> bool:
        match = STEP.search(line)
        return match is not None and int(match[1]) >= step

    return is_there


def write_clip(frames: Iterable[np.ndarray], path: Path, fps: int) -> None:
    """Writes frames h w 3, uint8, as H.264, on all cores."""
    stream = None
    with av.open(str(path), "w") as file:
        for frame in frames:
            if stream is None:
                stream = file.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.thread_count = 0
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            file.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace="ITU709")))
        if stream is not None:
            file.mux(stream.encode(None))


def clip_size(path: Path) -> str:
    """Rows, columns and frames of a file, decoded to its end."""
    with av.open(str(path)) as file:
        video = file.streams.video[0]
        return f"{video.height}x{video.width}x{sum(1 for _ in file.decode(video))}"


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
