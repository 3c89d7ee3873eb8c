"""Which process has which tokens, and attends within which windows, where several make one clip.

The grid of tokens is cut into strips of rows, or of columns, whose borders are multiples of the
global branch's factor: each process compresses its own. Windows go as a whole to one process each,
in the order in which they lie along the cut, so that most of them find their tokens there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from ..ops.interpolation import Span, span_of
from .window_plan import GLOBAL_FACTOR
from .windows import Partition, axis_sizes

PROJECTIONS = 1.5
"""What queries, keys and values of a token cost beside its attention to a window of n tokens, in
parts of d / n: 6 n d² operations beside 4 n² d."""


class Area(NamedTuple):
    """Rows and columns of a grid: first and last ones, the last excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    def meet(self, other: Area) -> Area | None:
        """What two areas share; None where that is nothing."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom, right = min(self.bottom, other.bottom), min(self.right, other.right)
        return Area(top, bottom, left, right) if top < bottom and left < right else None

    def inside(self, other: Area) -> tuple[slice, slice]:
        """Where its rows and columns lie in a tensor of another area that holds it."""
        rows = slice(self.top - other.top, self.bottom - other.top)
        return rows, slice(self.left - other.left, self.right - other.left)

    def compressed(self, factor: int) -> Area:
        """The same on a grid compressed by a factor that divides its first row and column."""
        return Area(
            self.top // factor, -(-self.bottom // factor),
            self.left // factor, -(-self.right // factor),
        )  # fmt: skip

    def times(self, rows: int, columns: int) -> Area:
        """The same where each token is so many rows and columns."""
        return Area(self.top * rows, self.bottom * rows, self.left * columns, self.right * columns)


def most_strips(size: tuple[int, int]) -> int:
    """How many strips a grid of rows × columns can be cut into."""
    return -(-max(size) // GLOBAL_FACTOR)


def check_grid(size: tuple[int, int], processes: int, halved: bool = False) -> None:
    """Checks that a grid of rows × columns gives work to each of some processes.

    Args:
        size: Rows and columns of tokens.
        processes: How many compute a clip together.
        halved: Whether each half of them computes one pass of a guided step.

    Raises:
        ValueError: if it does not, with the number that it gives work to.
    """
    most = most_strips(size) * (2 if halved else 1)
    if processes > most:
        raise ValueError(
            f"{processes} processes are too many for a grid of {size[0]} × {size[1]} tokens, which "
            f"gives work to {most}{' with guidance' * halved}: start fewer, or choose a larger "
            "frame."
        )


def check_heads(heads: int, processes: int) -> None:
    """Checks that so many attention heads give work to each of some processes.

    Raises:
        ValueError: if they don't.
    """
    if processes > heads:
        raise ValueError(
            f"{processes} processes are too many for {heads} attention heads: start up to {heads}."
        )


def cut_axis(size: tuple[int, int], parts: int) -> int:
    """Which axis is cut, 0 or 1: the one that gives the most equal strips, else the longer one,
    whose borders are shorter."""

    def largest(axis: int) -> tuple[float, int]:
        blocks = -(-size[axis] // GLOBAL_FACTOR)
        return -(-blocks // parts) * GLOBAL_FACTOR / size[axis], -size[axis]

    return min((axis for axis in (0, 1) if -(-size[axis] // GLOBAL_FACTOR) >= parts), key=largest)


def cut_strips(size: tuple[int, int], parts: int) -> tuple[Area, ...]:
    """Strips of a grid of rows × columns of tokens, about equal ones.

    Raises:
        ValueError: if there are fewer than one block of tokens for each.
    """
    check_grid(size, parts)
    axis, (height, width) = cut_axis(size, parts), size
    blocks = axis_sizes(-(-size[axis] // GLOBAL_FACTOR), parts)
    ends = [min(size[axis], GLOBAL_FACTOR * n) for n in accumulate(blocks, initial=0)]
    if axis == 0:
        return tuple(Area(*pair, 0, width) for pair in pairwise(ends))
    return tuple(Area(0, height, *pair) for pair in pairwise(ends))


def window_areas(partition: Partition) -> list[Area]:
    """The windows of a partition, row by row."""
    rows, columns = (
        list(pairwise(accumulate(sizes, initial=0)))
        for sizes in (partition.rows, partition.columns)
    )
    return [Area(*r, *c) for r in rows for c in columns]


def spread_windows(
    partitions: Sequence[Partition], axis: int, parts: int, frames: int, dim: int
) -> list[tuple[tuple[Area, ...], ...]]:
    """Gives windows to processes, so that all have about equal work.

    Args:
        partitions: Of the branches of one layer, whose work is shared out together.
        axis: Along which the tokens are cut.
        parts: Processes.
        frames: Of a window.
        dim: Features of a token.

    Returns:
        For each branch the windows of each process, equal ones beside each other.
    """
    queue = []
    for branch, partition in enumerate(partitions):
        for area in window_areas(partition):
            low, high = (area.left, area.right) if axis else (area.top, area.bottom)
            tokens = frames * area.size[0] * area.size[1]
            cost = tokens * (tokens + PROJECTIONS * dim)
            queue.append(((low + high) / partition.size[axis], branch, area, cost))
    queue.sort()
    total, done = sum(cost for *_, cost in queue), 0.0
    found: list[list[list[Area]]] = [[[] for _ in range(parts)] for _ in partitions]
    for _, branch, area, cost in queue:
        found[branch][int(parts * (done + cost / 2) / total)].append(area)
        done += cost
    return [
        tuple(tuple(sorted(areas, key=lambda area: area.size)) for areas in branch)
        for branch in found
    ]


def spread_heads(heads: int, parts: int) -> list[range]:
    """The attention heads of each process."""
    ends = accumulate(axis_sizes(heads, parts), initial=0)
    return [range(*pair) for pair in pairwise(ends)]


def made_of(
    area: Area, size: tuple[int, int], of: tuple[int, int]
) -> tuple[Area, tuple[Span, Span]]:
    """What an area of a resampled grid is made of.

    Args:
        area: Of the resampled grid.
        size: Rows and columns of the resampled grid.
        of: Rows and columns of the grid before.

    Returns:
        The area before, and how both axes become those of `area`.
    """
    rows = span_of(of[0], size[0], area.top, area.bottom)
    columns = span_of(of[1], size[1], area.left, area.right)
    return Area(rows.low, rows.high, columns.low, columns.high), (rows, columns)
