"""What the processes of one training have to do together, and how they are asked to end."""

from __future__ import annotations

import secrets
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce
from torch import Tensor

from .. import __version__
from ..dataset.encoding_processes import PATIENCE
from ..files import create_folder
from ..ops.exchange import check_same
from .watch import LATEST, Watch

LONGEST_WAIT = timedelta(minutes=30)
"""Of a process for another one, such as the main one that exports; `watch.py` tells sooner that
one is gone."""


def check_processes() -> PartialState:
    """The processes of this training, on CPUs too: accelerate takes several that have no GPU for
    one each, unless the first thing that asks says otherwise."""
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=LONGEST_WAIT)


@contextmanager
def together(folder: Path) -> Iterator[None]:
    """What the processes of one training do together, on one host or on several: while it is open,
    none goes on without the others.

    Args:
        folder: Of the training, which all hosts share.

    Raises:
        ValueError: in all of them, if they have different versions of UltraGen or torch, or one
            does not see the folder.
        OSError: The folder can't be created.
        SystemExit: Another process is gone, which has been said.
    """
    if check_processes().num_processes == 1:
        yield
        return
    # Gloo, on GPUs too: NCCL wants one version before it can say that there are two.
    group = dist.new_group(backend="gloo", timeout=LATEST)
    versions = {"UltraGen": __version__, "torch": torch.__version__}
    place = f"process {dist.get_rank()} on {socket.gethostname()}"
    remedy = "install one version on all hosts"
    places = check_same(versions, "one training", remedy, place, group)
    with Watch(group, places):
        check_shared(folder, places)
        yield


@contextmanager
def each_by_itself() -> Iterator[None]:
    """Work that each process does alone within `together`, however long it takes: after it they
    wait for one another without `LONGEST_WAIT`."""
    if PartialState().num_processes == 1:
        yield
        return
    # Before the work, while all of them are here.
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    yield
    dist.barrier(group)
    dist.destroy_process_group(group)


def check_shared(folder: Path, places: Sequence[str]) -> None:
    """Checks that all processes see one folder, which the main one creates.

    Args:
        folder: Of the training.
        places: What the processes are called, by rank.

    Raises:
        ValueError: in all of them, if one does not see it.
        OSError: The folder can't be created.
    """
    main = PartialState().is_main_process
    token = folder / f".seen-{secrets.token_hex(4)}"
    if main:
        create_folder(folder)
        token.touch()
    try:
        [token] = broadcast_object_list([token])
        seen = gather_object([token.exists()])
    finally:
        if main:
            token.unlink()
    if not all(seen):
        blind = [place for place, sees in zip(places, seen, strict=True) if not sees]
        raise ValueError(
            f"{' and '.join(blind)} can't see what process 0 writes into {folder}: choose an --out "
            "that all hosts share."
        )


def average(gradients: Sequence[Tensor]) -> None:
    """Replaces gradients by their mean over all processes, all in one exchange."""
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    mean = reduce(flat, reduction="mean")
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
