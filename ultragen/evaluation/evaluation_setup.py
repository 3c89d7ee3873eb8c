"""All that an evaluation is made with, so that other processes make the same one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from ..presets import EMBEDDED_MODEL, ModelPreset
from ..runs import loading
from ..runs.loading import Models
from ..runs.request import Request
from .clip_files import ClipFiles
from .instruments import Instruments, load_file_instruments, load_instruments
from .rows import TEACHER, Maker, Row, Source
from .seams import window_borders


@dataclass(frozen=True)
class Networks:
    """The networks that are asked for, as in `load_instruments`."""

    classifier: Path | None = None
    features: tuple[str, ...] = ()
    lpips: str | None = None
    clip: str | None = None


class Setup(Protocol):
    """What an evaluation is made with."""

    def load(self) -> tuple[Source, Instruments]:
        """Where clips come from, and what measures them.

        Raises:
            ValueError: A model or a network can't be used.
            OSError: Files or packages are missing.
        """
        ...


@dataclass(frozen=True)
class MadeClips:
    """An evaluation of models.

    Attributes:
        rows: The table's.
        request: Settings of every clip but the prompt.
        model: What is evaluated, as in `load_models`.
        teacher: What it was distilled from, for rows that ask for it.
        ablations: Folder of the models of rows that name one.
        batch: Clips that are denoised together.
        networks: What measures them.
    """

    rows: tuple[Row, ...]
    request: Request
    model: str | None
    teacher: str | None
    ablations: Path | None
    batch: int
    networks: Networks

    def load(self) -> tuple[Maker, Instruments]:
        """Where clips come from, and what measures them; errors as `Setup`."""
        maker, asked = Maker(self._load_row, self.request, self.batch), self.networks
        models = maker.models()
        check_composed(self.rows, maker.request, models.preset)
        instruments = load_instruments(
            models.source, asked.classifier, asked.features, asked.lpips, asked.clip, models.device
        )
        if self.ablations is not None or any(row.progressive for row in self.rows):
            borders = window_borders(models, maker.request)
            instruments = replace(instruments, borders=borders)
        return maker, instruments

    def _load_row(self, name: str | None) -> Models:
        if name == TEACHER:
            return loading.load_models(self.teacher)
        if self.ablations is None or name is None:
            return loading.load_models(self.model)
        return loading.load_models(str(self.ablations / name))


@dataclass(frozen=True)
class OwnClips:
    """An evaluation of clips that are there.

    Attributes:
        files: Where they lie, and what they are compared with.
        networks: What measures them.
    """

    files: ClipFiles
    networks: Networks

    def load(self) -> tuple[ClipFiles, Instruments]:
        """Where clips come from, and what measures them; errors as `Setup`."""
        asked = self.networks
        features = asked.features if self.files.reference else None
        folder = asked.classifier or EMBEDDED_MODEL / "classifier"
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return self.files, load_file_instruments(folder, features, asked.lpips, asked.clip, device)


def check_composed(rows: Sequence[Row], request: Request, preset: ModelPreset) -> None:
    """Checks that rows which differ in whether a smaller clip comes first do so at this size.

    Raises:
        ValueError: They would be the same clips.
    """
    composed = [row for row in rows if row.progressive == "on"]
    if composed and replace(request, progressive="on").first_size(preset) is None:
        raise ValueError(
            f"At {request.resolution} no smaller clip comes first, whose effect --set progressive "
            f"measures: choose a --resolution above {preset.first_size}, and several steps."
        )
