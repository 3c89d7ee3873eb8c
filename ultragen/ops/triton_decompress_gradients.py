"""The gradients of a branch's decompression, in Triton.

Upsampling and the 3 × 3 × 3 convolution after it are one linear map. What the full grid's gradient
means to a small token is a sum over the few places that are made of it, for each of the nine shifts
of a tap within a frame: nine sums, from which both the small token's gradient (by the taps, over
three moments) and the taps' gradients (by the small tokens) follow. They are taken along the rows
first, then along the columns; the upsampled grid, and its gradient, are never written.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

CHANNELS = 64  # features of one program
COLUMNS = 10  # small columns that one program takes one after the other
PROGRAMS = 1056  # sums over tokens: eight for each multiprocessor of an H200
SIZES = ("t", "h", "w", "small_h", "small_w", "support", "chunks")


class Adjoint(NamedTuple):
    """What a small token's gradient along one axis is made of.

    Attributes:
        first: The first place that is made of each small token, int32.
        shares: What the small token has of the neighbour before, at and after each place from there
            on, small tokens × 3 × places.
    """

    first: Tensor
    shares: Tensor


def plan_adjoint(matrix: Tensor) -> Adjoint:
    """The adjoint of upsampling an axis, and looking at a neighbour.

    Args:
        matrix: Length of the full axis × length of the small one, of the upsampling.
    """
    length = len(matrix)
    around = F.pad(matrix.double().t(), (1, 1)).unfold(1, length, 1)  # small neighbour place
    seen = (around != 0).any(1)
    first = seen.int().argmax(1)
    behind = length - seen.flip(1).int().argmax(1)
    support = int((behind - first).clamp(min=1).max())
    places = first[:, None] + torch.arange(support)  # small support
    shares = F.pad(around, (0, support)).gather(2, places[:, None].expand(-1, 3, -1))
    return Adjoint(first.int(), shares.float().contiguous())


@triton.jit
def _scale_and_sum(
    grad_ptr, fine_ptr, factor_ptr, of_fine_ptr, partial_ptr, tokens, d, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: every so many tokens of a sample. The fine grid's gradient, and the sums of the
    gradient, alone and by the fine grid."""
    sample, first, stride = tl.program_id(1).to(tl.int64), tl.program_id(0), tl.num_programs(0)
    features = tl.arange(0, BLOCK)
    inside = features < d
    factor = tl.load(factor_ptr + sample * d + features, mask=inside, other=0.0)
    total, by_fine = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for token in range(first, tokens, stride):
        at = (sample * tokens + token) * d + features
        grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
        by_fine += grad * tl.load(fine_ptr + at, mask=inside, other=0.0).to(tl.float32)
        total += grad
        tl.store(of_fine_ptr + at, grad * factor, mask=inside)
    at = (sample * stride + first) * 2 * d + features
    tl.store(partial_ptr + at, total, mask=inside)
    tl.store(partial_ptr + at + d, by_fine, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def _along_rows(
    grad_ptr, first_ptr, shares_ptr, out_ptr, w, small_w, support, chunks, d,
    COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: some small columns of a row of the full grid, CHANNELS features."""
    row = (tl.program_id(0) // chunks).to(tl.int64)  # (b t h)
    start = tl.program_id(0) % chunks * COLUMNS
    features = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = features < d
    for column in range(start, tl.minimum(start + COLUMNS, small_w)):
        x = tl.load(first_ptr + column)
        shares = shares_ptr + column * 3 * support
        before, here = tl.zeros((CHANNELS,), tl.float32), tl.zeros((CHANNELS,), tl.float32)
        after = tl.zeros((CHANNELS,), tl.float32)
        for place in range(tl.minimum(support, w - x)):
            at = (row * w + x + place) * d + features
            grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
            before += grad * tl.load(shares + place)
            here += grad * tl.load(shares + support + place)
            after += grad * tl.load(shares + 2 * support + place)
        at = (row * small_w + column) * 3 * d + features
        tl.store(out_ptr + at, before, mask=inside)
        tl.store(out_ptr + at + d, here, mask=inside)
        tl.store(out_ptr + at + 2 * d, after, mask=inside)


@triton.jit
def _nine(ptr, d, inside):
    """Nine rows of d features."""
    return (
        tl.load(ptr, mask=inside, other=0.0),
        tl.load(ptr + d, mask=inside, other=0.0),
        tl.load(ptr + 2 * d, mask=inside, other=0.0),
        tl.load(ptr + 3 * d, mask=inside, other=0.0),
        tl.load(ptr + 4 * d, mask=inside, other=0.0),
        tl.load(ptr + 5 * d, mask=inside, other=0.0),
        tl.load(ptr + 6 * d, mask=inside, other=0.0),
        tl.load(ptr + 7 * d, mask=inside, other=0.0),
        tl.load(ptr + 8 * d, mask=inside, other=0.0),
    )


@triton.jit
def _store_nine(ptr, d, x, inside):
    tl.store(ptr, x[0], mask=inside)
    tl.store(ptr + d, x[1], mask=inside)
    tl.store(ptr + 2 * d, x[2], mask=inside)
    tl.store(ptr + 3 * d, x[3], mask=inside)
    tl.store(ptr + 4 * d, x[4], mask=inside)
    tl.store(ptr + 5 * d, x[5], mask=inside)
    tl.store(ptr + 6 * d, x[6], mask=inside)
    tl.store(ptr + 7 * d, x[7], mask=inside)
    tl.store(ptr + 8 * d, x[8], mask=inside)


@triton.jit
def _zeros(CHANNELS: tl.constexpr):
    zero = tl.zeros((CHANNELS,), tl.float32)
    return zero, zero, zero, zero, zero, zero, zero, zero, zero


@triton.jit
def _along_columns(ptr, y, shares, support, rows, row_stride, d, inside, CHANNELS: tl.constexpr):
    """The nine sums of a small token at one moment."""
    a0, a1, a2, b0, b1, b2, c0, c1, c2 = _zeros(CHANNELS)
    for place in range(rows):
        at = ptr + (y + place) * row_stride
        x0 = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        x1 = tl.load(at + d, mask=inside, other=0.0).to(tl.float32)
        x2 = tl.load(at + 2 * d, mask=inside, other=0.0).to(tl.float32)
        before, here = tl.load(shares + place), tl.load(shares + support + place)
        after = tl.load(shares + 2 * support + place)
        a0, a1, a2 = a0 + before * x0, a1 + before * x1, a2 + before * x2
        b0, b1, b2 = b0 + here * x0, b1 + here * x1, b2 + here * x2
        c0, c1, c2 = c0 + after * x0, c1 + after * x1, c2 + after * x2
    return a0, a1, a2, b0, b1, b2, c0, c1, c2


@triton.jit
def _dot(taps, x):
    first = taps[0] * x[0] + taps[1] * x[1] + taps[2] * x[2]
    second = taps[3] * x[3] + taps[4] * x[4] + taps[5] * x[5]
    return first + second + taps[6] * x[6] + taps[7] * x[7] + taps[8] * x[8]


@triton.jit
def _add(total, x, factor):
    t0, t1, t2, t3, t4, t5, t6, t7, t8 = total
    x0, x1, x2, x3, x4, x5, x6, x7, x8 = x
    return (
        t0 + x0 * factor, t1 + x1 * factor, t2 + x2 * factor,
        t3 + x3 * factor, t4 + x4 * factor, t5 + x5 * factor,
        t6 + x6 * factor, t7 + x7 * factor, t8 + x8 * factor,
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def _adjoint(
    rows_ptr, coarse_ptr, taps_ptr, factor_ptr, first_ptr, shares_ptr, of_coarse_ptr, partial_ptr,
    t, h, small_h, small_w, support, chunks, d, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: some tokens of a row of the small grid at all moments, CHANNELS features."""
    number = tl.program_id(0)
    line = number // chunks % small_h
    sample = (number // chunks // small_h).to(tl.int64)
    start = number % chunks * COLUMNS
    features = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = features < d
    y, shares = tl.load(first_ptr + line), shares_ptr + line * 3 * support
    rows = tl.minimum(support, h - y)
    earlier = _nine(taps_ptr + features, d, inside)
    same = _nine(taps_ptr + 9 * d + features, d, inside)
    later = _nine(taps_ptr + 18 * d + features, d, inside)
    factor = tl.load(factor_ptr + sample * d + features, mask=inside, other=0.0)
    of_earlier, of_same, of_later = _zeros(CHANNELS), _zeros(CHANNELS), _zeros(CHANNELS)
    zero = tl.zeros((CHANNELS,), tl.float32)
    stride, frame = small_w * 3 * d, tl.cast(small_h, tl.int64) * small_w * d
    for column in range(start, tl.minimum(start + COLUMNS, small_w)):
        token = ((sample * t * small_h + line) * small_w + column) * d + features
        before, here = zero, tl.load(coarse_ptr + token, mask=inside, other=0.0).to(tl.float32)
        of_before, of_here = zero, zero
        for moment in range(t):
            then = token + tl.minimum(moment + 1, t - 1) * frame
            there = features < tl.where(moment + 1 < t, d, 0)
            after = tl.load(coarse_ptr + then, mask=there, other=0.0).to(tl.float32)
            at = ((sample * t + moment) * h * small_w + column) * 3 * d + features
            nine = _along_columns(
                rows_ptr + at, y, shares, support, rows, stride, d, inside, CHANNELS
            )
            of_earlier = _add(of_earlier, nine, before)
            of_same = _add(of_same, nine, here)
            of_later = _add(of_later, nine, after)
            # A tap on the moment before takes this gradient there.
            of_before += _dot(earlier, nine)
            previous = token + tl.maximum(moment - 1, 0) * frame
            done = features < tl.where(moment > 0, d, 0)
            tl.store(of_coarse_ptr + previous, of_before * factor, mask=done)
            of_before, of_here = of_here + _dot(same, nine), _dot(later, nine)
            before, here = here, after
        last = token + (t - 1) * frame
        tl.store(of_coarse_ptr + last, of_before * factor, mask=inside)
    partial_ptr += number.to(tl.int64) * 27 * d + features
    _store_nine(partial_ptr, d, of_earlier, inside)
    _store_nine(partial_ptr + 9 * d, d, of_same, inside)
    _store_nine(partial_ptr + 18 * d, d, of_later, inside)


def gradient_of_fine(grad: Tensor, fine: Tensor, factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient by a factor, and two sums over tokens.

    Args:
        grad: Of the fused grid, b t h w d.
        fine: b t h w d.
        factor: b d in float32.

    Returns:
        grad · factor, b t h w d; the sums of grad and of grad · fine, b d in float32.
    """
    b, d = factor.shape
    tokens = grad.numel() // (b * d)
    of_fine, programs = torch.empty_like(fine), min(tokens, -(-PROGRAMS // b))
    partial = factor.new_empty((b, programs, 2, d))
    with torch.cuda.device_of(grad):  # Triton takes the current device, wherever the tensors are
        _scale_and_sum[(programs, b)](
            grad, fine, factor, of_fine, partial, tokens, d, triton.next_power_of_2(d)
        )
    total, by_fine = partial.sum(1).unbind(1)
    return of_fine, total, by_fine


def gradients_of_coarse(
    grad: Tensor, coarse: Tensor, taps: Tensor, factor: Tensor, rows: Adjoint, columns: Adjoint
) -> tuple[Tensor, Tensor]:
    """The gradients of a decompressed branch.

    Args:
        grad: Of the fused grid, b t h w d.
        coarse: b t h' w' d.
        taps: 27 d in float32.
        factor: What the fused grid has of the decompressed one, b d in float32.
        rows: Of the grid's rows.
        columns: Of its columns.

    Returns:
        Of the small grid, b t h' w' d; of the taps, before the factor, of each sample, b 27 d in
        float32.
    """
    (b, t, h, w, d), (small_h, small_w) = grad.shape, coarse.shape[2:4]
    chunks, parts = triton.cdiv(small_w, COLUMNS), triton.cdiv(d, CHANNELS)
    along_rows = grad.new_empty((b, t, h, small_w, 3, d))
    of_coarse = torch.empty_like(coarse)
    partial = factor.new_empty((b, small_h * chunks, 27, d))
    with torch.cuda.device_of(grad):
        _along_rows[(b * t * h * chunks, parts)](
            grad, *columns, along_rows, w, small_w, columns.shares.shape[2], chunks, d,
            COLUMNS, CHANNELS, num_warps=1,
        )  # fmt: skip
        _adjoint[(b * small_h * chunks, parts)](
            along_rows, coarse, taps, factor, *rows, of_coarse, partial, t, h, small_h, small_w,
            rows.shares.shape[2], chunks, d, COLUMNS, CHANNELS, num_warps=1,
        )  # fmt: skip
    return of_coarse, partial.sum(1)
