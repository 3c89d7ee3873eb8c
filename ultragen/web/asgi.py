"""Requests that are read, and answered or passed on, as ASGI's messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import gradio as gr

from .calls import ENDPOINT, Refused

LARGEST = 2**20  # bytes of a call


async def read_body(receive: Any, largest: int = LARGEST) -> bytes:
    """The body of a request.

    Args:
        receive: What its messages come from.
        largest: Bytes that it may have.

    Raises:
        Refused: if it is larger, or does not come to its end.
    """
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "The request ended before its body did: send it again.")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > largest:
            raise Refused(413, f"Such a request may have {largest:,} bytes: send less.")
    return b"".join(parts)


def replayed(body: bytes, receive: Any) -> Any:
    """`receive` for who comes behind: the body that was read, then what else comes."""
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> dict:
        return parts.pop() if parts else await receive()

    return replay


def with_headers(scope: dict, headers: Mapping[bytes, bytes]) -> dict:
    """The scope of a request with headers in the place of those that are called the same."""
    kept = [pair for pair in scope["headers"] if pair[0] not in headers]
    return {**scope, "headers": [*kept, *headers.items()]}


async def refuse(send: Any, status: int, message: str) -> None:
    """An error, for people and for `gradio_client`, which knows Gradio's own form of it."""
    detail = {**gr.validate(False, message), "parameter_name": f"/{ENDPOINT}"}
    await send_json(send, status, {"error": message, "detail": [detail]})


async def send_json(send: Any, status: int, content: Mapping[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
