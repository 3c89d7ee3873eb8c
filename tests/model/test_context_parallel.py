"""Several processes compute a clip together, and give what one gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import sharing
import torch
from paths import ROOT, SUPPORT
from tiny import tiny_ultragen

RUNS = [
    "guided",
    "unguided",
    "interval",
    "narrow",
    "stopped",
    "LoRA",
    "TaylorSeer",
    "taylor-2",
    "taylor-2, interval",
    "taylor-2, ended",
    "pyramid",
]
COUNTS = [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (3, 4))]


def launch(processes: int, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         f"--nproc-per-node={processes}", str(SUPPORT / "sharing.py"), *map(str, words)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "ULTRAGEN_DTYPE": "float32",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module", params=COUNTS)
def found(request, tmp_path_factory) -> list[dict[str, Any]]:
    """What each of several processes found."""
    out = tmp_path_factory.mktemp("shared")
    ended = launch(request.param, out, "everything")
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [torch.load(out / f"{rank}.pt") for rank in range(request.param)]


@cache
def alone() -> dict[str, Any]:
    """What one process finds."""
    return sharing.everything()


@pytest.mark.parametrize("name", [*sharing.MODELS])
def test_a_forward_pass_is_that_of_one_process(found, name):
    """Both layouts, uneven grids, K and K + 1, moved windows."""
    for number in range(len(sharing.INPUTS)):
        check(found, f"{name}, {number}", 1e-5)


@pytest.mark.parametrize("name", [*sharing.MODELS])
def test_a_process_computes_a_pass_for_itself_for_a_while(found, name):
    """As the one does, but for sums of fewer threads; and after that with the others again."""
    check(found, f"{name}, alone", 1e-5)


def check(found: list[dict[str, Any]], name: str, precision: float) -> None:
    """All processes have what one has."""
    expected = alone()[name]
    for process in found:
        far = float((process[name] - expected).abs().max() / expected.abs().max())
        assert far < precision, name


def test_tokens_come_back_from_windows_bit_by_bit(found):
    names = [name for name in alone() if name.startswith("windows")]
    assert len(names) == 2 * len(sharing.INPUTS)
    for name in names:
        check(found, name, 1e-30)


def test_loras_work(found):
    check(found, "adapted", 1e-5)
    assert not torch.allclose(alone()["adapted"], alone()["released, 0"], rtol=0.01)
    assert not torch.allclose(alone()["LoRA"], alone()["interval"], rtol=0.01)


def test_fp8_works(found):
    """A value that rounds the other way in FP8 is off by a sixteenth."""
    check(found, "quantised", 0.05)


@pytest.mark.parametrize("name", RUNS)
def test_whole_runs_are_those_of_one_process(found, name):
    """From the first one's noise, whatever the seeds of the others; and all stop with one."""
    check(found, name, 1e-4)


def test_halves_of_an_even_number_compute_one_pass_each(found):
    """Passes of a step that is not guided are shared out among all, unless a cache forbids it."""
    count = len(found)
    half = count // 2
    for process in found:
        shared = process["shared"]
        assert shared["unguided"] == [count] * len(alone()["shared"]["unguided"])
        if count % 2:
            assert {each for run in shared.values() for each in run} == {count}
            continue
        assert shared["guided"] == [half] * (len(alone()["shared"]["guided"]) // 2)
        assert sorted(set(shared["interval"])) == [half, count]
        assert sorted(set(shared["narrow"])) == ([half, count] if count <= 3 else [half])
        assert set(shared["taylor-2"]) == set(shared["taylor-2, ended"]) == {half}
        assert set(shared["pyramid"]) == {half}
        assert set(shared["taylor-2, interval"]) == {count}


def test_the_autoencoder_decodes_in_strips(found):
    check(found, "decoded", 1e-12)


def too_many_guided(count: int) -> str:
    """What is said of a guided clip of one block of tokens, which gives work to two."""
    if count == 2:
        return "nothing"
    most = f"{1 + (count % 2 == 0)}"
    return f"{count} processes are too many for a grid of 4 × 4 tokens, which gives work to {most}"


def test_what_can_not_be_shared_out_is_said_in_all_processes(found):
    count = len(found)
    expected = {
        "cache": "TaylorSeerCacheConfig",
        "cache before": "TaylorSeerCacheConfig",
        "cache by spectrum": "SeaCache decides by values",
        "twice": "called once",
        "grid": f"{count} processes are too many for a grid of 4 × 4 tokens, which gives work to 1",
        "guided grid": too_many_guided(count),
        "heads": f"{count} processes are too many for 1 attention heads: start up to 1",
        "gradients": "torch.no_grad()",
        "degree": f"for {count + 1} processes, and there are {count}",
        "plan": "own plan",
        "guidance": "second pass",
        "after guidance": "disable_parallel_guidance",
        "base": "Only UltraGen's transformer",
        "torch": "same torch, not 2.0 in process 0, 2.1 in process 1",
        "GPU": "same device, not H100 in process 0, A100 in process 1",
    }
    for process in found:
        assert set(process["refusals"]) == set(expected)
        for name, words in expected.items():
            assert words in process["refusals"][name], name


def test_one_process_is_told_how_to_start_several():
    from diffusers import ContextParallelConfig, TensorParallelConfig

    model = tiny_ultragen()
    with pytest.raises(ValueError, match="torchrun --nproc_per_node 2"):
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    with pytest.raises(ValueError, match="layers' weights can't"):
        model.enable_parallelism(config=TensorParallelConfig(tp_degree=2))
    with pytest.raises(ValueError, match="torchrun --nproc_per_node 2"):
        sharing.pipeline().enable_context_parallel()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With a pipeline that the command can run."""
    out = tmp_path_factory.mktemp("command")
    sharing.pipeline().save_pretrained(out / "model")
    return out


def test_the_command_writes_one_clip(folder, monkeypatch):
    """The first process does, and it is the clip of one process but for rounding."""
    ended = launch(2, folder, "command")
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("Written") == 1
    assert ended.stdout.count("Expected of 2 processes") == 1
    assert json.loads((folder / "2.json").read_text())["machine"]["processes"] == 2
    monkeypatch.setenv("ULTRAGEN_DTYPE", "float32")
    assert sharing.command(folder) == 0
    one, two = (read_frames(folder / f"{count}.mp4") for count in (1, 2))
    assert one.shape == two.shape
    assert np.abs(one - two).mean() < 1  # the codec makes more of a bit than it is


def read_frames(path: Path) -> np.ndarray:
    with av.open(path) as file:
        return np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)]).astype(float)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how, reason",
    [("dying", "ultragen: There is not enough memory for this size"), ("killed", "SIGKILL")],
)
def test_a_process_that_dies_ends_all_with_its_reason(folder, how, reason):
    ended = launch(2, folder, how, "--overwrite")
    assert ended.returncode != 0
    assert time.time() - float((folder / "died").read_text()) < 60
    assert reason in ended.stderr, ended.stderr
