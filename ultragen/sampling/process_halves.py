"""Guidance's two passes by two halves of the processes that compute a clip together.

Each half shares the frame of its own pass out. What the halves exchange are two outputs a step, in
the size of the latents, while processes that share one frame out exchange tokens in every layer: so
two processes exchange nothing within a pass, and four as much as two that are not guided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch.distributed as dist
from diffusers import PyramidAttentionBroadcastConfig, TaylorSeerCacheConfig
from torch import Tensor

from ..model.context_parallel import among
from ..model.token_shares import check_grid, most_strips
from ..ops.exchange import Member, gather, of_the_first

APART = (PyramidAttentionBroadcastConfig, TaylorSeerCacheConfig)
"""Caches with a memory for each pass of a guided step, the first by `broadcast_by_pass`."""
Pass = Callable[[], Tensor]
"""One forward pass, whose output is b c t h w."""


@dataclass(frozen=True)
class ProcessHalves:
    """An even number of processes in two halves.

    Attributes:
        half: Those of this process's half.
        pair: This process and the one with the same tokens in the other half. The first half
            computes the conditional pass.
        processes: How many they all are.
        together: Whether all of them share out the frame of a pass that has no other beside it.
    """

    half: dist.ProcessGroup
    pair: dist.ProcessGroup
    processes: int
    together: bool = True

    @classmethod
    def of_all(cls) -> ProcessHalves | None:
        """Halves of all processes, which all ask for them; None if their number is odd."""
        count = dist.get_world_size()
        if count % 2:
            return None
        middle, ranks = count // 2, [*range(count)]
        pairs = [ranks[first::middle] for first in range(middle)]
        half, _ = dist.new_subgroups_by_enumeration([ranks[:middle], ranks[middle:]])
        pair, _ = dist.new_subgroups_by_enumeration(pairs)
        return cls(half, pair, count)

    def planned(
        self, scales: Sequence[float], cache: Any, size: tuple[int, int]
    ) -> ProcessHalves | None:
        """What computes the steps of a run.

        A pass without another one beside it is best shared out among all, but a cache holds the
        tokens of those who computed the steps before. Where that is so, and is known, no step is
        halved: all processes share each pass out. So do they with a cache that is not known to
        tell the passes apart.

        Args:
            scales: How far guidance leads in each step; there is none at 1 and below.
            cache: Configuration of the transformer's cache; None without one.
            size: Token rows and columns.

        Returns:
            None if no step is halved.

        Raises:
            ValueError: if the grid gives too few of them work.
        """
        guided = [scale > 1 for scale in scales]
        apart = cache is None or isinstance(cache, APART)
        if not any(guided) or not apart:
            return None
        check_grid(size, self.processes, halved=True)
        fits = self.processes <= most_strips(size)
        if fits and cache is not None and not all(guided):
            return None
        return replace(self, together=fits and cache is None)

    def guided(self, transformer: Any, cond: Pass, uncond: Pass) -> tuple[Tensor, Tensor]:
        """The outputs of both passes, in all processes."""
        pair = Member.of(self.pair)
        with among(transformer, self.half):
            output = (cond, uncond)[pair.rank]()
        positive, negative = gather(output[None], (1, 1), 0, pair)
        return positive, negative

    def unguided(self, transformer: Any, cond: Pass) -> Tensor:
        """The output of the conditional pass alone, in all processes."""
        if self.together:
            return cond()
        with among(transformer, self.half):
            output = cond()
        # The second half's cache has not seen the conditional passes before.
        return of_the_first([output], self.pair)[0]
