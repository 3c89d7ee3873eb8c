"""From what single clips gave to the numbers of a table, with confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean, median

import numpy as np
import torch
from torch import Tensor

from .metrics import Gaussian, SampleDistance

RESAMPLES = 100  # draws with repetitions that an interval is made of
LEVEL = 0.95  # part of them within the interval
MISSING = "–"


@dataclass(frozen=True)
class ClipScores:
    """What one clip gave.

    Attributes:
        seconds: It took to make, or None where nothing was generated.
        hd_mse: See `metrics.DetailError`.
        hd_lpips: The same, or None without a backbone.
        clip_score: See `metrics.clip_score`, or None without CLIP.
        temporal: See `metrics.temporal_consistency`, or None without a network or with one frame.
        seen: The attributes that the classifier sees, or None without one.
        named: The attributes that the caption names.
        outline: Whether its skyline is one unbroken line, see `outlines`, or None for other scenes.
        seam: Mean rank of the borders of windows, see `seams`, or None where it is not asked for.
        horizons: How many there are, see `horizons`, or None for other scenes.
        features: Features of the patches, `n d`, by network.
    """

    seconds: float | None
    hd_mse: float
    hd_lpips: float | None
    clip_score: float | None
    temporal: float | None
    seen: Mapping[str, str] | None
    named: Mapping[str, str]
    outline: bool | None = None
    seam: float | None = None
    horizons: int | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """A number with its confidence interval."""

    value: float
    low: float
    high: float


def bootstrap(
    statistic: Callable[[Sequence[int]], float],
    number: int,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Estimate:
    """A statistic of clips, with an interval from drawing clips with replacement.

    The interval is moved by the resamples' bias: a set with repetitions has less spread, which
    makes a Fréchet distance larger whatever is measured.

    Args:
        statistic: Maps the numbers of the clips, with repetitions, to a value.
        number: Clips there are.
        resamples: How often to draw.
        level: Part of the resamples within the interval.
        seed: What the draws begin with: the same seed gives the same interval.

    Raises:
        ValueError: There is no clip.
    """
    if number < 1:
        raise ValueError("an estimate needs at least one clip")
    value = statistic(range(number))
    draws = np.random.default_rng(seed).integers(number, size=(resamples, number))
    drawn = np.array([statistic(draw.tolist()) for draw in draws])
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2)) - (drawn.mean() - value)
    return Estimate(value, float(low), float(high))


def average(values: Sequence[float | None]) -> Estimate | None:
    """The mean of clips' values, or None where some have none."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return bootstrap(lambda drawn: mean(known[i] for i in drawn), len(known))


def distance(reference: Gaussian, clips: Sequence[Tensor]) -> Estimate:
    """HD-FVD of clips' features, `n d` each; clips are drawn, the reference stays.

    Raises:
        ValueError: There are too few patches, or features of another network.
    """
    device = reference.mean.device
    of_draw = SampleDistance(reference, torch.cat([features.to(device) for features in clips]))
    clip = torch.arange(len(clips)).repeat_interleave(torch.tensor([len(x) for x in clips]))

    def drawn_distance(drawn: Sequence[int]) -> float:
        counts = torch.bincount(torch.tensor(drawn), minlength=len(clips))
        return of_draw(counts[clip].to(device))

    return bootstrap(drawn_distance, len(clips))


def following(clips: Sequence[ClipScores], attribute: str | None = None) -> Estimate | None:
    """Part of the named attributes, or of one, that the classifier sees; None where none is."""
    counts = []
    for clip in clips:
        if clip.seen is None:
            return None
        names = [name for name in clip.named if attribute in (None, name)]
        right = sum(clip.seen.get(name) == clip.named[name] for name in names)
        if names:
            counts.append((right, len(names)))
    if not counts:
        return None

    def share(drawn: Sequence[int]) -> float:
        return sum(counts[i][0] for i in drawn) / sum(counts[i][1] for i in drawn)

    return bootstrap(share, len(counts))


