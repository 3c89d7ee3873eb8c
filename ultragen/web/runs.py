"""One run as the page and the API see it: GPU part, files, and a way to stop both."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread
from time import monotonic
from typing import Any

from ..estimates.cost import gpu_seconds
from ..files import unique_directory
from ..runs.clip import job
from ..runs.compare import generate
from ..runs.early import EarlyFile, NativeReady
from ..runs.loading import Models
from ..runs.native import NativeClip
from ..runs.progress import Progress, seconds_left
from ..runs.request import Request
from ..runs.worker import Failed, Finished, stream
from ..runs.write import Clips, Result, write

GpuPart = Callable[[Request], Iterator[Progress | NativeClip | Finished[Clips] | Failed | None]]
Items = Iterator[Progress | NativeReady | Finished[Result] | Failed | None]

CANCELLED = Failed("Cancelled.")
NOT_WRITTEN = (
    "The clips were made and could not be written: the server's disk is full or can't be written "
    "to. Try again later, or tell who runs this page."
)
ABORTED = "aborted"  # in what ZeroGPU says of a run that it has stopped
TURN = 0.2  # seconds between two looks at whether the device is free


class _Now:
    """How far the run is that has the device."""

    def __init__(self, total: float) -> None:
        self._total, self._began = total, monotonic()
        self._ends = self._began + total

    def got_to(self, fraction: float) -> None:
        """Expects the end anew. Between two steps it stays where it is, and so do the waits that
        pages show."""
        now = monotonic()
        self._ends = now + seconds_left(self._total, fraction, now - self._began)

    def seconds_left(self) -> float:
        return max(0.0, self._ends - monotonic())


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
        self._now: _Now | None = None

    def frames(
        self, request: Request, previews: bool = False
    ) -> Iterator[Progress | NativeClip | Finished[Clips] | Failed | None]:
        """The part that needs the GPU: everything but the files.

        Args:
            request: What to make.
            previews: Whether anyone sees what the native clip looks like meanwhile.
        """

        def task(report: Callable[[Any], None], cancelled: Event) -> Clips:
            return generate(request, self.models, report, cancelled, report, previews)

        return (yield from stream(task))

    def seconds_left(self) -> float | None:
        """Expected seconds until the device is free; None if no run has it."""
        now = self._now
        return None if now is None else now.seconds_left()

    def items(self, request: Request, gpu_part: GpuPart, stop: Event | None = None) -> Items:
        """Runs a validated request: progress, the native clip when it can be seen, then one
        `Finished` or `Failed`.

        Closing the generator stops the run within a step and returns at once.

        Args:
            request: What to make.
            gpu_part: `frames`, or what wraps it; a run that is stopped before its turn never
                gets there.
            stop: Stops the run once it is set.
        """
        stop = stop or Event()
        seconds = sum(self.models.estimator.estimate(job(request, self.models)).values())
        return self.in_turn(partial(self._work, request, gpu_part, stop), stop, seconds)

    def in_turn(self, start: Callable[[], Iterator], stop: Event, seconds: float) -> Generator:
        """Passes on what `start` gives once the device is free.

        Closing the generator closes that, too, and returns at once.

        Args:
            start: Begins the work.
            stop: Ends the wait once it is set.
            seconds: That the work is expected to take.
        """
        while not self.device.acquire(timeout=TURN):
            if stop.is_set():
                yield CANCELLED
                return
            yield None
        now = self._now = _Now(seconds)
        work = start()
        try:
            for item in work:  # not `yield from`, which would close it here, too
                if isinstance(item, Progress):
                    now.got_to(item.fraction)
                yield item
        finally:
            # Gradio closes generators on its event loop, which must not wait for a step.
            Thread(target=self._end, args=(work,), daemon=True).start()

    def _end(self, work: Iterator) -> None:
        """Stops what is left of a run, then gives the device back."""
        try:
            work.close()  # type: ignore[attr-defined]
        finally:
            self._now = None
            self.device.release()

    def _work(self, request: Request, gpu_part: GpuPart, stop: Event) -> Items:
        """A run that has the device."""
        early: list[EarlyFile] = []
        try:
            yield from self._with_early(request, gpu_part, stop, early)
        finally:
            for file in early:
                file.remove()

    def _with_early(
        self, request: Request, gpu_part: GpuPart, stop: Event, early: list[EarlyFile]
    ) -> Items:
        """The same, which puts the native clip that it shows early on a list."""
        clips = None
        # ZeroGPU keeps its worker, whose copy of the estimator never learns.
        estimated = self.models.estimator.estimate(job(request, self.models))
        for item in until_stopped(stop, self._learning(estimated, gpu_part(request))):
            if isinstance(item, Finished):
                clips = item.value
                clips.metadata["seconds"]["estimated"] = estimated
            elif isinstance(item, NativeClip):
                early.append(EarlyFile(item, self.output_dir))
            else:
                yield item
            for file in early:
                yield from file.news()
        if clips is None:
            return

        def write_files(report: Callable[[Progress], None], cancelled: Event) -> Result:
            native = early[0].wait() if early else None
            try:
                # Without the prompt, which addresses, and so proxies' logs, would show.
                name = f"{request.resolution}-{request.seed}"
                return write(clips, request, self.output_dir, report, cancelled, native, name)
            except OSError as error:  # its paths are for whoever runs the page
                print(f"A result could not be written: {error}", file=sys.stderr)
                raise OSError(NOT_WRITTEN) from error

        for item in until_stopped(stop, stream(write_files)):
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


def with_native_kept(items: Items, output_dir: Path) -> Items:
    """Passes items on, with the native clip in a folder of its own, where it stays if the run ends
    without a result: pages show it by then. What can't be kept is not shown.

    Args:
        items: From `Runs.items`.
        output_dir: Where the runs have their folders.
    """
    folder, whole = None, False
    try:
        for item in items:
            if isinstance(item, NativeReady):
                try:
                    item = _kept(item, output_dir)
                    folder = item.file.parent
                except OSError as error:
                    print(f"The native clip could not be kept: {error}", file=sys.stderr)
                    continue
            whole = whole or isinstance(item, Finished)
            yield item
    finally:
        items.close()  # type: ignore[attr-defined]
        if folder is not None and whole:
            shutil.rmtree(folder, ignore_errors=True)


def _kept(ready: NativeReady, output_dir: Path) -> NativeReady:
    """The clip in a new folder: one more name for its file, or a copy where there are no links."""
    folder = unique_directory(output_dir, "native")
    file = folder / ready.file.name
    try:
        try:
            file.hardlink_to(ready.file)
        except OSError:
            shutil.copyfile(ready.file, file)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return replace(ready, file=file)


def until_stopped(stop: Event, items: Iterator) -> Iterator:
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
