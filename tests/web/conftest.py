"""What tests of the page share."""

from __future__ import annotations

import pytest
from browsers import launched


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser
