"""T3-Video's weights, tiny, through what runs a model: comparison, page, estimates."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
from wan_files import WanFiles, make_t3, make_wan

import app
from ultragen.estimates.coefficients import WAN_CUDA, coefficients
from ultragen.estimates.cost import estimate, mean_pairs
from ultragen.estimates.memory import GROWING_VALUES_PER_TOKEN, VALUES_PER_TOKEN
from ultragen.model import wan_1_3b
from ultragen.presets import PRESETS, RESOLUTIONS, T3_4K, WAN, Resolution
from ultragen.runs import compare, request
from ultragen.runs.calibrate import MEASURED
from ultragen.runs.clip import job
from ultragen.runs.loading import Models, load_models
from ultragen.runs.request import Request
from ultragen.video import probe_video
from ultragen.web.settings import describe_model, refresh

WINDOWS = wan_1_3b.T3["t3_windows"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> WanFiles:
    return make_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def t3(files, tmp_path_factory) -> Models:
    path = make_t3(files, tmp_path_factory.mktemp("t3"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in files.environment.items():
            patch.setenv(name, value)
        patch.setenv("ULTRAGEN_WEIGHTS", str(path))
        return load_models()


@pytest.fixture
def small(t3, monkeypatch) -> Models:
    """The same at sizes that take no time; everything else is the preset's."""
    monkeypatch.setattr(request, "RESOLUTIONS", {"544p": Resolution("544p", 96, 160, 90)})
    return replace(t3, preset=replace(t3.preset, base_height=64, base_width=96))


def test_its_clip_says_what_made_it_and_can_be_made_again(small, tmp_path):
    asked = Request("a lake", "544p", num_frames=5, num_inference_steps=2)
    result = compare.compare(asked, small, tmp_path)
    info = probe_video(result.native)
    assert (info.height, info.width, info.num_frames, info.fps) == (90, 160, 5, 30)
    metadata = result.metadata
    assert (metadata["model"]["name"], metadata["model"]["method"]) == ("t3-4k", "T3-Video")
    assert metadata["model"]["weights"][1] == "T3-Video-Wan2.1-T2V-1.3B.safetensors"
    assert metadata["windows"] == {
        "asked": "auto",
        "t3": [[*counts] for counts in WINDOWS],
        "motion": "none",
    }
    assert metadata["labels"]["native"] == "T3-Video, native 160×90"
    again = compare.compare(Request.from_metadata(metadata), small, tmp_path)
    assert again.native.read_bytes() == result.native.read_bytes()


def test_its_own_settings_are_the_authors(t3):
    asked = Request("a lake").validate(t3.preset)
    assert (asked.size.name, asked.frames, asked.num_inference_steps) == ("4k", 81, 50)
    assert asked.guidance_scale == 5.0 and asked.negative_prompt == T3_4K.negative_prompt
    with pytest.raises(ValueError, match="windows must be 'auto', not 4: T3-Video's layers"):
        Request("a lake", windows=4).validate(t3.preset)
    with pytest.raises(ValueError, match="windows must be 'auto', not 4"):
        t3.native("a lake", windows=4, height=96, width=160, num_frames=5)


def test_the_page_offers_4k_and_names_whose_the_weights_are(t3, tmp_path):
    page = app.Page(t3, tmp_path)
    page.build()
    text = describe_model(t3)
    assert "<b>T3-4k model</b>" in text and "APRIL-AIGC/T3-Video" in text
    assert (page.ui.resolution.value, page.ui.num_frames.value) == ("4k", 81)
    assert [value for _, value in page.ui.windows.choices] == ["auto"]
    assert page.ui.native.label == "T3-Video, native"
    settings = Request("a lake").validate(t3.preset)
    drawing = refresh(page.ui, t3, *settings.to_dict().values())[page.ui.drawing]
    assert "1.9 %</b> of the pairs" in drawing and "not trained" not in drawing
    other = replace(settings, resolution="1080p")
    drawing = refresh(page.ui, t3, *other.to_dict().values())[page.ui.drawing]
    assert "for which it was not trained" in drawing


# Estimates


def test_a_pass_at_4k_costs_a_little_more_than_its_floor(t3):
    asked = Request("a lake", num_inference_steps=1, guidance_scale=1.0).validate(t3.preset)
    work = job(asked, t3)
    assert work.windows is None and work.t3_windows == WINDOWS[:3]
    work = replace(work, t3_windows=WINDOWS)
    seconds = estimate(work, coefficients("t3-4k", "cuda"))["denoise"]
    assert coefficients("t3-4k", "cuda") == WAN_CUDA
    assert 4.5 < seconds < 1.3 * 4.5
    dense = prod((21, 136, 240)) ** 2
    assert dense / mean_pairs(work) == pytest.approx(72.8, abs=0.1)


@pytest.mark.parametrize("frames", [1, 5, 41, 81, 121])
def test_every_size_has_a_cost(t3, frames):
    for name in RESOLUTIONS:
        asked = Request("a lake", name, num_frames=frames).validate(t3.preset)
        assert all(value > 0 for value in estimate(job(asked, t3), WAN_CUDA).values())


def test_full_layers_beside_its_own_cost_what_they_attend_to(t3):
    work = replace(job(Request("a lake").validate(t3.preset), t3), t3_windows=WINDOWS)
    pairs, dense = mean_pairs(work), prod((21, 136, 240)) ** 2
    assert mean_pairs(replace(work, full_share=0.5)) == pytest.approx((pairs + dense) / 2)


def test_a_layers_attention_takes_no_more_memory_than_its_feed_forward_network():
    """What `model` tests count: ten widths for each token."""
    assert 10 * wan_1_3b.WIDTH < GROWING_VALUES_PER_TOKEN < VALUES_PER_TOKEN


def test_every_preset_has_estimates_and_settings_to_measure_them_by():
    for name, preset in PRESETS.items():
        assert coefficients(name, "cpu") and coefficients(name, "cuda")
        for settings in MEASURED[name]:
            Request("a lake", **settings).validate(preset)
    assert T3_4K.base_height == WAN.base_height
