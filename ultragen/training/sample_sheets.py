"""Sample sheets: pictures in rows and columns."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from ..pictures import contact_sheet, to_frames


def to_image(frame: Tensor) -> Image.Image:
    """3 h w in [0, 1] → picture."""
    return Image.fromarray(to_frames(frame[:, None])[0])


def grid(rows: list[list[Image.Image]]) -> Image.Image:
    """Pictures of one size, row by row; all rows have the same length."""
    return contact_sheet([image for row in rows for image in row], len(rows[0]))
