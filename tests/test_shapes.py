"""Shapes of a frame: published sizes, grids that cover them, and what is nearest to others."""

from __future__ import annotations

from itertools import product

import pytest
from paths import ROOT

from ultragen.model.windows import auto_windows, check_windows
from ultragen.presets import (
    ASPECTS,
    EMBEDDED,
    PRESETS,
    RESOLUTIONS,
    WAN,
    Resolution,
    find_size,
)

ALL = list(product(RESOLUTIONS, ASPECTS))


def ratio(aspect: str) -> float:
    width, height = aspect.split(":")
    return int(width) / int(height)


@pytest.mark.parametrize(
    ("name", "aspect", "rows", "columns"),
    [
        ("544p", "16:9", 544, 960),
        ("1080p", "9:16", 1920, 1080),
        ("1080p", "1:1", 1080, 1080),
        ("1080p", "4:3", 1080, 1440),
        ("1080p", "21:9", 1080, 2560),
        ("2k", "21:9", 1440, 3440),
        ("4k", "9:16", 3840, 2160),
        ("4k", "21:9", 1600, 3840),
    ],
)
def test_files_have_the_usual_sizes(name, aspect, rows, columns) -> None:
    assert RESOLUTIONS[name].shaped(aspect).kept == (rows, columns)


@pytest.mark.parametrize(("name", "aspect"), ALL)
def test_a_grid_covers_each_shape_with_less_than_a_token_left_over(name, aspect) -> None:
    size = RESOLUTIONS[name].shaped(aspect)
    rows, columns = size.kept
    assert size.name == name
    assert rows % 2 == columns % 2 == 0
    assert size.height % 32 == size.width % 32 == 0
    assert 0 <= size.height - rows < 32 and 0 <= size.width - columns < 32
    assert columns / rows == pytest.approx(ratio(aspect), rel=0.04)
    for preset in PRESETS.values():
        token = preset.pixels_per_token
        grid = (size.height // token, size.width // token)
        check_windows(auto_windows(*grid, (8.5, 15.0)), *grid)


@pytest.mark.parametrize(("name", "aspect"), ALL)
def test_a_level_of_h264_that_common_decoders_take_holds_each_size(name, aspect) -> None:
    rows, columns = RESOLUTIONS[name].shaped(aspect).kept
    assert -(-rows // 16) * -(-columns // 16) <= 36_864


def test_the_documented_sizes_are_these() -> None:
    table = (ROOT / "docs" / "space.md").read_text(encoding="utf-8").split("## Shapes")[1]
    for name, size in RESOLUTIONS.items():
        kept = [size.shaped(aspect).kept for aspect in ASPECTS]
        cells = " | ".join(f"{columns}×{rows}" for rows, columns in kept)
        assert f"| {name} | {cells} |" in table


def test_the_shape_of_before_is_the_size_itself() -> None:
    for size in RESOLUTIONS.values():
        assert size.shaped("16:9") is size


def test_sizes_grow_with_their_names() -> None:
    for aspect in ASPECTS:
        areas = [size.shaped(aspect).height for size in RESOLUTIONS.values()]
        assert areas == sorted(set(areas))


@pytest.mark.parametrize("preset", [EMBEDDED, WAN], ids=lambda preset: preset.name)
@pytest.mark.parametrize("aspect", ASPECTS)
def test_the_base_clip_has_the_shape_and_about_as_many_tokens(preset, aspect) -> None:
    height, width = preset.base_size(aspect)
    assert height % preset.pixels_per_token == width % preset.pixels_per_token == 0
    assert width / height == pytest.approx(ratio(aspect), rel=0.03)
    assert height * width == pytest.approx(preset.base_height * preset.base_width, rel=0.1)


def test_the_base_model_keeps_its_own_size() -> None:
    assert WAN.base_size("16:9") == (480, 832)
    assert WAN.base_size("9:16") == (832, 480)


@pytest.mark.parametrize(("name", "aspect"), ALL)
def test_a_size_is_found_by_its_sides(name, aspect) -> None:
    rows, columns = RESOLUTIONS[name].shaped(aspect).kept
    assert find_size(columns, rows) == (name, aspect)


@pytest.mark.parametrize(
    ("width", "height", "nearest"),
    [
        (1000, 1000, "1080 × 1080 (1080p in 1:1) and 960 × 720"),
        (1920, 1088, "1920 × 1080 (1080p in 16:9) and"),
        (10**30, 2, "3840 × 1600"),
        (0, 100, "positive sides"),
        (-5, 100, "positive sides"),
    ],
)
def test_other_sides_are_answered_with_the_nearest_two(width, height, nearest) -> None:
    with pytest.raises(ValueError) as error:
        find_size(width, height)
    assert nearest in str(error.value)


def test_a_cropped_size_turned_is_cropped_on_the_other_axis() -> None:
    turned = Resolution("x", 288, 512, 272).shaped("9:16")
    assert (turned.height, turned.width, turned.kept) == (512, 288, (512, 272))
