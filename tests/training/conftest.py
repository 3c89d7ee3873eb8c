"""What tests of trained weights share."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature
from pathlib import Path

import pytest
from latent_files import write_latents
from training_stages import steps

from ultragen.training.stage_order import STAGES, train
from ultragen.training.stages.transformer_stage import TransformerStage
from ultragen.training.tiny import TINY


@pytest.fixture(scope="session", autouse=True)
def short_samples() -> Iterator[None]:
    """Sample sheets in two steps: sampling takes longer than the steps that the tests train."""
    start = TransformerStage.__init__
    assert signature(start).parameters["num_inference_steps"].default == 12
    with pytest.MonkeyPatch.context() as patch:
        seed, _, guidance_scale = start.__defaults__
        patch.setattr(start, "__defaults__", (seed, 2, guidance_scale))
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory, short_samples) -> Path:
    """All stages, a few steps each."""
    out = tmp_path_factory.mktemp("training")
    for stage in STAGES:
        assert train(stage, steps(out, 3), TINY) == out / "model"
    return out


@pytest.fixture(scope="session")
def data(files, tmp_path_factory) -> Path:
    """Latents for the tiny Wan, which no test may change."""
    return write_latents(tmp_path_factory.mktemp("latents") / "data", files.base)
