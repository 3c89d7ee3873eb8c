"""Cutting a grid into windows, for any size and any number of windows."""

from __future__ import annotations

from itertools import accumulate, pairwise, product
from math import ceil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ultragen.model.windows import (
    Partition,
    auto_windows,
    axis_runs,
    axis_sizes,
    check_windows,
    even_partition,
    shifted_axis_sizes,
    shifted_partition,
)
from ultragen.ops.window_order import merge_windows, split_windows
from ultragen.presets import RESOLUTIONS

lengths = st.integers(1, 40)
parts = st.integers(1, 12)
quick = settings(max_examples=60, deadline=None)


def numbered(t: int, h: int, w: int, b: int = 2, d: int = 3) -> torch.Tensor:
    """A grid whose entries all differ."""
    return torch.arange(b * t * h * w * d).view(b, t, h, w, d)


@given(st.integers(1, 500), st.data())
def test_parts_of_an_axis(length, data):
    number = data.draw(st.integers(1, length))
    sizes = axis_sizes(length, number)
    assert len(sizes) == number
    assert sum(sizes) == length
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert list(sizes) == sorted(sizes, reverse=True)


@given(st.integers(1, 500), st.data())
def test_shifted_parts_of_an_axis(length, data):
    number = data.draw(st.integers(1, length))
    sizes, shifted = axis_sizes(length, number), shifted_axis_sizes(length, number)
    assert sum(shifted) == length
    assert min(shifted) >= 1
    assert len(shifted) in (number, number + 1)
    if sizes[0] > 1:
        # The first window, cut in two, stands at both ends; the others keep their sizes.
        assert shifted[1:-1] == sizes[1:]
        assert shifted[0] + shifted[-1] == sizes[0]
        assert abs(shifted[0] - shifted[-1]) <= 1


@given(st.integers(1, 500), st.fractions(0, 1), st.data())
def test_parts_moved_by_a_share(length, share, data):
    number = data.draw(st.integers(1, length))
    sizes, shifted = axis_sizes(length, number), shifted_axis_sizes(length, number, share)
    assert sum(shifted) == length and min(shifted) >= 1
    ahead = int(share * sizes[0])
    assert shifted == tuple(s for s in (ahead, *sizes[1:], sizes[0] - ahead) if s)


@pytest.mark.parametrize("length, number", [(5, 6), (5, 0), (5, -1), (1, 2)])
def test_an_empty_part_is_refused(length, number):
    with pytest.raises(ValueError, match=f"{length} tokens into {number} .* from 1 to {length}"):
        axis_sizes(length, number)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12))
def test_runs_cover_an_axis_in_order(sizes):
    runs = axis_runs(sizes)
    assert [run.size for run in runs for _ in range(run.count)] == sizes
    assert runs[0].start == 0
    assert all(a.stop == b.start and a.size != b.size for a, b in pairwise(runs))
    assert runs[-1].stop == sum(sizes)


def joined(windows: list, partition: Partition):
    return merge_windows(windows, partition.rectangles, partition.size)


@quick
@given(
    st.integers(1, 3), lengths, lengths, parts, st.sampled_from((even_partition, shifted_partition))
)
def test_merge_is_the_inverse_of_split(t, h, w, number, cut):
    grid, partition = numbered(t, h, w), cut(h, w, number)
    windows = split_windows(grid, partition.rectangles)
    assert torch.equal(joined(windows, partition), grid)
    assert sum(window.numel() for window in windows) == grid.numel()


@quick
@given(st.data())
def test_merge_is_the_inverse_of_split_for_any_partition(data):
    sizes = st.lists(st.integers(1, 4), min_size=1, max_size=6)
    partition = Partition(tuple(data.draw(sizes)), tuple(data.draw(sizes)))
    grid = numbered(2, sum(partition.rows), sum(partition.columns))
    assert torch.equal(joined(split_windows(grid, partition.rectangles), partition), grid)


@quick
@given(lengths, lengths, parts)
def test_split_gives_the_windows_in_order(h, w, number):
    """The windows of the groups, put down one by one, are the rectangles of the partition."""
    grid, partition = numbered(1, h, w, b=1, d=1), even_partition(h, w, number)
    found = []
    for window in split_windows(grid, partition.rectangles):
        found += [piece for piece in window[:, 0, :, :, 0]]
    expected = []
    for row in torch.split(grid[0, 0, :, :, 0], partition.rows, dim=0):
        expected += torch.split(row, partition.columns, dim=1)
    order = {int(window[0, 0]): window for window in found}
    assert len(order) == len(found) == len(expected)
    assert all(torch.equal(order[int(window[0, 0])], window) for window in expected)


