"""Weights of the 1.3B model that are distilled, tiny, beside a base model that is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from urllib.parse import parse_qsl

import gradio as gr
import numpy as np
import pytest
from commands import ultragen
from wan_files import WanFiles, make_wan

from ultragen.evaluation.rows import Maker, Row
from ultragen.pictures import crop_frames
from ultragen.presets import RESOLUTIONS, WAN, Resolution
from ultragen.runs import choice, compare
from ultragen.runs.calibrate import measure
from ultragen.runs.choice import choose
from ultragen.runs.clip import job
from ultragen.runs.drafts import DraftFrames, estimate_drafts, generate_drafts
from ultragen.runs.loading import Models, load_models
from ultragen.runs.native import generate_native
from ultragen.runs.request import Request
from ultragen.web.components import Layout
from ultragen.web.links import from_link, link
from ultragen.web.results import fill
from ultragen.web.settings import as_request, as_settings
from ultragen.weights import wan
from ultragen.weights.released import load_ultragen
from ultragen.world.heldout import held_out_clips

STEPS, SHIFT = 2, 7.0
ASKED = Request("a calm lake", "544p", num_frames=5, upscaler="lanczos")


@pytest.fixture(scope="module", autouse=True)
def small_clips() -> Iterator[None]:
    small = replace(WAN, base_height=64, base_width=96)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RESOLUTIONS, "544p", Resolution("544p", 96, 160, 90))
        patch.setattr(choice, "WAN", small)
        yield


@pytest.fixture(scope="module")
def teacher_files(tmp_path_factory) -> WanFiles:
    return make_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def student_files(teacher_files, tmp_path_factory) -> WanFiles:
    """The same weights, which say that they are distilled."""
    transformer = load_ultragen(teacher_files.ultragen)
    transformer.register_to_config(distilled_steps=STEPS, distilled_shift=SHIFT)
    folder = tmp_path_factory.mktemp("student")
    transformer.save_pretrained(folder)
    return WanFiles(teacher_files.base, folder)


def load(files: WanFiles) -> Models:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in files.environment.items():
            patch.setenv(name, value)
        return load_models()


@pytest.fixture(scope="module")
def teacher(teacher_files) -> Models:
    return load(teacher_files)


@pytest.fixture(scope="module")
def student(student_files) -> Models:
    return load(student_files)


@pytest.fixture
def passes(student) -> Iterator[dict[str, int]]:
    """Forward passes of both transformers."""
    counted = {"native": 0, "base": 0}

    def count(name: str) -> None:
        counted[name] += 1

    hooks = [
        pipe.transformer.register_forward_hook(lambda *_, name=name: count(name))
        for name, pipe in (("native", student.native), ("base", student.base))
    ]
    yield counted
    for hook in hooks:
        hook.remove()


def test_each_model_has_settings_of_its_own(student, tmp_path):
    student.native.save_pretrained(tmp_path)
    for models in (student, load_models(tmp_path)):
        preset = models.preset
        assert (preset.num_inference_steps, preset.guidance_scale) == (STEPS, 1.0)
        assert (preset.base_num_inference_steps, preset.base_guidance_scale) == (30, 5.0)
        for pipe, steps, shift in ((models.native, STEPS, SHIFT), (models.base, None, 5.0)):
            assert (pipe.config.distilled_steps, pipe.scheduler.config.shift) == (steps, shift)


def test_the_embedded_model_is_distilled_with_its_base():
    preset = choose("embedded").preset
    assert (preset.num_inference_steps, preset.guidance_scale) == (8, 1.0)
    assert (preset.base_num_inference_steps, preset.base_guidance_scale) == (None, None)
    assert Request("a lake").validate(preset).of_base == Request("a lake").validate(preset)


def test_the_clip_that_is_compared_with_is_the_dense_model_s_at_its_best(student, teacher, passes):
    """Byte for byte the one that stands beside weights that are not distilled."""
    found = compare.generate(ASKED, student)
    assert passes == {"native": STEPS, "base": 2 * 30}
    np.testing.assert_array_equal(found.upscaled, compare.generate(ASKED, teacher).upscaled)
    kept = crop_frames(found.native, *RESOLUTIONS["544p"].kept)
    np.testing.assert_array_equal(kept, generate_native(ASKED, student).frames)


def test_what_is_asked_for_the_native_clip_leaves_the_base_clip_alone(student, passes):
    asked = replace(ASKED, num_inference_steps=3, base_native="on", base_num_inference_steps=4)
    found = compare.generate(asked, student)
    assert passes == {"native": 3, "base": 2 * 2 * 4}
    passes.update(native=0, base=0)
    again = Request.from_metadata(json.dumps(found.metadata))
    assert again == asked.validate(student.preset)
    remade = compare.generate(again, student)
    for name in ("native", "upscaled", "base_native"):
        np.testing.assert_array_equal(getattr(found, name), getattr(remade, name))


def test_an_estimate_counts_the_steps_of_each_clip(student, teacher):
    for guided in ("0-1", "0.6-1"):
        asked = replace(ASKED, base_native="on", guidance_interval=guided)
        ours, theirs = (
            models.estimator.estimate(job(asked.validate(models.preset), models))
            for models in (
                replace(student, estimator=teacher.estimator),
                teacher,
            )
        )
        assert ours["denoise"] < 0.1 * theirs["denoise"]
        for stage in ("base_denoise", "base_native_denoise"):
            assert ours[stage] == theirs[stage]


def test_drafts_are_the_dense_model_s_too(student, teacher, passes):
    drafts = []
    for models in (student, teacher):
        items: list = []
        request = ASKED.validate(models.preset)
        generate_drafts(request, 1, models, items.append, Event())
        drafts += [item for item in items if isinstance(item, DraftFrames)]
    ours, theirs = drafts
    np.testing.assert_array_equal(ours.frames, theirs.frames)
    assert ours.request.num_inference_steps == STEPS  # of the large clip
    assert passes["native"] == 0
    one = estimate_drafts(ASKED.validate(student.preset), 1, student)
    coarse = replace(ASKED, base_num_inference_steps=3).validate(student.preset)
    assert one["base_denoise"] == pytest.approx(
        10 * estimate_drafts(coarse, 1, student)["base_denoise"]
    )


def test_an_evaluation_s_rows_of_the_base_model(student, passes):
    maker = Maker(lambda name: student, ASKED)
    case = held_out_clips(1)[0]
    for row, expected in (
        (Row("base", "Base", "base"), {"native": 0, "base": 60}),
        (Row("base-small", "Base", "base", upscaler="lanczos"), {"native": 0, "base": 60}),
        (Row("few", "Few steps", "base", num_inference_steps=3), {"native": 0, "base": 6}),
        (Row("ultragen", "UltraGen", "ultragen"), {"native": STEPS, "base": 0}),
    ):
        passes.update(native=0, base=0)
        list(maker.make(row, [(0, case)]))
        assert passes == expected
    settings = maker.settings([Row("base", "Base", "base")], [case])
    said, *_ = maker.lines([SimpleNamespace(key="base", clips=1)], settings)
    assert "2 steps, guidance 1.0 (the base model: 30 steps, guidance 5.0). In brackets" in said


def test_measuring_takes_few_steps_of_both(student, passes):
    short = {"resolution": "544p", "num_inference_steps": 1, "num_frames": 5}
    measure(student, settings=[short, short])
    assert passes == {"native": 2, "base": 2}


def test_the_page_shows_both_and_gives_them_back(student):
    with gr.Blocks():
        ui = Layout(student.preset, "", [])
    usual = Request("a lake", seed=3).validate(student.preset)
    assert "base model's own: 30" in ui.base_steps.placeholder
    assert "base clip alone" in ui.negative.info
    for request in (usual, replace(usual, base_num_inference_steps=12, base_guidance_scale=2.5)):
        shown = fill(ui, student, request.to_dict())
        assert shown[ui.base_steps] == str(request.base_num_inference_steps)
        values = [shown[component] for component in ui.settings]
        assert as_request(as_settings(values)).validate(student.preset) == request
        address = link(request.to_dict(), None, student)
        settings, problems = from_link(dict(parse_qsl(address[1:])), student)
        assert Request(**settings) == request and not problems


# Commands


@pytest.fixture
def environment(student_files, monkeypatch) -> None:
    for name, value in student_files.environment.items():
        monkeypatch.setenv(name, value)


def made_by(path: Path) -> dict:
    return json.loads(path.read_text())["request"]


def test_a_comparison_is_made_again_from_its_metadata(environment, tmp_path):
    short = ("--frames", 1, "--resolution", "544p", "--upscaler", "lanczos")
    own = ("--base-steps", 3, "--base-guidance", 2)
    first, second = tmp_path / "first", tmp_path / "second"
    assert ultragen("compare", "--prompt", "a lake", *short, *own, "--out", first) == 0
    request = made_by(first / "metadata.json")
    assert (request["num_inference_steps"], request["guidance_scale"]) == (STEPS, 1.0)
    assert (request["base_num_inference_steps"], request["base_guidance_scale"]) == (3, 2.0)
    assert ultragen("compare", "--from", first / "native.mp4", "--out", second) == 0
    assert made_by(second / "metadata.json") == request
    for name in ("native.mp4", "upscaled.mp4"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_errors_name_the_options(environment, tmp_path, capsys):
    words = ("compare", "--prompt", "a lake", "--out", tmp_path / "out")
    assert ultragen(*words, "--base-steps", 0) == 2
    assert "--base-num-inference-steps must be from 1" in capsys.readouterr().err
    assert ultragen(*words, "--base-guidance", 101) == 2
    assert "--base-guidance-scale must be a number" in capsys.readouterr().err


def test_weights_that_are_downloaded_on_the_way_bring_their_steps(
    environment, tmp_path, monkeypatch
):
    """Nothing is known of them before."""
    find = choice.read_distilled
    monkeypatch.setattr(choice, "read_distilled", lambda path: None)

    def told_when_loaded(chosen):
        monkeypatch.setattr(choice, "read_distilled", find)
        return choice.with_own_settings(chosen)

    monkeypatch.setattr("ultragen.runs.loading.with_own_settings", told_when_loaded)
    clip = tmp_path / "clip.mp4"
    short = ("--frames", 1, "--resolution", "544p")
    assert ultragen("generate", "--prompt", "a lake", *short, "--out", clip) == 0
    request = made_by(clip.with_suffix(".json"))
    assert (request["num_inference_steps"], request["guidance_scale"]) == (STEPS, 1.0)
    assert request["base_num_inference_steps"] == 30


@pytest.mark.parametrize("downloaded", [False, True])
def test_a_batch_makes_the_clip_of_generate(environment, tmp_path, monkeypatch, downloaded, capsys):
    """Whether its weights are here, or downloaded by its first run."""
    if downloaded:
        hide_until_downloaded(monkeypatch)
    prompts, short = tmp_path / "p.txt", ("--frames", 1, "--resolution", "544p")
    prompts.write_text("a lake")
    run = ("batch", prompts, *short, "--name", "{seed}-{num_inference_steps}", "--out", tmp_path)
    assert ultragen(*run) == 0
    clip, one = tmp_path / f"0-{STEPS}.mp4", tmp_path / "one.mp4"
    assert ultragen("generate", "--prompt", "a lake", *short, "--out", one) == 0
    assert clip.read_bytes() == one.read_bytes()
    request = made_by(clip.with_suffix(".json"))
    assert request == made_by(one.with_suffix(".json"))
    assert (request["num_inference_steps"], request["guidance_scale"]) == (STEPS, 1.0)
    table = json.loads((tmp_path / "metadata.jsonl").read_text())
    assert table["num_inference_steps"] == STEPS
    capsys.readouterr()
    assert ultragen(*run) == 0
    assert "1/1 0-2 kept" in capsys.readouterr().out


def hide_until_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without the weights, and with a GPU, until they are asked for."""
    local, locate = choice._local, wan.locate_wan

    def download(*arguments, **options):
        monkeypatch.setattr(choice, "_local", local)
        return locate(*arguments, **options)

    monkeypatch.setattr(choice, "_local", lambda: [local()[0], None])
    monkeypatch.setattr(choice, "check_can_run", lambda hardware: None)
    monkeypatch.setattr(wan, "locate_wan", download)
