"""The command line: `python -m ultragen COMMAND`."""

from __future__ import annotations

import sys

from . import (  # noqa: F401  (they add their commands)
    batch,
    clips,
    console,
    convert,
    dataset,
    doctor,
    evaluations,
    measure,
    plan,
    scenes,
    train,
    train_wan,
    train_wan_distill,
)
from .options import app


def main() -> None:
    """Runs the command line and exits with its code."""
    arguments = sys.argv[1:] or ["--help"]
    try:
        code = console.run(lambda: app(arguments, prog_name="ultragen", standalone_mode=False))
    except KeyboardInterrupt:  # a second one, while the first was cleaned up after
        code = console.STOPPED
    # CPython notes it when Ctrl-C meets code that runs from a string, as in a dataclass's making,
    # and `python -m` then ends by the signal in place of its exit code. Any new string clears that.
    exec("")
    sys.exit(code)
