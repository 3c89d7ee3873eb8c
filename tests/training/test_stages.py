"""The stages by name: what they build on, and what they leave behind."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import WanTransformer3DModel
from training_stages import steps, weights

from ultragen.model.classifier import AttributeClassifier
from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.model.upscaler import UpscalerNetwork
from ultragen.pipeline import UltraGenPipeline
from ultragen.training import stage_order
from ultragen.training.assemble import assemble
from ultragen.training.build import TINY_SIZE, build_autoencoder
from ultragen.training.stage import TrainingConfig
from ultragen.training.stage_order import STAGES, Sources, train
from ultragen.training.stages import distillation
from ultragen.training.tiny import TINY


def test_an_unknown_stage_names_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="Unknown stage 'upscale': choose from autoencoder, "):
        train("upscale", TrainingConfig(out=tmp_path), TINY)


@pytest.mark.parametrize(
    "stage, first",
    [("decoder", "autoencoder"), ("base", "autoencoder"), ("ultragen", "base"),
     ("upscaler", "autoencoder")],
)  # fmt: skip
def test_a_stage_names_the_one_to_train_first(tmp_path, stage, first):
    with pytest.raises(ValueError, match=f"run `train {first}` with the same --out first"):
        train(stage, TrainingConfig(out=tmp_path), TINY)


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize(
    "stage, options",
    [("autoencoder", replace(TINY, autoencoder=(*TINY.autoencoder, ("anchor", 0.01)))),
     ("base", replace(TINY, freeze_text=True))],
)  # fmt: skip
def test_what_shall_stay_must_be_there(tmp_path, stage, options, start):
    """Also where the folder to start from lacks the part."""
    with pytest.raises(ValueError, match=r"name (its|the) pipeline folder to start from"):
        train(stage, TrainingConfig(out=tmp_path / "out"), options, tmp_path if start else None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder, load",
    [
        ("vae", type(build_autoencoder(TINY_SIZE)).from_pretrained),
        ("base_transformer", WanTransformer3DModel.from_pretrained),
        ("transformer", UltraGenTransformer3DModel.from_pretrained),
        ("upscaler", UpscalerNetwork.from_pretrained),
        ("classifier", AttributeClassifier.from_pretrained),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_exported_folders_load(trained, folder, load):
    model = load(trained / "model" / folder)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


@pytest.mark.slow
def test_stages_build_on_each_other(trained):
    model = trained / "model"
    config = json.loads((model / "vae" / "config.json").read_text())
    assert len(config["latents_mean"]) == len(config["latents_std"]) == TINY_SIZE.z_dim
    assert min(config["latents_std"]) > 0
    # The decoder's stage leaves the encoder, and so every latent, as it is.
    before, after = weights(trained / "autoencoder/export/vae"), weights(model / "vae")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"}
    assert len(set(config["latents_std"])) == 1
    # UltraGen starts from the base model, and all of it learns.
    base, native = weights(model / "base_transformer"), weights(model / "transformer")
    shared = [name for name in base if name.endswith("attn1.to_q.weight")]
    assert shared
    for name in shared:
        difference = (native[name] - base[name]).abs().max()
        assert 0 < difference < 0.5 * base[name].abs().max()


@pytest.mark.slow
def test_the_text_encoder_can_be_left_as_it_is(trained, tmp_path):
    options = replace(TINY, freeze_text=True)
    model = train("base", steps(tmp_path, 2), options, start=trained / "model")
    for part, same in (("text_encoder", True), ("base_transformer", False)):
        before, after = weights(trained / "model" / part), weights(model / part)
        assert all(torch.equal(before[name], after[name]) for name in before) == same


@pytest.fixture
def older(trained, tmp_path):
    """Weights whose text encoder reads whole prompts, as it did before clauses."""
    folder = tmp_path / "older"
    shutil.copytree(trained / "model", folder)
    path = folder / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    del config["clause_ends"]  # a text encoder that is built afresh has them
    path.write_text(json.dumps(config))
    return folder


def reads_by_clauses(model):
    return "clause_ends" in json.loads((model / "text_encoder" / "config.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("clauses", [False, True])
def test_the_text_encoder_reads_by_clauses_with_the_weights_that_it_has(older, tmp_path, clauses):
    options = replace(TINY, freeze_text=True, clauses=clauses)
    model = train("base", steps(tmp_path, 2), options, start=older)
    before, after = weights(older / "text_encoder"), weights(model / "text_encoder")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert reads_by_clauses(model) == clauses


@pytest.mark.slow
def test_the_text_encoder_can_learn_to_read_by_clauses(older, trained, tmp_path, monkeypatch):
    """From weights that read whole prompts; stages after it, and the pipeline, read so too."""
    options = replace(TINY, clauses=True)
    model = train("base", steps(tmp_path, 2), options, start=older)
    assert reads_by_clauses(model)
    read = []
    stage = stage_order.with_trained_parts

    def with_trained_parts(*arguments):
        read.append(stage(*arguments))
        return read[-1]

    monkeypatch.setattr(stage_order, "with_trained_parts", with_trained_parts)
    train("ultragen", steps(tmp_path, 2), TINY, start=older)
    assert read[0].text_encoder.config.clause_ends  # this training's, not that of the start
    for part in ("vae", "upscaler"):
        shutil.copytree(trained / "model" / part, model / part)
    assemble(model, tmp_path / "pipeline", TINY)
    pipe = UltraGenPipeline.from_pretrained(tmp_path / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.text_encoder.config.clause_ends
    prompts = [f"the sun, pan {side}" for side in ("left", "right")]
    [sun, other], _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False)
    assert torch.equal(sun[:3], other[:3])
    assert not torch.equal(sun[3:], other[3:])
    settings = {"height": 96, "width": 128, "num_frames": 5, "num_inference_steps": 2}
    assert torch.isfinite(pipe("a lake, the sun", output_type="pt", **settings).frames[0]).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, part", [("base-distill", "base_transformer"), ("distill", "transformer")]
)
def test_the_teacher_of_a_distillation_stays(trained, tmp_path, monkeypatch, stage, part):
    """The undistilled weights, also for a training that goes on; what it learns lies beside."""
    undistilled = weights(trained / "model" / part)
    teachers = []
    seen = distillation.DistillStage.setup

    def setup(self, *arguments):
        seen(self, *arguments)
        teachers.append({k: v.clone() for k, v in self.teacher.transformer.state_dict().items()})

    monkeypatch.setattr(distillation.DistillStage, "setup", setup)
    for number in (2, 4):
        train(stage, steps(tmp_path, number), TINY, start=trained / "model")
    assert len(teachers) == 2
    for teacher in teachers:
        assert all(torch.equal(teacher[name], value) for name, value in undistilled.items())
    learnt = weights(tmp_path / "model" / "distilled" / part)
    assert any(not torch.equal(learnt[name], value) for name, value in undistilled.items())


@pytest.mark.slow
def test_a_stage_trains_on_what_others_render(trained, tmp_path):
    options = replace(TINY, render_on=("cpu",))
    train("ultragen", steps(tmp_path, 3), options, start=trained / "model")
    assert (tmp_path / "model" / "transformer").is_dir()
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_stage_is_resumed_at_its_step(trained, capsys):
    train("base", steps(trained, 5), TINY)
    printed = capsys.readouterr().out
    assert "resumed at step 3" in printed
    assert "step      4" in printed and "step      6" not in printed
    assert (trained / "base" / "samples" / "000005.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage, part", [("base", "base_transformer"), ("ultragen", "transformer")])
def test_a_stage_starts_from_given_weights(trained, tmp_path, stage, part):
    sources = Sources(tmp_path / "model", trained / "model")
    started = STAGES[stage](sources, TINY, 0).pipeline.transformer.state_dict()
    given = weights(trained / "model" / part)
    assert all(torch.equal(started[name], value) for name, value in given.items())


def test_a_start_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*nowhere to start from"):
        train("base", steps(tmp_path, 1), TINY, start=tmp_path / "nowhere")
