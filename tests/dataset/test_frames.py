"""Frames are what a person would see in a player, whatever the file holds."""

from __future__ import annotations

import io
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg
import numpy as np
import pytest
import video_traps
from patterns import waves
from PIL import Image, ImageOps
from video_traps import CORNERS, corners, counted, number_of

from ultragen.dataset.colours import FrameToPicture
from ultragen.dataset.frames import (
    DamagedVideo,
    UnreadableVideo,
    frames_at_rate,
    probe,
    read_frames,
)
from ultragen.dataset.video_frames import _lenient

STILL = np.repeat(corners()[None], 4, axis=0)
# H.264 with frames that are stored in another order than they are shown.
REORDERED = ("libx264", "-crf", "10", "-preset", "medium", "-g", "24", "-bf", "2")


def first(path: Path) -> np.ndarray:
    return next(read_frames(path, None))


def corners_of(picture: np.ndarray) -> np.ndarray:
    """The colours of the four quarters' middles, in the order of `CORNERS`."""
    height, width = picture.shape[:2]
    rows, columns = (height // 4, 3 * height // 4), (width // 4, 3 * width // 4)
    return np.array([picture[row, column] for row in rows for column in columns], int)


@pytest.mark.parametrize("trap", video_traps.TRAPS)
def test_the_picture_is_the_same_in_every_trap(tmp_path: Path, trap: str) -> None:
    pictures = np.repeat(np.minimum(STILL[:1], 180), 24, axis=0)
    frames = list(read_frames(video_traps.TRAPS[trap](tmp_path / "clip.mp4", pictures, 24), 12))
    assert len(frames) == {"edited": 9}.get(trap, 12)
    for frame in frames:
        found = corners_of(np.rot90(frame, -1) if trap == "turned" else frame)
        assert np.abs(found - np.minimum(CORNERS, 180)).max() <= 3


# Colours


@pytest.mark.parametrize(
    "make",
    [
        video_traps.plain,
        video_traps.full_range,
        video_traps.ten_bits,
        video_traps.wide_colours,
        video_traps.several_streams,
    ],
)
def test_colours_are_those_of_the_source(tmp_path: Path, make: Callable) -> None:
    path = make(tmp_path / "clip.mp4", STILL)
    frames = list(read_frames(path, None))
    assert [frame.shape for frame in frames] == [(64, 96, 3)] * 4
    assert all(frame.dtype == np.uint8 for frame in frames)
    for frame in frames:
        assert np.abs(corners_of(frame) - CORNERS).max() <= 2


@pytest.mark.parametrize("matrix", ["smpte170m", "bt709", "bt2020nc"])
def test_the_tagged_matrix_is_used(tmp_path: Path, matrix: str) -> None:
    tags = video_traps.tags(matrix)
    path = video_traps.encode(tmp_path / "clip.mp4", STILL, matrix=matrix, filters=tags)
    assert np.abs(corners_of(first(path)) - CORNERS).max() <= 2


@pytest.mark.parametrize(("rows", "matrix"), [(718, "smpte170m"), (720, "bt709")])
def test_untagged_colours_depend_on_the_rows(tmp_path: Path, rows: int, matrix: str) -> None:
    pictures = corners(rows, 64)[None]
    path = video_traps.encode(tmp_path / "clip.mp4", pictures, matrix=matrix)
    assert np.abs(corners_of(first(path)) - CORNERS).max() <= 2


def test_untagged_matrix_of_wide_colours_is_bt2020s(tmp_path: Path) -> None:
    path = video_traps.encode(
        tmp_path / "clip.mp4", STILL, matrix="bt2020nc",
        filters="setparams=color_primaries=bt2020:range=tv",
    )  # fmt: skip
    grey = corners_of(first(path))[3]
    assert np.abs(grey - CORNERS[3]).max() <= 2
    tagged = video_traps.encode(
        tmp_path / "tagged.mp4", STILL, matrix="bt2020nc",
        filters=video_traps.tags("bt2020nc", "bt2020", "bt2020-10"),
    )  # fmt: skip
    assert np.array_equal(first(path), first(tagged))


@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_hdr_is_shown_as_on_a_common_display(tmp_path: Path, transfer: str) -> None:
    # Light as a display of 203 cd/m² would show it; dark enough not to be bent.
    pictures = np.minimum(STILL, 180)
    light = 203 * (pictures / 255) ** 2.4
    path = video_traps.hdr(tmp_path / "clip.mp4", light, transfer=transfer)
    expected = np.minimum(CORNERS, 180)
    assert np.abs(corners_of(first(path)) - expected).max() <= 3


def grey_frame(layout: str, bits: int, values: tuple[int, ...], transfer: int, full: bool) -> Any:
    """A frame in BT.2020 whose planes have these values."""
    frame = av.VideoFrame(64, 48, layout)
    kind = np.dtype("u1" if bits == 8 else "<u2")
    for plane, value in zip(frame.planes, values, strict=True):
        plane.update(np.full(plane.buffer_size // kind.itemsize, value, kind).tobytes())
    frame.color_range = 2 if full else 1
    frame.colorspace, frame.color_primaries, frame.color_trc = 9, 9, transfer
    return frame


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize(
    ("layout", "bits"),
    [
        *(("yuv420p", 8), ("yuv444p10le", 10), ("p010le", 10), ("yuv420p12le", 12)),
        *(("yuv444p16le", 16), ("gbrp", 8), ("gbrp10le", 10), ("gbrp16le", 16)),
    ],
)
def test_light_is_exact_in_every_depth_and_range(layout: str, bits: int, full: bool) -> None:
    """In RGB of 16 bits, libswscale 9.5.102 (PyAV 18.1.0) has white at 65283 where it comes from a
    limited range, and at 65472 from a full range of 10 bits. As 65535 it was 2 % of PQ's light too
    dark, and white without HDR was 254."""
    lights = np.geomspace(1e-3, 10000, 100_000)
    rgb = layout.startswith("gbr")
    black, span = (0, 2**bits - 1) if full or rgb else (16 << (bits - 8), 219 << (bits - 8))

    def shown(code: float, transfer: int) -> tuple[int, float]:
        """What becomes of a grey, and which code it is when rounded."""
        luma = round(black + span * code)
        chroma = luma if rgb else 128 << (bits - 8)
        values = (luma, chroma) if layout == "p010le" else (luma, chroma, chroma)
        shift = 6 if layout == "p010le" else 0
        values = tuple(value << shift for value in values)
        frame = grey_frame(layout, bits, values, transfer, full or rgb)
        return int(FrameToPicture(frame, None)(frame)[24, 32, 1]), (luma - black) / span

    assert shown(1.0, 14) == (255, 1)  # BT.2020 without HDR
    for light in (2.0, 10.0, 50.0, 80.0):
        found, code = shown(float(video_traps.pq(np.array(light))), 16)
        expected = 255 * (np.interp(code, video_traps.pq(lights), lights) / 203) ** (1 / 2.4)
        assert abs(found - expected) < 0.75


def test_white_in_floating_point_is_white():
    frame = av.VideoFrame(64, 48, "grayf32le")
    [plane] = frame.planes
    plane.update(np.ones(plane.buffer_size // 4, "<f4").tobytes())
    frame.colorspace, frame.color_primaries, frame.color_trc = 9, 9, 14  # BT.2020 without HDR
    assert FrameToPicture(frame, None)(frame)[24, 32].tolist() == [255, 255, 255]


def test_highlights_of_hdr_keep_their_order_below_white(tmp_path: Path) -> None:
    levels = np.array([100, 203, 400, 600, 1000.0])
    light = np.broadcast_to(levels.repeat(16)[None, None, :, None], (1, 64, 80, 3))
    plain = first(video_traps.hdr(tmp_path / "plain.mp4", light))[32, 8::16, 1].astype(int)
    assert (np.diff(plain) > 0).all() and plain[-1] == 255 and plain[1] < 240
    # What a file tells of its brightest light leaves more for the rest.
    told = first(video_traps.hdr(tmp_path / "told.mp4", light, options="max-cll=600,200"))
    told = told[32, 8::16, 1].astype(int)
    assert told[3] == 255 and told[1] > plain[1]
    display = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(6000000,50)"
    graded = first(video_traps.hdr(tmp_path / "graded.mp4", light, options=display))
    assert np.array_equal(graded[32, 8::16, 1], told)


def test_alpha_is_dropped(tmp_path: Path) -> None:
    path = video_traps.transparent(tmp_path / "clip.mov", STILL)
    assert np.array_equal(first(path), STILL[0])


# Shapes


@pytest.mark.parametrize("mirror", ["", "h", "v"])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_clips_stand_as_ffmpeg_shows_them(tmp_path: Path, degrees: int, mirror: str) -> None:
    path = video_traps.turned(tmp_path / "clip.mp4", STILL, degrees=degrees, mirror=mirror)
    shape = (96, 64, 3) if degrees % 180 else (64, 96, 3)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-frames:v", "1"]
    done = subprocess.run(
        [*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True
    )
    expected = np.frombuffer(done.stdout, np.uint8).reshape(shape)
    assert np.abs(corners_of(first(path)) - corners_of(expected)).max() <= 3
    info = probe(path)
    assert (info.height, info.width) == shape[:2]
    if degrees == 90 and not mirror:  # to the left, so that the right side is on top
        upper_left = corners_of(first(path))[0]
        assert np.abs(upper_left - CORNERS[1]).max() <= 2


@pytest.mark.parametrize(("pixels", "shape"), [("4/3", (64, 128)), ("3/4", (85, 96))])
def test_pixels_become_square(tmp_path: Path, pixels: str, shape: tuple[int, int]) -> None:
    path = video_traps.anamorphic(tmp_path / "clip.mp4", STILL, pixel_shape=pixels)
    info = probe(path)
    assert first(path).shape[:2] == shape == (info.height, info.width)
    assert np.abs(corners_of(first(path)) - CORNERS).max() <= 2


def test_odd_sizes_are_kept(tmp_path: Path) -> None:
    path = video_traps.encode(
        tmp_path / "clip.webm", STILL, filters=f"crop=95:63:0:0:exact=1,{video_traps.tags()}",
        codec=("libvpx-vp9", "-lossless", "1"),
    )  # fmt: skip
    assert first(path).shape == (63, 95, 3)
    assert np.abs(corners_of(first(path)) - CORNERS).max() <= 2


def test_a_frame_of_another_size_ends_a_clip(tmp_path: Path) -> None:
    path = joined(tmp_path, waves(5), waves(5, 80, 128))
    frames, damage = read_all(path)
    # The decoder keeps one back when the size changes.
    assert len(frames) >= 4 and str(damage).startswith("another size (128×80) from frame ")


def joined(folder: Path, *parts: np.ndarray) -> Path:
    """MPEG files one after the other, as people join them."""
    path, part = folder / "joined.mpg", folder / "part.mpg"
    codec = ("mpeg2video", "-q:v", "2")
    encoded = [
        video_traps.encode(part, pictures, filters=video_traps.tags(), codec=codec).read_bytes()
        for pictures in parts
    ]
    path.write_bytes(b"".join(encoded))
    return path


# Times


def test_interlaced_frames_become_progressive(tmp_path: Path) -> None:
    pictures = np.full((24, 64, 96, 3), 40, np.uint8)
    for index, picture in enumerate(pictures):
        picture[:, 4 + 2 * index : 20 + 2 * index] = 220
    path = video_traps.interlaced(tmp_path / "clip.mp4", pictures)
    frames, damage = read_all(path)
    assert damage is None and len(frames) == 12
    for frame, picture in zip(frames, pictures[::2], strict=True):
        assert np.abs(frame.astype(int) - picture).mean() < 1
    # The times stay the frames' own.
    half, _ = read_all(path, 12.5)
    assert all(np.array_equal(one, other) for one, other in zip(half, frames[::2], strict=True))


@pytest.mark.parametrize(
    ("source", "rate", "expected"),
    [
        (24, None, range(24)),
        (24, 24, range(24)),
        (24, 16, [0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 18, 19, 21, 22]),
        (30, 15, range(0, 24, 2)),
        ("30000/1001", 15, range(0, 24, 2)),
        (60, 15, range(0, 24, 4)),
        (25, 10, [0, 2, 5, 7, 10, 12, 15, 17, 20, 22]),
        (12, 16, [0, 1, 1, 2, 3, 4, 4, 5, 6, 7, 7, 8, 9, 10, 10, 11, 12, 13, 13, 14, 15, 16,
                  16, 17, 18, 19, 19, 20, 21, 22, 22, 23]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])  # the latter keeps whole milliseconds
def test_frames_are_taken_at_a_constant_rate(
    tmp_path: Path, source: str | int, rate: float | None, expected: list[int], suffix: str
) -> None:
    path = video_traps.plain(tmp_path / f"clip{suffix}", counted(24), source)
    frames, damage = read_all(path, rate)
    assert damage is None and [number_of(frame) for frame in frames] == list(expected)
    info = probe(path)
    assert info.num_frames == 24
    assert frames_at_rate(info.seconds, rate or info.frame_rate) == len(frames)


def test_frames_of_a_variable_rate_are_taken_by_their_times(tmp_path: Path) -> None:
    times = [0, 33, 70, 100, 300, 333, 366, 400, 500, 600, 700, 733]
    path = video_traps.variable_rate(tmp_path / "clip.mp4", counted(12), times)
    frames, _ = read_all(path, 15)
    moments = [1000 * index / 15 for index in range(len(frames))]
    nearest = [min(range(12), key=lambda n: abs(times[n] - moment)) for moment in moments]
    assert [number_of(frame) for frame in frames] == nearest
    assert len(frames) == 12 and nearest[3:6] == [3, 4, 5]
    assert probe(path).frame_rate == pytest.approx(12 / 0.766, rel=0.02)


def test_what_is_repeated_is_read_once(tmp_path: Path) -> None:
    path = video_traps.plain(tmp_path / "clip.mp4", counted(4), 5)
    frames, _ = read_all(path, 10)
    assert len(frames) == 8 and frames[0] is frames[1] and frames[1] is not frames[2]


def test_a_frame_that_stands_too_long_ends_a_clip(tmp_path: Path) -> None:
    path = video_traps.variable_rate(tmp_path / "clip.mp4", counted(4), [0, 40, 80, 60_000])
    frames, damage = read_all(path, 25)
    assert [number_of(frame) for frame in frames] == [0, 1, 2]
    assert str(damage).startswith("a gap in time at frame 3")


def test_edit_lists_are_obeyed(tmp_path: Path) -> None:
    path = video_traps.edited(tmp_path / "clip.mp4", counted(24), skipped=6)
    frames, damage = read_all(path)
    assert damage is None and [number_of(frame) for frame in frames] == list(range(6, 24))
    assert probe(path).num_frames == 18


def test_time_stamps_that_start_again_go_on(tmp_path: Path) -> None:
    frames, _ = read_all(joined(tmp_path, counted(12), counted(12)), 24)
    assert [number_of(frame) for frame in frames] == [*range(12), *range(12)]


# Damage


def read_all(path: Path, rate: float | None = None) -> tuple[list[np.ndarray], DamagedVideo | None]:
    frames = []
    try:
        for frame in read_frames(path, rate):
            frames.append(frame)
    except DamagedVideo as damage:
        return frames, damage
    return frames, None


@pytest.mark.parametrize("damage", [video_traps.cut_off, video_traps.overwrite])
@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".mp4", ("-movflags", "+faststart")),
        (".mov", ("-movflags", "+frag_keyframe+empty_moov")),
        (".mkv", ()),
    ],
)
def test_whole_frames_before_the_damage_are_kept(
    tmp_path: Path, damage: Callable, suffix: str, options: tuple[str, ...]
) -> None:
    path = tmp_path / f"clip{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 96, 3)).astype(np.uint8)
    pictures = (waves(48) * 0.8 + noise * 0.2).astype(np.uint8)
    video_traps.encode(path, pictures, filters=video_traps.tags(), codec=REORDERED, options=options)
    whole, none = read_all(path)
    assert len(whole) == 48 and none is None
    damage(path)
    frames, error = read_all(path)
    assert error is not None and 20 <= len(frames) < 40
    assert str(error) == f"damaged from frame {len(frames)} of 48"
    assert error.whole_frames == len(frames)
    assert all(np.array_equal(one, other) for one, other in zip(frames, whole, strict=False))
    # At another rate too all that is whole is given first.
    slow, error = read_all(path, 12)
    assert error is not None and len(slow) == (len(frames) + 1) // 2


def test_damage_to_sound_is_of_no_interest(tmp_path: Path) -> None:
    path = video_traps.several_streams(tmp_path / "clip.mp4", counted(24))
    frames, damage = read_all(path)
    assert damage is None and [number_of(frame) for frame in frames] == list(range(24))


def test_tags_need_not_be_utf8(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    video_traps.encode(path, STILL, options=("-metadata", "title=caf__"))
    data = path.read_bytes()
    assert data.count(b"caf__") == 1
    path.write_bytes(data.replace(b"caf__", b"caf\xe9\xff"))
    assert len(list(read_frames(path, None))) == 4


def test_what_lets_such_tags_pass_is_asked_of_versions_that_know_it() -> None:
    """PyAV 18.1.0 has the argument; 19.0.2 has none, and gives such tags as surrogates."""
    assert _lenient("18.1.0") == {"metadata_errors": "replace"}
    assert _lenient("19.0.2") == {}


def unreadable(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.mp4"
    if kind == "sound":
        return video_traps.sound_only(path)
    if kind == "cover":
        sound, cover = video_traps.sound_only(folder / "sound.m4a"), folder / "cover.jpg"
        Image.fromarray(corners()).save(cover)
        video_traps.ffmpeg(
            *("-i", str(sound), "-i", str(cover), "-map", "0", "-map", "1", "-c", "copy"),
            *("-disposition:v", "attached_pic", str(path)),
        )
    elif kind == "no index":
        video_traps.cut_off(video_traps.plain(path, waves(24)))
    elif kind == "matrix":
        video_traps.encode(path, STILL, filters=video_traps.tags("ictcp", "bt2020", "smpte2084"))
    elif kind == "text":
        path.write_text("not a video at all", encoding="utf-8")
    elif kind == "empty":
        path.touch()
    elif kind == "picture":
        path = path.with_suffix(".png")
        path.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    elif kind == "half picture":
        path = path.with_suffix(".jpg")
        Image.fromarray(waves(1, 256, 256)[0]).save(path)
        video_traps.cut_off(path)
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("sound", "no video in it"),
        ("cover", "no video in it"),
        ("no index", "not a video, or cut before its index"),
        ("matrix", "colours in ICtCp"),
        ("text", "not a video, or cut before its index"),
        ("empty", "not a video, or cut before its index"),
        ("missing", "no such file or directory"),
        ("picture", "not a picture"),
        ("half picture", "damaged picture"),
    ],
)
def test_what_can_not_be_read_is_told_in_a_few_words(
    tmp_path: Path, kind: str, reason: str
) -> None:
    path = unreadable(tmp_path, kind)
    with pytest.raises(UnreadableVideo) as caught:
        list(read_frames(path, 24))
    assert str(caught.value) == reason and not isinstance(caught.value, DamagedVideo)
    if kind != "half picture":  # only its head is looked at
        with pytest.raises(UnreadableVideo, match=reason):
            probe(path)


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch) -> None:
    path = video_traps.plain(tmp_path / "clip.mp4", STILL)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(OSError, match="pip install av"):
        probe(path)


# What is known before


def test_a_clip_is_looked_at_without_reading_it(tmp_path: Path) -> None:
    path = video_traps.plain(tmp_path / "clip.mp4", waves(36), 12)
    info = probe(path)
    assert (info.height, info.width, info.num_frames) == (64, 96, 36)
    assert (info.seconds, info.frame_rate, info.is_still) == (3.0, 12.0, False)


# Stills


@pytest.mark.parametrize("orientation", range(1, 9))
def test_stills_stand_upright(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "still.png"
    image = Image.fromarray(corners())
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    with Image.open(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
    [frame] = read_frames(path, 24)
    assert np.array_equal(frame, expected)
    info = probe(path)
    assert (info.height, info.width) == expected.shape[:2]
    assert (info.num_frames, info.seconds, info.frame_rate, info.is_still) == (1, 0, None, True)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tiff", ".JPEG"])
def test_stills_of_every_kind_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"still{suffix}"
    Image.fromarray(corners()).save(path)
    assert np.abs(corners_of(first(path)) - CORNERS).max() <= 4


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (8, 8), (200, 40, 40, 0)), (200, 40, 40)),
        (Image.new("L", (8, 8), 77), (77, 77, 77)),
        (Image.fromarray(np.full((8, 8), 30_000, np.uint16)), (117, 117, 117)),
        (Image.new("RGB", (8, 8), (9, 8, 7)).quantize(4), (9, 8, 7)),
    ],
)
def test_stills_become_rgb(
    tmp_path: Path, image: Image.Image, expected: tuple[int, int, int]
) -> None:
    image.save(tmp_path / "still.png")
    assert first(tmp_path / "still.png")[4, 4].tolist() == list(expected)


def test_colour_profiles_are_obeyed(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), (0, 0, 255))
    image.save(tmp_path / "still.png", icc_profile=swapped_profile())
    red, green, blue = first(tmp_path / "still.png")[0, 0].tolist()
    assert red > 250 and green < 5 and blue < 5
    image.save(tmp_path / "damaged.png", icc_profile=swapped_profile()[:200])
    assert first(tmp_path / "damaged.png")[0, 0].tolist() == [0, 0, 255]


