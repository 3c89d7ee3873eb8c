"""Clips as frames that a model can be trained on, whatever kind of file they lie in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .colours import FrameToPicture
from .stills import is_still, read_still, still_size
from .unreadable import DamagedVideo, UnreadableVideo
from .video_frames import TimedFrame, frame_rate, open_video, stated_seconds, timed_frames

if TYPE_CHECKING:  # an optional package
    from av import VideoFrame

__all__ = ["DamagedVideo", "UnreadableVideo", "VideoInfo", "probe", "read_frames"]

JITTER = 1e-3
"""Seconds by which time stamps are off: many files keep whole milliseconds."""


@dataclass(frozen=True)
class VideoInfo:
    """What a clip is before all of it is read.

    Attributes:
        height: Rows of its frames, upright and of square pixels.
        width: Columns of its frames.
        num_frames: Frames in the file, as it says itself; None if it does not.
        seconds: How long it says it is; None if it does not. Of a still 0.
        frame_rate: Frames a second in the mean; None if it does not say, and for a still.
        is_still: Whether it is a picture.
    """

    height: int
    width: int
    num_frames: int | None
    seconds: float | None
    frame_rate: float | None
    is_still: bool = False


def probe(path: Path) -> VideoInfo:
    """Looks at a clip: at most its first frame is decoded.

    Raises:
        UnreadableVideo: There is no frame that can be read; the message is the reason.
        OSError: A package is missing.
    """
    if is_still(path):
        height, width = still_size(path)
        return VideoInfo(height, width, 1, 0.0, None, is_still=True)
    with open_video(path) as (container, stream):
        first = next(timed_frames(container, stream))
        shape = FrameToPicture(first.frame, stream.sample_aspect_ratio)
        rate, seconds = frame_rate(stream), stated_seconds(stream)
        if seconds is None and container.duration:
            seconds = container.duration / 1e6
        count = round(seconds * rate) if seconds and rate else None
        return VideoInfo(shape.height, shape.width, count, seconds, rate)


def read_frames(path: Path, frame_rate: float | None) -> Iterator[np.ndarray]:
    """Reads a clip once from front to back; only what is yielded is held.

    For every moment of the constant rate the frame is taken whose time stamp is nearest, and the
    earlier of two that are as near. Where a source has no frame for a moment, because its rate
    varies or is lower, the nearest one is repeated: `choose_bucket` refuses sources that are slower
    in the mean. Size and colours are those that the first frame tells.

    Args:
        path: A video, or a still, which is one frame.
        frame_rate: Frames a second; None gives the file's frames as they are.

    Yields:
        uint8, h w 3, full range: upright, square pixels, progressive, BT.709 without HDR, without
        alpha. Frames that are repeated are the same array.

    Raises:
        DamagedVideo: After the whole frames before the damage.
        UnreadableVideo: There is no frame that can be read; the message is the reason.
        OSError: A package is missing.
    """
    if is_still(path):
        yield read_still(path)
        return
    with open_video(path) as (container, stream):
        to_picture = shown = None
        for frame in at_rate(timed_frames(container, stream), frame_rate):
            to_picture = to_picture or FrameToPicture(frame, stream.sample_aspect_ratio)
            if frame is not shown:
                shown, picture = frame, to_picture(frame)
            yield picture


def frames_at_rate(seconds: float, frame_rate: float) -> int:
    """How many frames `read_frames` gives of a clip that is as long as it says."""
    return math.floor(max(seconds - JITTER, 0) * frame_rate) + 1


def at_rate(frames: Iterable[TimedFrame], frame_rate: float | None) -> Iterator[VideoFrame]:
    """The frames nearest to the moments of a constant rate; None gives each once.

    Raises:
        DamagedVideo: Where `frames` does, after what is before the damage.
    """
    if frame_rate is None:
        yield from (frame.frame for frame in frames)
        return
    before, count, damage = None, 0, None
    frames = iter(frames)
    while True:
        try:
            frame = next(frames, None)
        except DamagedVideo as error:
            frame, damage = None, error
        if before is not None:
            if frame is not None:
                until = (before.time + frame.time) / 2
            else:  # nobody knows how long the last one before the damage stands
                until = before.time + (0 if damage else before.duration - 2 * JITTER)
            while count / frame_rate <= until + JITTER:
                yield before.frame
                count += 1
        if damage is not None:
            raise damage
        if frame is None:
            return
        before = frame
