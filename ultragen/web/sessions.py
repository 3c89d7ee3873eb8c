"""What Gradio keeps of sessions, for as long as somebody may come back to them.

Gradio 6.31 keeps of every session a copy of all components' settings, 0.3 MB with this page, also
where a session is one call of the API, and drops the oldest only when there are 10,000.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from gradio.state_holder import StateHolder

HEARTBEAT = "heartbeat/"
FOR_PAGES = timedelta(hours=1)  # as Gradio keeps values of pages that have lost their connection
FOR_CALLS = timedelta(minutes=1)


class Sessions:
    """Knows which sessions have a page, or a client that stays connected, and forgets others."""

    def __init__(self) -> None:
        self._connected: Counter[str] = Counter()

    @contextmanager
    def connected(self, session: str) -> Iterator[None]:
        """While it lasts, a session has a client."""
        self._connected[session] += 1
        try:
            yield
        finally:
            self._connected[session] -= 1
            if not self._connected[session]:
                del self._connected[session]

    def end_call(self, holder: StateHolder, session: str | None) -> None:
        """Forgets the session of a call that has ended, unless it was a page's or a client's."""
        if session and session in holder and not self._stays(holder, session):
            forget(holder, session)

    def sweep(self, holder: StateHolder, now: datetime) -> None:
        """Forgets sessions that nobody has used for long."""
        for session, used in list(holder.time_last_used.items()):
            limit = FOR_PAGES if self._stays(holder, session) else FOR_CALLS
            if session not in self._connected and now - used > limit:
                forget(holder, session)

    def _stays(self, holder: StateHolder, session: str) -> bool:
        """Whether a session is a page's, whose values it may ask for again."""
        state = holder.session_data.get(session)
        return session in self._connected or bool(state and state.state_data)


def forget(holder: StateHolder, session: str) -> None:
    """Lets go of what Gradio keeps of a session."""
    with holder.lock:
        holder.session_data.pop(session, None)
        holder.time_last_used.pop(session, None)
