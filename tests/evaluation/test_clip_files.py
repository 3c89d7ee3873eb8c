"""Clips that people have, measured by the same command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import one_line, ultragen

from ultragen.dataset.frames import read_frames
from ultragen.evaluation import clip_files
from ultragen.evaluation.clip_files import find_clips
from ultragen.evaluation.evaluate import RESULTS
from ultragen.evaluation.instruments import load_file_instruments, measure_frames
from ultragen.video import encode_video


def write(path: Path, seed: int, frames: int = 5, size: tuple[int, int] = (240, 256)) -> Path:
    """A clip of large squares that change."""
    rows, columns = size
    draws = np.random.default_rng(seed).integers(
        0, 256, (frames, rows // 16, columns // 16, 3), np.uint8
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    encode_video(draws.repeat(16, 1).repeat(16, 2), path, fps=8)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("own")
    for number in range(2):
        write(root / "mine" / f"{number}.mp4", number)
        write(root / "real" / "deep" / f"{number}.mp4", 10 + number)
    return root


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def test_a_folder_is_measured_against_another(folders, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    run = ("evaluate", "--clips", folders / "mine", "--reference", folders / "real", "--out", out)
    assert ultragen(*run) == 0
    printed = capsys.readouterr().out
    assert "2 clips of mine: 256×240" in printed and "against the 2 clips of real" in printed
    assert all((out / name).exists() for name in RESULTS)
    found = results(out)
    mine, real = found["rows"]
    [distance] = mine["hd_fvd"].values()
    assert distance["value"] > 0 and distance["low"] <= distance["value"] <= distance["high"]
    assert real["hd_fvd"] == {} and mine["seconds"] is None
    assert [clip["file"] for clip in found["reference"]] == ["deep/0.mp4", "deep/1.mp4"]
    # The numbers are those of the frames, measured alone.
    tools = load_file_instruments(Path("none"), None)
    alone = [
        measure_frames(read_frames(folders / "mine" / f"{i}.mp4", None), "", tools)
        for i in range(2)
    ]
    for name in ("hd_mse", "temporal"):
        expected = np.mean([getattr(clip, name) for clip in alone])
        assert mine[name]["value"] == pytest.approx(expected, rel=1e-6)
    assert mine["clip_score"] is None and mine["following"] is None

    def read_again(*_: object) -> None:
        raise AssertionError("a clip was read again")

    monkeypatch.setattr(clip_files, "read_frames", read_again)
    assert ultragen(*run) == 0
    assert results(out)["rows"] == found["rows"]


def test_clips_that_have_changed_are_no_longer_the_same(folders, tmp_path, capsys):
    mine, out = tmp_path / "mine", tmp_path / "out"
    write(mine / "a.mp4", 1)
    run = ("evaluate", "--clips", mine, "--out", out)
    assert ultragen(*run) == 0
    assert "Not measured, for want of" in capsys.readouterr().out
    write(mine / "b.mp4", 2, size=(128, 256))
    assert ultragen(*run) == 2
    assert "start again with --overwrite" in one_line(capsys)
    assert ultragen(*run, "--overwrite") == 0
    assert [clip["height"] for clip in results(out)["clips"]] == [240, 128]
    assert "2 clips of mine: 1 of 256×240, 1 of 256×128." in capsys.readouterr().out


def test_captions_are_read_where_they_are_needed(folders, tmp_path):
    write(tmp_path / "a.mp4", 1)
    write(tmp_path / "b.mp4", 2)
    assert [clip.caption for clip in find_clips(tmp_path, captions=False).clips] == [
        "a.mp4", "b.mp4",
    ]  # fmt: skip
    (tmp_path / "a.txt").write_text("a lake")
    found = find_clips(tmp_path, captions=True)
    assert [clip.caption for clip in found.clips] == ["a lake"]
    assert found.faults == [f"{tmp_path / 'b.mp4'}: no caption"]


def test_all_that_can_not_be_measured_is_named_first(folders, tmp_path, capsys):
    write(tmp_path / "mine" / "good.mp4", 1)
    for name in ("text.mp4", "empty.mp4"):
        (tmp_path / "mine" / name).write_bytes(b"no video" if name == "text.mp4" else b"")
    out = tmp_path / "out"
    assert ultragen("evaluate", "--clips", tmp_path / "mine", "--out", out) == 2
    told = capsys.readouterr().err
    assert "text.mp4: not a video" in told and "empty.mp4: " in told
    assert "2 of the files above can't be measured" in told
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--clips", "nowhere"), "there is no folder nowhere"),
        (("--clips", "."), "there are no videos in ."),
        (("--clips", "mine", "--features", "imagenet"), "needs --reference FOLDER"),
        (("--clips", "mine", "--steps", 3), "--num-inference-steps says how clips are made"),
        (("--clips", "mine", "--set", "table1"), "--set says how clips are made"),
        (("--clips", "small", "--reference", "mine"), "smaller than a patch"),
    ],
)
def test_what_does_not_fit_is_one_line(folders, tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    if "mine" in arguments:
        (tmp_path / "mine").symlink_to(folders / "mine")
    if "small" in arguments:
        write(tmp_path / "small" / "a.mp4", 1, size=(64, 64))
    assert ultragen("evaluate", *arguments, "--out", "out") == 2
    assert told in one_line(capsys)
