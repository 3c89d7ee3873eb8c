"""Tokens put into FP8 by the pass that computes them, in Triton: with the norm that comes before a
linear layer, with GELU, or alone. A factor for each token, from its largest value."""

from __future__ import annotations

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.knobs import runtime

from .dispatch import NotMeant
from .float8 import E4M3, Float8
from .float8_product import OLDEST
from .triton_modulation import compute
from .triton_rounding import factor_of, to_float8

MANY = 4096  # features of a token from which on more threads work on it


@triton.jit
def _part(ptr, features, d, GELU: tl.constexpr):
    """Some features of a token in float32; GELU of them."""
    x = tl.load(ptr + features, mask=features < d, other=0.0).to(tl.float32)
    if GELU:  # x (1 + tanh(u)) / 2 with tanh(u) = 2 sigmoid(2u) - 1
        x *= tl.sigmoid(1.5957691216057308 * x * (1.0 + 0.044715 * x * x))
    return x


@triton.jit
def _quantise(
    x_ptr, out_ptr, scale_ptr, d,
    FIRST: tl.constexpr, REST: tl.constexpr, GELU: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program: one token, its features as FIRST and up to REST more. As one power of two 8,960
    of them would be 16,384, and half of the work for nothing."""
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * d
    out_ptr += row * d
    features = tl.arange(0, FIRST)
    x = _part(x_ptr, features, d, GELU)
    largest = tl.max(tl.abs(x), axis=0)
    if REST:
        others = FIRST + tl.arange(0, REST)
        y = _part(x_ptr, others, d, GELU)
        largest = tl.maximum(largest, tl.max(tl.abs(y), axis=0))
    factor, scale = factor_of(largest)
    tl.store(scale_ptr + row, scale)
    tl.store(out_ptr + features, to_float8(x * factor, INTERPRETED), mask=features < d)
    if REST:
        tl.store(out_ptr + others, to_float8(y * factor, INTERPRETED), mask=others < d)


@torch.library.custom_op("ultragen::quantise", mutates_args=())
def _rows(x: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    x, d = x.contiguous(), x.shape[-1]
    values = torch.empty_like(x, dtype=E4M3)
    scale = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    first = triton.next_power_of_2(d + 1) // 2  # the largest that is not above d
    rest = triton.next_power_of_2(d - first) if d > first else 0
    with torch.cuda.device_of(x):  # Triton takes the current device, wherever the tensors are
        _quantise[(scale.numel(),)](
            x, values, scale, d, first, rest, gelu, runtime.interpret,
            num_warps=8 if d >= MANY else 4,
        )  # fmt: skip
    return values, scale


@_rows.register_fake
def _(x, gelu):
    values = x.new_empty(x.shape, dtype=E4M3)
    return values, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


@torch.library.custom_op("ultragen::sum_and_float8_norm", mutates_args=())
def _sum_and_norm(
    x: Tensor,
    update: Optional[Tensor],  # noqa: UP045
    gate: Optional[Tensor],  # noqa: UP045
    factor: Tensor,
    offset: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum, empty without an update, and its norm in FP8 with what to multiply each token by."""
    return compute(x, update, gate, factor, offset, eps, E4M3)


@_sum_and_norm.register_fake
def _(x, update, gate, factor, offset, eps):
    total = x.new_empty(0) if update is None else x.new_empty(x.shape)
    scale = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    return total, x.new_empty(x.shape, dtype=E4M3), scale


def quantise(x: Tensor, dtype: torch.dtype, gelu: bool = False) -> Float8:
    """Rows … d in FP8, after GELU (tanh) if that is wanted.

    Args:
        x: … d.
        dtype: The precision of what is computed of them.
        gelu: Whether it is wanted.
    """
    values, scale = _rows(x, gelu)
    return Float8(values, scale, dtype)


def modulated_norm(x: Tensor, factor: Tensor, offset: Tensor, eps: float) -> Float8:
    """`triton_modulation.modulated_norm` in FP8, without rounding in between."""
    _, values, scale = _sum_and_norm(x, None, None, factor, offset, eps)
    return Float8(values, scale, x.dtype)


def sum_and_norm(
    x: Tensor,
    update: Tensor,
    gate: Tensor | None,
    factor: Tensor,
    offset: Tensor,
    eps: float,
) -> tuple[Tensor, Float8]:
    """`triton_modulation.sum_and_norm` with the norm in FP8, without rounding in between."""
    total, values, scale = _sum_and_norm(x, update, gate, factor, offset, eps)
    return total, Float8(values, scale, x.dtype)


def try_on(device: torch.device) -> None:
    """Runs the kernels on next to nothing; raises where they do not run or give something else."""
    if torch.cuda.get_device_capability(device) < OLDEST:
        raise NotMeant("for compute capability 8.9 and newer alone")
    x = torch.arange(1, 25, device=device, dtype=torch.bfloat16).view(1, 1, 24)
    if not torch.allclose(quantise(x, x.dtype).dequantise(), x, rtol=0.07):
        raise RuntimeError("the numbers are wrong")
    quantise(x, x.dtype, gelu=True)
    modulated_norm(x, x, x, 1e-6)
    sum_and_norm(x, x, x, x, x, 1e-6)
