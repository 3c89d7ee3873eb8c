"""What tests of evaluations share."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ultragen.evaluation.rows import SETS
from ultragen.training.build import TINY_SIZE, build_classifier

TABLE1 = SETS["table1"]
ROWS = tuple(row.key for row in TABLE1)


def save_classifier(folder: Path) -> Path:
    torch.manual_seed(0)
    build_classifier(TINY_SIZE).save_pretrained(folder)
    return folder


def quick_render(scenes, height, width, num_frames, *, region, device):
    """Colours of the scene's seed, with a grain: the renderer has tests of its own."""
    generator = torch.Generator().manual_seed(scenes[0].seed * 10_000 + region[0])
    small = torch.rand(3, num_frames, region[2] // 8, region[3] // 8, generator=generator)
    return small.repeat_interleave(8, 2).repeat_interleave(8, 3)[None]


RUN = ("evaluate", "--clips", 2, "--frames", 5, "--steps", 1, "--resolution", "tiny", "--out")


def numbers(folder: Path) -> list[dict]:
    """Of a table, without what differs from run to run."""
    rows = json.loads((folder / "results.json").read_text())["rows"]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
