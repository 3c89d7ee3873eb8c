"""Frames ↔ files: H.264 that browsers play, and what else clips are shared as."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .files import whole_file

# Constant quality that the eye does not tell from the frames themselves: 17 or 18 by FFmpeg's
# guide to H.264 (trac.ffmpeg.org/wiki/Encode/H.264).
QUALITY = "17"
SECONDS_FOR_TAGS = 20.0
# RGB goes to the matrix that the tags name: players that read the tags, and those that assume
# it for high definition, then show the same colours.
BT709 = (
    "-vf",
    "scale=in_range=pc:out_range=tv:out_color_matrix=bt709"
    ":flags=bicubic+accurate_rnd+full_chroma_int,format=yuv420p"
    ",setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv",
)

REPEATABLE = ("-fflags", "+bitexact")  # else a WebM file has a number that is drawn by lot
ANIMATION_SIDE = 640  # rows and columns in pixels, at most, of what chats show without a player
SMALL = (
    f"scale='min(iw,{ANIMATION_SIDE})':'min(ih,{ANIMATION_SIDE})'"
    ":force_original_aspect_ratio=decrease:flags=lanczos"
)


@dataclass(frozen=True)
class VideoFormat:
    """How a kind of file is encoded.

    Attributes:
        name: For people.
        codec: FFmpeg's name of the encoder.
        parameters: What FFmpeg is told beside it.
        preset: One of the encoder's own, where it has any.
        demuxer: FFmpeg's name of what reads such files, where they can carry a comment.
    """

    name: str
    codec: str
    parameters: tuple[str, ...]
    preset: str = "fast"
    demuxer: str | None = None


FORMATS = {
    ".mp4": VideoFormat(
        "MP4",
        "libx264",
        ("-crf", QUALITY, "-profile:v", "high", *BT709, "-movflags", "+faststart"),
        demuxer="mov",
    ),
    # Constant quality as by FFmpeg's guide to VP9 (trac.ffmpeg.org/wiki/Encode/VP9), which takes 31
    # for 1080p and 15 for 4K.
    ".webm": VideoFormat(
        "WebM",
        "libvpx-vp9",
        ("-crf", "24", "-b:v", "0", "-cpu-used", "4", "-row-mt", "1", *BT709, *REPEATABLE),
        demuxer="matroska",
    ),
    ".gif": VideoFormat(
        "GIF",
        "gif",
        ("-vf", f"{SMALL},split[a][b];[a]palettegen[p];[b][p]paletteuse", "-loop", "0"),
    ),
    ".webp": VideoFormat(
        "WebP", "libwebp_anim", ("-vf", SMALL, "-quality", "80", "-loop", "0"), preset="photo"
    ),
}
"""Kinds of files by their suffix. GIF and WebP are made smaller, to `ANIMATION_SIDE`."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file says of itself.

    Attributes:
        width: Columns in pixels, as the file is shown: upright.
        height: Rows in pixels, likewise.
        num_frames: Frames that can be read.
        fps: Frames a second, on average.
        codec: For example `h264`.
        pixel_format: For example `yuv420p`.
        duration: Seconds.
    """

    width: int
    height: int
    num_frames: int
    fps: float
    codec: str
    pixel_format: str
    duration: float


def encode_video(
    frames: Iterable[np.ndarray], path: Path, fps: int, comment: str | None = None
) -> Path:
    """Writes a file of the kind that its suffix names, see `FORMATS`. MP4 is what browsers play:
    H.264 High, yuv420p, BT.709, index at the front.

    The frames are taken one by one. Whatever fails, `path` holds a whole video or what it held
    before.

    Args:
        frames: uint8, h w 3 each, all of the same even size.
        path: The file to write; its folder exists.
        fps: Frames a second.
        comment: Text that the file carries in its tag of that name, see `read_comment`; the same
            frames and text give the same bytes. GIF and WebP have no such tag, and carry none.

    Raises:
        ValueError: No frame, or one of another type or size, or an odd size, or a bad `fps`, or a
            path with another suffix.
        OSError: The folder takes no files, or the disk is full; nothing is left behind.
    """
    path = Path(path)
    check_suffix(path)
    if isinstance(fps, bool) or not isinstance(fps, int) or fps < 1:
        raise ValueError(f"fps must be a whole number of at least 1, not {fps!r}")
    remaining = iter(frames)
    first = next(remaining, None)
    if first is None:
        raise ValueError(f"there are no frames to write to {path}")
    _check_frame(first, first.shape, 0)
    if not path.parent.is_dir():
        raise OSError(f"{path} was not written: there is no folder {path.parent}; create it first")
    try:
        with whole_file(path) as partial:
            _encode(first, remaining, partial, fps, comment)
    except OSError as error:
        if str(error).startswith(str(path)):
            raise
        raise _cannot_write(path, str(error)) from error
    return path


def check_suffix(path: Path) -> None:
    """Checks that a name's suffix is one of `FORMATS`, whatever its case.

    Raises:
        ValueError: It is not, with those that there are.
    """
    if path.suffix.lower() not in FORMATS:
        *others, last = FORMATS
        raise ValueError(f"{path} can't be written: names end in {', '.join(others)} or {last}")


def convert_video(source: Path, target: Path) -> Path:
    """Writes a video's frames into a file of another kind, one by one; errors as in `read_video`
    and `encode_video`. What the source's own encoding lost stays lost; its comment goes along where
    the other kind can carry one.

    Args:
        source: Any video, of a whole number of frames a second.
        target: The file to write; its folder exists.
    """
    import imageio_ffmpeg

    info, comment = probe_video(source), read_comment(source)
    reader = imageio_ffmpeg.read_frames(
        for_ffmpeg(source), pix_fmt="rgb24", output_params=["-fps_mode", "passthrough"]
    )
    next(reader)  # what the file says of itself
    shape = (info.height, info.width, 3)
    try:
        frames = (np.frombuffer(frame, np.uint8).reshape(shape) for frame in reader)
        return encode_video(frames, target, round(info.fps), comment)
    finally:
        reader.close()


def _check_frame(frame: np.ndarray, shape: tuple[int, ...], index: int) -> None:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(
            f"frame {index} is {frame.dtype} of shape {frame.shape}; frames are uint8, h w 3"
        )
    if frame.shape != shape:
        raise ValueError(f"frame {index} has shape {frame.shape}, the ones before have {shape}")
    height, width = frame.shape[:2]
    if height % 2 or width % 2 or not frame.size:
        raise ValueError(
            f"frames of {width}×{height} pixels can't be stored as yuv420p: width and height must"
            " be even, crop them first"
        )


def _encode(
    first: np.ndarray,
    remaining: Iterator[np.ndarray],
    target: Path,
    fps: int,
    comment: str | None,
) -> None:
    from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter

    height, width = first.shape[:2]
    kind = FORMATS[target.suffix.lower()]
    # A key frame a second keeps dragging through two clips in step quick.
    key_frames = ("-g", str(fps)) if kind.name in ("MP4", "WebM") else ()
    tags = ("-metadata", f"comment={comment}") if comment is not None and kind.demuxer else ()
    writer = FFMPEG_VideoWriter(
        for_ffmpeg(target),
        (width, height),
        fps,
        codec=kind.codec,
        preset=kind.preset,
        ffmpeg_params=[*kind.parameters, *key_frames, *tags],
    )
    process = writer.proc
    try:
        writer.write_frame(first)
        for index, frame in enumerate(remaining, start=1):
            _check_frame(frame, first.shape, index)
            writer.write_frame(frame)
        # The writer's own `close` does not look at how the encoder ended.
        _, output = process.communicate()
        if process.returncode != 0:
            raise OSError(_last_line(output, process.returncode))
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
        writer.proc = None


def _last_line(output: bytes, returncode: int) -> str:
    if returncode < 0:
        return f"the encoder was stopped by {signal.Signals(-returncode).name}"
    lines = output.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else f"the encoder ended with status {returncode}"


def _cannot_write(path: Path, reason: str) -> OSError:
    """One line, instead of the encoder's whole output."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    return OSError(f"{path} was not written: {lines[-1] if lines else 'the encoder failed'}")


