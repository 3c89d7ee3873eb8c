"""Depthwise 3 × 3 × 3 convolution on tokens in Triton, for the compressed branches' decompression.

The convolution is small arithmetic on much memory, and the library's ways are up to twenty times
slower than reading the tokens once (benchmarks/decompression.py). Tokens stay in their order
b t h w d: a program takes some neighbouring tokens of one row and some features, and the 27 taps
find their neighbours in the cache. The gradient of the input is the same kernel with the taps in
reverse order.
"""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS, FEATURES = 16, 64  # of one program
GROUPS = 256  # partial sums of the weight's gradient for each tap


@triton.jit
def _convolve(
    x_ptr, taps_ptr, bias_ptr, out_ptr, t, h, w, d,
    TOKENS: tl.constexpr, FEATURES: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """One program: TOKENS tokens of one row, FEATURES features."""
    row = tl.full((TOKENS,), tl.program_id(0).to(tl.int64), tl.int64)  # (b t h)
    columns = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    features = tl.program_id(2) * FEATURES + tl.arange(0, FEATURES)
    inside = features < d
    moment, line = (row // h) % t, row % h
    total = tl.zeros((TOKENS, FEATURES), dtype=tl.float32)
    for tap in tl.static_range(27):
        dt, dh, dw = tap // 9 - 1, tap // 3 % 3 - 1, tap % 3 - 1
        column = columns + dw
        there = (moment + dt >= 0) & (moment + dt < t) & (line + dh >= 0) & (line + dh < h)
        mask = (there & (column >= 0) & (column < w))[:, None] & inside[None, :]
        at = ((row + dt * h + dh) * w + column)[:, None] * d + features[None, :]
        value = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(taps_ptr + tap * d + features, mask=inside, other=0.0)
        total += value * weight.to(tl.float32)[None, :]
    if BIASED:
        total += tl.load(bias_ptr + features, mask=inside, other=0.0).to(tl.float32)[None, :]
    at = (row * w + columns)[:, None] * d + features[None, :]
    tl.store(out_ptr + at, total, mask=(columns < w)[:, None] & inside[None, :])


@triton.jit
def _weight_gradient(
    x_ptr, grad_ptr, partial_ptr, rows, t, h, w, d,
    GROUPS: tl.constexpr, TOKENS: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """One program: one tap, FEATURES features, every GROUPS-th row."""
    group, tap = tl.program_id(0), tl.program_id(1)
    features = tl.program_id(2) * FEATURES + tl.arange(0, FEATURES)
    inside = features < d
    dt, dh, dw = tap // 9 - 1, tap // 3 % 3 - 1, tap % 3 - 1
    total = tl.zeros((TOKENS, FEATURES), dtype=tl.float32)
    for number in range(group, rows, GROUPS):
        row = tl.full((TOKENS,), tl.cast(number, tl.int64), tl.int64)
        moment, line = (row // h) % t, row % h
        there = (moment + dt >= 0) & (moment + dt < t) & (line + dh >= 0) & (line + dh < h)
        for first in range(0, w, TOKENS):
            columns = first + tl.arange(0, TOKENS)
            column = columns + dw
            mask = (there & (columns < w) & (column >= 0) & (column < w))[:, None]
            mask = mask & inside[None, :]
            here = (row * w + columns)[:, None] * d + features[None, :]
            away = ((row + dt * h + dh) * w + column)[:, None] * d + features[None, :]
            value = tl.load(x_ptr + away, mask=mask, other=0.0).to(tl.float32)
            grad = tl.load(grad_ptr + here, mask=mask, other=0.0).to(tl.float32)
            total += value * grad
    at = (group * 27 + tap) * d + features
    tl.store(partial_ptr + at, tl.sum(total, axis=0), mask=inside)


@torch.library.custom_op("ultragen::depthwise_conv3d", mutates_args=())
def _convolution(x: Tensor, taps: Tensor, bias: Optional[Tensor]) -> Tensor:  # noqa: UP045
    """Tokens b t h w d with taps 27 d."""
    x, taps = x.contiguous(), taps.contiguous()
    b, t, h, w, d = x.shape
    out = torch.empty_like(x)
    grid = (b * t * h, triton.cdiv(w, TOKENS), triton.cdiv(d, FEATURES))
    with torch.cuda.device_of(x):  # Triton takes the current device, wherever the tensors are
        _convolve[grid](
            x, taps, taps if bias is None else bias, out, t, h, w, d,
            TOKENS, FEATURES, bias is not None,
        )  # fmt: skip
    return out


@torch.library.custom_op("ultragen::depthwise_conv3d_taps", mutates_args=())
def _taps_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of the taps, 27 d in float32."""
    x, grad = x.contiguous(), grad.contiguous()
    b, t, h, w, d = x.shape
    partial = x.new_empty((GROUPS, 27, d), dtype=torch.float32)
    with torch.cuda.device_of(x):
        _weight_gradient[(GROUPS, 27, triton.cdiv(d, FEATURES))](
            x, grad, partial, b * t * h, t, h, w, d, GROUPS, TOKENS, FEATURES
        )
    return partial.sum(0)


@_convolution.register_fake
def _(x, taps, bias):
    return x.new_empty(x.shape)


@_taps_gradient.register_fake
def _(x, grad):
    return x.new_empty((27, x.shape[-1]), dtype=torch.float32)


def _remember(ctx, inputs, output) -> None:
    x, taps, bias = inputs
    ctx.save_for_backward(x, taps)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx, grad):
    x, taps = ctx.saved_tensors
    of_x, of_taps, of_bias = ctx.needs_input_grad
    return (
        _convolution(grad, taps.flip(0), None) if of_x else None,
        _taps_gradient(x, grad).to(taps.dtype) if of_taps else None,
        grad.sum((0, 1, 2, 3), dtype=torch.float32).to(ctx.bias_dtype) if of_bias else None,
    )


_convolution.register_autograd(_backward, setup_context=_remember)


def depthwise_conv3d(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:  # noqa: UP045
    """3 × 3 × 3 convolution of each feature, zeros beyond the edges.

    An operator of its own, so that torch.compile takes it as it is.

    Args:
        x: b t h w d.
        weight: d 1 3 3 3, as `nn.Conv3d` keeps it; may be of another precision than `x`.
        bias: d, or None.

    Returns:
        b t h w d, in the precision of `x`; sums are taken in float32.
    """
    return _convolution(x, weight.flatten(1).t(), bias)


def try_on(device: torch.device) -> None:
    """Runs the kernel on next to nothing; raises where it does not run."""
    depthwise_conv3d(
        torch.ones(1, 1, 1, 1, 1, device=device), torch.ones(1, 1, 3, 3, 3, device=device)
    )
