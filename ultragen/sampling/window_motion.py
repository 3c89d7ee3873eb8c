"""Windows that stand between their usual places in some steps, so that no border is seen."""

from __future__ import annotations

from typing import Any, Literal, get_args

WindowMotion = Literal["none", "alternate"]


def check_window_motion(motion: str) -> None:
    """Checks a pipeline's `window_motion`.

    Raises:
        ValueError: if there is no such motion, with those that there are.
    """
    if motion not in get_args(WindowMotion):
        raise ValueError(f"window_motion must be one of {get_args(WindowMotion)}, not {motion!r}.")


def move_windows(inputs: dict[str, Any], motion: WindowMotion, step: int) -> dict[str, Any]:
    """A transformer's inputs in a step, where those with windows say whether they are moved."""
    if motion == "none" or "windows" not in inputs:
        return inputs
    return {**inputs, "moved": step % 2 == 1}
