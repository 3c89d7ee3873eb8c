"""`train wan`: from latents to weights that the page runs, and what is refused before it starts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import one_line, ultragen
from latent_files import SMALL, write_latents
from paths import ROOT
from safetensors.torch import load_file, save_file
from wan_files import WanFiles
from wan_trainings import distance, train, trained, words

from ultragen.estimates import training_memory
from ultragen.pipeline import UltraGenPipeline
from ultragen.presets import Resolution
from ultragen.training import wan_training
from ultragen.video import probe_video
from ultragen.weights.lora_saving import COMFYUI, DIFFUSERS
from ultragen.weights.released import load_ultragen


@pytest.fixture(scope="module")
def half(files, data, tmp_path_factory) -> Path:
    """Two steps in the paper's layout, two clips a step."""
    out = tmp_path_factory.mktemp("trained") / "half"
    assert train(files, data, out, "--batch", 2) == 0
    return out


@pytest.fixture(scope="module")
def paper(files, data, tmp_path_factory) -> Path:
    """Four of these steps."""
    out = tmp_path_factory.mktemp("trained") / "paper"
    assert train(files, data, out, "--batch", 2, steps=4) == 0
    return out


# What comes out


def test_the_result_makes_clips(paper, files, tmp_path, monkeypatch):
    for name, value in files.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ULTRAGEN_WEIGHTS", str(paper / "export"))
    sizes = {"544p": Resolution("544p", 96, 160, 90)}
    monkeypatch.setattr("ultragen.runs.request.RESOLUTIONS", sizes)
    clip = tmp_path / "clip.mp4"
    run = ("--prompt", "a lake", "--frames", 5, "--steps", 1, "--resolution", "544p")
    assert ultragen("generate", *run, "--out", clip) == 0
    assert probe_video(clip).num_frames == 5


def test_settings_of_the_training_are_kept(paper, tmp_path):
    model = load_ultragen(paper / "export")
    assert model.layer_kinds == ["even", "odd", "even"]
    assert list(model.config.window_size) == [64 / 16 / 4, 128 / 16 / 4]
    assert model.config.global_keys_from == "key"
    one_file = tmp_path / "own.safetensors"
    assert ultragen("convert", paper / "export", one_file) == 0
    assert ultragen("convert", one_file, tmp_path / "again") == 0
    again = load_ultragen(tmp_path / "again")
    assert list(again.config.window_size) == list(model.config.window_size)
    ours = model.state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in again.state_dict().items())


def test_samples_and_logs_are_written(paper):
    assert (paper / "samples" / "000004.png").is_file()
    assert list(paper.rglob("events.out.tfevents.*"))


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(
    half, paper, files, data, tmp_path, capsys
):
    out = tmp_path / "resumed"
    shutil.copytree(half, out)
    assert distance(out, paper) > 1e-5
    assert train(files, data, out, "--batch", 2, steps=4) == 0
    assert "resumed at step 2" in capsys.readouterr().out
    assert distance(out, paper) <= 1e-6


