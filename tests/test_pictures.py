"""Pictures keep their pixels: bytes, crops, labels, pairs and contact sheets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from patterns import waves

from ultragen.pictures import (
    contact_sheet,
    crop_frames,
    is_black,
    label_frame,
    side_by_side,
    to_frames,
    to_uint8,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_byte_comes_back(dtype: torch.dtype) -> None:
    values = torch.arange(256, dtype=torch.uint8)
    exact = values.float() / 255
    near = exact + torch.tensor(0.49 / 255) * torch.tensor([-1.0, 1.0])[:, None]
    assert torch.equal(to_uint8(exact), values)
    assert torch.equal(to_uint8(near), values.expand(2, -1))
    coarse = exact.to(dtype)
    expected = np.rint(coarse.double().numpy() * 255)
    assert np.array_equal(to_uint8(coarse).numpy(), expected)
    assert torch.equal(exact, values.float() / 255)


def test_what_lies_outside_is_clamped() -> None:
    assert to_uint8(torch.tensor([-0.1, -1e9, 1.002, 1e9])).tolist() == [0, 0, 255, 255]


def test_frames_have_their_axes_last() -> None:
    frames = waves(3, 4, 6)
    video = torch.tensor(frames).permute(3, 0, 1, 2).float() / 255
    assert np.array_equal(to_frames(video), frames)


@pytest.mark.parametrize(("brightest", "black"), [(0, True), (2, True), (3, False), (255, False)])
def test_black_is_what_nobody_sees(brightest: int, black: bool) -> None:
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    frames[1, 2, 3, 1] = brightest
    assert is_black(frames) == black
    floats = (frames.astype(np.float64) + 0.001 * (frames > 0)) / 255
    assert is_black(floats) == black
    assert is_black(torch.tensor(floats)) == black


def test_crop_keeps_the_middle() -> None:
    frames = waves(2, 1088, 8)
    assert np.array_equal(crop_frames(frames, 1080, 8), frames[:, 4:1084])
    assert np.array_equal(crop_frames(frames, 1088, 4), frames[:, :, 2:6])
    assert crop_frames(frames[0], 1088, 8).shape == (1088, 8, 3)
    for rows in (0, 7, 1090, -2):
        with pytest.raises(ValueError, match="1088"):
            crop_frames(frames, rows, 8)
    for columns in (0, 7, 10, -2):
        with pytest.raises(ValueError, match="columns must be even, from 2 to the frames' 8"):
            crop_frames(frames, 1088, columns)


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
    left, right = waves(3), 255 - waves(3)
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
        list(side_by_side(waves(2), waves(2, 32), ("a", "b")))
    with pytest.raises(ValueError, match="shorter"):
        list(side_by_side(waves(3), waves(2), ("a", "b")))


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
        contact_sheet([*waves(1), *waves(1, 32)], 2)
    with pytest.raises(ValueError, match="captions"):
        contact_sheet(list(waves(2)), 2, ["one"])
