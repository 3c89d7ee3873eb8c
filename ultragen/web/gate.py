"""What stands before Gradio's routes: calls are checked, counted and watched before they wait.

Gradio 6.31 looks at arguments when a call's turn comes, gives places to whoever asks first, and
runs what nobody waits for.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs
from uuid import uuid4

from gradio.queueing import Event, Queue
from gradio.server_messages import ProcessCompletedMessage

from ..presets import shown
from .asgi import read_body, refuse, replayed, send_json, with_headers
from .cache import Uploads
from .calls import ENDPOINT, Refused, by_name, by_order, parsed

PREFIX = "/gradio_api/"
PLACES = 20  # of calls that wait
OWN_PLACES = 10  # of one caller
GRACE = 30.0  # seconds for which a call waits or runs with nobody waiting for it
TOKEN = b"x-ultragen-tool-call"  # ties the call that Gradio's MCP server makes to the tool's caller
MCP = ("mcp", "mcp/http", "mcp/messages")
SESSION = re.compile(rb"session_id=(\w+)")  # in the first event of MCP's older transport
LOCAL = ("127.0.0.1", "::1", "::ffff:127.0.0.1", "")

UNHEARD = (
    "Nobody waited for this call for {:.0f} seconds, so it was dropped. Call again, and read its "
    "answer from /gradio_api/call/{}/ and the event_id."
)


@dataclass
class ToolCall:
    """A tool call on its way.

    Attributes:
        caller: Who made it.
        number: What the caller calls it.
        session: Of MCP's older transport, whose answers come on a stream of their own.
        event: Its place in the queue, once there is one.
        gone: Whether who made it is gone.
    """

    caller: str
    number: object = None
    session: str = ""
    event: Event | None = None
    gone: bool = False

    async def drop(self, queue: Queue) -> None:
        """Nobody waits for it any more."""
        self.gone = True
        if self.event is not None:
            await _drop(queue, self.event, "The caller is gone.")


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
        self.tool_calls: dict[str, ToolCall] = {}
        self.tool_sessions: dict[str, Any] = {}  # what sends on their streams
        self.uploads = Uploads()
        self._door = (
            asyncio.Lock()
        )  # calls come in one by one, or all would see the same free place
        self._watches: set[asyncio.Task] = set()  # the loop itself keeps no hold of them

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        path = scope.get("path", "").partition(PREFIX)[2].rstrip("/")
        method = scope.get("method")
        if method == "POST" and path in MCP:
            await self._tool(scope, receive, send)
        elif method == "POST" and path.startswith(("call/", "queue/join", "run/", "api/")):
            await self._call(path, scope, receive, send)
        elif method == "GET" and path == "mcp/sse":
            await self._tool_session(scope, receive, send)
        elif method == "GET" and path.startswith(("call/", "queue/data")):
            await self._listen(path, scope, receive, send)
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
                if body:
                    parsed(body)  # FastAPI fails where it repeats what is no text
                await self.app(scope, replayed(body, receive), send)
        except Refused as refusal:
            await refuse(send, refusal.status, refusal.message)

    # Calls

    async def _call(self, path: str, scope: dict, receive: Any, send: Any) -> None:
        """A call in one of Gradio's own forms."""
        blocks = scope["app"].get_blocks()
        token = dict(scope["headers"]).get(TOKEN, b"").decode("latin-1")
        tool_call = self.tool_calls.get(token)
        named, public = path.startswith("call/v2/"), True
        try:
            body = await read_body(receive)
            asked = parsed(body)
            public = _names_endpoint(path, asked, blocks)
            # It is JSON, whatever it was sent as: curl says that all is a form.
            scope = with_headers(scope, {b"content-type": b"application/json"})
            if public:
                blocks.check(by_name(asked) if named else by_order(asked))
            if public or path == "queue/join":
                session = "" if named else str(asked.get("session_hash") or "")
                async with self._door:
                    self._check_places(blocks._queue, self._caller(scope, session))
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
        watch = asyncio.create_task(self._watch(blocks._queue, event))
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

    def _caller(self, scope: Any, session: str) -> str:
        """Who calls: an address. People at the machine itself are told apart by their sessions."""
        headers = dict(scope["headers"])
        tool_call = self.tool_calls.get(headers.get(TOKEN, b"").decode("latin-1"))
        if tool_call is not None:
            return tool_call.caller
        if os.environ.get("SPACE_ID"):  # all requests come from its proxy
            return headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",")[0].strip()
        address = (scope.get("client") or ("",))[0]
        return f"{address} {session}" if address in LOCAL else address

    def _check_places(self, queue: Queue, caller: str) -> None:
        """Raises `Refused` where no more calls, or none of this caller, may wait."""
        queues = queue.event_queue_per_concurrency_id.values()
        waiting = [event for one in queues for event in one.queue]
        if len(waiting) >= PLACES:
            raise Refused(
                429, f"The queue is full: all {PLACES} places are taken. Call again in a minute."
            )
        own = sum(
            caller == self._caller(event.request.scope, event.session_hash.replace(event._id, ""))
            for event in waiting
        )
        if own >= OWN_PLACES:
            raise Refused(
                429,
                f"{own} calls of yours are waiting, and one caller may have {OWN_PLACES} of the "
                f"{PLACES} places: call again when one of them has ended, or cancel one.",
            )

    # Who waits for them

    async def _listen(self, path: str, scope: dict, receive: Any, send: Any) -> None:
        """Somebody reads the answers of a call or of a session."""
        queue = scope["app"].get_blocks()._queue
        if path.startswith("queue/"):
            query = parse_qs(scope["query_string"].decode("latin-1"))
            key = query.get("session_hash", [""])[0]
        else:
            key = path.rpartition("/")[2]
            waited_for = queue.pending_event_ids_session.values()
            if key not in queue.event_ids_to_events and not any(key in ids for ids in waited_for):
                text = "There is no such call, or its answer was read before: call again."
                await refuse(send, 404, text)
                return
        self.listeners[key] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.listeners[key] -= 1
            if not self.listeners[key]:
                del self.listeners[key]

    async def _watch(self, queue: Queue, event: Event) -> None:
        """Drops a call that nobody waits for."""
        clock = asyncio.get_running_loop().time
        heard = clock()
        while event._id in queue.event_ids_to_events:
            await asyncio.sleep(min(1.0, self.grace / 4))
            if self.listeners[event._id] or self.listeners[event.session_hash]:
                heard = clock()
            elif clock() - heard >= self.grace:
                await _drop(queue, event, UNHEARD.format(self.grace, ENDPOINT))
                return

    # Tools

    async def _tool(self, scope: dict, receive: Any, send: Any) -> None:
        """A message for the MCP server; calls of its tool are checked like all others.

        Its own check says what is wrong but not where, and it goes on with calls whose caller is
        gone.
        """
        blocks = scope["app"].get_blocks()
        token = uuid4().hex
        session = parse_qs(scope["query_string"].decode("latin-1")).get("session_id", [""])[0]
        stream = self.tool_sessions.get(session)
        call = ToolCall(self._caller(scope, ""), session=session if stream else "")
        try:
            body = await read_body(receive)
            message = parsed(body)
        except Refused as refusal:
            await refuse(send, refusal.status, refusal.message)
            return
        method = message.get("method") if isinstance(message, dict) else None
        if method == "notifications/cancelled":
            await self._cancel(message, call, blocks._queue)
        elif method == "tools/call":
            call.number = message.get("id")
            try:
                message = _checked_tool_call(message, blocks)
                self._check_places(blocks._queue, call.caller)
            except Refused as refusal:
                content = [{"type": "text", "text": refusal.message}]
                result = {"content": content, "isError": True}
                reply = {"jsonrpc": "2.0", "id": message.get("id"), "result": result}
                if stream is not None:
                    event = f"event: message\r\ndata: {json.dumps(reply)}\r\n\r\n".encode()
                    await stream({"type": "http.response.body", "body": event, "more_body": True})
                await send_json(send, 200 if stream is None else 202, reply)
                return
            body = json.dumps(message).encode()

        async def noticing() -> dict:
            heard = await replay()
            if heard["type"] == "http.disconnect" and not call.gone:
                await call.drop(blocks._queue)
            return heard

        replay = replayed(body, receive)
        own = {b"content-length": str(len(body)).encode(), TOKEN: token.encode()}
        self.tool_calls[token] = call
        try:
            await self.app(with_headers(scope, own), noticing, send)
        finally:
            if not call.session:  # else its answer is still to come
                del self.tool_calls[token]

    async def _tool_session(self, scope: dict, receive: Any, send: Any) -> None:
        """A stream of answers of MCP's older transport; its calls end with it."""
        session, starts, queue = "", 0, scope["app"].get_blocks()._queue

        async def noting(message: dict) -> None:
            nonlocal session, starts
            starts += message["type"] == "http.response.start"
            if starts > 1:  # Gradio 6.31 answers once more when the stream has ended
                return
            if not session and (found := SESSION.search(message.get("body", b""))):
                session = found[1].decode()
                self.tool_sessions[session] = send
            await send(message)

        async def end() -> None:
            self.tool_sessions.pop(session, None)
            for token, call in list(self.tool_calls.items()):
                if session and call.session == session:
                    del self.tool_calls[token]
                    await call.drop(queue)

        async def noticing() -> dict:  # the MCP server itself first waits for its tools
            heard = await receive()
            if heard["type"] == "http.disconnect":
                await end()
            return heard

        try:
            await self.app(scope, noticing, noting)
        finally:
            await end()

    async def _cancel(self, message: dict, by: ToolCall, queue: Queue) -> None:
        """Ends the tool call that its caller cancels.

        Gradio's MCP server keeps no sessions but in the older transport, so nothing else than the
        address and the number tells whose call it is: where two fit, neither ends.
        """
        params = message.get("params")
        number = params.get("requestId") if isinstance(params, dict) else None
        calls = [
            call
            for call in self.tool_calls.values()
            if (call.caller, call.session, call.number) == (by.caller, by.session, number)
            and number is not None
        ]
        if len(calls) == 1:
            await calls[0].drop(queue)


