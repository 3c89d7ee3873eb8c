"""Held-out scenes, their real clips, and what their captions name."""

from __future__ import annotations

import numpy as np
import pytest

from ultragen.training.stages.classifier_stage import HELD_OUT_START
from ultragen.world.captions import caption
from ultragen.world.heldout import (
    EVALUATED,
    REFERENCE,
    HeldOutClip,
    held_out_clips,
    named_attributes,
)
from ultragen.world.renderer import render
from ultragen.world.scene import HELD_OUT_SEEDS, make_scene, sample_scene


def test_held_out_clips_are_apart_and_never_trained_on():
    evaluated, reference = held_out_clips(5), held_out_clips(5, REFERENCE)
    seeds = [clip.seed for clip in (*evaluated, *reference)]
    assert len(set(seeds)) == 10 and all(seed in HELD_OUT_SEEDS for seed in seeds)
    assert HELD_OUT_START not in EVALUATED and HELD_OUT_START not in REFERENCE
    assert evaluated[0].caption == caption(evaluated[0].scene, evaluated[0].seed)
    assert [clip.caption for clip in held_out_clips(5)] == [clip.caption for clip in evaluated]


@pytest.mark.parametrize("number", [0, 100_001])
def test_a_number_of_clips_that_is_not_there(number):
    with pytest.raises(ValueError, match=f"from 1 to 100000, not {number}"):
        held_out_clips(number)


def test_real_clips_in_strips_are_the_rendered_ones(monkeypatch):
    monkeypatch.setattr("ultragen.world.heldout.STRIP", 20)
    scene = sample_scene(3)
    whole = render([scene], 48, 64, 2)[0].mul(255).round().byte().permute(1, 2, 3, 0).numpy()
    strips = HeldOutClip(scene).frames(48, 64, 2)
    assert strips.dtype == np.uint8 and strips.shape == (2, 48, 64, 3)
    assert np.abs(strips.astype(int) - whole).max() <= 1


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a lake under mountains at noon, clear sky", set()),
        ("at noon, a lake, clear sky, the sun on the left", {"celestial", "celestial_side"}),
        ("at noon, sun near the horizon to the left", {"celestial", "celestial_side", "altitude"}),
        ("at noon, a bright sun low", {"celestial", "altitude"}),
        ("sunshine, birds are flying", {"celestial", "birds"}),
        ("in the evening sun, in the middle of the day", set()),
        ("the camera moves to the left, warm", {"camera", "mood"}),
        ("pines, pine trees by a lake", {"trees"}),
    ],
)
def test_what_a_caption_names(text, names):
    scene = make_scene(
        1, time_of_day="noon", celestial="sun", celestial_side="left", celestial_altitude="low",
        birds="yes", trees="pines", camera="pan left", mood="warm", snow_caps="no",
    )  # fmt: skip
    found = named_attributes(scene.attributes, text)
    always = {"time_of_day", "terrain", "weather", "water"}
    names = {"celestial_altitude" if name == "altitude" else name for name in names}
    assert set(found) == always | names
    assert all(getattr(scene.attributes, name) == value for name, value in found.items())


def test_what_is_not_there_is_not_named():
    scene = make_scene(1, celestial="none", birds="no", trees="none", water="none")
    assert "celestial" not in named_attributes(scene.attributes, "sunshine, birds, pines")
    assert named_attributes(scene.attributes, "")["water"] == "none"
