"""`train wan-distill` with the tiny Wan."""

from __future__ import annotations

from pathlib import Path

from commands import ultragen
from wan_files import WanFiles
from wan_trainings import QUICK

SAMPLING = ("--resolution", "544p", "--frames", 5, "--steps", 2)


def distill_words(
    files: WanFiles, out: Path, *more: object, steps: int = 2, start: object = None
) -> list[str]:
    """Of the command, which trains so many steps from the released weights or others."""
    out.parent.mkdir(parents=True, exist_ok=True)
    prompts = out.parent / "prompts.txt"
    prompts.write_text("a lake\nhills at dawn\n\na red canyon\n")
    given = ("--prompts", prompts, "--base", files.base, "--out", out, "--max-steps", steps)
    begin = ("--start", start or files.ultragen, "--learning-rate", 1e-3)
    return list(map(str, ("train", "wan-distill", *given, *QUICK, *SAMPLING, *begin, *more)))


def distill(files: WanFiles, out: Path, *more: object, steps: int = 2, start: object = None) -> int:
    """Runs it in this process; returns the exit code."""
    return ultragen(*distill_words(files, out, *more, steps=steps, start=start))
