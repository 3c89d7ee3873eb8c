"""Fused kernels, one file each, used where their library twins are many times slower."""

from __future__ import annotations

import warnings
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec

import torch


@torch.compiler.assume_constant_result
def depthwise_works_on(device: torch.device) -> bool:
    """Whether the fused depthwise convolution runs on a device; tried once."""
    return _runs("depthwise", device)


@torch.compiler.assume_constant_result
def renderer_works_on(device: torch.device) -> bool:
    """Whether the fused loops of the renderer run on a device; tried once."""
    return _runs("renderer", device)


def normalize_works_on(device: torch.device) -> bool:
    """Whether the fused normalisation runs on a device; tried once."""
    return _runs("normalize", device)


@lru_cache(maxsize=16)
def _runs(name: str, device: torch.device) -> bool:
    """Runs a module's kernels on little: the GPU may be too old, or a C compiler missing."""
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    try:
        import_module(f".{name}", __name__).try_on(device)
    except Exception as error:  # Triton has no common class for what can go wrong
        warnings.warn(f"Triton does not run on {device}, slower code does: {error}", stacklevel=2)
        return False
    return True
