"""Drafts: several seeds, small and short, and what of them a large clip takes over."""

from __future__ import annotations

from threading import Event

import numpy as np
import pytest
import torch
from fakes import fake_models
from PIL import Image

from ultragen.presets import EMBEDDED
from ultragen.runs.drafts import (
    FRAMES,
    MOST,
    DraftFrames,
    check_count,
    draft_requests,
    drafts_seconds_asked,
    estimate_drafts,
    generate_drafts,
)
from ultragen.runs.loading import load_models
from ultragen.runs.native import generate_native
from ultragen.runs.progress import Cancelled, Progress
from ultragen.runs.request import MAX_SEED, Request


def asked(**settings) -> Request:
    own = {"prompt": "a calm lake", "num_inference_steps": 3, "seed": 5}
    return Request(**{**own, **settings}).validate(EMBEDDED)


def made(request: Request, count: int, models=None) -> list:
    items: list = []
    generate_drafts(request, count, models or fake_models(), items.append, Event())
    return items


def test_each_seed_has_a_small_short_clip_of_the_base_model():
    models = fake_models()
    items = made(asked(resolution="4k", aspect="9:16"), 3, models)
    drafts = [item for item in items if isinstance(item, DraftFrames)]
    assert [draft.request.seed for draft in drafts] == [5, 6, 7]
    assert {draft.frames.shape for draft in drafts} == {(FRAMES, 512, 288, 3)}
    assert models.native.calls == []
    assert [call["seed"] for call in models.base.calls] == [5, 6, 7]
    assert drafts[0].request.resolution == "4k"  # that of the large clip
    fractions = [item.fraction for item in items if isinstance(item, Progress)]
    assert fractions == sorted(fractions) and 0.95 < fractions[-1] <= 1
    assert any("Draft 2 of 3: denoising, step 1 of 3" in str(item) for item in items)


def test_drafts_have_the_noise_that_makes_a_seed_one_scene():
    models = fake_models()
    made(asked(noise="independent"), 1, models)
    assert models.base.calls[0]["noise"] == "spectral"


def test_the_last_seed_is_followed_by_the_first():
    seeds = [request.seed for request in draft_requests(asked(seed=MAX_SEED), 2)]
    assert seeds == [MAX_SEED, 0]


def test_cancelling_stops_within_a_step():
    stop, models = Event(), fake_models()
    with pytest.raises(Cancelled):
        generate_drafts(asked(), 4, models, lambda item: stop.set(), stop)
    assert models.base.steps_done <= 1


def test_drafts_cost_what_so_many_small_clips_do():
    models = fake_models()
    one, four = (estimate_drafts(asked(resolution="4k"), count, models) for count in (1, 4))
    assert four["base_denoise"] == 4 * one["base_denoise"]
    assert four["text"] == one["text"]
    assert sum(four.values()) < 60
    asked_for = drafts_seconds_asked(asked(), 4, models)
    assert asked_for > drafts_seconds_asked(asked(), 1, models)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (5, ["from 1 to 4, not 5", "So many of 4k would take about", "minutes here"]),
        (10**400, ["from 1 to 4", "for ever"]),
        (0, ["from 1 to 4, not 0"]),
        (True, ["not True"]),
        (2.5, ["not 2.5"]),
        (None, ["not None"]),
    ],
)
def test_another_number_is_refused_with_what_it_would_cost(count, words):
    with pytest.raises(ValueError) as error:
        check_count(count, asked(resolution="4k"), fake_models())
    for word in words:
        assert word in str(error.value)
    assert len(str(error.value)) < 300


def test_as_many_as_are_offered_are_taken():
    assert [check_count(count, asked(), fake_models()) for count in (1, MOST)] == [1, MOST]


@pytest.mark.slow
def test_a_draft_is_the_scene_of_the_large_clip():
    """On grey pictures of 18 × 32, of two seeds each draft is nearer to its own clip."""
    torch.manual_seed(0)
    models = load_models("embedded")
    request = asked(num_inference_steps=8, num_frames=5)
    drafts = [item.frames for item in made(request, 2, models) if isinstance(item, DraftFrames)]
    large = [generate_native(one, models).frames for one in draft_requests(request, 2)]

    def grey(frames: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(frames[2]).convert("L").resize((32, 18), Image.Resampling.BOX)
        return np.asarray(picture, float).ravel()

    same = np.corrcoef([grey(frames) for frames in (*drafts, *large)])
    assert min(same[0, 2], same[1, 3]) > max(same[0, 3], same[1, 2])
