"""What the browser keeps for its owner: a token that finds runs again, and the list of runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from secrets import token_hex
from typing import Any

from ..runs.write import Result
from . import views
from .results import name_of

TOKEN = re.compile("[0-9a-f]{32}")


def token(visitor: object) -> str:
    """By which the runs of a browser are known; empty if it has none yet."""
    found = visitor.get("token") if isinstance(visitor, dict) else None
    return found if isinstance(found, str) and TOKEN.fullmatch(found) else ""


def remembered(visitor: object, history: Sequence[Result], shown: Result | None) -> dict[str, Any]:
    """What a browser keeps.

    Args:
        visitor: What it kept so far, whatever that is.
        history: Its runs, the newest first.
        shown: The run whose clips the page shows.
    """
    return {
        "token": token(visitor) or token_hex(16),
        "runs": [name_of(result) for result in history],
        "shown": name_of(shown) if shown is not None else None,
    }


def script(call: str) -> str:
    """A function of `browser.js`, or an expression that uses one, as Gradio's events take it."""
    return f"(...given) => {{ {views.asset('browser.js')}\nreturn ({call})(...given); }}"