@dataclass(frozen=True)
class RowScores:
    """A row of the table.

    Attributes:
        key: The row's.
        title: What people read.
        clips: How many there are.
        hd_fvd: By feature network.
        hd_mse: Mean over clips.
        hd_lpips: Mean over clips, or None.
        clip_score: Mean over clips, or None.
        temporal: Mean over clips, or None.
        following: Part of the attributes named by the captions that is there, or None.
        by_attribute: The same for each attribute that some caption names.
        outlines: Part of the skylines that are one unbroken line, or None where none is judged.
        seams: Mean over clips of the rank of the borders of windows, or None.
        horizons: Mean over the clips in which they are counted, or None.
        seconds: Median a clip, so that the first one's start does not count, or None.
    """

    key: str
    title: str
    clips: int
    hd_fvd: dict[str, Estimate]
    hd_mse: Estimate | None
    hd_lpips: Estimate | None
    clip_score: Estimate | None
    temporal: Estimate | None
    following: Estimate | None
    by_attribute: dict[str, Estimate]
    outlines: Estimate | None
    seams: Estimate | None
    horizons: Estimate | None
    seconds: float | None


def score_row(
    key: str, title: str, clips: Sequence[ClipScores], references: Mapping[str, Gaussian]
) -> RowScores:
    """Sums up a row's clips.

    Args:
        key: The row's.
        title: What people read.
        clips: What they gave.
        references: Distribution of the real clips' features, by network.

    Raises:
        ValueError: as `distance`.
    """
    seconds = [clip.seconds for clip in clips if clip.seconds is not None]
    attributes = dict.fromkeys(name for clip in clips for name in clip.named)
    found = {name: following(clips, name) for name in attributes}
    return RowScores(
        key=key,
        title=title,
        clips=len(clips),
        hd_fvd={
            name: distance(reference, [clip.features[name] for clip in clips])
            for name, reference in references.items()
        },
        hd_mse=average([clip.hd_mse for clip in clips]),
        hd_lpips=average([clip.hd_lpips for clip in clips]),
        clip_score=average([clip.clip_score for clip in clips]),
        temporal=average([clip.temporal for clip in clips]),
        following=following(clips),
        by_attribute={name: value for name, value in found.items() if value is not None},
        outlines=average([float(x.outline) for x in clips if x.outline is not None]),
        seams=average([clip.seam for clip in clips]),
        horizons=average([float(x.horizons) for x in clips if x.horizons is not None]),
        seconds=median(seconds) if seconds else None,
    )


# Tables

WHERE_MEASURED: dict[str, Callable[[RowScores], str]] = {
    "outlines ↑": lambda row: percent(row.outlines),
    "seams ↓": lambda row: number(row.seams, 2),
    "horizons": lambda row: number(row.horizons, 2),
}
"""Columns that stand only in tables where some row has them, and their cells."""


def markdown_table(rows: Sequence[RowScores]) -> str:
    """The main table: a row each, a column for every measure, intervals in brackets."""
    networks = list(rows[0].hd_fvd)
    head = ["", *(f"HD-FVD ↓ ({name})" for name in networks or ["not measured"])]
    head += ["HD-MSE", "HD-LPIPS", "CLIP ↑", "temporal ↑", "prompt ↑"]
    shown = {
        title: cell
        for title, cell in WHERE_MEASURED.items()
        if any(cell(row) != MISSING for row in rows)
    }
    head += [*shown, "s a clip"]
    lines = []
    for row in rows:
        cells = [number(row.hd_fvd.get(name), 2) for name in networks] or [MISSING]
        cells += [number(row.hd_mse, 1), number(row.hd_lpips, 4), number(row.clip_score, 4)]
        cells += [number(row.temporal, 4), percent(row.following)]
        cells += [cell(row) for cell in shown.values()]
        cells.append(MISSING if row.seconds is None else f"{row.seconds:.2f}")
        lines.append([row.title, *cells])
    return _table(head, lines)


def attribute_table(rows: Sequence[RowScores]) -> str:
    """Prompt following by attribute: a row each, a column for every attribute."""
    names = list(dict.fromkeys(name for row in rows for name in row.by_attribute))
    head = ["", *(name.replace("_", " ") for name in names)]
    return _table(
        head,
        [[row.title, *(percent(row.by_attribute.get(name)) for name in names)] for row in rows],
    )


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    marks = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, marks, *lines))


def number(estimate: Estimate | None, digits: int) -> str:
    """A cell: the value and its interval."""
    if estimate is None:
        return MISSING
    value, low, high = (f"{x:.{digits}f}" for x in asdict(estimate).values())
    return f"{value} [{low}, {high}]"


def percent(estimate: Estimate | None) -> str:
    """A cell in per cent; what the interval has beyond 0 and 100 is cut off."""
    if estimate is None:
        return MISSING
    value, low, high = (f"{100 * min(max(x, 0), 1):.1f}" for x in asdict(estimate).values())
    return f"{value} [{low}, {high}]"