def test_accumulated_batches_are_one_larger_batch(half, files, data, tmp_path):
    assert train(files, data, tmp_path, "--accumulation", 2) == 0
    assert distance(tmp_path, half) <= 1e-5


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(half, files, data, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         "-m", "ultragen", *words(files, data, tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "2 a step" in ended.stdout
    assert (tmp_path / "samples" / "000002.png").is_file()
    assert distance(tmp_path, half) <= 1e-5


def test_the_released_layout_is_written_as_the_authors_file(files, data, tmp_path):
    assert train(files, data, tmp_path / "run", "--layout", "released", "--train", "new") == 0
    model = load_ultragen(tmp_path / "run" / "export")
    assert model.layer_kinds == ["full", "odd", "full"]
    assert (model.config.uneven, model.config.timestep_dtype) == ("resize", "bfloat16")
    # Nothing but the new parts has changed.
    base = load_file(files.base / "transformer" / "diffusion_pytorch_model.safetensors")
    own = trained(tmp_path / "run")
    assert all(torch.equal(own[key].float(), value.float()) for key, value in base.items())
    assert any(value.any() for key, value in own.items() if key.endswith("lora_B.weight"))


def test_dense_wan_is_trained_with_t3_videos_windows(files, data, tmp_path):
    assert train(files, data, tmp_path, "--layout", "t3", steps=1) == 0
    model = load_ultragen(tmp_path / "export")
    assert model.config.t3_windows and not any(".branches." in key for key in model.state_dict())


def test_training_goes_on_from_an_earlier_one_and_from_the_released_weights(
    paper, files, data, tmp_path
):
    assert train(files, data, tmp_path / "more", "--start", paper, steps=1) == 0
    assert 0 < distance(tmp_path / "more", paper) < 1e-3
    assert load_ultragen(tmp_path / "more" / "export").layer_kinds == ["even", "odd", "even"]
    assert train(files, data, tmp_path / "released", "--start", files.ultragen, steps=1) == 0
    assert load_ultragen(tmp_path / "released" / "export").layer_kinds == ["full", "odd", "even"]


def test_a_lora_loads_with_the_same_output(files, data, tmp_path, monkeypatch):
    """Under diffusers' names and under ComfyUI's."""
    kept = {}
    load_model = wan_training.load_model

    def keep(*arguments):
        kept["model"] = load_model(*arguments)
        return kept["model"]

    monkeypatch.setattr(wan_training, "load_model", keep)
    words = ("--train", "lora", "--start", files.ultragen, "--lora-rank", 2, "--lora-alpha", 6)
    words += ("--learning-rate", 1e-2)
    assert train(files, data, tmp_path, *words, steps=3) == 0
    run = {"height": 64, "width": 96, "num_frames": 5, "num_inference_steps": 2}
    run |= {"prompt": "a lake", "output_type": "latent"}

    def latents(pipe: UltraGenPipeline) -> torch.Tensor:
        pipe.set_progress_bar_config(disable=True)
        return pipe(**run, generator=torch.Generator().manual_seed(0)).frames

    def load() -> UltraGenPipeline:
        return UltraGenPipeline.from_wan(files.base, files.ultragen, torch.float32)

    plain = latents(pipe := load())
    pipe.transformer = kept["model"].eval().float()
    expected = latents(pipe)
    assert (expected - plain).abs().max() > 1e-3
    for name in (None, DIFFUSERS, COMFYUI):
        fresh = load()
        fresh.load_lora_weights(tmp_path / "export", weight_name=name)
        torch.testing.assert_close(latents(fresh), expected, rtol=1e-3, atol=1e-3)
    keys = load_file(tmp_path / "export" / COMFYUI)
    assert "diffusion_model.blocks.0.self_attn.q.lora_A.weight" in keys
    assert keys["diffusion_model.blocks.2.ffn.2.alpha"] == 6
    assert not any("_lora_" in key for key in keys)  # the branches' own updates


# What is refused


def refused(capsys, files: WanFiles, data: Path, out: Path, *words: object) -> str:
    capsys.readouterr()
    assert train(files, data, out, *words) in (1, 2)
    assert not (out / "checkpoint").exists()
    return one_line(capsys)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--resolution", "1080p"), ["no clips of 1080p", "64x96x9, 64x128x5", "--resolution"]),
        (("--resolution", "9k"), ["resolution must be one of", "9k"]),
        (("--preset", "wan-4k"), ["no clips of 4k"]),
        (("--frames", 81), ["clips of 9 frames at most, not of 81", "--frames 9"]),
        (("--frames", 6), ["num_frames must be 4n + 1", "6"]),
        (("--layout", "mine"), ["Unknown layout 'mine'", "paper, released, t3"]),
        (("--train", "lora"), ["--start", "--train new"]),
        (("--keep-on-host", "--recompute", "none"), ["--keep-on-host"]),
        (("--optimizer", "sgd"), ["sgd", "adamw"]),
        (("--tracker", "paper"), ["'paper'", "tensorboard, trackio"]),
        (("--data", "nowhere"), ["nowhere", "ultragen dataset"]),
        (("--base", "nowhere/wan"), ["nowhere/wan"]),
        (("--start", "nowhere.ckpt"), ["nowhere.ckpt"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_bad_input(capsys, files, data, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, files, data, tmp_path / "out", *words)
    assert all(word in line for word in says), line


def test_a_training_without_an_end_is_refused(capsys, files, data, tmp_path):
    given = ("--data", data, "--base", files.base, "--out", tmp_path)
    assert ultragen("train", "wan", *given) == 2
    assert "--epochs" in one_line(capsys)


def test_weights_with_a_layout_of_their_own_get_no_other(capsys, files, data, tmp_path):
    words = ("--start", files.ultragen, "--layout", "paper")
    assert "own layout" in refused(capsys, files, data, tmp_path, *words)


def test_a_target_of_a_lora_that_is_no_layer(capsys, files, data, tmp_path):
    words = ("--train", "lora", "--start", files.ultragen, "--lora-target", "to_w")
    assert "attn1.to_q" in refused(capsys, files, data, tmp_path, *words)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vae": "0" * 64}, ["another VAE", "encode the clips again"]),
        ({"text_encoder": "0" * 64}, ["another text encoder", "encode the clips again"]),
        ({"model": "embedded"}, ["embedded", "--model wan"]),
        ({"sizes": ((72, 96, 5),)}, ["72x96x5", "multiples of 16", "another bucket"]),
        ({"sizes": ((32, 96, 5),)}, ["32x96x5", "another bucket"]),
        ({"sizes": ()}, ["no clips"]),
    ],
    ids=str,
)
def test_clips_that_do_not_fit_the_model(capsys, files, tmp_path, changes, says):
    data = write_latents(tmp_path / "data", files.base, **changes)
    line = refused(capsys, files, data, tmp_path / "out")
    assert all(word in line for word in says), line


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"in_channels": 36}, ["conditioned on images", "text-to-video"]),
        ({"image_dim": 1280}, ["conditioned on images", "text-to-video"]),
        ({"added_kv_proj_dim": 128}, ["conditioned on images", "text-to-video"]),
    ],
    ids=str,
)
def test_a_base_that_is_conditioned_on_images(capsys, files, data, tmp_path, changes, says):
    base = tmp_path / "wan"
    shutil.copytree(files.base, base)
    config = base / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    if "in_channels" in changes:
        path = base / "transformer" / "diffusion_pytorch_model.safetensors"
        weights = load_file(path)
        old = weights["patch_embedding.weight"]
        weights["patch_embedding.weight"] = old.new_zeros((old.shape[0], 36, *old.shape[2:]))
        save_file(weights, path)
    line = refused(capsys, replace(files, base=base), data, tmp_path / "out")
    assert all(word in line for word in says), line


