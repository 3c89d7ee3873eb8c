"""What stands before Gradio's routes: calls are checked, counted and watched before they wait.

Gradio 6.31 looks at arguments when a call's turn comes, gives places to whoever asks first, and
runs what nobody waits for.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from contextvars import Context
from datetime import datetime
from functools import partial
from math import inf
from typing import Any
from urllib.parse import parse_qs

from gradio.queueing import Event, Queue
from gradio.routes import App

from ..presets import shown
from . import answers
from .asgi import read_body, refuse, replayed, send_json, with_headers
from .cache import Uploads
from .call_places import CALLER, MAKES_CLIPS, check_places, drop, end_loop, is_over, next_look
from .calls import ENDPOINT, Refused, by_name, by_order, parsed, with_all_values
from .mcp_calls import MCP, STREAM, Tools
from .sessions import HEARTBEAT, Sessions

PREFIX = "/gradio_api/"
GRACE = 30.0  # seconds for which a call waits or runs with nobody waiting for it
UNREAD = 600.0  # seconds for which an answer is kept that nobody has read
LOCAL = ("127.0.0.1", "::1", "::ffff:127.0.0.1", "")

UNHEARD = (
    "Nobody waited for this call for {:.0f} seconds, so it was dropped. Call again, and read its "
    "answer from /gradio_api/call/{}/ and the event_id."
)
NO_ANSWER = (
    "There is no such call, its answer was read before, or nobody came to read it for "
    f"{UNREAD / 60:.0f} minutes: call again."
)


class Gate:
    """ASGI middleware that answers what can be answered before the queue.

    Args:
        app: What comes behind it.
        grace: Seconds for which a call waits or runs with nobody waiting for it.
    """

    def __init__(self, app: Any, grace: float = GRACE) -> None:
        self.app = app
        self.grace = grace
        self.listeners: Counter[str] = Counter()  # by session or call
        self.tools = Tools(app, self._caller)
        self.uploads = Uploads()
        self.sessions = Sessions()
        self._door = (
            asyncio.Lock()
        )  # calls come in one by one, or all would see the same free place
        self._watches: set[asyncio.Task] = set()  # the loop itself keeps no hold of them

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        path = scope.get("path", "").partition(PREFIX)[2].rstrip("/")
        method = scope.get("method")
        if method == "POST" and path in MCP:
            await self.tools.post(scope, receive, send)
        elif method == "POST" and path.startswith(("call/", "queue/join", "run/", "api/")):
            await self._call(path, scope, receive, send)
        elif method == "GET" and path == STREAM:
            await self.tools.stream(scope, receive, send)
        elif method == "GET" and path.startswith(("call/", "queue/data")):
            await self._listen(path, scope, receive, send)
        elif method == "GET" and path.startswith(HEARTBEAT):
            with self.sessions.connected(path.removeprefix(HEARTBEAT)):
                await self.app(scope, receive, send)
        elif path == "deep_link":  # writes a file for whoever asks, and nothing removes it
            await refuse(send, 404, "Links are made by the page itself: press Share there.")
        elif method == "POST":
            await self._other(path, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _other(self, path: str, scope: dict, receive: Any, send: Any) -> None:
        """What is sent to the page itself: files, and what its components say."""
        try:
            if path == "upload":
                await self.uploads.take(self.app, scope, receive, send)
            else:
                body = await read_body(receive)
                asked = parsed(body) if body else None  # FastAPI fails where it repeats no text
                if path == "cancel" and isinstance(asked, dict):
                    end_loop(scope["app"].get_blocks()._queue, asked.get("event_id"))
                if path == "component_server":
                    await self._component(asked, scope, replayed(body, receive), send)
                else:
                    await self.app(scope, replayed(body, receive), send)
        except Refused as refusal:
            await refuse(send, refusal.status, refusal.message)

    async def _component(self, asked: Any, scope: dict, receive: Any, send: Any) -> None:
        """What a component of a page asks for, of which Gradio keeps a session, whoever it was.

        Raises:
            Refused: There is no such component, at which Gradio fails.
        """
        given = asked if isinstance(asked, dict) else {}
        known, session = scope["app"].get_blocks().blocks, given.get("session_hash")
        if not isinstance(session, str) or given.get("component_id") not in [*known]:
            raise Refused(404, "The page has no such component: load it again.")
        try:
            await self.app(scope, receive, send)
        finally:
            self.sessions.end_call(scope["app"].state_holder, session)

    # Calls

    async def _call(self, path: str, scope: dict, receive: Any, send: Any) -> None:
        """A call in one of Gradio's own forms."""
        blocks = scope["app"].get_blocks()
        self.sessions.sweep(scope["app"].state_holder, datetime.now())
        tool_call = self.tools.call_of(scope)
        named, public = path.startswith("call/v2/"), True
        try:
            body = await read_body(receive)
            asked = parsed(body)
            public = _names_endpoint(path, asked, blocks)
            # It is JSON, whatever it was sent as: curl says that all is a form.
            scope = with_headers(scope, {b"content-type": b"application/json"})
            if named and public:
                blocks.check(by_name(asked))
            elif public:
                complete = with_all_values(asked)
                blocks.check(by_order(complete))
                body = json.dumps(complete).encode() if complete != asked else body
            session = "" if named else str(asked.get("session_hash") or "")
            scope[CALLER] = caller = self._caller(scope, session)
            if public or (path == "queue/join" and _makes_clips(asked, blocks)):
                async with self._door:
                    check_places(blocks._queue, caller)
                    answer = await self._pass_on(scope, replayed(body, receive), send)
            else:
                answer = await self._pass_on(scope, replayed(body, receive), send)
        except Refused as refusal:
            if not public and refusal.status == 429:  # which the page shows where it is a text
                told = {"error": refusal.message, "detail": refusal.message}
                await send_json(send, refusal.status, told)
                return
            # `gradio_client` shows the text of no other answers than these.
            full = path == "queue/join" and refusal.status == 429
            await refuse(send, 503 if full else refusal.status, refusal.message)
            return
        event = blocks._queue.event_ids_to_events.get(_event_id(answer))
        if event is None:
            return
        if tool_call is not None:
            tool_call.event = event
            if tool_call.gone:
                await tool_call.drop(blocks._queue)
        watch = asyncio.create_task(self._watch(blocks._queue, event, scope["app"]))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)

    async def _pass_on(self, scope: dict, receive: Any, send: Any) -> bytes:
        """Lets Gradio answer; returns what it said."""
        parts = []

        async def listening_send(message: dict) -> None:
            parts.append(message.get("body", b""))
            await send(message)

        await self.app(scope, receive, listening_send)
        return b"".join(parts)

    def _caller(self, scope: Any, session: str = "") -> str:
        """Who calls: an address. People at the machine itself are told apart by their sessions."""
        headers = dict(scope["headers"])
        if (tool_call := self.tools.call_of(scope)) is not None:
            return tool_call.caller
        if os.environ.get("SPACE_ID"):  # all requests come from its proxy
            return headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",")[0].strip()
        address = (scope.get("client") or ("",))[0]
        return f"{address} {session}" if address in LOCAL else address

    # Who waits for them

    async def _listen(self, path: str, scope: dict, receive: Any, send: Any) -> None:
        """Somebody reads the answers of a call or of a session."""
        queue = scope["app"].get_blocks()._queue
        if path.startswith("queue/"):
            query = parse_qs(scope["query_string"].decode("latin-1"))
            key = query.get("session_hash", [""])[0]
            session = key
        else:
            key = path.rpartition("/")[2]
            session = answers.session_of(queue, key)
            if session is None:
                await refuse(send, 404, NO_ANSWER)
                return
        self.listeners[key] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.listeners[key] -= 1
            if not self.listeners[key]:
                del self.listeners[key]
                self._let_go(queue, session)

    def _is_heard(self, queue: Queue, session: str) -> bool:
        """Whether somebody reads what is said to a session, or to one of its calls."""
        calls = queue.pending_event_ids_session.get(session, ())
        return any(self.listeners[key] for key in (session, *calls))

    def _let_go(self, queue: Queue, session: str) -> None:
        """Forgets a session that is over."""
        if not self._is_heard(queue, session):
            answers.let_go(queue, session)

    def _expire(self, queue: Queue, session: str, call: str) -> None:
        """Nobody has come to read the answer of a call."""
        queue.pending_event_ids_session.get(session, set()).discard(call)
        self._let_go(queue, session)

    async def _watch(self, queue: Queue, event: Event, app: App) -> None:
        """Drops a call that nobody waits for, and forgets its session when it has ended."""
        every = min(1.0, self.grace / 4)
        session, alone = event.session_hash, 0.0
        while not is_over(queue, event):
            await next_look(every)
            # By looks, not by the clock: who would read could not while the loop stood still.
            alone += every
            if self.listeners[event._id] or self.listeners[session]:
                alone = 0.0
            elif alone > self.grace:  # the first look comes at once
                await drop(queue, event, UNHEARD.format(self.grace, ENDPOINT))
                alone = -inf  # once, however long its last step takes
        self.sessions.end_call(app.state_holder, session)
        if event._id in queue.event_ids_to_events:
            await next_look(every)  # Gradio still tidies up, or has failed
        app.iterators_to_reset.discard(event._id)
        queue.event_ids_to_events.pop(event._id, None)
        self._let_go(queue, session)
        if event._id in queue.pending_event_ids_session.get(session, ()):
            if event.fn.api_name == ENDPOINT and not self._is_heard(queue, session):
                answers.shorten(queue, event)
            # By its name and in no context: the event and this one hold the request.
            expire = partial(self._expire, queue, session, event._id)
            asyncio.get_running_loop().call_later(UNREAD, expire, context=Context())


