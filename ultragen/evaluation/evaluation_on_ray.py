"""An evaluation's clips on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..cluster.ray_actors import work_on_ray
from ..files import first_line
from .case import Case
from .evaluate import Part, Report, is_done, make_row, open_store, size
from .evaluation_setup import Setup
from .rows import Row
from .store import Store

TOLD = (ValueError, OSError, RuntimeError)  # errors that a command tells in a line


@dataclass(frozen=True)
class Settled:
    """What became of a part.

    Attributes:
        title: Of its last row.
        clips: How many are done.
        error: What went wrong, of a kind of `TOLD`.
    """

    title: str
    clips: int
    error: Exception | None = None


class Worker:
    """Makes and measures clips in an actor, and tells of each part what became of it.

    Args:
        setup: What they are made and measured with; it is loaded for the first part.
        rows: The table's.
        case: One of the scenes.
        out: Folder of what clips gave.
        threads: That torch takes on a CPU: with others, the last digits would be others.
    """

    def __init__(
        self, setup: Setup, rows: Sequence[Row], case: Case, out: Path, threads: int
    ) -> None:
        self.setup, self.rows, self.case, self.out = setup, rows, case, out
        self.threads = threads
        self.tools: tuple | None = None

    def __call__(self, part: Part) -> Settled:
        try:
            for row, clips in part:
                for _ in make_row(row, clips, *self._tools()):
                    pass
        except Exception as error:  # an actor that raises would be tried again
            kind = next((kind for kind in TOLD if isinstance(error, kind)), RuntimeError)
            return Settled("", 0, kind(first_line(error)))
        return Settled(part[-1][0].title, size(part))

    def _tools(self) -> tuple:
        if self.tools is None:
            torch.set_num_threads(self.threads)
            maker, instruments = self.setup.load()
            # Refused if this machine has other models or networks.
            store = open_store(self.rows, [self.case], maker, instruments, self.out)
            self.tools = maker, instruments, store
        return self.tools


def make_on_ray(
    parts: Sequence[Part],
    setup: Setup,
    rows: Sequence[Row],
    case: Case,
    store: Store,
    address: str,
    workers: int | None,
    report: Report = lambda fraction, text: None,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Makes and measures the clips that are not done yet on a cluster; those that an actor was at
    when it died are made again.

    Args:
        parts: The clips.
        setup: What they are made and measured with.
        rows: The table's.
        case: One of the scenes.
        store: Where what they give goes; all machines see its folder.
        address: As for `work_on_ray`, like the next one.
        workers: Actors.
        report: Called with the fraction that is done and a text.
        say: Takes a line on where they run.

    Raises:
        ValueError: As `work_on_ray` and `evaluate`.
        OSError: Likewise.
        RuntimeError: A clip is black or not finite.
    """
    lacking = [part for part in parts if not is_done(part, store)]
    if not lacking:
        return
    total = sum(map(size, parts))
    done = total - sum(map(size, lacking))
    arguments = (setup, rows, case, store.folder.absolute(), torch.get_num_threads())
    for settled in work_on_ray(lacking, Worker, arguments, store.folder, address, workers, say):
        if settled.error is not None:
            raise settled.error
        done += settled.clips
        report(done / total, settled.title)
