"""MCP's tool calls: checked before the queue, and ended when their callers are gone or cancel."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs
from uuid import uuid4

from gradio.queueing import Event, Queue

from ..presets import shown
from .asgi import read_body, refuse, replayed, send_json, with_headers
from .call_places import check_places, drop
from .calls import Refused, by_name, parsed

TOKEN = b"x-ultragen-tool-call"  # ties the call that Gradio's MCP server makes to the tool's caller
MCP = ("mcp", "mcp/http", "mcp/messages")
STREAM = "mcp/sse"  # of MCP's older transport, where `mcp/messages` is answered
SESSION = re.compile(rb"session_id=(\w+)")  # in its first event


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
            await drop(queue, self.event, "The caller is gone.")


class Tools:
    """What stands before Gradio's MCP server.

    Args:
        app: What comes behind it.
        caller: Who calls, by the scope of a request.
    """

    def __init__(self, app: Any, caller: Callable[[dict], str]) -> None:
        self.app, self._caller = app, caller
        self.calls: dict[str, ToolCall] = {}
        self._streams: dict[str, Any] = {}  # what sends on them, by session

    def call_of(self, scope: dict) -> ToolCall | None:
        """The tool call for which Gradio's MCP server makes a request."""
        return self.calls.get(dict(scope["headers"]).get(TOKEN, b"").decode("latin-1"))

    async def post(self, scope: dict, receive: Any, send: Any) -> None:
        """A message for the MCP server; calls of its tool are checked like all others.

        Its own check says what is wrong but not where, and it goes on with calls whose caller is
        gone.
        """
        blocks = scope["app"].get_blocks()
        token = uuid4().hex
        session = parse_qs(scope["query_string"].decode("latin-1")).get("session_id", [""])[0]
        stream = self._streams.get(session)
        call = ToolCall(self._caller(scope), session=session if stream else "")
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
                check_places(blocks._queue, call.caller)
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
        self._forget_ended(blocks._queue)
        self.calls[token] = call
        try:
            await self.app(with_headers(scope, own), noticing, send)
        finally:
            if not call.session:  # else its answer is still to come
                del self.calls[token]

    def _forget_ended(self, queue: Queue) -> None:
        """Calls of the older transport, of which nothing else tells that they have ended."""
        for token, call in list(self.calls.items()):
            if call.session and call.event and call.event._id not in queue.event_ids_to_events:
                del self.calls[token]

    async def stream(self, scope: dict, receive: Any, send: Any) -> None:
        """A stream of answers of MCP's older transport; its calls end with it."""
        session, starts, queue = "", 0, scope["app"].get_blocks()._queue

        async def noting(message: dict) -> None:
            nonlocal session, starts
            starts += message["type"] == "http.response.start"
            if starts > 1:  # Gradio 6.31 answers once more when the stream has ended
                return
            if not session and (found := SESSION.search(message.get("body", b""))):
                session = found[1].decode()
                self._streams[session] = send
            await send(message)

        async def end() -> None:
            self._streams.pop(session, None)
            for token, call in list(self.calls.items()):
                if session and call.session == session:
                    del self.calls[token]
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
            for call in self.calls.values()
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
    drawn = {"seed"}  # where it is left open
    given_or_drawn = [name for name in arguments if arguments[name] is not None or name in drawn]
    checked = {name: request[name] for name in given_or_drawn}
    if "windows" in checked:
        checked["windows"] = str(checked["windows"])
    return {**message, "params": {**params, "arguments": checked}}
