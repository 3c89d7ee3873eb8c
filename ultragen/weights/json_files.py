"""Reading JSON files that anyone may have made: what is damaged is named, with its field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

WAY_OUT = " Restore it with git, or download the model again."


def read_json(path: Path) -> Any:
    """Reads what a JSON file holds.

    Raises:
        OSError: if the file is missing or corrupt.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"The model's file {path} is missing.{WAY_OUT}") from error
    except (ValueError, RecursionError) as error:
        raise corrupt(path, error) from error


def read_object(path: Path, fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Reads an object from a JSON file.

    Args:
        path: The file.
        fields: Name → type, as it is written in annotations; checked where the field is there.

    Raises:
        OSError: if the file is missing or corrupt, or a field is of another type.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise corrupt(path, "no object")
    check_fields(content, fields or {}, path)
    return content


def check_fields(content: Mapping[str, Any], fields: Mapping[str, Any], path: Path) -> None:
    """Checks what was read from a file; as in `read_object`."""
    for name, kind in fields.items():
        if name in content and not fits(content[name], kind):
            raise corrupt(path, f"{name} is {_short(content[name])}, not {_name(kind)}")


def corrupt(path: Path, reason: object) -> OSError:
    """The error of a JSON file that does not say what it should."""
    return OSError(f"The model's file {path} is corrupt: {str(reason).rstrip('.')}.{WAY_OUT}")


def fits(value: object, kind: Any) -> bool:
    """Whether a value from JSON, where tuples are lists, is of the type of an annotation."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in arguments
    if origin in (Union, UnionType):
        return any(fits(value, each) for each in arguments)
    if origin is dict:
        return isinstance(value, dict) and all(fits(x, arguments[1]) for x in value.values())
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        # Some annotations of diffusers say `tuple[int]` and mean any length.
        if len(arguments) == 1 or arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(value)
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    if isinstance(value, bool) or kind is bool:  # which is a kind of int
        return isinstance(value, bool) and kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 60 else f"{text[:57]}..."


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)
