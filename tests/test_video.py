"""Files are whole or absent, exact in size, and keep their colours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ultragen.video import (
    contact_sheet,
    crop_rows,
    encode_video,
    label_frame,
    probe_video,
    read_video,
    side_by_side,
    unique_directory,
)


def clip(num_frames: int = 5, height: int = 64, width: int = 96) -> np.ndarray:
    """A smooth pattern that moves, so that frames can't be mistaken for each other."""
    t, y, x = np.mgrid[:num_frames, :height, :width].astype(np.float32)
    phase = np.stack([x / 17 + t, y / 13 - t, (x + y) / 19], axis=-1)
    return (127 + 110 * np.sin(phase)).astype(np.uint8)


def test_encoded_video_reads_back(tmp_path: Path) -> None:
    frames = clip()
    path = encode_video(iter(frames), tmp_path / "a clip's name.mp4", 12)
    info = probe_video(path)
    assert (info.width, info.height, info.num_frames) == (96, 64, 5)
    assert (info.codec, info.pixel_format, info.fps) == ("h264", "yuv420p", 12)
    assert info.duration == pytest.approx(5 / 12, abs=0.01)
    difference = read_video(path).astype(float) - frames
    assert np.abs(difference).mean() < 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["a clip's name.mp4"]


def test_index_comes_before_the_frames(tmp_path: Path) -> None:
    data = encode_video(clip(), tmp_path / "clip.mp4", 12).read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")


def test_sizes_are_not_rounded_to_blocks(tmp_path: Path) -> None:
    path = encode_video(clip(2, 1080, 34), tmp_path / "clip.mp4", 12)
    assert read_video(path).shape == (2, 1080, 34, 3)


@pytest.mark.parametrize(
    "colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40), (255, 255, 255), (9, 9, 9)]
)
def test_colours_are_kept(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    frames = np.full((2, 64, 64, 3), colour, np.uint8)
    back = read_video(encode_video(frames, tmp_path / "clip.mp4", 12))
    assert np.abs(back.astype(int) - frames).max() <= 3


def test_colour_tags_are_written(tmp_path: Path) -> None:
    import imageio_ffmpeg

    path = encode_video(clip(), tmp_path / "clip.mp4", 12)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    assert "h264 (High)" in said
    assert "yuv420p(tv, bt709, progressive)" in said


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ([], "no frames"),
        (clip(1, 63, 96), "96×63"),
        (clip(1, 64, 95), "95×64"),
        (clip(1).astype(np.float32), "float32"),
        (clip(1)[..., :2], r"\(64, 96, 2\)"),
        ([*clip(2), *clip(1, 32)], "frame 2 has shape"),
    ],
)
def test_bad_frames_are_refused(tmp_path: Path, frames: np.ndarray, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        encode_video(frames, tmp_path / "clip.mp4", 12)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fps", [0, -1, 12.5, True, "12"])
def test_bad_rates_are_refused(tmp_path: Path, fps: int) -> None:
    with pytest.raises(ValueError, match="fps"):
        encode_video(clip(), tmp_path / "clip.mp4", fps)


def test_a_failing_source_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"what was there")

    def frames():
        yield from clip(3)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        encode_video(frames(), path, 12)
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]


# The limit is the process's own, so that it holds only in the one that the test starts.
FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from ultragen.video import encode_video
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
noise = np.random.default_rng(0).integers(0, 255, (20, 128, 128, 3), np.uint8)
try:
    encode_video(noise, Path(sys.argv[1]), 12)
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of the file size are POSIX")
def test_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert str(path) in done.stdout
    assert "disk is full" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_ends_badly_is_noticed(tmp_path: Path, monkeypatch) -> None:
    from moviepy.video.io import ffmpeg_writer

    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\ncat >/dev/null\necho 'No space left on device' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(ffmpeg_writer, "FFMPEG_BINARY", str(broken))
    with pytest.raises(OSError, match="the disk is full"):
        encode_video(clip(), tmp_path / "clip.mp4", 12)
    assert list(tmp_path.iterdir()) == [broken]


