"""Clips are put where they fit best, scaled without aliasing, and cut to 4n + 1 frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from patterns import waves

from ultragen.dataset.buckets import Bucket, choose_bucket, fit
from ultragen.dataset.frames import VideoInfo

WIDE, HIGH, SQUARE = Bucket(1088, 1920, 81), Bucket(1920, 1088, 81), Bucket(1440, 1440, 81)
LARGE, SHORT, STILL = Bucket(2176, 3840, 29), Bucket(1088, 1920, 29), Bucket(1088, 1920, 1)


def info(height: int, width: int, seconds: float | None = 10, rate: float | None = 24) -> VideoInfo:
    count = None if seconds is None or rate is None else round(seconds * rate)
    return VideoInfo(height, width, count, seconds, rate)


@pytest.mark.parametrize(
    ("clip", "buckets", "chosen"),
    [
        (info(2160, 3840), [HIGH, WIDE, SQUARE], WIDE),
        (info(3840, 2160), [HIGH, WIDE, SQUARE], HIGH),
        (info(2000, 2200), [HIGH, WIDE, SQUARE], SQUARE),
        (info(2160, 4096), [HIGH, WIDE, SQUARE], WIDE),
        # The largest that it has the pixels for, then the longest that it has the frames for.
        (info(2176, 3840), [SHORT, WIDE, LARGE], LARGE),
        (info(2100, 3840), [SHORT, WIDE, LARGE], WIDE),
        (info(2160, 3840, seconds=5), [WIDE, SHORT], SHORT),
        (info(2160, 3840, seconds=5.0625), [WIDE, SHORT], WIDE),  # 81 frames at 16 a second
        (info(2160, 3840, seconds=None), [WIDE, SHORT], WIDE),
        (info(2160, 3840, rate=None), [WIDE], WIDE),
        (info(1088, 1920), [WIDE], WIDE),
        # The usual sizes are those of the models less a few rows.
        (info(1080, 1920), [WIDE, LARGE], WIDE),
        (info(1920, 1080), [WIDE, HIGH], HIGH),
        (info(2160, 3840), [LARGE, WIDE], LARGE),
        # A little more of the frame is worth less than a larger one.
        (info(2160, 3840), [Bucket(1440, 2560, 81), LARGE], LARGE),
        (info(720, 1280), [Bucket(736, 1280, 81), WIDE], Bucket(736, 1280, 81)),
        (info(2160, 3840), [WIDE, STILL], WIDE),
        (info(2160, 3840, seconds=1), [STILL], STILL),
        (VideoInfo(3000, 4000, 1, 0.0, None, is_still=True), [WIDE, STILL], STILL),
    ],
)
def test_the_best_bucket_is_chosen(clip: VideoInfo, buckets: list[Bucket], chosen: Bucket) -> None:
    assert choose_bucket(clip, buckets, 16) == chosen
    assert choose_bucket(clip, buckets[::-1], 16) == chosen


@pytest.mark.parametrize(
    ("clip", "reason"),
    [
        (info(1040, 1920), "too small for any bucket"),
        (info(2160, 3840, seconds=3), "too short for any bucket"),
        (info(2160, 3840, seconds=1, rate=24), "too short for any bucket"),
        (info(2160, 3840, rate=12), "slower than 16 frames a second"),
        (info(2160, 3840, rate=15), "slower than 16 frames a second"),
        (info(3840, 2160), "too far from any bucket's shape"),
        (VideoInfo(3000, 4000, 1, 0.0, None, is_still=True), "a still, and no bucket of one frame"),
    ],
)
def test_why_no_bucket_fits_is_told(clip: VideoInfo, reason: str) -> None:
    assert choose_bucket(clip, [WIDE], 16) == reason


def test_small_clips_are_enlarged_if_told_to() -> None:
    assert choose_bucket(info(720, 1280), [WIDE, HIGH], 16, enlarge=True) == WIDE
    # 14.985 a second is 15.
    assert choose_bucket(info(2160, 3840, rate=15000 / 1001), [WIDE], 15) == WIDE


def test_buckets_are_read_and_written() -> None:
    assert str(WIDE) == "1088x1920x81"
    assert Bucket.parse("1088x1920x81") == Bucket.parse(" 1088×1920X81 ") == WIDE


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1080x1920x81", "multiples of 16; the nearest is 1088x1920x81"),
        ("1088x1930x81", "multiples of 16; the nearest is 1088x1936x81"),
        ("7x9x81", "the nearest is 16x16x81"),
        ("0x1920x81", "holds no pixels"),
        ("1088x1920x80", "choose 77 or 81"),
        ("1088x1920x0", "choose 1 or 5"),
        ("1088x1920", "HEIGHTxWIDTHxFRAMES"),
        ("1080p", "HEIGHTxWIDTHxFRAMES"),
    ],
)
def test_sizes_that_no_model_takes_are_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Bucket.parse(text)


def test_a_model_with_larger_tokens_wants_larger_multiples() -> None:
    WIDE.check_grid(32)
    with pytest.raises(ValueError, match="multiples of 32; the nearest is 512x960x17"):
        Bucket(528, 960, 17).check_grid(32)


def test_frames_that_fit_stay_as_they_are() -> None:
    frames = waves(3, 32, 48)
    fitted = fit(frames, Bucket(32, 48, 1))
    assert fitted.shape == (3, 3, 32, 48) and fitted.dtype == torch.float32
    assert np.array_equal((fitted * 255).round().byte().permute(0, 2, 3, 1).numpy(), frames)
    assert torch.equal(fit(torch.from_numpy(frames), Bucket(32, 48, 1)), fitted)


def test_the_middle_is_kept() -> None:
    # Columns numbered by their colour; 16 rows of 96 columns keep the middle 32.
    frames = np.tile(np.arange(96, dtype=np.uint8)[:, None], (1, 16, 1, 3))
    fitted = fit(frames, Bucket(16, 32, 1))
    assert (fitted[0, 0, 0] * 255).round().tolist() == list(range(32, 64))
    upright = fit(frames.swapaxes(1, 2), Bucket(32, 16, 1))
    assert (upright[0, 0, :, 0] * 255).round().tolist() == list(range(32, 64))


def test_fine_patterns_do_not_alias() -> None:
    # Stripes finer than the small frame can show become grey, not other stripes.
    stripes = np.zeros((1, 96, 130, 3), np.uint8)
    stripes[:, :, ::2] = 200
    fitted = fit(stripes, Bucket(32, 32, 1)) * 255
    assert (fitted - 100).abs().max() < 12
    # Edges stay within the colours.
    edge = np.zeros((1, 64, 64, 3), np.uint8)
    edge[:, :, 32:] = 255
    fitted = fit(edge, Bucket(32, 32, 1))
    assert fitted.min() == 0 and fitted.max() == 1


def test_scaling_keeps_the_shape_of_things() -> None:
    y, x = np.mgrid[:192, :256]
    disc = ((y - 95.5) ** 2 + (x - 127.5) ** 2 < 60**2)[None, ..., None] * np.uint8(255)
    fitted = fit(np.repeat(disc, 3, -1), Bucket(48, 48, 1))[0, 0] > 0.5
    assert fitted.any(0).sum() == fitted.any(1).sum() == pytest.approx(30, abs=1)
    assert fitted.sum().item() == pytest.approx(np.pi * 15**2, rel=0.03)
