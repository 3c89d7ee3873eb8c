"""What the processes of one training have to do together, and how they are asked to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

LONGEST_WAIT = timedelta(minutes=30)
"""Of a process for another one, such as the main one that exports; `watch.py` tells sooner that
one is gone."""


def check_processes() -> PartialState:
    """The processes of this training, on CPUs too: accelerate takes several that have no GPU for
    one each, unless the first thing that asks says otherwise."""
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=LONGEST_WAIT)


def average(gradients: Sequence[Tensor]) -> None:
    """Replaces gradients by their mean over all processes, all in one exchange."""
    together = torch.cat([gradient.flatten() for gradient in gradients])
    mean = reduce(together, reduction="mean")
    parts = mean.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def in_how_many(true: bool) -> int:
    """In how many processes something is true; all ask together."""
    state = PartialState()
    return int(reduce(torch.tensor(float(true), device=state.device), reduction="sum"))


class Termination:
    """While it is open, SIGTERM, with which a cluster ends a job, is noted and ends nothing.

    Attributes:
        asked: Whether it has come.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Termination:
        # Python has signals handled in its main thread alone.
        self.here = threading.current_thread() is threading.main_thread()
        if self.here:
            self.before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self.here:
            signal.signal(signal.SIGTERM, self.before)

    def _note(self, *_: object) -> None:
        self.asked = True
