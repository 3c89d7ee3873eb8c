"""Frames as pictures: bytes, crops, labels, pairs side by side, contact sheets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:  # what only draws pictures needs no torch
    from torch import Tensor

VISIBLE = 3  # of 255: a clip without a brighter value than those below is black to the eye
# Pillow's built-in font needs no file on the machine, but lacks these.
PLAIN = str.maketrans({"×": "x", "–": "-", "—": "-", "’": "'", "…": "..."})


def to_uint8(pixels: Tensor) -> Tensor:
    """Values in [0, 1], of any shape → the nearest of 0..255; what lies outside is clamped."""
    return pixels.float().clamp(0, 1).mul_(255).round_().byte()


def to_frames(video: Tensor) -> np.ndarray:
    """A clip in [0, 1], 3 t h w, on any device → its frames, t h w 3, uint8."""
    return to_uint8(video).permute(1, 2, 3, 0).cpu().numpy()


def is_black(frames: np.ndarray | Tensor) -> bool:
    """Whether nothing can be seen in frames: a uint8 array, or floats in [0, 1], of any shape."""
    return bool(frames.max() * (1 if frames.dtype == np.uint8 else 255) < VISIBLE)


def crop_frames(frames: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Keeps the middle: the sizes that are generated are multiples of a token's size.

    Args:
        frames: … h w c.
        rows: Rows to keep, even.
        columns: Columns to keep, even.

    Raises:
        ValueError: One of them is odd, not positive, or more than there are.
    """
    height, width = frames.shape[-3:-1]
    for name, kept, there in (("rows", rows, height), ("columns", columns, width)):
        if kept < 1 or kept % 2 or kept > there:
            raise ValueError(f"{name} must be even, from 2 to the frames' {there}, not {kept}")
    top, left = (height - rows) // 2, (width - columns) // 2
    return frames[..., top : top + rows, left : left + columns, :]


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
    max_pixels: int = 3840 * 2160,
) -> Iterator[np.ndarray]:
    """Puts two clips next to each other, labelled, with a thin line between them.

    Args:
        left: uint8 frames, h w 3.
        right: As many frames of the same size.
        labels: The names of both.
        max_width: Columns of the result at most: common decoders refuse more than 4K, so wider
            pairs are made smaller.
        max_pixels: Pixels of the result at most, for the same reason.

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
        panels = [_fit(frame, max_width // 2, max_pixels // 2) for frame in (one, other)]
        pair = np.concatenate(
            [label_frame(panel, label) for panel, label in zip(panels, labels, strict=True)], axis=1
        )
        middle, half = pair.shape[1] // 2, max(1, pair.shape[0] // 540)
        pair[:, middle - half : middle + half] = 255
        yield pair


def _fit(frame: np.ndarray, max_width: int, max_pixels: int) -> np.ndarray:
    """Makes a frame smaller where it has to be; both sizes stay even."""
    height, width = frame.shape[:2]
    max_width = min(max_width, int((max_pixels * width / height) ** 0.5))
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


def to_image(frame: Tensor) -> Image.Image:
    """A frame 3 h w in [0, 1] as a picture."""
    return Image.fromarray(to_frames(frame[:, None])[0])


def picture_grid(rows: list[list[Image.Image]]) -> Image.Image:
    """Pictures of one size, row by row; all rows have the same length."""
    return contact_sheet([image for row in rows for image in row], len(rows[0]))
