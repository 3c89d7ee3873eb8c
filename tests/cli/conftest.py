"""What the tests of the commands share."""

from __future__ import annotations

import pytest
from fakes import fake_models

from ultragen.runs import loading
from ultragen.runs.loading import Models


@pytest.fixture
def fake(monkeypatch) -> Models:
    made = fake_models()
    monkeypatch.setattr(loading, "load_models", lambda name=None: made)
    return made
