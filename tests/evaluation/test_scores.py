"""From clips to the numbers of a table, with intervals."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from ultragen.evaluation.metrics import fit_gaussian, frechet_distance
from ultragen.evaluation.scores import (
    ClipScores,
    Estimate,
    average,
    bootstrap,
    distance,
    following,
    markdown_table,
    number,
    percent,
    score_row,
)


def test_the_bootstrap_of_a_mean_is_the_normal_interval():
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = bootstrap(lambda drawn: float(values[list(drawn)].mean()), 400, resamples=1000)
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.value == pytest.approx(half, rel=0.12)
    assert found.value - found.low == pytest.approx(half, rel=0.12)
    again = bootstrap(lambda drawn: float(values[list(drawn)].mean()), 400, resamples=1000)
    assert again == found


def test_the_interval_of_a_distance_is_moved_by_its_bias():
    """Sets with repetitions are farther from the reference than the clips themselves."""
    draw = torch.Generator().manual_seed(0)
    clips = [torch.randn(4, 16, generator=draw) for _ in range(12)]
    reference = fit_gaussian(torch.randn(4000, 16, generator=draw))
    found = distance(reference, clips)
    assert found.low < found.value < found.high


def test_clips_of_other_lengths_are_drawn_whole():
    draw = torch.Generator().manual_seed(0)
    clips = [torch.randn(n, 3, generator=draw) for n in (4, 7, 2)]
    reference = fit_gaussian(torch.randn(50, 3, generator=draw))
    naive = bootstrap(
        lambda drawn: frechet_distance(
            reference, fit_gaussian(torch.cat([clips[i] for i in drawn]))
        ),
        len(clips),
    )
    found = distance(reference, clips)
    assert asdict(found) == pytest.approx(asdict(naive), rel=1e-6)


def test_one_clip_has_no_width():
    assert average([3.0]) == Estimate(3, 3, 3)
    assert average([3.0, None]) is None and average([None]) is None
    with pytest.raises(ValueError, match="at least one clip"):
        bootstrap(lambda drawn: 0.0, 0)


def clip_that_shows(seen: dict[str, str] | None, **named: str) -> ClipScores:
    return ClipScores(1.0, 2.0, None, None, None, seen, named)


def test_following_counts_what_captions_name():
    clips = [
        clip_that_shows({"water": "sea", "birds": "no"}, water="sea"),
        clip_that_shows({"water": "sea", "birds": "no"}, water="lake", birds="yes"),
        clip_that_shows({"water": "sea", "birds": "no"}),
    ]
    assert following(clips).value == pytest.approx(1 / 3)
    assert following(clips, "water").value == pytest.approx(1 / 2)
    assert following(clips, "birds").value == 0
    assert following(clips, "mood") is None
    assert following([clip_that_shows(None, water="sea")]) is None


def test_cells():
    assert number(Estimate(1.234, 1, 2), 2) == "1.23 [1.00, 2.00]"
    assert percent(Estimate(0.9, 0.75, 1.04)) == "90.0 [75.0, 100.0]"
    assert number(None, 2) == percent(None) == "–"


def test_the_column_of_skylines_stands_where_some_were_judged():
    clips = [replace(clip_that_shows(None), outline=whole) for whole in (True, None, True, False)]
    judged, none = score_row("a", "A", clips, {}), score_row("b", "B", clips[1:2], {})
    assert judged.outlines is not None and judged.outlines.value == pytest.approx(2 / 3)
    assert none.outlines is None
    head, _, first, second = markdown_table([judged, none]).splitlines()
    assert head.endswith("| prompt ↑ | outlines ↑ | s a clip |")
    assert "| 66.7 [" in first and second.endswith("| – | – | 1.00 |")
    assert "outlines" not in markdown_table([none])
