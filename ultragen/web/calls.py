"""What a call of the endpoint asks for, read from each form in which calls come."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from html import unescape
from typing import Any

import gradio as gr

from ..presets import shown
from ..runs.loading import Models
from ..runs.request import Request
from .settings import SETTINGS, validated

ENDPOINT = "generate"
FIRST_SETTINGS = 12  # that a list had at first: scripts of then leave out what came later
DEFAULTS = {each.name: each.default for each in fields(Request) if each.default is not MISSING}
Check = Callable[[Mapping[str, Any]], Request]


class Refused(Exception):
    """A call that never gets a place in the queue.

    Attributes:
        status: Of HTTP.
        message: What is wrong, and what would do.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def checker(models: Models) -> Check:
    """What turns the arguments of a call into a request for these models, or raises `Refused`."""

    def check(arguments: Mapping[str, Any]) -> Request:
        there = ", ".join(SETTINGS)
        if unknown := [name for name in arguments if name not in SETTINGS]:
            raise Refused(422, f"There is no argument {shown(unknown[0])}: choose from {there}.")
        settings = {**DEFAULTS, **arguments}
        if missing := next((name for name in SETTINGS if name not in settings), None):
            raise Refused(422, f"The argument {missing!r} is missing, of these: {there}.")
        try:
            return validated(models, settings)
        except gr.Error as error:
            raise Refused(422, unescape(error.message)) from error

    return check


def parsed(body: bytes) -> Any:
    """JSON as it is, with numbers that Python reads no further as text.

    Raises:
        Refused: if it is no JSON.
    """
    try:
        return json.loads(body, parse_int=_integer)
    except (ValueError, RecursionError):
        raise Refused(
            400, 'The body must be JSON, for example {"prompt": "a calm lake at sunset"}.'
        ) from None


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= sys.get_int_max_str_digits() else digits


def by_name(body: Any) -> Mapping[str, Any]:
    """The arguments of `/call/v2/generate`, which are the body itself.

    Raises:
        Refused: if the body is no object.
    """
    if isinstance(body, dict):
        return body
    raise Refused(422, f"The body must be an object of arguments: {', '.join(SETTINGS)}.")


def with_all_values(body: Any) -> Any:
    """A call by order with the defaults of what its list leaves out at its end: scripts that were
    written before there were these arguments go on."""
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(data, list) or len(data) < FIRST_SETTINGS:
        return body
    return {**body, "data": data + [DEFAULTS[name] for name in SETTINGS[len(data) :]]}


def by_order(body: Any) -> Mapping[str, Any]:
    """The arguments of `/call/generate` and of `gradio_client`, a list called `data`.

    Raises:
        Refused: if there is none, or it has another number of values.
    """
    data = body.get("data") if isinstance(body, dict) else None
    if isinstance(data, list) and len(data) == len(SETTINGS):
        return dict(zip(SETTINGS, data, strict=True))
    raise Refused(
        422,
        f"'data' must be a list of {len(SETTINGS)} values, in this order: {', '.join(SETTINGS)}. "
        f"To name only some of them, call /gradio_api/call/v2/{ENDPOINT}.",
    )
