"""One prompt, one seed, two clips: what is made, written, reported, stopped and refused."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import fake_models
from tiny import tiny_pipeline

from ultragen.estimates import coefficients, cost, estimator
from ultragen.estimates.cost import STAGES, Job
from ultragen.model.windows import auto_windows
from ultragen.presets import ASPECTS, EMBEDDED, EMBEDDED_MODEL, PROMPTS, RESOLUTIONS, WAN
from ultragen.runs import calibrate
from ultragen.runs import write as writing
from ultragen.runs.calibrate import MEASURED, measure
from ultragen.runs.choice import choose
from ultragen.runs.clip import encode_text, job, make_clip
from ultragen.runs.compare import compare, generate
from ultragen.runs.loading import load_models
from ultragen.runs.progress import Cancelled, RunState
from ultragen.runs.request import Request
from ultragen.runs.write import write
from ultragen.video import probe_video, read_video
from ultragen.weights.fingerprint import fingerprint
from ultragen.weights.folders import check_model_files

REQUEST = Request("a calm lake", num_frames=5, seed=3, num_inference_steps=2).validate(EMBEDDED)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    models = fake_models()
    full = Request("a calm lake", num_frames=5, seed=3, num_inference_steps=2, base_native="on")
    return compare(full, models, tmp_path_factory.mktemp("out")), models


def test_both_models_get_the_same_prompt_seed_and_steps(result):
    _, models = result
    (native,), (base, base_native) = models.native.calls, models.base.calls
    assert native["size"] == base_native["size"] == (544, 960)
    assert base["size"] == (288, 512)
    assert native["windows"] == 2
    assert base["windows"] is base_native["windows"] is None
    for call in (native, base, base_native):
        assert (call["prompt"], call["seed"], call["steps"]) == ("a calm lake", 3, 2)
        assert call["noise"] == "spectral"


def test_metadata_says_which_noise_made_the_clips(result, tmp_path):
    """Those from before there was a choice were made with independent noise, and are again."""
    files, _ = result
    assert Request.from_metadata(files.metadata).noise == "spectral"
    old = {"request": {k: v for k, v in files.metadata["request"].items() if k != "noise"}}
    models = fake_models()
    again = compare(Request.from_metadata(old), models, tmp_path)
    assert again.metadata["request"]["noise"] == "independent"
    calls = [*models.native.calls, *models.base.calls]
    assert [call["noise"] for call in calls] == ["independent"] * 3


def test_old_metadata_makes_the_noise_that_it_was_made_from(tmp_path):
    """Drawn as before there was a choice, by the same generator; new runs draw other noise."""
    seen = []
    pipe = tiny_pipeline()

    def look(module, args, kwargs):
        seen.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    pipe.transformer.register_forward_pre_hook(look, with_kwargs=True)
    asked = Request("a lake", num_frames=1, num_inference_steps=1, guidance_scale=1.0, seed=3)
    old = Request.from_metadata(
        {"request": {k: v for k, v in asked.to_dict().items() if k != "noise"}}
    )
    run = RunState(lambda progress: None, threading.Event(), {})
    for request in (old, asked):
        request = request.validate(EMBEDDED)
        text = encode_text(run, pipe, [request])
        make_clip(run, pipe, request, text, (96, 128), "", {"windows": "auto"})
    channels = pipe.transformer.config.out_channels  # before those that say where a latent lies
    shape = (1, channels, *seen[0].shape[2:])
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    assert torch.equal(seen[0][:, :channels], drawn)
    assert not torch.allclose(seen[1], seen[0])


def test_the_files_are_what_browsers_play_at_the_exact_size(result):
    files, _ = result
    for path in (files.native, files.upscaled, files.base_native):
        info = probe_video(path)
        assert (info.width, info.height, info.num_frames, info.fps) == (960, 544, 5, 12)
        assert (info.codec, info.pixel_format) == ("h264", "yuv420p")
    both = probe_video(files.side_by_side)
    assert (both.width, both.height, both.num_frames) == (1920, 544, 5)
    assert {path.name for path in files.native.parent.iterdir()} == {
        "native.mp4", "upscaled.mp4", "side_by_side.mp4", "base_native.mp4", "poster.jpg",
        "metadata.json",
    }  # fmt: skip


def test_the_native_clip_has_detail_that_the_upscaled_one_lacks(result):
    files, _ = result

    def detail(path: Path) -> float:
        water = read_video(path)[:, 400:].astype(float)
        return float(np.abs(np.diff(water, axis=1)).mean())

    assert detail(files.native) > 1.5 * detail(files.upscaled)


def test_metadata_tells_everything_and_reproduces_the_run(result, tmp_path):
    files, models = result
    metadata = json.loads(files.metadata_path.read_text())
    assert metadata == files.metadata
    windows = {"asked": "auto", "even_layers": 2, "odd_layers": 3, "motion": "none"}
    assert metadata["windows"] == windows
    assert metadata["sizes"]["tokens"] == [2, 17, 30]
    assert metadata["model"]["fingerprint"] == models.fingerprint
    assert set(metadata["seconds"]["measured"]) == set(STAGES)
    assert set(metadata["seconds"]["estimated"]) == set(STAGES)
    assert {"torch", "diffusers", "python"} <= set(metadata["versions"])
    again = compare(Request.from_metadata(files.metadata_path), fake_models(), tmp_path)
    assert again.native.read_bytes() == files.native.read_bytes()
    assert again.upscaled.read_bytes() == files.upscaled.read_bytes()


@pytest.mark.parametrize("name", ["720p", "1080p"])
def test_rows_are_cropped_to_the_usual_number(name, tmp_path):
    models = fake_models()
    small = Request("a calm lake", resolution=name, num_frames=1, num_inference_steps=1)
    files = compare(small, models, tmp_path)
    assert models.native.calls[0]["size"] == (RESOLUTIONS[name].height, RESOLUTIONS[name].width)
    info = probe_video(files.native)
    assert (info.height, info.width) == (RESOLUTIONS[name].rows, RESOLUTIONS[name].width)
    assert probe_video(files.side_by_side).width <= 3840


@pytest.mark.parametrize("aspect", ASPECTS)
def test_all_files_have_the_shape_that_was_asked_for(aspect, tmp_path):
    models = fake_models()
    asked = Request(
        "a calm lake", "720p", num_frames=5, num_inference_steps=1, base_native="on",
        aspect=aspect, fps=24,
    )  # fmt: skip
    files = compare(asked, models, tmp_path)
    size = RESOLUTIONS["720p"].shaped(aspect)
    base = EMBEDDED.base_size(aspect)
    assert models.native.calls[0]["size"] == (size.height, size.width)
    assert [call["size"] for call in models.base.calls] == [base, (size.height, size.width)]
    for path in (files.native, files.upscaled, files.base_native):
        info = probe_video(path)
        assert ((info.height, info.width), info.fps) == (size.kept, 24)
    metadata = files.metadata
    assert metadata["sizes"]["files"] == list(size.kept)
    assert metadata["sizes"]["base"] == list(base)
    assert metadata["fps"] == 24
    assert f"{size.kept[1]}×{size.kept[0]}" in metadata["labels"]["native"]
    assert Request.from_metadata(metadata) == asked.validate(EMBEDDED)


def test_a_frame_rate_changes_no_frame(tmp_path):
    asked = Request("a calm lake", num_frames=5, num_inference_steps=1)
    slow, fast = (
        compare(replace(asked, fps=fps), fake_models(), tmp_path).native for fps in (12, 24)
    )
    assert probe_video(slow).duration == pytest.approx(2 * probe_video(fast).duration, abs=0.02)
    apart = read_video(slow).astype(int) - read_video(fast)
    assert apart.shape[0] == 5 and abs(apart).mean() < 1  # of 255: encoded anew


def test_runs_never_share_a_folder(tmp_path):
    request = Request("a calm lake", num_frames=1, num_inference_steps=1)
    folders = {compare(request, fake_models(), tmp_path).native.parent for _ in range(3)}
    assert len(folders) == 3


def test_progress_names_every_stage_and_only_grows():
    reports = []
    clips = generate(REQUEST, fake_models(), reports.append)
    stages = list(dict.fromkeys(report.stage for report in reports))
    assert stages == ["text", "denoise", "decode", "base_denoise", "base_decode", "upscale"]
    fractions = [report.fraction for report in reports]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert 0.5 < fractions[-1] <= 1
    denoising = [(r.step, r.steps) for r in reports if r.stage == "denoise"]
    assert denoising == [(0, 2), (1, 2), (2, 2)]
    assert "step 1 of 2" in reports[2].message
    assert clips.native.dtype == np.uint8


def test_cancelling_stops_within_a_step_and_leaves_no_file(tmp_path):
    models, cancelled = fake_models(delay=0.02), threading.Event()
    request = Request("a calm lake", num_frames=5, num_inference_steps=50)

    def report(progress):
        if progress.step == 3:
            cancelled.set()

    with pytest.raises(Cancelled):
        compare(request, models, tmp_path, report, cancelled)
    assert models.native.steps_done == 4
    assert models.base.calls == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["decode", "base_denoise", "upscale", "encode"])
def test_cancelling_works_in_every_stage(stage, tmp_path):
    models, cancelled, seen = fake_models(), threading.Event(), []

    def report(progress):
        seen.append(progress.stage)
        if progress.stage == stage:
            cancelled.set()

    with pytest.raises(Cancelled):
        compare(REQUEST, models, tmp_path, report, cancelled)
    assert seen[-1] == stage
    assert seen.count(stage) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("damage", "words"), [("nan", "not finite"), ("black", "black")])
def test_results_that_are_no_picture_are_an_error(damage, words, tmp_path):
    with pytest.raises(RuntimeError, match=words):
        compare(REQUEST, fake_models(damage=damage), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_says_what_to_change(monkeypatch):
    models = fake_models()

    def full(latents):
        raise MemoryError

    monkeypatch.setattr(models.native, "decode_stream", full)
    with pytest.raises(RuntimeError, match="smaller resolution"):
        generate(REQUEST, models)


def test_bad_settings_are_refused_before_any_work(tmp_path):
    models = fake_models()
    with pytest.raises(ValueError, match="17 or 21"):
        compare(Request("a calm lake", num_frames=18), models, tmp_path)
    assert models.native.calls == []


def test_an_upscaler_that_fails_does_so_before_the_models_run(monkeypatch, tmp_path):
    models = fake_models()

    def failing(name):
        raise ValueError("The upscaler network can't enlarge a small picture")

    monkeypatch.setattr(models, "upscaler", failing)
    with pytest.raises(ValueError, match="small picture"):
        compare(REQUEST, models, tmp_path)
    assert models.native.calls == models.base.calls == []


def test_a_black_clip_of_an_upscaler_names_it(monkeypatch, tmp_path):
    models = fake_models()
    black = SimpleNamespace(
        name="night", stream=lambda frames, *size: (np.zeros((*size, 3), np.uint8) for _ in frames)
    )
    monkeypatch.setattr(models, "upscaler", lambda name: black)
    with pytest.raises(RuntimeError, match=r"upscaler night gave .* black"):
        compare(REQUEST, models, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    clips = generate(REQUEST, fake_models())
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError, match="taken"):
        write(clips, REQUEST, tmp_path / "taken")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    clips = generate(REQUEST, fake_models())
    encode, calls = writing.encode_video, []

    def full(frames, path, fps, comment):
        calls.append(path.name)
        if len(calls) == 2:
            list(frames)
            raise OSError(f"{path} was not written: the disk is full")
        return encode(frames, path, fps)

    monkeypatch.setattr(writing, "encode_video", full)
    with pytest.raises(OSError, match="disk is full"):
        write(clips, REQUEST, tmp_path)
    assert calls == ["native.mp4", "upscaled.mp4"]
    assert list(tmp_path.iterdir()) == []


# Loading


@pytest.fixture
def model_copy(tmp_path):
    """A folder that looks like a model, with a real weights file."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path / "model"
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "X", "transformer": ["a", "b"]}')
    index = {"weight_map": {"w": "part-1.safetensors"}}
    (folder / "transformer" / "index.json").write_text(json.dumps(index))
    save_file({"w": torch.ones(100)}, folder / "transformer" / "part-1.safetensors")
    return folder


