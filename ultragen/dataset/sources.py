"""Which clips a folder holds, and what is said of each: captions beside the files, or a table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .stills import STILL_SUFFIXES
from .table_files import TABLE_SUFFIXES, read_table

# fmt: off
VIDEO_SUFFIXES = frozenset((
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts",
    ".wmv", ".flv", ".ogv", ".3gp", ".mxf", ".gif",
))
# fmt: on
MEDIA_SUFFIXES = VIDEO_SUFFIXES | STILL_SUFFIXES
# By whom: DiffSynth-Studio, musubi-tuner, Hugging Face's `datasets`, others; UltraVideo; `scenes`.
PATH_COLUMNS = ("video", "video_path", "file_name", "media_path", "clip_id", "file")
# The last is the one of UltraVideo's ten descriptions that says all in a few sentences.
TEXT_COLUMNS = ("prompt", "caption", "text", "Summarized Description")

NO_CAPTION = "no caption"
NO_FILE = "file missing"
NOT_NAMED = "not in the table"


@dataclass(frozen=True)
class Source:
    """A clip and its captions.

    Attributes:
        path: The file.
        name: Its path below the folder, with `/`, or its whole path where it lies elsewhere: what
            a clip is known by.
        captions: One, or several to draw from, or none; none is empty.
    """

    path: Path
    name: str
    captions: tuple[str, ...]


@dataclass(frozen=True)
class LeftOut:
    """A clip that can't be taken.

    Attributes:
        name: Of the file, as in `Source`.
        reason: A few words, the same for all clips with the same fault.
    """

    name: str
    reason: str


def find_sources(
    folder: Path, caption_columns: Sequence[str] = (), table: Path | None = None
) -> tuple[list[Source], list[LeftOut]]:
    """Finds the clips of a folder with their captions.

    Captions stand in a table, or in `NAME.txt` beside `NAME.mp4`, in the folder and those below it.
    The table is `metadata.csv`, `.jsonl`, `.json` or `.parquet`; another one counts if it is the
    only one and no captions lie beside clips. Its paths are relative to the folder, or absolute;
    they may lead out of the folder, since whoever wrote the table could have named any file.
    What is hidden, with a name that begins with a dot, is passed over.

    Args:
        folder: Where the clips lie.
        caption_columns: The table's columns to take captions from; none takes the first of
            `TEXT_COLUMNS` that it has.
        table: The table, if none of the above, or if there are several.

    Returns:
        The clips by name, and what was left out: clips without a caption or listed twice, captions
        and rows without a clip.

    Raises:
        ValueError: There is no clip or no caption at all, the table can't be read, or lacks a
            column.
        OSError: The folder can't be read, or pyarrow is missing for a Parquet file.
    """
    folder = Path(os.path.normpath(folder))
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    files = list(_files(folder))
    media = [path for path in files if path.suffix.lower() in MEDIA_SUFFIXES]
    beside = {path for path in files if path.suffix.lower() == ".txt"}
    captioned = {path.with_suffix("") for path in beside} & {p.with_suffix("") for p in media}
    table = table or _find_table(folder, alone=not captioned)
    if table is not None:
        sources, left_out = _from_table(folder, media, table, caption_columns)
    elif caption_columns:
        raise ValueError(
            f"{folder} has no table to take the column {caption_columns[0]!r} from:"
            " name one, or leave the column out"
        )
    else:
        sources, left_out = _from_text_files(folder, media, beside)
    if not sources:
        raise ValueError(_nothing(folder, media, table, left_out))
    return sorted(sources, key=lambda s: s.name), sorted(left_out, key=lambda s: s.name)


def find_videos(folder: Path) -> list[Source]:
    """The videos of a folder and those below it, by name, whatever is said of them.

    Raises:
        ValueError: There is none.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    found = [path for path in _files(folder) if path.suffix.lower() in VIDEO_SUFFIXES]
    if not found:
        raise ValueError(f"there are no videos in {folder}: .mp4, .mov, .mkv, ...")
    return sorted((Source(path, _name(path, folder), ()) for path in found), key=lambda s: s.name)


def _files(folder: Path) -> Iterator[Path]:
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(here, name) for name in names if not name.startswith("."))


def _find_table(folder: Path, alone: bool) -> Path | None:
    """The folder's table; `alone`, if nothing else in it holds captions."""
    tables = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in TABLE_SUFFIXES and not path.name.startswith(".")
    )
    found = [path for path in tables if path.stem.lower() == "metadata"]
    if not found and alone:
        found = tables
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{folder} has several tables: {names}; choose one")
    return found[0] if found else None


def _nothing(folder: Path, media: list[Path], table: Path | None, left_out: list[LeftOut]) -> str:
    """Why there is nothing to train on."""
    if table is None and not media:
        return f"there are no clips in {folder}: videos (.mp4, .mov, ...) or stills (.png, ...)"
    if table is None:
        return (
            f"none of the {len(media)} clips in {folder} has a caption: write one to NAME.txt"
            " beside NAME.mp4, or all into metadata.csv with the columns video and prompt"
        )
    reasons = sorted({one.reason for one in left_out} - {NOT_NAMED})
    return f"{table} names no clip with a caption: {', '.join(reasons) or 'it has no rows'}"


