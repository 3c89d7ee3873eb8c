"""A file of prompts → the clips that are asked for, or all that can't be used of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from string import Formatter
from typing import Any

from ..dataset.table_files import TABLE_SUFFIXES, Damage, Row, Table, read_table, read_text
from ..files import UNFINISHED
from ..presets import ModelPreset, shown
from ..runs.request import Request

PROMPT_COLUMNS = ("prompt", "prompt_en")
"""The latter is VBench's."""
NUMBERS = ("seed", "num_frames", "fps", "num_inference_steps", "guidance_scale", "shift")
OF_OTHER_CLIPS = ("upscaler", "base_native", "base_num_inference_steps", "base_guidance_scale")
"""A request's settings that a batch, which makes native clips alone, has no use for."""
SETTINGS = tuple(
    field.name for field in fields(Request) if field.name not in ("prompt", *OF_OTHER_CLIPS)
)
"""Columns, other than the prompt's, that are a request's settings; all others are carried on."""
NO_NAME = re.compile(r'[\\/:*?"<>|\x00-\x1f]+')
"""What file names can't hold on one system or another."""
LONGEST = 255 - len(".json")  # bytes, on most file systems


@dataclass(frozen=True)
class Clip:
    """A clip that is asked for.

    Attributes:
        name: Of its files, without a suffix.
        index: The number of its prompt in the file, from 0.
        line: Where the prompt begins, from 1.
        request: What is made, validated.
        columns: What else the file says of it.
    """

    name: str
    index: int
    line: int
    request: Request
    columns: dict[str, Any]


@dataclass(frozen=True)
class Prompts:
    """What a file of prompts asks for.

    Attributes:
        clips: In the order of the file.
        faults: What can't be used, in the order of the file.
        carried: Columns that are no settings.
    """

    clips: list[Clip]
    faults: list[Damage]
    carried: list[str]


def read_prompts(
    path: Path, defaults: Mapping[str, Any], preset: ModelPreset, num_seeds: int, name: str
) -> Prompts:
    """Reads what is asked for.

    Args:
        path: Text with a prompt a line, or a table.
        defaults: Settings of clips whose row has none of its own; `seed` counts on from clip to
            clip.
        preset: Settings that suit the model.
        num_seeds: Clips of each prompt, whose seeds follow one another.
        name: What clips are called, as `str.format` takes it: with `index`, `sample` (from 0 for
            each prompt), the settings, and the file's other columns.

    Raises:
        ValueError: The file can't be read, has no prompts or no column of them, or the name can't
            be used.
        OSError: pyarrow is missing for a Parquet file.
    """
    check_name(name)
    if path.suffix.lower() == ".txt":
        lines = enumerate(read_text(path).split("\n"), start=1)
        table = Table(["prompt"], [Row(line, {"prompt": text}) for line, text in lines], [])
    elif path.suffix.lower() in TABLE_SUFFIXES:
        table = read_table(path)
    else:
        suffixes = ", ".join((".txt", *TABLE_SUFFIXES))
        raise ValueError(f"{path} is no file of prompts: those end in {suffixes}")
    known = {column: column.strip().lower() for column in table.columns}
    column = next((c for p in PROMPT_COLUMNS for c in known if known[c] == p), None)
    if column is None and (table.rows or not table.damages):
        listed = ", ".join(table.columns) or "no columns"
        raise ValueError(f"{path} has no column prompt or prompt_en; it has {listed}")
    reader = _Reader(column or "", dict(defaults), preset, num_seeds, name)
    rows = [row for row in table.rows if not _says_nothing(row.values)]
    clips = [clip for index, row in enumerate(rows) for clip in reader.clips(index, row)]
    faults = sorted(table.damages + reader.faults, key=lambda fault: fault.line)
    if not clips and not faults:
        raise ValueError(f"{path} has no prompts")
    carried = [name for name in known if name != column and known[name] not in SETTINGS]
    return Prompts(clips, faults, carried)


