"""Where the layers attend when several processes make one clip, and what they exchange for it.

Planned for a forward pass from the layouts of one process, see `window_plan`, and shared by all
layers of one kind. A window is attended to by the process that gets it as a whole; the global
branch, full layers and T3-Video's by all processes, each with some of the heads (DeepSpeed-Ulysses,
arXiv 2309.14509).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ..ops.decompress import Upsampled, upsampled
from ..ops.exchange import Member, exchange, gather
from ..ops.interpolation import resize_part
from ..ops.rotary_norm import Rotary
from .token_shares import Area, cut_axis, cut_strips, made_of, spread_heads, spread_windows
from .window_plan import (
    GLOBAL_FACTOR,
    HIERARCHICAL_FACTOR,
    AttentionLayout,
    WindowLayout,
    compressed_size,
)
from .windows import even_partition

Areas = tuple[tuple[Area, ...], ...]
"""Areas of a grid, for each process."""
Attend = Callable[[Tensor, WindowLayout], Tensor]
"""Attention within a window of each of a batch, b t h w d → b t h w d."""
HeadsAttend = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Attention of queries, keys and values of all tokens, b t h w d each, with so many heads →
b t h w d."""


@dataclass(frozen=True)
class Move:
    """Tokens of a grid on their way from where processes have them to where they need them.

    Attributes:
        member: This process.
        sources: What each of them has: each token once.
        targets: What each of them needs.
    """

    member: Member
    sources: Areas
    targets: Areas

    def run(self, tensors: Sequence[Tensor], rooms: Sequence[Tensor], like: Tensor) -> None:
        """Fills the targets of this process.

        Args:
            tensors: Its sources, b t h w d each.
            rooms: Its targets, the same.
            like: Has their type and their device.
        """
        rank = self.member.rank
        sources, targets = self.sources[rank], self.targets[rank]
        given = [
            [
                tensor[:, :, *part.inside(source)]
                for target in theirs
                for tensor, source in zip(tensors, sources, strict=True)
                if (part := target.meet(source))
            ]
            for theirs in self.targets
        ]
        taken = [
            [
                room[:, :, *part.inside(target)]
                for room, target in zip(rooms, targets, strict=True)
                for source in theirs
                if (part := target.meet(source))
            ]
            for theirs in self.sources
        ]
        exchange(given, taken, like, self.member, self.crosses)

    @property
    def crosses(self) -> bool:
        """Whether anything goes from one process to another one."""
        return any(
            source.meet(target)
            for giver, sources in enumerate(self.sources)
            for taker, targets in enumerate(self.targets)
            for source in sources
            for target in targets
            if giver != taker
        )


@dataclass(frozen=True)
class SharedWindows:
    """Windows of which each goes to one process.

    Attributes:
        at: All windows, of a grid that may be resampled.
        windows: Those of each process, equal ones beside each other.
        given: The way of the grid's tokens to the windows that are made of them.
        taken: The way of the windows' tokens to the results that are made of them.
        size: Rows and columns of the grid.
        results: Rows and columns of the grid of the results.
        wanted: The part of that grid which this process needs.
    """

    at: WindowLayout
    windows: Areas
    given: Move
    taken: Move
    size: tuple[int, int]
    results: tuple[int, int]
    wanted: Area

    @classmethod
    def plan(
        cls,
        member: Member,
        size: tuple[int, int],
        homes: Sequence[Area],
        results: tuple[int, int],
        wanted: Sequence[Area],
        at: WindowLayout,
        windows: Areas,
    ) -> SharedWindows:
        """Plans what is exchanged.

        Args:
            member: This process.
            size: Rows and columns of the grid.
            homes: The tokens that each process has.
            results: Rows and columns of the grid of the results, which may be resampled too.
            wanted: The part of it that each process needs.
            at: All windows.
            windows: Those of each process.
        """
        needed = tuple(
            tuple(made_of(window, at.size, size)[0] for window in theirs) for theirs in windows
        )
        back = tuple((made_of(area, results, at.size)[0],) for area in wanted)
        there = Move(member, tuple((home,) for home in homes), needed)
        own = wanted[member.rank]
        return cls(at, windows, there, Move(member, windows, back), size, results, own)

    def attend(self, grid: Tensor, within: Attend) -> Tensor:
        """Attention within windows: the tokens that this process has, b t h w d → those that it
        needs."""
        rank, windows = self.given.member.rank, []
        for batch, at in self._batches(grid):
            windows += within(batch, at).split(len(grid))
        [back] = self.taken.targets[rank]
        out = self._room(grid, back)
        self.taken.run(windows, [out], grid)
        return resize_part(out, *made_of(self.wanted, self.results, self.at.size)[1])

    def _batches(self, grid: Tensor) -> list[tuple[Tensor, WindowLayout]]:
        """This process's windows, (windows b) t h w d for each size."""
        rank, b = self.given.member.rank, len(grid)
        equal = [[*areas] for _, areas in groupby(self.windows[rank], key=lambda area: area.size)]
        if self.size == self.at.size:
            batches = [self._room(grid, areas[0], len(areas)) for areas in equal]
            self.given.run([grid], [room for batch in batches for room in batch.split(b)], grid)
        else:
            rooms = [self._room(grid, area) for area in self.given.targets[rank]]
            self.given.run([grid], rooms, grid)
            parts = (
                resize_part(room, *made_of(area, self.at.size, self.size)[1])
                for room, area in zip(rooms, self.windows[rank], strict=True)
            )
            batches = [torch.cat([next(parts) for _ in areas]) for areas in equal]
        return [
            (batch, one_window(self.at, areas[0]))
            for batch, areas in zip(batches, equal, strict=True)
        ]

    def _room(self, grid: Tensor, area: Area, count: int = 1) -> Tensor:
        b, t, _, _, d = grid.shape
        return grid.new_empty((count * b, t, *area.size, d))


