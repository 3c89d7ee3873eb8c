"""Processes that torchrun started to make one clip together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

LONGEST_WAIT = timedelta(minutes=30)
"""Of a process for another one, which may have weights to download. On one host torchrun ends all
once one has ended."""


@contextmanager
def joined() -> Iterator[int]:
    """Joins the processes that torchrun started, each with a GPU of its own, or all on the CPU.

    Comes before anything asks for a GPU: each process sees no other one than its own.

    Yields:
        The number of this process; the first one, 0, writes the results.

    Raises:
        ValueError: if there are more processes than GPUs, or the processes are not alike.
        RuntimeError: if another process ended meanwhile.
    """
    if processes() == 1:
        yield 0
        return
    import torch
    import torch.distributed as dist

    from ..ops.exchange import check_alike

    see_own_gpu(int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo", timeout=LONGEST_WAIT)
    try:
        check_alike(torch.device("cuda" if cuda else "cpu"))
        yield dist.get_rank()
    except RuntimeError as error:
        if not lost_another(error):
            raise
        raise RuntimeError(
            f"Process {os.environ['RANK']} lost another one, which says why it ended."
        ) from error
    dist.destroy_process_group()


def processes() -> int:
    """How many torchrun started; 1 without it."""
    told = all(name in os.environ for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "RANK"))
    return int(os.environ.get("WORLD_SIZE") or 1) if told else 1


def see_own_gpu(number: int, here: int) -> None:
    """Leaves a process one GPU of those that it might see.

    Args:
        number: Of the process, among those of this host.
        here: Processes of this host.

    Raises:
        ValueError: if there are GPUs, but fewer than processes.
    """
    import torch

    count = torch.cuda.device_count()
    if count == 0:
        return
    if here > count:
        raise ValueError(
            f"{here} processes are too many for {count} GPUs: start "
            f"torchrun --nproc_per_node {count}, or fewer."
        )
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    os.environ["CUDA_VISIBLE_DEVICES"] = named[number] if named else str(number)


def lost_another(error: RuntimeError) -> bool:
    """Whether an exchange failed because another process has closed its end."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or "closed by peer" in str(error)
