"""The whole way on a CPU: people's clips, a dataset, a training, a clip of what was trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import ultragen
from video_traps import ffmpeg, tags

from ultragen.presets import Resolution
from ultragen.video import probe_video

# One of each kind of file that people have, made of a plain one.
TRAPS = {
    "rotated.mp4": ("-vf", "transpose=1"),
    "anamorphic.mp4": ("-vf", "scale=96:128,setsar=2"),
    "interlaced.mp4": (
        "-vf", "fps=30,tinterlace=interleave_top,setfield=tff", "-flags", "+ilme+ildct",
    ),
    "full-range.mp4": ("-vf", f"scale=out_range=pc,{tags(full=True)}", "-color_range", "pc"),
    "faster.mp4": ("-r", "30"),
    "ten-bits.mkv": (
        "-vf", f"format=yuv420p10le,{tags('bt2020nc', 'bt2020', 'smpte2084')}", "-c:v", "libx265",
        "-x265-params", "log-level=error",
    ),
    "other-codec.webm": ("-c:v", "libvpx-vp9", "-b:v", "1M"),
}  # fmt: skip


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Eight rendered clips with captions, seven of them as people's files are."""
    folder = tmp_path_factory.mktemp("clips") / "clips"
    run = ("--count", 1, "--resolution", "192x128", "--frames", 17, "--out", folder)
    assert ultragen("scenes", *run) == 0
    [entry] = json.loads((folder / "captions.json").read_text())
    plain = folder / entry["file"]
    for name, words in TRAPS.items():
        turned = ("-display_rotation", "90") if name == "rotated.mp4" else ()
        made = folder / f"upright-{name}" if turned else folder / name
        ffmpeg("-i", str(plain), *words, str(made))
        if turned:  # the picture is turned one way, and the note says the other
            ffmpeg(*turned, "-i", str(made), "-c", "copy", str(folder / name))
            made.unlink()
    for name in ("captions.json", "contact_sheet.jpg"):
        (folder / name).unlink()
    for path in folder.iterdir():
        path.with_suffix(".txt").write_text(entry["caption"], encoding="utf-8")
    return folder


def test_clips_become_a_model_that_makes_clips(clips, files, tmp_path, monkeypatch, capsys):
    data, run = tmp_path / "data", tmp_path / "run"
    given = ("--base", files.base, "--bucket", "64x96x9", "--frame-rate", 12)
    assert ultragen("dataset", clips, "--out", data, *given) == 0
    assert "8  64x96x9" in capsys.readouterr().out
    words = ("--data", data, "--base", files.base, "--out", run, "--epochs", 0.5, "--batch", 2)
    words += ("--sample-steps", 1, "--sample-prompt", "a lake", "--log-steps", 1)
    words += ("--checkpoint-every", 1)
    assert ultragen("train", "wan", *words) == 0
    said = capsys.readouterr().out
    assert "64x96x9 (8); 2 a step, 4 steps a pass" in said
    assert "step      2" in said and "step      3" not in said
    assert "saved at step 1: checkpoint" in said
    for name, value in files.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ULTRAGEN_WEIGHTS", str(run / "export"))
    sizes = {"544p": Resolution("544p", 96, 160, 90)}
    monkeypatch.setattr("ultragen.runs.request.RESOLUTIONS", sizes)
    clip = tmp_path / "clip.mp4"
    words = ("--prompt", "a lake", "--frames", 5, "--steps", 1, "--resolution", "544p")
    assert ultragen("generate", *words, "--out", clip) == 0
    assert probe_video(clip).num_frames == 5
    metadata = json.loads(clip.with_suffix(".json").read_text())
    assert "export" in json.dumps(metadata)
