"""What tests of trained weights share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from training_stages import QUICK, steps

from ultragen.training.recipe import STAGES, train
from ultragen.training.stages import transformer_stage


@pytest.fixture(scope="session", autouse=True)
def two_prompts() -> Iterator[None]:
    """Sample sheets of two rows: sampling takes longer than the steps that the tests train."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer_stage, "SAMPLE_PROMPTS", transformer_stage.SAMPLE_PROMPTS[:2])
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory, two_prompts) -> Path:
    """All stages, a few steps each."""
    out = tmp_path_factory.mktemp("training")
    for stage in STAGES:
        assert train(stage, steps(out, 3), QUICK) == out / "model"
    return out
