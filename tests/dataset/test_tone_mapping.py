"""Tables and bands against formulas, one pixel after the other, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import video_traps

from ultragen.dataset.tone_mapping import (
    PEAK,
    WHITE,
    ToneMapping,
    bend,
    conversion,
    hlg_scene,
    pq_code,
    pq_light,
)

LIGHTS = np.geomspace(1e-5, 10000, 200_000)
PQ_CODES = video_traps.pq(LIGHTS)


def reference(code: np.ndarray, transfer: str, peak: float) -> np.ndarray:
    """One pixel's codes in [0, 1] in BT.2020 → its codes of 8 bits in BT.709."""
    if transfer == "pq":
        light = np.interp(code, PQ_CODES, LIGHTS)
    elif transfer == "hlg":
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.array([v * v / 3 if v <= 0.5 else (np.exp((v - c) / a) + b) / 12 for v in code])
        light = 1000 * (0.2627 * scene[0] + 0.6780 * scene[1] + 0.0593 * scene[2]) ** 0.2 * scene
        peak = 1000
    else:
        light = 203 * code**2.4
    if transfer != "gamma" and light.max() > 0:
        light = light * bend(np.array(light.max()), peak) / light.max()
    shown = conversion("bt2020", "bt709") @ light / 203
    return 255 * shown.clip(0, 1) ** (1 / 2.4)


@pytest.mark.parametrize(
    ("transfer", "peak"), [("pq", 1000), ("pq", 4000), ("pq", 150), ("hlg", 1000), ("gamma", 0)]
)
def test_colours_are_those_of_the_formulas(transfer: str, peak: float) -> None:
    random = np.random.default_rng(0)
    # More rows than a band; darker colours too, and greys.
    codes = random.random((150, 6, 3)) * random.random((150, 6, 1))
    codes[::5] = codes[::5, :, :1]
    codes = np.rint(codes * 65535).astype(np.uint16)
    found = ToneMapping(transfer, "bt2020", peak or PEAK)(codes)
    assert found.dtype == np.uint8
    expected = [[reference(pixel / 65535, transfer, peak) for pixel in row] for row in codes]
    assert np.abs(found - np.array(expected)).max() < 1


@pytest.mark.parametrize(
    ("code", "light"), [(0, 0), (0.5081, 100), (0.5807, 203), (0.7518, 1000), (1, 10000)]
)
def test_pq_has_the_values_of_the_recommendation(code: float, light: float) -> None:
    # ITU-R BT.2408-7, table 1 and annex; SMPTE ST 2084.
    assert pq_light(np.array(code)) == pytest.approx(light, rel=2e-3)
    assert pq_code(light) == pytest.approx(code, abs=1e-4)


def test_hlg_has_its_white_at_three_quarters() -> None:
    # 75 % of HLG are 203 cd/m² on a display of 1000: ITU-R BT.2408-7, table 1.
    assert 1000 * hlg_scene(np.array(0.75)) ** 1.2 == pytest.approx(WHITE, rel=2e-3)
    assert hlg_scene(np.array(1.0)) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("peak", [300.0, 1000.0, 10000.0])
def test_the_curve_only_bends_highlights(peak: float) -> None:
    light = np.linspace(0.01, peak, 5000)
    bent = bend(light, peak)
    assert (np.diff(bent) > -1e-9).all() and (bent <= light + 1e-9).all()
    assert bent[-1] == pytest.approx(WHITE)
    assert bend(np.array(5.0), peak) == pytest.approx(5)
    assert bend(np.array([50.0, 300.0]), 150.0).tolist() == [50, WHITE]


def test_primaries_are_turned_as_the_recommendation_says() -> None:
    assert np.abs(conversion("bt709", "bt2020") - video_traps.TO_2020).max() < 1e-4
    assert np.abs(conversion("p3", "p3") - np.eye(3)).max() < 1e-12
    # The brightest red of P3 is beyond that of BT.709: SMPTE EG 432-1.
    assert conversion("p3", "bt709")[:, 0] == pytest.approx([1.2249, -0.0420, -0.0196], abs=2e-4)
