"""An evaluation from its rows to its table: resumable, and reported with all that made it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from .. import __version__
from ..files import write_json, write_text
from ..pictures import contact_sheet
from ..runs.metadata import LIBRARIES
from .case import Case
from .horizons import WEATHERS
from .instruments import Instruments
from .metrics import Gaussian, fit_gaussian
from .rows import REFERENCE, Row, Source
from .scores import LEVEL, RESAMPLES, RowScores, attribute_table, markdown_table, score_row
from .shard import Shard
from .store import Store

SHEET_CLIPS = 4  # columns of the contact sheet
RESULTS = ("table.md", "results.json", "contact_sheet.jpg")
Report = Callable[[float, str], None]


def evaluate(
    rows: Sequence[Row],
    cases: Sequence[Case],
    references: Sequence[Case],
    maker: Source,
    instruments: Instruments,
    out: Path,
    report: Report = lambda fraction, text: None,
) -> list[RowScores]:
    """Makes and measures all clips that are not done yet, then writes `RESULTS`.

    Args:
        rows: Ways to make clips, a row of the table each.
        cases: Scenes whose captions are the prompts; a clip each in every row.
        references: Scenes whose real clips HD-FVD compares with.
        maker: Makes the clips.
        instruments: Measure them.
        out: Folder of the results and of what clips gave.
        report: Called with the fraction that is done and a text.

    Raises:
        ValueError: `out` holds an evaluation with other settings, or clips are too small or short
            for a network.
        OSError: The folder can't be written to, or what it holds is damaged.
        RuntimeError: A clip is black or not finite.
    """
    references = references if instruments.tubes else ()
    store = open_store(rows, cases, maker, instruments, out)
    make(share(rows, cases, references, maker.batch), maker, instruments, store, report)
    report(1.0, "scores")
    return finish(rows, cases, references, maker, instruments, store)


def finish(
    rows: Sequence[Row],
    cases: Sequence[Case],
    references: Sequence[Case],
    maker: Source,
    instruments: Instruments,
    store: Store,
) -> list[RowScores]:
    """Writes `RESULTS` once all clips are done; arguments and errors as `evaluate`."""
    distributions = fit_references(store, len(references), instruments)
    scores = [
        score_row(row.key, row.title, store.clips(row.key, len(cases)), distributions)
        for row in rows
    ]
    if maker.shows_reference and references:
        known = store.clips(REFERENCE.key, len(references))
        scores.append(score_row(REFERENCE.key, REFERENCE.title, known, {}))
    write_results(scores, cases, references, maker, store)
    return scores


def open_store(
    rows: Sequence[Row], cases: Sequence[Case], maker: Source, instruments: Instruments, out: Path
) -> Store:
    """The folder of an evaluation, whose settings it has or gets.

    Raises:
        ValueError: It holds an evaluation with other settings.
        OSError: It can't be written to.
    """
    settings = {**maker.settings(rows, cases), "networks": instruments.names()}
    if instruments.borders:
        settings["borders"] = list(instruments.borders.columns)
    return Store(out, settings)


Part = list[tuple[Row, list[tuple[int, Case]]]]
"""Some clips with their numbers, in every row: what one process makes at a time."""


def share(
    rows: Sequence[Row],
    cases: Sequence[Case],
    references: Sequence[Case],
    batch: int,
    shard: Shard | None = None,
) -> list[Part]:
    """All clips, or those of a shard, some at a time and not row by row: a stopped evaluation has
    something of every row."""
    there = range(max(len(cases), len(references)))
    numbers = [i for i in there if shard is None or i in shard]
    parts = []
    for start in range(0, len(numbers), batch):
        part = numbers[start : start + batch]
        known = [(i, references[i]) for i in part if i < len(references)]
        asked = [(i, cases[i]) for i in part if i < len(cases)]
        jobs = [(REFERENCE, known)] if known else []
        parts.append(jobs + ([(row, asked) for row in rows] if asked else []))
    return parts


def size(part: Part) -> int:
    """How many clips a part has."""
    return sum(len(clips) for _, clips in part)


def is_done(part: Part, store: Store) -> bool:
    """Whether there is nothing left to make of it."""
    return all(store.has(row.key, number) for row, clips in part for number, _ in clips)


def make(
    parts: Sequence[Part],
    maker: Source,
    instruments: Instruments,
    store: Store,
    report: Report = lambda fraction, text: None,
) -> None:
    """Makes and measures the clips that are not done yet; what it raises as `evaluate`."""
    total, done = sum(map(size, parts)), 0
    for part in parts:
        for row, clips in part:
            report(done / total, f"{row.title}, clip {clips[0][0] + 1}")
            for number in make_row(row, clips, maker, instruments, store):
                done += 1
                report(done / total, f"{row.title}, clip {number + 1}")


def make_row(
    row: Row,
    clips: Sequence[tuple[int, Case]],
    maker: Source,
    instruments: Instruments,
    store: Store,
) -> Iterator[int]:
    """A row's clips that are made together; yields the number of each as it is done.

    They are made again if one is missing: in another company a clip has other roundings.
    """
    if all(store.has(row.key, number) for number, _ in clips):
        yield from (number for number, _ in clips)
        return
    measured = maker.measured(row, clips, instruments)
    for (number, _), (scores, picture) in zip(clips, measured, strict=True):
        store.add(row.key, number, picture, scores)
        yield number


def fit_references(store: Store, number: int, instruments: Instruments) -> dict[str, Gaussian]:
    """Distribution of the reference clips' features, by network, where distances are computed."""
    clips = [clip.features for clip in store.clips(REFERENCE.key, number)]
    names = [network.name for network in instruments.tubes]
    device = instruments.device
    return {
        name: fit_gaussian(torch.cat([clip[name] for clip in clips]).to(device)) for name in names
    }


