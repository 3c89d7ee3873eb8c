"""Files that visitors hand in: only what holds settings, not large, and not for long."""

from __future__ import annotations

import re
import time
from pathlib import Path

import gradio as gr

from ..runs.recipe import SUFFIXES, Recipe, read_recipe
from .settings import problem

LARGEST = "100mb"  # as Gradio reads it; a clip of 4K has less
UNREAD = 3600.0  # seconds after which a file goes that was handed in and not read
OLD = 24 * 3600.0
FOLDER = re.compile("[0-9a-f]{64}")  # what Gradio calls the folder of a file that was handed in


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


def sweep(blocks: gr.Blocks, folder: Path) -> None:
    """Removes files that were handed in and not read, also those that an earlier process left.

    Args:
        blocks: The page, which knows what was handed in.
        folder: Where Gradio keeps it, beside files of its own.
    """
    now = time.time()
    known = {Path(path) for path in list(blocks.upload_file_set)}
    left = {
        path
        for path in folder.glob("*/*")
        if FOLDER.fullmatch(path.parent.name) and path.suffix in SUFFIXES
    }
    for path in known | left:
        try:
            age = now - path.stat().st_mtime
        except OSError:
            blocks.upload_file_set.discard(str(path))
            continue
        if age > (UNREAD if path in known else OLD):
            path.unlink(missing_ok=True)
            blocks.upload_file_set.discard(str(path))
