"""What tests of evaluations share."""

from __future__ import annotations

from dataclasses import replace

import pytest
from evaluations import quick_render, save_classifier
from fakes import fake_models

from ultragen.presets import EMBEDDED, Resolution
from ultragen.runs import loading, request
from ultragen.runs.loading import Models


@pytest.fixture
def fake(monkeypatch, tmp_path) -> Models:
    """Models that draw at once, with a tiny classifier beside them, and a small resolution."""
    sizes = {**request.RESOLUTIONS, "tiny": Resolution("tiny", 128, 160, 120)}
    monkeypatch.setattr(request, "RESOLUTIONS", sizes)
    preset = replace(EMBEDDED, base_height=64, base_width=96)
    made = replace(fake_models(), source=tmp_path / "model", preset=preset)
    save_classifier(made.source / "classifier")
    monkeypatch.setattr(loading, "load_models", lambda name=None: made)
    monkeypatch.setattr("ultragen.world.heldout.render", quick_render)
    return made
