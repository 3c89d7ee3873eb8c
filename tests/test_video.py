"""Files are whole or absent, exact in size, and keep their colours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from patterns import waves
from PIL import Image

from ultragen.video import convert_video, encode_video, probe_video, read_comment, read_video


def test_encoded_video_reads_back(tmp_path: Path) -> None:
    frames = waves()
    path = encode_video(iter(frames), tmp_path / "a clip's name.mp4", 12)
    info = probe_video(path)
    assert (info.width, info.height, info.num_frames) == (96, 64, 5)
    assert (info.codec, info.pixel_format, info.fps) == ("h264", "yuv420p", 12)
    assert info.duration == pytest.approx(5 / 12, abs=0.01)
    difference = read_video(path).astype(float) - frames
    assert np.abs(difference).mean() < 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["a clip's name.mp4"]


def test_index_comes_before_the_frames(tmp_path: Path) -> None:
    data = encode_video(waves(), tmp_path / "clip.mp4", 12).read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")


def test_sizes_are_not_rounded_to_blocks(tmp_path: Path) -> None:
    path = encode_video(waves(2, 1080, 34), tmp_path / "clip.mp4", 12)
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

    path = encode_video(waves(), tmp_path / "clip.mp4", 12)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    assert "h264 (High)" in said
    assert "yuv420p(tv, bt709, progressive)" in said


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ([], "no frames"),
        (waves(1, 63, 96), "96×63"),
        (waves(1, 64, 95), "95×64"),
        (waves(1).astype(np.float32), "float32"),
        (waves(1)[..., :2], r"\(64, 96, 2\)"),
        ([*waves(2), *waves(1, 32)], "frame 2 has shape"),
    ],
)
def test_bad_frames_are_refused(tmp_path: Path, frames: np.ndarray, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        encode_video(frames, tmp_path / "clip.mp4", 12)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fps", [0, -1, 12.5, True, "12"])
def test_bad_rates_are_refused(tmp_path: Path, fps: int) -> None:
    with pytest.raises(ValueError, match="fps"):
        encode_video(waves(), tmp_path / "clip.mp4", fps)


def test_a_failing_source_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"what was there")

    def frames():
        yield from waves(3)
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
        encode_video(waves(), tmp_path / "clip.mp4", 12)
    assert list(tmp_path.iterdir()) == [broken]


def test_folder_that_takes_no_files(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(OSError, match="there is no folder"):
        encode_video(waves(), tmp_path / "missing" / "clip.mp4", 12)

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(OSError, match="choose another output folder"):
        encode_video(waves(), tmp_path / "clip.mp4", 12)


@pytest.mark.parametrize("read", [read_video, probe_video])
def test_unreadable_files_are_named(tmp_path: Path, read) -> None:
    with pytest.raises(OSError, match=r"there is no file .*missing\.mp4"):
        read(tmp_path / "missing.mp4")
    whole = encode_video(waves(), tmp_path / "whole.mp4", 12)
    for name, data in (("text.mp4", b"not a video"), ("cut.mp4", whole.read_bytes()[:300])):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(OSError, match=f"{name} is not a video"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["12:30.mp4", "a:b/lake.mp4", "-lake.mp4", "-a/lake.mp4", "50%d.mp4"]
)
def test_names_that_mean_something_to_ffmpeg(tmp_path, monkeypatch, name):
    """Relative ones, as they are typed: a protocol, an option, a number."""
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    frames = waves(5, 32, 64)
    assert encode_video(frames, path, 12) == path
    info = probe_video(path)
    assert (info.num_frames, info.height, info.width) == (5, 32, 64)
    assert read_video(path).shape == frames.shape
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("fps", [12, 24])
def test_a_webm_file_has_the_frames_and_their_colours(tmp_path: Path, fps: int) -> None:
    frames = waves(5, 96, 160)
    path = encode_video(frames, tmp_path / "clip.webm", fps)
    info = probe_video(path)
    assert (info.width, info.height, info.num_frames, info.fps) == (160, 96, 5, fps)
    assert (info.codec, info.pixel_format) == ("vp9", "yuv420p")
    assert np.abs(read_video(path).astype(int) - frames).mean() < 6


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
@pytest.mark.parametrize(
    ("fps", "size", "kept"),
    [(12, (160, 96), (160, 96)), (16, (1280, 640), (640, 320)), (24, (640, 1280), (320, 640))],
)
def test_animations_are_small_and_as_long_as_the_clip(
    tmp_path: Path, suffix: str, fps: int, size: tuple[int, int], kept: tuple[int, int]
) -> None:
    frames = waves(9, size[1], size[0])
    path = encode_video(frames, tmp_path / f"clip{suffix}", fps)
    with Image.open(path) as image:
        assert (image.size, image.n_frames, image.info["loop"]) == (kept, 9, 0)
        seconds = []
        for index in range(9):
            image.seek(index)
            image.load()
            seconds.append(image.info["duration"] / 1000)
        image.seek(4)
        shown = np.asarray(image.convert("RGB")).astype(int)
    assert sum(seconds) == pytest.approx(9 / fps, abs=0.015)
    small = np.asarray(Image.fromarray(frames[4]).resize(kept, Image.Resampling.LANCZOS))
    assert np.abs(shown - small).mean() < 12


def test_a_video_becomes_another_kind_of_file(tmp_path: Path) -> None:
    source = encode_video(waves(5, 96, 160), tmp_path / "clip.mp4", 15, "told")
    other = convert_video(source, tmp_path / "clip.webm")
    assert probe_video(other).fps == 15
    assert read_comment(other) == "told"
    apart = read_video(other).astype(int) - read_video(source)
    assert apart.shape[0] == 5 and np.abs(apart).mean() < 6
    with pytest.raises(OSError, match="there is no file"):
        convert_video(tmp_path / "missing.mp4", tmp_path / "other.webm")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "clip.webm"]


@pytest.mark.parametrize("name", ["clip.avi", "clip", "clip.mp4.txt"])
def test_another_suffix_than_ours(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"end in \.mp4"):
        encode_video(np.zeros((1, 32, 32, 3), np.uint8), tmp_path / name, 12)
    assert list(tmp_path.iterdir()) == []


def reshaped(source: Path, target: Path, *options: str, before: tuple[str, ...] = ()) -> Path:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *before, "-i", str(source)]
    subprocess.run([*command, *options, str(target)], check=True)
    return target


@pytest.fixture(scope="module")
def noisy(tmp_path_factory) -> Path:
    frames = np.random.default_rng(0).integers(0, 255, (24, 64, 96, 3), dtype=np.uint8)
    return encode_video(frames, tmp_path_factory.mktemp("clips") / "noisy.mp4", 12)


def test_probing_and_reading_agree_on_what_is_shown(noisy: Path, tmp_path: Path) -> None:
    copied = ("-c", "copy")
    rate = "setpts='if(lt(N,12),N,12+(N-12)*5)/12/TB'"
    turned = reshaped(noisy, tmp_path / "r.mp4", *copied, before=("-display_rotation", "90"))
    varying = reshaped(noisy, tmp_path / "v.mp4", "-vf", rate, "-fps_mode", "passthrough")
    for path, shape in ((noisy, (24, 64, 96)), (turned, (24, 96, 64)), (varying, (24, 64, 96))):
        info = probe_video(path)
        assert (info.num_frames, info.height, info.width) == shape
        assert read_video(path).shape == (*shape, 3)


def test_a_file_that_is_cut_off_says_how_much_can_be_read(noisy: Path, tmp_path: Path) -> None:
    whole = noisy.read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: len(whole) * 6 // 10])
    readable = probe_video(path).num_frames
    with pytest.raises(OSError, match=f"cut off: only {readable} of its 24 frames"):
        read_video(path)


def test_sound_that_is_longer_is_no_cut(noisy: Path, tmp_path: Path) -> None:
    sound = ("-f", "lavfi", "-i", "sine=duration=5")
    path = reshaped(noisy, tmp_path / "long.mp4", "-c:v", "copy", before=sound)
    assert read_video(path).shape == (24, 64, 96, 3)


@pytest.mark.parametrize(
    "text",
    ['{"a": "x=y;#\\\\ \\"q\\" 🏔️"}', "two\nlines = [x]\r\\n;", "=", "\\", "é" * 20_000],
)
@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_comment_is_read_back_and_repeats_byte_for_byte(
    tmp_path: Path, suffix: str, text: str
) -> None:
    first = encode_video(waves(), tmp_path / f"a{suffix}", 12, text)
    assert read_comment(first) == text
    again = encode_video(waves(), tmp_path / f"b{suffix}", 12, text)
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_file_without_a_comment_has_none(tmp_path: Path, suffix: str) -> None:
    assert read_comment(encode_video(waves(), tmp_path / f"a{suffix}", 12)) is None


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_carry_no_comment(tmp_path: Path, suffix: str) -> None:
    path = encode_video(waves(), tmp_path / f"a{suffix}", 12, "secret")
    assert read_comment(path) is None
    assert b"secret" not in path.read_bytes()
