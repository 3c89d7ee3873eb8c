"""What clips gave, on disk: an evaluation that was stopped goes on from it."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..files import create_json, write_json
from .scores import ClipScores

PICTURE_WIDTH = 480  # columns in pixels
# Settings that older evaluations do not name.
OLDER = {"batch": 1, "world": 1, "noise": "independent"}


class Store:
    """A file of values for each clip, one of features, and a small picture of its middle frame.

    Args:
        folder: Where the evaluation's files go; created when missing.
        settings: What must be the same for clips to stand in one table, as plain values. Of
            several processes at once, all have those of the first.

    Raises:
        ValueError: The folder holds an evaluation with other settings.
        OSError: The folder can't be written to.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, json.loads(json.dumps(settings))
        path = folder / "settings.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            create_json(path, self.settings)
        except OSError as error:
            raise OSError(
                f"{folder} can't be written to ({error.strerror}): choose another --out."
            ) from error
        before = {**OLDER, **read_json(path)}
        for name, value in self.settings.items():
            if before.get(name) != value:
                same = f"add --batch {before[name]}" if name == "batch" else "choose another --out"
                raise ValueError(
                    f"{folder} holds an evaluation with {name} {before.get(name)}, not {value}: "
                    f"{same}, or start again with --overwrite."
                )

    def path(self, row: str, number: int, suffix: str = ".json") -> Path:
        """A clip's file."""
        return self.folder / "clips" / row / f"{number:05}{suffix}"

    def has(self, row: str, number: int) -> bool:
        """Whether a clip is done."""
        return self.path(row, number).exists()

    def add(self, row: str, number: int, middle: np.ndarray, scores: ClipScores) -> None:
        """Stores what a clip gave, and its middle frame, uint8, h w 3; its values last, because
        they mark it done."""
        self.path(row, number).parent.mkdir(parents=True, exist_ok=True)
        halves = {name: x.half().contiguous() for name, x in scores.features.items()}
        save_file(halves, self.path(row, number, ".safetensors"))
        picture = Image.fromarray(middle)
        height = max(1, round(picture.height * PICTURE_WIDTH / picture.width))
        picture = picture.resize((PICTURE_WIDTH, height), Image.Resampling.LANCZOS)
        picture.save(self.path(row, number, ".jpg"), quality=90)
        plain = {f.name: getattr(scores, f.name) for f in fields(scores) if f.name != "features"}
        write_json(self.path(row, number), plain)

    def get(self, row: str, number: int) -> ClipScores:
        """What a clip gave.

        Raises:
            OSError: Its files are missing or damaged.
        """
        path = self.path(row, number, ".safetensors")
        try:
            features = {name: x.float() for name, x in load_file(path).items()}
            return ClipScores(**read_json(self.path(row, number)), features=features)
        except (OSError, SafetensorError, TypeError) as error:
            raise OSError(
                f"the clip's files {path.with_suffix('')}.* are damaged: remove them, and the "
                "evaluation makes it again."
            ) from error

    def clips(self, row: str, number: int) -> list[ClipScores]:
        """What the first clips of a row gave; errors as `get`."""
        return [self.get(row, i) for i in range(number)]

    def picture(self, row: str, number: int) -> Image.Image:
        """The middle frame."""
        with Image.open(self.path(row, number, ".jpg")) as image:
            return image.convert("RGB")


def forget(folder: Path) -> None:
    """Removes what an earlier evaluation stored in a folder, and nothing else."""
    shutil.rmtree(folder / "clips", ignore_errors=True)
    (folder / "settings.json").unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file of ours.

    Raises:
        OSError: It is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OSError(f"{path} is damaged: remove it.") from error
    if not isinstance(content, dict):
        raise OSError(f"{path} is damaged: remove it.")
    return content
