"""The command line: results, errors as one line, and nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from commands import ultragen
from fakes import fake_models
from paths import ROOT
from PIL import Image

from ultragen.cli import console, train
from ultragen.runs import loading
from ultragen.runs.loading import Models
from ultragen.runs.request import Request
from ultragen.sampling import guidance
from ultragen.video import probe_video

PROMPT = "a calm lake under snowy mountains at sunset, the camera pans right"
SMALL = ("--frames", 5, "--steps", 2)


@pytest.fixture
def fake(monkeypatch) -> Models:
    made = fake_models()
    monkeypatch.setattr(loading, "load_models", lambda name=None: made)
    return made


def one_line(capsys) -> str:
    """What a failed command said: a single line, and nothing on stdout."""
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("ultragen: ")
    assert printed.err.count("\n") == 1
    return printed.err


# Start


def test_help_is_quick_and_lists_the_commands():
    """Torch alone takes seconds to import."""
    code = (
        "import sys; sys.argv = ['ultragen', '--help']\n"
        "from ultragen import cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: code = end.code\n"
        "assert code == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for command in ("generate", "compare", "scenes", "train", "assemble", "sheets", "measure"):
        assert f"\n  {command} " in ended.stdout


def test_without_a_command_the_help_is_shown():
    ended = subprocess.run([sys.executable, "-m", "ultragen"], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Commands:" in ended.stdout


# Results


def test_generate(fake, tmp_path, capsys):
    out = tmp_path / "new" / "lake.mp4"
    assert ultragen("generate", "--prompt", PROMPT, *SMALL, "--seed", 3, "--out", out) == 0
    info = probe_video(out)
    assert (info.height, info.width, info.num_frames, info.codec) == (544, 960, 5, "h264")
    assert sorted(path.name for path in out.parent.iterdir()) == ["lake.json", "lake.mp4"]
    request = Request.from_metadata(out.with_suffix(".json"))
    assert (request.prompt, request.seed, request.num_inference_steps) == (PROMPT, 3, 2)
    # The base model was not asked for, and did not run.
    assert fake.native.calls[0]["seed"] == 3
    assert fake.base.calls == []
    printed = capsys.readouterr().out
    assert "Native clip: denoising" in printed and str(out) in printed
    assert "Base clip" not in printed
    seconds = json.loads(out.with_suffix(".json").read_text())["seconds"]
    assert set(seconds["measured"]) == {"text", "denoise", "decode", "encode"}
    assert seconds["loading"] >= 0
    assert seconds["total"] == pytest.approx(sum(seconds["measured"].values()))


def test_generate_keeps_the_usual_rows(fake, tmp_path):
    out = tmp_path / "lake.mp4"
    code = ultragen(
        "generate", "--prompt", PROMPT, *SMALL, "--resolution", "720P", "--windows", 4,
        "--guidance", 1.5, "--negative-prompt", "rain", "--out", out,
    )  # fmt: skip
    assert code == 0
    assert (probe_video(out).height, probe_video(out).width) == (720, 1280)
    request = Request.from_metadata(out.with_suffix(".json"))
    assert (request.windows, request.guidance_scale, request.negative_prompt) == (4, 1.5, "rain")


def test_compare(fake, tmp_path, capsys):
    out = tmp_path / "run"
    code = ultragen("compare", "--prompt", PROMPT, *SMALL, "--upscaler", "lanczos", "--out", out)
    assert code == 0
    names = {path.name for path in out.iterdir()}
    assert names == {
        "native.mp4",
        "upscaled.mp4",
        "side_by_side.mp4",
        "metadata.json",
        "poster.jpg",
    }
    assert probe_video(out / "side_by_side.mp4").width == 1920
    metadata = json.loads((out / "metadata.json").read_text())
    assert metadata["files"]["native"] == "native.mp4"
    assert metadata["request"]["upscaler"] == "lanczos"
    printed = capsys.readouterr().out
    for stage in ("Native clip: denoising", "Base clip: upscaling", "Writing the files"):
        assert stage in printed


def test_compare_with_the_base_model_at_full_size(fake, tmp_path):
    out = tmp_path / "run"
    assert ultragen("compare", "--prompt", PROMPT, *SMALL, "--base-native", "--out", out) == 0
    assert (out / "base_native.mp4").exists()


def test_guidance_runs_on_a_second_device(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(guidance, "check_second", lambda device, first: None)
    guided = (*SMALL, "--guidance", 3)
    run = ("generate", "--prompt", PROMPT, *guided, "--out", tmp_path / "lake.mp4")
    assert ultragen(*run) == 0
    both = json.loads((tmp_path / "lake.json").read_text())["seconds"]["estimated"]["denoise"]
    assert fake.native.guidance_device is None
    assert json.loads((tmp_path / "lake.json").read_text())["machine"]["guidance_device"] is None
    assert ultragen(*run, "--guidance-device", "cuda:1", "--overwrite") == 0
    metadata = json.loads((tmp_path / "lake.json").read_text())
    assert metadata["seconds"]["estimated"]["denoise"] < 0.6 * both
    assert metadata["machine"]["guidance_device"] == "cuda:1"
    assert fake.native.guidance_device == fake.base.guidance_device == "cuda:1"


@pytest.mark.parametrize("device, said", [("cpu", "no second GPU"), ("cuda:7", "no device")])
def test_guidance_on_a_device_that_saves_nothing(fake, tmp_path, capsys, device, said):
    """It is refused before anything is loaded."""
    run = ("generate", "--prompt", PROMPT, *SMALL, "--out", tmp_path / "lake.mp4")
    assert ultragen(*run, "--guidance-device", device) == 2
    assert said in one_line(capsys)
    assert fake.native.calls == []


def test_guidance_stays_where_the_models_take_turns(fake, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(guidance, "check_second", lambda device, first: None)
    fake.placement = "in turn"
    out = ("--guidance-device", "cuda:1", "--out", tmp_path / "run")
    assert ultragen("compare", "--prompt", PROMPT, *SMALL, *out) == 2
    assert "Leave out --guidance-device" in one_line(capsys)
    assert fake.native.calls == []


def test_earlier_results_stay_unless_told_otherwise(fake, tmp_path, capsys):
    run = ("compare", "--prompt", PROMPT, *SMALL, "--out", tmp_path)
    assert ultragen(*run) == 0
    before = (tmp_path / "metadata.json").read_text()
    capsys.readouterr()
    assert ultragen(*run, "--seed", 5) == 1
    assert "--overwrite" in one_line(capsys)
    assert (tmp_path / "metadata.json").read_text() == before
    assert ultragen(*run, "--seed", 5, "--overwrite") == 0
    assert Request.from_metadata(tmp_path / "metadata.json").seed == 5


def test_unknown_words_are_named(fake, tmp_path, capsys):
    words = "a calm zorgon lake"
    assert ultragen("generate", "--prompt", words, *SMALL, "--out", tmp_path / "a.mp4") == 0
    assert "does not know: zorgon" in capsys.readouterr().err


def test_sheets_go_on_where_they_stopped(fake, tmp_path, capsys):
    out, pieces = tmp_path / "docs", tmp_path / "pieces"
    run = ("sheets", "--out", out, "--pieces", pieces, "--count-1080p", 0, "--count-544p")
    assert ultragen(*run, 1) == 0
    assert ultragen(*run, 2) == 0
    assert len(fake.native.calls) == 2  # the first picture was there already
    assert [path.name for path in out.iterdir()] == ["contact_sheet_544p.jpg"]
    assert "contact_sheet_544p.jpg" in capsys.readouterr().out
    # A frame of another seed is another picture.
    assert ultragen(*run, 1, "--seed", 1) == 0
    assert len(fake.native.calls) == 3


def test_measure_prints_coefficients(fake, monkeypatch, capsys):
    from ultragen.estimates.coefficients import CPU
    from ultragen.runs import calibrate

    monkeypatch.setattr(calibrate, "measure", lambda models, report: CPU)
    assert ultragen("measure") == 0
    assert json.loads(capsys.readouterr().out)["token"] == CPU.token


# The procedural world


def test_scenes(tmp_path, capsys):
    out = tmp_path / "scenes"
    run = ("scenes", "--count", 2, "--frames", 2, "--resolution", "64x48", "--seed", 7)
    assert ultragen(*run, "--out", out) == 0
    names = {path.name for path in out.iterdir()}
    clips = ["scene-000007.mp4", "scene-000008.mp4"]
    assert names == {*clips, "captions.json", "contact_sheet.jpg"}
    info = probe_video(out / clips[0])
    assert (info.height, info.width, info.num_frames) == (48, 64, 2)
    entries = json.loads((out / "captions.json").read_text())
    assert [entry["file"] for entry in entries] == clips
    assert all(len(entry["caption"].split()) >= 8 for entry in entries)
    assert entries[0]["attributes"]["camera"]
    assert np.asarray(Image.open(out / "contact_sheet.jpg")).std() > 5


def test_the_benchmark_of_the_world(capsys, monkeypatch):
    from ultragen.world import preview

    measure = preview.benchmark
    monkeypatch.setattr(preview, "benchmark", partial(measure, 0.0, (32, 48, 2)))
    assert ultragen("scenes", "--benchmark") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["clips_per_second"] > 0
    assert found["device"] and found["torch"]


@pytest.mark.parametrize(
    ("resolution", "size"),
    [("720p", (720, 1280)), ("1080P", (1080, 1920)), ("512x288", (288, 512)), ("64×32", (32, 64))],
)
def test_frame_sizes(resolution, size):
    assert train.frame_size(resolution) == size


@pytest.mark.parametrize("resolution", ["", "big", "0x0", "511x288", "512x287", "16x16", "9x99999"])
def test_frame_sizes_that_a_video_can_not_have(resolution):
    with pytest.raises(ValueError, match="512x288"):
        train.frame_size(resolution)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--prompt", " "), ["empty", "describe"]),
        (("--prompt", "x" * 10_000), ["10,000"]),
        (("--prompt", "a\x07b"), ["U+0007"]),
        (("--prompt", PROMPT, "--resolution", "8k"), ["8k", "544p", "4k"]),
        (("--prompt", PROMPT, "--frames", 18), ["--frames", "17", "21"]),
        (("--prompt", PROMPT, "--windows", 3), ["3", "2 or 4"]),
        (("--prompt", PROMPT, "--windows", 400), ["401", "up to 16"]),
        (("--prompt", PROMPT, "--steps", 0), ["--steps", "1 to 100"]),
        (("--prompt", PROMPT, "--steps", 10_000), ["--steps", "100"]),
        (("--prompt", PROMPT, "--guidance", "nan"), ["--guidance", "100"]),
        (("--prompt", PROMPT, "--guidance", 1e9), ["--guidance", "100"]),
        (("--prompt", PROMPT, "--seed", -1), ["seed"]),
        (("--prompt", PROMPT, "--seed", "text"), ["--seed", "integer"]),
        (("--prompt", PROMPT, "--out", "clip.avi"), [".mp4"]),
        (("--prompt", PROMPT, "--promp", "x"), ["--promp", "--help"]),
        ((), ["--prompt", "--help"]),
    ],
)
def test_bad_settings_are_one_line_that_names_the_way_out(arguments, words, capsys, tmp_path):
    """Before any model is loaded."""
    out = () if "--out" in arguments else ("--out", tmp_path / "clip.mp4")
    assert ultragen("generate", *arguments, *out) == 2
    line = one_line(capsys)
    assert all(word in line for word in words), line
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_upscaler(capsys, tmp_path):
    code = ultragen("compare", "--prompt", PROMPT, "--upscaler", "no.pth", "--out", tmp_path / "a")
    assert code == 2
    assert "no.pth" in one_line(capsys)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("paint",), ["paint"]),
        (("scenes", "--count", 0), ["--count"]),
        (("scenes", "--resolution", "7x7"), ["7x7", "512x288"]),
        (("train", "everything", "--out", "x"), ["everything", "autoencoder"]),
        (("train", "base", "--out", "x", "--minutes", 0), ["minutes"]),
        (("train", "ultragen", "--out", "x"), ["train base"]),
        (("train", "base", "--out", "x", "--anchor", 0.1), ["--anchor", "autoencoder", "base"]),
        (("train", "ultragen", "--out", "x", "--freeze-text"), ["--freeze-text", "train base"]),
        (("train", "ultragen", "--out", "x", "--clauses"), ["--clauses", "train base"]),
        (
            ("train", "base", "--out", "x", "--teacher-guidance", 3),
            ["--teacher-guidance", "`train base-distill` and `train distill`"],
        ),
        (("train", "distill", "--out", "x", "--teacher-guidance", 0.5), ["--teacher-guidance"]),
        (("train", "distill", "--out", "x", "--render-on", "cuda:1"), ["--render-on", "ultragen"]),
        (
            ("train", "base", "--out", "x", "--render-on", "cuda:1", "--render-share", "0.3"),
            ["--render-share", "leave it out"],
        ),
        (("assemble", "x", "y"), ["vae", "train autoencoder"]),
    ],
)
def test_bad_input_of_other_commands(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ultragen(*arguments) == 2
    line = one_line(capsys)
    assert all(word in line for word in words), line


def test_a_model_that_is_not_there(capsys, tmp_path):
    run = ("generate", "--prompt", PROMPT, "--out", tmp_path / "a.mp4", "--model")
    assert ultragen(*run, tmp_path / "nowhere") == 2
    assert "nowhere" in one_line(capsys)
    assert ultragen(*run, tmp_path) == 1
    assert "model_index.json is missing" in one_line(capsys)


# Output folders


def test_a_file_in_place_of_the_folder(fake, capsys, tmp_path):
    (tmp_path / "taken").write_text("mine")
    for out in (tmp_path / "taken", tmp_path / "taken" / "below"):
        assert ultragen("compare", "--prompt", PROMPT, *SMALL, "--out", out) == 1
        assert "choose" in one_line(capsys)
    assert (tmp_path / "taken").read_text() == "mine"
    assert fake.native.calls == []


def test_what_fails_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load_models", lambda name=None: fake_models(damage="black"))
    out = tmp_path / "deep" / "run"
    assert ultragen("compare", "--prompt", PROMPT, *SMALL, "--out", out) == 1
    assert "black" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(fake, tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError("native.mp4 was not written: the disk is full")

    from ultragen.runs import write

    monkeypatch.setattr(write, "encode_video", full)
    (tmp_path / "kept.txt").write_text("mine")
    assert ultragen("compare", "--prompt", PROMPT, *SMALL, "--out", tmp_path) == 1
    assert "disk is full" in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_errors_of_ours_keep_their_traceback():
    def broken():
        raise TypeError("a mistake")

    with pytest.raises(TypeError):
        console.run(broken)


# Stopping


def test_stopping_leaves_nothing(tmp_path, monkeypatch, capsys):
    made = fake_models()

    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    made.native.decode_stream = interrupted
    monkeypatch.setattr(loading, "load_models", lambda name=None: made)
    out = tmp_path / "run"
    assert ultragen("compare", "--prompt", PROMPT, *SMALL, "--out", out) == 130
    assert "Stopped" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_control_c_ends_a_process(tmp_path):
    """A real signal, as a terminal sends it, while scenes are written."""
    out = tmp_path / "scenes"
    command = ("scenes", "--count", "1000", "--resolution", "64x48", "--out", str(out))
    process = subprocess.Popen(
        [sys.executable, "-m", "ultragen", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # As in a terminal, even where the tests run in the background, which ignores the signal.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list(out.glob(".unfinished-*/*.mp4")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Stopped" in said and "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_control_c_within_code_from_a_string_ends_like_any_other(tmp_path):
    """The libraries run such code while they are imported."""
    (tmp_path / "interrupted.py").write_text(
        "from ultragen import cli\n"
        "from ultragen.cli import entry\n"
        "entry.app = lambda *arguments, **options: exec('raise KeyboardInterrupt')\n"
        "cli.main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "interrupted", "scenes"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (130, "ultragen: Stopped.\n")


# Training


@pytest.mark.slow
def test_a_tiny_training_becomes_a_model(tmp_path, capsys):
    """Every stage through the command line, then the clip that the result makes."""
    out, pipeline = tmp_path / "training", tmp_path / "model"
    for stage in ("autoencoder", "base", "ultragen", "upscaler"):
        run = ("train", stage, "--out", out, "--tiny", "--minutes", 5, "--max-steps", 2)
        assert ultragen(*run) == 0
    assert ultragen("assemble", out / "model", pipeline, "--tiny") == 0
    assert "Written" in capsys.readouterr().out
    assert ultragen("assemble", out / "model", pipeline, "--tiny") == 1
    assert "--overwrite" in capsys.readouterr().err
    assert ultragen("assemble", out / "model", pipeline, "--tiny", "--overwrite") == 0
    clip = tmp_path / "clip.mp4"
    run = ("generate", "--prompt", PROMPT, *SMALL, "--model", pipeline, "--out", clip)
    assert ultragen(*run) == 0
    assert probe_video(clip).num_frames == 5
    # And on from there, with the other stages' weights.
    more = ("--out", tmp_path / "more", "--tiny", "--max-steps", 1, "--start-from", pipeline)
    assert ultragen("train", "ultragen", *more) == 0
    assert (tmp_path / "more" / "model" / "transformer").is_dir()


@pytest.mark.parametrize(("given", "learnt"), [((), 3), (("--teacher-guidance", 2), 2)])
def test_the_teachers_guidance(monkeypatch, tmp_path, given, learnt):
    seen = {}

    def train(stage, config, options, start):
        seen.update(options.distill)
        return tmp_path

    monkeypatch.setattr("ultragen.training.recipe.train", train)
    assert ultragen("train", "distill", "--out", tmp_path, *given) == 0
    assert seen["guidance_scale"] == learnt


def test_training_without_its_packages(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    assert ultragen("train", "base", "--out", tmp_path) == 1
    assert "ultragen[train]" in one_line(capsys)
