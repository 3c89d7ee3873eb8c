"""A result is replaced as a whole, also by a process that is killed at any of its moves."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from ultragen.files import UNFINISHED, sweep_unfinished, whole_result, write_json, write_text

NAMES = ("clip.mp4", "metadata.json", "native.mp4", "part")
# Ends like SIGKILL at the renaming whose number is given.
KILLED = """
import os, sys
from pathlib import Path
from ultragen.files import whole_result
out, last = Path(sys.argv[1]), int(sys.argv[2])
rename, calls = Path.rename, 0
def counted(self, target):
    global calls
    if (calls := calls + 1) == last:
        os.kill(os.getpid(), 9)
    return rename(self, target)
Path.rename = counted
with whole_result(out, ["clip.mp4", "base.mp4"]) as folder:
    for name in ("clip.mp4", "metadata.json", "native.mp4"):
        (folder / name).write_text("new")
    (folder / "part").mkdir()
    (folder / "part" / "weights").write_text("new")
"""


def earlier_result(out: Path) -> None:
    for name in (*NAMES[:3], "base.mp4", "part/weights"):
        write_text(out / name, "old")
    write_text(out / "notes.txt", "mine")


def contents(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in paths}


def seen(folder: Path) -> set[str]:
    """Of which results files are there for whoever looks."""
    found = contents(folder)
    return {text for name, text in found.items() if UNFINISHED not in name} - {"mine"}


OLD = dict.fromkeys((*NAMES[:3], "base.mp4", "part/weights"), "old") | {"notes.txt": "mine"}
NEW = dict.fromkeys((*NAMES[:3], "part/weights"), "new") | {"notes.txt": "mine"}


def test_a_process_that_is_killed_at_any_move_leaves_one_result(tmp_path: Path) -> None:
    for last in range(1, 50):
        out = tmp_path / str(last)
        earlier_result(out)
        command = [sys.executable, "-c", KILLED, str(out), str(last)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if ended.returncode == 0:
            break
        assert ended.returncode == -9, ended.stderr
        assert len(seen(out)) <= 1
        sweep_unfinished(out)
        # The first renaming is what makes a result of the files.
        assert contents(out) == (OLD if last == 1 else NEW)
    assert last == 11  # five earlier names away, four new ones in place, and one for all
    assert contents(out) == NEW


@pytest.mark.parametrize("failing", range(2, 11))
def test_an_error_at_any_move_puts_the_earlier_result_back(
    tmp_path: Path, monkeypatch, failing: int
) -> None:
    earlier_result(tmp_path)
    rename, calls = Path.rename, 0

    def once(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.EBUSY, "in use", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", once)
    with pytest.raises(OSError, match="in use"), whole_result(tmp_path, ["base.mp4"]) as folder:
        for name in ("clip.mp4", "metadata.json", "native.mp4", "part/weights"):
            write_text(folder / name, "new")
    assert contents(tmp_path) == OLD
    assert not list(tmp_path.glob(f"{UNFINISHED}*"))


def test_what_a_running_process_works_on_is_not_swept(tmp_path: Path) -> None:
    with whole_result(tmp_path) as first:
        write_text(first / "clip.mp4", "first")
        with whole_result(tmp_path) as second:
            write_text(second / "other.mp4", "second")
            sweep_unfinished(tmp_path)
    assert contents(tmp_path) == {"clip.mp4": "first", "other.mp4": "second"}


def test_a_file_takes_no_folders_place(tmp_path: Path) -> None:
    write_text(tmp_path / "clip.mp4" / "kept.txt", "mine")
    with pytest.raises(OSError, match="is a folder"), whole_result(tmp_path) as folder:
        write_text(folder / "clip.mp4", "new")
    assert contents(tmp_path) == {"clip.mp4/kept.txt": "mine"}


def test_errors_have_the_path_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, whole_result(tmp_path) as folder:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "clip.mp4"))
    assert str(tmp_path / "clip.mp4") in str(caught.value)
    assert UNFINISHED not in str(caught.value)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EROFS, "can't be written to"),
        (errno.EACCES, "can't be written to"),
    ],
)
def test_what_fails_is_said_with_a_way_out(tmp_path: Path, monkeypatch, number, says) -> None:
    def failing(self: Path, *arguments, **options) -> None:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "write_text", failing)
    path = tmp_path / "metadata.json"
    with pytest.raises(OSError, match=says) as caught:
        write_json(path, {})
    assert str(caught.value).startswith(str(path)) and "partial" not in str(caught.value)
    assert caught.value.errno == number
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_too_long_is_found_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="name is too long; choose a shorter one"):
        write_text(tmp_path / f"{'n' * 300}.txt", "")
