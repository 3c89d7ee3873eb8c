"""The rows of a table, and how their clips are made."""

from __future__ import annotations

from dataclasses import replace

import pytest
from evaluations import ROWS, TABLE1
from fakes import fake_models

from ultragen.evaluation.rows import Maker, Row, rows_of
from ultragen.runs.loading import Models
from ultragen.runs.request import Request
from ultragen.world.heldout import held_out_clips


def test_rows_are_made_as_they_say(fake):
    asked = Request("any", "tiny", num_frames=5, num_inference_steps=1, seed=7)
    maker = Maker(lambda folder: fake, asked)
    case = held_out_clips(1)[0]
    made = {row.key: next(maker.make(row, [(3, case)])) for row in TABLE1}
    assert all(frames.shape == (5, 120, 160, 3) for frames, _ in made.values())
    assert made["real"][1] is None and all(made[key][1] > 0 for key in ROWS if key != "real")
    assert {call["size"] for call in fake.native.calls} == {(128, 160)}
    # One small clip for both upscalers, and the base model at the full size.
    assert [call["size"] for call in fake.base.calls] == [(128, 160), (64, 96)]
    calls = [*fake.native.calls, *fake.base.calls]
    assert {(call["prompt"], call["seed"]) for call in calls} == {(case.caption, 10)}


def test_a_row_of_another_model(fake, tmp_path):
    other = fake_models()
    loaded = []

    def load(name: str | None) -> Models:
        loaded.append(name)
        return other if name else fake

    maker = Maker(load, Request("any", "tiny", num_frames=5, num_inference_steps=1))
    row = Row("without-global", "Without the global branch", "ultragen", model=str(tmp_path))
    for i, case in enumerate(held_out_clips(2)):
        [*maker.make(row, [(i, case)])]
    assert loaded == [None, str(tmp_path)]
    assert len(other.native.calls) == 2 and fake.native.calls == []


def test_rows_of_other_settings_share_no_small_clip(fake):
    maker = Maker(lambda name: fake, Request("any", "tiny", num_frames=5, num_inference_steps=1))
    case = held_out_clips(1)[0]
    plain = Row("few", "Few steps", "base", upscaler="lanczos")
    for row in (plain, replace(plain, num_inference_steps=3), replace(plain, guidance_scale=2.0)):
        [*maker.make(row, [(0, case)])]
    assert [(call["steps"], call["guidance"]) for call in fake.base.calls] == [
        (1, 3), (3, 3), (1, 2),
    ]  # fmt: skip


def test_an_unknown_table_names_the_known():
    with pytest.raises(ValueError, match="'table9' is unknown: choose from table1"):
        rows_of("table9")
