"""Processes that make one dataset together, as `accelerate launch` starts them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")
# Who is done first waits for the others, for as long as their largest clips take.
PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Processes:
    """This process among those that work together; alone, it is the first of one.

    Attributes:
        rank: Its number, from 0.
        count: How many there are.
        device: Where it computes: the GPU of its own on this machine, or the CPU.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def join(cls) -> Processes:
        """Meets the others that the launcher's environment variables tell of."""
        rank, count, local = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
        )
        device = torch.device("cpu")
        if torch.cuda.is_available():
            device = torch.device("cuda", local % torch.cuda.device_count())
            torch.cuda.set_device(device)
        if count > 1 and not distributed.is_initialized():
            # Only plain objects are exchanged, which need no GPU.
            distributed.init_process_group("gloo", timeout=PATIENCE)
        return cls(rank, count, device)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, part: T) -> list[T]:
        """What each process has, by rank; waits for all of them."""
        parts: list[T] = [part] * self.count
        if self.count > 1:
            distributed.all_gather_object(parts, part)
        return parts

    def wait(self) -> None:
        """Waits until all processes are here."""
        self.gather(None)

    def leave(self) -> None:
        if distributed.is_initialized():
            distributed.destroy_process_group()
