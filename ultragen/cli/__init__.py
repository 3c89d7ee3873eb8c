"""The command line: `python -m ultragen COMMAND`."""

from .entry import main

__all__ = ["main"]