def test_a_whole_model_passes(model_copy):
    check_model_files(model_copy)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("damage", "file", "words"),
    [
        (cut, "transformer/part-1.safetensors", "truncated"),
        (lambda path: path.write_bytes(b"\xff" * 500), "transformer/part-1.safetensors", "corrupt"),
        (lambda path: path.write_bytes(b""), "transformer/part-1.safetensors", "corrupt"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
         "transformer/part-1.safetensors", "git lfs pull"),
        (Path.unlink, "transformer/part-1.safetensors", "missing"),
        (Path.unlink, "model_index.json", "missing"),
        (lambda path: path.write_text("{"), "model_index.json", "corrupt"),
        (shutil.rmtree, "transformer", "missing"),
    ],
)  # fmt: skip
def test_a_damaged_model_names_the_file(model_copy, damage, file, words):
    damage(model_copy / file)
    with pytest.raises(OSError, match=words) as error:
        load_models(model_copy)
    assert Path(file).name in str(error.value)


def test_unknown_models_are_refused(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="no model 'nonsense': choose auto, embedded, wan, or"):
        choose("nonsense")
    monkeypatch.setenv("ULTRAGEN_MODEL", str(tmp_path))
    with pytest.raises(OSError, match=r"model_index\.json"):
        load_models()


