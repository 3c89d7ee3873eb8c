"""The folder that clips go to: which are there, what failed, one table of all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..files import (
    cannot_write,
    create_folder,
    sweep_unfinished,
    whole_result,
    write_text,
)
from ..presets import PRESETS
from ..runs.native import NativeClip
from ..runs.request import Request
from ..runs.write import write_native
from .prompt_files import Clip

TABLE, FAILED, ATTEMPTS = "metadata.jsonl", "failed.jsonl", ".attempts"
"""The table has the name that `dataset` looks for, and Hugging Face's `datasets`."""
MOST_ATTEMPTS = 5
"""Times that a process may die at a clip before the clip counts as failed."""


@dataclass(frozen=True)
class Outcome:
    """What became of a clip.

    Attributes:
        name: As the clip is called.
        state: `made`; `kept`, since it was there; `failed`, which ends nothing; or `stopped`, if
            no further clip can be made either.
        reason: Why not, in one line.
    """

    name: str
    state: Literal["made", "kept", "failed", "stopped"]
    reason: str = ""


@dataclass(frozen=True)
class Results:
    """A folder of clips, which several processes may fill.

    Attributes:
        folder: Where the clips go.
    """

    folder: Path

    def open(self, clips: Iterable[Clip], model: str, overwrite: bool) -> None:
        """Makes the folder ready: ends what killed runs left, forgets what failed before.

        Args:
            clips: All that are asked for.
            model: Name of the preset that they are made with.
            overwrite: Whether clips that are there are removed.

        Raises:
            OSError: Files are in the way, or the folder can't be written to.
        """
        create_folder(self.folder)
        sweep_unfinished(self.folder)
        if overwrite:
            for clip in clips:
                for path in self.paths(clip.name):
                    path.unlink(missing_ok=True)
        elif taken := [said for clip in clips if (said := self._in_the_way(clip, model))]:
            more = f", and {len(taken) - 1} more" if len(taken) > 1 else ""
            raise OSError(f"{taken[0]}{more}: choose another --out, or add --overwrite.")
        (self.folder / FAILED).unlink(missing_ok=True)
        self.forget_attempts()

    def paths(self, name: str) -> tuple[Path, Path]:
        """The files of a clip: the video, and what made it."""
        return self.folder / f"{name}.mp4", self.folder / f"{name}.json"

    def has(self, name: str) -> bool:
        """Whether a clip is there, whole."""
        return all(path.is_file() for path in self.paths(name))

    def _in_the_way(self, clip: Clip, model: str) -> str | None:
        """Why files with a clip's names are not the clip."""
        video, sidecar = self.paths(clip.name)
        if not video.exists():
            return None
        try:
            metadata = json.loads(sidecar.read_text(encoding="utf-8"))
            request = Request.from_metadata(metadata)
            made_with = metadata["model"]["name"]
            alike = made_with == model and composes(request, model) == composes(clip.request, model)
        except (OSError, ValueError, KeyError, TypeError):
            return f"{video} is there, and no {sidecar.name} that tells what it is"
        asked = replace(clip.request, upscaler=request.upscaler, base_native=request.base_native)
        if alike:  # however that was asked for
            asked = replace(asked, progressive=request.progressive)
        if asked.loras is None:
            asked = replace(asked, loras=request.loras)
        if (request.to_dict(), made_with) != (asked.to_dict(), model):
            return f"{video} was made with other settings than line {clip.line} asks for"
        return None

    def begin(self, name: str) -> int:
        """Notes that a clip is begun; gives how often it was begun before and not ended.

        Raises:
            OSError: The note can't be written.
        """
        note = self.folder / ATTEMPTS / name
        attempts = int(note.read_text()) if note.exists() else 0
        write_text(note, str(attempts + 1))
        return attempts

    def end(self, name: str) -> None:
        """Takes back what `begin` noted."""
        (self.folder / ATTEMPTS / name).unlink(missing_ok=True)

    def forget_attempts(self) -> None:
        """Takes back all notes."""
        notes = self.folder / ATTEMPTS
        if notes.is_dir():
            for note in notes.iterdir():
                note.unlink(missing_ok=True)
            notes.rmdir()

    def write(self, clip: Clip, made: NativeClip, source: str, loading: float) -> None:
        """Writes a clip and what made it, both or neither.

        Args:
            clip: What was asked for.
            made: What came of it.
            source: Name of the file that asked for it.
            loading: Seconds that loading the models took, for this clip and others.

        Raises:
            OSError: The disk is full, or the folder takes no files.
        """
        made.metadata["batch"] = {
            "source": source,
            "line": clip.line,
            "index": clip.index,
            "columns": plain(clip.columns),
        }
        names = tuple(path.name for path in self.paths(clip.name))
        with whole_result(self.folder, names) as folder:
            write_native(made, folder / names[0], loading)

    def note_failure(self, clip: Clip, reason: str) -> None:
        """Adds a line to the list of what failed; lines of several processes don't mix.

        Raises:
            OSError: It can't be written.
        """
        line = {
            "name": clip.name,
            "line": clip.line,
            "prompt": clip.request.prompt,
            "seed": clip.request.seed,
            "reason": reason,
        }
        path = self.folder / FAILED
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                os.write(file, json_line(line).encode())
            finally:
                os.close(file)
        except OSError as error:
            raise cannot_write(path, str(error)) or error from error

    def failures(self) -> int:
        """How many clips failed."""
        path = self.folder / FAILED
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def write_table(self, clips: Iterable[Clip]) -> int:
        """Writes the table of all clips that are there, in the order of the file; gives their
        number.

        Raises:
            OSError: It can't be written.
        """
        rows = []
        for clip in clips:
            if self.has(clip.name):
                video, _ = self.paths(clip.name)
                request = clip.request.to_dict()
                settings = {k: v for k, v in request.items() if k not in NOT_OF_NATIVE}
                own = {"file_name": video.name, "line": clip.line, **settings}
                rows.append(json_line({**plain(clip.columns), **own}))
        write_text(self.folder / TABLE, "".join(rows))
        return len(rows)


def composes(request: Request, model: str) -> bool:
    """Whether a smaller clip comes first.

    Args:
        request: The request of a clip.
        model: Name of its model's preset.

    Raises:
        KeyError: there is no such model or resolution.
    """
    return request.first_size(PRESETS[model]) is not None


NOT_OF_NATIVE = {"upscaler", "base_native", "loras"}
"""Settings that a native clip has no use for, or that only its models settle."""


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """What JSON can hold of a table's values: dates and the like as text."""
    return json.loads(json.dumps(values, default=str))


def json_line(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"
