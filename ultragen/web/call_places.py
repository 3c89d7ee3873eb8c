"""The places of the queue: how many there are, who may have them, and how they are given back."""

from __future__ import annotations

import asyncio

from gradio.queueing import Event, Queue
from gradio.server_messages import ProcessCompletedMessage

from .calls import Refused

MAKES_CLIPS = "run"  # what the events share that make clips, one at a time
PLACES = 20  # of runs that wait
OWN_PLACES = 10  # of one caller
CALLER = "ultragen.caller"  # who made a request, in its scope


def waiting_runs(queue: Queue) -> list[Event]:
    """The runs that wait, in their order; what the page asks else is over in a moment."""
    found = queue.event_queue_per_concurrency_id.get(MAKES_CLIPS)
    return list(found.queue) if found is not None else []


async def next_look(every: float) -> None:
    """Waits until it is time for the next look at what waits.

    All who look as often do so at one time: twenty that each wake the loop cost as much as all else
    that waiting takes.

    Args:
        every: Seconds between two looks.
    """
    await asyncio.sleep(every - asyncio.get_running_loop().time() % every)


def check_places(queue: Queue, caller: str) -> None:
    """Raises `Refused` where no more runs, or none of this caller, may wait."""
    waiting = waiting_runs(queue)
    if len(waiting) >= PLACES:
        raise Refused(
            429, f"The queue is full: all {PLACES} places are taken. Call again in a minute."
        )
    own = sum(caller == event.request.scope.get(CALLER) for event in waiting)
    if own >= OWN_PLACES:
        raise Refused(
            429,
            f"{own} calls of yours are waiting, and one caller may have {OWN_PLACES} of the "
            f"{PLACES} places: call again when one of them has ended, or cancel one.",
        )


def is_over(queue: Queue, event: Event) -> bool:
    """Whether a call neither waits nor runs.

    Gradio 6.31 keeps the names of some that were cancelled: where it closes a generator for the
    cancel and for the run's end at one time, the latter fails and tidies up no further.
    """
    waits = any(event in each.queue for each in queue.event_queue_per_concurrency_id.values())
    return not waits and not any(event in jobs for jobs in queue.active_jobs if jobs)


def end_loop(queue: Queue, event_id: object) -> None:
    """Has Gradio ask a run that computes for no more items.

    Gradio 6.31 closes and forgets the generator of a call that is cancelled. Cancelled between two
    items, the call would find none and begin anew.
    """
    for job in (job for jobs in queue.active_jobs for job in jobs or ()):
        if job._id == event_id:
            job.alive = False


async def drop(queue: Queue, event: Event, why: str) -> None:
    """Takes a call out of the queue, or ends its run within a step; who asks later is told why."""
    if event._id in queue.event_ids_to_events:
        output = {"error": why, "title": "Dropped", "visible": True}
        queue.send_message(event, ProcessCompletedMessage(output=output, success=False))
        await queue.clean_events(event_id=event._id)