def swapped_profile() -> bytes:
    """An ICC profile (ICC.1:2001-04) of sRGB's primaries, whose blue shines red and whose red
    shines blue."""
    colours = {  # of sRGB, adapted to D50
        b"bXYZ": (0.4361, 0.2225, 0.0139),
        b"gXYZ": (0.3851, 0.7169, 0.0971),
        b"rXYZ": (0.1431, 0.0606, 0.7141),
        b"wtpt": (0.9642, 1.0, 0.8249),
    }
    tags = {
        name: b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))
        for name, values in colours.items()
    }
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + b"\0\0"
    tags |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    tags |= {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78)}
    table, body = struct.pack(">I", len(tags)), io.BytesIO()
    for name, data in tags.items():
        start = 128 + 4 + 12 * len(tags) + body.tell()
        table += name + struct.pack(">II", start, len(data))
        body.write(data + bytes(-len(data) % 4))
    size = 128 + len(table) + body.tell()
    head = struct.pack(">I4sI4s4s4s", size, b"test", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28)
    head += struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + body.getvalue()


@pytest.mark.parametrize("rate", [12, 16, 24])
def test_a_gif_has_the_rate_of_its_frames(tmp_path, rate):
    """PyAV 18.1 says 12.5, 50/3 and 25, the hundredths of a second that its delays are made of."""
    path = tmp_path / "clip.gif"
    with av.open(path, "w") as output:
        stream = output.add_stream("gif", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "rgb8"
        for grey in range(0, 162, 2):
            pixels = np.full((32, 32, 3), grey, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    found = probe(path)
    assert found.num_frames == 81 == len(list(read_frames(path, None)))
    assert found.frame_rate == pytest.approx(rate, rel=2e-3)
