"""Processes that render beside the training."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from paths import ROOT, SUPPORT
from render_makers import failing, failing_later, numbers

from ultragen.training.render_processes import Renderers, pack, unpack


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.long, torch.float32, torch.uint8])
def test_packed_tensors_arrive_as_they_were(dtype):
    x = torch.arange(24).reshape(2, 3, 4).to(dtype).transpose(0, 1)
    values, kind = pickle.loads(pickle.dumps(pack(x)))
    assert torch.equal(unpack(values, kind), x) and kind == dtype


@pytest.mark.slow
def test_renderers_make_what_training_starts_with_and_go_on():
    renderers = Renderers(numbers, weights=[0.8, 0.2], first=[4, 2], devices=["cpu", "cpu"])
    try:
        made: list[list[int]] = []
        while any(sum(m[0] == rank for m in made) < 25 for rank in (0, 1)):
            made += [x[0].tolist() for _, (x,) in renderers.collect(wait=True)]
    finally:
        renderers.stop()
    for rank in (0, 1):
        kinds = [kind for r, kind, _ in made if r == rank]
        assert kinds[:3] == [0, 0, 1]
        # After these, time is shared as asked; both kinds take equally long.
        assert 0.6 < kinds[3:].count(0) / len(kinds[3:]) < 1
    assert not any(process.is_alive() for process in renderers.processes)


@pytest.mark.slow
def test_a_renderer_that_ends_is_reported():
    renderers = Renderers(failing, weights=[1.0], first=[1], devices=["cpu"])
    with pytest.raises(RuntimeError, match="rendering processes ended"):
        renderers.collect(wait=True)
    renderers.stop()


@pytest.mark.slow
def test_a_renderer_that_ends_while_training_goes_on_is_reported():
    renderers = Renderers(failing_later, weights=[1.0], first=[1], devices=["cpu"])
    assert renderers.collect(wait=True)
    with pytest.raises(RuntimeError, match="rendering processes ended"):
        for _ in range(1000):
            renderers.collect(wait=False)
            time.sleep(0.05)
    renderers.stop()
    renderers.stop()


@pytest.mark.slow
def test_renderers_end_with_the_training_that_is_killed(tmp_path):
    """Also while they wait for room."""
    script = tmp_path / "training.py"
    script.write_text(
        "import time\n"
        "from render_makers import numbers\n"
        "from ultragen.training.render_processes import Renderers\n"
        "if __name__ == '__main__':\n"
        "    made = Renderers(numbers, [0.5, 0.5], [1, 1], ['cpu'])\n"
        "    made.collect(wait=True)\n"
        "    print(*(p.pid for p in made.processes), flush=True)\n"
        "    time.sleep(600)\n"
    )
    path = os.pathsep.join(map(str, (SUPPORT, ROOT)))
    training = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert training.stdout is not None
    pids = [int(pid) for pid in training.stdout.readline().split()]
    training.kill()
    training.wait()
    assert pids
    for _ in range(200):
        if not any(running(pid) for pid in pids):
            return
        time.sleep(0.1)
    pytest.fail(f"{pids} are still running")


def running(pid: int) -> bool:
    """Whether a process is there and not a zombie that nobody has asked for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
