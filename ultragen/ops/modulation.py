"""The norms, shifts, scales and gated sums between a block's layers.

Wan computes them in float32, whatever the tokens are in. Fused forms do each of them in one pass,
on a GPU with gradients too. Norms come out in FP8 where their reader, the module that they are for,
takes that.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.normalization import FP32LayerNorm
from torch import Tensor

from .dispatch import fused_runs, left_to_the_compiler
from .float8 import Tokens, takes_float8
from .float8_linear import quantise
from .layer_checks import is_untouched


def modulated_norm(
    norm: FP32LayerNorm, x: Tensor, scale: Tensor, shift: Tensor, reader: Any = None
) -> Tokens:
    """Layer norm, then · (1 + scale) + shift, computed in float32.

    Args:
        norm: Without weights of its own.
        x: b n d.
        scale: b 1 d.
        shift: b 1 d.
        reader: The module that it is for.

    Returns:
        b n d in the precision of `x`, or in FP8.
    """
    fused = _fused(x, norm, reader=reader)
    if fused is None or norm.weight is not None:
        return _given(norm(x.float()) * (1 + scale) + shift, x, reader)
    return fused.modulated_norm(x, 1 + scale, shift, norm.eps)


def sum_and_norm(
    norm: FP32LayerNorm, x: Tensor, update: Tensor, gate: Tensor, reader: Any = None
) -> tuple[Tensor, Tokens]:
    """x + update · gate, and the norm of it with its own weights.

    Args:
        norm: With weights of its own; one that is none leaves the sum as it is.
        x: b n d.
        update: b n d.
        gate: b 1 d.
        reader: The module that the norm is for.

    Returns:
        Both b n d, in the precision of `x`, or the norm in FP8.
    """
    fused = _fused(x, norm, reader=reader)
    if fused is None or norm.weight is None:
        x = (x.float() + update * gate).type_as(x)
        return x, _given(norm(x.float()), x, reader)
    return fused.sum_and_norm(x, update, gate, norm.weight, norm.bias, norm.eps)


def sum_and_modulated_norm(
    norm: FP32LayerNorm,
    x: Tensor,
    update: Tensor,
    scale: Tensor,
    shift: Tensor,
    reader: Any = None,
) -> tuple[Tensor, Tokens]:
    """x + update, and the `modulated_norm` of it; arguments and results as there and in
    `sum_and_norm`."""
    fused = _fused(x, norm, reader=reader)
    if fused is None or norm.weight is not None:
        x = x + update
        return x, modulated_norm(norm, x, scale, shift, reader)
    return fused.sum_and_norm(x, update, None, 1 + scale, shift, norm.eps)


def gated_sum(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + update · gate: tokens b n d and a gate b 1 d → b n d in the precision of `x`."""
    fused = _fused(x)
    if fused is None:
        return (x.float() + update.float() * gate).type_as(x)
    return fused.gated_sum(x, update, gate)


def _given(normed: Tensor, x: Tensor, reader: Any) -> Tokens:
    """A norm in float32 as its reader takes it, for tokens in the precision of `x`."""
    return quantise(normed, x.dtype) if takes_float8(reader) else normed.type_as(x)


def _fused(x: Tensor, *norms: Any, reader: Any = None) -> Any:
    """The module whose functions do it in few passes; None where there is none."""
    untouched = all(is_untouched(norm, FP32LayerNorm) for norm in norms)
    if not untouched or left_to_the_compiler():
        return None
    if takes_float8(reader):
        if not fused_runs("triton_float8", x.device):
            return None
        from . import triton_float8

        return triton_float8
    if fused_runs("triton_modulation", x.device):
        from . import triton_modulation

        return triton_modulation
    if not torch.is_grad_enabled() and fused_runs("cpu_modulation", x.device):
        from . import cpu_modulation

        return cpu_modulation
    return None
