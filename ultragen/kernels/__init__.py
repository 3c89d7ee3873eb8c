"""Fused kernels, one file each, used where their library twins are many times slower."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec

import torch


@torch.compiler.assume_constant_result
@lru_cache(maxsize=8)
def depthwise_works_on(device: torch.device) -> bool:
    """Whether the fused depthwise convolution runs on a device; tried once."""
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    from .depthwise import works_on

    return works_on(device)
