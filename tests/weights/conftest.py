"""Random weights of the released layout."""

from __future__ import annotations

import pytest
from released_files import SMALL
from released_reference import released_weights
from torch import Tensor

from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.weights.released import load_released


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return released_weights()


@pytest.fixture(scope="module")
def model(weights) -> UltraGenTransformer3DModel:
    return load_released(weights)


@pytest.fixture
def small() -> dict[str, Tensor]:
    """A released state dictionary that a test may change."""
    return released_weights(SMALL)
