"""What tests of scripts share."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import train_and_measure

PARTS = ("transformer", *train_and_measure.SHARED)


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Commands that were run, with the GPU that they saw."""
    for part in PARTS:
        (tmp_path / "start" / part).mkdir(parents=True)
    (tmp_path / "start" / "model_index.json").write_text("{}")

    def run(words, env, stdout, **_):
        commands.append((env["CUDA_VISIBLE_DEVICES"], words[3:]))
        stdout.write("first line\nlast line\n")
        return SimpleNamespace(returncode=int(words[3:] == commands.fails))

    class Commands(list):
        fails = None

    commands = Commands()
    monkeypatch.setattr(train_and_measure.subprocess, "run", run)
    return commands