def read_video(path: Path) -> np.ndarray:
    """Reads a whole file: uint8, t h w c.

    Raises:
        OSError: The file is missing or not a video, or cut off; then with how much can be read.
    """
    import imageio_ffmpeg

    try:
        # All frames as they are stored, upright; at a constant rate some would come twice.
        stored = ("-fps_mode", "passthrough")
        reader = imageio_ffmpeg.read_frames(
            _existing(path), pix_fmt="rgb24", output_params=list(stored)
        )
        meta = next(reader)
        width, height = meta["size"]
        frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    except (OSError, RuntimeError, ValueError, IndexError, KeyError) as error:
        raise _cannot_read(path) from error
    if not frames:
        raise _cannot_read(path)
    told = round(meta["duration"] * meta["fps"])
    if len(frames) < told and _is_cut_off(path):
        raise OSError(
            f"{path} is cut off: only {len(frames)} of its {told} frames can be read;"
            " copy or download it again"
        )
    return np.stack(frames)


def _is_cut_off(path: Path) -> bool:
    """Whether a file ends before its index does; sound may well be longer than the frames."""
    from imageio_ffmpeg import get_ffmpeg_exe

    command = [get_ffmpeg_exe(), "-hide_banner", "-v", "error", "-i", for_ffmpeg(path)]
    command += ["-map", "0:v:0", "-c", "copy", "-f", "null", "-"]
    said = subprocess.run(command, capture_output=True, text=True, errors="replace").stderr
    return "partial file" in said


