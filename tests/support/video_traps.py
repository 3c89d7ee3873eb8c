"""Small video files, each with one of the traps that people's own clips hold.

Colours become YUV here, in float64, and not by ffmpeg, so that what a reader makes of a file is
checked against something else than the library it reads with.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np

# Weights of red and blue in luma: BT.601, BT.709 and BT.2020, by FFmpeg's names for the tags.
LUMA = {"smpte170m": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020nc": (0.2627, 0.0593)}
# Corners: upper left, upper right, lower left, lower right.
CORNERS = ((200, 40, 40), (40, 180, 60), (50, 60, 190), (225, 225, 225))


def corners(height: int = 64, width: int = 96) -> np.ndarray:
    """Four colours that tell which way is up: uint8, h w 3."""
    picture = np.empty((height, width, 3), np.uint8)
    for index, colour in enumerate(CORNERS):
        top, left = index // 2, index % 2
        rows = slice(0, height // 2) if top == 0 else slice(height // 2, None)
        columns = slice(0, width // 2) if left == 0 else slice(width // 2, None)
        picture[rows, columns] = colour
    return picture


def counted(num_frames: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Plain grey frames, 4 brighter each from 20 on, by which `number_of` tells them apart."""
    levels = 20 + 4 * np.arange(num_frames, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (num_frames, height, width, 3))


def number_of(frame: np.ndarray) -> int:
    """Which of `counted`'s frames this is."""
    return round((float(frame.mean()) - 20) / 4)


def to_yuv(
    pictures: np.ndarray, matrix: str = "bt709", full: bool = False, bits: int = 8
) -> np.ndarray:
    """R'G'B' → the bytes of planar Y'CbCr 4:2:0 frames.

    Args:
        pictures: In [0, 1], t h w 3, of even height and width.
        matrix: A key of `LUMA`.
        full: Full range, not limited.
        bits: 8, or 10 to 16 in little-endian words of 16.
    """
    kr, kb = LUMA[matrix]
    red, green, blue = np.moveaxis(np.asarray(pictures, np.float64), -1, 0)
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = np.stack([(blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)])
    t, h, w = luma.shape
    chroma = chroma.reshape(2, t, h // 2, 2, w // 2, 2).mean((3, 5))
    top, unit = 2**bits - 1, 2 ** (bits - 8)
    if full:
        codes = luma * top, chroma * top + 128 * unit
    else:
        codes = (luma * 219 + 16) * unit, (chroma * 224 + 128) * unit
    kind = np.uint8 if bits == 8 else "<u2"
    y, uv = (np.rint(code).clip(0, top).astype(kind) for code in codes)
    return np.concatenate([y.reshape(t, -1), *(plane.reshape(t, -1) for plane in uv)], axis=1)


def tags(
    matrix: str = "bt709", primaries: str = "bt709", transfer: str = "bt709", full: bool = False
) -> str:
    """The filter that tags frames without changing them."""
    reach = "pc" if full else "tv"
    return (
        f"setparams=colorspace={matrix}:color_primaries={primaries}"
        f":color_trc={transfer}:range={reach}"
    )


def encode(
    path: Path,
    pictures: np.ndarray,
    rate: str | float = 24,
    *,
    matrix: str = "bt709",
    full: bool = False,
    bits: int = 8,
    filters: str = "null",
    codec: Sequence[str] = ("libx264", "-crf", "1", "-preset", "ultrafast"),
    options: Sequence[str] = (),
) -> Path:
    """Writes frames by ffmpeg, with the colours that `to_yuv` gives them.

    Args:
        pictures: t h w 3, uint8 or floats in [0, 1].
        filters: ffmpeg's, after the frames are YUV; `tags()` names their colours.
    """
    if pictures.dtype == np.uint8:
        pictures = pictures / 255
    height, width = pictures.shape[1:3]
    pixels = "yuv420p" if bits == 8 else f"yuv420p{bits}le"
    ffmpeg(
        *("-f", "rawvideo", "-pix_fmt", pixels, "-s", f"{width}x{height}", "-r", str(rate)),
        *("-i", "-", "-vf", filters, "-c:v", *codec, *options, str(path)),
        data=to_yuv(pictures, matrix, full, bits).tobytes(),
    )
    return path


def ffmpeg(*arguments: str, data: bytes = b"") -> None:
    """Runs ffmpeg quietly; `data` is what it reads from `-`."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-y", "-v", "error", *arguments]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