def check_name(name: str) -> None:
    """Checks what clips are to be called.

    Raises:
        ValueError: It is no format, may give several clips one name, or leads to other folders.
    """
    try:
        fields = [field for _, field, _, _ in Formatter().parse(name) if field is not None]
    except ValueError as error:
        raise ValueError(f"--name {shown(name)} can't be used: {error}") from error
    if not fields or "/" in name or "\\" in name or not all(map(str.isidentifier, fields)):
        raise ValueError(
            f"--name {shown(name)} can't be used: it needs fields such as {{index:05d}}, {{seed}} "
            "or {prompt:.40}, and no folders"
        )


class _Reader:
    """Rows → clips, and what is wrong with the others."""

    def __init__(
        self,
        column: str,
        defaults: dict[str, Any],
        preset: ModelPreset,
        num_seeds: int,
        name: str,
    ) -> None:
        self.column, self.defaults, self.preset = column, defaults, preset
        self.num_seeds, self.name = num_seeds, name
        self.faults: list[Damage] = []
        self.lines: dict[str, int] = {}

    def clips(self, index: int, row: Row) -> Iterator[Clip]:
        """The clips of a row, as far as they can be used."""
        try:
            yield from self._clips(index, row)
        except (ValueError, TypeError) as error:
            self.faults.append(Damage(row.line, str(error)))

    def _clips(self, index: int, row: Row) -> Iterator[Clip]:
        if not isinstance(row.values, dict):
            raise ValueError(f"{shown(row.values)} is no object with a prompt")
        if extra := row.values.get(None):
            raise ValueError(
                f"it has {len(extra)} values more than there are columns: put quotes around "
                "text with commas"
            )
        given: dict[str, Any] = {"prompt": row.values.get(self.column)}
        columns = {}
        for column, value in row.values.items():
            setting = column.strip().lower()
            if column == self.column or _empty(value):
                continue
            if setting in SETTINGS:
                given[setting] = _setting(setting, value)
            else:
                columns[column] = value
        request = Request(**{**self.defaults, **given}).validate(self.preset)
        if self.defaults.get("loras") is None and "loras" not in given:
            # The machine's own are settled once it is known which of them fit the model.
            request = replace(request, loras=None)
        first = request.seed if "seed" in given else request.seed + index * self.num_seeds
        for sample in range(self.num_seeds):
            seeded = replace(request, seed=first + sample)
            seeded.validate(self.preset)
            name = self._name(index, sample, seeded, columns)
            if other := self.lines.get(name.casefold()):
                raise ValueError(
                    f"its clip would be called {name}, as the one of line {other}: add {{index}} "
                    "or {seed} to --name"
                )
            self.lines[name.casefold()] = row.line
            yield Clip(name, index, row.line, seeded, columns)

    def _name(self, index: int, sample: int, request: Request, columns: dict[str, Any]) -> str:
        values = {**columns, **request.to_dict(), "index": index, "sample": sample}
        try:
            name = self.name.format_map(values)
        except KeyError as error:
            raise ValueError(
                f"it has no value for {{{error.args[0]}}} in --name: choose from "
                f"{', '.join(values)}"
            ) from error
        name = NO_NAME.sub("-", name).strip()
        if not name or name.startswith((".", UNFINISHED)):
            raise ValueError(f"its clip can't be called {shown(name)}: choose another --name")
        if (size := len(name.encode())) > LONGEST:
            raise ValueError(
                f"its clip's name has {size} bytes, at most {LONGEST} fit: shorten --name, as in "
                "{prompt:.40}"
            )
        return name


def _says_nothing(row: Any) -> bool:
    """Whether a row is an empty one."""
    return isinstance(row, dict) and all(map(_empty, row.values()))


def _empty(value: Any) -> bool:
    """Whether a cell has no value."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value != value  # what pandas writes for no value


def _setting(name: str, value: Any) -> Any:
    """A setting's value, which tables of text hold as text."""
    if not isinstance(value, str):
        return value
    if name == "loras":
        return json.loads(value)
    if name in NUMBERS:
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value