def test_a_base_and_weights_of_different_sizes(capsys, files, data, tmp_path):
    model = load_ultragen(files.ultragen)
    config = {k: v for k, v in model.config.items() if not k.startswith("_")}
    type(model)(**{**config, "ffn_dim": 48}).save_pretrained(tmp_path / "other")
    line = refused(capsys, files, data, tmp_path / "out", "--start", tmp_path / "other")
    assert "'ffn_dim': 32" in line and "'ffn_dim': 48" in line


def test_too_little_memory(capsys, files, data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (training_memory.RESERVE, 0))
    monkeypatch.setattr(wan_training, "suits", lambda device: True)
    line = refused(capsys, files, data, tmp_path / "out")
    assert "64x96x9" in line and "of GPU memory" in line and "larger GPU" in line


def test_data_that_changed_since_the_checkpoint(capsys, half, files, data, tmp_path):
    shutil.copytree(half, tmp_path / "out")
    more = write_latents(tmp_path / "more", files.base, (SMALL, SMALL))
    assert train(files, more, tmp_path / "out", "--batch", 2, steps=3) == 2
    assert "data have changed" in one_line(capsys)


def test_another_layout_than_the_checkpoints(capsys, half, files, data, tmp_path):
    shutil.copytree(half, tmp_path / "out")
    assert train(files, data, tmp_path / "out", "--layout", "released", steps=3) == 2
    assert "another layout: paper, not released" in capsys.readouterr().err


def test_a_base_without_its_text_encoder_trains_without_samples(files, data, tmp_path, capsys):
    base = tmp_path / "wan"
    shutil.copytree(files.base, base)
    shutil.rmtree(base / "text_encoder")
    assert train(replace(files, base=base), data, tmp_path / "out", steps=1) == 0
    assert "no text encoder" in capsys.readouterr().out
    assert (tmp_path / "out" / "export" / "config.json").is_file()
