"""`train wan-distill`: from prompts to weights or a LoRA that few steps suffice for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import one_line, ultragen
from paths import ROOT
from safetensors.torch import load_file
from wan_distillations import distill, distill_words
from wan_files import make_t3
from wan_trainings import distance, train

from ultragen.estimates import training_memory
from ultragen.pipeline import UltraGenPipeline
from ultragen.presets import RESOLUTIONS, WAN, Resolution
from ultragen.runs.choice import choose
from ultragen.training import wan_distillation, wan_training
from ultragen.training.stages.wan_transformer_stage import WEIGHTS
from ultragen.weights.distilled import Distilled, read_distilled
from ultragen.weights.lora_saving import DIFFUSERS
from ultragen.weights.released import load_ultragen


@pytest.fixture(scope="module", autouse=True)
def small_clips() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RESOLUTIONS, "544p", Resolution("544p", 64, 96, 64))
        yield


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory) -> Path:
    """Six steps of two clips each, which the student leads from the third on."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert distill(files, out, "--batch", 2, steps=6) == 0
    return out


# What comes out


def test_clips_take_the_steps_and_the_shift_of_the_result(files, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert distill(files, run, "--shift", 7) == 0
    for name, value in files.environment.items():
        monkeypatch.setenv(name, value)
    assert choose("wan").preset == WAN
    monkeypatch.setenv("ULTRAGEN_WEIGHTS", str(run / "export"))
    preset = choose("wan").preset
    assert (preset.num_inference_steps, preset.guidance_scale, preset.shift) == (2, 1.0, 7.0)
    assert {steps for _, _, steps in preset.ladder} == {2}
    clip = tmp_path / "clip.mp4"
    words = ("--prompt", "a lake", "--frames", 5, "--resolution", "544p", "--out", clip)
    assert ultragen("generate", *words) == 0
    request = json.loads(clip.with_suffix(".json").read_text())["request"]
    assert (request["num_inference_steps"], request["guidance_scale"]) == (2, 1.0)
    assert (request["shift"], request["solver"]) == (None, "own")


def test_the_pipeline_of_the_result_samples_as_the_student_learnt_to(whole, files):
    pipe = UltraGenPipeline.from_wan(files.base, whole / "export", torch.float32)
    assert pipe.scheduler.config.shift == 5.0 and pipe.config.solver_order == 1
    pipe.set_progress_bar_config(disable=True)
    passes = []
    pipe.transformer.register_forward_hook(lambda *_: passes.append(1))
    size = {"height": 64, "width": 96, "num_frames": 5}
    pipe("a lake", **size, output_type="latent")
    assert len(passes) == 2  # a step takes one


def test_what_was_distilled_is_told_by_every_form_of_the_weights(whole, files, tmp_path):
    one_file = tmp_path / "own.safetensors"
    assert ultragen("convert", whole / "export", one_file) == 0
    pipe = UltraGenPipeline.from_wan(files.base, one_file, torch.float32)
    assert pipe.config.distilled_steps == 2
    pipe.save_pretrained(tmp_path / "pipeline")
    for place in (whole / "export", one_file, tmp_path / "pipeline"):
        assert read_distilled(place) == Distilled(2, 5.0)
    assert read_distilled(files.ultragen) is None


def test_weights_that_are_trained_on_are_distilled_no_longer(whole, files, data, tmp_path):
    assert train(files, data, tmp_path, "--start", whole, steps=1) == 0
    assert read_distilled(tmp_path / "export") is None


def test_a_lora_loads_with_the_student_s_output(files, tmp_path, monkeypatch, capsys):
    kept = {}
    load_pair = wan_distillation.load_pair

    def keep(*arguments):
        kept["student"], teacher = load_pair(*arguments)
        assert teacher is None
        return kept["student"], teacher

    monkeypatch.setattr(wan_distillation, "load_pair", keep)
    words = ("--train", "lora", "--lora-rank", 2, "--learning-rate", 1e-2)
    run = tmp_path / "run"
    assert distill(files, run, *words, steps=4) == 0
    export = run / "export"
    sampling = "--steps 2 --guidance 1 --shift 5 --solver euler"
    assert f"--lora {export} {sampling}" in capsys.readouterr().out
    given = {"height": 64, "width": 96, "num_frames": 5, "num_inference_steps": 2}
    given |= {"guidance_scale": 1.0, "output_type": "latent"}

    def latents(pipe: UltraGenPipeline) -> torch.Tensor:
        pipe.set_progress_bar_config(disable=True)
        return pipe("a lake", **given, generator=torch.Generator().manual_seed(0)).frames

    pipe = UltraGenPipeline.from_wan(files.base, files.ultragen, torch.float32)
    plain = latents(pipe)
    pipe.load_lora_weights(export)
    found = latents(pipe)
    pipe.unload_lora_weights()
    pipe.transformer = kept["student"].eval().float()
    torch.testing.assert_close(found, latents(pipe), rtol=1e-3, atol=1e-3)
    assert (found - plain).abs().max() > 1e-3
    # As the training has said.
    for name, value in files.environment.items():
        monkeypatch.setenv(name, value)
    clip = ("--prompt", "a lake", "--frames", 5, "--resolution", "544p")
    lora = ("--lora", export, *sampling.split())
    assert ultragen("generate", *clip, *lora, "--out", tmp_path / "clip.mp4") == 0


def test_dense_wan_and_t3_video_are_distilled_too(files, tmp_path):
    dense = replace(files, ultragen=files.base)
    words = distill_words(dense, tmp_path / "dense", steps=1)
    where = words.index("--start")
    assert ultragen(*words[:where], *words[where + 2 :]) == 0
    student = load_ultragen(tmp_path / "dense" / "export")
    assert set(student.layer_kinds) == {"full"}
    assert distill(files, tmp_path / "t3", steps=1, start=make_t3(files, tmp_path)) == 0
    student = load_ultragen(tmp_path / "t3" / "export")
    assert student.config.t3_windows and student.config.distilled_steps == 2


# How it goes on


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(whole, files, tmp_path, capsys):
    """In the middle of clips, one of which the student leads."""
    out = tmp_path / "run"
    assert distill(files, out, "--batch", 2, steps=3) == 0
    assert distance(out, whole) > 1e-5
    assert distill(files, out, "--batch", 2, steps=6) == 0
    assert "resumed at step 3" in capsys.readouterr().out
    assert distance(out, whole) <= 1e-6


def test_accumulated_batches_are_one_larger_batch(whole, files, tmp_path):
    assert distill(files, tmp_path / "run", "--accumulation", 2, steps=6) == 0
    assert distance(tmp_path / "run", whole) <= 1e-4  # six of Adam's steps of 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "file"), [("all", WEIGHTS), ("lora", DIFFUSERS)])
def test_two_processes_train_as_one_with_twice_the_batch(files, tmp_path, kind, file):
    """The teacher in parts too, or the student without its adapter; one process goes on."""
    words = ("--aspect", "1:1", "--frames", 1, "--train", kind)  # no size that is patched here
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert distill(files, alone, *words, "--batch", 2) == 0
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         "-m", "--", "ultragen",  # without the dashes it takes --start for one of its own
         *distill_words(files, both, *words, steps=1)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "2 a step" in ended.stdout
    assert distill(files, both, *words, "--batch", 2) == 0
    one, other = (load_file(out / "export" / file) for out in (alone, both))
    assert one.keys() == other.keys()
    assert all((one[key] - other[key]).abs().max() <= 1e-4 for key in one)


# What is refused


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--prompts", "nowhere.txt"), ["no file nowhere.txt", "a prompt a line"]),
        (("--prompts", "empty.txt"), ["empty.txt has no prompts"]),
        (("--resolution", "9k"), ["resolution must be", "9k", "1080p"]),
        (("--aspect", "5:1"), ["aspect", "5:1", "16:9"]),
        (("--frames", 6), ["4n + 1", "6"]),
        (("--shift", 0), ["shift must be", "0"]),
        (("--steps", 0), ["--steps", "equal to 1"]),
        (("--teacher-guidance", 0.5), ["guidance", "1", "0.5"]),
        (("--teacher-guidance", -1), ["guidance_scale", "-1"]),
        (("--keep-on-host", "--recompute", "none"), ["--keep-on-host"]),
        (("--train", "some"), ["some", "lora"]),
        (("--train", "lora", "--lora-target", "to_w"), ["to_w", "attn1.to_q"]),
        (("--tracker", "paper"), ["'paper'", "tensorboard, trackio"]),
        (("--base", "nowhere/wan"), ["nowhere/wan"]),
        (("--start", "nowhere.ckpt"), ["nowhere.ckpt"]),
        (("--data", "latents"), ["--data", "wan-distill"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_bad_input(capsys, files, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text(" \n")
    assert distill(files, tmp_path / "out", *words) in (1, 2)
    assert not (tmp_path / "out" / "checkpoint").exists()
    line = one_line(capsys)
    assert all(word in line for word in says), line


def test_a_training_without_an_end_is_refused(capsys, files, tmp_path):
    words = distill_words(files, tmp_path / "out")
    where = words.index("--max-steps")
    assert ultragen(*words[:where], *words[where + 2 :]) == 2
    assert "give --max-steps or --minutes" in one_line(capsys)


def test_distilled_weights_are_no_teacher(capsys, whole, files, tmp_path):
    assert distill(files, tmp_path / "out", start=whole) == 2
    assert "distilled already, to 2 steps" in one_line(capsys)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--steps", 4), "another student: 2 steps, shift 5, not 4 steps"),
        (("--teacher-guidance", 3), "another guidance of the teacher: 5, away"),
        (("--train", "lora"), "another kind of training: all, not lora"),
    ],
    ids=str,
)
def test_other_settings_than_the_checkpoint_s(capsys, whole, files, tmp_path, words, says):
    shutil.copytree(whole, tmp_path / "out")
    assert distill(files, tmp_path / "out", "--batch", 2, *words, steps=7) == 2
    assert says in capsys.readouterr().err


def test_other_prompts_than_the_checkpoint_s(capsys, whole, files, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    words = distill_words(files, tmp_path / "out", "--batch", 2, steps=7)
    (tmp_path / "prompts.txt").write_text("another lake")
    assert ultragen(*words) == 2
    assert "data have changed" in one_line(capsys)


def test_a_base_without_its_text_encoder(capsys, files, tmp_path):
    base = tmp_path / "wan"
    shutil.copytree(files.base, base)
    shutil.rmtree(base / "text_encoder")
    assert distill(replace(files, base=base), tmp_path / "out") == 2
    assert "no text encoder" in one_line(capsys)


def test_too_little_memory(capsys, files, tmp_path, monkeypatch):
    """The teacher's copy counts, and a LoRA needs none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(wan_training, "suits", lambda device: True)
    asked = []

    def free(*_: object) -> tuple[int, int]:
        asked.append(1)
        return training_memory.RESERVE, 0

    monkeypatch.setattr(torch.cuda, "mem_get_info", free)
    assert distill(files, tmp_path / "out") == 2
    line = one_line(capsys)
    assert asked and "64x96x5" in line and "of GPU memory" in line
