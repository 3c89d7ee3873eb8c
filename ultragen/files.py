"""Files and results written whole or not at all, a run's own folders, and why they could not be."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

UNFINISHED = ".unfinished-"
"""What the names of folders begin with in which results are made."""
# What such a folder holds: a result that only has to be moved, what it takes the place of, and the
# names of an earlier result that it has no files for.
WHOLE, REPLACED, LACKS = "whole", "replaced", "lacks.json"


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields a free path to write to, whose file moves to `path` once nothing failed.

    It lies in the same folder, which is created if missing, and has the same suffix, by which
    encoders choose a format. No other process has its name: of several that write one `path`, the
    last one's file stays. Whatever fails, `path` keeps what it held, and nothing is left beside it.

    Raises:
        OSError: The folder can't be created or takes no files, or no file can have the name, which
            is raised before anything is yielded; or what failed later. Where the disk or a right is
            the cause, the text says what to do.
    """
    with _causes_named(Path(path)), _beside(Path(path)) as partial:
        yield partial
        partial.replace(path)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A free path in the folder of another one; its file does not stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        path.lstat()  # a name that no file can have is found before the work
    # Without the other's name, which may be as long as names can be.
    partial = path.with_name(f".{secrets.token_hex(8)}.partial{path.suffix}")
    try:
        partial.touch(exist_ok=False)  # a folder that takes no files is found before the work
        yield partial
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _causes_named(path: Path) -> Iterator[None]:
    """Says what to do where a file can't be written, with the path that its user gave."""
    try:
        yield
    except OSError as error:
        if told := cannot_write(path, str(error)):
            told.errno = error.errno
            raise told from error
        raise


def cannot_write(path: Path, reason: str) -> OSError | None:
    """The error for a file that can't be written, with the way out.

    Args:
        path: What was asked for.
        reason: What the system, or a program that writes, said.

    Returns:
        None where the reason is none of the disk's, of rights or of names.
    """
    if re.search(r"No space left|SIGXFSZ|File too large|Disk quota", reason):
        return OSError(
            f"{path} was not written: the disk is full or the file size limited;"
            f" free some space below {path.parent} or choose another output folder"
        )
    if re.search(r"Permission denied|Read-only|not permitted", reason):
        return OSError(
            f"{path} was not written: {path.parent} can't be written to;"
            " choose another output folder"
        )
    if "name too long" in reason:
        return OSError(f"{path} can't be written: the name is too long; choose a shorter one")
    return None


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8, as `whole_file` writes."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Writes plain values for people to read, as `whole_file` writes."""
    write_text(path, _json_lines(content))


def create_json(path: Path, content: Any) -> None:
    """Writes plain values where there is no file; of several processes at once, one does."""
    if path.exists():
        return
    with _beside(path) as partial:
        partial.write_text(_json_lines(content), encoding="utf-8")
        try:
            path.hardlink_to(partial)  # never replaces, as renaming would
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            partial.replace(path)


