"""Where attention looks: the windows of every branch for a grid, a K and the parity of a layer.

Planned once for a forward pass and shared by all layers of one parity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from torch import Tensor

from ..ops.rotary_norm import Rotary
from ..ops.window_order import merge_windows
from .windows import Partition, check_windows, even_partition, shifted_partition

GLOBAL_FACTOR = 4
HIERARCHICAL_FACTOR = 2

MOVED = {False: Fraction(1, 2), True: Fraction(5, 12)}
"""By what share of a window those of even and of odd layers move: at the embedded model's sizes no
border between columns then stands where one of the other layers stands or stood."""

Crossing = Literal["grow", "none", "shift"]
UnevenWindows = Literal["split", "resize"]


@dataclass(frozen=True)
class WindowLayout:
    """Where one branch attends.

    Attributes:
        size: Token rows and columns of the grid that is cut into windows.
        partition: The windows.
        rotary: cos and sin of the whole grid, t h w × half the head size each. Positions start at
            0 in every window.
    """

    size: tuple[int, int]
    partition: Partition
    rotary: Rotary


# Not frozen: torch.compile looks into every field of a frozen dataclass that passes a graph break,
# and compiles anew for each way of cutting windows.
@dataclass(eq=False)
class AttentionLayout:
    """What the layers of one parity need to know of the input.

    Attributes:
        grid: Latent frames, token rows and token columns.
        local: Windows of the local branch.
        hierarchical: Windows of the grid compressed 2 × 2.
        global_: The grid compressed 4 × 4 as one window.
        timestep: Sinusoidal embedding of the diffusion timestep, b d.
    """

    grid: tuple[int, int, int]
    local: WindowLayout
    hierarchical: WindowLayout
    global_: WindowLayout
    timestep: Tensor


@dataclass(frozen=True)
class WindowRule:
    """How the number of windows and the parity of a layer decide the partition of a grid.

    Attributes:
        crossing: How odd layers differ from even ones: `grow` cuts into one window more on each
            axis (the paper), `shift` moves the windows by half their size (Swin), `none` repeats
            the even layers' windows. The latter two are the paper's ablations.
        uneven: What happens to an axis that the number of windows does not divide: `split` makes
            windows of two sizes, `resize` resamples the features to the nearest multiple, as the
            released weights were trained.
    """

    crossing: Crossing = "grow"
    uneven: UnevenWindows = "split"

    def __post_init__(self) -> None:
        if self.crossing not in ("grow", "none", "shift"):
            raise ValueError(f"crossing must be grow, none or shift, not {self.crossing!r}.")
        if self.uneven not in ("split", "resize"):
            raise ValueError(f"uneven must be split or resize, not {self.uneven!r}.")

    def partition(
        self, height: int, width: int, parts: int, odd: bool, moved: bool = False
    ) -> Partition:
        """Windows of one layer on a grid of height × width tokens; moved by a share of one, see
        `MOVED`, where several have a border between them."""
        parts += odd and self.crossing == "grow"
        if self.uneven == "resize":
            height, width = nearest_multiple(height, parts), nearest_multiple(width, parts)
        if moved and parts > 1:
            return shifted_partition(height, width, parts, MOVED[odd])
        cut = shifted_partition if odd and self.crossing == "shift" else even_partition
        return cut(height, width, parts)


def nearest_multiple(length: int, parts: int) -> int:
    """The multiple of `parts` nearest to `length`; the smaller one of two equally near."""
    below = length // parts * parts
    above = below + parts
    return above if not below or above - length < length - below else below


def plan_layout(
    grid: tuple[int, int, int],
    windows: int,
    odd: bool,
    rule: WindowRule,
    timestep: Tensor,
    rotary: Callable[[int, int, int], Rotary],
    moved: bool = False,
) -> AttentionLayout:
    """Plans the windows of all layers of one parity.

    Args:
        grid: Latent frames, token rows and token columns.
        windows: K, the windows on each axis in the local branch of even layers.
        odd: Whether the layers are odd.
        rule: How K and the parity make windows.
        timestep: Sinusoidal embedding of the diffusion timestep, b d.
        rotary: Gives cos and sin for a window of t × h × w tokens, (t h w) × half the head size.
        moved: Whether windows are moved, see `WindowRule.partition`.

    Raises:
        ValueError: if K is odd or does not fit the grid.
    """
    frames, height, width = grid
    check_windows(windows, height, width)

    def layout(partition: Partition) -> WindowLayout:
        return WindowLayout(
            size=partition.size,
            partition=partition,
            rotary=window_rotary(frames, partition, rotary),
        )

    h2, w2 = compressed_size(height, width, HIERARCHICAL_FACTOR)
    h4, w4 = compressed_size(height, width, GLOBAL_FACTOR)
    return AttentionLayout(
        grid=grid,
        local=layout(rule.partition(height, width, windows, odd, moved)),
        hierarchical=layout(rule.partition(h2, w2, windows // 2, odd, moved)),
        global_=layout(even_partition(h4, w4, 1)),
        timestep=timestep,
    )


def window_rotary(
    frames: int, partition: Partition, rotary: Callable[[int, int, int], Rotary]
) -> Rotary:
    """cos and sin of a whole grid whose positions start anew in every window: rotating before the
    cut takes two calls instead of two for each group of windows."""
    groups = partition.groups
    tables = [rotary(frames, r.size, c.size) for r, c in groups]

    def merged(side: int) -> Tensor:
        windows = [
            table[side]
            .view(1, frames, r.size, c.size, -1)
            .expand(r.count * c.count, -1, -1, -1, -1)
            for table, (r, c) in zip(tables, groups, strict=True)
        ]
        return merge_windows(windows, partition.rectangles, partition.size)[0]

    return merged(0), merged(1)


def compressed_size(height: int, width: int, factor: int) -> tuple[int, int]:
    """Rows and columns of a compressed grid, rounded up so that no row of tokens is lost."""
    return -(-height // factor), -(-width // factor)
