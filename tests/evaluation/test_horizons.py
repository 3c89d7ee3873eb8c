"""Horizons: one in rendered scenes, one for each picture in stacked ones."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ultragen.evaluation.horizons import countable, horizons
from ultragen.pictures import to_frames
from ultragen.world.renderer import render
from ultragen.world.scene import make_scene

SCENES = [
    (1, "mountains", "noon", "clear"),
    (1, "canyon", "sunset", "scattered"),
    (1, "plains", "dusk", "overcast"),
    (2, "dunes", "morning", "clear"),
    (2, "hills", "night", "clear"),
]


@pytest.fixture(scope="module", params=SCENES, ids=lambda kind: "-".join(map(str, kind)))
def pictures(request) -> list[np.ndarray]:
    """Two scenes of one kind."""
    edition, terrain, time_of_day, weather = request.param
    kind = {"terrain": terrain, "time_of_day": time_of_day, "weather": weather, "water": "none"}
    scenes = [make_scene(seed, edition, **kind) for seed in (620_001, 620_002)]
    return [to_frames(render([s], 180, 320, 17, chosen=(8,))[0])[0] for s in scenes]


def reduced(picture: np.ndarray, times: int) -> np.ndarray:
    height, width = picture.shape[0] // times, picture.shape[1] // times
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def test_a_rendered_scene_has_one(pictures):
    assert [horizons([picture]) for picture in pictures] == [1, 1]


def test_a_reduced_scene_below_another_makes_two(pictures):
    upper, lower = (reduced(picture, 2) for picture in pictures)
    for halves in ([upper, lower], [upper, upper]):
        stacked = np.concatenate(halves)
        assert horizons([stacked]) == 2
        assert horizons([np.concatenate([stacked, stacked[:, ::-1]], axis=1)]) == 2


def test_windows_that_show_a_scene_each_make_one_for_each_row(pictures):
    window = reduced(pictures[0], 4)
    assert horizons([np.tile(window, (4, 4, 1))]) == 4


def test_scenes_beside_each_other_make_one(pictures):
    assert horizons([np.concatenate(pictures, axis=1)]) == 1


def test_the_middle_frame_counts():
    picture = np.zeros((90, 160, 3), np.uint8)
    picture[:40] = 200
    twice = np.concatenate([picture, picture])
    assert horizons(np.stack([twice, np.concatenate([twice[:40], twice[40:60].repeat(7, 0)]),
                              twice])) == 1  # fmt: skip


def test_where_sky_and_land_look_alike_nothing_is_counted():
    assert horizons([np.full((90, 160, 3), 120, np.uint8)]) is None


def test_in_which_scenes_they_are_counted():
    assert countable({"water": "none", "weather": "clear", "terrain": "hills"})
    assert not countable({"water": "lake", "weather": "clear"})
    assert not countable({"water": "none", "weather": "fog"})
    assert not countable({"weather": "clear"})


def test_frames_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="uint8, h w 3"):
        horizons([np.zeros((4, 4), np.uint8)])