# The model itself


@pytest.mark.slow
def test_the_embedded_model_makes_the_same_clips_again(tmp_path):
    if not (EMBEDDED_MODEL / "model_index.json").exists():
        pytest.skip("the embedded model is not there")
    models = load_models("embedded")
    request = Request(
        "a calm lake", num_frames=5, seed=4, num_inference_steps=1, guidance_scale=1.0
    )
    first = compare(request, models, tmp_path)
    again = compare(Request.from_metadata(first.metadata_path), models, tmp_path)
    assert first.native.read_bytes() == again.native.read_bytes()
    assert first.upscaled.read_bytes() == again.upscaled.read_bytes()
    info = probe_video(first.native)
    assert (info.width, info.height, info.num_frames) == (960, 544, 5)
    assert first.metadata["model"]["fingerprint"] == fingerprint(EMBEDDED_MODEL)
    assert models.unknown_words("a calm dragon lake") == ["dragon"]
    assert not [words for prompt in PROMPTS if (words := models.unknown_words(prompt))]


def test_measuring_gives_coefficients_that_explain_the_runs():
    runs = MEASURED["embedded"][:3]
    short = [{**run, "num_frames": 5, "resolution": "544p"} for run in runs]
    measured = measure(fake_models(delay=0.01), settings=short)
    assert measured.device == "cpu"
    assert all(
        value >= 0 for name, value in vars(measured).items() if name not in ("device", "dtype")
    )
    assert measured.encode > 0
    assert measured.decode > 0


