"""Files written whole or not at all, folders of a run's own, and why either could not be."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields a free path to write to, whose file moves to `path` once nothing failed.

    It lies in the same folder, which is created if missing, and has the same suffix, by which
    encoders choose a format. No other process has its name: of several that write one `path`, the
    last one's file stays. Whatever fails, `path` keeps what it held, and nothing is left beside it.

    Raises:
        OSError: The folder can't be created or takes no files; raised before anything is yielded.
    """
    with _beside(Path(path)) as partial:
        yield partial
        partial.replace(path)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A free path in the folder of another one; its file does not stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the other's name, which may be as long as names can be.
    partial = path.with_name(f".{secrets.token_hex(8)}.partial{path.suffix}")
    try:
        partial.touch(exist_ok=False)  # a folder that takes no files is found before the work
        yield partial
    finally:
        partial.unlink(missing_ok=True)


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


def unique_directory(parent: Path, stem: str) -> Path:
    """Creates a folder that no other run has.

    Args:
        parent: Where it goes; created when missing.
        stem: What its name begins with; what file names can't hold becomes a hyphen.

    Raises:
        OSError: The folder can't be created.
    """
    safe = re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-")[:40] or "run"
    folder = Path(parent) / f"{safe}-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if folder.is_dir():
            return unique_directory(parent, stem)
        raise OSError(f"{folder} can't be created: a file is in the way") from None
    except OSError as error:
        raise OSError(
            f"the output folder {folder} can't be created ({error.strerror});"
            " choose another output folder"
        ) from error
    return folder


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or the name of its class if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
