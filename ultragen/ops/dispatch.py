"""Which implementation of an operation runs on a device.

Every operation of this room has a plain form, which runs anywhere, and may have a fused one: in
Triton on a GPU, in the library's own fused operators on a CPU. A fused form is tried on little
before it is relied on, because a GPU may be too old, or a C compiler missing; `prepare` tries all
of a device before the first step, and `report` tells what was chosen and why.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Literal

import torch

FUSED = {
    "cuda": (
        "triton_compress",
        "triton_decompress",
        "triton_depthwise",
        "triton_gelu",
        "triton_modulation",
        "triton_resampling",
        "triton_rms_silu",
        "triton_rotary_norm",
        "triton_whole_tiles",
        "triton_windows",
    ),
    "cpu": ("cpu_modulation",),
}
"""Modules of this package that hold fused forms, by the kind of device that they run on."""
FLOAT8 = ("triton_float8", "float8_product")
"""Those for GPUs that FP8 takes besides, which are tried when it is asked for."""

Implementation = Literal["plain", "triton"]
_forced: Implementation | None = None


@torch.compiler.assume_constant_result
def fused_runs(name: str, device: torch.device) -> bool:
    """Whether the fused forms of a module run on a device; tried once.

    Args:
        name: A module of this package, or the whole name of a module elsewhere.
        device: Where the tensors are.
    """
    if _forced is not None:
        return _forced == "triton" and name.rpartition(".")[2].startswith("triton")
    return why_not(name, device) is None


@torch.compiler.assume_constant_result
def plain_is_forced() -> bool:
    """Whether `use("plain")` holds, for other ways of computing that need no trial."""
    return _forced == "plain"


def left_to_the_compiler() -> bool:
    """Whether torch.compile is to differentiate what is computed here: it fuses plain operations,
    forward and backward, with what stands around them, and needs no form of ours."""
    return torch.is_grad_enabled() and torch.compiler.is_compiling()


@contextmanager
def use(implementation: Implementation) -> Iterator[None]:
    """Has all operations run in one form, to compare them: `plain`, or `triton` wherever there is
    such a form, which takes tensors of a CPU in Triton's interpreter (TRITON_INTERPRET=1)."""
    global _forced
    before, _forced = _forced, implementation
    try:
        yield
    finally:
        _forced = before


@torch.compiler.assume_constant_result
def prepare(device: torch.device) -> None:
    """Tries every fused form on a device, unless that was done before.

    A kernel that is first met in the middle of a computation would be compiled there, while the
    GPU waits, and its failure would change how a step computes half-way.
    """
    if _forced is None:
        for name in FUSED.get(device.type, ()):
            why_not(name, device)


def report(device: torch.device) -> dict[str, str | None]:
    """Every fused form of a kind of device, and why it does not run there: None where it does."""
    names = (*FUSED.get(device.type, ()), *(FLOAT8 if device.type == "cuda" else ()))
    return {name: why_not(name, device) for name in names}


class NotMeant(Exception):
    """Raised by a trial where a fused form would run, but is not meant to; says why."""


@cache
def why_not(name: str, device: torch.device) -> str | None:
    """Why the fused forms of a module don't run on a device; None if they do."""
    if name in FUSED["cpu"]:
        if device.type != "cpu":
            return "for CPUs alone"
    elif device.type != "cuda":
        return "for GPUs alone"
    elif find_spec("triton") is None:
        return "Triton is not installed"
    # In a thread of its own, which knows nothing of what this one is in the middle of: gradients,
    # autocast, a checkpointed region, a compiler's tracing.
    try:
        with ThreadPoolExecutor(1, "trial") as thread:
            reason = thread.submit(_try, name, device).result()
    except NotMeant as elsewhere:
        return str(elsewhere)
    if reason is not None:
        warnings.warn(f"{name} does not run on {device}, slower code does: {reason}", stacklevel=3)
    return reason


def _try(name: str, device: torch.device) -> str | None:
    try:
        import_module(name if "." in name else f"{__package__}.{name}").try_on(device)
    except (NotMeant, torch.OutOfMemoryError):  # the latter says nothing of the kernels
        raise
    except Exception as error:  # Triton has no common class for what can go wrong
        return str(error) or type(error).__name__
    return None
