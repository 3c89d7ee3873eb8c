"""What ends a training early leaves a whole checkpoint, and says in a line how to go on."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist
from accelerate.state import AcceleratorState
from nodes import two_hosts
from paths import SUPPORT
from training_stages import Line, Numbered, numbered_settings, run, settings

from ultragen.training.loop import Trainer
from ultragen.training.stage import Stage, TrainingConfig


@pytest.fixture(autouse=True)
def precision_of_its_own():
    """accelerate does not change in a process what it computes in."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.fixture(scope="module", autouse=True)
def group_of_its_own():
    """One process is a group too, which later tests shall not find."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file can be larger, which fails as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "in parts"])
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, whole):
    run(Numbered(2, width=128, whole=whole), numbered_settings(tmp_path, 2))
    with small_disk(2**16), pytest.raises(OSError, match=r"^Step 3 could not be saved.*once that"):
        run(Numbered(2, width=128, whole=whole), numbered_settings(tmp_path, 3))
    assert not [path.name for path in tmp_path.iterdir() if path.suffix in (".new", ".old")]
    stage = run(Numbered(2, width=128, whole=whole), numbered_settings(tmp_path, 3))
    assert stage.asked == [4, 5]


class HalfExported(Line):
    """Exports two files, and fails between them in its second run."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails

    def export(self, folder: Path) -> None:
        super().export(folder)
        (folder / "first").write_text(str(self.model.weight.item()))
        if self.fails:
            raise OSError("no space left on device")
        (folder / "second").write_text(str(self.model.weight.item()))


def test_weights_that_can_not_be_exported_leave_the_last_ones(tmp_path):
    run(HalfExported(), settings(tmp_path, 2))
    before = {path.name: path.read_text() for path in (tmp_path / "export").iterdir()}
    with pytest.raises(OSError, match=r"^Step 3 could not be saved: no space left"):
        run(HalfExported(fails=True), settings(tmp_path, 3))
    after = {path.name: path.read_text() for path in (tmp_path / "export").iterdir()}
    assert after == before and before.keys() == {"first", "second"}
    assert not [path.name for path in tmp_path.iterdir() if path.suffix in (".new", ".old")]
    (tmp_path / "export").rename(tmp_path / "export.old")  # as a kill between two moves leaves it
    (tmp_path / "export.new").mkdir()
    stage = HalfExported()
    run(stage, settings(tmp_path, 4))
    assert (tmp_path / "export" / "second").read_text() == str(stage.exported[-1])
    assert not [path.name for path in tmp_path.iterdir() if path.suffix in (".new", ".old")]


@pytest.mark.parametrize("make", [Line, lambda: Numbered(2)], ids=["whole", "in parts"])
def test_a_job_that_is_ended_saves_first(tmp_path, capsys, monkeypatch, make):
    """Clusters send SIGTERM some time before they kill."""
    config = numbered_settings(tmp_path, 6, optimizer="adamw", precision=None)
    stage, loss = make(), type(make()).loss
    calls = []

    def ended(self: Stage, model, batch):
        calls.append(0)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(type(stage), "loss", ended)
        with pytest.raises(SystemExit) as end:
            run(stage, config)
    assert end.value.code == 143
    assert "step 2 is saved" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    trainer = Trainer(make(), config)
    trainer.train()
    assert "resumed at step 2" in capsys.readouterr().out
    assert trainer.progress.step == 6


OTHERS = {
    "optimizer": ({}, {"optimizer": "adamw8bit"}, "optimizer: adamw, not adamw8bit"),
    "average": ({}, {"average": False}, "averaged weights: kept, not none"),
    "layout": ({"layout": "released"}, {}, "layout: paper, not released"),
    "place": ({"whole": True}, {}, "place of the weights"),
    "size": ({"width": 6}, {}, r"set of trained weights: 2\d+ numbers in 12 tensors, not"),
    "data": ({"data": "more clips"}, {}, r"data have changed.*bring the former ones back.*export"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, name):
    stage, changes, says = OTHERS[name]
    run(Numbered(2), numbered_settings(tmp_path, 2))
    before = {path: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()}
    with pytest.raises(ValueError, match=says):
        run(Numbered(2, **stage), numbered_settings(tmp_path, 4, **changes))
    assert before == {path: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()}


def test_a_checkpoint_that_is_damaged_is_named(tmp_path):
    run(Numbered(2), numbered_settings(tmp_path, 2))
    (tmp_path / "checkpoint" / ".metadata").unlink()
    with pytest.raises(OSError, match=r"checkpoint can't be read"):
        run(Numbered(2), numbered_settings(tmp_path, 4))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"optimizer": "sgd"}, "Unknown optimizer 'sgd': choose from muon, adamw, adamw8bit"),
        ({"precision": "float16"}, "Unknown precision 'float16': choose from bfloat16, float32"),
        ({"trackers": ("wandb",)}, "Unknown tracker 'wandb': choose from tensorboard, trackio"),
        ({"accumulation": 0}, "accumulation must be at least 1, not 0"),
    ],
)
def test_unknown_settings_are_named(tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        replace(TrainingConfig(out=tmp_path), **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"optimizer": "adamw8bit"}, r"pip install -e '\.\[fp8\]'"),
        ({"trackers": ("trackio",)}, r"pip install -e '\.\[trackio\]'"),
    ],
)
def test_packages_that_are_missing_are_named(tmp_path, monkeypatch, changes, says):
    for module in ("loop", "optimizers"):
        monkeypatch.setattr(f"ultragen.training.{module}.find_spec", lambda name: None)
    with pytest.raises(OSError, match=says):
        Trainer(Line(), settings(tmp_path, 2, **changes))


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_host_that_is_killed_ends_the_other_one(tmp_path, killed):
    """Within a minute, whatever it waits for; and one host goes on alone."""
    out = tmp_path / "run"
    training = {
        "stage": {"batch_size": 2, "stuck": 40 + 2 * (1 - killed)},  # the other's, in step 10
        "settings": {"out": str(out), "steps": 20, "checkpoint_steps": 5},
    }
    command = (str(SUPPORT / "sharded.py"), json.dumps([training]))
    with two_hosts(lambda rank: command) as hosts:
        left = hosts[1 - killed]
        assert any("waits for ever" in line for line in left.stdout)
        hosts[killed].kill()
        started = time.monotonic()
        _, errors = left.communicate(timeout=60)
    assert left.returncode == 1
    assert time.monotonic() - started < 60
    assert "ultragen: another process is gone" in errors
    stage = run(Numbered(4), numbered_settings(out, 12))
    assert stage.asked == list(range(40, 48))
