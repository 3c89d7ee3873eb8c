"""What is asked for, and what each file will give, found by probing it: before anything is
decoded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..files import first_line
from ..hardware import is_out_of_memory
from .buckets import Bucket, Clips, choose_bucket
from .encoders import PRESETS
from .frames import UnreadableVideo, frames_at_rate, probe
from .shard_files import EncodedClip, EncodedSource
from .sources import Source

SIDE_STEP = 32  # pixels; what both models' tokens divide


@dataclass(frozen=True)
class Request:
    """What is made of what.

    Attributes:
        folder: The clips.
        out: The dataset.
        buckets: Sizes to cut to.
        frame_rate: Frames a second.
        model: `wan` or `embedded`.
        base: The pipeline whose autoencoder encodes, as in `locate_base`.
        caption_columns: Columns of the folder's table that hold captions; none for the usual ones.
        table: The table, if it is not in the folder under a usual name.
        clips: Which clips are cut from a file that is longer than its bucket: the first, or all.
        enlarge: Whether small clips are enlarged.
        overwrite: Whether an earlier dataset in `out` is removed first.
    """

    folder: Path
    out: Path
    buckets: tuple[Bucket, ...]
    frame_rate: float
    model: str = "wan"
    base: str | Path | None = None
    caption_columns: tuple[str, ...] = ()
    table: Path | None = None
    clips: Clips = "head"
    enlarge: bool = False
    overwrite: bool = False

    def check(self) -> None:
        """Checks what can be checked before anything is read.

        Raises:
            ValueError: A bucket is of a size that the model can't take, the frame rate is none, or
                `out` is the folder of the clips.
        """
        if self.model not in PRESETS:
            raise ValueError(f"model must be one of {', '.join(PRESETS)}, not {self.model!r:.40}.")
        for bucket in self.buckets:
            bucket.check_grid(PRESETS[self.model].pixels_per_token)
        if not self.frame_rate > 0:
            raise ValueError(f"The frame rate must be positive, not {self.frame_rate}.")
        if self.out.resolve() == self.folder.resolve():
            raise ValueError(f"{self.out} holds the clips: choose another folder for --out.")


class Fault(Exception):
    """A file can't be used, or not beyond some frame; says why.

    Attributes:
        lasting: Whether it is the file's own, which is not tried again until it has changed.
    """

    def __init__(self, reason: str, lasting: bool = True) -> None:
        super().__init__(reason)
        self.lasting = lasting


@contextmanager
def faults() -> Iterator[None]:
    """Turns whatever goes wrong while a file is read into a fault of this file.

    Raises:
        Fault: The file can't be read on.
        OSError: A package is missing.
        MemoryError: Memory ran out.
    """
    try:
        yield
    except UnreadableVideo as error:
        raise Fault(str(error)) from error
    except Exception as error:  # a drive that is gone, or what no reader has foreseen
        if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno is None):
            raise
        raise Fault(f"failed: {first_line(error)}", lasting=False) from error


@dataclass(frozen=True)
class Job:
    """A file, and what is to be made of it.

    Attributes:
        source: The file and its captions.
        size: Its bytes.
        modified: When it was last changed, in nanoseconds.
        bucket: What its clips are cut to; None if it is left out.
        clips: How many there will be, as far as the file tells.
        left_out: Why it is left out.
        lasting: Whether that is to be written down, see `Fault`.
    """

    source: Source
    size: int = 0
    modified: int = 0
    bucket: Bucket | None = None
    clips: int = 0
    left_out: str | None = None
    lasting: bool = True

    @property
    def clip_pixels(self) -> int:
        """Pixels of a clip, to which the work is about proportional."""
        if self.bucket is None:
            return 0
        return self.bucket.height * self.bucket.width * self.bucket.num_frames

    def done(self, clips: Sequence[EncodedClip] = (), left_out: str | None = None) -> EncodedSource:
        """What is written of it."""
        return EncodedSource(
            self.source.name,
            self.size,
            self.modified,
            self.source.captions,
            tuple(clips),
            left_out or self.left_out,
        )


def buckets_of(height: int, width: int, num_frames: Sequence[int]) -> tuple[Bucket, ...]:
    """Buckets of one area: lying, standing and square, for clips of these lengths and for stills.

    Args:
        height: Rows in pixels of one shape.
        width: Columns in pixels of it.
        num_frames: Frames of clips.
    """
    side = round(math.sqrt(height * width) / SIDE_STEP) * SIDE_STEP
    shapes = ((height, width), (side, side), (width, height))
    return tuple(
        Bucket(*shape, frames)
        for shape in dict.fromkeys(shapes)
        for frames in sorted({1, *num_frames}, reverse=True)
    )


def plan(source: Source, request: Request) -> Job:
    """Looks at a file without decoding it; whatever is wrong with it leaves it out."""
    size, modified = file_state(source.path)
    try:
        with faults():
            info = probe(source.path)
    except Fault as fault:
        return Job(source, size, modified, left_out=str(fault), lasting=fault.lasting)
    found = choose_bucket(info, request.buckets, request.frame_rate, request.enlarge)
    if isinstance(found, str):
        return Job(source, size, modified, left_out=found)
    clips = 1
    if request.clips == "all" and found.num_frames > 1:
        clips = max(1, frames_at_rate(info.seconds or 0, request.frame_rate) // found.num_frames)
    return Job(source, size, modified, found, clips)


def file_state(path: Path) -> tuple[int, int]:
    """Bytes of a file, and when it was last changed; zeros if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def changed(sources: Iterable[Source], done: dict[str, EncodedSource]) -> list[str]:
    """Names of files whose clips are done, and which have other contents or captions now, or are
    not there any more."""
    now = {source.name: source for source in sources}
    found = []
    for name, before in done.items():
        source = now.get(name)
        if not before.clips or source is None:
            found += [name] if before.clips else []
        elif (*file_state(source.path), source.captions) != (
            before.size,
            before.modified,
            before.captions,
        ):
            found.append(name)
    return found
