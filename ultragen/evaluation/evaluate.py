"""An evaluation from its rows to its table: resumable, and reported with all that made it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..files import write_json, write_text
from ..pictures import contact_sheet
from ..presets import EVERY_STEP
from ..runs.metadata import LIBRARIES
from .horizons import WEATHERS
from .instruments import Instruments, measure
from .metrics import Gaussian, fit_gaussian
from .rows import REFERENCE, Case, Maker, Row
from .scores import LEVEL, RESAMPLES, RowScores, attribute_table, markdown_table, score_row
from .shard import Shard
from .store import Store

SHEET_CLIPS = 4  # columns of the contact sheet
RESULTS = ("table.md", "results.json", "contact_sheet.jpg")
LATER = {"guidance_interval": EVERY_STEP, "cache": "off", "shift": None, "solver": "own"}
"""Settings that older evaluations don't name, which were made without them."""
Report = Callable[[float, str], None]


def evaluate(
    rows: Sequence[Row],
    cases: Sequence[Case],
    references: Sequence[Case],
    maker: Maker,
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
    store = make_rows(rows, cases, references, maker, instruments, out, Shard(), report)
    report(1.0, "scores")
    scores = score(rows, len(cases), store, _references(store, len(references), instruments))
    write_results(scores, cases, references, store)
    return scores


def make_rows(
    rows: Sequence[Row],
    cases: Sequence[Case],
    references: Sequence[Case],
    maker: Maker,
    instruments: Instruments,
    out: Path,
    shard: Shard,
    report: Report = lambda fraction, text: None,
) -> Store:
    """Makes and measures the clips of a shard that are not done yet; the rest as `evaluate`."""
    store = Store(out, describe(maker, instruments, rows, cases[0].world))
    jobs = list(_jobs(rows, cases, references if instruments.tubes else (), shard, maker.batch))
    total, done = sum(len(clips) for _, clips in jobs), 0
    for row, clips in jobs:
        missing = [(number, case) for number, case in clips if not store.has(row.key, number)]
        done += len(clips) - len(missing)
        report(done / total, f"{row.title}, clip {clips[0][0] + 1}")
        made = maker.make(row, missing) if missing else ()
        for (number, case), (frames, seconds) in zip(missing, made, strict=True):
            store.add(row.key, number, frames, measure(frames, case, instruments, seconds))
            done += 1
            report(done / total, f"{row.title}, clip {number + 1}")
    return store


def _jobs(
    rows: Sequence[Row],
    cases: Sequence[Case],
    references: Sequence[Case],
    shard: Shard,
    batch: int,
) -> Iterator[tuple[Row, list[tuple[int, Case]]]]:
    """Some clips at a time, not row by row: a stopped evaluation has something of every row."""
    numbers = [i for i in range(max(len(cases), len(references))) if i in shard]
    for start in range(0, len(numbers), batch):
        part = numbers[start : start + batch]
        if known := [(i, references[i]) for i in part if i < len(references)]:
            yield REFERENCE, known
        asked = [(i, cases[i]) for i in part if i < len(cases)]
        for row in rows if asked else ():
            yield row, asked


def _references(store: Store, number: int, instruments: Instruments) -> dict[str, Gaussian]:
    """Distribution of the reference clips' features, by network, where distances are computed."""
    clips = [store.get(REFERENCE.key, i).features for i in range(number)]
    names = [network.name for network in instruments.tubes]
    device = instruments.device
    return {
        name: fit_gaussian(torch.cat([clip[name] for clip in clips]).to(device)) for name in names
    }


def score(
    rows: Sequence[Row], number: int, store: Store, references: dict[str, Gaussian]
) -> list[RowScores]:
    """Sums up the stored clips of each row."""
    return [
        score_row(row.key, row.title, [store.get(row.key, i) for i in range(number)], references)
        for row in rows
    ]


def describe(
    maker: Maker, instruments: Instruments, rows: Sequence[Row], world: int | str
) -> dict[str, Any]:
    """What must be the same for clips to stand in one table."""
    request = maker.request.to_dict()
    noise = request.pop("noise")  # beside it, because older evaluations have a request without
    for name, off in LATER.items():
        if request[name] == off:
            del request[name]
    made = ("prompt", "upscaler", "base_native")  # each row and clip has its own
    names = {row.model for row in rows} | {None}
    settings: dict[str, Any] = {
        "request": {name: value for name, value in request.items() if name not in made},
        "models": {x or "evaluated": maker.models(x).fingerprint for x in names},
        "networks": instruments.names(),
        "noise": noise,
        "batch": maker.batch,  # which seconds depend on
        "world": world,
    }
    if instruments.borders:
        settings["borders"] = list(instruments.borders.columns)
    if own := {row.key: row.own for row in rows if row.own}:
        settings["own_settings"] = own
    return settings


def write_results(
    scores: Sequence[RowScores], cases: Sequence[Case], references: Sequence[Case], store: Store
) -> None:
    """Writes the tables, the numbers with what made them, and pictures of the first clips."""
    out = store.folder
    content = {
        "rows": [asdict(row) for row in scores],
        **store.settings,
        "clips": [
            {"number": i, "scene": case.seed, "caption": case.caption, "named": dict(case.named)}
            for i, case in enumerate(cases)
        ],
        "reference_scenes": [case.seed for case in references],
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
    write_text(out / "table.md", page(scores, store.settings, len(references)))
    shown = range(min(SHEET_CLIPS, len(cases)))
    pictures = [store.picture(row.key, i) for row in scores for i in shown]
    labels = [f"{row.title}: {cases[i].caption}" for row in scores for i in shown]
    contact_sheet(pictures, len(shown), labels).save(out / "contact_sheet.jpg", quality=85)


def page(scores: Sequence[RowScores], settings: dict[str, Any], references: int) -> str:
    """The tables in Markdown, with what they were measured through."""
    request, networks = settings["request"], settings["networks"]
    own, batch = settings.get("own_settings", {}), settings["batch"]
    together = f" of clips made {batch} at a time" if batch > 1 else ""
    apart = [f"- {row.title}: {_listed(own[row.key])}" for row in scores if row.key in own]
    tubes = [
        f"- HD-FVD through {name}, against real clips of {references} other scenes"
        for name in networks["hd_fvd"]
    ]
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
    missing = ["HD-FVD"] * (not tubes) + [what for what, name in names.items() if not name]
    lines = [
        f"{scores[0].clips} clips of {request['num_frames']} frames a row at "
        f"{request['resolution']}, {settings['noise']} noise from seed {request['seed']} on, "
        f"{request['num_inference_steps']} steps, guidance {request['guidance_scale']}. In "
        f"brackets: {LEVEL:.0%} intervals, bootstrap over clips. Seconds are medians{together}.",
        "",
        *apart,
        *tubes,
        *through,
        *(borders if columns else []),
        *([f"- Not measured, for want of a network: {', '.join(missing)}"] if missing else []),
    ]
    text = markdown_table(scores) + "\n" + "\n".join(lines) + "\n"
    if any(row.by_attribute for row in scores):
        text += f"\nPrompt following by attribute, per cent:\n\n{attribute_table(scores)}"
    return text


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
