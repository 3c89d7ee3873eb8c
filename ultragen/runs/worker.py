"""Runs a task in a thread and streams its progress, so that whoever watches can stop it.

A generator is what both Gradio and a ZeroGPU worker can stop between two items; the work itself
blocks, so it runs beside. Closing the generator stops the work within a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Event, Lock, Thread, current_thread
from time import monotonic
from typing import Generic, TypeVar

from .progress import Cancelled, Progress

T = TypeVar("T")
_running: dict[Thread, Event] = {}
_starting = Lock()  # a thread that has not begun can't be waited for
_ended = Event()
Task = Callable[[Callable[[Progress], None], Event], T]


@dataclass(frozen=True)
class Finished(Generic[T]):
    """The task's result."""

    value: T


@dataclass(frozen=True)
class Failed:
    """Why the task ended without a result, in words for people.

    Items and not exceptions, because a ZeroGPU worker passes on no more of an exception than the
    name of its class.
    """

    message: str


def stream(task: Task[T], every: float = 0.2) -> Iterator[Progress | Finished[T] | Failed | None]:
    """Runs a task and yields its progress, then how it ended.

    Args:
        task: Called with a function to report progress to, and an event that is set when the
            generator is closed; it should raise `Cancelled` soon after.
        every: Seconds after which None is yielded when nothing was reported.

    Yields:
        Progress, None, and at last one `Finished` or `Failed`.
    """
    items: Queue[Progress | Finished[T] | Failed] = Queue()
    cancelled = Event()

    def work() -> None:
        try:
            items.put(Finished(task(items.put, cancelled)))
        except Cancelled:
            items.put(Failed("Cancelled."))
        except Exception as error:  # the watcher has to learn of every failure
            expected = isinstance(error, ValueError | RuntimeError | OSError)
            items.put(Failed(str(error) if expected else f"{type(error).__name__}: {error}"))

    thread = begin(work, cancelled)
    try:
        while True:
            try:
                item = items.get(timeout=every)
            except Empty:
                yield None
                continue
            yield item
            if isinstance(item, Finished | Failed):
                return
    finally:
        cancelled.set()
        thread.join()


def begin(work: Callable[[], None], stop: Event) -> Thread:
    """Starts a thread that `stop_all` ends.

    Args:
        work: What it does; it should end soon after `stop` is set.
        stop: Set by `stop_all`; at once where that was before.
    """

    def tracked() -> None:
        try:
            work()
        finally:
            _running.pop(current_thread(), None)

    thread = Thread(target=tracked, daemon=True)
    with _starting:
        _running[thread] = stop
        if _ended.is_set():
            stop.set()
        thread.start()
    return thread


def stop_all(timeout: float) -> None:
    """Stops all threads that `begin` started before the process ends; later ones stop at once.

    Args:
        timeout: Seconds to wait for them at most.
    """
    _ended.set()
    deadline = monotonic() + timeout
    with _starting:
        running = dict(_running)
    for stop in running.values():
        stop.set()
    for thread in running:
        thread.join(max(0.0, deadline - monotonic()))
