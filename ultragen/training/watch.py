"""Processes of one training that notice when another one is gone.

On one host the launcher ends the others. Over several hosts nobody does: who waits for a gradient
waits until the time limit of that exchange, which has to be longer than the longest export.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist

BEAT = 2.0  # seconds
LATEST = timedelta(seconds=40)
"""How long a beat waits for the others: for a host that fell silent. The death of a process closes
its connections, and is noticed at the next beat."""
GRACE = 10.0  # seconds in which a process may end by an error of its own


class Watch:
    """While it is open, all processes meet in a thread every few seconds; if one does not come, or
    comes to say that it failed, the others end, whatever they wait for. With one process it does
    nothing."""

    def __init__(self) -> None:
        self.leaving = threading.Event()
        self.vote = 0.0
        self.thread: threading.Thread | None = None

    def __enter__(self) -> Watch:
        if dist.is_initialized() and dist.get_world_size() > 1:
            group = dist.new_group(backend="gloo", timeout=LATEST)
            self.thread = threading.Thread(target=self._meet, args=(group,), daemon=True)
            self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.thread:
            # All leave together, or at once with one that failed.
            self.vote = 1.0 if kind is None else float(dist.get_world_size())
            self.leaving.set()
            self.thread.join(None if kind is None else GRACE)

    def _meet(self, group: dist.ProcessGroup) -> None:
        votes = torch.zeros(1)
        while votes < dist.get_world_size():
            votes.fill_(self.vote)
            try:
                dist.all_reduce(votes, group=group)
            except RuntimeError:
                break
            self.leaving.wait(BEAT)
        if self.vote and votes >= dist.get_world_size():
            return
        time.sleep(GRACE)
        print(
            f"ultragen: another process of this training is gone, or silent for {LATEST.seconds} "
            f"s: process {dist.get_rank()} ends. The same command goes on from the last "
            "checkpoint, on fewer processes too.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # the main thread may wait inside a library