def test_folder_that_takes_no_files(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(OSError, match="there is no folder"):
        encode_video(clip(), tmp_path / "missing" / "clip.mp4", 12)

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(OSError, match="choose another output folder"):
        encode_video(clip(), tmp_path / "clip.mp4", 12)


@pytest.mark.parametrize("read", [read_video, probe_video])
def test_unreadable_files_are_named(tmp_path: Path, read) -> None:
    with pytest.raises(OSError, match=r"there is no file .*missing\.mp4"):
        read(tmp_path / "missing.mp4")
    whole = encode_video(clip(), tmp_path / "whole.mp4", 12)
    for name, data in (("text.mp4", b"not a video"), ("cut.mp4", whole.read_bytes()[:300])):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(OSError, match=f"{name} is not a video"):
            read(tmp_path / name)


def test_crop_keeps_the_middle_rows() -> None:
    frames = clip(2, 1088, 4)
    assert np.array_equal(crop_rows(frames, 1080), frames[:, 4:1084])
    assert crop_rows(frames[0], 1088).shape == (1088, 4, 3)
    for rows in (0, 7, 1090, -2):
        with pytest.raises(ValueError, match="1088"):
            crop_rows(frames, rows)


def test_label_is_drawn_on_a_copy() -> None:
    frame = np.full((240, 320, 3), 100, np.uint8)
    labelled = label_frame(frame, "Native 1920×1080")
    changed = np.argwhere((labelled != frame).any(axis=-1))
    assert (frame == 100).all()
    assert labelled.max() > 240
    assert changed.max(axis=0)[0] < 40
    assert labelled.shape == frame.shape


def test_long_label_fits_a_small_frame() -> None:
    frame = np.zeros((16, 24, 3), np.uint8)
    assert label_frame(frame, "a very long label that does not fit" * 3).shape == frame.shape


def test_side_by_side_keeps_both_halves() -> None:
    left, right = clip(3), 255 - clip(3)
    pairs = list(side_by_side(left, right, ("left", "right")))
    assert len(pairs) == 3
    assert pairs[0].shape == (64, 192, 3)
    assert np.array_equal(pairs[1][40:, :90], left[1][40:, :90])
    assert np.array_equal(pairs[1][40:, 100:], right[1][40:, 4:])
    assert (pairs[0][:, 95:97] == 255).all()


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(1080, 1920, (1080, 3840)), (2160, 3840, (1080, 3840)), (1440, 2560, (1080, 3840))],
)
def test_side_by_side_is_never_wider_than_4k(
    height: int, width: int, expected: tuple[int, int]
) -> None:
    frames = np.zeros((1, height, width, 3), np.uint8)
    pair = next(side_by_side(frames, frames, ("a", "b")))
    assert pair.shape == (*expected, 3)


def test_side_by_side_refuses_clips_that_differ() -> None:
    with pytest.raises(ValueError, match="shape"):
        list(side_by_side(clip(2), clip(2, 32), ("a", "b")))
    with pytest.raises(ValueError, match="shorter"):
        list(side_by_side(clip(3), clip(2), ("a", "b")))


def test_contact_sheet_places_every_picture() -> None:
    pictures = [np.full((60, 120, 3), 10 * index, np.uint8) for index in range(5)]
    sheet = np.asarray(contact_sheet(pictures, 3, [f"picture {index}" for index in range(5)]))
    assert sheet.shape[1] == 3 * 124 + 4
    for index in range(5):
        assert ((sheet == 10 * index).all(axis=-1)).sum() >= 60 * 120
    assert contact_sheet(pictures, 3).height < sheet.shape[0]


def test_contact_sheet_refuses_what_does_not_match() -> None:
    with pytest.raises(ValueError, match="0 pictures"):
        contact_sheet([], 3)
    with pytest.raises(ValueError, match="differ in size"):
        contact_sheet([*clip(1), *clip(1, 32)], 2)
    with pytest.raises(ValueError, match="captions"):
        contact_sheet(list(clip(2)), 2, ["one"])


def test_directories_are_unique(tmp_path: Path) -> None:
    made = {unique_directory(tmp_path / "new", "A lake, <b>../at</b> dusk 🌄") for _ in range(20)}
    assert len(made) == 20
    for folder in made:
        assert folder.parent == tmp_path / "new"
        assert folder.name.startswith("A-lake-b-at-b-dusk-")


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="choose another output folder"):
        unique_directory(tmp_path / "file", "run")