def probe_video(path: Path) -> VideoInfo:
    """Reads what a file says of itself, without decoding its frames.

    Raises:
        OSError: The file is missing or not a video.
    """
    import imageio_ffmpeg

    try:
        name = _existing(path)
        reader = imageio_ffmpeg.read_frames(name)
        meta = next(reader)
        reader.close()
        num_frames, _ = imageio_ffmpeg.count_frames_and_secs(name)
    except (OSError, RuntimeError, ValueError, IndexError, KeyError) as error:
        raise _cannot_read(path) from error
    width, height = meta["size"]  # upright, as it is shown
    return VideoInfo(
        width=width,
        height=height,
        num_frames=num_frames,
        fps=float(meta["fps"]),
        codec=meta["codec"],
        pixel_format=meta["pix_fmt"].split("(")[0],
        duration=float(meta["duration"]),
    )


def read_comment(path: Path) -> str | None:
    """The text that an MP4 or WebM file carries in its tag `comment`; None where it has none.

    Raises:
        OSError: The file is missing, or not a video of the kind that its suffix names.
    """
    from imageio_ffmpeg import get_ffmpeg_exe

    try:
        name = _existing(path)
    except FileNotFoundError as error:
        raise _cannot_read(path) from error
    kind = FORMATS.get(Path(path).suffix.lower())
    if kind is None or kind.demuxer is None:
        return None
    # Strangers hand such files in: no other format is tried, some of which open files by name.
    command = [get_ffmpeg_exe(), "-v", "error", "-protocol_whitelist", "file", "-f", kind.demuxer]
    command += ["-i", name, "-f", "ffmetadata", "-"]
    try:
        told = subprocess.run(command, capture_output=True, check=False, timeout=SECONDS_FOR_TAGS)
    except subprocess.TimeoutExpired as error:
        raise _cannot_read(path) from error
    if told.returncode != 0:
        raise _cannot_read(path)
    # ffmpeg's own form of tags: `=`, `;`, `#`, backslashes and line feeds stand behind a backslash.
    text = told.stdout.decode("utf-8", "replace")
    # WebM's tags are in capitals.
    said = re.compile(r"^comment=((?:[^\\\n]|\\.)*)$", re.MULTILINE | re.DOTALL | re.IGNORECASE)
    found = said.search(text)
    return re.sub(r"\\(.)", r"\1", found[1], flags=re.DOTALL) if found else None


def _existing(path: Path) -> str:
    if not Path(path).is_file():
        raise FileNotFoundError(path)
    return for_ffmpeg(path)


def for_ffmpeg(path: Path) -> str:
    """A path as ffmpeg understands it: of a relative one it takes what stands before a colon for a
    protocol, and a leading hyphen for an option."""
    return str(Path(path).absolute())


def _cannot_read(path: Path) -> OSError:
    if not Path(path).exists():
        return OSError(f"there is no file {path}")
    return OSError(f"{path} is not a video that can be read: it may be damaged or incomplete")
