"""The command line, called in this process."""

from __future__ import annotations

from ultragen.cli import console, entry


def ultragen(*words: object) -> int:
    """`python -m ultragen WORDS`; returns the exit code."""
    arguments = [str(word) for word in words]
    return console.run(lambda: entry.app(arguments, prog_name="ultragen", standalone_mode=False))
