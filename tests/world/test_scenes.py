from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F

from ultragen.world.renderer import render
from ultragen.world.scene import ALLOWED, make_scene, sample_scene

PLAIN = {
    "time_of_day": "morning",
    "terrain": "mountains",
    "weather": "scattered",
    "water": "none",
    "celestial": "sun",
    "celestial_side": "centre",
    "celestial_altitude": "low",
    "snow_caps": "no",
    "trees": "none",
    "birds": "no",
    "camera": "static",
    "mood": "neutral",
}
# Attributes that only show together with others.
SUITED = {"aurora": {"time_of_day": "night"}, "moon": {"time_of_day": "night"}}


@functools.cache
def picture(**attributes: str) -> torch.Tensor:
    """One clip of 17 frames, of which the first, middle and last are kept: c t h w."""
    scene = make_scene(5, **{**PLAIN, **attributes})
    return render([scene], 72, 128, 17)[0][:, ::8]


def test_sampling_is_deterministic_and_varied():
    assert sample_scene(11) == sample_scene(11)
    sampled = [sample_scene(seed).attributes for seed in range(600)]
    for name, values in ALLOWED.items():
        counts = [sum(getattr(a, name) == value for a in sampled) for value in values]
        assert min(counts) > 12, (name, dict(zip(values, counts, strict=True)))


def test_sampled_scenes_are_sensible():
    for seed in range(300):
        a = sample_scene(seed).attributes
        assert a.weather != "aurora" or a.time_of_day == "night"
        assert not (a.celestial == "sun" and a.time_of_day == "night")
        assert a.terrain != "islands" or a.water == "sea"


def test_fixed_attributes_are_kept():
    fixed = make_scene(3, terrain="canyon", camera="pan left").attributes
    assert (fixed.terrain, fixed.camera) == ("canyon", "pan left")
    assert make_scene(3, weather="aurora").attributes.time_of_day == "night"
    assert make_scene(3, celestial="sun").attributes.time_of_day != "night"


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"terrain": "moonscape"}, "mountains, hills"),
        ({"tarrain": "hills"}, "unknown scene attribute 'tarrain'; allowed: time_of_day"),
    ],
)
def test_unknown_attributes_are_named(attributes, message):
    with pytest.raises(ValueError, match=message):
        make_scene(0, **attributes)


def test_bad_seeds_and_sizes_are_refused():
    with pytest.raises(ValueError, match="seed"):
        make_scene(-1)
    with pytest.raises(ValueError, match="at least one scene"):
        render([], 32, 32, 1)
    with pytest.raises(ValueError, match="≥ 1"):
        render([sample_scene(0)], 32, 0, 1)
    with pytest.raises(ValueError, match="does not lie in"):
        render([sample_scene(0)], 32, 32, 1, region=(0, 8, 16, 32))


def test_same_seed_same_clip_whatever_the_batch():
    batch = [sample_scene(seed) for seed in range(5)]
    together = render(batch, 36, 64, 3)
    assert together.shape == (5, 3, 3, 36, 64)
    assert together.dtype == torch.float32
    for index, scene in enumerate(batch):
        alone = render([scene], 36, 64, 3)[0]
        assert (alone - together[index]).abs().max() < 1e-5


def test_longer_clips_continue_shorter_ones():
    scene = make_scene(8, camera="pan right", weather="rain")
    assert torch.equal(render([scene], 36, 64, 9)[:, :, :5], render([scene], 36, 64, 5))


def test_chosen_frames_are_those_of_the_clip():
    scenes = [sample_scene(3), sample_scene(4)]
    whole = render(scenes, 32, 48, 5)
    assert torch.equal(render(scenes, 32, 48, 5, chosen=(0, 3)), whole[:, :, [0, 3]])
    for chosen in ((5,), (-1, 2), ()):
        with pytest.raises(ValueError, match="do not lie in a clip of 5"):
            render(scenes, 32, 48, 5, chosen=chosen)


