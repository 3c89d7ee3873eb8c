"""Several processes train one model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT, SUPPORT


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Path:
    """What a program leaves that runs in two processes: a toy's training, and then a stage's."""
    out = tmp_path_factory.mktemp("processes")
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(SUPPORT / "distributed.py"), str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    return out


@pytest.mark.slow
def test_two_processes_train_one_model(launched):
    one, two = (json.loads((launched / f"{rank}.json").read_text()) for rank in range(2))
    assert one == two
    assert one["processes"] == 2
    assert one["start"] == 5  # the first one's
    assert one["gradients"] == [1.5] * 3
    assert one["end"] < one["start"]


@pytest.mark.slow
def test_two_processes_finish_a_stage(launched):
    """From the command line, to the weights that later stages start from."""
    assert (launched / "stage" / "model" / "vae" / "config.json").is_file()
