"""`plan`: what many clips, or a training, will take."""

from __future__ import annotations

import json

import pytest
from commands import one_line, ultragen
from paths import ROOT

from ultragen.cli import plan as plan_command
from ultragen.cli.plan import _job, _preset
from ultragen.estimates.coefficients import WAN_CUDA
from ultragen.estimates.fleet import clip_seconds, clips_on, training_on, training_step
from ultragen.hardware import Hardware
from ultragen.presets import PRESETS
from ultragen.runs.request import Request

SQUARE = ("--resolution", "544p", "--aspect", "1:1")
GPU = Hardware("cuda", "NVIDIA L40S", 44 * 2**30, True)


def planned(capsys, *words: object) -> dict:
    assert ultragen("plan", *map(str, words), "--json") == 0
    return json.loads(capsys.readouterr().out)


def job(preset: str, layout: str = "released", **settings):
    request = Request(prompt="a lake", **settings).validate(PRESETS[preset])
    return _job(request, PRESETS[preset], layout)


# What is counted


def test_clips_are_shared_out_and_each_gpu_starts_once():
    assert clips_on(1, {10.0: 8}, 30).seconds == 30 + 80
    assert clips_on(4, {10.0: 8}, 30).seconds == 30 + 20
    assert clips_on(3, {10.0: 8}, 30).seconds == 30 + 30  # a GPU has three of them
    assert clips_on(64, {10.0: 8}, 30).seconds == 30 + 10
    assert clips_on(2, {10.0: 2, 20.0: 2}, 0).seconds == 30
    assert clips_on(4, {10.0: 8}, 30, 2).seconds == 30 + 40
    assert clips_on(4, {10.0: 8}, 30).gpu_hours == pytest.approx(4 * 50 / 3600)
    assert clips_on(4, {10.0: 8}, 30).energy(700) == pytest.approx(4 * 50 / 3600 * 0.7)


@pytest.mark.parametrize(
    ("resolution", "frames", "measured"), [("1080p", 81, 204.3), ("4k", 29, 394.1)]
)
def test_clips_take_what_was_measured(resolution, frames, measured):
    """Sums of text, denoising, decoding and writing in docs/hardware.md, H100."""
    clip = job("wan", resolution=resolution, num_frames=frames)
    assert clip_seconds(clip, WAN_CUDA) == pytest.approx(measured, rel=0.15)


def test_training_takes_what_was_measured():
    """docs/training-wan.md, one and two H200s; windows as they were there."""
    measured = json.loads((ROOT / "docs/benchmarks/whole-training-two-gpus.json").read_text())
    one, two = measured["stages"]["several-gpus"]["processes"].values()
    clip = job("wan", "paper", num_inference_steps=1, guidance_scale=1)
    assert training_step(clip, WAN_CUDA, 1) == pytest.approx(one["step_seconds"], rel=0.15)
    assert training_step(clip, WAN_CUDA, 2) == pytest.approx(two["step_seconds"], rel=0.15)
    ratio = (
        training_on(1, 1000, clip, WAN_CUDA).seconds / training_on(2, 1000, clip, WAN_CUDA).seconds
    )
    assert ratio == pytest.approx(1.94, rel=0.02)
    large = {"resolution": "4k", "num_frames": 29, "windows": 4, "num_inference_steps": 1}
    step = training_step(job("wan", "paper", guidance_scale=1, **large), WAN_CUDA, 1)
    assert step == pytest.approx(12.57, rel=0.15)


def test_a_clip_without_weights_costs_what_the_models_say():
    """The same as the estimate of the page, which has the models."""
    from ultragen.runs.clip import job as job_of
    from ultragen.runs.loading import load_models

    models = load_models("embedded")
    for settings in (
        {},
        {"resolution": "1080p", "windows": 6},
        {"aspect": "9:16"},
        {"cache": "taylor-2", "guidance_scale": 3.0},
        {"resolution": "4k", "windows": 8, "guidance_scale": 3.0},
        {"resolution": "2k", "cache": "taylor-2", "num_inference_steps": 20},
    ):
        request = Request(prompt="a lake", **settings).validate(models.preset)
        assert _job(request, _preset("embedded"), "released") == job_of(request, models)


# The command


def test_several_gpus_make_each_clip(capsys):
    """Twice as fast for nearly twice the GPUs: text, some of the decoding and writing stay."""
    words = ("--prompts", 8, "--card", "h100", "--gpus-per-clip")
    one, two = (planned(capsys, *words, count) for count in (1, 2))
    assert [row["gpus"] for row in two["plan"]] == [2, 4, 8, 16, 32, 64]
    seconds = [float(found["clips"].split(", ")[1].split()[0]) for found in (one, two)]
    assert 1.8 < seconds[0] / seconds[1] < 2
    hours = [found["plan"][row]["hours"] for found, row in ((one, 1), (two, 0))]  # two GPUs
    assert 1 < hours[1] / hours[0] < 1.1


def test_groups_of_gpus_that_do_not_come_out_even(capsys):
    assert ultragen("plan", "--prompts", 8, "--gpus", 3, "--gpus-per-clip", 2) == 2
    assert "--gpus 3 are no groups of 2" in one_line(capsys)
    assert ultragen("plan", "--train-clips", 8, "--gpus-per-clip", 2) == 2
    assert "leave --gpus-per-clip out" in one_line(capsys)


