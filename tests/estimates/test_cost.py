"""The cost estimate: counts that match the attention, and fitted coefficients."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ultragen.estimates import coefficients, cost
from ultragen.estimates.estimator import Estimator, fit, probe
from ultragen.model.windows import even_partition

JOB = cost.Job(
    height=544,
    width=960,
    base_height=288,
    base_width=512,
    num_frames=17,
    windows=2,
    steps=10,
    passes=2,
    upscaler="network",
    base_native="off",
    pixels_per_token=32,
)


def counted_pairs(grid: tuple[int, int, int], windows: int) -> int:
    partition = even_partition(*grid[1:], windows)
    return sum((grid[0] * h * w) ** 2 for h in partition.rows for w in partition.columns)


@pytest.mark.parametrize("grid", [(5, 17, 30), (5, 34, 60), (1, 7, 11), (3, 4, 4)])
@pytest.mark.parametrize("windows", [1, 2, 3, 4])
def test_window_pairs_are_those_of_the_partition(grid, windows):
    assert cost.window_pairs(grid, windows) == counted_pairs(grid, windows)


def test_native_pairs_approach_the_papers_share_on_a_large_grid():
    """Equations 12-13: 5/(4K²) + 1/K⁴ of full attention with the same K in every layer; the
    third term here is the compressed global branch, k⁻⁴ with k = 4."""
    grid, windows = (4, 240, 240), 4
    odd = windows + 1
    local = (1 / windows**2 + 1 / odd**2) / 2
    hierarchical = (1 / (windows / 2) ** 2 + 1 / (windows / 2 + 1) ** 2) / 2 / 16
    share = cost.native_pairs(grid, windows) / cost.full_pairs(grid)
    assert share == pytest.approx(local + hierarchical + 1 / 4**4, rel=1e-3)


def test_every_stage_that_runs_costs_something():
    stages = cost.estimate(replace(JOB, base_native="on"), coefficients.CPU)
    assert list(stages) == [name for name in cost.STAGES if name in stages]
    assert set(stages) == set(cost.STAGES)
    assert all(seconds > 0 for seconds in stages.values())
    assert "base_native_denoise" not in cost.estimate(JOB, coefficients.CPU)


def test_several_processes_share_out_the_native_clip():
    one, four = (
        cost.estimate(replace(JOB, processes=n, decoding_processes=n), coefficients.WAN_CUDA)
        for n in (1, 4)
    )
    assert four["denoise"] == pytest.approx(one["denoise"] / 4)
    assert four["decode"] == pytest.approx(one["decode"] * (0.04 + 0.96 / 4))
    assert {**four, "denoise": 0, "decode": 0} == {**one, "denoise": 0, "decode": 0}


@pytest.mark.parametrize(
    "change",
    [
        {"height": 1088, "width": 1920},
        {"num_frames": 33},
        {"steps": 20},
        {"base_native": "on"},
    ],
)
def test_more_work_takes_longer(change):
    less, more = (cost.estimate(job, coefficients.CPU) for job in (JOB, replace(JOB, **change)))
    assert sum(more.values()) > sum(less.values()) * 1.2


def test_guidance_doubles_the_denoising():
    once, twice = (cost.estimate(replace(JOB, passes=n), coefficients.CPU) for n in (1, 2))
    assert twice["denoise"] == pytest.approx(2 * once["denoise"])


def test_the_base_model_at_full_size_costs_far_more_than_windows_at_4k():
    job = replace(JOB, height=2176, width=3840, windows=8, base_native="on")
    stages = cost.estimate(job, coefficients.CPU)
    assert stages["base_native_denoise"] > 5 * stages["denoise"]


@pytest.mark.parametrize(
    "given, expected",
    [
        (("embedded", "cpu"), coefficients.CPU),
        (("embedded", "cpu", "float32", True), coefficients.CPU),
        (("embedded", "cpu", "bfloat16", True), coefficients.CPU_BFLOAT16_AMX),
        (("embedded", "cpu", "bfloat16", False), coefficients.CPU_BFLOAT16_AVX512),
        (("embedded", "cuda", "bfloat16", True), coefficients.CUDA),
        (("wan", "cpu", "bfloat16", True), coefficients.WAN_CPU),
    ],
)
def test_coefficients_of_a_machine(given, expected):
    assert coefficients.coefficients(*given) == expected


def test_fit_finds_the_coefficients_that_made_the_times():
    true = replace(coefficients.CPU, text=0.3, token=2e-4, pair=5e-8, decode=7e-7, network=2e-7)
    jobs = [
        replace(JOB, steps=1, base_native="on"),
        replace(JOB, steps=3),
        replace(JOB, height=1088, width=1920, windows=4, steps=1, upscaler="lanczos"),
        replace(JOB, height=736, width=1280, steps=1, base_native="on"),
    ]
    fitted = fit([(job, cost.estimate(job, true)) for job in jobs], coefficients.CPU)
    for name in (
        "text",
        "token",
        "pair",
        "base_token",
        "base_pair",
        "decode",
        "network",
        "lanczos",
    ):
        assert getattr(fitted, name) == pytest.approx(getattr(true, name), rel=1e-4), name


def test_fit_is_never_negative_and_keeps_what_was_not_measured():
    noisy = [
        (replace(JOB, steps=1), {"denoise": 3.0, "decode": 1.0}),
        (replace(JOB, height=1088, width=1920, windows=4, steps=1), {"denoise": 2.0}),
    ]
    fitted = fit(noisy, coefficients.CPU)
    assert min(fitted.token, fitted.pair, fitted.decode) >= 0
    assert fitted.network == coefficients.CPU.network
    with pytest.raises(ValueError, match="at least one"):
        fit([], coefficients.CPU)


def test_a_finished_run_moves_the_estimate_towards_what_it_took():
    estimator = Estimator(coefficients.CPU)
    before = estimator.estimate(JOB)
    estimator.observe(before, {stage: 3 * seconds for stage, seconds in before.items()})
    factor = sum(estimator.estimate(JOB).values()) / sum(before.values())
    assert factor == pytest.approx(3**0.5)
    estimator.observe(before, {})  # a run without timings changes nothing
    assert sum(estimator.estimate(JOB).values()) == pytest.approx(factor * sum(before.values()))


def test_a_run_that_was_stopped_tells_how_long_the_next_one_takes():
    """Half of it was done after one and a half times what the whole was expected to take."""
    estimator = Estimator(coefficients.CPU)
    before = estimator.estimate(JOB)
    total = sum(before.values())
    estimator.observe_stopped(before, 1.5 * total, 0.5)
    assert sum(estimator.estimate(JOB).values()) == pytest.approx(3 * total)
    estimator.observe_stopped(before, 0.1 * total, 0.9)  # stopped for another reason
    assert sum(estimator.estimate(JOB).values()) == pytest.approx(3 * total)
    estimator.observe_stopped(before, 10 * total, 0.0)
    assert sum(estimator.estimate(JOB).values()) == pytest.approx(9 * total)


def test_a_slower_gpu_does_not_slow_the_processor_beside_it():
    before = cost.estimate(JOB, coefficients.WAN_CUDA)
    after = cost.estimate(JOB, coefficients.WAN_CUDA.scaled(4))
    assert after["denoise"] == pytest.approx(4 * before["denoise"])
    assert after["encode"] == before["encode"]
    estimator = Estimator(coefficients.WAN_CUDA)
    estimator.observe(before, {**before, "encode": 100 * before["encode"]})
    assert estimator.coefficients == coefficients.WAN_CUDA
    slower = Estimator(coefficients.CPU)
    slower.expect(4)
    assert slower.coefficients.encode == 4 * coefficients.CPU.encode


def test_calibration_scales_by_the_probe(monkeypatch):
    monkeypatch.setattr(
        "ultragen.estimates.estimator.probe", lambda device, dtype: 2.5 * coefficients.CPU.probe
    )
    estimator = Estimator(coefficients.CPU)
    estimator.calibrate()
    assert estimator.coefficients.token == pytest.approx(2.5 * coefficients.CPU.token)
    assert estimator.coefficients.device == "cpu"
    asked: list[str] = []
    monkeypatch.setattr(
        "ultragen.estimates.estimator.probe", lambda device, dtype: asked.append(dtype) or 1.0
    )
    Estimator(coefficients.WAN_CUDA).calibrate("float32")
    assert asked == ["float32"]  # of a card without bfloat16


def test_the_probe_takes_a_moment():
    assert 0 < probe("cpu") < 2


def test_gpu_duration_leaves_a_margin_and_excludes_encoding():
    stages = {"denoise": 40.0, "decode": 10.0, "encode": 100.0}
    assert 60 <= cost.gpu_duration(stages) <= 90
    assert cost.fitting_tiers(70) == ["anonymous visitors", "free accounts", "PRO accounts"]
    assert cost.fitting_tiers(150) == ["free accounts", "PRO accounts"]
    assert cost.fitting_tiers(5000) == []
