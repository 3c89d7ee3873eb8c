"""Rendering on devices of its own, beside the training.

Clips cost more to render than to train on. Processes that share the work of every step have to
render at the same moments too, or each waits for the other; a device that only renders leaves the
training undisturbed.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from queue import Empty, Full
from typing import Any

import numpy as np
import torch
from torch import Tensor, multiprocessing

Examples = tuple[Tensor, ...]
# Builds, in a new process, one function for each kind of example.
Makers = Callable[[torch.device, int], Sequence[Callable[[], Examples]]]
WAITING = 4  # batches of examples on their way from each device


def pack(x: Tensor) -> tuple[np.ndarray, torch.dtype]:
    """A tensor as plain bytes: torch would hand over an open file for each one, and there may be
    only so many of them."""
    return x.detach().cpu().contiguous().view(torch.uint8).numpy(), x.dtype


def unpack(values: np.ndarray, dtype: torch.dtype) -> Tensor:
    """The inverse of `pack`."""
    return torch.from_numpy(values).view(dtype)


class Renderers:
    """Processes that make examples, one for each device.

    Args:
        makers: Called in each process with its device and its number; must be picklable.
        weights: Part of the time that goes into each kind of example.
        first: Examples of each kind that are made before the weights count.
        devices: Where to render, for example `cuda:1`.
    """

    def __init__(
        self,
        makers: Makers,
        weights: Sequence[float],
        first: Sequence[int],
        devices: Sequence[str],
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.queue: Any = context.Queue(WAITING * len(devices))
        shares = [-(-number // len(devices)) for number in first]
        self.processes = [
            context.Process(
                target=_render,
                args=(makers, list(weights), shares, device, rank, self.queue, os.getpid()),
                daemon=True,
            )
            for rank, device in enumerate(devices)
        ]
        for process in self.processes:
            process.start()

    def collect(self, wait: bool) -> list[tuple[int, Examples]]:
        """What has been made since the last call, each with the number of its kind.

        Args:
            wait: Whether to wait until there is something.

        Raises:
            RuntimeError: if a process has died.
        """
        found: list[tuple[int, Examples]] = []
        while True:
            try:
                waiting = wait and not found
                kind, parts = self.queue.get(timeout=1.0) if waiting else self.queue.get_nowait()
                found.append((kind, tuple(unpack(*part) for part in parts)))
            except Empty:
                if found:
                    return found
                if dead := [p.exitcode for p in self.processes if not p.is_alive()]:
                    raise RuntimeError(
                        f"{len(dead)} of {len(self.processes)} rendering processes ended, with "
                        f"exit codes {dead}: what they printed says why."
                    ) from None
                if not wait:
                    return found

    def stop(self) -> None:
        """Ends the processes; may be called again."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()


def _render(
    makers: Makers,
    weights: list[float],
    first: list[int],
    device: str,
    rank: int,
    queue: Any,
    parent: int,
) -> None:
    """Makes examples for ever: of the kind that is furthest behind its share of the time."""
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True  # the autoencoder sees few sizes
    queue.cancel_join_thread()  # nobody reads what is left once the training is gone
    make = makers(torch.device(device), rank)
    made, busy = [0] * len(make), [0.0] * len(make)
    rng = random.Random(rank)
    while os.getppid() == parent:
        behind = [i for i, number in enumerate(first) if made[i] < number]
        kind = behind[0] if behind else min(
            range(len(make)), key=lambda i: (busy[i] / max(weights[i], 1e-9), rng.random())
        )  # fmt: skip
        start = time.monotonic()
        examples = tuple(pack(x) for x in make[kind]())
        busy[kind] += 0.0 if behind else time.monotonic() - start
        made[kind] += len(examples[0][0])
        _put(queue, (kind, examples), parent)


def _put(queue: Any, item: Any, parent: int) -> None:
    """Waits for room in the queue as long as there is a training to read it."""
    while os.getppid() == parent:
        try:
            return queue.put(item, timeout=2.0)
        except Full:
            continue