# Captions beside clips


def _from_text_files(
    folder: Path, media: list[Path], texts: set[Path]
) -> tuple[list[Source], list[LeftOut]]:
    by_stem = {path.with_suffix(""): path for path in texts}
    sources, left_out = [], []
    for path in media:
        name, text = _name(path, folder), by_stem.get(path.with_suffix(""))
        try:
            caption = text.read_text(encoding="utf-8-sig").strip() if text else ""
        except (OSError, UnicodeDecodeError) as error:
            fault = "can't be read" if isinstance(error, OSError) else "is not UTF-8"
            left_out.append(LeftOut(name, f"caption {fault}"))
            continue
        if caption:
            sources.append(Source(path, name, (caption,)))
        else:
            left_out.append(LeftOut(name, NO_CAPTION))
    for stem in sorted(by_stem.keys() - {path.with_suffix("") for path in media}):
        left_out.append(LeftOut(_name(by_stem[stem], folder), "caption without a clip"))
    return sources, left_out


def _name(path: Path, folder: Path) -> str:
    inside = path.is_relative_to(folder)
    return (path.relative_to(folder) if inside else path.absolute()).as_posix()


# Captions in a table


def _from_table(
    folder: Path, media: list[Path], table: Path, caption_columns: Sequence[str]
) -> tuple[list[Source], list[LeftOut]]:
    columns, rows = _read(table)
    path_column, text_columns = _choose_columns(table, columns, caption_columns)
    by_stem = {path.stem: path for path in reversed(media)} if path_column == "clip_id" else {}
    sources: list[Source] = []
    left_out: list[LeftOut] = []
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        value = row.get(path_column)
        if not isinstance(value, str) or not value.strip():
            left_out.append(LeftOut(f"row {number}", "row without a path"))
            continue
        found = _locate(folder, value.strip(), by_stem)
        name = _name(found, folder) if found else value.strip()
        captions = tuple(_captions(row.get(column) for column in text_columns))
        if name in seen:
            left_out.append(LeftOut(name, "listed twice"))
        elif found is None:
            left_out.append(LeftOut(name, NO_FILE))
        elif not captions:
            left_out.append(LeftOut(name, NO_CAPTION))
        else:
            sources.append(Source(found, name, captions))
        seen.add(name)
    names = {_name(path, folder) for path in media}
    left_out += [LeftOut(name, NOT_NAMED) for name in sorted(names - seen)]
    return sources, left_out


def _choose_columns(
    table: Path, columns: Sequence[str], caption_columns: Sequence[str]
) -> tuple[str, Sequence[str]]:
    """The column of paths and those of captions."""
    path_column, text_column = _first(PATH_COLUMNS, columns), _first(TEXT_COLUMNS, columns)
    listed = ", ".join(columns) or "no columns"
    if path_column is None:
        raise ValueError(
            f"{table} has no column with the clips' paths ({', '.join(PATH_COLUMNS)});"
            f" it has {listed}"
        )
    for column in caption_columns:
        if column not in columns:
            raise ValueError(f"{table} has no column {column!r}; it has {listed}")
    if not caption_columns and text_column is None:
        raise ValueError(f"{table} has no column with captions: choose from {listed}")
    return path_column, caption_columns or [str(text_column)]


def _first(names: Sequence[str], columns: Sequence[str]) -> str | None:
    """The first of the names that is a column, however its letters are written."""
    known = {column.strip().lower(): column for column in reversed(columns)}
    return next((known[name.lower()] for name in names if name.lower() in known), None)


def _locate(folder: Path, value: str, by_stem: dict[str, Path]) -> Path | None:
    """The file that a row means: by its path, also one written on Windows, or by its name alone
    where the table holds names."""
    for written in (value, value.replace("\\", "/")):
        path = os.path.normpath(folder / written)
        if os.path.isfile(path):  # false too for what can't be a path
            return Path(path)
    suffix = Path(value).suffix
    return by_stem.get(value.removesuffix(suffix) if suffix.lower() in MEDIA_SUFFIXES else value)


def _captions(values: Iterable[Any]) -> Iterator[str]:
    """Texts that are not empty; a value may be a list of them."""
    for value in values:
        for text in value if isinstance(value, list | tuple) else (value,):
            if isinstance(text, str) and text.strip():
                yield text.strip()


def _read(table: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """A table's columns and rows.

    Raises:
        ValueError: It can't be read, or a part of it is damaged or no object.
    """
    found = read_table(table)
    if found.damages:
        first = found.damages[0]
        near = "near" if table.suffix.lower() == ".csv" else "in"
        raise ValueError(f"{table} is damaged {near} line {first.line}: {first.reason}")
    if any(not isinstance(row.values, dict) for row in found.rows):
        raise ValueError(f"{table} must hold a list of objects, one a clip")
    return found.columns, [row.values for row in found.rows]
