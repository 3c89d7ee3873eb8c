"""A training that is killed while it saves goes on from a whole checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_stages import Line, run, settings

from ultragen.training.checkpoint import replace_folder


class Killed(BaseException):
    """The end of a process, which no `except` of an ordinary error holds up."""


def killing(work: Callable[..., Any], number: int, before: bool) -> Callable[..., Any]:
    """`work`, at whose call of this number the process ends, right before it or right after."""
    calls = iter(range(number + 1))

    def instead(*arguments: Any, **options: Any) -> Any:
        last = next(calls, None) == number
        if last and before:
            raise Killed
        result = work(*arguments, **options)
        if last:
            raise Killed
        return result

    return instead


# Which renaming, and whether the process ends right before it.
MOMENTS = {
    "before the last one makes way": (0, True),
    "between the two renamings": (0, False),
    "before the fresh one takes the place": (1, True),
    "before the last one is removed": (1, False),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_a_run_that_is_killed_while_it_saves_goes_on(tmp_path, monkeypatch, moment, twice):
    """To the same end as one that was not, and nothing is left beside the checkpoint."""
    whole = run(Line(), settings(tmp_path / "whole", 9))
    out = tmp_path / "killed"
    run(Line(), settings(out, 4))
    number, before = MOMENTS[moment]
    for _ in range(1 + twice):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", killing(Path.rename, number, before))
            with pytest.raises(Killed):
                run(Line(), settings(out, 9, checkpoint_minutes=1e-9))
    rest = run(Line(), settings(out, 9))
    saved = 1 + twice if moment == "before the last one is removed" else 0
    assert rest.steps == list(range(4 + saved, 9))
    assert rest.model.weight.item() == whole.model.weight.item()
    assert rest.exported[-1] == whole.exported[-1]
    assert not [path.name for path in out.iterdir() if path.suffix in (".new", ".old")]


def test_folders_that_are_not_whole_are_not_taken(tmp_path):
    """Neither what is left of the last one, nor what there is of a fresh one."""
    run(Line(), settings(tmp_path, 4))
    for left in ("checkpoint.old", "checkpoint.new"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "half").touch()
    assert run(Line(), settings(tmp_path, 6, checkpoint_minutes=1e-9)).steps == [4, 5]
    assert not [path.name for path in tmp_path.iterdir() if path.suffix in (".new", ".old")]


def test_what_can_not_be_removed_is_not_in_the_way_of_the_next_one(tmp_path, monkeypatch):
    """As on a network's disk, where a file that someone reads stays."""
    folder, old = tmp_path / "checkpoint", tmp_path / "checkpoint.old"
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *folder, **options: None)
        replace_folder(folder, Path.mkdir)
    (old / "left").touch()
    replace_folder(folder, Path.mkdir)
    assert folder.is_dir() and not old.exists()


def test_a_checkpoint_that_can_not_be_written_leaves_the_last_one(tmp_path):
    def full(folder: Path) -> None:
        folder.mkdir()
        raise OSError("no space left on device")

    run(Line(), settings(tmp_path, 4))
    for _ in range(2):
        with pytest.raises(OSError, match="no space"):
            replace_folder(tmp_path / "checkpoint", full)
    assert run(Line(), settings(tmp_path, 5)).steps == [4]


def test_a_checkpoint_that_is_replaced_leaves_nothing_beside_it(tmp_path):
    run(Line(), settings(tmp_path, 8, checkpoint_minutes=1e-9))
    assert (tmp_path / "checkpoint").is_dir()
    assert not [path.name for path in tmp_path.iterdir() if path.suffix in (".new", ".old")]
