"""Frames ↔ files: web-safe H.264, side by side, labels and contact sheets."""

from __future__ import annotations

import re
import secrets
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .files import whole_file

# Constant quality a little better than what the eye tells apart from the frames themselves.
QUALITY = "17"
# RGB goes to the matrix that the tags name: players that read the tags, and those that assume
# it for high definition, then show the same colours.
BT709 = (
    "-vf",
    "scale=in_range=pc:out_range=tv:out_color_matrix=bt709"
    ":flags=bicubic+accurate_rnd+full_chroma_int,format=yuv420p"
    ",setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv",
)
# Pillow's built-in font needs no file on the machine, but lacks these.
PLAIN = str.maketrans({"×": "x", "–": "-", "—": "-", "’": "'", "…": "..."})


@dataclass(frozen=True)
class VideoInfo:
    """What a file says of itself.

    Attributes:
        width: Columns in pixels.
        height: Rows in pixels.
        num_frames: Frames that can be read.
        fps: Frames a second.
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


def encode_video(frames: Iterable[np.ndarray], path: Path, fps: int) -> Path:
    """Writes an MP4 file that browsers play: H.264 High, yuv420p, BT.709, index at the front.

    The frames are taken one by one. Whatever fails, `path` holds a whole video or what it held
    before.

    Args:
        frames: uint8, h w 3 each, all of the same even size.
        path: The file to write; its folder exists.
        fps: Frames a second.

    Raises:
        ValueError: No frame, or one of another type or size, or an odd size, or a bad `fps`.
        OSError: The folder takes no files, or the disk is full; nothing is left behind.
    """
    path = Path(path)
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
            _encode(first, remaining, partial, fps)
    except OSError as error:
        raise _cannot_write(path, str(error)) from error
    return path


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


def _encode(first: np.ndarray, remaining: Iterator[np.ndarray], target: Path, fps: int) -> None:
    from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter

    height, width = first.shape[:2]
    writer = FFMPEG_VideoWriter(
        str(target),
        (width, height),
        fps,
        codec="libx264",
        preset="fast",
        ffmpeg_params=[
            *("-crf", QUALITY, "-profile:v", "high", *BT709),
            # A key frame a second keeps dragging through two clips in step quick.
            *("-g", str(fps), "-movflags", "+faststart"),
        ],
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
    """One line with the cause and the way out, instead of the encoder's whole output."""
    if re.search(r"No space left|SIGXFSZ|File too large|Disk quota", reason):
        return OSError(
            f"{path} was not written: the disk is full or the file size limited;"
            f" free some space below {path.parent} or choose another output folder"
        )
    if re.search(r"Permission denied|Read-only", reason):
        return OSError(
            f"{path} was not written: {path.parent} can't be written to;"
            " choose another output folder"
        )
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    return OSError(f"{path} was not written: {lines[-1] if lines else 'the encoder failed'}")


def read_video(path: Path) -> np.ndarray:
    """Reads a whole file: uint8, t h w c.

    Raises:
        OSError: The file is missing or not a video.
    """
    import imageio_ffmpeg

    try:
        reader = imageio_ffmpeg.read_frames(_existing(path), pix_fmt="rgb24")
        width, height = next(reader)["size"]
        frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    except (OSError, RuntimeError, ValueError, IndexError, KeyError) as error:
        raise _cannot_read(path) from error
    if not frames:
        raise _cannot_read(path)
    return np.stack(frames)


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
    width, height = meta["source_size"]
    return VideoInfo(
        width=width,
        height=height,
        num_frames=num_frames,
        fps=float(meta["fps"]),
        codec=meta["codec"],
        pixel_format=meta["pix_fmt"].split("(")[0],
        duration=float(meta["duration"]),
    )


def _existing(path: Path) -> str:
    if not Path(path).is_file():
        raise FileNotFoundError(path)
    return str(path)


def _cannot_read(path: Path) -> OSError:
    if not Path(path).exists():
        return OSError(f"there is no file {path}")
    return OSError(f"{path} is not a video that can be read: it may be damaged or incomplete")


def crop_rows(frames: np.ndarray, rows: int) -> np.ndarray:
    """Keeps the middle rows: the sizes that are generated are multiples of a token's size.

    Args:
        frames: … h w c.
        rows: Rows to keep, even.

    Raises:
        ValueError: `rows` is odd, not positive, or more than there are.
    """
    height = frames.shape[-3]
    if rows < 1 or rows % 2 or rows > height:
        raise ValueError(f"rows must be even, from 2 to the frames' {height}, not {rows}")
    top = (height - rows) // 2
    return frames[..., top : top + rows, :, :]


