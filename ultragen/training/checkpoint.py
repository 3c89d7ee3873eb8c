"""Replaces a checkpoint's folder so that a run that is killed at any moment keeps a whole one.

No system call swaps two folders everywhere, so there is a moment between two renamings in which the
last checkpoint lies at `checkpoint.old` alone; `recover_folder` puts it back.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Replaces a folder by a fresh one, or creates it.

    Args:
        folder: What is replaced, only once the fresh one is written.
        write: Fills the folder that it is given, which does not exist yet.
    """
    fresh, old = _beside(folder)
    _remove(fresh)
    write(fresh)
    if folder.is_dir():
        _remove(old)
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)  # what stays is removed before it is in the way


def recover_folder(folder: Path) -> None:
    """Tidies up after a run that was killed in `replace_folder`: the folder is whole, or not there
    if it never was, and nothing lies beside it."""
    fresh, old = _beside(folder)
    if not folder.is_dir() and old.is_dir():
        old.rename(folder)
    for left in (fresh, old):
        _remove(left)


def _beside(folder: Path) -> tuple[Path, Path]:
    """Where the fresh folder is written, and where the one that it replaces waits."""
    return folder.with_suffix(".new"), folder.with_suffix(".old")


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
