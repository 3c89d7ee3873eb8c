"""`benchmarks/seams.py`: the table of jumps where windows meet."""

from __future__ import annotations

import json

import numpy as np
import pytest
import seams

from ultragen.evaluation.seams import MARGIN


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
        assert len(values) == 30 - 1 - 2 * MARGIN and np.mean(values) == pytest.approx(0.5)
    assert found["ranks"]["none"] != found["ranks"]["alternate"]