def label_frame(frame: np.ndarray, text: str) -> np.ndarray:
    """Returns a copy of a frame with a name in its upper left corner.

    Args:
        frame: uint8, h w 3.
        text: One short line; made smaller where the frame is too narrow for it.
    """
    height, width = frame.shape[:2]
    label = _label(text.translate(PLAIN), max(10, height // 30), width)
    margin = min(max(4, height // 60), max(0, width - label.shape[1]))
    patch = frame[margin : margin + label.shape[0], margin : margin + label.shape[1]]
    label = label[: patch.shape[0], : patch.shape[1]]
    opacity = label[..., 3:].astype(np.float32) / 255
    labelled = frame.copy()
    labelled[margin : margin + patch.shape[0], margin : margin + patch.shape[1]] = np.rint(
        opacity * label[..., :3] + (1 - opacity) * patch
    ).astype(np.uint8)
    return labelled


@lru_cache(maxsize=64)
def _label(text: str, size: int, max_width: int) -> np.ndarray:
    """Draws white letters on a dark, half transparent pill: uint8, h w 4."""
    font = ImageFont.load_default(size=size)
    padding = size // 2
    width = round(font.getlength(text)) + 2 * padding
    if width > max_width and size > 6:
        return _label(text, size - 1, max_width)
    height = size + 2 * padding
    image = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((0, 0, width - 1, height - 1), radius=height // 4, fill=(8, 10, 14, 150))
    draw.text((padding, height / 2), text, font=font, fill=(255, 255, 255, 255), anchor="lm")
    return np.asarray(image)


def side_by_side(
    left: Iterable[np.ndarray],
    right: Iterable[np.ndarray],
    labels: tuple[str, str],
    max_width: int = 3840,
) -> Iterator[np.ndarray]:
    """Puts two clips next to each other, labelled, with a thin line between them.

    Args:
        left: uint8 frames, h w 3.
        right: As many frames of the same size.
        labels: The names of both.
        max_width: Columns of the result at most: common decoders refuse more than 4K, so wider
            pairs are made smaller.

    Yields:
        uint8 frames, h' w' 3, both sizes even.

    Raises:
        ValueError: The clips differ in length or size.
    """
    for index, (one, other) in enumerate(zip(left, right, strict=True)):
        if one.shape != other.shape:
            raise ValueError(
                f"frame {index} of the clips differs in shape: {one.shape} and {other.shape}"
            )
        panels = [_fit(frame, max_width // 2) for frame in (one, other)]
        pair = np.concatenate(
            [label_frame(panel, label) for panel, label in zip(panels, labels, strict=True)], axis=1
        )
        middle, half = pair.shape[1] // 2, max(1, pair.shape[0] // 540)
        pair[:, middle - half : middle + half] = 255
        yield pair


def _fit(frame: np.ndarray, max_width: int) -> np.ndarray:
    """Makes a frame narrower where it has to be; both sizes stay even."""
    height, width = frame.shape[:2]
    if width <= max_width:
        return frame
    narrow = max_width // 2 * 2
    size = (narrow, round(height * narrow / width / 2) * 2)
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))


def contact_sheet(
    images: Sequence[np.ndarray | Image.Image], columns: int, labels: Sequence[str] = ()
) -> Image.Image:
    """Arranges pictures in rows, each with its caption below.

    Args:
        images: Pictures of the same size; arrays are uint8, h w 3.
        columns: Pictures a row.
        labels: One caption a picture, or none at all.

    Raises:
        ValueError: No picture, pictures of different sizes, or captions that don't match them.
    """
    pictures = [
        image if isinstance(image, Image.Image) else Image.fromarray(image) for image in images
    ]
    if not pictures or columns < 1:
        raise ValueError(f"{len(pictures)} pictures in {columns} columns make no contact sheet")
    if len({picture.size for picture in pictures}) > 1:
        raise ValueError(f"the pictures differ in size: {sorted({p.size for p in pictures})}")
    if labels and len(labels) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures, but {len(labels)} captions")
    width, height = pictures[0].size
    gap, size = max(4, width // 60), max(11, width // 32)
    font = ImageFont.load_default(size=size)
    captions = [_wrap(label, font, width) for label in labels]
    below = max((len(caption) for caption in captions), default=0) * round(size * 1.3)
    rows = -(-len(pictures) // columns)
    step_x, step_y = width + gap, height + below + gap
    sheet = Image.new("RGB", (columns * step_x + gap, rows * step_y + gap), (250, 250, 250))
    draw = ImageDraw.Draw(sheet)
    for index, picture in enumerate(pictures):
        x, y = gap + index % columns * step_x, gap + index // columns * step_y
        sheet.paste(picture, (x, y))
        for line, text in enumerate(captions[index] if captions else ()):
            draw.text(
                (x, y + height + line * round(size * 1.3)), text, font=font, fill=(40, 40, 40)
            )
    return sheet


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines = [""]
    for word in text.translate(PLAIN).split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def unique_directory(parent: Path, stem: str) -> Path:
    """Creates a folder that no other run has.

    Args:
        parent: Where it goes; created when missing.
        stem: What its name begins with; what file names can't hold becomes a hyphen.

    Raises:
        OSError: The folder can't be created.
    """
    safe = re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-")[:40] or "run"
    folder = Path(parent) / f"{safe}-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if folder.is_dir():
            return unique_directory(parent, stem)
        raise OSError(f"{folder} can't be created: a file is in the way") from None
    except OSError as error:
        raise OSError(
            f"the output folder {folder} can't be created ({error.strerror});"
            " choose another output folder"
        ) from error
    return folder
