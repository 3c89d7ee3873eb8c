"""What processes that render make in the tests. They import this module and no more: half of such a
test is spent on imports."""

from __future__ import annotations

import itertools
import time
from functools import partial

import torch
from torch import Tensor

from ultragen.training.render_processes import WAITING


def numbers(device: torch.device, rank: int):
    """Two kinds of examples that tell who made them."""
    counts = [itertools.count(), itertools.count()]

    def make(kind: int) -> tuple[Tensor, ...]:
        time.sleep(0.02)
        return (torch.tensor([[rank, kind, next(counts[kind])]]),)

    return [partial(make, kind) for kind in (0, 1)]


def failing(device: torch.device, rank: int):
    raise OSError("no such device")


def failing_later(device: torch.device, rank: int):
    """Fails once the training has read something: it makes one more than the queue holds before."""
    left = itertools.count()

    def make() -> tuple[Tensor, ...]:
        if next(left) == WAITING + 1:
            raise OSError("device lost")
        return (torch.zeros(1, 1),)

    return [make]