@dataclass(frozen=True)
class SharedHeads:
    """Attention over a whole grid, by each process with some of the heads.

    Attributes:
        member: This process.
        size: Rows and columns of the grid.
        homes: The tokens that each process has.
        wanted: Those whose results each needs.
        heads: Those of each process.
        at: This process's own tokens, as one window.
    """

    member: Member
    size: tuple[int, int]
    homes: tuple[Area, ...]
    wanted: tuple[Area, ...]
    heads: list[range]
    at: WindowLayout

    def attend(self, within: HeadsAttend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The process's own queries and keys, with norm and positions, and values, b t h w d →
        results of the tokens that it needs."""
        rank, features = self.member.rank, value.shape[-1] // self.heads[-1].stop
        parts = [slice(each.start * features, each.stop * features) for each in self.heads]
        own, whole = self.heads[rank], Area(0, self.size[0], 0, self.size[1])
        (b, t, *_), count = value.shape, len(own)
        rooms = [value.new_empty((b, t, *self.size, count * features)) for _ in range(3)]
        exchange(
            [[x[..., part] for x in (query, key, value)] for part in parts],
            [[room[:, :, *home.inside(whole)] for room in rooms] for home in self.homes],
            value,
            self.member,
        )
        query, key, value = rooms
        found = within(query, key, value, count)
        out = value.new_empty((b, t, *self.wanted[rank].size, features * self.heads[-1].stop))
        exchange(
            [[found[:, :, *area.inside(whole)]] for area in self.wanted],
            [[out[..., part]] for part in parts],
            value,
            self.member,
        )
        return out


@dataclass(eq=False)
class SharedLayout:
    """What `AttentionLayout` says, for the tokens of one process.

    Attributes:
        grid: Latent frames, and the token rows and columns that the process has.
        local: Windows of the local branch.
        hierarchical: Windows of the grid compressed 2 × 2.
        global_: The grid compressed 4 × 4.
        timestep: Sinusoidal embedding of the diffusion timestep, b d.
        upsampling: For each compression, what the process's rows and columns are made of.
    """

    grid: tuple[int, int, int]
    local: SharedWindows
    hierarchical: SharedWindows
    global_: SharedHeads
    timestep: Tensor
    upsampling: dict[int, tuple[Upsampled, Upsampled]]


@dataclass(frozen=True)
class Shares:
    """What each process has of a clip's tokens.

    Attributes:
        member: This process.
        grid: Latent frames, token rows and token columns of the clip.
        homes: The token rows and columns of each process.
    """

    member: Member
    grid: tuple[int, int, int]
    homes: tuple[Area, ...]

    @classmethod
    def of(cls, member: Member, grid: tuple[int, int, int]) -> Shares:
        """Cuts a grid.

        Raises:
            ValueError: if there are too many processes for it.
        """
        return cls(member, grid, cut_strips(grid[1:], member.processes))

    @property
    def home(self) -> Area:
        """The rows and columns of this process."""
        return self.homes[self.member.rank]

    def latents(self, latents: Tensor, token: tuple[int, int]) -> Tensor:
        """This process's part of latents b c t h w, with tokens of so many rows and columns."""
        whole = Area(0, self.grid[1], 0, self.grid[2]).times(*token)
        rows, columns = self.home.times(*token).inside(whole)
        return latents[..., rows, columns].contiguous()

    def gather(self, part: Tensor, token: tuple[int, int]) -> Tensor:
        """The inverse of `latents`: all processes' parts together."""
        down = self.homes[0].size[0] < self.grid[1]
        sizes = [home.times(*token).size[0 if down else 1] for home in self.homes]
        return gather(part, sizes, -2 if down else -1, self.member)

    def full(self, rotary: Rotary, heads: int) -> SharedHeads:
        """Full layers: cos and sin of the clip, (t h w) × half the head size."""
        cos, sin = (table.unflatten(0, self.grid) for table in rotary)
        at = WindowLayout(self.grid[1:], even_partition(*self.grid[1:], 1), (cos, sin))
        return self.by_heads(at, heads)

    def by_heads(self, at: WindowLayout, heads: int) -> SharedHeads:
        """Attention over the whole grid, which is one window."""
        return self._by_heads(self.grid[1:], self.homes, self.homes, at, heads)

    def windows(self, layout: AttentionLayout, dim: int, heads: int) -> SharedLayout:
        """The layout of one process, shared out.

        Args:
            layout: Of the clip.
            dim: Features of a token.
            heads: Attention heads.
        """
        (frames, height, width), parts, homes = self.grid, len(self.homes), self.homes
        half, quarter = HIERARCHICAL_FACTOR, GLOBAL_FACTOR
        hierarchical, global_ = layout.hierarchical, layout.global_
        partitions = [layout.local.partition, hierarchical.partition]
        spread = spread_windows(partitions, cut_axis((height, width), parts), parts, frames, dim)
        seen = {
            factor: [self._seen(home, factor, at.size) for home in homes]
            for factor, at in ((half, hierarchical), (quarter, global_))
        }
        small = {factor: tuple(home.compressed(factor) for home in homes) for factor in seen}
        wanted = {
            factor: tuple(Area(r.low, r.high, c.low, c.high) for r, c in axes)
            for factor, axes in seen.items()
        }
        full, coarse = (height, width), compressed_size(height, width, half)
        return SharedLayout(
            grid=(frames, *self.home.size),
            local=SharedWindows.plan(
                self.member, full, homes, full, homes, layout.local, spread[0]
            ),
            hierarchical=SharedWindows.plan(
                self.member, coarse, small[half], hierarchical.size, wanted[half], hierarchical,
                spread[1],
            ),
            global_=self._by_heads(
                global_.size, small[quarter], wanted[quarter], global_, heads
            ),
            timestep=layout.timestep,
            upsampling={factor: axes[self.member.rank] for factor, axes in seen.items()},
        )  # fmt: skip

    def _seen(self, home: Area, factor: int, small: tuple[int, int]) -> tuple[Upsampled, Upsampled]:
        """What a process's rows and columns are made of when a branch is decompressed."""
        _, height, width = self.grid
        rows = upsampled(height, factor, small[0], home.top, home.bottom)
        return rows, upsampled(width, factor, small[1], home.left, home.right)

    def _by_heads(
        self,
        size: tuple[int, int],
        homes: tuple[Area, ...],
        wanted: tuple[Area, ...],
        at: WindowLayout,
        heads: int,
    ) -> SharedHeads:
        own = one_window(at, homes[self.member.rank])
        return SharedHeads(self.member, size, homes, wanted, spread_heads(heads, len(homes)), own)


def one_window(at: WindowLayout, area: Area) -> WindowLayout:
    """An area of a grid as one window, with the positions that it has there."""
    rows, columns = area.inside(Area(0, at.size[0], 0, at.size[1]))
    cos, sin = (table[:, rows, columns].contiguous() for table in at.rotary)
    return WindowLayout(area.size, even_partition(*area.size, 1), (cos, sin))
