"""Tables that anyone may have written: CSV, JSON lines, a JSON list, Parquet; and their text."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE_SUFFIXES = (".csv", ".jsonl", ".json", ".parquet")
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    # What PowerShell writes, and Excel as "Unicode text".
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings by the byte-order marks that files begin with."""
BETWEEN = re.compile(r"[\s,]*")
"""What stands between the elements of a JSON list."""


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        line: Where it begins, from 1: a line of the file, or a row of a Parquet file.
        values: By column; of JSON, whatever stands there. What a CSV row has beyond the header's
            columns is a list under None.
    """

    line: int
    values: Any


@dataclass(frozen=True)
class Damage:
    """A place that can't be read.

    Attributes:
        line: Where it is, from 1.
        reason: What is wrong there.
    """

    line: int
    reason: str


@dataclass(frozen=True)
class Table:
    """What a table holds.

    Attributes:
        columns: In the order in which they come.
        rows: All that could be read; empty lines are none.
        damages: All places that could not.
    """

    columns: list[str]
    rows: list[Row]
    damages: list[Damage]


def read_table(path: Path) -> Table:
    """Reads a table.

    Raises:
        ValueError: It has another suffix, can't be read, is in no known encoding, or holds
            something else than a list.
        OSError: pyarrow is missing for a Parquet file.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise ValueError(f"{path} is not a table: those end in {', '.join(TABLE_SUFFIXES)}")
    if suffix == ".parquet":
        return _read_parquet(path)
    text = read_text(path)
    if suffix == ".csv":
        return _read_csv(text)
    rows, damages = _json_lines(text) if suffix == ".jsonl" else _json_list(path, text)
    objects = (row.values for row in rows if isinstance(row.values, dict))
    return Table(list(dict.fromkeys(name for each in objects for name in each)), rows, damages)


def read_text(path: Path) -> str:
    """A text file's contents, its line ends as `\\n`: UTF-8, or UTF-16 with a byte-order mark.

    Raises:
        ValueError: It can't be read, or is in another encoding.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error
    encoding = next((MARKS[mark] for mark in MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path} is not {name} in line {line}: save it with the encoding UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_csv(text: str) -> Table:
    reader = csv.reader(io.StringIO(text), strict=True)
    columns: list[str] | None = None
    rows: list[Row] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            return Table(columns or [], rows, [Damage(line, str(error))])
        if cells is None:
            return Table(columns or [], rows, [])
        if cells and columns is None:
            columns = cells
        elif cells and columns is not None:
            rows.append(Row(line, _named(columns, cells)))


def _named(columns: list[str], cells: list[str]) -> dict[str | None, Any]:
    """Cells by column, as `csv.DictReader` gives them."""
    values: dict[str | None, Any] = dict(zip(columns, cells, strict=False))
    values |= dict.fromkeys(columns[len(cells) :])
    return values | ({None: cells[len(columns) :]} if len(cells) > len(columns) else {})


def _json_lines(text: str) -> tuple[list[Row], list[Damage]]:
    rows, damages = [], []
    # Not `splitlines`, which also cuts at separators that JSON allows inside strings.
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            rows += [Row(number, json.loads(line))] if line.strip() else []
        except ValueError as error:
            damages.append(Damage(number, str(error)))
    return rows, damages


def _json_list(path: Path, text: str) -> tuple[list[Row], list[Damage]]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        return [], [Damage(error.lineno, str(error))]
    if not isinstance(values, list):
        raise ValueError(f"{path} must hold a list of objects, one a clip")
    return [Row(line, value) for line, value in zip(_lines(text), values, strict=True)], []


def _lines(text: str) -> Iterator[int]:
    """The lines in which the elements of a JSON list, which is whole, begin."""
    decoder, line, counted, at = json.JSONDecoder(), 1, 0, text.index("[") + 1
    while (found := BETWEEN.match(text, at)) and not text.startswith("]", found.end()):
        line, counted = line + text.count("\n", counted, found.end()), found.end()
        yield line
        _, at = decoder.raw_decode(text, found.end())


def _read_parquet(path: Path) -> Table:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise OSError(f"{path} needs one more package: pip install pyarrow") from error
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged or no Parquet file") from error
    rows = [Row(number, values) for number, values in enumerate(table.to_pylist(), start=1)]
    return Table(table.column_names, rows, [])
