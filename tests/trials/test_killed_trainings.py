"""Trainings that are killed at random moments of a checkpoint go on, and end as others do."""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from training_stages import SMALL, Line, flow_stage, run, settings, steps, weights
from trials import LONG

from ultragen.model.transformer import UltraGenTransformer3DModel

pytestmark = [pytest.mark.trials, pytest.mark.slow]
FEW, MANY = 4, 40  # kills
SAVING = {"checkpoint_minutes": 1e-9}  # after every step


class Kept(Line):
    """Exports its weights, so that they outlive its process."""

    def export(self, folder: Path) -> None:
        super().export(folder)
        torch.save(self.model.state_dict(), folder / "line.pt")


def train_line(out: Path, number: int, saving: bool = True) -> None:
    run(Kept(), settings(out, number, **(SAVING if saving else {})))


def train_flow(out: Path, number: int, saving: bool = True) -> None:
    config = replace(steps(out, number), log_steps=1, **(SAVING if saving else {}))
    run(flow_stage((SMALL,)), config)


def child(train, out: Path, number: int, saving: bool, said: Path) -> None:
    """Trains in a process of its own, whose words go to a file."""
    with said.open("a", buffering=1) as file:
        sys.stdout = sys.stderr = file
        torch.set_num_threads(1)
        train(out, number, saving)


def saved(said: Path) -> int:
    """How often a training has saved."""
    return said.read_text().count("saved at step") if said.exists() else 0


def killed(train, out: Path, said: Path, chance: random.Random) -> str:
    """Kills a training at a random moment of the second or third time that it saves; returns what
    lies there."""
    process = PROCESSES.Process(target=child, args=(train, out, 10**6, True, said))
    before = saved(said)
    process.start()
    times = []
    while len(times) < 2:  # the time between two of them
        assert process.is_alive(), said.read_text()[-2000:]
        if saved(said) > before + len(times):
            times.append(time.monotonic())
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 2 * (times[1] - times[0])))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return " + ".join(sorted(path.name for path in out.glob("checkpoint*")))


PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload(["training_stages"])


@pytest.mark.parametrize("train", [train_line, train_flow])
def test_a_training_survives_kills_while_it_saves(tmp_path, trial, minutes, train):
    tally = trial(f"kills of a training ({train.__name__.removeprefix('train_')})")
    out, said = tmp_path / "out", tmp_path / "said.txt"
    chance, seen = random.Random(0), Counter()
    for _ in range(FEW if minutes < LONG else MANY):
        seen[killed(train, out, said, chance)] += 1
    last = int(re.findall(r"saved at step (\d+)", said.read_text())[-1])
    whole = PROCESSES.Process(target=child, args=(train, out, last + 2, False, said))
    whole.start()
    whole.join()
    tally.notes = ", ".join(f"{number} × {names}" for names, number in seen.items())
    told = said.read_text()
    resumed = [int(step) for step in re.findall(r"resumed at step (\d+)", told)]
    if whole.exitcode or len(resumed) != seen.total() or resumed != sorted(resumed):
        tally.lost.append(f"resumed at {resumed}, then {whole.exitcode}: {told[-500:]}")
    if resumed[-1:] < [last]:
        tally.lost.append(f"step {last} was saved, and it went on from {resumed[-1:]}")
    tally.left = [path.name for path in out.iterdir() if path.suffix in (".new", ".old")]
    tally.tracebacks = told.split("Traceback")[1:]
    assert tally.fails() == {}
    if train is train_line:
        run(Kept(), settings(tmp_path / "unkilled", last + 2))
        ended, other = (
            torch.load(folder / "export" / "line.pt") for folder in (out, tmp_path / "unkilled")
        )
        assert all(torch.equal(ended[name], other[name]) for name in other)
    else:
        UltraGenTransformer3DModel.from_pretrained(out / "export" / "transformer")
        assert weights(out / "export" / "transformer")
