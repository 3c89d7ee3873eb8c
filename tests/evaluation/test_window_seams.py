"""Seams: how far the sky jumps where windows meet."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ultragen.evaluation.seams import MARGIN, Borders, borders_of, jumps, ranks, window_borders
from ultragen.model.windows import even_partition
from ultragen.runs.request import Request


def test_a_step_is_found_and_a_slope_is_not():
    """A sky that becomes brighter from left to right, with a step of 4 at the fifth border."""
    sky = np.linspace(50, 150, 320)[None, None, :, None].repeat(96, 1).repeat(3, 3).repeat(2, 0)
    found = jumps(sky.astype(np.uint8), 32)
    assert len(found) == 10 - 1 - 2 * MARGIN and found.max() < 0.6  # rounding
    sky[:, :, 160:] += 4
    sky[:, 40:] = 0  # the ground does not count
    found = jumps(sky.astype(np.uint8), 32)
    step = 5 - 1 - MARGIN
    assert found[step] == pytest.approx(4, abs=0.6)
    assert np.delete(found, step).max() < 0.6


def test_ranks():
    found = ranks(np.array([[3.0, 1.0, 2.0], [5.0, 5.0, 9.0]]))
    np.testing.assert_allclose(found, [[1, 0, 0.5], [0.25, 0.25, 1]])


def test_borders():
    assert borders_of(even_partition(9, 10, 4)) == [3, 6, 8]
    assert borders_of(even_partition(9, 10, 1)) == []


def test_a_border_that_jumps_most_has_rank_1():
    sky = np.linspace(50, 150, 320)[None, None, :, None].repeat(96, 1).repeat(3, 3).repeat(2, 0)
    sky[:, :, 160:] += 4
    frames = sky.astype(np.uint8)
    assert Borders(32, (5,)).rank(frames) == 1
    apart = Borders(32, (4,)).rank(frames), Borders(32, (5,)).rank(frames)
    assert Borders(32, (4, 5)).rank(frames) == pytest.approx(sum(apart) / 2)


@pytest.mark.parametrize(("resolution", "columns"), [("544p", (15,)), ("1080p", (15, 30, 45))])
def test_the_windows_of_even_layers(fake, changeable, resolution, columns):
    changeable.transformer.register_to_config(window_size=(8.5, 15.0))
    models = replace(fake, native=changeable)
    request = Request("any", resolution).validate(models.preset)
    assert window_borders(models, request) == Borders(32, columns)


def test_a_frame_that_is_too_small(fake, changeable):
    models = replace(fake, native=changeable)
    request = Request("any", "tiny").validate(models.preset)
    with pytest.raises(ValueError, match="5 columns of tokens: choose a larger --resolution"):
        window_borders(models, request)
