"""Fused kernels, one file each, used where the plain code moves the same memory many times: in
Triton on a GPU; on a CPU (`cpu`) the library's own operators. Each has a plain twin beside its use,
which runs everywhere else."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch

_plain = False


@torch.compiler.assume_constant_result
def kernel_works(name: str, device: torch.device) -> bool:
    """Whether the kernels of a module of this package run on a device; tried once."""
    return not _plain and _runs(name, device)


@torch.compiler.assume_constant_result
def wants_plain_code() -> bool:
    """Whether `plain_code` holds, for other ways that need no kernel."""
    return _plain


@contextmanager
def plain_code() -> Iterator[None]:
    """Runs the plain twins in place of all kernels, to compare with them."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


@cache
def _runs(name: str, device: torch.device) -> bool:
    """Runs a module's kernels on little: the GPU may be too old, or a C compiler missing."""
    if name == "cpu":
        if device.type != "cpu":
            return False
    elif device.type != "cuda" or find_spec("triton") is None:
        return False
    try:
        with torch.inference_mode(False):  # some are tried with gradients
            import_module(f".{name}", __name__).try_on(device)
    except torch.OutOfMemoryError:  # says nothing of the kernels
        raise
    except Exception as error:  # Triton has no common class for what can go wrong
        warnings.warn(f"{name} does not run on {device}, slower code does: {error}", stacklevel=2)
        return False
    return True
