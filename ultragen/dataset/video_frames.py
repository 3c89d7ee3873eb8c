"""The whole frames of a video file with their times, progressive, in one go from front to back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..video import for_ffmpeg
from .unreadable import DamagedVideo, UnreadableVideo

if TYPE_CHECKING:  # an optional package
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer

LONGEST_FRAME = 10.0
"""Seconds that one frame may stand: more is a fault of the time stamps, or a frozen picture."""
MISSING = 0.5
"""Seconds that a file may end earlier than it says."""
COMMON_RATE = 25.0  # frames a second, for files that know neither a rate nor time stamps


@dataclass(frozen=True)
class TimedFrame:
    """A decoded frame, and when it is shown.

    Attributes:
        frame: PyAV's, as it is stored.
        time: Seconds after the first frame.
        duration: Seconds until the next one, as the file says or by its rate.
    """

    frame: VideoFrame
    time: float
    duration: float


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a file and the video stream in it that players show.

    Raises:
        UnreadableVideo: It is no video, or has no video stream that can be decoded.
        OSError: PyAV is missing.
    """
    av = import_av()
    try:
        with av.open(for_ffmpeg(path), **_lenient(av.__version__)) as container:
            stream = container.streams.best("video")
            if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
                raise UnreadableVideo("no video in it")
            if stream.codec_context is None:
                raise UnreadableVideo("a codec that FFmpeg does not know")
            # Damaged frames are errors instead of guesses. Threads that work on several frames at
            # once would swallow errors at the end of a file.
            stream.codec_context.options = {"err_detect": "explode"}
            stream.thread_type = "SLICE"
            yield container, stream
    except av.InvalidDataError as error:
        raise UnreadableVideo("not a video, or cut before its index") from error
    except av.FFmpegError as error:
        raise UnreadableVideo((error.strerror or type(error).__name__).lower()) from error


def _lenient(version: str) -> dict[str, str]:
    """What has `av.open` take tags in another encoding than UTF-8, which are of no interest: up to
    PyAV 18 an argument, without which they are errors; 19.0 knows none and takes them by itself."""
    return {"metadata_errors": "replace"} if int(version.split(".")[0]) < 19 else {}


def import_av() -> Any:
    """PyAV, which only those need who bring clips of their own.

    Raises:
        OSError: It is missing.
    """
    try:
        import av
    except ImportError as error:
        raise OSError("Reading clips needs one more package: pip install av") from error
    av.logging.set_level(None)  # what is wrong with a file is told once, by us
    return av


