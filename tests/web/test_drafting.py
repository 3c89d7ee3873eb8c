"""Drafts on the page, without a browser."""

from __future__ import annotations

from types import SimpleNamespace

import gradio as gr
import pytest
from fakes import fake_models, follow_on, until, without_a_server

import app
from ultragen.presets import EMBEDDED
from ultragen.runs.drafts import FRAMES, DraftFrames
from ultragen.runs.request import Request
from ultragen.video import probe_video
from ultragen.web import drafting
from ultragen.web.settings import SETTINGS, validated

ME = SimpleNamespace(session_hash="me")


@pytest.fixture
def page(tmp_path):
    return without_a_server(app.Page(fake_models(), tmp_path))


def settings(**changes) -> list:
    given = {"prompt": "a calm lake", "num_inference_steps": 2, "seed": 5, **changes}
    seed = given.pop("seed")
    return list((Request(**given).validate(EMBEDDED).to_dict() | {"seed": seed}).values())


def drafts(page, count: int = 2, **changes) -> list[dict]:
    return list(page.drafts.run(ME, *settings(**changes), count))


def make_large(page, values: list, scene: dict) -> list[dict]:
    checked = list(page.prepare_large(ME, *values, scene))
    return checked + list(follow_on(page, ME, page.run_large(ME, *values, scene, {}), [], {}))


def last(updates: list[dict], component) -> object:
    return [update[component] for update in updates if component in update][-1]


def test_drafts_come_one_by_one_and_the_first_one_plays(page):
    updates, ui = drafts(page), page.ui
    sizes = [len(update[ui.drafted]) for update in updates if ui.drafted in update]
    assert sizes == [1, 2, 2]
    for draft in last(updates, ui.drafted):
        info = probe_video(draft.clip)
        assert (info.width, info.height, info.num_frames) == (512, 288, FRAMES)
    assert "2 drafts in" in last(updates, ui.status)
    assert last(updates, ui.comparison)["labels"]["native"] == "Draft 512×288, seed 5"
    assert last(updates, ui.large)["value"] == "Make it large: seed 5"
    assert last(updates, ui.start)["interactive"]


def test_the_draft_that_was_chosen_is_made_large_at_the_size_of_then(page):
    ui = page.ui
    updates = drafts(page, seed=None, aspect="9:16", guidance_scale=2.0)
    made = last(updates, ui.drafted)
    scene = page.drafts.choose(made, SimpleNamespace(index=1))[ui.scene]
    now = settings(
        prompt="something else", resolution="720p", num_frames=9, seed=None, progressive="on"
    )
    updates = make_large(page, now, scene)
    call = page.models.native.calls[-1]
    assert call["prompt"] == "a calm lake"
    assert call["seed"] == made[1].request.seed
    assert call["guidance"] == 2.0
    assert call["size"] == (1280, 736)
    assert call["composition"] is not None and page.models.native.calls[-2]["size"] == (960, 544)
    asked = last(updates, ui.metadata)["request"]
    assert (asked["num_frames"], asked["aspect"], asked["noise"]) == (9, "9:16", "spectral")
    assert f"seed {made[1].request.seed}" in last(updates, ui.status)
    assert not any(ui.seed in update for update in updates)  # empty is a new one each time


def test_a_seed_that_was_typed_becomes_the_drafts(page):
    made = last(drafts(page, seed=5), page.ui.drafted)
    scene = page.drafts.choose(made, SimpleNamespace(index=1))[page.ui.scene]
    updates = make_large(page, settings(seed=5), scene)
    assert last(updates, page.ui.seed) == 6
    given = settings(seed=6)
    query = page.visits.share(
        last(updates, page.ui.history), last(updates, page.ui.visitor), *given
    )[page.ui.link]["value"]
    assert "run=" in query and "seed=6" in query


def test_an_empty_seed_gives_other_drafts_each_time(page):
    seeds = [last(drafts(page, 1, seed=None), page.ui.drafted)[0].request.seed for _ in range(2)]
    assert seeds[0] != seeds[1]


def test_drafts_come_back_as_long_as_their_files_are_there(page):
    ui = page.ui
    updates = drafts(page, seed=5, guidance_scale=2.0)
    made, kept = last(updates, ui.drafted), last(updates, ui.kept_drafts)
    back = page.drafts.restore(kept, {"shown": None})
    assert back[ui.drafted] == made
    assert back[ui.drafts]["value"] == last(updates, ui.drafts)["value"]
    assert back[ui.comparison] == last(updates, ui.comparison)
    assert back[ui.large]["value"] == "Make it large: seed 5"
    assert ui.comparison not in page.drafts.restore(kept, {"shown": "a-run"})
    made[1].clip.unlink()
    assert page.drafts.restore(kept, {}) == {ui.kept_drafts: {}}


@pytest.mark.parametrize(
    "change",
    [
        {"folder": "../elsewhere"},
        {"folder": 5},
        {"settings": [{"prompt": ""}]},
        {"settings": [{"seed": 1}]},
        {"settings": [3]},
        {"settings": "all"},
    ],
)
def test_kept_drafts_that_make_no_sense_are_none(page, change):
    kept = last(drafts(page), page.ui.kept_drafts) | change
    assert page.drafts.restore(kept, {}) == {page.ui.kept_drafts: {}}
    assert page.drafts.restore([kept], None) == {page.ui.kept_drafts: {}}


