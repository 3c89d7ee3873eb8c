"""What the tests of the commands share."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import fake_models

from ultragen.runs import loading
from ultragen.runs.loading import Models
from ultragen.runs.loras import asked_for, on_this_machine


@pytest.fixture
def fake(monkeypatch) -> Models:
    made = fake_models()

    def load_models(name=None, loras=None):
        there = on_this_machine() if loras is None else asked_for(loras)
        made.preset = replace(made.preset, loras=there)
        return made

    monkeypatch.setattr(loading, "load_models", load_models)
    return made