def _names_endpoint(path: str, asked: Any, blocks: Any) -> bool:
    """Whether a call is one of the public endpoint, and not one of the page's own.

    Raises:
        Refused: if it names neither, or asks for a run beside the queue.
    """
    form, _, name = path.removeprefix("call/v2/").removeprefix("call/").rpartition("/")
    public = [key for key, each in blocks.fns.items() if each.api_name == ENDPOINT]
    index = asked.get("fn_index") if isinstance(asked, dict) else None
    if path.startswith("call/"):
        if name == ENDPOINT and not form:
            return True
    elif path == "queue/join":
        if isinstance(index, int) and index in blocks.fns:
            return index in public
    elif name != ENDPOINT and isinstance(index, int) and index in set(blocks.fns) - set(public):
        return False
    there = f"the one there is, /{ENDPOINT}, is called at {PREFIX}call/v2/{ENDPOINT}"
    raise Refused(404, f"There is no endpoint at {shown(PREFIX + path)}: {there}.")


def _makes_clips(asked: dict, blocks: Any) -> bool:
    """Whether an event of the page itself waits among the runs."""
    return blocks.fns[asked["fn_index"]].concurrency_id == MAKES_CLIPS


def _event_id(answer: bytes) -> str:
    try:
        found = json.loads(answer)
    except ValueError:
        return ""
    return str(found.get("event_id", "")) if isinstance(found, dict) else ""
