"""Cutting the latent grid into windows and putting it together again (paper §4.3, eq. 6 and 9).

A window keeps all frames: cutting a grid of T × H × W tokens into rows × columns windows gives
tubes of T × h × w tokens. The cut is exact for any size: the parts of an axis differ by at most
one, the larger ones first, so that windows of equal size lie beside each other and travel through
attention as one batch. An axis has at most two sizes, a grid at most four.

T3-Video's close and remote windows are cut in time too, and are equal: on any grid their numbers
are divisors of its axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from math import prod, sqrt

from ..ops.strided_windows import Counts
from ..ops.window_order import Rectangle
from ..presets import shown


def axis_sizes(length: int, parts: int) -> tuple[int, ...]:
    """Sizes of `parts` parts of an axis, which differ by at most one, the larger ones first.

    Raises:
        ValueError: if a part would be empty.
    """
    if not 1 <= parts <= length:
        raise ValueError(
            f"Can't cut {length} tokens into {parts} windows: choose from 1 to {length} windows."
        )
    size, larger = divmod(length, parts)
    return (size + 1,) * larger + (size,) * (parts - larger)


def shifted_axis_sizes(
    length: int, parts: int, share: Fraction = Fraction(1, 2)
) -> tuple[int, ...]:
    """Sizes of `parts` parts after a shift by a share of a window, rounded down; half of one, as
    Swin's masks leave them, unless another is given."""
    first, *others = axis_sizes(length, parts)
    ahead = int(share * first)
    return tuple(size for size in (ahead, *others, first - ahead) if size)


@dataclass(frozen=True)
class Run:
    """Neighbouring parts of one axis that have the same size.

    Attributes:
        start: First token of the run.
        count: Number of parts.
        size: Tokens in each part.
    """

    start: int
    count: int
    size: int

    @property
    def stop(self) -> int:
        return self.start + self.count * self.size


def axis_runs(sizes: Sequence[int]) -> tuple[Run, ...]:
    """Groups the parts of an axis by equal size, in order."""
    runs, start = [], 0
    for size, parts in groupby(sizes):
        runs.append(Run(start, len(list(parts)), size))
        start = runs[-1].stop
    return tuple(runs)


@dataclass(frozen=True)
class Partition:
    """How a grid of height × width tokens is cut into windows.

    Attributes:
        rows: Heights of the windows, top to bottom.
        columns: Widths of the windows, left to right.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def groups(self) -> tuple[tuple[Run, Run], ...]:
        """Rectangles of equal windows, row-major: at most four for parts that differ by one."""
        return tuple((r, c) for r in axis_runs(self.rows) for c in axis_runs(self.columns))

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return sum(self.rows), sum(self.columns)

    @property
    def rectangles(self) -> list[Rectangle]:
        """The groups as numbers, which `ops.window_order` cuts a grid by."""
        return [(r.start, r.count, r.size, c.start, c.count, c.size) for r, c in self.groups]


def even_partition(height: int, width: int, parts: int) -> Partition:
    """parts × parts windows (eq. 6, 9); an axis shorter than `parts` is cut token by token."""
    return Partition(axis_sizes(height, min(parts, height)), axis_sizes(width, min(parts, width)))


def shifted_partition(
    height: int, width: int, parts: int, share: Fraction = Fraction(1, 2)
) -> Partition:
    """parts × parts windows moved by a share of one, half of it in the Swin ablation; borders are
    not joined."""
    return Partition(
        shifted_axis_sizes(height, min(parts, height), share),
        shifted_axis_sizes(width, min(parts, width), share),
    )


def check_windows(windows: int, height: int, width: int) -> int:
    """Checks the number of windows K of the even layers against a token grid.

    Raises:
        ValueError: if K is odd, below 2, or too large for K + 1 windows on the shorter axis.
    """
    largest = 2 * ((min(height, width) - 1) // 2)
    if isinstance(windows, bool) or not isinstance(windows, int):
        raise ValueError(f"windows must be 'auto' or an even whole number, not {shown(windows)}.")
    if windows > largest or not largest:
        way_out = (
            f"choose an even number up to {largest}, a larger frame, or 'auto'"
            if largest
            else "choose a larger frame, of at least 3 × 3 tokens"
        )
        raise ValueError(
            f"windows {shown(windows)} are too many: a grid of {height} × {width} tokens can't be "
            f"cut into {shown(windows + 1)} × {shown(windows + 1)}; {way_out}."
        )
    if windows < 2 or windows % 2:
        nearest = sorted({min(max(2, each), largest) for each in (windows - 1, windows + 1)})
        raise ValueError(
            f"windows must be even and at least 2, because the hierarchical branch uses half of "
            f"it; got {shown(windows)}. Choose {' or '.join(map(str, nearest))}, or 'auto'."
        )
    return windows


def auto_windows(height: int, width: int, window_size: tuple[float, float]) -> int:
    """The even K whose windows come closest in area to the trained size (§4.1: cost then grows
    with the frame's area, not with its square).

    Args:
        height: Token rows.
        width: Token columns.
        window_size: Token rows and columns of a window in training.
    """
    ratio = sqrt(height * width / (window_size[0] * window_size[1]))
    largest = max(2, 2 * ((min(height, width) - 1) // 2))
    return min(max(2, 2 * round(ratio / 2)), largest)


# Close and remote windows


def nearest_divisor(length: int, count: int) -> int:
    """The divisor of `length` whose ratio to `count` is nearest to 1."""
    # Never two: where x and y are equally near, so that xy = count², count divides length too.
    divisors = (number for number in range(1, length + 1) if length % number == 0)
    return min(divisors, key=lambda number: max(number / count, count / number))


def check_counts(counts: object) -> Counts:
    """Numbers of windows on the time, row and column axis, as a configuration has them.

    Raises:
        ValueError: if they are not three whole numbers of at least 1.
    """
    found = tuple(counts) if isinstance(counts, list | tuple) else ()
    if len(found) == 3 and all(type(count) is int and count >= 1 for count in found):
        return found
    raise ValueError(
        f"t3_windows must hold three whole numbers of at least 1 for each layer, the windows in "
        f"time, of rows and of columns, not {counts!r}."
    )


def fitting_counts(grid: tuple[int, int, int], counts: Counts) -> Counts:
    """The numbers of windows that divide a grid: those asked for where they do, else the divisors
    nearest to them, for which no weights were trained."""
    t, h, w = (nearest_divisor(length, count) for length, count in zip(grid, counts, strict=True))
    return t, h, w


def attends_once(grid: tuple[int, int, int], counts: Counts) -> bool:
    """Whether close and remote windows are the same: where each axis has one window, or windows of
    one place."""
    return all(count in (1, length) for length, count in zip(grid, counts, strict=True))


def attention_pairs(grid: tuple[int, int, int], counts: Counts) -> int:
    """Query-key pairs of one layer over a grid of tokens."""
    fitting = fitting_counts(grid, counts)
    times = 1 if attends_once(grid, fitting) else 2
    return times * prod(grid) ** 2 // prod(fitting)
