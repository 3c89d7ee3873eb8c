"""Evaluations whose clips real Ray actors make and measure."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import one_line, ultragen
from evaluations import RUN as HERE
from evaluations import numbers
from paths import ROOT
from ray_clusters import two_machines

from ultragen.evaluation.clip_files import CLIPS, ClipFile, ClipFiles
from ultragen.evaluation.evaluate import RESULTS, share
from ultragen.evaluation.evaluation_on_ray import Worker
from ultragen.evaluation.evaluation_setup import Networks, OwnClips

ray = pytest.importorskip("ray")
RUN = (
    "evaluate", "--set", "table4", "--models", "models", "--clips", 2, "--resolution", "544p",
    "--frames", 1, "--steps", 1, "--features", "imagenet",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, built, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model, where other processes find this package."""
    built.save_pretrained(tmp_path / "models" / "full")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests' / 'support'}")
    return tmp_path


def test_two_actors_give_the_numbers_of_one_process(folder, capsys):
    assert ultragen(*RUN, "--out", "one") == 0
    with two_machines() as address:
        assert ultragen(*RUN, "--out", "two", "--ray", address, "--workers", 2) == 0
    assert "2 actors on CPUs" in capsys.readouterr().err
    assert numbers(folder / "two") == numbers(folder / "one")
    assert all((folder / "two" / name).exists() for name in RESULTS)


def test_what_is_there_needs_no_cluster(fake, tmp_path, capsys):
    out = tmp_path / "out"
    assert ultragen(*HERE, out) == 0
    assert ultragen(*HERE, out, "--ray", "nowhere:1") == 0
    assert ultragen(*HERE, out, "--ray", "nowhere", "--overwrite") == 2
    assert "--ray nowhere is no address" in capsys.readouterr().err


def test_what_ends_an_actors_work_is_told(fake, tmp_path):
    """An actor that raised would be started again and again."""
    clips = (ClipFile(tmp_path / "gone.mp4", "gone.mp4", 1, 64, 64, 5, 0, "a lake"),)
    setup = OwnClips(ClipFiles(tmp_path, clips), Networks())
    part = share([CLIPS], clips, (), 1)[0]
    settled = Worker(setup, [CLIPS], clips[0], tmp_path / "out", 1)(part)
    assert settled.clips == 0 and isinstance(settled.error, ValueError | OSError)
    assert "gone.mp4" in str(settled.error)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--workers", 2), "--workers is for --ray"),
        (("--ray", "auto", "--shard", "1/2"), "leave out --shard, or --ray"),
        (("--reference", "real"), "--reference is for a folder of clips"),
    ],
)
def test_options_that_do_not_fit_together(fake, tmp_path, capsys, arguments, told):
    assert ultragen("evaluate", "--out", tmp_path / "out", *arguments) == 2
    assert told in one_line(capsys)
