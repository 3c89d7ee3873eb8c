"""Runs of the page, which go on while it reloads and are found again by the browser they are of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import itemgetter
from threading import Condition, Event, Lock
from time import monotonic
from typing import Any
from uuid import uuid4

from ..runs.progress import Progress, with_last_preview
from ..runs.worker import Failed, Finished
from .runs import Items

GRACE = 60.0  # seconds for which a run waits or goes on with no page that shows it
KEPT = 100  # runs that are remembered after their end, for pages that have not seen it
FORGOTTEN = 3600.0  # seconds after which a run goes that was announced and never begun
# Seconds after which a page is told that there is nothing new, of a run that computes or waits:
# twenty that wait and look as often as one that computes would cost half a percent of a processor.
LOOK, LOOK_WAITING = 0.5, 1.0


class KeptRun:
    """A run that goes on whether or not a page shows it.

    Attributes:
        id: Its name; nobody can guess it.
        owner: Token of the browser that started it.
        stages: Estimated seconds by stage.
        stop: Stops the run within a step once it is set.
        ended: Whether there will be nothing new.
        seen: Whether a page has shown how it ended.
        told: What pages are told of that, as HTML; empty as long as none was.
    """

    def __init__(self) -> None:
        self.id = uuid4().hex
        self.owner = ""
        self.stages: Mapping[str, float] = {}
        self.stop = Event()
        self.ended = self.seen = False
        self.told = ""
        self.under_way = False
        self._work: Callable[[], Items] | None = None
        self._count = 0
        self._latest: dict[type, tuple[int, Any]] = {}  # by kind: an older one is out of date
        self._news = Condition()
        self._pages = 0
        self._left = monotonic()
        self._began: float | None = None
        self._over: float | None = None

    def begin(self, owner: str, stages: Mapping[str, float], work: Callable[[], Items]) -> None:
        """Says what is to be done, once it is the run's turn."""
        self.owner, self.stages, self._work = owner, stages, work
        self.under_way = True

    @property
    def busy(self) -> bool:
        """Whether it keeps its page from starting another one: from when it was announced, as
        drafts are, too, until the page has shown how it ended."""
        return not self.seen and (self.under_way or not self.ended)

    @property
    def elapsed(self) -> float | None:
        """Seconds for which it computes, or did; None if it has not begun."""
        if self._began is None:
            return None
        return (self._over or monotonic()) - self._began

    @property
    def outcome(self) -> Finished | Failed | Exception | None:
        """How it ended, or is about to end; None as long as that is open."""
        for kind in (Exception, Failed, Finished):
            if kind in self._latest:
                return self._latest[kind][1]
        return None

    def abandoned(self, grace: float) -> bool:
        """Whether no page has shown it for longer than a grace time in seconds."""
        return self._pages == 0 and monotonic() - self._left > grace

    def compute(self) -> None:
        """Does the work, and keeps what comes of it. What is called again does nothing."""
        with self._news:
            work, self._work = self._work, None
        if work is None:
            return
        try:
            for item in work():
                self.put(item)
        except Exception as error:  # whoever follows has to learn of it
            self.put(error)
        finally:
            self.end()

    def put(self, item: Any) -> None:
        """Something new: progress, a part of the result, how it ended, or an exception."""
        if item is None:
            return
        with self._news:
            if isinstance(item, Progress):
                # The first one comes when the device is free, and no other run's last step is left.
                self._began = self._began or monotonic()
                _, before = self._latest.get(Progress, (0, item))
                item = with_last_preview(item, before)
            self._count += 1
            kind = Exception if isinstance(item, Exception) else type(item)
            self._latest[kind] = (self._count, item)
            self._news.notify_all()

    def end(self, reason: Failed | Exception | None = None) -> None:
        """There will be nothing new.

        Args:
            reason: Why it ends before its turn.
        """
        self.put(reason)
        with self._news:
            self._work = None
            self._over = self._over or monotonic()
            self.ended = True
            self._news.notify_all()

    def follow(self) -> Iterator[Any]:
        """The latest of each kind of item so far, then what is new, also an exception that the work
        raised; None while there is nothing."""
        with self._news:
            self._pages += 1
        told = 0
        try:
            while True:
                with self._news:
                    look = LOOK if self._work is None else LOOK_WAITING
                    self._news.wait_for(partial(self._has_news, told), look)
                    new = sorted(
                        (each for each in self._latest.values() if each[0] > told),
                        key=itemgetter(0),
                    )
                    ended = self.ended
                for number, item in new:
                    told = number
                    yield item
                if ended:
                    self.seen = True
                    return
                if not new:
                    yield None
        finally:
            with self._news:
                self._pages -= 1
                self._left = monotonic()

    def _has_news(self, told: int) -> bool:
        return self.ended or self._count > told


class KeptRuns:
    """The page's runs, by the session that shows each, and by the browser that started it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._runs: dict[str, KeptRun] = {}
        self._shown: dict[str, KeptRun] = {}  # by session

    def announce(self, session: str | None) -> KeptRun:
        """A run that a session is about to start, and can cancel from now on."""
        with self._lock:
            return self._announce(session)

    def announce_next(self, session: str | None) -> bool:
        """The same, unless the session's last run keeps it from starting another one."""
        with self._lock:
            last = self._shown.get(session or "")
            free = last is None or not last.busy
            if free:
                self._announce(session)
        return free

    def _announce(self, session: str | None) -> KeptRun:
        run = KeptRun()
        self._runs[run.id] = self._shown[session or ""] = run
        over = [each for each in self._runs.values() if each.ended or each.abandoned(FORGOTTEN)]
        for each in over[:-KEPT]:
            del self._runs[each.id]
        return run

    def announced(self, session: str | None) -> KeptRun:
        """The run that the session announced, even if it was cancelled since."""
        run = self._shown.get(session or "")
        return self.announce(session) if run is None or run.under_way or run.ended else run

    def by_id(self, name: object) -> KeptRun | None:
        """The run of this name."""
        return self._runs.get(name) if isinstance(name, str) else None

    def found(self, owner: str) -> KeptRun | None:
        """The newest run of a browser that is not over, or whose end no page has shown."""
        with self._lock:
            own = [run for run in self._runs.values() if owner and run.owner == owner]
        return next((run for run in reversed(own) if not run.seen), None)

    def show(self, session: str | None, run: KeptRun) -> None:
        """A session shows this run, and can cancel it."""
        with self._lock:
            self._shown[session or ""] = run

    def shown(self, session: str | None) -> KeptRun:
        """The run that a session shows; where there is none, one with nothing to tell."""
        run = self._shown.get(session or "")
        if run is None:
            run = KeptRun()
            run.end()
        return run

    def cancel(self, session: str | None) -> KeptRun | None:
        """Stops the run that a session shows, within a step or before its turn, unless it has
        ended; returns it, or None if there is none."""
        run = self._shown.get(session or "")
        if run is not None:
            run.stop.set()
        return run

    def leave(self, session: str | None) -> None:
        """A session has ended; its run goes on for the grace time."""
        with self._lock:
            self._shown.pop(session or "", None)
