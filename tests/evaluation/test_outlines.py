"""The skyline: found, whole in rendered clips, and not in those that were spoilt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from ultragen.evaluation.outlines import skyline, unbroken
from ultragen.pictures import to_frames
from ultragen.world.renderer import render
from ultragen.world.scene import make_scene


def frame_of(seed: int, edition: int, terrain: str) -> np.ndarray:
    scene = make_scene(seed, edition, terrain=terrain, weather="clear", time_of_day="morning")
    return to_frames(render([scene], 288, 512, 17, chosen=(8,))[0])[0]


@pytest.fixture(scope="module", params=[(1, "mountains"), (2, "mountains"), (2, "canyon")])
def frame(request) -> np.ndarray:
    return frame_of(620_001, *request.param)


def blurred(frame: np.ndarray, reach: int) -> np.ndarray:
    picture = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    picture = functional.avg_pool2d(picture, 2 * reach + 1, 1, reach, count_include_pad=False)
    return picture[0].permute(1, 2, 0).byte().numpy()


def doubled(frame: np.ndarray, rows: int) -> np.ndarray:
    lower = np.concatenate([frame[:1].repeat(rows, 0), frame[:-rows]])
    return ((frame.astype(int) + lower) // 2).astype(np.uint8)


def test_a_rendered_skyline_is_whole(frame):
    assert unbroken([frame])


def test_one_that_is_soft_is_not(frame):
    assert not unbroken([blurred(frame, 3)])


@pytest.mark.parametrize("rows", [3, 4, 6])
def test_a_doubled_one_is_not(frame, rows):
    twice = doubled(frame, rows)
    assert not unbroken([twice])
    assert skyline(twice).echo > skyline(frame).echo + 0.15


def test_one_with_holes_is_not(frame):
    holes, soft = frame.copy(), blurred(frame, 6)
    for left in (40, 180, 330):
        holes[:, left : left + 60] = soft[:, left : left + 60]
    assert not unbroken([holes])


def test_the_line_is_where_the_land_begins():
    """A dark triangle before a bright sky, at half of the size that it is judged in."""
    rows, columns = np.mgrid[:540, :800]
    top = 420 - (200 - np.abs(columns - 400) * 0.5).clip(0)
    picture = np.where(rows < top, 200, 60).astype(np.uint8)
    line = skyline(np.repeat(picture[..., None], 3, 2))
    assert line.rows.shape == (400,)
    found, expected = line.rows.numpy(), top[0, ::2] / 2
    assert np.abs(found - expected).max() <= 2
    assert (line.crisp > 0.9).all() and line.echo < 0.1


def test_frames_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="uint8, h w 3"):
        unbroken([np.zeros((4, 4), np.uint8)])
