"""`benchmarks/context_parallel.py`: what is exchanged, and a run of toys."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import context_parallel
import pytest
from paths import ROOT


def test_what_is_exchanged_is_counted(capsys):
    assert context_parallel.main(["--plan", "2", "4", "--case", "1088x1920x81"]) == 0
    two, four = capsys.readouterr().out.splitlines()
    # All tokens once, in halves of halves: a process has half of them, and gets of queries, keys
    # and values the other half's, with half of the heads, and then the other heads' results.
    tokens = 21 * 68 * 120
    assert f"full {2 * 1536 * tokens * (3 / 4 + 1 / 4) / 1e9:.3f} GB" in two
    assert "2 processes" in two and "windows 1.00" in two and "tokens 1.00" in two
    assert "4 processes" in four and "tokens 1.07" in four


def test_a_guided_step_is_counted(capsys):
    assert context_parallel.main(["--step", "1", "2", "4", "--case", "2176x3840x81"]) == 0
    rows = {}
    for line in capsys.readouterr().out.splitlines():
        name, cut, rest = line.removeprefix("2176x3840x81, ").split(": ")
        rows[name, cut.split(",")[0]] = cut.split(", ")[1], *rest.split(", ")
    assert {name for name, _ in rows} == {"paper", "released", "t3"}
    for name in ("paper", "released", "t3"):
        assert rows[name, "a guided step by 1"][:2] == ("1 × 1", "0.00 GB in 0 ms")
        # Two exchange their outputs, 16 × 21 × 272 × 480 of two bytes.
        assert rows[name, "a guided step by 2"][:2] == ("2 × 1", "0.09 GB in 0 ms")
        assert rows[name, "a guided step by 4"][0] == "2 × 2"
        assert 3.5 < float(rows[name, "a guided step by 4"][3].rstrip("×")) < 4
    # All of T3-Video's layers bring as much as full ones, see above; and half of the output.
    bytes_moved = 30 * 2 * 1536 * 21 * 136 * 240 + 1.5 * 2 * 16 * 21 * 272 * 480
    assert rows["t3", "a guided step by 4"][1].startswith(f"{bytes_moved / 1e9:.2f} GB")


def test_one_process_is_told_how_to_start_several():
    with pytest.raises(ValueError, match="torchrun --nproc_per_node 2"):
        context_parallel.main([])


@pytest.mark.slow
@pytest.mark.parametrize("guided", [[], ["--guided"]])
def test_toys(tmp_path, guided):
    file = tmp_path / "results.json"
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         ROOT / "benchmarks" / "context_parallel.py", "--tiny", "--no-decoding", "--json", file,
         *guided],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    results = json.loads(file.read_text())["results"]
    layouts = [f"{layout}, guided" if guided else layout for layout in ("paper", "released")]
    assert [result["what"] for result in results] == layouts
    assert all(result["difference"] < 0.02 for result in results)
