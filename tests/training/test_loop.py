"""The training loop, on a line."""

from __future__ import annotations

from math import nan

import pytest
from training_stages import Line, run, settings

from ultragen.training.loop import Trainer
from ultragen.training.stage import TrainingConfig


def test_the_loop_learns(tmp_path):
    stage = run(Line(), settings(tmp_path, 60))
    assert stage.steps == list(range(60))
    assert sum(stage.losses[-5:]) < 0.1 * sum(stage.losses[:5])


def test_a_resumed_run_ends_where_a_whole_one_does(tmp_path):
    """Weights, optimiser and averaged weights go on as if nothing had happened."""
    whole = run(Line(), settings(tmp_path / "whole", 9))
    run(Line(), settings(tmp_path / "parts", 5))
    rest = run(Line(), settings(tmp_path / "parts", 9))
    assert rest.steps == [5, 6, 7, 8]
    assert rest.model.weight.item() == whole.model.weight.item()
    assert rest.exported[-1] == whole.exported[-1]


def test_a_finished_training_is_not_trained_on(tmp_path):
    first = run(Line(), settings(tmp_path, 4))
    again = run(Line(), settings(tmp_path, 4))
    assert again.steps == []
    assert again.exported[-1] == first.exported[-1]


def test_a_short_run_stops_with_a_checkpoint(tmp_path):
    """For machines that are lent for a shorter time than the training takes."""
    assert run(Line(), settings(tmp_path, 2, run_minutes=1e-9)).steps == []
    assert (tmp_path / "checkpoint").is_dir()
    assert run(Line(), settings(tmp_path, 2)).steps == [0, 1]


def test_a_profile_names_the_dearest_operations(tmp_path, capsys):
    run(Line(), settings(tmp_path, 8, profile_step=2))
    printed = capsys.readouterr().out
    assert "Self CPU" in printed and "aten::" in printed


def test_the_averaged_weights_are_exported(tmp_path):
    stage = run(Line(), settings(tmp_path, 30, ema_decay=0.9))
    weight = stage.model.weight.item()
    # The average follows from behind, and training's own weights are put back.
    assert stage.exported[-1] < weight
    assert stage.model.training
    fast = run(Line(), settings(tmp_path / "fast", 30, ema_decay=0.0))
    assert fast.model.weight.item() == weight
    assert fast.exported[-1] == pytest.approx(weight)


def test_a_loss_that_is_no_number_stops_the_training(tmp_path):
    run(Line(), settings(tmp_path, 3))
    with pytest.raises(FloatingPointError, match=r"Step 6.*checkpoint.*learning rate"):
        run(Line(poison=5), settings(tmp_path, 9))
    # What was saved before is untouched.
    assert run(Line(), settings(tmp_path, 4)).steps == [3]


def test_logs_and_sample_sheets(tmp_path):
    run(Line(), settings(tmp_path, 3))
    assert (tmp_path / "samples" / "000003.png").exists()
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_the_learning_rate_rises_holds_and_falls(tmp_path):
    trainer = Trainer(Line(), settings(tmp_path, 9, warmup_steps=4, decay=0.5))
    assert trainer.learning_rate(0.0) == pytest.approx(0.05 / 4)
    trainer.progress.step = 100
    rates = [trainer.learning_rate(done) for done in (0.0, 0.5, 0.75, 0.9, 1.0)]
    assert rates == pytest.approx([0.05, 0.05, 0.025, 0.01, 0.0005])


@pytest.mark.parametrize("minutes", [0, -1, nan])
def test_minutes_must_be_positive(tmp_path, minutes):
    with pytest.raises(ValueError, match="minutes must be positive"):
        TrainingConfig(out=tmp_path, minutes=minutes)


def test_a_training_that_fails_is_torn_down(tmp_path):
    class Torn(Line):
        torn = 0

        def teardown(self) -> None:
            self.torn += 1

    stage = Torn(poison=1)
    with pytest.raises(FloatingPointError):
        run(stage, settings(tmp_path, 3))
    assert stage.torn == 1
