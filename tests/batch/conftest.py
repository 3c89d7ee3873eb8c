"""What the tests of many prompts share."""

from __future__ import annotations

from pathlib import Path

import pytest
from paths import ROOT

PROMPTS = "a calm lake\n\na calm lake\nsnowy mountains\na lake at sunset\n"


@pytest.fixture
def folder(tmp_path: Path, built, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model and prompts, where other processes find this package."""
    built.save_pretrained(tmp_path / "model")
    (tmp_path / "p.txt").write_text(PROMPTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests' / 'support'}")
    return tmp_path
