"""Linear layers in FP8: their input, quantised row by row, and their product.

FP8 has no gradients here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .dispatch import fused_runs
from .float8 import E4M3, LARGEST, SMALLEST, Float8, Tokens, all_take_float8

PIECE = 16_384
"""Most tokens of a feed-forward network's piece: its hidden features are there twice, in two
precisions, and shall take less memory than all tokens' do without FP8."""
ROWS = 128  # of which a piece is a multiple: the product wants factors on addresses of 16 bytes


def quantise(x: Tensor, dtype: torch.dtype | None = None) -> Float8:
    """Puts rows into FP8, their largest value at FP8's largest, in one pass on a GPU.

    Args:
        x: … d.
        dtype: The precision of what is computed of them, if it is not that of `x`.

    Raises:
        ValueError: if gradients are wanted.
    """
    check_no_gradients(x)
    if fused_runs("triton_float8", x.device):
        from . import triton_float8

        return triton_float8.quantise(x, dtype or x.dtype)
    precise = x.float()
    largest = precise.abs().amax(-1, keepdim=True).clamp(min=SMALLEST)
    return Float8((precise * (LARGEST / largest)).to(E4M3), largest / LARGEST, dtype or x.dtype)


def quantise_gelu(x: Tensor) -> Float8:
    """`quantise` of GELU (tanh): … d, in one pass on a GPU."""
    check_no_gradients(x)
    if fused_runs("triton_float8", x.device):
        from . import triton_float8

        return triton_float8.quantise(x, x.dtype, gelu=True)
    return quantise(F.gelu(x.float(), approximate="tanh"), x.dtype)


def for_layers(x: Tensor, *layers: Callable[[Any], Tensor]) -> Tokens:
    """What several layers are given: in FP8, once for all, if all of them take it."""
    return quantise(x) if all_take_float8(layers) else x


def product(x: Float8, weight: Float8, bias: Tensor, out: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias; in FP8 where a GPU does that, with sums in float32.

    Args:
        x: n d.
        weight: m d.
        bias: m.
        out: Where the result goes, n m.

    Returns:
        n m in the precision of `x`.
    """
    # The rows' factors go with results in bfloat16 alone.
    if x.dtype == bias.dtype == torch.bfloat16 and fused_runs("float8_product", x.device):
        from . import float8_product

        return float8_product.product(x, weight, bias, out)
    rows, features = (each.values.float() * each.scale for each in (x, weight))
    found = F.linear(rows, features, bias.float()).to(x.dtype)
    return found if out is None else out.copy_(found)


def feed_forward(
    x: Tokens, first: Float8, first_bias: Tensor, second: Float8, second_bias: Tensor
) -> Tensor:
    """Two linear layers with GELU (tanh) between them, on some tokens at a time.

    Args:
        x: … d.
        first: hidden d.
        first_bias: hidden.
        second: out hidden.
        second_bias: out.

    Returns:
        … out in the precision of `x`.
    """
    rows = (quantise(x) if isinstance(x, Tensor) else x).rows()
    out = torch.empty((len(rows.values), len(second.values)), dtype=x.dtype, device=x.device)
    for here in pieces(len(out)):
        hidden = quantise_gelu(product(rows[here], first, first_bias))
        product(hidden, second, second_bias, out[here])
    return out.unflatten(0, x.shape[:-1])


def pieces(rows: int) -> list[slice]:
    """Rows in pieces of about the same size."""
    count = -(-rows // PIECE)
    size = -(-rows // (count * ROWS)) * ROWS
    return [slice(start, start + size) for start in range(0, rows, size)]


def check_no_gradients(x: Tensor) -> None:
    """Checks that nothing is to be differentiated.

    Raises:
        ValueError: otherwise.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        raise ValueError(
            "Linear layers in FP8 have no gradients: train in bfloat16, or call the model within "
            "torch.no_grad()."
        )
