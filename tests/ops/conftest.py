"""What tests of kernels share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def rotary_norm():
    from ultragen.ops import triton_rotary_norm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_rotary_norm, "PROGRAMS", 3)
        yield triton_rotary_norm.rotary_norm
