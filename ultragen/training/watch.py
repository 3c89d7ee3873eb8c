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
    """While it is open, all processes meet in a thread every few seconds; if one does not come, the
    others end, whatever they wait for. With one process it does nothing."""

    def __init__(self) -> None:
        self.left = threading.Event()
        self.thread: threading.Thread | None = None

    def __enter__(self) -> Watch:
        if dist.is_initialized() and dist.get_world_size() > 1:
            group = dist.new_group(backend="gloo", timeout=LATEST)
            self.thread = threading.Thread(target=self._meet, args=(group,), daemon=True)
            self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.left.set()
        # After an error this process ends, and is missed.
        if self.thread and kind is None:
            self.thread.join()

    def _meet(self, group: dist.ProcessGroup) -> None:
        leaving = torch.zeros(1)
        while leaving < dist.get_world_size():
            leaving.fill_(float(self.left.is_set()))
            try:
                dist.all_reduce(leaving, group=group)
            except RuntimeError:
                time.sleep(GRACE)
                print(
                    "ultragen: another process of this training is gone, or silent for "
                    f"{LATEST.seconds} s: process {dist.get_rank()} ends. The same command goes on "
                    "from the last checkpoint, on fewer processes too.",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)  # the main thread may wait inside a library
            time.sleep(0 if self.left.is_set() else BEAT)
