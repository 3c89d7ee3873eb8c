"""Weights in parts on several processes: the same training as on one, interrupted or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from paths import ROOT, SUPPORT
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from training_stages import Numbered, numbered_settings, run, weights

from ultragen.training.loop import Trainer
from ultragen.training.sharding import whole_weights

BATCH = 6  # samples of a step, on however many processes


@pytest.fixture(scope="module", autouse=True)
def group_of_its_own():
    """One process is a group too, which later tests shall not find; nor does accelerate change
    what it computes in."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()
    if dist.is_initialized():
        dist.destroy_process_group()


def training(
    out: Path, steps: int, batch_size: int, fails: bool = False, **stage
) -> dict[str, Any]:
    """What `sharded.py` does; options of `numbered_settings` under `settings`."""
    settings = {"out": str(out), "steps": steps, **stage.pop("settings", {})}
    return {
        "stage": {"batch_size": batch_size, **stage},
        "settings": settings,
        **({"fails": True} if fails else {}),
    }


def launch(processes: int, *trainings: dict[str, Any]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         f"--nproc-per-node={processes}", str(SUPPORT / "sharded.py"), json.dumps(trainings)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]


def train(out: Path, steps: int, batch_size: int = BATCH, **changes) -> dict[str, Tensor]:
    run(Numbered(batch_size), numbered_settings(out, steps, **changes))
    return exported(out)


def exported(out: Path) -> dict[str, Tensor]:
    return weights(out / "export")


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Tensor]:
    """What six steps on one process end with."""
    return train(tmp_path_factory.mktemp("whole"), 6)


def test_weights_in_parts_train_as_whole_ones_do(tmp_path, whole):
    stage = run(Numbered(BATCH, whole=True), numbered_settings(tmp_path, 6))
    assert not any(isinstance(p, DTensor) for p in stage.model.parameters())
    assert distance(exported(tmp_path), whole) < 1e-6
    untrained = Numbered(BATCH).model.state_dict()
    assert distance(untrained, whole) > 0.01
    frozen = {name for name in whole if "frozen" in name}
    assert all(torch.equal(untrained[name], whole[name]) for name in frozen) and frozen


def test_resumed_training_is_uninterrupted_training(tmp_path, whole):
    train(tmp_path, 2)
    train(tmp_path, 4)
    assert distance(train(tmp_path, 6), whole) < 1e-6


@pytest.mark.parametrize("in_parts", [True, False])
def test_a_checkpoint_before_the_first_step_changes_nothing(tmp_path, whole, in_parts):
    """As of a run that is asked to end while it starts."""
    for minutes in (0.0, None):
        stage = Numbered(BATCH, whole=not in_parts)
        run(stage, numbered_settings(tmp_path, 6, run_minutes=minutes))
        assert len(stage.asked) == (6 * BATCH if minutes is None else 0)
    assert distance(exported(tmp_path), whole) < 1e-6


@pytest.mark.parametrize(("optimizer", "width"), [("adamw", 5), ("adamw8bit", 256)])
def test_states_seen_before_the_first_step_stay_as_they_are(tmp_path, optimizer, width):
    if optimizer == "adamw8bit":
        pytest.importorskip("torchao")
    ends = []
    for seen in (False, True):
        stage = Numbered(BATCH, width)
        config = numbered_settings(tmp_path / str(seen), 3, optimizer=optimizer)
        trainer = Trainer(stage, config)
        if seen:
            trainer.states()["trained"].state_dict()
        with torch.compiler.set_stance("force_eager"):
            trainer.train()
        ends.append(whole_weights(stage.model))
    assert distance(*ends) == 0


def test_a_weight_without_gradient_is_no_hindrance(tmp_path):
    """Such as a branch's that no clip of the first steps needs."""

    def stage() -> Numbered:
        stage = Numbered(BATCH)
        stage.model[1].register_parameter("unused", nn.Parameter(torch.ones(3)))
        return stage

    run(stage(), numbered_settings(tmp_path, 2))
    assert run(stage(), numbered_settings(tmp_path, 4)).asked == list(range(12, 24))
    assert exported(tmp_path)["1.unused"].tolist() == [1, 1, 1]


def test_a_weight_whose_first_gradient_comes_after_a_resume_learns_as_without(tmp_path):
    """It has no states in the checkpoint."""

    def stage() -> Numbered:
        stage = Numbered(BATCH)
        block = stage.model[1]
        block.register_parameter("late", nn.Parameter(torch.ones(5)))
        block.register_forward_hook(
            lambda block, given, out: out * block.late if stage.asked[-1] >= 4 * BATCH else out
        )
        return stage

    for out, ends in ((tmp_path / "uninterrupted", [6]), (tmp_path / "resumed", [2, 6])):
        for steps in ends:
            run(stage(), numbered_settings(out, steps))
    resumed = exported(tmp_path / "resumed")
    assert distance(resumed, exported(tmp_path / "uninterrupted")) < 1e-6
    assert (resumed["1.late"] != 1).all()


