"""`python -m ultragen`."""

from __future__ import annotations

from ultragen.cli import main

if __name__ == "__main__":
    main()
