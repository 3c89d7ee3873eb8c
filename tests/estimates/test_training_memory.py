"""What training takes of a GPU's memory, and what is said where that is not there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ultragen.estimates.training_memory import TrainingMemory
from ultragen.hardware import GIB
from ultragen.model import wan_1_3b

PARAMETERS = 1_764_000_000
PAPER = TrainingMemory(
    tokens=171_360,
    parameters=PARAMETERS,
    trained=PARAMETERS,
    branches=PARAMETERS - wan_1_3b.PARAMETERS["base_transformer"],
    layers=30,
    width=wan_1_3b.WIDTH,
)


@pytest.mark.parametrize(
    ("tokens", "on_host", "measured"),
    [(171_360, False, 28.9), (261_120, False, 42.3), (171_360, True, 18.0), (261_120, True, 24.1)],
)
def test_activations_are_those_that_were_measured(tokens, on_host, measured):
    """A step without optimiser, weights and gradients in bfloat16 (docs/training-wan.md)."""
    weights = 2 * 2 * PARAMETERS
    counted = (replace(PAPER, tokens=tokens, on_host=on_host).activations + weights) / GIB
    assert measured < counted * 1.01 and counted == pytest.approx(measured, rel=0.06)


def test_full_training_holds_sixteen_bytes_of_every_weight():
    assert PAPER.states >= 16 * PARAMETERS
    assert replace(PAPER, optimizer="adamw8bit").states < PAPER.states - 5 * PARAMETERS
    assert replace(PAPER, average=True).states == PAPER.states + 4 * PARAMETERS
    assert replace(PAPER, trained=PARAMETERS // 50).states < PAPER.states / 5


def test_several_gpus_share_states_but_not_activations():
    eight = replace(PAPER, processes=8)
    assert eight.states < PAPER.states / 4
    assert eight.activations == PAPER.activations


def test_less_is_kept_where_more_is_computed_again():
    half, none = (replace(PAPER, recomputed=kept) for kept in ("half", "none"))
    host = replace(PAPER, on_host=True)
    assert host.activations < PAPER.activations < half.activations < none.activations
    piecewise, full = replace(PAPER, one_operation=False), replace(PAPER, full_layers=6)
    stream = PAPER.tokens * PAPER.width * 2
    assert piecewise.activations - PAPER.activations == 6 * stream
    assert 5 * stream < full.activations - PAPER.activations < 6 * stream


def test_what_fits_is_not_refused_and_what_does_not_is_told_what_would():
    PAPER.check(PAPER.peak, "clips")
    with pytest.raises(ValueError, match=r"1 × 1088x1920x81 needs about .* GiB") as caught:
        PAPER.check(PAPER.peak - 1, "1 × 1088x1920x81")
    for way in ("--keep-on-host", "adamw8bit", "--train new", "--train lora"):
        assert way in str(caught.value)
    with pytest.raises(ValueError, match="are there: choose --train lora") as caught:
        PAPER.check(24 * GIB, "clips")
    assert "adamw8bit" not in str(caught.value)
    with pytest.raises(ValueError, match="take a larger GPU, or several"):
        PAPER.check(2 * GIB, "clips")


def test_what_is_offered_takes_less():
    for text, other in PAPER.smaller():
        assert other.peak < PAPER.peak, text
    assert "--recompute all" not in dict(PAPER.smaller())
    assert "--recompute all" in dict(replace(PAPER, recomputed="none").smaller())
