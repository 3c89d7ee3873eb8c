"""Seams: how far the sky jumps where windows meet, beside how far it jumps elsewhere.

Every vertical border between two columns of tokens is looked at: the mean brightness of 8 columns
of pixels on its right less that of 8 on its left, less the mean of the same 20 pixels to either
side, in blocks of 16 rows; the median of its amount over the blocks of the upper third of a frame,
which is sky. Clouds and the sun jump more than seams do, so that only ranks are compared: the share
of a clip's borders that jump less than this one, 0.5 where it is like the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from ..model.windows import Partition
from ..runs.loading import Models
from ..runs.request import Request

SKY = 1 / 3  # of the rows
NEAR, WIDE, BESIDE, BLOCK = 4, 8, 20, 16  # pixels
MARGIN = 2  # tokens at the frame's edge, where nothing lies beside
FIRST = 1 + MARGIN
"""The first border that is looked at: so many columns of tokens are on its left."""


@dataclass(frozen=True)
class Borders:
    """Where columns of windows meet in frames of which all columns are kept.

    Attributes:
        token: Rows and columns of a token in pixels.
        columns: Columns of tokens on the left of each border, those at the frame's edges left out.
    """

    token: int
    columns: tuple[int, ...]

    def rank(self, frames: np.ndarray) -> float:
        """The mean rank of the borders of windows among all of a clip, uint8, t h w 3."""
        found = ranks(jumps(frames, self.token)[None])[0]
        return float(np.mean([found[border - FIRST] for border in self.columns]))


def window_borders(models: Models, request: Request) -> Borders:
    """Borders of the windows of even layers, which are the same in all ablations.

    Args:
        models: Whose windows are meant.
        request: A validated one, for the size.

    Raises:
        ValueError: if the frame is too small for a border that has others beside it.
    """
    token, size = models.preset.pixels_per_token, request.size
    height, width = size.height // token, size.width // token
    transformer = models.native.transformer
    windows = transformer.resolve_windows(request.windows, height, width)
    cut = transformer.rule.partition(height, width, windows, odd=False)
    columns = tuple(x for x in borders_of(cut) if FIRST <= x < width - MARGIN)
    if not columns or width - MARGIN - FIRST < 2:
        raise ValueError(
            f"Seams can't be measured in {width} columns of tokens: choose a larger --resolution."
        )
    return Borders(token, columns)


def jumps(frames: np.ndarray, token: int) -> np.ndarray:
    """How far each border between two columns of tokens jumps: t h w 3, uint8 → one value a border,
    the outermost `MARGIN` on either side left out."""
    rows = int(SKY * frames.shape[1]) // BLOCK * BLOCK
    sky = frames[:, :rows].astype(np.float64).mean(-1)

    def step(at: int) -> np.ndarray:
        right, left = sky[..., at + NEAR :][..., :WIDE], sky[..., : at - NEAR][..., -WIDE:]
        return right.mean(-1) - left.mean(-1)

    def jump(at: int) -> float:
        over = step(at) - (step(at - BESIDE) + step(at + BESIDE)) / 2
        return float(np.median(np.abs(over.reshape(-1, BLOCK).mean(1))))

    borders = range(FIRST, frames.shape[2] // token - MARGIN)
    return np.array([jump(token * border) for border in borders])


def ranks(values: np.ndarray) -> np.ndarray:
    """The share of the other values of a row that are smaller; of equal ones half."""
    smaller = (values[:, None] < values[..., None]).sum(-1)
    equal = (values[:, None] == values[..., None]).sum(-1) - 1
    return (smaller + equal / 2) / (values.shape[1] - 1)


def borders_of(partition: Partition) -> list[int]:
    """Where the columns of windows meet, in tokens."""
    return list(accumulate(partition.columns))[:-1]
