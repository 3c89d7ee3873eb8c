"""`benchmarks/seams.py`: jumps where windows meet."""

from __future__ import annotations

import json

import numpy as np
import pytest
import seams

from ultragen.model.windows import even_partition


def test_a_step_is_found_and_a_slope_is_not():
    """A sky that becomes brighter from left to right, with a step of 4 at the fifth border."""
    sky = np.linspace(50, 150, 320)[None, None, :, None].repeat(96, 1).repeat(3, 3).repeat(2, 0)
    found = seams.jumps(sky.astype(np.uint8), 32)
    assert len(found) == 10 - 1 - 2 * seams.MARGIN and found.max() < 0.6  # rounding
    sky[:, :, 160:] += 4
    sky[:, 40:] = 0  # the ground does not count
    found = seams.jumps(sky.astype(np.uint8), 32)
    step = 5 - 1 - seams.MARGIN
    assert found[step] == pytest.approx(4, abs=0.6)
    assert np.delete(found, step).max() < 0.6


def test_ranks():
    found = seams.ranks(np.array([[3.0, 1.0, 2.0], [5.0, 5.0, 9.0]]))
    np.testing.assert_allclose(found, [[1, 0, 0.5], [0.25, 0.25, 1]])


def test_borders():
    assert seams.borders_of(even_partition(9, 10, 4)) == [3, 6, 8]
    assert seams.borders_of(even_partition(9, 10, 1)) == []


@pytest.mark.slow
def test_the_table(tmp_path, capsys):
    file = tmp_path / "seams.json"
    arguments = ["--clips", "1", "--resolution", "544p", "--steps", "2", "--json", str(file)]
    assert seams.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(seams.TITLES.values())
    found = json.loads(file.read_text())
    assert found["meet"] == {"even": [15], "odd": [10, 20]}
    for values in found["ranks"].values():
        assert len(values) == 30 - 1 - 2 * seams.MARGIN and np.mean(values) == pytest.approx(0.5)
    assert found["ranks"]["none"] != found["ranks"]["alternate"]
