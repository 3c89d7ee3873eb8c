"""What is told about a training."""

from __future__ import annotations

import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_stages import Line, run, settings

from ultragen.training.meters import Means, Speed
from ultragen.training.stage import Every


def test_means_are_over_the_steps_that_have_a_value():
    means = Means()
    written_over = torch.tensor(0.0)
    for loss in (1.0, 3.0):
        written_over.fill_(loss)
        means.add({"loss": written_over})
    means.add({"loss": torch.tensor(5.0), "loss/σ 0.0–0.25": torch.tensor(7.0)})
    assert means.take() == {"loss": 3.0, "loss/σ 0.0–0.25": 7.0}
    assert means.take() == {}


def test_due_after_minutes_or_steps():
    assert [Every(60.0)(step) for step in range(3)] == [False] * 3
    assert [Every(60.0, 2)(step) for step in range(5)] == [False, False, True, False, True]
    assert Every(0.0)(1)


def test_what_is_logged(tmp_path):
    """Means since the last time, on TensorBoard as on the console."""
    stage = run(Line(), settings(tmp_path, 6, log_steps=3))
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    logged = {event.step: event.value for event in events.Scalars("loss")}
    expected = {3: sum(stage.losses[:3]) / 3, 6: sum(stage.losses[3:]) / 3}
    assert logged == pytest.approx(expected)
    assert events.Scalars("seconds_per_step")[0].value > 0


def test_memory_at_its_peak_and_between_steps(monkeypatch):
    allocated = {"memory_allocated": 3 * 2**30, "max_memory_allocated": 5 * 2**30}
    for name, size in allocated.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    speed = Speed(torch.device("cuda"))
    speed.hold()
    speed.step(10, 2.0)
    found = speed.take()
    assert (found["memory_gib"], found["states_gib"]) == (5, 3)
    assert "states_gib" not in speed.take(), "no step since"


def test_trackio_follows_a_training(tmp_path, monkeypatch):
    """A training that is resumed goes on in its own run."""
    assert "trackio" not in sys.modules  # it asks once where to write
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    import trackio

    for steps in (2, 4):
        run(Line(), settings(tmp_path / "lake" / "wan", steps, trackers=("trackio",)))
    runs = trackio.Api().runs("lake")
    assert [found.name for found in runs] == ["wan"]
