"""Cutting a grid of tokens into windows and putting it together again, in Triton.

The library copies them value by value, with half of the memory's speed on the way in and a quarter
on the way back, where windows of several sizes meet. Here a program copies one token.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

RECTANGLE = 6  # numbers of a group of windows: first row, windows, their rows; the same of columns


@triton.jit
def place(row, t, h, w, top, rows, height, left, columns, width):
    """A token's place in the grid (t h w) and its sample, from its row in window order
    (b rows columns t height width)."""
    x, rest = row % width, row // width
    y, rest = rest % height, rest // height
    moment, rest = rest % t, rest // t
    across, rest = rest % columns, rest // columns
    down, sample = rest % rows, rest // rows
    return (moment * h + top + down * height + y) * w + left + across * width + x, sample


@triton.jit
def _copy(
    grid_ptr, windows_ptr, d, t, h, w, top, rows, height, left, columns, width,
    MERGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one token."""
    row = tl.program_id(0)
    position, sample = place(row, t, h, w, top, rows, height, left, columns, width)
    features = tl.arange(0, BLOCK)
    in_grid = grid_ptr + (sample.to(tl.int64) * t * h * w + position) * d + features
    in_window = windows_ptr + row.to(tl.int64) * d + features
    if MERGE:
        tl.store(in_grid, tl.load(in_window, mask=features < d), mask=features < d)
    else:
        tl.store(in_window, tl.load(in_grid, mask=features < d), mask=features < d)


def unflatten(groups: list[int]) -> list[list[int]]:
    """The groups of windows, from all their numbers."""
    return [groups[i : i + RECTANGLE] for i in range(0, len(groups), RECTANGLE)]


def window_shape(grid: Tensor, rectangle: list[int]) -> tuple[int, ...]:
    """Shape of a group's windows, (b windows) t h w d."""
    _, rows, height, _, columns, width = rectangle
    return grid.shape[0] * rows * columns, grid.shape[1], height, width, grid.shape[-1]


def _run(grid: Tensor, windows: Tensor, rectangle: list[int], merge: bool) -> None:
    _, t, h, w, d = grid.shape
    with torch.cuda.device_of(grid):  # Triton takes the current device, wherever the tensors are
        _copy[(windows.numel() // d,)](
            grid, windows, d, t, h, w, *rectangle, merge, triton.next_power_of_2(d)
        )


@torch.library.custom_op("ultragen::split_windows", mutates_args=())
def _split(grid: Tensor, groups: list[int]) -> list[Tensor]:
    """Tokens b t h w d → windows, a tensor for each group."""
    grid = grid.contiguous()
    found = [grid.new_empty(window_shape(grid, rectangle)) for rectangle in unflatten(groups)]
    for windows, rectangle in zip(found, unflatten(groups), strict=True):
        _run(grid, windows, rectangle, False)
    return found


@torch.library.custom_op("ultragen::merge_windows", mutates_args=())
def _merge(windows: list[Tensor], groups: list[int], size: list[int]) -> Tensor:
    """The inverse; size: rows and columns of the grid."""
    (_, rows, _, _, columns, _), first = groups[:RECTANGLE], windows[0]
    grid = first.new_empty((len(first) // (rows * columns), first.shape[1], *size, first.shape[-1]))
    for one, rectangle in zip(windows, unflatten(groups), strict=True):
        _run(grid, one.contiguous(), rectangle, True)
    return grid


@_split.register_fake
def _(grid, groups):
    return [grid.new_empty(window_shape(grid, rectangle)) for rectangle in unflatten(groups)]


@_merge.register_fake
def _(windows, groups, size):
    (_, rows, _, _, columns, _), first = groups[:RECTANGLE], windows[0]
    return first.new_empty((len(first) // (rows * columns), first.shape[1], *size, first.shape[-1]))


def _remember_split(ctx, inputs, output) -> None:
    grid, ctx.groups = inputs
    ctx.size = list(grid.shape[2:4])


def _remember_merge(ctx, inputs, output) -> None:
    _, ctx.groups, _ = inputs


_split.register_autograd(
    lambda ctx, grads: (_merge(grads, ctx.groups, ctx.size), None), setup_context=_remember_split
)
_merge.register_autograd(
    lambda ctx, grad: (_split(grad, ctx.groups), None, None), setup_context=_remember_merge
)


def split(grid: Tensor, rectangles: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Cuts a grid into windows.

    Args:
        grid: b t h w d.
        rectangles: The groups of equal windows: first row, windows and their rows, and the same
            of the columns. Together they cover the grid once.

    Returns:
        A tensor for each group, (b windows) t h w d.
    """
    return _split(grid, [number for r in rectangles for number in r])


def merge(
    windows: list[Tensor], rectangles: Sequence[tuple[int, ...]], size: tuple[int, int]
) -> Tensor:
    """Exact inverse of `split`; size: rows and columns of the grid."""
    return _merge(windows, [number for r in rectangles for number in r], list(size))


def try_on(device: torch.device) -> None:
    """Runs the kernel on next to nothing; raises where it does not run."""
    one = [(0, 1, 1, 0, 1, 1)]
    merge(split(torch.ones(1, 1, 1, 1, 2, device=device), one), one, (1, 1))
