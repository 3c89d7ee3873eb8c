"""Trained parts together as one pipeline."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_stages import weights

from ultragen.files import UNFINISHED
from ultragen.model.classifier import load_classifier
from ultragen.model.upscaler import UpscalerNetwork
from ultragen.pipeline import UltraGenPipeline
from ultragen.presets import EMBEDDED
from ultragen.runs.loading import load_models
from ultragen.training.assemble import assemble
from ultragen.training.stage_order import collect
from ultragen.training.stages.distillation import RECORD, distilled_steps
from ultragen.training.tiny import TINY
from ultragen.weights.fingerprint import DIGESTS
from ultragen.world.scene import ALLOWED


def no_space(*values, **options):
    raise OSError("no space left on device")


def parts(model: Path, names: str) -> None:
    """Files of so many parts."""
    for name in names.split():
        (model / name).mkdir(parents=True)
        (model / name / "weights").write_text(str(model))


def found(model: Path) -> dict[str, str]:
    """What lies in a folder: the content of each file."""
    files = [path for path in model.rglob("*") if path.is_file()]
    return {path.relative_to(model).as_posix(): path.read_text() for path in files}


def test_parts_of_a_stage_are_collected_together_or_not_at_all(tmp_path, monkeypatch):
    model, export = tmp_path / "model", tmp_path / "export"
    parts(model, "vae transformer distilled/base_transformer")
    parts(export, "transformer text_encoder distilled/transformer")
    before, copies = found(model), []

    def copy(source, *values, copytree=shutil.copytree, **options):
        copies.append(source)
        if len(copies) > 3:
            raise OSError("no space left on device")
        return copytree(source, *values, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", copy)
        with pytest.raises(OSError, match="no space"):
            collect(export, model)
    assert found(model) == before
    collect(export, model)
    assert found(model) == before | found(export)
    assert not list(model.glob(f"{UNFINISHED}*"))


@pytest.mark.slow
def test_the_assembled_pipeline_loads_and_runs(trained, tmp_path, monkeypatch):
    assemble(trained / "model", tmp_path, TINY)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if path.name == RECORD]  # model_index.json says it
    assert max(path.stat().st_size for path in files) < 9_000_000
    listed = {line.split("  ")[1] for line in (tmp_path / DIGESTS).read_text().splitlines()}
    assert listed == {path.relative_to(tmp_path).as_posix() for path in files} - {
        "README.md",
        DIGESTS,
    }
    texts = [path.read_text() for path in files if path.suffix == ".json"]
    assert not any(str(trained) in text for text in texts)  # they go to other people
    stored = [load_file(path) for path in files if path.suffix == ".safetensors"]
    assert len(stored) >= 5
    assert {v.dtype for part in stored for v in part.values()} == {torch.float16}
    pipe = UltraGenPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.config.solver_order == 1  # both are distilled
    preset = load_models(tmp_path).preset
    assert preset.num_inference_steps == dict(TINY.distill)["steps"]
    assert preset.guidance_scale == 1  # it is in the weights
    size = {"height": 96, "width": 128, "num_frames": 5, "num_inference_steps": 2}
    frames = pipe("a calm lake at sunset", **size).frames
    assert frames.shape == (1, 5, 96, 128, 3)
    base = pipe.base_pipeline()("a calm lake at sunset", **size).frames
    assert base.shape == frames.shape
    assert pipe.unknown_words("a calm zorgon lake") == ["zorgon"]
    small = torch.rand(1, 3, 8, 8)
    assert UpscalerNetwork.from_pretrained(tmp_path / "upscaler")(small).shape == (1, 3, 32, 32)
    # Done again, it is replaced as a whole or not at all, but for people's own words.
    (tmp_path / "README.md").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(UpscalerNetwork, "save_pretrained", no_space)
        with pytest.raises(OSError, match="no space"):
            assemble(trained / "model", tmp_path, TINY)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "transformer" / "older.safetensors").touch()
    assemble(trained / "model", tmp_path, TINY)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    judge = load_classifier(tmp_path / "classifier")
    assert judge.classify(judge.reduce(torch.rand(5, 3, 64, 96)))["water"] in ALLOWED["water"]
    assert (tmp_path / "classifier/accuracy.json").exists()


def test_both_students_take_as_many_steps(tmp_path):
    assert distilled_steps(tmp_path, 8) is None
    parts(tmp_path, "distilled/transformer")
    with pytest.raises(ValueError, match="run `train base-distill` too"):
        distilled_steps(tmp_path, 8)
    parts(tmp_path, "distilled/base_transformer")
    assert distilled_steps(tmp_path, 8) == 8  # without a record
    (tmp_path / "distilled/transformer" / RECORD).write_text('{"steps": 5}')
    with pytest.raises(ValueError, match=r"`train distill` made a student of 5 .*ill` one of 8"):
        distilled_steps(tmp_path, 8)
    (tmp_path / "distilled/base_transformer" / RECORD).write_text('{"steps": 5}')
    assert distilled_steps(tmp_path, 8) == 5


@pytest.mark.slow
def test_what_is_not_distilled_is_sampled_in_second_order(trained, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(trained / "model", model)
    assemble(model, tmp_path / "teachers", TINY, undistilled=True)
    shutil.rmtree(model / "distilled" / "transformer")
    with pytest.raises(ValueError, match="run `train distill` too"):
        assemble(model, tmp_path / "half", TINY)
    shutil.rmtree(model / "distilled")
    assemble(model, tmp_path / "plain", TINY)
    for folder in (tmp_path / "teachers", tmp_path / "plain"):
        pipe = UltraGenPipeline.from_pretrained(folder)
        assert pipe.config.solver_order == 2
        assert load_models(folder).preset == EMBEDDED
        taken, teacher = pipe.transformer.state_dict(), weights(model / "transformer")
        assert all(torch.equal(taken[name].half(), value.half()) for name, value in teacher.items())