def _checked_tool_call(message: dict, blocks: Any) -> dict:
    """The message with arguments as the tool's description has them.

    Raises:
        Refused: with what to change.
    """
    given = message.get("params")
    params: Mapping[str, Any] = given if isinstance(given, dict) else {}
    tools = list(blocks.mcp_server_obj.tool_to_endpoint)
    if params.get("name") not in tools:
        name = shown(params.get("name"))
        raise Refused(404, f"There is no tool {name}: choose from {', '.join(tools)}.")
    arguments = params.get("arguments") or {}
    request = blocks.check(by_name(arguments)).to_dict()
    checked = {name: request[name] for name in arguments if arguments[name] is not None}
    if "windows" in checked:
        checked["windows"] = str(checked["windows"])
    return {**message, "params": {**params, "arguments": checked}}


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


async def _drop(queue: Queue, event: Event, why: str) -> None:
    """Takes a call out of the queue, or ends its run within a step; who asks later is told why."""
    if event._id in queue.event_ids_to_events:
        output = {"error": why, "title": "Dropped", "visible": True}
        queue.send_message(event, ProcessCompletedMessage(output=output, success=False))
        await queue.clean_events(event_id=event._id)


def _event_id(answer: bytes) -> str:
    try:
        found = json.loads(answer)
    except ValueError:
        return ""
    return str(found.get("event_id", "")) if isinstance(found, dict) else ""
