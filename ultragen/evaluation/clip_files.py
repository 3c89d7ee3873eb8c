"""Clips that are there, as files: found, looked at, and measured as clips that are made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..dataset.frames import UnreadableVideo, VideoInfo, probe, read_frames
from ..dataset.sources import Source, find_sources, find_videos
from .instruments import Instruments, measure_frames
from .rows import Row
from .scores import LEVEL, ClipScores, RowScores

CLIPS = Row("clips", "Clips", "real")
"""The row of what is measured."""


@dataclass(frozen=True)
class ClipFile:
    """A clip as a file.

    Attributes:
        path: Where it lies.
        name: Its path below its folder.
        size: Of the file, in bytes: another one under the same name is another clip.
        height: Rows of a frame in pixels.
        width: Columns of a frame in pixels.
        num_frames: As the file says; None if it does not.
        seed: Its number in the folder.
        caption: What it shows, or its name where nothing tells.
    """

    path: Path
    name: str
    size: int
    height: int
    width: int
    num_frames: int | None
    seed: int
    caption: str
    world: int | str = "files"
    named: Mapping[str, str] = field(default_factory=dict)

    def frames(
        self, height: int, width: int, num_frames: int, device: torch.device | str
    ) -> np.ndarray:
        """The clip in another size: there is none.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"{self.path} is measured as it is, not at {width}×{height}.")


@dataclass(frozen=True)
class Found:
    """The clips of a folder.

    Attributes:
        clips: Those that can be measured, by name.
        faults: What can't be, and why, a line each.
    """

    clips: list[ClipFile]
    faults: list[str]


def find_clips(folder: Path, captions: bool) -> Found:
    """Looks at the clips of a folder.

    Args:
        folder: Where they lie, with captions as `find_sources` takes them.
        captions: Whether they are needed.

    Raises:
        ValueError: There is no clip or, where they are needed, no caption.
        OSError: PyAV is missing.
    """
    sources = find_videos(folder)
    clips, faults = list[ClipFile](), list[str]()
    if captions:
        sources, left_out = find_sources(folder)
        faults += [f"{folder / one.name}: {one.reason}" for one in left_out]
    for source in sources:
        try:
            clips.append(_look(source, probe(source.path), len(clips)))
        except UnreadableVideo as error:
            faults.append(f"{source.path}: {error}")
    return Found(clips, faults)


def _look(source: Source, info: VideoInfo, number: int) -> ClipFile:
    return ClipFile(
        path=source.path.absolute(),
        name=source.name,
        size=source.path.stat().st_size,
        height=info.height,
        width=info.width,
        num_frames=info.num_frames,
        seed=number,
        caption=source.captions[0] if source.captions else source.name,
    )


@dataclass(frozen=True)
class ClipFiles:
    """Where the clips of an evaluation come from that are there.

    Attributes:
        folder: Of the clips.
        clips: What is measured.
        reference: What HD-FVD compares with; nothing where it is not measured.
        reference_folder: Of those.
    """

    folder: Path
    clips: tuple[ClipFile, ...]
    reference: tuple[ClipFile, ...] = ()
    reference_folder: Path | None = None
    batch: int = 1
    shows_reference: bool = True

    def measured(
        self, row: Row, cases: Sequence[tuple[int, Any]], instruments: Instruments
    ) -> Iterator[tuple[ClipScores, np.ndarray]]:
        """What clips gave, and the middle frame of each.

        Raises:
            ValueError: A clip is too small or too short for a network, or damaged.
        """
        for _, clip in cases:
            middle = _Middle(clip)
            try:
                scores = measure_frames(middle.passed_on(), clip.caption, instruments)
            except (UnreadableVideo, ValueError) as error:
                raise ValueError(f"{clip.path} can't be measured: {error}") from error
            yield scores, middle.frame

    def settings(self, rows: Sequence[Row], cases: Sequence[Any]) -> dict[str, Any]:
        """What must be the same for clips to stand in one table."""
        return {
            "files": [[clip.name, clip.size] for clip in self.clips],
            "reference_files": [[clip.name, clip.size] for clip in self.reference],
        }

    def lines(self, scores: Sequence[RowScores], settings: dict[str, Any]) -> list[str]:
        """What a table says of its clips, in Markdown."""
        told = [f"{len(self.clips)} clips of {self.folder.name}: {_sizes(self.clips)}."]
        if self.reference:
            told.append(f"{len(self.reference)} of the reference: {_sizes(self.reference)}.")
        told.append(f"In brackets: {LEVEL:.0%} intervals, bootstrap over clips.")
        return [" ".join(told), ""]

    def against(self, references: Sequence[Any]) -> str:
        """What HD-FVD compares with, in words."""
        name = self.reference_folder.name if self.reference_folder else ""
        return f"the {len(references)} clips of {name}"

    def results(self, cases: Sequence[Any], references: Sequence[Any]) -> dict[str, Any]:
        """What `results.json` says of the clips and of what they are compared with."""
        return {"clips": _listed(self.clips), "reference": _listed(self.reference)}

    def release(self) -> None:
        """Gives memory back: there is none."""


class _Middle:
    """Keeps the middle one of frames that are passed on."""

    def __init__(self, clip: ClipFile) -> None:
        self.clip = clip
        self.frame = np.zeros((1, 1, 3), np.uint8)

    def passed_on(self) -> Iterator[np.ndarray]:
        """The clip's frames, uint8, h w 3."""
        middle = (self.clip.num_frames or 1) // 2
        for number, frame in enumerate(read_frames(self.clip.path, None)):
            if number <= middle:
                self.frame = frame
            yield frame


def _sizes(clips: Sequence[ClipFile]) -> str:
    """What sizes clips have, the most frequent first."""
    counts = Counter(f"{clip.width}×{clip.height}" for clip in clips)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} of {size}" for size, count in counts.most_common())


def _listed(clips: Sequence[ClipFile]) -> list[dict[str, Any]]:
    return [
        {"number": clip.seed, "file": clip.name, "width": clip.width, "height": clip.height}
        | ({"caption": clip.caption} if clip.caption != clip.name else {})
        for clip in clips
    ]
