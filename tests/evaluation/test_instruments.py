"""A clip measured by all instruments."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluations import save_classifier

from ultragen.evaluation import instruments as measuring
from ultragen.evaluation.instruments import Instruments, load_instruments, measure, see, told_by
from ultragen.evaluation.metrics import FrameNetwork, TextFrameNetwork, to_tensor
from ultragen.world.heldout import held_out_clips
from ultragen.world.scene import ALLOWED


def test_a_clip_is_measured_by_every_instrument(tmp_path, monkeypatch):
    case = held_out_clips(1)[0]
    folder = save_classifier(tmp_path / "classifier")
    text = TextFrameNetwork(
        "text", lambda x: x.mean((2, 3)), embed_text=lambda t: torch.tensor([[1.0, 1, 1]])
    )
    monkeypatch.setattr(measuring, "load_clip", lambda name, device: text)
    tools = load_instruments(tmp_path, clip="folder")
    assert tools.names() == {
        "hd_fvd": [tools.classifier_name], "hd_lpips": None, "clip_score": "text",
        "temporal": "text", "following": tools.classifier_name,
    }  # fmt: skip
    assert load_instruments(tmp_path).names()["temporal"] == tools.classifier_name
    frames = np.random.default_rng(0).integers(0, 256, (5, 70, 100, 3), dtype=np.uint8)
    found = measure(frames, case, tools, 1.5)
    assert found.seconds == 1.5 and found.hd_mse > 0 and found.hd_lpips is None
    assert found.clip_score == pytest.approx(1, abs=0.01)
    assert found.temporal == pytest.approx(1, abs=0.01)
    assert found.seen == see(frames, tools.classifier) and set(found.seen) == set(ALLOWED)
    assert found.named == case.named
    assert found.features[tools.classifier_name].shape[0] == 2 * 2
    assert folder.is_dir()


def test_nothing_is_computed_twice(tmp_path, monkeypatch):
    """One upload of a frame for all measures, one look of a network, and no frame unseen."""
    frames = np.random.default_rng(0).integers(0, 256, (17, 70, 100, 3), dtype=np.uint8)
    looks, uploads, reduced = [], [], []

    def embed(frame: torch.Tensor) -> torch.Tensor:
        looks.append(frame)
        return frame.mean((2, 3))

    both = TextFrameNetwork("text", embed, embed_text=lambda text: torch.ones(1, 3))
    save_classifier(tmp_path / "classifier")
    tools = replace(load_instruments(tmp_path), clip=both, frames=both)
    upload, reduce = torch.from_numpy, tools.classifier.reduce
    monkeypatch.setattr(torch, "from_numpy", lambda x: uploads.append(x) or upload(x))
    monkeypatch.setattr(tools.classifier, "reduce", lambda x: reduced.append(x) or reduce(x))
    found = measure(frames, held_out_clips(1)[0], tools)
    assert len(looks) == len(uploads) == 17 and len(reduced) == 5
    assert found.clip_score is not None and found.temporal is not None
    whole = torch.cat([reduce(to_tensor(frame)) for frame in frames])
    assert found.seen == tools.classifier.classify(whole)


def test_without_networks_nothing_is_made_up(tmp_path):
    found = measure(np.zeros((1, 8, 8, 3), np.uint8), held_out_clips(1)[0], Instruments())
    assert found.hd_mse == 0 and found.features == {}
    assert found.hd_lpips is found.clip_score is found.temporal is found.seen is None
    assert load_instruments(tmp_path).names()["hd_fvd"] == []


def test_a_classifier_that_is_named_must_be_there(tmp_path):
    with pytest.raises(ValueError, match="run `train classifier`"):
        load_instruments(tmp_path, classifier=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="run `train classifier`"):
        load_instruments(tmp_path, features=["classifier"])


def test_one_frame_has_no_temporal_consistency():
    network = FrameNetwork("colours", lambda x: x.mean((2, 3)))
    frame = np.full((1, 8, 8, 3), 9, np.uint8)
    assert measure(frame, held_out_clips(1)[0], Instruments(frames=network)).temporal is None


def test_what_the_classifier_was_not_trained_to_tell_does_not_count(tmp_path):
    save_classifier(tmp_path / "classifier")
    tools = load_instruments(tmp_path)
    case = next(
        x
        for x in held_out_clips(60, edition=2)
        if x.named["terrain"] == "valley" and "camera" in x.named
    )
    frames = np.random.default_rng(0).integers(0, 256, (5, 70, 100, 3), dtype=np.uint8)
    found = measure(frames, case, tools)
    assert "terrain" not in found.named and found.named["camera"] == case.named["camera"]
    assert told_by(None, case.named) == dict(case.named)


def test_skylines_are_judged_where_there_is_one_under_a_clear_sky():
    frames = np.random.default_rng(0).integers(0, 256, (5, 70, 100, 3), dtype=np.uint8)
    for edition in (1, 2):
        cases = held_out_clips(100, edition=edition)
        clear = [x for x in cases if x.named["weather"] == "clear"]
        mountains = next(x for x in clear if x.named["terrain"] == "mountains")
        others = next(x for x in cases if x.named["weather"] == "rain")
        assert measure(frames, mountains, Instruments()).outline in (True, False)
        assert measure(frames, others, Instruments()).outline is None
