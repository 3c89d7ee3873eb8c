"""`train wan` with the tiny Wan, in this process."""

from __future__ import annotations

from pathlib import Path

import torch
from commands import ultragen
from safetensors.torch import load_file
from wan_files import WanFiles

QUICK = ("--log-steps", 1, "--warmup-steps", 1, "--sample-prompt", "a lake")
QUICK += ("--precision", "float32")


def words(files: WanFiles, data: Path, out: Path, *more: object, steps: int = 2) -> list[str]:
    """Of the command."""
    given = ("--data", data, "--base", files.base, "--out", out, "--max-steps", steps)
    return list(map(str, ("train", "wan", *given, *QUICK, "--sample-steps", 1, *more)))


def train(files: WanFiles, data: Path, out: Path, *more: object, steps: int = 2) -> int:
    """Returns the exit code."""
    return ultragen(*words(files, data, out, *more, steps=steps))


def trained(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a training has exported."""
    return load_file(folder / "export" / "diffusion_pytorch_model.safetensors")


def distance(one: Path, other: Path) -> float:
    """Largest difference of two trainings' weights."""
    a, b = trained(one), trained(other)
    assert a.keys() == b.keys()
    return max((a[key].float() - b[key].float()).abs().max().item() for key in a)