def test_more_than_are_offered_are_refused_before_any_work(page):
    with pytest.raises(gr.Error, match="So many of 4k would take about"):
        drafts(page, 5, resolution="4k")
    assert page.models.base.calls == []


def test_what_exceeds_every_quota_is_refused(page, monkeypatch):
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setattr(drafting, "drafts_seconds_asked", lambda *_: 2000)
    with pytest.raises(gr.Error, match="2,000 GPU seconds, and no quota starts more than 1,600"):
        drafts(page)
    costly = settings(resolution="4k", num_inference_steps=100, num_frames=33)
    with pytest.raises(gr.Error, match="that of PRO accounts: choose a smaller resolution"):
        validated(page.models, dict(zip(SETTINGS, costly, strict=True)))
    monkeypatch.delenv("SPACES_ZERO_GPU")
    assert validated(page.models, dict(zip(SETTINGS, costly, strict=True)))


def test_keys_start_no_run_while_drafts_wait_or_are_made(page):
    list(page.prepare(ME, *settings()))
    with pytest.raises(gr.Error, match="under way"):
        next(page.prepare(ME, *settings()))
    making = page.drafts.run(ME, *settings(), 1)
    next(making)
    with pytest.raises(gr.Error, match="under way"):
        next(page.prepare(ME, *settings()))
    list(making)
    assert list(page.prepare(ME, *settings()))


def test_two_starts_at_once_make_one_run(page, monkeypatch):
    real, others = app.validated, []

    def validated(*given):
        if not others:
            others.append("begun")
            others.extend(page.prepare(ME, *settings()))
        return real(*given)

    monkeypatch.setattr(app, "validated", validated)
    with pytest.raises(gr.Error, match="under way"):
        next(page.prepare(ME, *settings()))
    assert len(others) == 2


def test_cancelled_drafts_leave_nothing(page, tmp_path):
    for update in page.drafts.run(ME, *settings(), 3):
        if page.ui.drafted in update:
            page.cancel(ME)
        final = update
    assert "Cancelled" in final[page.ui.status]
    assert not final[page.ui.drafts]["visible"]
    assert list(tmp_path.iterdir()) == []


def test_drafts_cancelled_before_their_turn_say_that_nothing_was_computed(page):
    list(page.prepare(ME, *settings()))
    page.cancel(ME)
    card = last(drafts(page), page.ui.status)
    assert "Cancelled" in card and "nothing was computed" in card and "0:0" not in card


@pytest.mark.parametrize(
    ("damage", "words"), [("black", "every frame is black"), ("nan", "not finite")]
)
def test_drafts_that_fail_say_why(tmp_path, damage, words):
    page = app.Page(fake_models(), tmp_path)
    page.build()
    page.models.base.damage = damage
    updates = drafts(page)
    assert words in last(updates, page.ui.status)
    assert last(updates, page.ui.draft)["interactive"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("by zero"), gr.Error("The GPU is gone: a&lt;b")], ids=type
)
def test_an_exception_on_the_way_leaves_no_progress_standing(page, tmp_path, error):
    """What lends GPUs raises where other failures are told."""
    ui, make, seen = page.ui, page.drafts.gpu_part, {}

    def breaks(asked, count):
        for item in make(asked, count):
            yield item
            if isinstance(item, DraftFrames):
                raise error

    page.drafts.gpu_part = breaks
    list(page.prepare(ME, *settings()))
    with pytest.raises(gr.Error) as raised:
        for update in page.drafts.run(ME, *settings(), 2):
            seen |= update
    assert "The drafts failed" in seen[ui.status] and seen[ui.drafted]
    assert str(raised.value.message).split()[-1] in seen[ui.status]
    assert seen[ui.draft]["interactive"] and not seen[ui.stop]["visible"]
    assert not seen[ui.drafts]["visible"] and seen[ui.kept_drafts] == {}
    assert list(tmp_path.iterdir()) == []
    # The event that comes after it, also to a page that has passed over the last update.
    assert page.following.not_taken(ME, "Draft 1 of 2")[ui.status] == seen[ui.status]
    assert list(page.prepare(ME, *settings()))


def test_an_exception_of_the_page_gives_the_device_back(page, monkeypatch):
    """What is kept of the exception holds the frames in which it was raised."""

    def breaks(made):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(drafting, "gallery", breaks)
    list(page.prepare(ME, *settings()))
    with pytest.raises(gr.Error):
        list(page.drafts.run(ME, *settings(), 2))
    until(lambda: not page.runs.device.locked())


def test_drafts_cancelled_as_they_end_say_again_how_they_ended(page):
    card = last(drafts(page, 1), page.ui.status)
    assert "A draft in" in card and page.cancel(ME) == card


def test_a_full_disk_shows_no_path_to_visitors(page, tmp_path, monkeypatch, capsys):
    def full(draft, folder):
        raise OSError(f"{folder} was not written: the disk is full")

    monkeypatch.setattr(drafting, "write_draft", full)
    shown = last(drafts(page), page.ui.status)
    assert "server" in shown and str(tmp_path) not in shown
    assert str(tmp_path) in capsys.readouterr().err
