"""Where things are."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""Of the repository."""
SUPPORT = Path(__file__).parent
"""What tests import, and scripts that they start."""
