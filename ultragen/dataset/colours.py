"""A decoded frame → a picture: upright, square pixels, BT.709 in full range."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from .tone_mapping import CODES, PEAK, ToneMapping, Transfer
from .unreadable import UnreadableVideo
from .video_frames import import_av

if TYPE_CHECKING:  # an optional package
    from av import VideoFrame

# Code points of ITU-T H.273, which files and FFmpeg share.
UNSPECIFIED = 2
TRANSFERS: dict[int, Transfer] = {16: "pq", 18: "hlg"}
PRIMARIES = {1: "bt709", 9: "bt2020", 11: "p3", 12: "p3"}
# Matrices that swscale has, by its own numbers.
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}
BT601, BT709, BT2020 = 5, 1, 9
NO_MATRIX = {8: "YCgCo", 10: "BT.2020 of constant luminance", 14: "ICtCp", 15: "IPT"}
HD_ROWS = 720  # from which on browsers take untagged clips for BT.709
LIMITED, FULL = 1, 2
LIMITED_WHITE = 65283  # in swscale's RGB of 16 bits: (255 << 8) + 3


class FrameToPicture:
    """Turns the frames of one clip into pictures, all in the way that its first frame tells.

    Attributes:
        height: Rows of the pictures.
        width: Columns of the pictures.

    Raises:
        UnreadableVideo: The colours are in a form that no one reads.
    """

    def __init__(self, frame: VideoFrame, pixel_shape: Fraction | None) -> None:
        """Looks at a frame.

        Args:
            frame: The first one.
            pixel_shape: Width of a stored pixel by its height; None, if nothing is known.
        """
        reformatter = import_av().video.reformatter
        self._reformatter = reformatter.VideoReformatter()
        flags = reformatter.Interpolation
        # Without these swscale cuts off fractions and repeats colours of neighbouring pixels.
        self._flags = (
            flags.BICUBIC | flags.ACCURATE_RND | flags.FULL_CHR_H_INT | flags.FULL_CHR_H_INP
        )
        self._columns, self._rows = _square(frame.width, frame.height, pixel_shape)
        self._turn = _turn(frame)
        self.height, self.width = self._rows, self._columns
        if self._turn[0]:
            self.height, self.width = self.width, self.height
        self._tone_mapping = _tone_mapping(frame)
        self._matrix = _matrix(frame)
        self._range = _range(frame)

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        """uint8, h w 3."""
        picture = self._reformatter.reformat(
            frame,
            width=self._columns,
            height=self._rows,
            format="rgb48le" if self._tone_mapping else "rgb24",
            src_colorspace=self._matrix,
            interpolation=self._flags,
            src_color_range=self._range,
            dst_color_range=FULL,
        ).to_ndarray()
        if self._tone_mapping:
            picture = self._tone_mapping(picture)
        lies, rows, columns = self._turn
        if lies:
            picture = picture.swapaxes(0, 1)
        return np.ascontiguousarray(picture[::rows, ::columns])


def _square(width: int, height: int, pixel_shape: Fraction | None) -> tuple[int, int]:
    """Columns and rows of square pixels: what is too narrow is widened, as players do, so that no
    stored row or column is lost."""
    shape = pixel_shape or Fraction(1)
    return (round(width * shape), height) if shape >= 1 else (width, round(height / shape))


def _turn(frame: VideoFrame) -> tuple[bool, int, int]:
    """Whether rows become columns, and the steps through rows and columns after that.

    PyAV's `frame.rotation` is not enough: it passes over mirrors.
    """
    data = _side_data(frame, "DISPLAYMATRIX")
    if data is None:
        return False, 1, 1
    # x' = ax + cy, y' = bx + dy, in a file's 3 × 3 matrix: ISO/IEC 14496-12, 6.2.2.
    a, b, _, c, d = struct.unpack("=5i", data[:20])
    lies = abs(b) > abs(a)
    to_row, to_column = (b, c) if lies else (d, a)
    return lies, -1 if to_row < 0 else 1, -1 if to_column < 0 else 1


def _matrix(frame: VideoFrame) -> int | None:
    """swscale's number of the matrix from Y'CbCr."""
    if frame.format.is_rgb:
        return None
    tag = int(frame.colorspace)
    if tag in MATRICES:
        return MATRICES[tag]
    if tag not in (0, UNSPECIFIED):
        raise UnreadableVideo(f"colours in {NO_MATRIX.get(tag, f'matrix {tag}')}")
    if int(frame.color_trc) in TRANSFERS or PRIMARIES.get(int(frame.color_primaries)) == "bt2020":
        return BT2020
    return BT709 if frame.height >= HD_ROWS else BT601


def _range(frame: VideoFrame) -> int:
    if frame.format.is_rgb or frame.format.name.startswith("yuvj"):
        return FULL
    return int(frame.color_range) or LIMITED


def _tone_mapping(frame: VideoFrame) -> ToneMapping | None:
    """For HDR, and for primaries beyond BT.709."""
    transfer = TRANSFERS.get(int(frame.color_trc), "gamma")
    primaries = PRIMARIES.get(int(frame.color_primaries))
    if transfer != "gamma":
        return ToneMapping(transfer, primaries or "bt2020", _peak(frame), _full_code(frame))
    if primaries in (None, "bt709"):
        return None
    return ToneMapping(transfer, primaries, full_code=_full_code(frame))


def _full_code(frame: VideoFrame) -> int:
    """What swscale (9.5, FFmpeg 8) makes of white in 16 bits: not 65535, because it takes 8 bits'
    255, or the largest value of a full range, with zeros after it."""
    bits = frame.format.components[0].bits
    if bits > 16:  # floating point
        return CODES - 1
    if frame.format.is_rgb:
        return LIMITED_WHITE if bits <= 8 else CODES - 1
    return LIMITED_WHITE if _range(frame) == LIMITED else ((1 << bits) - 1) << (16 - bits)


def _peak(frame: VideoFrame) -> float:
    """The brightest that a clip holds, or its maker's display shows, in cd/m²."""
    level = _side_data(frame, "CONTENT_LIGHT_LEVEL")
    if level is not None:
        brightest, _ = struct.unpack("=2I", level[:8])
        if brightest:
            return float(brightest)
    display = _side_data(frame, "MASTERING_DISPLAY_METADATA")
    if display is not None:
        # AVMasteringDisplayMetadata: ten rationals, the last the highest luminance, and two flags.
        numerator, denominator, _, known = struct.unpack("=22i", display[:88])[18:]
        if known and denominator and numerator > 0:
            return numerator / denominator
    return PEAK


def _side_data(frame: VideoFrame, name: str) -> bytes | None:
    """What travels with a frame, as FFmpeg's structures lie in memory."""
    data: Any = frame.side_data
    return bytes(data[name]) if name in data else None