def write_results(
    scores: Sequence[RowScores],
    cases: Sequence[Case],
    references: Sequence[Case],
    maker: Source,
    store: Store,
) -> None:
    """Writes the tables, the numbers with what made them, and pictures of the first clips."""
    out = store.folder
    content = {
        "rows": [asdict(row) for row in scores],
        **store.settings,
        **maker.results(cases, references),
        "intervals": {"level": LEVEL, "resamples": RESAMPLES, "drawn": "clips"},
        "machine": {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "versions": {
            "ultragen": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
        },
    }
    write_json(out / "results.json", content)
    lines = maker.lines(scores, store.settings)
    write_text(out / "table.md", page(scores, lines, maker.against(references), store.settings))
    shown = range(min(SHEET_CLIPS, len(cases)))
    of_cases = [row for row in scores if row.key != REFERENCE.key]
    pictures = alike([store.picture(row.key, i) for row in of_cases for i in shown])
    labels = [f"{row.title}: {cases[i].caption}" for row in of_cases for i in shown]
    contact_sheet(pictures, len(shown), labels).save(out / "contact_sheet.jpg", quality=85)


def alike(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures of one size: smaller ones with borders, since clips that are there may differ."""
    size = tuple(max(sides) for sides in zip(*(x.size for x in pictures), strict=True))
    return [x if x.size == size else ImageOps.pad(x, size) for x in pictures]


def page(
    scores: Sequence[RowScores], lines: Sequence[str], against: str, settings: dict[str, Any]
) -> str:
    """The tables in Markdown, with what they were measured through.

    Args:
        scores: The rows.
        lines: What clips they are of.
        against: What HD-FVD compares with.
        settings: The evaluation's.
    """
    networks = settings["networks"]
    tubes = [f"- HD-FVD through {name}, against {against}" for name in networks["hd_fvd"]]
    names = {
        "HD-LPIPS": networks["hd_lpips"],
        "CLIP score": networks["clip_score"],
        "Temporal consistency": networks["temporal"],
        "Prompt following": networks["following"],
    }
    through = [f"- {what} through {name}" for what, name in names.items() if name]
    columns = ", ".join(map(str, settings.get("borders", ())))
    borders = [
        f"- Seams: rank of the borders on the right of {columns} columns of tokens, 0.5 for none",
        f"- Horizons: in scenes without water, {' or '.join(WEATHERS)}",
    ]
    missing = ["HD-FVD"] * (not networks["hd_fvd"])
    missing += [what for what, name in names.items() if not name]
    told = [
        *lines,
        *tubes,
        *through,
        *(borders if columns else []),
        *([f"- Not measured, for want of a network: {', '.join(missing)}"] if missing else []),
    ]
    text = markdown_table(scores) + "\n" + "\n".join(told) + "\n"
    if any(row.by_attribute for row in scores):
        text += f"\nPrompt following by attribute, per cent:\n\n{attribute_table(scores)}"
    return text