def stated_seconds(stream: VideoStream) -> float | None:
    """How long a file says that its video is; Matroska says it in a tag."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if tag is None:
        return None
    hours, minutes, seconds = tag.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def frame_rate(stream: VideoStream) -> float | None:
    """Frames a second in the mean, as far as a file tells."""
    seconds = stated_seconds(stream)
    if stream.codec_context.name == "gif" and stream.frames and seconds:
        # PyAV 18.1 says 50/3 of a GIF of 16 and 25 of one of 24, whose times are right.
        return stream.frames / seconds
    rate: Fraction | None = stream.average_rate or stream.guessed_rate
    return float(rate) if rate else None


def timed_frames(container: InputContainer, stream: VideoStream) -> Iterator[TimedFrame]:
    """Decodes a stream from its start: whole frames in the order in which they are shown.

    Interlaced frames become progressive ones, as many, by ffmpeg's bwdif. A frame whose time stamp
    is missing, or not after the one before, follows it by one interval of the mean rate.

    Raises:
        DamagedVideo: After the last whole frame.
        UnreadableVideo: There is none.
    """
    interval = 1 / (frame_rate(stream) or COMMON_RATE)
    start = last = None
    count = 0
    try:
        for frame in _progressive(_one_size(_whole_frames(container, stream))):
            time = 0.0
            if last is not None:
                stamp = None if frame.time is None or start is None else frame.time - start
                time = stamp if stamp is not None and stamp > last else last + interval
                if time - last > LONGEST_FRAME:
                    raise _Fault("a gap in time at")
            else:
                start = frame.time
            duration = float(frame.duration * frame.time_base) if frame.time_base else 0.0
            yield TimedFrame(frame, time, duration or interval)
            count, last = count + 1, time
    except _Fault as fault:
        if count:
            raise DamagedVideo(_told(fault, count, stream), count) from fault
    if not count:
        raise UnreadableVideo("damaged from the first frame")


class _Fault(Exception):
    """What begins at the frame after the last whole one."""


def _told(fault: _Fault, count: int, stream: VideoStream) -> str:
    expected = round((stated_seconds(stream) or 0) * (frame_rate(stream) or 0))
    return f"{fault} frame {count}" + (f" of {expected}" if expected > count else "")


def _whole_frames(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Decodes until the first fault.

    Frames that wait in the decoder for their turn then are whole too, but between them may be the
    place of a lost one: only those are given that are shown before any that is lost.
    """
    av = import_av()
    packets, last, end = container.demux(stream), None, 0.0
    while True:
        packet = None
        try:
            packet = next(packets)
            if not packet.size and packet.dts is not None:
                continue  # Theora's way to repeat a frame; decoders take it for the end
            if packet.is_corrupt or (not packet.size and _ends_early(stream, end)):
                break
            frames = packet.decode()
        except StopIteration:
            return
        except av.FFmpegError:
            break
        for frame in frames:
            if frame.is_corrupt:
                raise _Fault("damaged from")
            yield frame
        if packet.size:
            last, end = packet, max(end, _end(stream, packet))
    yield from _waiting(stream, last, packet)
    raise _Fault("damaged from")


def _end(stream: VideoStream, packet: Packet) -> float:
    """When the frame of a packet is no longer shown, in seconds after the first frame's start."""
    ticks = (packet.pts or 0) + (packet.duration or 0) - (stream.start_time or 0)
    return float(ticks * packet.time_base)


def _ends_early(stream: VideoStream, end: float) -> bool:
    seconds = stated_seconds(stream)
    return seconds is not None and seconds - end > MISSING


def _waiting(stream: VideoStream, last: Packet | None, lost: Packet | None) -> Iterator[VideoFrame]:
    """Frames in the decoder that are shown before a lost packet and all that come after it.

    No packet is shown before it is decoded, so that the time of decoding is a bound for all that
    follow. Of a packet that could not even be read, only the one before it tells anything.
    """
    known = last if lost is None or lost.pts is None else lost
    if known is None or known.dts is None or known.pts is None or not known.duration:
        return
    bound = known.dts + known.duration
    if known is lost:
        bound = min(bound, known.pts)
    try:
        frames = stream.decode(None)
    except import_av().FFmpegError:
        return
    for frame in frames:
        if frame.pts is None or frame.pts >= bound or frame.is_corrupt:
            return
        yield frame


def _one_size(frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    size = None
    for frame in frames:
        size = size or (frame.width, frame.height)
        if (frame.width, frame.height) != size:
            raise _Fault(f"another size ({frame.width}×{frame.height}) from")
        yield frame


def _progressive(frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    """Sends frames through bwdif from the first interlaced one on."""
    graph, fault = None, None
    while True:
        try:
            frame = next(frames, None)
        except _Fault as error:
            frame, fault = None, error
        if graph is None and frame is not None and frame.interlaced_frame:
            graph = _deinterlacer(frame)
        if graph is not None:
            graph.vpush(frame)
            yield from _ready(graph)
        elif frame is not None:
            yield frame
        if fault is not None:
            raise fault
        if frame is None:
            return


def _deinterlacer(frame: VideoFrame) -> Any:
    graph = import_av().filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
    )
    graph.link_nodes(
        source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink")
    ).configure()
    return graph


def _ready(graph: Any) -> Iterator[VideoFrame]:
    while True:
        try:
            yield graph.vpull()
        except (BlockingIOError, EOFError):
            return
