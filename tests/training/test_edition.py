"""A training in the world's second edition, afresh or from weights of the first."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_stages import steps
from transformers import AutoTokenizer

from ultragen.model.text_encoder import ClauseTextEncoder
from ultragen.sampling.words import find_edition
from ultragen.training.build import TINY_SIZE, build_classifier, build_pipeline
from ultragen.training.data import SceneStream, caption_variants
from ultragen.training.stage_order import STAGES, Sources, edition_of, train
from ultragen.training.stages.classifier_stage import IGNORED, ClassifierStage, labels, mirrored
from ultragen.training.tiny import TINY
from ultragen.world.captions import vocabulary, weather_phrases
from ultragen.world.scene import GROWN, make_scene, sample_scene

SECOND = replace(TINY, edition=2)


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """A model that knows the words of the first edition."""
    folder = tmp_path_factory.mktemp("first") / "model"
    build_pipeline(TINY_SIZE, vocabulary()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_draws_from_the_edition(name, first, tmp_path):
    sources = Sources(tmp_path / "model", first)
    assert STAGES[name](sources, SECOND, 0).edition == 2
    assert STAGES[name](sources, TINY, 0).edition == 1


def test_streams_are_of_one_edition():
    assert {scene.edition for scene in SceneStream(0, 0, 2).take(3)} == {2}
    [one], [two] = SceneStream(0, 0).take(1), SceneStream(0, 0, 2).take(1)
    assert one == sample_scene(one.seed) and two == sample_scene(one.seed, 2)


def test_foul_weather_is_never_left_out():
    for seed in range(60):
        weather = random.Random(seed).choice(("storm", "haze", "mist", "rain"))
        scene = make_scene(seed, 2, weather=weather)
        for text in caption_variants(scene, 6):
            assert any(phrase in text.split(", ") for phrase in weather_phrases(scene)), text


def test_the_base_model_goes_on_with_more_words(first, tmp_path):
    out = train("base", steps(tmp_path, 2), SECOND, first)
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    old = AutoTokenizer.from_pretrained(first / "tokenizer")
    encoder = ClauseTextEncoder.from_pretrained(out / "text_encoder")
    assert set(vocabulary(2)) <= set(tokenizer.get_vocab())
    assert (find_edition(old), find_edition(tokenizer)) == (1, 2)
    # What nobody says follows from the words that there are.
    assert (edition_of(tmp_path, first), edition_of(tmp_path / "other", out)) == (2, 2)
    broken_off = tmp_path / "third" / "base"
    shutil.copytree(tmp_path / "base", broken_off)  # and nothing in its `model` yet
    assert edition_of(broken_off.parent, first) == 2
    assert edition_of(tmp_path / "other", first) == edition_of(tmp_path / "other") == 1
    assert encoder.get_input_embeddings().num_embeddings == len(tokenizer)
    text = "a calm lake at noon, clear sky"
    assert tokenizer(text).input_ids == old(text).input_ids


def test_new_words_can_not_be_frozen(first, tmp_path):
    with pytest.raises(ValueError, match=r"does not know .* words of edition 2.*--freeze-text"):
        train("base", steps(tmp_path, 1), replace(SECOND, freeze_text=True), first)


def test_the_classifier_tells_the_editions_attributes():
    network = build_classifier(TINY_SIZE, 2)
    assert list(network.config.attributes) == list(GROWN)
    with pytest.raises(ValueError, match="edition 1: start afresh"):
        ClassifierStage(network)
    scene = make_scene(3, 2, celestial="none", terrain="valley", camera="pan left")
    numbers = dict(zip(GROWN, labels(scene), strict=True))
    assert GROWN["terrain"][numbers["terrain"]] == "valley"
    assert numbers["celestial_size"] == numbers["celestial_side"] == IGNORED
    flipped = mirrored(torch.tensor([labels(scene)]), 2)[0]
    changed = {name for name, a, b in zip(GROWN, labels(scene), flipped.tolist(), strict=True)
               if a != b}  # fmt: skip
    assert changed == {"camera"}
