"""The command line, called in this process."""

from __future__ import annotations

from ultragen.cli import console, entry

PROMPT = "a calm lake under snowy mountains at sunset, the camera pans right"
SMALL = ("--num-frames", 5, "--num-inference-steps", 2)
"""What makes a clip quick."""


def ultragen(*words: object) -> int:
    """`python -m ultragen WORDS`; returns the exit code."""
    arguments = [str(word) for word in words]
    return console.run(lambda: entry.app(arguments, prog_name="ultragen", standalone_mode=False))


def one_line(capsys) -> str:
    """What a failed command said: a single line, and nothing on stdout."""
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("ultragen: ")
    assert printed.err.count("\n") == 1
    return printed.err