@pytest.mark.parametrize("weather", ["scattered", "snowfall", "rain"])
def test_region_is_a_crop(weather):
    scene = make_scene(21, weather=weather, water="lake", birds="yes", time_of_day="dusk")
    full = render([scene], 96, 160, 2)
    part = render([scene], 96, 160, 2, region=(40, 24, 33, 65))
    assert (part - full[..., 40:73, 24:89]).abs().max() < 1e-5


@pytest.mark.parametrize("seed", [0, 3, 7, 9])
def test_resolutions_agree(seed):
    scene = sample_scene(seed)
    small = render([scene], 72, 128, 1)[:, :, 0]
    large = render([scene], 288, 512, 1)[:, :, 0]
    shrunk = F.interpolate(large, (72, 128), mode="area")
    assert (small - shrunk).abs().mean() < 0.03
    again = F.interpolate(small, (288, 512), mode="bilinear")
    assert (large - again).abs().mean() > 1e-3  # and the larger one has more detail


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n, values in ALLOWED.items() for v in values]
)
def test_every_value_renders_and_shows(name, value):
    suited = SUITED.get(value, {})
    shown = picture(**suited, **{name: value})
    assert shown.isfinite().all()
    assert shown.min() >= 0
    assert shown.max() <= 1
    assert shown.std() > 0.01
    for other in ALLOWED[name]:
        if other != value:
            difference = (shown - picture(**suited, **{name: other})).abs()
            assert difference.max() > 0.05, (name, value, other)


def shift_of(first: torch.Tensor, last: torch.Tensor, dim: int, reach: int) -> int:
    """By how many pixels `first` must move along `dim` to look like `last` (h w)."""
    size = first.shape[dim]
    errors = {
        step: (
            first.narrow(dim, max(0, -step), size - abs(step))
            - last.narrow(dim, max(0, step), size - abs(step))
        )
        .abs()
        .mean()
        .item()
        for step in range(-reach, reach + 1)
    }
    return min(errors, key=errors.get)


@pytest.mark.parametrize(("camera", "sign"), [("pan right", -1), ("pan left", 1)])
def test_pan_moves_the_picture_the_other_way(camera, sign):
    clip = picture(camera=camera, weather="clear").mean(0)[:, 16:44]
    shift = shift_of(clip[0], clip[-1], 1, 24)
    assert 0.05 * 128 <= sign * shift <= 0.14 * 128


def test_rise_moves_the_picture_down():
    clip = picture(camera="rise", weather="clear").mean(0)[:, 20:60]
    assert 2 <= shift_of(clip[0], clip[-1], 0, 10) <= 9


def test_zoom_magnifies():
    clip = picture(camera="zoom in", weather="clear").mean(0)
    left = shift_of(clip[0, 16:44, :48], clip[-1, 16:44, :48], 1, 12)
    right = shift_of(clip[0, 16:44, 80:], clip[-1, 16:44, 80:], 1, 12)
    assert left < 0 < right


@pytest.mark.parametrize(
    ("attributes", "rows"),
    [
        ({"weather": "scattered"}, slice(0, 20)),
        ({"weather": "rain"}, slice(0, 72)),
        ({"weather": "snowfall"}, slice(0, 72)),
        ({"water": "sea"}, slice(50, 72)),
        ({"birds": "yes"}, slice(8, 40)),
        ({"weather": "aurora", "time_of_day": "night"}, slice(0, 30)),
    ],
)
def test_a_static_camera_still_sees_motion(attributes, rows):
    clip = picture(**attributes)[:, :, rows]
    assert (clip[:, 0] - clip[:, -1]).abs().max() > 0.04


def test_neighbouring_frames_are_close():
    clip = render([make_scene(4, weather="scattered", water="sea", birds="no")], 72, 128, 9)
    steps = (clip[:, :, 1:] - clip[:, :, :-1]).abs().mean(dim=(0, 1, 3, 4))
    assert steps.max() < 0.03
    assert steps.max() < 2.5 * steps.min() + 1e-3
