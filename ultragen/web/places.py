"""The page's runs in Gradio's queue, among the API's calls: pushed, their places, and taken out.

In Gradio 6.31 what waits or runs is of a session, and goes when the session does, as on a reload.
So each of the page's runs gets a session of its own, which no connection can end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

import gradio as gr
from anyio.from_thread import run as run_in_loop
from gradio.data_classes import PredictBodyInternal
from gradio.queueing import Event, Queue

from ..runs.clip import job
from .call_places import CALLER, check_places, next_look, waiting_runs
from .calls import Refused, by_order
from .kept import KeptRun, KeptRuns
from .runs import CANCELLED, Runs
from .sessions import forget

EVERY = 0.25  # seconds between two looks at a run
# By how much an expected wait may be off before a page is told: seconds, and a part of the wait.
OFF_BY, OFF_BY_PART = 5.0, 0.2


@dataclass(frozen=True)
class Place:
    """Where a run waits.

    Attributes:
        ahead: Runs that come before it, with the one that computes.
        seconds: For which it is expected to wait.
        at: When that was, by `time.monotonic`.
    """

    ahead: int
    seconds: float
    at: float

    def is_news(self, told: Place | None) -> bool:
        """Whether a page has to be told, which counts down from what it was told before."""
        if told is None or told.ahead != self.ahead:
            return True
        off = self.seconds - (told.seconds - (self.at - told.at))
        return abs(off) > max(OFF_BY, OFF_BY_PART * self.seconds)


class Places:
    """Puts the page's runs into the queue.

    Args:
        blocks: The page.
        kept: Its runs.
        runs: What makes them, and tells how far the one is that computes.
        grace: Seconds for which a run waits or goes on with no page that shows it.
    """

    def __init__(self, blocks: gr.Blocks, kept: KeptRuns, runs: Runs, grace: float) -> None:
        self.blocks, self.kept, self.runs, self.grace = blocks, kept, runs, grace
        self._events: dict[str, Event] = {}
        self._estimates: WeakKeyDictionary[Event, float] = WeakKeyDictionary()
        self._tending: set[asyncio.Task] = set()  # the loop itself keeps no hold of them

    def wire(self, **limits: Any) -> None:
        """Adds what computes, which no page triggers, to the page that is being built."""
        name = gr.Textbox(visible=False)
        button = gr.Button(visible=False)
        event = button.click(self._compute, name, None, api_visibility="private", **limits)
        self._function = event["id"]

    def _compute(self, name: str) -> None:
        run = self.kept.by_id(name)
        if run is not None:
            run.compute()

    def take(self, run: KeptRun, request: gr.Request) -> None:
        """Puts a run into the queue.

        Raises:
            Refused: if there is no place.
        """
        try:
            run_in_loop(self._take, run, request)
        except Refused:
            run.end()
            raise

    async def _take(self, run: KeptRun, request: gr.Request) -> None:
        queue = self.blocks._queue
        body = PredictBodyInternal(
            fn_index=self._function,
            data=[run.id],
            session_hash=f"run-{run.id}",
            request=request.request,
        )
        check_places(queue, request.request.scope[CALLER])
        taken, told, _ = await queue.push(body, request.request, request.username)
        if not taken:
            raise Refused(503, f"{told} Try again in a minute.")
        self._events[run.id] = queue.event_ids_to_events[str(told)]
        task = asyncio.create_task(self._tend(run, queue))
        self._tending.add(task)
        task.add_done_callback(self._tending.discard)

    async def _tend(self, run: KeptRun, queue: Queue) -> None:
        """Stops a run that is cancelled while it waits, or that no page shows any more."""
        event = self._events[run.id]
        try:
            while event._id in queue.event_ids_to_events:
                if run.abandoned(self.grace):
                    run.stop.set()
                if run.stop.is_set() and event in waiting_runs(queue):
                    # First, so that no follower finds a run that neither waits nor has ended.
                    run.end(CANCELLED)
                    await queue.clean_events(event_id=event._id)
                await next_look(EVERY)
        finally:
            del self._events[run.id]
            # Nobody reads what Gradio says to this session.
            queue.pending_messages_per_session.pop(event.session_hash, None)
            queue.pending_event_ids_session.pop(event.session_hash, None)
            if queue.server_app is not None:
                forget(queue.server_app.state_holder, event.session_hash)

    def place(self, run: KeptRun) -> Place | None:
        """Where a run waits; None if it does not."""
        event = self._events.get(run.id)
        waiting = waiting_runs(self.blocks._queue)
        if event is None or event not in waiting:
            return None
        before = waiting[: waiting.index(event)]
        left = self.runs.seconds_left()
        seconds = (left or 0.0) + sum(self._seconds(each) for each in before)
        return Place(len(before) + (left is not None), seconds, monotonic())

    def is_followed(self, session: str | None) -> bool:
        """Whether a page still reads what is said to this session."""
        going = (event for events in self.blocks._queue.active_jobs for event in events or ())
        return any(event.alive for event in going if event.session_hash == session)

    def _seconds(self, event: Event) -> float:
        """Estimated seconds of a run that waits: each page asks for all that are before its own."""
        if event not in self._estimates:
            self._estimates[event] = self._estimated(event)
        return self._estimates[event]

    def _estimated(self, event: Event) -> float:
        """Estimated seconds of a run of the page or of the API."""
        data = event.data.data if event.data is not None else []
        run = self.kept.by_id(data[0]) if len(data) == 1 else None
        if run is not None:
            return sum(run.stages.values())
        check: Callable = self.blocks.check  # type: ignore[attr-defined]
        try:
            asked = check(by_order({"data": data}))
        except Refused:  # it will be answered at once, or makes drafts, which are short
            return 0.0
        return sum(self.runs.models.estimator.estimate(job(asked, self.runs.models)).values())
