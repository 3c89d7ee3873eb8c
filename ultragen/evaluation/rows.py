"""The rows of a table, as data, and how their clips are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Literal, Protocol

import numpy as np
import torch

from ..compare import RunState, make_clip, resolve_windows
from ..models import Models
from ..request import Request
from ..video import crop_rows


@dataclass(frozen=True)
class Row:
    """A way to make clips.

    Attributes:
        key: Name of its folder and in JSON.
        title: What people read.
        source: `ultragen`, its dense `base` model, or `real` clips of the same scenes.
        upscaler: Enlarges clips of the base model's own size; without it they are made at the full
            size.
        model: Folder of another model than the one that is evaluated, such as an ablation.
    """

    key: str
    title: str
    source: Literal["ultragen", "base", "real"]
    upscaler: str | None = None
    model: Path | None = None


SETS: dict[str, tuple[Row, ...]] = {
    "table1": (
        Row("base-native", "Base model, native", "base"),
        Row("base-lanczos", "Base model + Lanczos", "base", upscaler="lanczos"),
        Row("base-network", "Base model + ×4 network", "base", upscaler="network"),
        Row("ultragen", "UltraGen, native", "ultragen"),
        Row("real", "Real clips", "real"),
    ),
}
"""Tables by name; another table, such as one of ablations, is another entry."""
REFERENCE = Row("reference", "Reference", "real")
"""What HD-FVD compares with: real clips of other scenes, in no table."""


def rows_of(table: str) -> tuple[Row, ...]:
    """The rows of a table.

    Raises:
        ValueError: There is no such table.
    """
    if table not in SETS:
        raise ValueError(f"set {table!r:.40} is unknown: choose from {', '.join(SETS)}.")
    return SETS[table]


class Case(Protocol):
    """A scene: its number, its caption and what that names, and its real clip."""

    @property
    def seed(self) -> int: ...

    @property
    def caption(self) -> str: ...

    @property
    def named(self) -> Mapping[str, str]: ...

    def frames(
        self, height: int, width: int, num_frames: int, device: torch.device | str
    ) -> np.ndarray:
        """The real clip: uint8, t h w 3."""
        ...


class Maker:
    """Makes the clips of all rows.

    Args:
        load: Gives the models of a folder, or those that are evaluated for None.
        request: Settings of every clip but the prompt; clip i has the noise of its seed + i.
    """

    def __init__(self, load: Callable[[Path | None], Models], request: Request) -> None:
        self.load = load
        self.loaded: dict[Path | None, Models] = {}
        self.small: dict[tuple[Path | None, int], tuple[np.ndarray, float]] = {}
        self.request = request.validate(self.models().preset)

    def models(self, folder: Path | None = None) -> Models:
        """The models of a folder, loaded at their first use."""
        if folder not in self.loaded:
            self.loaded[folder] = self.load(folder)
        return self.loaded[folder]

    def make(self, row: Row, number: int, case: Case) -> tuple[np.ndarray, float | None]:
        """Frames t rows w 3, uint8, and the seconds they took, None for a real clip.

        Raises:
            RuntimeError: The clip is black or not finite.
        """
        models, size = self.models(row.model), self.request.size
        full = (size.height, size.width)
        if row.source == "real":
            frames = case.frames(*full, self.request.frames, models.device)
            return crop_rows(frames, size.rows), None
        if row.upscaler is None:
            frames, seconds = self._generate(row, number, case, full)
            return crop_rows(frames, size.rows), seconds
        frames, seconds = self._small(row, number, case)
        upscaler = models.upscaler(row.upscaler)
        began = perf_counter()
        frames = np.stack(list(upscaler.stream(frames, size.rows, size.width)))
        return frames, seconds + perf_counter() - began

    def _small(self, row: Row, number: int, case: Case) -> tuple[np.ndarray, float]:
        """The base model's own clip, which rows with other upscalers share; only the last is
        kept."""
        key = (row.model, number)
        if key not in self.small:
            preset = self.models(row.model).preset
            size = (preset.base_height, preset.base_width)
            self.small = {key: self._generate(row, number, case, size)}
        return self.small[key]

    def _generate(
        self, row: Row, number: int, case: Case, size: tuple[int, int]
    ) -> tuple[np.ndarray, float]:
        models = self.models(row.model)
        request = replace(self.request, prompt=case.caption, seed=self.request.seed + number)
        request = request.validate(models.preset)
        run = RunState(lambda progress: None, Event(), {})
        if row.source == "ultragen":
            windows = {"windows": resolve_windows(request, models)}
            frames = make_clip(run, models.native, request, size, "", windows)
        else:
            prefix = "base_" if row.upscaler else "base_native_"
            frames = make_clip(run, models.base, request, size, prefix, {})
        return frames, sum(run.seconds.values())
