"""`evaluate`: resuming, and what the table, the JSON and the sheet hold."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import ultragen
from evaluations import ROWS, RUN, TABLE1, numbers, save_classifier
from fakes import fake_models
from PIL import Image
from torch import nn

from ultragen.cli import console
from ultragen.evaluation import rows as row_module
from ultragen.evaluation.evaluate import RESULTS, evaluate
from ultragen.evaluation.instruments import load_instruments
from ultragen.evaluation.rows import Maker, Row, copy_clip, rows_of
from ultragen.evaluation.store import Store
from ultragen.presets import EMBEDDED, Resolution
from ultragen.runs import loading, request
from ultragen.runs.loading import Models
from ultragen.runs.request import Request
from ultragen.training.build import TINY_SIZE, build_pipeline
from ultragen.world.heldout import held_out_clips


def test_evaluate_writes_a_table_json_and_a_sheet(fake, tmp_path, capsys):
    out = tmp_path / "table1"
    assert ultragen(*RUN, out) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    text = (out / "table.md").read_text()
    assert text in printed and all(name in printed for name in RESULTS)
    lines = text.splitlines()
    head = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert re.fullmatch(r"HD-FVD ↓ \(attribute classifier \w{8}\)", head[1])
    assert head[2:] == ["HD-MSE", "HD-LPIPS", "CLIP ↑", "temporal ↑", "prompt ↑", "s a clip"]
    assert [line.split("|")[1].strip() for line in lines[2:7]] == [row.title for row in TABLE1]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:7]]
    interval = re.compile(r"\d+\.\d+ \[-?\d+\.\d+, \d+\.\d+\]")
    for row in cells:
        assert all(interval.fullmatch(row[i]) for i in (1, 2, 5, 6)), row
        assert row[3] == row[4] == "–"
    assert cells[-1][-1] == "–" and all(re.fullmatch(r"\d+\.\d\d", row[-1]) for row in cells[:-1])
    assert "2 clips of 5 frames a row at tiny" in text
    assert "Not measured, for want of a network: HD-LPIPS, CLIP score" in text
    assert "| time of day | terrain |" in text

    content = json.loads((out / "results.json").read_text())
    assert [row["key"] for row in content["rows"]] == list(ROWS)
    assert content["request"]["num_frames"] == 5 and content["request"]["seed"] == 0
    assert content["models"] == {"evaluated": fake.fingerprint}
    assert content["networks"]["hd_fvd"][0] in head[1]
    assert [clip["scene"] for clip in content["clips"]] == [600_000, 600_001]
    assert content["reference_scenes"] == [700_000, 700_001]
    assert content["versions"]["torch"] == torch.__version__
    seconds = [row["seconds"] for row in content["rows"]]
    assert seconds.pop() is None and min(seconds) > 0
    first = content["rows"][0]["hd_mse"]
    assert first["low"] <= first["value"] <= first["high"]

    sheet = np.asarray(Image.open(out / "contact_sheet.jpg"))
    assert sheet.shape[1] > 2 * 480 and sheet.std() > 5


def test_a_stopped_evaluation_goes_on(fake, tmp_path, monkeypatch, capsys):
    out = tmp_path / "table1"
    whole = tmp_path / "whole"
    assert ultragen(*RUN, whole) == 0
    calls = len(fake.native.calls)
    add, added = Store.add, []

    def stop(self, row, *rest):
        if len(added) == 3:
            raise KeyboardInterrupt
        added.append(row)
        add(self, row, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", stop)
        assert ultragen(*RUN, out) == console.STOPPED
    assert not (out / "table.md").exists()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("clips/*/*.json")}
    assert len(times) == 3
    assert ultragen(*RUN, out) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert len(fake.native.calls) == 2 * calls

    assert numbers(out) == numbers(whole)
    # Once more, and with more clips: only those that are new are made.
    assert ultragen(*RUN, out) == 0 and len(fake.native.calls) == 2 * calls
    more = [3 if word == 2 else word for word in RUN]
    assert ultragen(*more, out) == 0 and len(fake.native.calls) == 2 * calls + 1
    capsys.readouterr()


def test_other_settings_need_another_folder(fake, tmp_path, capsys):
    out = tmp_path / "table1"
    assert ultragen(*RUN, out) == 0
    (out / "notes.txt").write_text("mine")
    capsys.readouterr()
    assert ultragen(*RUN, out, "--seed", 1) == 2
    message = capsys.readouterr().err
    assert "request" in message and "--overwrite" in message and message.count("\n") == 1
    assert ultragen(*RUN, out, "--seed", 1, "--overwrite") == 0
    assert json.loads((out / "results.json").read_text())["request"]["seed"] == 1
    assert (out / "notes.txt").exists()
    fake.fingerprint = "1" * 64
    assert ultragen(*RUN, out, "--seed", 1) == 2
    assert "models" in capsys.readouterr().err


def test_a_table_says_which_noise_it_used(fake, tmp_path, capsys):
    """Independent noise unless told, as evaluations from before there was a choice, which go on."""
    out, other = tmp_path / "table1", tmp_path / "spectral"
    assert ultragen(*RUN, out) == 0
    calls = len(fake.native.calls)
    assert {call["noise"] for call in fake.native.calls} == {"independent"}
    settings = json.loads((out / "settings.json").read_text())
    assert settings.pop("noise") == "independent" and "noise" not in settings["request"]
    (out / "settings.json").write_text(json.dumps(settings))
    assert ultragen(*RUN, out) == 0
    assert len(fake.native.calls) == calls
    assert "independent noise from seed 0" in (out / "table.md").read_text()
    assert json.loads((out / "results.json").read_text())["noise"] == "independent"
    capsys.readouterr()
    assert ultragen(*RUN, out, "--noise", "spectral") == 2
    assert "noise independent, not spectral" in capsys.readouterr().err
    assert ultragen(*RUN, other, "--noise", "spectral") == 0
    assert {call["noise"] for call in fake.native.calls[calls:]} == {"spectral"}
    assert "spectral noise from seed 0" in (other / "table.md").read_text()


def test_clips_of_another_world_or_batch_stand_in_another_table(
    fake, tmp_path, capsys, monkeypatch
):
    """An evaluation from before either was kept is of the first world, and made clip by clip."""
    out = tmp_path / "table1"
    assert ultragen(*RUN, out) == 0
    capsys.readouterr()
    assert ultragen(*RUN, out, "--batch", 2) == 2
    assert "add --batch 1" in capsys.readouterr().err
    monkeypatch.setattr("ultragen.world.heldout.VERSION", 99)
    assert ultragen(*RUN, out) == 2
    assert "world" in capsys.readouterr().err
    monkeypatch.setattr("ultragen.world.heldout.VERSION", 1)
    settings = json.loads((out / "settings.json").read_text())
    del settings["world"], settings["batch"]
    (out / "settings.json").write_text(json.dumps(settings))
    assert ultragen(*RUN, out) == 0


def test_a_damaged_clip_is_named(fake, tmp_path, capsys):
    out = tmp_path / "table1"
    assert ultragen(*RUN, out) == 0
    (out / "clips/ultragen/00001.safetensors").write_bytes(b"cut")
    capsys.readouterr()
    assert ultragen(*RUN, out) == 1
    assert "ultragen/00001.* are damaged: remove them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "table9"), ["table9", "table1"]),
        (("--clips", 0), ["--clips 0", "at least 1"]),
        (("--resolution", "8k"), ["8k", "544p"]),
        (("--num-frames", 18), ["--num-frames", "17"]),
        (("--features", "magic"), ["magic", "imagenet", "i3d=FILE"]),
        (("--features", "i3d=nowhere.pt"), ["nowhere.pt"]),
        (("--lpips", "alex"), ["alex=FILE"]),
        (("--clip", "./nowhere"), ["./nowhere"]),
        (("--classifier", "nowhere"), ["nowhere", "train classifier"]),
        (("--set", "distillation"), ["--teacher FOLDER"]),
        (("--shard", "5/4"), ["5/4", "from 1 to N"]),
        (("--shard", "a/b"), ["a/b", "2/4"]),
    ],
)
def test_bad_settings_are_one_line(fake, tmp_path, capsys, arguments, words):
    assert ultragen("evaluate", "--out", tmp_path / "out", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("ultragen: ") and printed.err.count("\n") == 1
    assert all(word in printed.err for word in words), printed.err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_a_file(fake, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert ultragen(*RUN, tmp_path / "file") == 1
    assert "choose another --out" in capsys.readouterr().err


def test_a_student_is_compared_with_its_teacher(fake, tmp_path, monkeypatch, capsys):
    fake.preset = replace(fake.preset, num_inference_steps=4, guidance_scale=1.0)
    teacher = replace(fake_models(), fingerprint="1" * 64)
    monkeypatch.setattr(loading, "load_models", lambda name=None: teacher if name else fake)
    out = tmp_path / "distillation"
    words = (*RUN, out, "--set", "distillation", "--guidance", 1, "--teacher", "runs/teacher")
    assert ultragen(*words) == 0, capsys.readouterr().err
    made = [
        {(call["steps"], call["guidance"], call["size"]) for call in pipe.calls}
        for pipe in (teacher.native, fake.native)
    ]
    assert made == [{(30, 3, (128, 160))}, {(1, 1, (128, 160))}]
    content = json.loads((out / "results.json").read_text())
    assert [row["key"] for row in content["rows"]] == ["teacher", "student", "real"]
    assert content["models"] == {"evaluated": "0" * 64, "teacher": "1" * 64}
    assert content["own_settings"] == {
        "teacher": {"num_inference_steps": 30, "guidance_scale": 3.0}
    }
    text = (out / "table.md").read_text()
    assert "1 steps, guidance 1.0." in text
    assert "- Teacher: num_inference_steps 30, guidance_scale 3.0\n" in text
    capsys.readouterr()


def captions_of(folder) -> list[str]:
    """The prompts of an evaluation."""
    content = json.loads((folder / "results.json").read_text())
    return [clip["caption"] for clip in content["clips"]]


def test_scenes_are_of_the_models_edition(fake, tmp_path, capsys):
    """Unless an edition is named."""
    own, named = tmp_path / "own", tmp_path / "named"
    fake.native.edition = 2
    assert ultragen(*RUN, own) == 0, capsys.readouterr().err
    assert ultragen(*RUN, named, "--edition", 1) == 0
    for folder, edition in ((own, 2), (named, 1)):
        cases = held_out_clips(2, edition=edition)
        settings = json.loads((folder / "settings.json").read_text())
        assert settings["world"] == cases[0].world
        assert captions_of(folder) == [case.caption for case in cases]


def test_models_of_several_editions_need_one_named(fake, tmp_path, monkeypatch, capsys):
    teacher = replace(fake_models(), fingerprint="1" * 64)
    teacher.native.edition = 2
    monkeypatch.setattr(loading, "load_models", lambda name=None: teacher if name else fake)
    out = tmp_path / "distillation"
    words = (*RUN, out, "--set", "distillation", "--teacher", "runs/teacher")
    assert ultragen(*words) == 2
    message = capsys.readouterr().err
    assert "evaluated to 1, teacher to 2" in message and "--edition" in message
    assert message.count("\n") == 1 and not out.exists()
    assert ultragen(*words, "--edition", 2) == 0, capsys.readouterr().err
    assert captions_of(out) == [x.caption for x in held_out_clips(2, edition=2)]


def test_fast_clips_are_compared_with_those_of_all_passes(fake, tmp_path, capsys):
    out = tmp_path / "fast"
    words = (*RUN, out, "--set", "fast", "--steps", 8)
    assert ultragen(*words, "--guidance", 1) == 2
    assert "--fast is for guided clips" in capsys.readouterr().err and not out.exists()
    assert ultragen(*words, "--guidance", 3) == 0, capsys.readouterr().err
    made = [(call["interval"], call["cache"] is None) for call in fake.native.calls]
    assert made == [((0.0, 1.0), True), ((0.6, 1.0), False)] * 2
    content = json.loads((out / "results.json").read_text())
    assert [row["key"] for row in content["rows"]] == ["full", "fast", "real"]
    own = {"guidance_interval": "0.6-1", "cache": "taylor-2"}
    assert content["own_settings"] == {"fast": own}
    assert "- Fast: guidance_interval 0.6-1, cache taylor-2\n" in (out / "table.md").read_text()
    capsys.readouterr()


def test_composed_clips_are_compared_with_those_that_begin_at_their_size(
    fake, tmp_path, monkeypatch, capsys
):
    for size in (Resolution("smaller", 64, 96, 64), Resolution("wide", 128, 288, 120)):
        monkeypatch.setitem(request.RESOLUTIONS, size.name, size)
    out = tmp_path / "progressive"
    words = (*RUN, out, "--set", "progressive", "--steps", 8)
    assert ultragen(*words, "--progressive", "on") == 2
    assert "leave out --progressive" in capsys.readouterr().err
    fake.preset = replace(fake.preset, first_size="wide")
    assert ultragen(*words) == 2
    assert "choose a --resolution above wide" in capsys.readouterr().err and not out.exists()
    fake.preset = replace(fake.preset, first_size="smaller")
    words = (*words, "--resolution", "wide")
    assert ultragen(*words) == 0, capsys.readouterr().err
    made = [(call["size"], call["composition"] is not None) for call in fake.native.calls]
    large = (128, 288)
    assert made == [(large, False), ((64, 96), False), (large, True)] * 2
    content = json.loads((out / "results.json").read_text())
    assert [row["key"] for row in content["rows"]] == ["whole", "composed", "real"]
    assert "progressive" not in content["request"]  # as in older ones: "auto" begins at this size
    assert content["own_settings"] == {
        "whole": {"progressive": "off"}, "composed": {"progressive": "on"}
    }  # fmt: skip
    assert "seams" in (out / "table.md").read_text()
    capsys.readouterr()


def test_a_teacher_is_there_where_it_is_compared_with():
    with pytest.raises(ValueError, match="distillation needs the teacher: add --teacher FOLDER"):
        rows_of("distillation")
    with pytest.raises(ValueError, match="table1 has no row of a teacher: leave --teacher out"):
        rows_of("table1", teacher=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_are_what_the_autoencoder_makes_of_real_clips(fake, monkeypatch, dtype):
    """Encoded piece by piece, and in the type that the pipeline was loaded in."""
    monkeypatch.setattr(row_module, "ENCODED", 4)
    pipe = build_pipeline(TINY_SIZE, ["a"])
    with torch.no_grad():  # apart from zero, so that latents have to be brought to unit variance
        pipe.vae.register_to_config(latents_mean=[0.3] * 8, latents_std=[1.7] * 8)
        [case] = held_out_clips(1)
        frames = case.frames(128, 160, 9)
        clip = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
        plain = (pipe.vae(clip)[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0) * 255
    copy = copy_clip(pipe.to(dtype), frames)
    assert copy.dtype == np.uint8 and copy.shape == frames.shape
    # Encoded clips are handed on in bfloat16.
    apart = 1 if dtype == torch.float32 else 2
    assert np.abs(copy - plain.numpy()).mean() < apart < np.abs(frames - plain.numpy()).mean() / 2

    fake.native = pipe
    maker = Maker(lambda name: fake, Request("a", "tiny", num_frames=9, num_inference_steps=1))
    [(made, seconds)] = maker.make(Row("copies", "", "copies"), [(0, case)])
    assert seconds is None and np.array_equal(made, copy[:, 4:124])
    assert [row.source for row in rows_of("copies")] == ["ultragen", "copies", "real"]


class Doubled(nn.Module):
    """In place of the ×4 network."""

    name = "×4 network"

    def stream(self, frames, height, width):
        for frame in frames:
            rows = np.arange(height) * frame.shape[0] // height
            yield frame[rows][:, np.arange(width) * frame.shape[1] // width]


def test_every_row_with_tiny_models(tmp_path, monkeypatch):
    """Noise in, noise out: but through the pipelines, the renderer and the classifier."""
    sizes = {**request.RESOLUTIONS, "tiny": Resolution("tiny", 128, 160, 120)}
    monkeypatch.setattr(request, "RESOLUTIONS", sizes)
    pipe = build_pipeline(TINY_SIZE, ["a", "lake"])
    pipe.set_progress_bar_config(disable=True)
    base = pipe.base_pipeline()
    base.set_progress_bar_config(disable=True)
    preset = replace(EMBEDDED, base_height=64, base_width=96)
    made = Models(pipe, base, preset, tmp_path, "0" * 64,
                  _upscalers={"network": Doubled(), "lanczos": Doubled()})  # fmt: skip
    save_classifier(tmp_path / "classifier")
    maker = Maker(lambda folder: made, Request("a", "tiny", num_frames=5, num_inference_steps=1))
    cases, tools = held_out_clips(2), load_instruments(tmp_path)
    # Real clips have no distance to themselves, and what is made of noise has one.
    rows = evaluate(TABLE1, cases, cases, maker, tools, tmp_path / "out")
    distances = {row.key: row.hd_fvd[tools.tubes[0].name].value for row in rows}
    assert distances.pop("real") == pytest.approx(0, abs=1e-4)
    assert min(distances.values()) > 0.01
    assert all(row.clips == 2 and row.hd_mse.value > 0 for row in rows)
    # Three clips made two at a time, of which the first two are the same.
    together = Maker(maker.load, maker.request, batch=2)
    more = held_out_clips(3)
    rows = evaluate(TABLE1, more, cases, together, tools, tmp_path / "together")
    assert all(row.clips == 3 for row in rows)
    stores = [Store(tmp_path / name, {}) for name in ("out", "together")]
    for key in ROWS:
        for i in range(2):
            one, other = (store.get(key, i).hd_mse for store in stores)
            assert one == pytest.approx(other, rel=1e-2, abs=1e-3)
    assert "made 2 at a time" in (tmp_path / "together" / "table.md").read_text()
    told = evaluate(rows_of("copies"), cases, cases, maker, tools, tmp_path / "copies")
    assert [row.key for row in told] == ["ultragen", "copies", "real"]
    assert "autoencoder's copies" in (tmp_path / "copies" / "table.md").read_text()
    found = {row.key: row.hd_fvd[tools.tubes[0].name].value for row in told}
    assert found["real"] < 1e-4 < found["copies"] and found["ultragen"] == distances["ultragen"]
    three = Maker(maker.load, maker.request, batch=3)
    with pytest.raises(ValueError, match="with batch 2, not 3"):
        evaluate(TABLE1, more, cases, three, tools, tmp_path / "together")
