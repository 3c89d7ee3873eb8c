"""Cutting a grid of tokens into windows and putting it together again (paper §4.3, eq. 6 and 9)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from einops import rearrange
from torch import Tensor

from .dispatch import fused_runs

Rectangle = tuple[int, int, int, int, int, int]
"""A group of equal windows: first row, windows and their rows; the same of the columns. The groups
of a grid stand row by row, and cover it once."""


def split_windows(grid: Tensor, rectangles: Sequence[Rectangle], tile: int = 1) -> list[Tensor]:
    """Cuts a grid into batches of equal windows.

    Args:
        grid: b t h w d.
        rectangles: The groups of equal windows.
        tile: Zeros behind a window's tokens make their number a multiple of it; only where
            `tiles.tile_of` asks for that.

    Returns:
        One tensor for each group, (b rows columns) t h w d; with tiles (b rows columns) n d.
    """
    if fused_runs("triton_windows", grid.device):
        from .triton_windows import split

        return split(grid, rectangles, tile)
    return [
        rearrange(
            grid[:, :, top : top + rows * height, left : left + columns * width],
            "b t (r h) (c w) d -> (b r c) t h w d",
            r=rows,
            c=columns,
        )
        for top, rows, height, left, columns, width in rectangles
    ]


def merge_windows(
    windows: Sequence[Tensor], rectangles: Sequence[Rectangle], size: tuple[int, int]
) -> Tensor:
    """Exact inverse of `split_windows` without tiles: batches of equal windows → grid b t h w d.

    Args:
        windows: One tensor for each group, (b rows columns) t h w d.
        rectangles: The groups of equal windows.
        size: Rows and columns of the grid.
    """
    if fused_runs("triton_windows", windows[0].device):
        from .triton_windows import merge

        return merge(list(windows), rectangles, size)
    merged = [
        (top, rearrange(window, "(b r c) t h w d -> b t (r h) (c w) d", r=rows, c=columns))
        for window, (top, rows, _, _, columns, _) in zip(windows, rectangles, strict=True)
    ]
    bands = [
        torch.cat([part for _, part in band], dim=3)
        for _, band in groupby(merged, key=lambda item: item[0])
    ]
    return torch.cat(bands, dim=2)