@pytest.mark.parametrize(
    ("words", "most", "told"),
    [
        (("--model", "embedded"), 5, "6 processes are too many for 5 attention heads: start up to"),
        (("--model", "wan"), 12, "13 processes are too many for 12 attention heads: start up to"),
        (("--model", "wan", *SQUARE), 12, "13 processes are too many for 12 attention heads"),
        (("--model", "wan", *SQUARE, "--guidance", 1), 9, "34 × 34 tokens, which gives work to 9:"),
    ],
    ids=str,
)
def test_no_more_gpus_make_a_clip_than_can(capsys, words, most, told):
    """As `generate` under torchrun refuses them, before it counts anything."""
    words = ("plan", "--prompts", 8, "--card", "h100", *words, "--gpus-per-clip")
    assert ultragen(*words, most) == 0
    capsys.readouterr()
    assert ultragen(*words, most + 1) == 2
    assert told in one_line(capsys)


def test_an_odd_number_shares_out_one_pass_after_the_other(capsys):
    """Halves of an even one have a pass each, and so fewer strips to cut."""
    words = ("plan", "--prompts", 8, "--card", "h100", *SQUARE, "--gpus-per-clip")
    assert ultragen(*words, 10) == 0
    capsys.readouterr()
    assert ultragen(*words, 11) == 2
    assert "11 processes are too many for a grid of 34 × 34 tokens" in one_line(capsys)


def test_a_table_of_many_gpus(capsys):
    assert ultragen("plan", "--prompts", "946", "--resolution", "1080p", "--card", "h100") == 0
    told, table = capsys.readouterr().out.split("\n\n")
    assert "NVIDIA H100" in told and "946" in told and "GB of MP4" in told
    assert "not known" in told
    lines = table.splitlines()
    assert lines[0].split() == ["GPUs", "hours", "GPU", "hours"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "4", "8", "16", "32", "64"]
    hours = [float(line.split()[1]) for line in lines[1:]]
    assert hours[0] / hours[3] == pytest.approx(8, rel=0.02)


def test_a_file_is_counted_clip_by_clip(capsys, tmp_path):
    file = tmp_path / "prompts.csv"
    file.write_text("prompt,num_frames\na lake,17\na hill,17\na sea,81\n")
    mixed = planned(capsys, "--prompts", file, "--num-seeds", 2, "--gpus", 1, "--card", "h100")
    assert mixed["clips"].startswith("6, ")
    short, long = (
        planned(capsys, "--prompts", count, "--frames", frames, "--gpus", 1, "--card", "h100")
        for count, frames in ((4, 17), (2, 81))
    )
    start = 30 / 3600
    hours = [found["plan"][0]["hours"] - start for found in (mixed, short, long)]
    assert hours[0] == pytest.approx(hours[1] + hours[2])


def test_a_card_that_tells_its_limit(capsys, monkeypatch):
    monkeypatch.setattr("ultragen.hardware.find_hardware", lambda: GPU)
    monkeypatch.setattr("ultragen.estimates.estimator.probe", lambda *asked: 2 * WAN_CUDA.probe)
    monkeypatch.setattr(plan_command, "_watts", lambda device: 350.0)
    here = planned(capsys, "--prompts", 10, "--gpus", 2)
    there = planned(capsys, "--prompts", 10, "--gpus", 2, "--card", "h100")
    assert "NVIDIA L40S" in here["on"] and "350 W" in here["energy"]
    [row] = here["plan"]
    assert row["kilowatt_hours"] == pytest.approx(row["gpu_hours"] * 0.35)
    assert 1.7 < row["hours"] / there["plan"][0]["hours"] < 2
    assert there["plan"][0]["kilowatt_hours"] is None


def test_a_training(capsys):
    found = planned(capsys, "--train-clips", 42_000, "--epochs", 1, "--gpus", 1, "--card", "h100")
    # 80 in docs/training-wan.md, for the paper's clips without an optimiser.
    assert found["plan"][0]["gpu_hours"] == pytest.approx(80, rel=0.15)
    assert found["disk"].startswith("952 GB of latents")
    assert "dataset" in found["before"]


def test_without_a_gpu_machines_are_counted(capsys):
    assert ultragen("plan", "--prompts", "5", "--model", "embedded", "--gpus", "2") == 0
    assert "machines" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "--prompts, a number or a file, or else --train-clips"),
        (("--prompts", "5", "--train-clips", "3"), "or else --train-clips"),
        (("--prompts", "none.txt"), "neither a number nor a file"),
        (("--prompts", "0"), "give 1 to"),
        (("--prompts", "5", "--model", "sora"), "choose wan or t3-4k or embedded"),
        (("--prompts", "5", "--layout", "dense"), "choose released or paper"),
        (("--prompts", "5", "--card", "tpu"), "choose here or h100"),
        (("--prompts", "5", "--card", "here"), "choose --card h100"),
        (("--prompts", "5", "--frames", "18"), "frames"),
        (("--train-clips", "5", "--steps", "4"), "neither --steps nor --guidance"),
        (("--train-clips", "5", "--model", "embedded"), "docs/training.md"),
    ],
)
def test_bad_input_is_one_line(capsys, words, told):
    assert ultragen("plan", *words) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_lines_that_batch_would_refuse_are_named(capsys, tmp_path):
    file = tmp_path / "prompts.csv"
    file.write_text("prompt,num_frames\na lake,17\na hill,18\n")
    assert ultragen("plan", "--prompts", str(file)) == 2
    assert "line 3" in capsys.readouterr().err
