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
from ..runs.request import BEFORE, Request
from .settings import SETTINGS, TYPED, typed_number, validated

RUN = "run"  # the parameter that names a clip; the others are called like the settings
WHOLE = {"prompt", "resolution", "windows", "num_frames", "upscaler"}
"""What a link has that was made by the page; one that people write has some of them."""
ALIKE = 0.75  # how near a name must come to a setting's to be taken for a misspelt one


def link(settings: Mapping[str, Any], run: str | None, models: Models) -> str:
    """The part of an address that brings settings back, and the clip that was made with them.

    Args:
        settings: By name, validated; an empty seed is left out.
        run: The clip's folder, if there is one.
        models: Whose own negative prompt is left out, which may be long.
    """
    values = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in settings.items()
        if value is not None and (name, value) != ("negative_prompt", models.preset.negative_prompt)
    }
    return "?" + urlencode(values | ({RUN: run} if run else {}), quote_via=quote)


def from_link(
    parameters: Mapping[str, str], models: Models
) -> tuple[dict[str, Any], list[str]] | None:
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
        name: text if isinstance(default[name], str) else _value(text)
        for name, text in given.items()
    }
    if set(given) >= WHOLE:  # of a version that had fewer settings
        typed = {**{name: value for name, value in BEFORE.items() if name in SETTINGS}, **typed}
    settings, more = usable(typed, models)
    return settings, problems + more


def _value(text: str) -> Any:
    """JSON, or else the text, whose error then tells what was typed."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def usual(models: Models) -> dict[str, Any]:
    """What the page starts with: the seed is empty."""
    return Request(PROMPTS[0]).validate(models.preset).to_dict() | {"seed": None}


def usable(given: Mapping[str, Any], models: Models) -> tuple[dict[str, Any], list[str]]:
    """The settings that come nearest to those given, by name: each one that can't be used is left
    at what the page starts with, and said."""
    settings, problems = usual(models), []
    values = {name: _plain(name, given[name]) for name in SETTINGS if name in given}
    try:  # some can be used together alone
        return _checked(settings | values, models), []
    except (gr.Error, TypeError):
        pass
    for name, value in values.items():
        try:
            settings = _checked(settings | {name: value}, models)
        except (gr.Error, TypeError) as error:
            said = unescape(error.message) if isinstance(error, gr.Error) else str(error)
            usually = "A new one" if settings[name] is None else shown(settings[name])
            problems.append(f"{said} {usually} is used instead.")
    return settings, problems


def _checked(settings: dict[str, Any], models: Models) -> dict[str, Any]:
    """Settings that can be used, in their plain form; an empty seed stays so. Errors are those of
    `validated`."""
    checked = validated(models, settings).to_dict()
    return checked | ({"seed": None} if settings["seed"] is None else {})


def _plain(name: str, value: Any) -> Any:
    """A value as the API takes it; a browser keeps numbers that may be left out as text, and a
    table with more around it."""
    if name in TYPED:
        return typed_number(value)
    table = isinstance(value, Mapping) and isinstance(value.get("data"), list)
    return value["data"] if table else value