def test_samples_and_checkpoints_change_nothing(tmp_path, whole):
    """Sample sheets gather averaged weights, which the next step must not find."""
    assert distance(train(tmp_path, 6, sample_steps=1, checkpoint_steps=2), whole) < 1e-6
    assert len(list((tmp_path / "samples").iterdir())) == 6


def test_batches_add_up_to_a_step(tmp_path, whole):
    assert distance(train(tmp_path, 6, batch_size=2, accumulation=3), whole) < 1e-5


def test_a_run_goes_on_with_the_samples_that_come_next(tmp_path):
    """Also where a step has another number of them than before."""
    assert run(Numbered(6), numbered_settings(tmp_path, 2)).asked == list(range(12))
    stage = run(Numbered(2), numbered_settings(tmp_path, 4, accumulation=2))
    assert stage.asked == list(range(12, 20))


def test_weights_that_are_not_averaged_are_exported_as_they_are(tmp_path):
    stage = run(Numbered(BATCH), numbered_settings(tmp_path, 3, average=False))
    assert distance(whole_weights(stage.model), exported(tmp_path)) == 0


def test_bfloat16_is_computed_in_over_float32(tmp_path, whole):
    stage = Numbered(BATCH)
    seen = set()
    for module in (stage.model[0], stage.model[1].inner):
        module.register_forward_hook(lambda m, given, out: seen.add((m.weight.dtype, out.dtype)))
    run(stage, numbered_settings(tmp_path, 6, precision="bfloat16"))
    assert seen == {(torch.bfloat16, torch.bfloat16)}
    assert {p.dtype for p in stage.model.parameters()} == {torch.float32}
    assert 0 < distance(exported(tmp_path), whole) < 0.05


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Path:
    """Trainings that went from one number of processes to another."""
    out = tmp_path_factory.mktemp("launched")
    eight = {"optimizer": "adamw8bit"}
    train(out / "one to two", 3)
    with torch.compiler.set_stance("force_eager"):
        run(Numbered(BATCH, width=256), numbered_settings(out / "8 bits", 3, **eight))
    launch(
        2,
        training(out / "two", 6, 3),
        training(out / "one to two", 6, 3),
        training(out / "two to one", 3, 3),
        training(out / "two to three", 3, 3),
        training(out / "8 bits", 6, 3, width=256, settings=eight),
        training(out / "poisoned", 4, 3, fails=True, poison=9, settings={"checkpoint_steps": 1}),
    )
    train(out / "two to one", 6)
    launch(
        3,
        training(out / "two to three", 6, 2),
        training(out / "8 bits", 7, 2, width=256, settings=eight),
    )
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two", "one to two", "two to one", "two to three"])
def test_the_number_of_processes_does_not_matter(launched, whole, name):
    assert distance(exported(launched / name), whole) < 1e-5


@pytest.mark.slow
def test_states_of_8_bits_go_along(launched, tmp_path):
    stage = run(Numbered(BATCH, width=256), numbered_settings(tmp_path, 7, optimizer="adamw8bit"))
    assert distance(exported(launched / "8 bits"), exported(tmp_path)) < 1e-3
    start = Numbered(BATCH, width=256).model.state_dict()
    assert distance(start, whole_weights(stage.model)) > 0.02


@pytest.mark.slow
def test_a_loss_that_is_no_number_in_one_process_stops_all(launched):
    """Before it is in the weights: the second process has sample 9, in the second step."""
    for rank in range(2):
        said = (launched / "poisoned" / f"{rank}.txt").read_text()
        assert said.startswith("FloatingPointError: Step 2: ") and "checkpoint" in said
    assert all(value.isfinite().all() for value in exported(launched / "poisoned").values())
    stage = run(Numbered(BATCH), numbered_settings(launched / "poisoned", 2))
    assert stage.asked == list(range(6, 12))


def test_muon_is_for_whole_matrices(tmp_path):
    with pytest.raises(ValueError, match=r"Muon needs whole matrices.*adamw"):
        Trainer(Numbered(BATCH), numbered_settings(tmp_path, 2, optimizer="muon"))


def test_blocks_want_numbered_samples(tmp_path):
    with pytest.raises(ValueError, match="samples_per_batch"):
        Trainer(Numbered(0), numbered_settings(tmp_path, 2))
