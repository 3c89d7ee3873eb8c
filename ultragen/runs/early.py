"""The native clip's file, written while the base clip is still being made."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Any

import numpy as np

from ..files import create_folder, unfinished_folder
from ..video import encode_video
from .native import NativeClip
from .progress import Cancelled
from .recipe import carried
from .worker import begin
from .write import Written


@dataclass(frozen=True)
class NativeReady:
    """The native clip can be seen, and the rest of the run goes on.

    Attributes:
        file: The clip, until the run has ended; the same bytes as in its result.
        metadata: What is known of the run by now.
    """

    file: Path
    metadata: dict[str, Any]


class EarlyFile:
    """Writes a native clip in a thread of its own, into a folder that lasts as long as the run.
    What a killed process leaves of it, the next one sweeps.

    Args:
        clip: What to write.
        output_dir: Where the run gets its folder.
    """

    def __init__(self, clip: NativeClip, output_dir: Path) -> None:
        self.clip = clip
        self.output_dir = output_dir
        self._written: Written | None = None
        self._told = False
        self._done = Event()  # or given up
        self._stop = Event()
        self._thread = begin(self._write, self._stop)

    def news(self) -> Iterator[NativeReady]:
        """The clip, as soon as it is there, and once."""
        if not self._told and self._done.is_set() and self._written:
            self._told = True
            yield NativeReady(self._written.file, self.clip.metadata)

    def wait(self) -> Written | None:
        """The file, once it is written; None where that failed, which is said when the run's other
        files are written."""
        self._done.wait()
        return self._written

    def remove(self) -> None:
        """Ends writing and removes the file."""
        self._stop.set()
        self._thread.join()

    def _write(self) -> None:
        began = perf_counter()
        try:
            with unfinished_folder(create_folder(self.output_dir)) as folder:
                path, comment = folder / "native.mp4", carried(self.clip.metadata)
                file = encode_video(self._frames(), path, self.clip.fps, comment)
                self._written = Written(file, perf_counter() - began)
                self._done.set()
                self._stop.wait()
        except Cancelled:
            return
        except OSError as error:
            print(f"The native clip could not be written early: {error}", file=sys.stderr)
        finally:
            self._done.set()

    def _frames(self) -> Iterator[np.ndarray]:
        for frame in self.clip.frames:
            if self._stop.is_set():
                raise Cancelled("The run has ended.")
            yield frame
