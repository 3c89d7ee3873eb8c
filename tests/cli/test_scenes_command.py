"""`scenes`: clips of the procedural world."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from commands import one_line, ultragen
from PIL import Image

from ultragen.cli.scenes import frame_size
from ultragen.video import probe_video
from ultragen.world.scene import GROWN


def test_scenes(tmp_path, capsys):
    out = tmp_path / "scenes"
    run = ("scenes", "--count", 2, "--frames", 2, "--resolution", "64x48", "--seed", 7)
    assert ultragen(*run, "--out", out) == 0
    names = {path.name for path in out.iterdir()}
    clips = ["scene-000007.mp4", "scene-000008.mp4"]
    assert names == {*clips, "captions.json", "contact_sheet.jpg"}
    info = probe_video(out / clips[0])
    assert (info.height, info.width, info.num_frames) == (48, 64, 2)
    entries = json.loads((out / "captions.json").read_text())
    assert [entry["file"] for entry in entries] == clips
    assert all(len(entry["caption"].split()) >= 8 for entry in entries)
    assert entries[0]["attributes"]["camera"]
    assert np.asarray(Image.open(out / "contact_sheet.jpg")).std() > 5


def test_scenes_of_the_second_edition(tmp_path):
    run = ("scenes", "--count", 1, "--frames", 1, "--resolution", "64x48", "--out", tmp_path)
    assert ultragen(*run, "--edition", 2) == 0
    [entry] = json.loads((tmp_path / "captions.json").read_text())
    assert entry["attributes"]["near_ground"] in GROWN["near_ground"]


def test_the_benchmark_of_the_world(capsys, monkeypatch):
    from ultragen.world import preview

    measure = preview.benchmark
    monkeypatch.setattr(preview, "benchmark", partial(measure, 0.0, (32, 48, 2)))
    assert ultragen("scenes", "--benchmark") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["clips_per_second"] > 0
    assert found["device"] and found["torch"]


@pytest.mark.parametrize(
    ("resolution", "size"),
    [("720p", (720, 1280)), ("1080P", (1080, 1920)), ("512x288", (288, 512)), ("64×32", (32, 64))],
)
def test_frame_sizes(resolution, size):
    assert frame_size(resolution) == size


@pytest.mark.parametrize("resolution", ["", "big", "0x0", "511x288", "512x287", "16x16", "9x99999"])
def test_frame_sizes_that_a_video_can_not_have(resolution):
    with pytest.raises(ValueError, match="512x288"):
        frame_size(resolution)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("scenes", "--count", 0), ["--count"]),
        (("scenes", "--resolution", "7x7"), ["7x7", "512x288"]),
    ],
)
def test_bad_input(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ultragen(*arguments) == 2
    line = one_line(capsys)
    assert all(word in line for word in words), line
