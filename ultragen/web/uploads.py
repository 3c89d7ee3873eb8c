"""Files that visitors hand in, which hold settings: read once, and gone."""

from __future__ import annotations

from pathlib import Path

from ..runs.recipe import Recipe, read_recipe
from .settings import problem


def take(path: str) -> Recipe:
    """The settings that a file holds which was handed in; the file goes.

    Raises:
        gr.Error: with what is wrong with it, and what would do.
    """
    file = Path(path)
    try:
        return read_recipe(file)
    except (OSError, ValueError) as error:
        # The folder is no business of whom the message is for.
        raise problem(str(error).replace(f"{file.parent}/", "")) from error
    finally:
        file.unlink(missing_ok=True)
