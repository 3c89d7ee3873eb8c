"""What the classifier learns from: labels, crops, mirrored clips, and its accuracy."""

from __future__ import annotations

import json

import torch

from ultragen.model.classifier import AttributeClassifier
from ultragen.training.build import TINY_SIZE, build_classifier
from ultragen.training.stage import TrainingConfig
from ultragen.training.stage_order import train
from ultragen.training.stages.classifier_stage import (
    IGNORED,
    TOLD_BY_CROPS,
    ClassifierStage,
    labels,
    mirrored,
)
from ultragen.training.tiny import TINY
from ultragen.world.renderer import render
from ultragen.world.scene import ALLOWED, make_scene, sample_scene


def test_labels_leave_out_what_can_not_be_seen():
    scene = make_scene(1, celestial="none", camera="rise")
    numbers = dict(zip(ALLOWED, labels(scene), strict=True))
    assert numbers["celestial_side"] == numbers["celestial_altitude"] == IGNORED
    assert ALLOWED["camera"][numbers["camera"]] == "rise"
    crop = dict(zip(ALLOWED, labels(scene, TOLD_BY_CROPS), strict=True))
    assert {name for name, value in crop.items() if value != IGNORED} == set(TOLD_BY_CROPS)


def classifier_stage(**settings) -> ClassifierStage:
    torch.manual_seed(0)
    stage = ClassifierStage(
        build_classifier(TINY_SIZE), **{**dict(TINY.classifier), "chunk": 4, **settings}
    )
    stage.setup(torch.device("cpu"), 0, 1)
    return stage


def test_the_classifier_learns_a_small_pool():
    stage = classifier_stage(pool=8)
    while stage.pool.made < 8:
        stage.pool.put(stage.pool.make())
    video, numbers = (ring[:8] for ring in stage.pool.rings)
    optimizer = torch.optim.Adam(stage.model.parameters(), lr=5e-3)
    for _ in range(60):
        losses = stage.loss(stage.model, (video.float() / 255, numbers))
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses["accuracy"] > 0.9


def test_views_are_whole_frames_and_crops_parts_at_full_resolution():
    stage = classifier_stage()
    scenes = [sample_scene(0), sample_scene(1)]
    assert stage.views(scenes, (64, 96)).shape == (2, 3, 5, 32, 48)
    video, numbers = stage.crops(scenes, (32, 48), Corner())
    exact = render(scenes, 32, 48, 5).mul(255).round().byte()
    assert torch.equal(video, exact) and numbers.shape == (2, len(ALLOWED))


def test_labels_of_a_mirrored_clip():
    given = {"celestial": "sun", "celestial_side": "left", "camera": "pan right"}
    scene = make_scene(0, water="lake", **given)
    swapped = make_scene(
        0, water="lake", celestial="sun", celestial_side="right", camera="pan left"
    )
    numbers = torch.tensor([labels(scene), labels(scene, TOLD_BY_CROPS)])
    expected = torch.tensor([labels(swapped), labels(scene, TOLD_BY_CROPS)])
    assert torch.equal(mirrored(numbers), expected)
    assert torch.equal(mirrored(mirrored(numbers)), numbers)


def test_half_of_a_batch_is_mirrored():
    stage = classifier_stage(batch_size=64)
    video, numbers = stage.batch(0)
    rings = stage.pool.rings
    pool = [(x.float() / 255, y) for x, y in zip(rings[0], rings[1], strict=True)]
    flipped = 0
    for clip, label in zip(video, numbers, strict=True):
        as_is = any(torch.equal(clip, x) and torch.equal(label, y) for x, y in pool)
        mirror = any(
            torch.equal(clip, x.flip(-1)) and torch.equal(label, mirrored(y[None])[0])
            for x, y in pool
        )
        assert as_is or mirror
        flipped += mirror
    assert 16 < flipped < 48


class Corner:
    """In place of a random place."""

    def randint(self, low: int, high: int) -> int:
        return low


def test_accuracy_counts_what_can_be_seen(monkeypatch):
    stage = classifier_stage(held_out=6)
    numbers = stage.held_out[1]
    assert stage.held_out[0].shape == (6, 3, 5, 32, 48)
    monkeypatch.setattr(stage, "predictions", lambda: numbers.clamp(min=0))
    assert all(value in (1, None) for value in stage.accuracy().values())
    monkeypatch.setattr(stage, "predictions", lambda: numbers + 1)
    assert all(value in (0, None) for value in stage.accuracy().values())


def test_a_tiny_classifier_is_trained_and_reports_its_accuracy(tmp_path, capsys):
    config = TrainingConfig(out=tmp_path, minutes=60, max_steps=3, log_steps=1, warmup_steps=1)
    folder = train("classifier", config, TINY) / "classifier"
    assert AttributeClassifier.from_pretrained(folder).config.attributes["water"] == [
        *ALLOWED["water"]
    ]
    report = json.loads((folder / "accuracy.json").read_text())
    assert report["held_out_clips"] == 4 and list(report["accuracy"]) == list(ALLOWED)
    printed = capsys.readouterr().out
    assert "accuracy" in printed and "held-out accuracy of 4 clips" in printed
    assert (tmp_path / "classifier/samples/000003.png").exists()
