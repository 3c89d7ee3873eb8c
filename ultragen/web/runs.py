"""One run as the page and the API see it: GPU part, files, and a way to stop both."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Event, Lock, Thread
from time import monotonic

from ..estimates.cost import gpu_seconds
from ..runs.clip import job
from ..runs.compare import generate
from ..runs.loading import Models
from ..runs.progress import Progress
from ..runs.request import Request
from ..runs.worker import Failed, Finished, stream
from ..runs.write import Clips, Result, write

GpuPart = Callable[[Request], Iterator[Progress | Finished[Clips] | Failed | None]]
Items = Iterator[Progress | Finished[Result] | Failed | None]

CANCELLED = Failed("Cancelled.")
NOT_WRITTEN = (
    "The clips were made and could not be written: the server's disk is full or can't be written "
    "to. Try again later, or tell who runs this page."
)
ABORTED = "aborted"  # in what ZeroGPU says of a run that it has stopped
TURN = 0.2  # seconds between two looks at whether the device is free


class Runs:
    """Starts runs and stops them again, one at a time.

    Args:
        models: What runs are made with.
        output_dir: Where each run gets a folder of its own.

    Attributes:
        device: Held while a run computes. Gradio gives the next run its turn as soon as a caller
            cancels, while the last step of the cancelled one still computes.
    """

    def __init__(self, models: Models, output_dir: Path) -> None:
        self.models = models
        self.output_dir = output_dir
        self.device = Lock()
        self._stops: dict[str, Event] = {}

    def frames(self, request: Request) -> Iterator[Progress | Finished[Clips] | Failed | None]:
        """The part that needs the GPU: everything but the files."""
        return (yield from stream(lambda *watch: generate(request, self.models, *watch)))

    def stop_event(self, session: str | None) -> Event:
        """The event that `cancel` sets: one for all runs that a session started since the last
        one was cancelled."""
        stop = self._stops.get(session or "")
        if stop is None or stop.is_set():
            stop = self._stops[session or ""] = Event()
        return stop

    def waiting_or_running(self, session: str | None) -> Event:
        """The event of a run that `stop_event` announced, even if it was cancelled since."""
        return self._stops.get(session or "") or self.stop_event(session)

    def cancel(self, session: str | None) -> bool:
        """Stops a session's runs within a step; tells whether there may be one."""
        stop = self._stops.get(session or "")
        if stop is None or stop.is_set():
            return False
        stop.set()
        return True

    def forget(self, session: str | None) -> None:
        """Stops the runs of a session that has ended."""
        self.cancel(session)
        self._stops.pop(session or "", None)

    def items(self, request: Request, gpu_part: GpuPart, stop: Event | None = None) -> Items:
        """Runs a validated request: progress, then one `Finished` or `Failed`.

        Closing the generator stops the run within a step and returns at once.

        Args:
            request: What to make.
            gpu_part: `frames`, or what wraps it; a run that is stopped before its turn never
                gets there.
            stop: Stops the run once it is set.
        """
        stop = stop or Event()
        while not self.device.acquire(timeout=TURN):
            if stop.is_set():
                yield CANCELLED
                return
            yield None
        work = self._work(request, gpu_part, stop)
        try:
            for item in work:  # noqa: UP028  # `yield from` would close it here, too
                yield item
        finally:
            # Gradio closes generators on its event loop, which must not wait for a step.
            Thread(target=self._end, args=(work,), daemon=True).start()

    def _end(self, work: Iterator) -> None:
        """Stops what is left of a run, then gives the device back."""
        try:
            work.close()  # type: ignore[attr-defined]
        finally:
            self.device.release()

    def _work(self, request: Request, gpu_part: GpuPart, stop: Event) -> Items:
        """A run that has the device."""
        clips = None
        # ZeroGPU keeps its worker, whose copy of the estimator never learns.
        estimated = self.models.estimator.estimate(job(request, self.models))
        for item in _until(stop, self._learning(estimated, gpu_part(request))):
            if isinstance(item, Finished):
                clips = item.value
                clips.metadata["seconds"]["estimated"] = estimated
            else:
                yield item
        if clips is None:
            return

        def write_files(report: Callable[[Progress], None], cancelled: Event) -> Result:
            try:
                # Without the prompt, which addresses, and so proxies' logs, would show.
                name = f"{request.resolution}-{request.seed}"
                return write(clips, request, self.output_dir, report, cancelled, name)
            except OSError as error:  # its paths are for whoever runs the page
                print(f"A result could not be written: {error}", file=sys.stderr)
                raise OSError(NOT_WRITTEN) from error

        for item in _until(stop, stream(write_files)):
            if isinstance(item, Finished):
                measured = item.value.metadata["seconds"]["measured"]
                self.models.estimator.observe(estimated, measured)
            yield item

    def _learning(self, estimated: Mapping[str, float], items: Iterator) -> Iterator:
        """Passes items on; a run that ZeroGPU aborts, as it does with those which take longer than
        they asked for, tells how long the next one has to ask for."""
        last, began = None, 0.0
        try:
            for item in items:
                if isinstance(item, Progress):  # the first one comes when the GPU is there
                    began = began if last else monotonic()
                    last = item
                yield item
        except Exception as error:
            seconds = monotonic() - began
            if last is not None and ABORTED in str(error) and seconds >= gpu_seconds(estimated):
                self.models.estimator.observe_stopped(estimated, seconds, last.fraction)
            raise
        finally:
            items.close()  # type: ignore[attr-defined]


def _until(stop: Event, items: Iterator) -> Iterator:
    """Passes items on until the event is set; then closes their source, which ends the work, or
    never begins it."""
    try:
        if stop.is_set():
            yield CANCELLED
            return
        for item in items:
            if stop.is_set():
                items.close()  # type: ignore[attr-defined]
                yield CANCELLED
                return
            yield item
    finally:
        items.close()  # type: ignore[attr-defined]
