"""Settings that come from elsewhere: the address of a share link, or what the browser has kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from html import unescape
from typing import Any
from urllib.parse import quote, urlencode

import gradio as gr

from ..presets import PROMPTS, shown
from ..runs.loading import Models
from ..runs.request import Request
from .settings import SETTINGS, as_request, validated

RUN = "run"  # the parameter that names a clip; the others are called like the settings
ALIKE = 0.75  # how near a name must come to a setting's to be taken for a misspelt one


def link(request: Request, run: str | None, models: Models) -> str:
    """The part of an address that brings settings back, and the clip that was made with them.

    Args:
        request: Validated settings.
        run: The clip's folder, if there is one.
        models: Whose own negative prompt is left out, which may be long.
    """
    values = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in request.to_dict().items()
        if (name, value) != ("negative_prompt", models.preset.negative_prompt)
    }
    return "?" + urlencode(values | ({RUN: run} if run else {}), quote_via=quote)


def from_link(parameters: Mapping[str, str], models: Models) -> tuple[Request, list[str]] | None:
    """The settings of a share link, and what is wrong with it, for people; None if the address is
    none."""
    given = {name: parameters[name] for name in SETTINGS if name in parameters}
    problems = []
    for name in sorted(set(parameters) - set(SETTINGS) - {RUN}):
        # Social networks and Gradio add names of their own.
        if nearest := get_close_matches(name, SETTINGS, 1, ALIKE):
            problems.append(f"There is no setting {shown(name)}: {nearest[0]!r} may be meant.")
    if not given and not problems and RUN not in parameters:
        return None
    default = usual(models)
    typed = {
        name: text if isinstance(getattr(default, name), str) else _value(text)
        for name, text in given.items()
    }
    request, more = usable(typed, models)
    return request, problems + more


def _value(text: str) -> Any:
    """JSON, or else the text, whose error then tells what was typed."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def usual(models: Models) -> Request:
    """What the page starts with."""
    return Request(PROMPTS[0]).validate(models.preset)


def usable(given: Mapping[str, Any], models: Models) -> tuple[Request, list[str]]:
    """The request that comes nearest to the settings given: each one that can't be used is left at
    what the page starts with, and named."""
    request, problems = usual(models), []
    for name in SETTINGS:
        if name not in given:
            continue
        value = given[name]
        if isinstance(value, Mapping) and isinstance(value.get("data"), list):  # a table
            value = value["data"]
        settings = request.to_dict() | {name: value}
        try:
            as_request(settings)
            request = validated(models, settings)
        except (gr.Error, ValueError, TypeError) as error:
            said = unescape(error.message) if isinstance(error, gr.Error) else str(error)
            problems.append(f"{said} {shown(getattr(request, name))} is used instead.")
    return request, problems