@pytest.mark.parametrize("device, times", [("cpu", 1), ("cuda", 2)])
def test_on_a_gpu_the_second_run_of_a_size_counts(device, times, monkeypatch):
    made = []

    def compare(request, models, folder):
        made.append(request.num_frames)
        longer = 0.1 if made.count(request.num_frames) == 1 else 0  # as plans and kernels take
        seconds = {"encode": longer + 1e-9 * request.num_frames, "denoise": longer + 0.1}
        return SimpleNamespace(metadata={"seconds": {"measured": seconds}})

    monkeypatch.setattr(calibrate, "compare", compare)
    monkeypatch.setattr(calibrate, "probe", lambda *_: 1.0)
    monkeypatch.setattr(calibrate, "job", lambda request, models: job(request, fake_models()))
    models = replace(fake_models(), device=device)
    short = [{"resolution": "544p", "num_frames": frames} for frames in (5, 9, 13)]
    found = measure(models, settings=short)
    assert made == [frames for frames in (5, 9, 13) for _ in range(times)]
    assert (found.encode < 1e-9) == (times == 2)


@pytest.mark.parametrize("preset", [EMBEDDED, WAN], ids=lambda preset: preset.name)
def test_the_measured_runs_are_enough_to_tell_the_coefficients(preset):
    """Made-up coefficients come back from what the runs would take by them; and on the GPU that
    they are for, the 1.3B model's runs take less than four minutes."""
    true = coefficients.coefficients(preset.name, "cuda")
    runs = []
    for settings in MEASURED[preset.name]:
        request = Request("a lake", guidance_scale=1.0, **settings).validate(preset)
        grid = request.token_grid(preset)
        windows = auto_windows(*grid, (17.0, 30.0)) if request.windows == "auto" else 8
        work = Job(
            request.size.height,
            request.size.width,
            preset.base_height,
            preset.base_width,
            request.frames,
            windows,
            request.num_inference_steps,
            1,
            request.upscaler,
            request.base_native,
            preset.pixels_per_token,
            0.2,
        )
        runs.append((work, cost.estimate(work, true)))
    assert sum(sum(seconds.values()) for _, seconds in runs) < 240
    fitted = estimator.fit(runs[1:], coefficients.CPU)
    for name in ("text", "token", "pair", "base_token", "base_pair", "decode", "network"):
        assert getattr(fitted, name) == pytest.approx(getattr(true, name), rel=1e-3), name