@given(lengths, lengths, parts)
def test_an_even_partition_needs_at_most_four_calls(h, w, number):
    partition = even_partition(h, w, number)
    assert len(partition.groups) <= 4
    assert len(partition.rows) == min(number, h)
    assert len(partition.columns) == min(number, w)
    # One call where the windows divide both axes.
    assert (len(partition.groups) == 1) == (
        h % len(partition.rows) == 0 and w % len(partition.columns) == 0
    )


def test_merge_refuses_windows_of_another_partition():
    windows = split_windows(numbered(1, 8, 8), even_partition(8, 8, 2).rectangles)
    with pytest.raises(ValueError):
        joined(windows, even_partition(9, 9, 2))


@pytest.mark.parametrize("resolution", RESOLUTIONS.values(), ids=RESOLUTIONS)
def test_borders_of_neighbouring_layers_never_coincide(resolution):
    """At every size on offer, with the windows that `auto` chooses there, in both branches."""
    height, width = resolution.height // 32, resolution.width // 32
    windows = auto_windows(height, width, (8.5, 15.0))
    for length in (height, width):
        for size, number in ((length, windows), (ceil(length / 2), windows // 2)):
            even, odd = (set(accumulate(axis_sizes(size, n)[:-1])) for n in (number, number + 1))
            assert not even & odd


# The number of windows


@pytest.mark.parametrize(
    "windows, hints",
    [
        (3, ("got 3", "Choose 2 or 4")),
        (1, ("got 1", "Choose 2", "'auto'")),
        (0, ("got 0", "'auto'")),
        (-4, ("got -4", "'auto'")),
        (10, ("11 × 11", "up to 8", "larger frame")),
        (2.0, ("2.0", "even whole number", "'auto'")),
        ("4", ("'4'", "even whole number")),
        ("many", ("'many'", "'auto'")),
        (True, ("True", "even whole number")),
        (None, ("None", "'auto'")),
    ],
    ids=repr,
)
def test_a_wrong_number_of_windows_names_the_way_out(windows, hints):
    with pytest.raises(ValueError) as error:
        check_windows(windows, 9, 16)
    for hint in hints:
        assert hint in str(error.value)


@pytest.mark.parametrize("windows", range(2, 14, 2))
def test_windows_are_accepted_where_one_more_fits(windows):
    """K + 1 windows of at least one token on both axes; the number that the message names does."""
    for height, width in product(range(1, 16), repeat=2):
        if windows + 1 <= min(height, width):
            assert check_windows(windows, height, width) == windows
            continue
        with pytest.raises(ValueError) as error:
            check_windows(windows, height, width)
        if min(height, width) < 3:
            assert "a larger frame, of at least 3 × 3 tokens" in str(error.value)
            continue
        named = int(str(error.value).split("even number up to ")[1].split(",")[0])
        assert check_windows(named, height, width) == named
        with pytest.raises(ValueError):
            check_windows(named + 2, height, width)


@pytest.mark.parametrize(
    "grid, window_size, expected",
    [
        ((17, 30), (8.5, 15.0), 2),
        ((23, 40), (8.5, 15.0), 2),
        ((34, 60), (8.5, 15.0), 4),
        ((45, 80), (8.5, 15.0), 6),
        ((68, 120), (8.5, 15.0), 8),
        ((68, 120), (17.0, 30.0), 4),
        ((136, 240), (17.0, 30.0), 8),
        ((60, 34), (15.0, 8.5), 4),
        ((60, 34), (8.5, 15.0), 4),
        ((3, 4), (1.0, 1.0), 2),
        ((9, 16), (1.0, 1.0), 8),
    ],
)
def test_auto_keeps_the_trained_window_size(grid, window_size, expected):
    assert auto_windows(*grid, window_size) == expected


@given(st.integers(1, 20), st.integers(3, 16), st.integers(3, 16))
def test_auto_gives_the_trained_number_at_the_trained_size(half, height, width):
    windows = 2 * half
    grid = (height * windows, width * windows)
    assert auto_windows(*grid, (float(height), float(width))) == windows


@given(st.integers(3, 80), st.integers(3, 80), st.integers(0, 40), st.integers(0, 40))
def test_auto_grows_with_the_frame_and_always_fits(height, width, more_rows, more_columns):
    size = (8.5, 15.0)
    windows = auto_windows(height, width, size)
    assert check_windows(windows, height, width) == windows
    assert auto_windows(height + more_rows, width + more_columns, size) >= windows
