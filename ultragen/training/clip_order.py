"""Which clip a sample is, and by what its noise is drawn: both follow from the sample's number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch

from ..dataset.shard_files import Size


class ClipOrder:
    """The order in which clips are trained on.

    A pass takes every clip once. Samples come in groups, one for each step of all processes
    together, and all of a group are of one size: a step is as slow as its slowest process. Where
    the clips of a size don't fill their last group, some of them come twice in a pass.

    Args:
        clips: Size → the numbers of its clips.
        group: Samples of a step, over all batches and processes.
        seed: What the order follows.

    Attributes:
        offset: A sample, below `group`, with which a group begins: not 0 where a training goes on
            with another group than it had, in the middle of one.
    """

    def __init__(self, clips: Mapping[Size, Sequence[int]], group: int, seed: int) -> None:
        self.clips, self.group, self.seed = dict(sorted(clips.items())), group, seed
        self.offset = 0
        self._order = lru_cache(maxsize=2)(self._shuffle)  # a batch may lie on the border of two

    @property
    def groups(self) -> int:
        """Steps in which every clip is seen at least once."""
        return sum(-(-len(numbers) // self.group) for numbers in self.clips.values())

    def __getitem__(self, sample: int) -> tuple[Size, int]:
        """Size and number of a sample's clip, from `offset` on."""
        group, place = divmod(sample - self.offset, self.group)
        epoch, group = divmod(group, self.groups)
        size, numbers = self._order(epoch)[group]
        return size, int(numbers[place])

    def _shuffle(self, epoch: int) -> list[tuple[Size, np.ndarray]]:
        """The groups of one pass."""
        chance = np.random.default_rng([self.seed, epoch])
        groups = [
            (size, part)
            for size, numbers in self.clips.items()
            for part in self._cut(chance.permutation(numbers))
        ]
        return [groups[i] for i in chance.permutation(len(groups))]

    def _cut(self, numbers: np.ndarray) -> np.ndarray:
        """Groups of clips; what the last one lacks is taken from the front."""
        groups = -(-len(numbers) // self.group)
        return np.resize(numbers, groups * self.group).reshape(groups, self.group)


def sample_generator(seed: int, sample: int) -> torch.Generator:
    """What is drawn for a sample: the same on every device, on however many processes and after
    every resumption."""
    [state] = np.random.SeedSequence([seed, sample]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state))
