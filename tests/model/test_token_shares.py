"""Which process has which tokens, windows and heads: each once, and about as many."""

from __future__ import annotations

from collections import Counter

import pytest

from ultragen.model.token_shares import (
    Area,
    cut_axis,
    cut_strips,
    made_of,
    spread_heads,
    spread_windows,
    window_areas,
)
from ultragen.model.window_plan import WindowRule

FULL_HD, ULTRA_HD = (68, 120), (136, 240)
COUNTS = [2, 3, 4, 6, 8]


def cells(area: Area) -> set[tuple[int, int]]:
    return {(i, j) for i in range(area.top, area.bottom) for j in range(area.left, area.right)}


@pytest.mark.parametrize("size", [FULL_HD, ULTRA_HD, (11, 17), (23, 9), (30, 30)])
@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_strips_cover_the_grid_once(size, parts):
    if parts > -(-max(size) // 4):
        pytest.skip("too small")
    strips = cut_strips(size, parts)
    assert len(strips) == parts
    taken = Counter(cell for strip in strips for cell in cells(strip))
    assert set(taken.values()) == {1} and len(taken) == size[0] * size[1]
    assert all(border % 4 == 0 for strip in strips for border in (strip.top, strip.left))
    small = [strip.compressed(4) for strip in strips]
    taken = Counter(cell for strip in small for cell in cells(strip))
    assert set(taken.values()) == {1} and len(taken) == -(-size[0] // 4) * -(-size[1] // 4)


@pytest.mark.parametrize(
    "size, parts, most",
    [(FULL_HD, 2, 1.0), (FULL_HD, 3, 1.0), (FULL_HD, 4, 1.07), (FULL_HD, 8, 1.07),
     (ULTRA_HD, 2, 1.0), (ULTRA_HD, 3, 1.0), (ULTRA_HD, 4, 1.0), (ULTRA_HD, 8, 1.07)],
)  # fmt: skip
def test_strips_have_about_as_many_tokens(size, parts, most):
    tokens = [strip.size[0] * strip.size[1] for strip in cut_strips(size, parts)]
    assert max(tokens) <= most * sum(tokens) / parts


def test_too_many_strips_say_how_many_there_can_be():
    assert len(cut_strips((11, 17), 5)) == 5
    with pytest.raises(ValueError, match=r"6 processes are too many .* 11 × 17 .* gives work to 5"):
        cut_strips((11, 17), 6)


def spread(size: tuple[int, int], odd: bool, parts: int, k: int = 4):
    rule = WindowRule()
    small = (size[0] // 2, size[1] // 2)
    partitions = [rule.partition(*size, k, odd), rule.partition(*small, k // 2, odd)]
    axis = cut_axis(size, parts)
    return partitions, spread_windows(partitions, axis, parts, 21, 1536)


@pytest.mark.parametrize("parts", COUNTS)
@pytest.mark.parametrize("odd", [False, True])
def test_every_window_goes_to_one_process(parts, odd):
    partitions, branches = spread(FULL_HD, odd, parts)
    for partition, processes in zip(partitions, branches, strict=True):
        assert sorted(area for own in processes for area in own) == window_areas(partition)
        for own in processes:
            assert [*own] == sorted(own, key=lambda area: area.size)


@pytest.mark.parametrize("size", [FULL_HD, ULTRA_HD])
@pytest.mark.parametrize(
    "odd, parts, most",
    [(False, 2, 1.01), (False, 4, 1.01), (True, 2, 1.05), (True, 4, 1.08), (True, 3, 1.08)],
)
def test_processes_have_about_as_much_work(size, odd, parts, most):
    _, branches = spread(size, odd, parts)
    work = [
        sum((21 * area.size[0] * area.size[1]) ** 2 for branch in branches for area in branch[rank])
        for rank in range(parts)
    ]
    assert max(work) <= most * sum(work) / parts


@pytest.mark.parametrize("size", [FULL_HD, ULTRA_HD])
def test_two_processes_exchange_nothing_for_even_windows(size):
    """The strips of the usual sizes are windows."""
    _, (local, hierarchical) = spread(size, False, 2)
    for factor, branch in ((1, local), (2, hierarchical)):
        for home, own in zip(cut_strips(size, 2), branch, strict=True):
            home = home.compressed(factor) if factor > 1 else home
            assert all(area.meet(home) == area for area in own)


def test_heads():
    assert spread_heads(12, 3) == [range(4), range(4, 8), range(8, 12)]
    assert spread_heads(12, 8)[3:5] == [range(6, 8), range(8, 9)]


def test_what_a_resampled_area_is_made_of():
    area = Area(2, 4, 0, 3)
    assert made_of(area, (8, 6), (8, 6))[0] == area
    found, (rows, columns) = made_of(area, (5, 6), (7, 6))
    # Rows 2 and 3 of 5 lie at 3 and 4.4 of 7.
    assert found == Area(3, 6, 0, 3)
    assert (rows.length, rows.to, rows.low, rows.high) == (7, 5, 3, 6)
    assert (columns.low, columns.high) == (0, 3)


def test_meeting_areas():
    one, two = Area(0, 4, 0, 4), Area(2, 6, 3, 5)
    assert one.meet(two) == Area(2, 4, 3, 4)
    assert one.meet(two).inside(two) == (slice(0, 2), slice(0, 1))
    assert one.meet(Area(4, 6, 0, 4)) is None
