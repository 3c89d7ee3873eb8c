"""What a page is told of its run, by three events one after the other.

Gradio 6.31 makes every output of an event anew whenever the event says anything: a tenth of a
millisecond for a text alone, 13 for all that shows a result. So each event has the outputs that its
part of a run needs, and ends where the next one begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ..runs.clip import job
from ..runs.early import NativeReady
from ..runs.progress import Progress
from ..runs.worker import Failed, Finished
from ..runs.write import Result
from . import views
from .browser import token
from .calls import Refused
from .components import Layout
from .drafting import busy, ready
from .kept import KeptRun, KeptRuns
from .places import Place, Places
from .results import kept_until, native_alone, show, show_native
from .runs import CANCELLED, GpuPart, Runs, with_native_kept
from .settings import Updates, as_settings, in_page_words, problem, said, validated
from .visits import MOST_RUNS, Visits

WAITING = views.notice("idle", "Waiting", "The run starts when it is its turn.")
NATIVE_KEPT = "The native clip stays, the upscaled one is missing; your runs don't list it."
OUT_OF_SIGHT = views.notice(
    "stopped", "The run goes on", "The page has lost sight of it: reload to see how it stands."
)
STARTING = Progress("text", 0, 1, 0.0, "Starting")
HIDDEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# Pages whose run computes must not stand in line behind those that wait to be told their places,
# nor how a run has ended behind one that computes. Each of these pages has one of Gradio's 40
# threads.
WATCHING: dict[str, Any] = {"concurrency_id": "watch", "concurrency_limit": 24, **HIDDEN}
SHOWING: dict[str, Any] = {"concurrency_id": "show", "concurrency_limit": 6, **HIDDEN}
ENDING: dict[str, Any] = {"concurrency_id": "ending", "concurrency_limit": 2, **HIDDEN}


class Following:
    """Starts the page's runs, and shows how they stand and end.

    Args:
        ui: The page's components.
        runs: What starts runs.
        kept: Those of the page.
        places: Their places in the queue.
        visits: What the browser keeps of them.
        gpu_part: `Runs.frames`, or what wraps it.
    """

    def __init__(
        self,
        ui: Layout,
        runs: Runs,
        kept: KeptRuns,
        places: Places,
        visits: Visits,
        gpu_part: GpuPart,
    ) -> None:
        self.ui, self.runs, self.kept, self.places = ui, runs, kept, places
        self.visits, self.gpu_part = visits, gpu_part

    def wire(self, begun: Any, buttons: list[Any]) -> Any:
        """Adds the events after `run` or `wait`, and returns the last one.

        Args:
            begun: The event that calls one of these.
            buttons: What `busy` and `ready` change.
        """
        ui = self.ui
        computing = begun.success(self.compute, None, [ui.status, ui.comparison], **SHOWING)
        shown = [*ui.result, *buttons, ui.history, ui.recent, ui.visitor]
        ended = computing.success(self.end, [ui.history, ui.visitor], shown, **ENDING)
        for event in (begun, computing, ended):
            self.wire_failure(event, buttons)
        return ended

    def wire_failure(self, event: Any, buttons: list[Any]) -> None:
        """Has the page be usable again after an event that failed, or that got no place."""
        ui = self.ui
        event.failure(self.not_taken, ui.status, [ui.status, *buttons], queue=False, **HIDDEN)

    # How it begins

    def run(self, request: gr.Request, *values: Any) -> Iterator[Any]:
        """Starts a run, which is made also if the page goes, and tells how it stands."""
        *settings, visitor = values
        models = self.runs.models
        run = self.kept.announced(request.session_hash)
        try:
            asked = validated(models, as_settings(settings))
        except gr.Error as error:
            run.end(error)
            # `not_taken` says it, once.
            raise gr.Error(error.message, visible=False, print_exception=False) from error
        run.begin(
            token(visitor) or str(request.session_hash),
            models.estimator.estimate(job(asked, models)),
            lambda: with_native_kept(
                self.runs.items(asked, self.gpu_part, run.stop), self.runs.output_dir
            ),
        )
        try:
            self.enqueue(run, request)
        except Refused as refusal:
            yield views.notice("bad", "No place in the queue", refusal.message)
            # It is said once, and nothing else is to happen.
            raise gr.Error(refusal.message, visible=False, print_exception=False) from refusal
        yield from self.wait(request)

    def enqueue(self, run: KeptRun, request: gr.Request) -> None:
        """Gives a run its place in the queue."""
        self.places.take(run, request)

    def rejoin(self, request: gr.Request, visitor: object) -> Updates:
        """The page of a browser that started a run before it was loaded anew.

        Raises:
            gr.Error: There is no such run, so no event is to come after this one.
        """
        run = self.kept.found(token(visitor))
        if run is None:
            raise gr.Error("No run is under way.", visible=False, print_exception=False)
        self.kept.show(request.session_hash, run)
        return busy(self.ui)

    # How it goes on

    def wait(self, request: gr.Request) -> Iterator[Any]:
        """How the run stands that a page shows, until its native clip can be seen."""
        for news in self._news(request.session_hash):
            if isinstance(news, NativeReady):
                break
            yield news
        yield gr.skip()  # Gradio says the last thing again, over what the page says by then

    def compute(self, request: gr.Request) -> Iterator[Any]:
        """How it stands from then on, with the native clip."""
        for news in self._news(request.session_hash):
            if not isinstance(news, NativeReady):
                yield {self.ui.status: news}
            elif news.file.exists():  # else the run has ended, and its own file comes next
                yield {self.ui.comparison: native_alone(news)}
        yield gr.skip()

    def _news(self, session: str | None) -> Iterator[str | NativeReady]:
        """How the run stands that a session shows, as HTML, and its native clip, until it ends."""
        run = self.kept.shown(session)
        progress, told = STARTING, None
        for item in run.follow():
            if isinstance(item, NativeReady):
                yield item
            elif isinstance(item, Progress | None):
                progress, place = item or progress, self.places.place(run)
                if place is None or (place.is_news(told) and not run.stop.is_set()):
                    yield self.standing(run, progress, place)
                    told = place
                elif not self.places.is_followed(session):
                    return  # Gradio itself would notice only at the next item
            else:
                return  # how it ends is for the last event

    def standing(self, run: KeptRun, progress: Progress, place: Place | None) -> str:
        """How a run stands that has not ended."""
        if place is not None:
            return views.waiting(place.ahead, place.seconds)
        title = "Stopping after this step" if run.stop.is_set() else progress.message
        return views.running(progress, run.stages, run.elapsed or 0.0, title)

    # How it ends

    def end(self, request: gr.Request, history: list[Result], visitor: object) -> Iterator[Updates]:
        """The page after its run.

        Raises:
            gr.Error: What lends GPUs went wrong.
        """
        run = self.kept.shown(request.session_hash)
        if run.outcome is None and not run.ended:
            # The event before this one took the page for gone. Waiting would hold one of the few
            # places that pages need whose runs end.
            yield {self.ui.status: OUT_OF_SIGHT}
            return
        progress, native, error, told = STARTING, None, None, False
        for item in run.follow():
            if isinstance(item, Finished):
                updates = self.succeeded(item.value, history, visitor)
            elif isinstance(item, Failed):
                updates = self.failed(item, run, progress, native)
            elif isinstance(item, Exception):
                error = item if isinstance(item, gr.Error) else problem(said(item))
                updates = self.failed(Failed(said(item)), run, progress, native)
            else:
                progress = item if isinstance(item, Progress) else progress
                native = item if isinstance(item, NativeReady) else native
                continue
            told = True
            run.told = updates[self.ui.status]
            yield updates
        if not told:
            yield ready(self.ui)
        if error is not None:
            raise error

    def succeeded(self, result: Result, history: list[Result], visitor: object) -> Updates:
        """The page after a run: its result, and one more in the history."""
        return {
            **show(self.ui, result, kept_until(result.native)),
            **ready(self.ui),
            **self.visits.past([result, *history][:MOST_RUNS], visitor, result),
        }

    def failed(
        self, failure: Failed, run: KeptRun, progress: Progress, native: NativeReady | None
    ) -> Updates:
        """The page after a run that was cancelled or went wrong, with the native clip that it has
        shown by then."""
        if native is not None and not native.file.exists():
            native = None
        if failure == CANCELLED:
            kind, title = "stopped", "Cancelled"
            text = views.stopped(run.elapsed, progress.message if progress.step else "")
            if native is None and run.elapsed is not None:
                text += " Nothing was kept."
        else:
            kind, title, text = "bad", "This run failed", failure.message
        if native is None:
            return {self.ui.status: views.notice(kind, title, text), **ready(self.ui)}
        card = views.notice(kind, title, f"{text} {NATIVE_KEPT}", kept_until(native.file))
        return {**show_native(self.ui, native), self.ui.status: card, **ready(self.ui)}

    def not_taken(self, request: gr.Request, status: str) -> Updates:
        """The page after a run that got no place while others came in between, or that its
        settings kept from starting, which were changed in between."""
        run = self.kept.shown(request.session_hash)
        outcome = run.outcome
        self.kept.leave(request.session_hash)
        if run.told or status != WAITING:
            card = run.told or status  # a busy browser can have passed over what it was told
        elif isinstance(outcome, Exception):
            card = views.notice("bad", "Not started", in_page_words(said(outcome)))
        else:
            card = views.notice("bad", "The queue is full", "Try again in a minute.")
        return {self.ui.status: card, **ready(self.ui)}
