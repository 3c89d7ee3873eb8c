"""Processes of one training that notice when another one is gone.

On one host the launcher ends the others. Over several hosts nobody does: who waits for a gradient
waits until the time limit of that exchange, which has to be longer than the longest export.
"""

from __future__ import annotations

import os
import sys
import threading
from datetime import timedelta

import torch
import torch.distributed as dist

BEAT = 2.0  # seconds
LATEST = timedelta(seconds=40)
"""How long a beat waits for the others: for a host that fell silent. The death of a process closes
its connections, and is noticed at the next beat."""
GRACE = 10.0  # seconds in which a process may end by an error of its own
STAYS, LEAVES, FAILED = range(3)  # what a process says at a beat


class Watch:
    """While it is open, all processes meet in a thread every few seconds; if one does not come, or
    comes to say that it failed, the others say so and end, whatever they wait for.

    Args:
        group: The processes, for this alone: threads can't share a group. It lives on the CPU and
            waits `LATEST`.
        places: What each of them is called, by rank.
    """

    def __init__(self, group: dist.ProcessGroup, places: list[str]) -> None:
        self.group, self.places = group, places
        self.leaving = threading.Event()
        self.says = STAYS
        self.blames = ""  # why this process ends, where it is another one's doing
        self.told = False
        self.thread = threading.Thread(target=self._meet, daemon=True)

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, trace: object) -> None:
        """
        Raises:
            SystemExit: Another process made this one fail, which has been said.
        """
        # All leave together, or at once with one that failed.
        self.says = LEAVES if error is None else FAILED
        self.leaving.set()
        self.thread.join(None if error is None else GRACE)
        if self.blames and isinstance(error, RuntimeError | OSError):
            self._say()
            raise SystemExit(1) from error

    def _meet(self) -> None:
        votes = torch.zeros(len(self.places), dtype=torch.int32)
        while not votes.all():
            mine = self.says
            votes.zero_()
            votes[dist.get_rank()] = mine
            try:
                dist.all_reduce(votes, group=self.group)
            except RuntimeError:
                if mine != LEAVES:
                    self.blames = f"another process is gone, or silent for {LATEST.seconds} s"
                    self._say()  # at once: NCCL may notice it too, and ends the process
                break
            if (votes == FAILED).any():
                if mine == STAYS:  # who failed too has a reason of its own
                    failed = [self.places[rank] for rank in (votes == FAILED).nonzero()]
                    self.blames = f"{' and '.join(failed)} failed, and says why there"
                break
            self.leaving.wait(BEAT)
        if self.leaving.wait(GRACE):
            return
        self._say()
        os._exit(1)  # the main thread may wait inside a library

    def _say(self) -> None:
        if self.told:
            return
        self.told = True
        print(
            f"ultragen: {self.blames}: {self.places[dist.get_rank()]} ends. The same command goes "
            "on from the last checkpoint, on fewer processes too.",
            file=sys.stderr,
            flush=True,
        )
