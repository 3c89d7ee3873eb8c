"""Checkpoints: what a run needs to go on from, replaced so that a run that is killed at any moment
keeps a whole one, as it does of the weights that it exports.

No system call swaps two folders everywhere, so there is a moment between two renamings in which the
last checkpoint lies at `checkpoint.old` alone; `recover_folder` puts it back.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as distributed
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.api import CheckpointException

from ..files import first_line, write_json

RECORD = "training.json"


def replace_folder(
    folder: Path,
    write: Callable[[Path], object],
    main: bool = True,
    wait: Callable[[], object] = lambda: None,
) -> None:
    """Replaces a folder by a fresh one, or creates it.

    Args:
        folder: What is replaced, only once the fresh one is written.
        write: Fills the folder that it is given, which does not exist yet.
        main: Whether this process renames, where several write into one folder.
        wait: Returns once all of them have called it.
    """
    fresh, old = _beside(folder)
    if main:
        _remove(fresh)
    wait()
    try:
        write(fresh)
    except BaseException:
        if main:  # a part of it may be what fills the disk
            shutil.rmtree(fresh, ignore_errors=True)
        raise
    wait()
    if main:
        if folder.is_dir():
            _remove(old)
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)  # what stays is removed before it is in the way
    wait()


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


def save_parts(folder: Path, states: dict[str, Any]) -> None:
    """Writes what lies in parts on all processes, which call it together.

    Args:
        folder: Created if missing; each process writes a file of its own.
        states: What has `state_dict` and `load_state_dict`, by names.

    Raises:
        OSError: A process could not write, in all of them.
    """
    try:
        distributed.save(states, checkpoint_id=str(folder))
    except CheckpointException as error:  # no Exception, and a page long
        raise OSError(_cause(error)) from error


def load_parts(folder: Path, states: dict[str, Any]) -> None:
    """Reads what `save_parts` wrote, on any number of processes.

    Raises:
        OSError: It can't be read.
    """
    # A weight that has had no gradient has no states yet.
    planner = DefaultLoadPlanner(allow_partial_load=True)
    try:
        distributed.load(states, checkpoint_id=str(folder), planner=planner)
    except CheckpointException as error:
        raise OSError(f"The checkpoint {folder} can't be read: {_cause(error)}") from error


def _cause(error: CheckpointException) -> str:
    """What the first process that failed says."""
    cause, _ = next(iter(error.failures.values()))
    return first_line(cause)


def write_record(folder: Path, settings: Mapping[str, str], fingerprint: str) -> None:
    """Writes into a checkpoint what must be the same for a training that goes on from it."""
    write_json(folder / RECORD, {"settings": dict(settings), "fingerprint": fingerprint})


def check_record(folder: Path, settings: Mapping[str, str], fingerprint: str) -> None:
    """Checks that a training can go on from a checkpoint; one without a record is taken as it is.

    Args:
        folder: The checkpoint.
        settings: What the training has now.
        fingerprint: Of its data.

    Raises:
        ValueError: It was made with other settings or other data.
    """
    if not (folder / RECORD).exists():
        return
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    before = record["settings"]
    for name in {**before, **settings}:
        was, now = before.get(name, "none"), settings.get(name, "none")
        if was != now:
            raise ValueError(
                f"The checkpoint {folder} has another {name}: {was}, not {now}. Name the former to "
                "go on with it, or another folder to start afresh."
            )
    check_data(folder, fingerprint)


def check_data(folder: Path, fingerprint: str) -> None:
    """Checks that a checkpoint, if there is one, was made with these data; as `check_record`."""
    if not (folder / RECORD).exists():
        return
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    if record["fingerprint"] != fingerprint:
        raise ValueError(
            f"The data have changed since the checkpoint {folder}: bring the former ones back to "
            "go on with it, or name another folder, where the training can start from "
            f"{folder.parent / 'export'}."
        )
