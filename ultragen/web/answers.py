"""What Gradio keeps of calls that have ended, for who comes to read their answers.

Gradio 6.31 keeps all that a call has said, 40 kB where it waited for half a minute, until somebody
reads it, of the last 2,000 sessions; names of calls whose answers nobody reads are kept for good.
"""

from __future__ import annotations

from gradio.queueing import Event, Queue
from gradio.server_messages import ProcessCompletedMessage


def session_of(queue: Queue, call: str) -> str | None:
    """The session to which a call answers; None if there is no such call, or its answer was
    read."""
    event = queue.event_ids_to_events.get(call)
    if event is not None:
        return event.session_hash
    waiting = queue.pending_event_ids_session.items()
    return next((session for session, calls in waiting if call in calls), None)


def shorten(queue: Queue, event: Event) -> None:
    """Keeps of a call that has ended how it did, and not what it said before that.

    Args:
        queue: Of the page.
        event: The call. Nobody listens to it, and its end tells all that it has made.
    """
    messages = queue.pending_messages_per_session.get(event.session_hash)
    for _ in range(messages.qsize() if messages is not None else 0):
        message = messages.get_nowait()
        if isinstance(message, ProcessCompletedMessage) or message.event_id != event._id:
            messages.put_nowait(message)


def let_go(queue: Queue, session: str) -> None:
    """Forgets a session all of whose calls have ended, unless one of them can still be read.

    Args:
        queue: Of the page.
        session: To which nobody listens.
    """
    going = any(event.session_hash == session for event in queue.event_ids_to_events.values())
    said = session in queue.pending_messages_per_session  # Gradio drops it where a reader is gone
    if not going and not (said and queue.pending_event_ids_session.get(session)):
        queue.pending_messages_per_session.pop(session, None)
        queue.pending_event_ids_session.pop(session, None)