def _json_lines(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def create_folder(folder: Path) -> Path:
    """Creates a folder with its parents, where it is missing; returns it.

    Raises:
        OSError: It can't be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"the output folder {folder} can't be created ({error.strerror});"
            " choose another output folder"
        ) from error
    return folder


def unique_directory(parent: Path, stem: str) -> Path:
    """Creates a folder that no other run has.

    Args:
        parent: Where it goes; created when missing.
        stem: What its name begins with; what file names can't hold becomes a hyphen.

    Raises:
        OSError: The folder can't be created.
    """
    safe = re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-")[:40].rstrip("-") or "run"
    folder = create_folder(Path(parent)) / f"{safe}-{secrets.token_hex(4)}"
    try:
        folder.mkdir()
    except FileExistsError:
        return unique_directory(parent, stem)
    return folder


@contextmanager
def whole_result(folder: Path, replaces: Iterable[str] = ()) -> Iterator[Path]:
    """Yields an empty folder, whose contents move to `folder` once nothing failed.

    An earlier result is replaced as a whole: its files are away before the first new one comes. An
    error puts them back. A process that is killed in between leaves files of one result only, and
    the next call for the same folder, or `sweep_unfinished`, moves the rest of the new one.

    Args:
        folder: Where the result goes; exists.
        replaces: Names that belong to an earlier result, also those that the new one lacks.

    Raises:
        OSError: The folder takes no files, a folder is where a file is to go, or what failed; what
            was there stays. Its text has the paths that the files would have had.
    """
    sweep_unfinished(folder)
    work, lock = _locked_folder(folder)
    try:
        files = work / "files"
        files.mkdir()
        yield files
        new = {path.name for path in files.iterdir()}
        for name in sorted(new):
            if (folder / name).is_dir() and not (files / name).is_dir():
                raise OSError(f"{folder / name} is a folder, which no file replaces")
        write_json(work / LACKS, sorted(set(replaces) - new))
        files.rename(work / WHOLE)  # from here on, a process that is killed has a result
        _publish(work, folder)
    except OSError as error:
        told = OSError(str(error).replace(str(work / "files"), str(folder)))
        told.errno = error.errno
        raise told from error
    finally:
        _remove(work, lock)


@contextmanager
def unfinished_folder(parent: Path) -> Iterator[Path]:
    """Yields a new folder, which goes at the end. What a killed process leaves of it,
    `sweep_unfinished` removes.

    Raises:
        OSError: The parent takes no folders.
    """
    work, lock = _locked_folder(parent)
    try:
        yield work
    finally:
        _remove(work, lock)


def sweep_unfinished(folder: Path) -> None:
    """Ends what killed processes left in a folder: results that were whole are moved to it, others
    removed. What a running process works on stays, and so does what can't be moved."""
    for work in folder.glob(f"{UNFINISHED}*"):
        lock = FileLock(work / "lock")
        # Timeout: it is in use, or another process sweeps it.
        with suppress(Timeout, OSError):
            lock.acquire(blocking=False)
            try:
                if (work / WHOLE).is_dir():
                    _publish(work, folder)
            except OSError:
                lock.release()
            else:
                shutil.rmtree(work / REPLACED, ignore_errors=True)
                _remove(work, lock)


def _remove(work: Path, lock: FileLock) -> None:
    """Removes a folder that is locked, unless files of an earlier result could not go back."""
    replaced = work / REPLACED
    if replaced.is_dir() and any(replaced.iterdir()):
        lock.release()
        return
    shutil.rmtree(work, ignore_errors=True)  # while it is locked: no sweep comes between
    lock.release()
    shutil.rmtree(work, ignore_errors=True)  # Windows keeps an open file


def _locked_folder(parent: Path) -> tuple[Path, FileLock]:
    """A new folder that no sweep takes until its lock is released or the process ends."""
    while True:
        work = parent / f"{UNFINISHED}{secrets.token_hex(4)}"
        try:
            work.mkdir()
        except OSError as error:
            raise OSError(
                f"nothing can be written to {parent} ({error.strerror});"
                " choose another output folder"
            ) from error
        lock = FileLock(work / "lock")
        with suppress(Timeout, FileNotFoundError):  # a sweep may have come between
            lock.acquire(blocking=False)
            if (work / "lock").exists():
                return work, lock
            lock.release()


def _publish(work: Path, folder: Path) -> None:
    """Moves a whole result into place, or what a killed process has not moved; undone by errors."""
    whole, replaced = work / WHOLE, work / REPLACED
    replaced.mkdir(exist_ok=True)
    names = sorted(path.name for path in whole.iterdir())
    lacks = json.loads((work / LACKS).read_text(encoding="utf-8"))
    moves = [(folder / name, replaced / name) for name in (*lacks, *names)]
    moves += [(whole / name, folder / name) for name in names]
    begun: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            if os.path.lexists(source):
                begun.append((source, target))
                source.rename(target)
    except BaseException:
        for source, target in reversed(begun):
            if not os.path.lexists(source):
                target.rename(source)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or the name of its class if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
