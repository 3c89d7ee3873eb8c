"""What the trials are given; their sizes follow from minutes, so that one code does both runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from trials import Tally


@pytest.fixture
def minutes(request) -> float:
    """How long all trials may take together."""
    return request.config.getoption("--trial-minutes")


@pytest.fixture
def trial(request, record_property) -> Iterator[Callable[[str], Tally]]:
    """Makes tallies, which stand in the table whatever becomes of the test."""
    tallies: list[Tally] = []

    def begin(name: str) -> Tally:
        tallies.append(Tally(name))
        return tallies[-1]

    yield begin
    for tally in tallies:
        record_property("trial", tally.row())
