"""The classifier's stage."""

from __future__ import annotations

import pytest
import torch

from ultragen.model.classifier import AttributeClassifier
from ultragen.training.build import TINY_SIZE, build_classifier
from ultragen.training.stages.classifier_stage import ClassifierStage
from ultragen.training.tiny import TINY
from ultragen.world.scene import ALLOWED


def test_a_classifier_that_was_saved_is_trained_on_with_its_heads_in_their_places(tmp_path):
    """A saved configuration lists attributes by the alphabet, labels come in the world's order."""
    network = build_classifier(TINY_SIZE)
    network.save_pretrained(tmp_path)
    again = AttributeClassifier.from_pretrained(tmp_path)
    assert list(again.heads) != list(network.heads)
    settings = dict(TINY.classifier)
    stages = [ClassifierStage(x, **settings) for x in (network, again)]
    numbers = torch.tensor([[len(values) - 1 for values in ALLOWED.values()]] * 2)
    config = network.config
    video = torch.rand(2, 3, config.num_frames, config.height, config.width)
    losses = [stage.loss(stage.model, (video, numbers))["loss"] for stage in stages]
    torch.testing.assert_close(*losses)
    for stage in stages:
        stage.device = torch.device("cpu")
    assert torch.equal(*(stage.predictions() for stage in stages))


def test_a_classifier_of_another_world_is_not_trained_on():
    other = AttributeClassifier({"water": ["none"]}, channels=(8,), blocks=(1,))
    with pytest.raises(ValueError, match="start afresh"):
        ClassifierStage(other)
