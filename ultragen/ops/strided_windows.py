"""Cutting a grid on all three axes into close and into remote windows, and putting it together
again, as T3-Video does (arXiv 2512.13492).

Close windows are contiguous: on each axis the number of the window is the slow part of a position,
position = window · size + place. Remote windows are strided and sample the whole clip: there it is
the fast part, position = place · count + window. Both are the cut of `window_order` on the same
tokens, whose axes are only called by other names, so that each takes one copy. No window is copied
for the sake of the columns of remote windows: neighbours lie beside each other as the heads of a
token do, and attention keeps them apart like these.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor

from .window_order import Rectangle, merge_windows, split_windows

Counts = tuple[int, int, int]
"""Numbers of windows on the time, row and column axis; each divides its axis."""


def split_close(grid: Tensor, counts: Counts) -> Tensor:
    """Cuts a grid b t h w d into contiguous windows, (b windows) t' h' w' d."""
    moments, rows, columns = counts
    parts = rearrange(grid, "b (i t) h w d -> (b i) t h w d", i=moments)
    return _split(parts, rows, columns)


def merge_close(windows: Tensor, counts: Counts) -> Tensor:
    """Exact inverse of `split_close`."""
    moments, rows, columns = counts
    parts = _merge(windows, rows, columns)
    return rearrange(parts, "(b i) t h w d -> b (i t) h w d", i=moments)


def split_remote(grid: Tensor, counts: Counts) -> Tensor:
    """Cuts a grid b t h w d into strided windows, (b windows) t' h' w' (columns d): those of a row
    as if each token had more heads."""
    moments, rows, columns = counts
    parts = rearrange(grid, "b (t i) (h j) w d -> b t (i h) (j w) d", i=moments, j=rows)
    windows = _split(parts, moments, rows)
    return rearrange(windows, "b t h (w k) d -> b t h w (k d)", k=columns)


def merge_remote(windows: Tensor, counts: Counts) -> Tensor:
    """Exact inverse of `split_remote`."""
    moments, rows, columns = counts
    windows = rearrange(windows, "b t h w (k d) -> b t h (w k) d", k=columns)
    parts = _merge(windows, moments, rows)
    return rearrange(parts, "b t (i h) (j w) d -> b (t i) (h j) w d", i=moments, j=rows)


def _split(grid: Tensor, rows: int, columns: int) -> Tensor:
    if rows == columns == 1:  # it is the window: nothing to copy
        return grid
    _, _, h, w, _ = grid.shape
    (windows,) = split_windows(grid, [_group(rows, h // rows, columns, w // columns)])
    return windows


def _merge(windows: Tensor, rows: int, columns: int) -> Tensor:
    if rows == columns == 1:
        return windows
    _, _, h, w, _ = windows.shape
    return merge_windows([windows], [_group(rows, h, columns, w)], (rows * h, columns * w))


def _group(rows: int, height: int, columns: int, width: int) -> Rectangle:
    """All windows, which are equal."""
    return 0, rows, height, 0, columns, width
