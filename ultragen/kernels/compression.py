"""What makes a branch's grid small and large again in one pass each, in Triton: the compressing
convolution, and decompression with the fusion that follows it. Without gradients: where they are
needed, the plain code runs.

Upsampling by 2 or more and the 3 × 3 × 3 convolution after it are one linear map, in which two
neighbouring tokens of the full grid see 3 × 3 tokens of the small one at three moments. Their
weights are the same at most places: there are few kinds of places, and the weights of all kinds are
made first. A program takes two tokens and goes through the frames with their weights: neither the
upsampled grid nor the decompressed one is ever written.
"""

from typing import NamedTuple, Optional

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

TOKENS, FEATURES = 4, 256  # of one program of the compression
CHANNELS, WARPS = 128, 4  # of one program of the decompression


@triton.jit
def _compress(
    x_ptr, taps_ptr, bias_ptr, out_ptr, h, w, small_h, small_w, d,
    FACTOR: tl.constexpr, TOKENS: tl.constexpr, FEATURES: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """One program: TOKENS tokens of a row of the small grid, FEATURES features."""
    row = tl.program_id(0).to(tl.int64)  # (b t small_h)
    columns = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    features = tl.program_id(2) * FEATURES + tl.arange(0, FEATURES)
    inside = features < d
    mask = (columns < small_w)[:, None] & inside[None, :]
    frame, line = row // small_h, row % small_h
    total = tl.zeros((TOKENS, FEATURES), dtype=tl.float32)
    for tap in tl.static_range(FACTOR * FACTOR):
        # Edges are repeated.
        y = tl.minimum(line * FACTOR + tap // FACTOR, h - 1)
        x = tl.minimum(columns * FACTOR + tap % FACTOR, w - 1)
        at = ((frame * h + y) * w + x)[:, None] * d + features[None, :]
        value = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(taps_ptr + tap * d + features, mask=inside, other=0.0)
        total += value * weight.to(tl.float32)[None, :]
    if BIASED:
        total += tl.load(bias_ptr + features, mask=inside, other=0.0).to(tl.float32)[None, :]
    at = (row * small_w + columns)[:, None] * d + features[None, :]
    tl.store(out_ptr + at, total, mask=mask)


@triton.jit
def _join(
    rows_ptr, columns_ptr, taps_ptr, out_ptr, column_kinds, d, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: one of the 54 weights of a kind of places, CHANNELS features."""
    number = tl.program_id(0)
    sx, sy, moment = number % 3, number // 3 % 3, number // 9 % 3
    side, kind = number // 27 % 2, number // 54
    features = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = features < d
    rows_ptr += kind // column_kinds * 9 + sy
    columns_ptr += (kind % column_kinds * 2 + side) * 9 + sx
    total = tl.zeros((CHANNELS,), dtype=tl.float32)
    for tap in tl.static_range(9):
        share = tl.load(rows_ptr + tap // 3 * 3) * tl.load(columns_ptr + tap % 3 * 3)
        at = taps_ptr + (moment * 9 + tap) * d + features
        total += share * tl.load(at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + tl.cast(number, tl.int64) * d + features, total, mask=inside)


@triton.jit
def _weights(ptr, d, features, inside):
    """A small token's weights for two places, three moments each."""
    l0 = tl.load(ptr + features, mask=inside, other=0.0)
    l1 = tl.load(ptr + 9 * d + features, mask=inside, other=0.0)
    l2 = tl.load(ptr + 18 * d + features, mask=inside, other=0.0)
    r0 = tl.load(ptr + 27 * d + features, mask=inside, other=0.0)
    r1 = tl.load(ptr + 36 * d + features, mask=inside, other=0.0)
    r2 = tl.load(ptr + 45 * d + features, mask=inside, other=0.0)
    return l0, l1, l2, r0, r1, r2


@triton.jit
def _add(total, weights, x):
    """What a small token adds to two places at three moments."""
    x = x.to(tl.float32)
    l0, l1, l2, r0, r1, r2 = total
    v0, v1, v2, w0, w1, w2 = weights
    return l0 + v0 * x, l1 + v1 * x, l2 + v2 * x, r0 + w0 * x, r1 + w1 * x, r2 + w2 * x


@triton.jit
def _fuse(coarse, fine, gate, bias):
    """The gate's mean of a fine and a coarse token."""
    coarse += bias
    return coarse + gate * (fine.to(tl.float32) - coarse)


@triton.jit
def _decompress_and_fuse(
    fine_ptr, coarse_ptr, weights_ptr, bias_ptr, gate_ptr, out_ptr,
    first_row_ptr, row_class_ptr, first_column_ptr, column_class_ptr, column_classes,
    t, h, w, small_h, small_w, d, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: two neighbouring places of the full grid, all moments, CHANNELS features."""
    # Programs that run at the same time read whole tokens.
    parts, pairs = (d + CHANNELS - 1) // CHANNELS, (w + 1) // 2
    place, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    pair, y = place % pairs, place // pairs
    sample = tl.program_id(1).to(tl.int64)
    features = part * CHANNELS + tl.arange(0, CHANNELS)
    inside = features < d
    second = features < tl.where(2 * pair + 1 < w, d, 0)  # the last pair may have only one
    kind = tl.load(row_class_ptr + y) * column_classes + tl.load(column_class_ptr + pair)
    weights_ptr += kind * 54 * d
    w00 = _weights(weights_ptr, d, features, inside)
    w01 = _weights(weights_ptr + d, d, features, inside)
    w02 = _weights(weights_ptr + 2 * d, d, features, inside)
    w10 = _weights(weights_ptr + 3 * d, d, features, inside)
    w11 = _weights(weights_ptr + 4 * d, d, features, inside)
    w12 = _weights(weights_ptr + 5 * d, d, features, inside)
    w20 = _weights(weights_ptr + 6 * d, d, features, inside)
    w21 = _weights(weights_ptr + 7 * d, d, features, inside)
    w22 = _weights(weights_ptr + 8 * d, d, features, inside)

    # Tokens beyond the small grid have weights of 0: any token that is there stands for them.
    row, column = tl.load(first_row_ptr + y), tl.load(first_column_ptr + pair)
    row0, row1 = row * small_w * d, tl.minimum(row + 1, small_h - 1) * small_w * d
    row2 = tl.minimum(row + 2, small_h - 1) * small_w * d
    x0, x1 = column * d + features, tl.minimum(column + 1, small_w - 1) * d + features
    x2 = tl.minimum(column + 2, small_w - 1) * d + features
    gate = tl.load(gate_ptr + sample * d + features, mask=inside, other=0.0)
    bias = tl.load(bias_ptr + features, mask=inside, other=0.0)
    # A frame adds to the results of the next moment, of its own and of the one before.
    none = tl.zeros((CHANNELS,), dtype=tl.float32)
    total = none, none, none, none, none, none
    at = (sample * t * h * w + y * w + 2 * pair) * d + features  # of the left place
    coarse_ptr += sample * t * small_h * small_w * d
    for moment in range(t):
        # All loads first: they take long, and none waits for another.
        frame = coarse_ptr + tl.cast(moment, tl.int64) * small_h * small_w * d
        s00 = tl.load(frame + row0 + x0, mask=inside, other=0.0)
        s01 = tl.load(frame + row0 + x1, mask=inside, other=0.0)
        s02 = tl.load(frame + row0 + x2, mask=inside, other=0.0)
        s10 = tl.load(frame + row1 + x0, mask=inside, other=0.0)
        s11 = tl.load(frame + row1 + x1, mask=inside, other=0.0)
        s12 = tl.load(frame + row1 + x2, mask=inside, other=0.0)
        s20 = tl.load(frame + row2 + x0, mask=inside, other=0.0)
        s21 = tl.load(frame + row2 + x1, mask=inside, other=0.0)
        s22 = tl.load(frame + row2 + x2, mask=inside, other=0.0)
        # Of the moment before, whose sums end with this frame; at first nothing is there.
        here = at + tl.cast(tl.maximum(moment - 1, 0), tl.int64) * h * w * d
        left = tl.load(fine_ptr + here, mask=inside, other=0.0)
        right = tl.load(fine_ptr + here + d, mask=second, other=0.0)
        total = _add(total, w00, s00)
        total = _add(total, w01, s01)
        total = _add(total, w02, s02)
        total = _add(total, w10, s10)
        total = _add(total, w11, s11)
        total = _add(total, w12, s12)
        total = _add(total, w20, s20)
        total = _add(total, w21, s21)
        total = _add(total, w22, s22)
        left0, left1, left2, right0, right1, right2 = total
        if moment > 0:
            tl.store(out_ptr + here, _fuse(left2, left, gate, bias), mask=inside)
            tl.store(out_ptr + here + d, _fuse(right2, right, gate, bias), mask=second)
        total = none, left0, left1, none, right0, right1
    here = at + tl.cast(t - 1, tl.int64) * h * w * d
    left = tl.load(fine_ptr + here, mask=inside, other=0.0)
    right = tl.load(fine_ptr + here + d, mask=second, other=0.0)
    tl.store(out_ptr + here, _fuse(total[2], left, gate, bias), mask=inside)
    tl.store(out_ptr + here + d, _fuse(total[5], right, gate, bias), mask=second)


@torch.library.custom_op("ultragen::compress", mutates_args=())
def _compression(
    x: Tensor,
    taps: Tensor,
    bias: Optional[Tensor],  # noqa: UP045
    factor: int,
) -> Tensor:
    """Tokens b t h w d with taps (factor factor) d."""
    x, taps, (b, t, h, w, d) = x.contiguous(), taps.contiguous(), x.shape
    small_h, small_w = triton.cdiv(h, factor), triton.cdiv(w, factor)
    out = x.new_empty((b, t, small_h, small_w, d))
    grid = (b * t * small_h, triton.cdiv(small_w, TOKENS), triton.cdiv(d, FEATURES))
    with torch.cuda.device_of(x):  # Triton takes the current device, wherever the tensors are
        _compress[grid](
            x, taps, taps if bias is None else bias, out, h, w, small_h, small_w, d,
            factor, TOKENS, FEATURES, bias is not None,
        )  # fmt: skip
    return out


@torch.library.custom_op("ultragen::decompress_and_fuse", mutates_args=())
def _fusion(
    fine: Tensor,
    coarse: Tensor,
    taps: Tensor,
    bias: Tensor,
    gate: Tensor,
    rows: list[Tensor],
    columns: list[Tensor],
) -> Tensor:
    """Grids b t h w d, taps 27 d, bias d and gate b d, all but the grids in float32; an axis is
    what an `Axis` holds."""
    fine, coarse, (b, t, h, w, d) = fine.contiguous(), coarse.contiguous(), fine.shape
    out = torch.empty_like(fine)
    (first_row, row_class, row_shares), (first_column, column_class, column_shares) = rows, columns
    weights = taps.new_empty((len(row_shares) * len(column_shares) * 54, d))
    parts = triton.cdiv(d, CHANNELS)
    grid = (h * triton.cdiv(w, 2) * parts, b)
    with torch.cuda.device_of(fine):
        _join[(len(weights), parts)](
            row_shares, column_shares, taps, weights, len(column_shares), d, CHANNELS
        )
        _decompress_and_fuse[grid](
            fine, coarse, weights, bias, gate, out, first_row, row_class, first_column,
            column_class, len(column_shares), t, h, w, coarse.shape[2], coarse.shape[3], d,
            CHANNELS, num_warps=WARPS,
        )  # fmt: skip
    return out


@_compression.register_fake
def _(x, taps, bias, factor):
    b, t, h, w, d = x.shape
    return x.new_empty((b, t, -(-h // factor), -(-w // factor), d))


@_fusion.register_fake
def _(fine, coarse, taps, bias, gate, rows, columns):
    return fine.new_empty(fine.shape)


def compress(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:  # noqa: UP045
    """Convolution of each feature whose stride is its size; edges are repeated where needed.

    Args:
        x: b t h w d.
        weight: d 1 factor factor, as `nn.Conv2d` keeps it; may be of another precision than `x`.
        bias: d, or None.

    Returns:
        b t ⌈h/factor⌉ ⌈w/factor⌉ d in the precision of `x`; sums are taken in float32.
    """
    return _compression(x, weight.flatten(1).t(), bias, weight.shape[-1])


class Axis(NamedTuple):
    """What the places of an axis are made of when the small axis is upsampled and convolved.

    Attributes:
        first: The first of the three small tokens that a group of places needs, int32, groups.
        kind: The kind of each group, int32, groups.
        shares: The shares that the neighbour before, at and after each place of a group have of
            the three, kinds × places of a group × 3 × 3. Beyond the edges there is nothing.
    """

    first: Tensor
    kind: Tensor
    shares: Tensor


def plan_axis(matrix: Tensor, group: int) -> Axis:
    """Finds the kinds of places of an axis.

    Args:
        matrix: Length of the full axis × length of the small one, of the upsampling.
        group: Neighbouring places that share their small tokens: 1 for rows, 2 for columns.

    Raises:
        ValueError: if a group needs more than three, as upsampling by less than 2 may.
    """
    length, small = matrix.shape
    around = F.pad(matrix.float(), (0, 2, 1, 1)).unfold(0, 3, 1)  # place small neighbour
    around = F.pad(around, (0, 0, 0, 0, 0, -length % group)).unflatten(0, (-1, group))
    first = (around.sum((1, 3)) > 0).int().argmax(1)
    three = first[:, None, None, None] + torch.arange(3, device=matrix.device)[:, None]
    shares = around.gather(2, three.expand(-1, group, -1, 3))
    if not torch.allclose(shares.sum(), around.sum()):
        raise ValueError(f"Upsampling {small} tokens to {length} needs more than three at a place.")
    kinds, kind = shares.transpose(2, 3).round(decimals=5).unique(dim=0, return_inverse=True)
    return Axis(first.int(), kind.int(), kinds.contiguous())


def decompress_and_fuse(
    fine: Tensor,
    coarse: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],  # noqa: UP045
    gate: Tensor,
    rows: Axis,
    columns: Axis,
) -> Tensor:
    """gate · fine + (1 − gate) · coarse, upsampled and convolved.

    Args:
        fine: b t h w d.
        coarse: b t h' w' d.
        weight: d 1 3 3 3, as `nn.Conv3d` keeps it.
        bias: d, or None.
        gate: b d.
        rows: In groups of 1.
        columns: In groups of 2.

    Returns:
        b t h w d in the precision of `fine`; sums are taken in float32.
    """
    taps = weight.flatten(1).t().float().contiguous()
    bias = gate.new_zeros(len(weight)) if bias is None else bias
    return _fusion(
        fine, coarse, taps, bias.float(), gate.float().contiguous(), list(rows), list(columns)
    )


def try_on(device: torch.device) -> None:
    """Runs the kernels on next to nothing; raises where they do not run."""
    x = torch.ones(1, 1, 1, 1, 1, device=device)
    rows, columns = (plan_axis(torch.ones(1, 1, device=device), group) for group in (1, 2))
    small, taps = compress(x, x, None), x.expand(1, 1, 3, 3, 3)
    decompress_and_fuse(x, small, taps, x[0, 0, 0, 0], x[0, 0, 0], rows, columns)
