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
# Numbers for which Triton is not to compile a kernel anew because they are 1 or a multiple of 16:
# grids and windows come in many sizes, and none of the kernels has fewer instructions for it.
SIZES = ("room", "t", "h", "w", "top", "rows", "height", "left", "columns", "width")


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
def without_room(row, room, t, height, width):
    """A token's row in window order without what fills the windows up to `room` tokens, and whether
    it is a token; the window's first one where it is not."""
    tokens = t * height * width
    window, token = row // room, row % room
    return window * tokens + tl.where(token < tokens, token, 0), token < tokens


@triton.jit(do_not_specialize=SIZES)
def _copy(
    grid_ptr, windows_ptr, room, d, t, h, w, top, rows, height, left, columns, width,
    MERGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one token, or one zero behind the last one."""
    row = tl.program_id(0)
    source, there = without_room(row, room, t, height, width)
    position, sample = place(source, t, h, w, top, rows, height, left, columns, width)
    features = tl.arange(0, BLOCK)
    inside = features < tl.where(there, d, 0)
    in_grid = grid_ptr + (sample.to(tl.int64) * t * h * w + position) * d + features
    in_window = windows_ptr + row.to(tl.int64) * d + features
    if MERGE:
        tl.store(in_grid, tl.load(in_window, mask=inside), mask=inside)
    else:
        tl.store(in_window, tl.load(in_grid, mask=inside, other=0.0), mask=features < d)


def unflatten(groups: list[int]) -> list[list[int]]:
    """The groups of windows, from all their numbers."""
    return [groups[i : i + RECTANGLE] for i in range(0, len(groups), RECTANGLE)]


def window_shape(grid: Tensor, rectangle: list[int], tile: int = 1) -> tuple[int, ...]:
    """Shape of a group's windows with room for whole tiles of tokens, (b windows) n d."""
    _, rows, height, _, columns, width = rectangle
    tokens = grid.shape[1] * height * width
    return grid.shape[0] * rows * columns, tokens + -tokens % tile, grid.shape[-1]


def shaped(windows: Tensor, rectangle: Sequence[int], t: int, tile: int) -> Tensor:
    """A group's windows as (b windows) t h w d; as they are, where there may be more than that."""
    _, _, height, _, _, width = rectangle
    return windows if tile > 1 else windows.unflatten(1, (t, height, width))


def _run(grid: Tensor, windows: Tensor, rectangle: list[int], merge: bool) -> None:
    _, t, h, w, d = grid.shape
    with torch.cuda.device_of(grid):  # Triton takes the current device, wherever the tensors are
        _copy[(windows.numel() // d,)](
            grid, windows, windows.shape[1], d, t, h, w, *rectangle, merge,
            triton.next_power_of_2(d),
        )  # fmt: skip


def merge_group(grid: Tensor, windows: Tensor, rectangle: list[int]) -> None:
    """Puts a group's windows (b windows) n d into a grid b t h w d."""
    _run(grid, windows, rectangle, True)


@torch.library.custom_op("ultragen::split_windows", mutates_args=())
def split_flat(grid: Tensor, groups: list[int], tile: int) -> list[Tensor]:
    """Tokens b t h w d → windows, (b windows) n d for each group; see `split`."""
    grid = grid.contiguous()
    found = [grid.new_empty(window_shape(grid, rectangle, tile)) for rectangle in unflatten(groups)]
    for windows, rectangle in zip(found, unflatten(groups), strict=True):
        _run(grid, windows, rectangle, False)
    return found


def empty_grid(windows: list[Tensor], groups: list[int], size: list[int]) -> Tensor:
    """A grid for windows (b windows) n d; size: frames, rows and columns."""
    (_, rows, _, _, columns, _), first = groups[:RECTANGLE], windows[0]
    return first.new_empty((len(first) // (rows * columns), *size, first.shape[-1]))


@torch.library.custom_op("ultragen::merge_windows", mutates_args=())
def _merge(windows: list[Tensor], groups: list[int], size: list[int]) -> Tensor:
    """The inverse; size: frames, rows and columns of the grid."""
    grid = empty_grid(windows, groups, size)
    for one, rectangle in zip(windows, unflatten(groups), strict=True):
        merge_group(grid, one.contiguous(), rectangle)
    return grid


@split_flat.register_fake
def _(grid, groups, tile):
    return [grid.new_empty(window_shape(grid, rectangle, tile)) for rectangle in unflatten(groups)]


@_merge.register_fake
def _(windows, groups, size):
    return empty_grid(windows, groups, size)


def _remember_split(ctx, inputs, output) -> None:
    grid, ctx.groups, _ = inputs
    ctx.size = list(grid.shape[1:4])


def _remember_merge(ctx, inputs, output) -> None:
    _, ctx.groups, _ = inputs


split_flat.register_autograd(
    lambda ctx, grads: (_merge(grads, ctx.groups, ctx.size), None, None),
    setup_context=_remember_split,
)
_merge.register_autograd(
    lambda ctx, grad: (split_flat(grad, ctx.groups, 1), None, None), setup_context=_remember_merge
)


def split(grid: Tensor, rectangles: Sequence[tuple[int, ...]], tile: int = 1) -> list[Tensor]:
    """Cuts a grid into windows.

    Args:
        grid: b t h w d.
        rectangles: The groups of equal windows: first row, windows and their rows, and the same
            of the columns. Together they cover the grid once.
        tile: Zeros behind a window's tokens make their number a multiple of it.

    Returns:
        A tensor for each group, (b windows) t h w d; with tiles (b windows) n d.
    """
    found = split_flat(grid, [number for r in rectangles for number in r], tile)
    t = grid.shape[1]
    return [shaped(x, r, t, tile) for x, r in zip(found, rectangles, strict=True)]


def merge(
    windows: list[Tensor], rectangles: Sequence[tuple[int, ...]], size: tuple[int, int]
) -> Tensor:
    """Exact inverse of `split` without tiles; size: rows and columns of the grid."""
    t = windows[0].shape[1]
    flat = [window.flatten(1, 3) for window in windows]
    return _merge(flat, [number for r in rectangles for number in r], [t, *size])


def try_on(device: torch.device) -> None:
    """Runs the kernel on next to nothing; raises where it does not run."""
    one = [(0, 1, 1, 0, 1, 1)]
    merge(split(torch.ones(1, 1, 1, 1, 2, device=device), one), one, (1, 1))
