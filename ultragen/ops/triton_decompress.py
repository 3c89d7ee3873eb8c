"""Decompression of a branch's grid with the fusion that follows it, in Triton; the gradients are
those of `triton_decompress_gradients`.

Upsampling by 2 or more and the 3 × 3 × 3 convolution after it are one linear map, in which two
neighbouring tokens of the full grid see 3 × 3 tokens of the small one at three moments. Their
weights are the same at most places: there are few kinds of places, and the weights of all kinds are
made first. A program keeps the weights of a kind and goes through the frames with them: for a pair
of tokens, and for those a small token further to the right, below and both, which share most of the
small tokens that they see. Neither the upsampled grid nor the decompressed one is ever written.
"""

from collections.abc import Sequence
from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from .axes import Axis, plan_axis
from .triton_decompress_gradients import (
    Adjoint,
    gradient_of_fine,
    gradients_of_coarse,
    plan_adjoint,
)

CHANNELS, WARPS = 64, 1  # of one program: two features a thread
# The kernel is not compiled anew for sizes that are 1 or a multiple of 16.
SIZES = (
    "row_programs", "column_programs", "column_kinds", "t", "h", "w", "small_h", "small_w"
)  # fmt: skip


@triton.jit
def _join(
    rows_ptr, columns_ptr, taps_ptr, out_ptr, column_kinds, d, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: the nine small tokens' weights for one place of a pair at one moment, of a kind
    of places, CHANNELS features."""
    number = tl.program_id(0)
    moment, side, kind = number % 3, number // 3 % 2, number // 6
    features = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = features < d
    rows_ptr += kind // column_kinds * 9
    columns_ptr += (kind % column_kinds * 2 + side) * 9
    taps_ptr += moment * 9 * d + features
    t00 = tl.load(taps_ptr, mask=inside, other=0.0)
    t01 = tl.load(taps_ptr + d, mask=inside, other=0.0)
    t02 = tl.load(taps_ptr + 2 * d, mask=inside, other=0.0)
    t10 = tl.load(taps_ptr + 3 * d, mask=inside, other=0.0)
    t11 = tl.load(taps_ptr + 4 * d, mask=inside, other=0.0)
    t12 = tl.load(taps_ptr + 5 * d, mask=inside, other=0.0)
    t20 = tl.load(taps_ptr + 6 * d, mask=inside, other=0.0)
    t21 = tl.load(taps_ptr + 7 * d, mask=inside, other=0.0)
    t22 = tl.load(taps_ptr + 8 * d, mask=inside, other=0.0)
    out_ptr += (tl.cast(kind, tl.int64) * 54 + side * 27 + moment * 9) * d + features
    for row in tl.static_range(3):
        a, b = tl.load(rows_ptr + row), tl.load(rows_ptr + 3 + row)
        c = tl.load(rows_ptr + 6 + row)
        first, second = a * t00 + b * t10 + c * t20, a * t01 + b * t11 + c * t21
        third = a * t02 + b * t12 + c * t22
        for column in tl.static_range(3):
            total = tl.load(columns_ptr + column) * first
            total += tl.load(columns_ptr + 3 + column) * second
            total += tl.load(columns_ptr + 6 + column) * third
            tl.store(out_ptr + (row * 3 + column) * d, total, mask=inside)


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
def _small_tokens(ptr, second, third, three, fourth, d: tl.constexpr, PAIRS: tl.constexpr):
    """Neighbours in a row of the small grid: three, and a fourth where two pairs share them."""
    s0 = tl.load(ptr, mask=three, other=0.0)
    s1 = tl.load(ptr + second, mask=three, other=0.0)
    s2 = tl.load(ptr + third, mask=three, other=0.0)
    s3 = tl.load(ptr + 3 * d, mask=fourth, other=0.0) if PAIRS == 2 else s2
    return s0, s1, s2, s3


@triton.jit
def _pair(ptr, left, right, d: tl.constexpr):
    """Two neighbouring tokens of the full grid, as far as they are there."""
    return tl.load(ptr, mask=left, other=0.0), tl.load(ptr + d, mask=right, other=0.0)


@triton.jit
def _add(total, weights, x):
    """What a small token adds to two places at three moments."""
    x = x.to(tl.float32)
    l0, l1, l2, r0, r1, r2 = total
    v0, v1, v2, w0, w1, w2 = weights
    return l0 + v0 * x, l1 + v1 * x, l2 + v2 * x, r0 + w0 * x, r1 + w1 * x, r2 + w2 * x


@triton.jit
def _add_all(total, weights, top, middle, bottom, PAIR: tl.constexpr):
    """What three rows of small tokens add to a pair; the second one sees them one token further."""
    w00, w01, w02, w10, w11, w12, w20, w21, w22 = weights
    total = _add(total, w00, top[PAIR])
    total = _add(total, w01, top[PAIR + 1])
    total = _add(total, w02, top[PAIR + 2])
    total = _add(total, w10, middle[PAIR])
    total = _add(total, w11, middle[PAIR + 1])
    total = _add(total, w12, middle[PAIR + 2])
    total = _add(total, w20, bottom[PAIR])
    total = _add(total, w21, bottom[PAIR + 1])
    return _add(total, w22, bottom[PAIR + 2])


@triton.jit
def _store(ptr, left, right, d: tl.constexpr, total, fine, gate):
    """The gate's mean of a fine pair and of the sums that are complete."""
    first = gate * fine[0].to(tl.float32) + (1 - gate) * total[2]
    second = gate * fine[1].to(tl.float32) + (1 - gate) * total[5]
    tl.store(ptr, first, mask=left)
    tl.store(ptr + d, second, mask=right)


@triton.jit
def _next(bias, total):
    """The sums a moment later, each one step nearer to its end; new ones begin with the bias."""
    return bias, total[0], total[1], bias, total[3], total[4]


@triton.jit(do_not_specialize=SIZES)
def _decompress_and_fuse(
    fine_ptr, coarse_ptr, weights_ptr, bias_ptr, gate_ptr, out_ptr, row_ptr, column_ptr,
    row_programs, column_programs, column_kinds, t, h, w, small_h, small_w,
    d: tl.constexpr, ROWS: tl.constexpr, PAIRS: tl.constexpr, WIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: ROWS × PAIRS pairs of neighbouring places that have the same weights, all
    moments, CHANNELS features. WIDE: a row of the small grid has three tokens at least."""
    # Programs that run at the same time read whole tokens.
    parts: tl.constexpr = (d + CHANNELS - 1) // CHANNELS
    place, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    row_ptr += place // column_programs
    column_ptr += place % column_programs
    y, x = tl.load(row_ptr), tl.load(column_ptr)
    next_y, next_x = tl.load(row_ptr + row_programs), tl.load(column_ptr + column_programs)
    row, column = tl.load(row_ptr + 2 * row_programs), tl.load(column_ptr + 2 * column_programs)
    kind = tl.load(row_ptr + 3 * row_programs) * column_kinds
    kind += tl.load(column_ptr + 3 * column_programs)
    sample = tl.program_id(1).to(tl.int64)
    features = part * CHANNELS + tl.arange(0, CHANNELS)
    inside = features < d
    weights_ptr += kind * 54 * d
    weights = (
        _weights(weights_ptr, d, features, inside),
        _weights(weights_ptr + d, d, features, inside),
        _weights(weights_ptr + 2 * d, d, features, inside),
        _weights(weights_ptr + 3 * d, d, features, inside),
        _weights(weights_ptr + 4 * d, d, features, inside),
        _weights(weights_ptr + 5 * d, d, features, inside),
        _weights(weights_ptr + 6 * d, d, features, inside),
        _weights(weights_ptr + 7 * d, d, features, inside),
        _weights(weights_ptr + 8 * d, d, features, inside),
    )
    gate = tl.load(gate_ptr + sample * d + features, mask=inside, other=0.0)
    bias = tl.load(bias_ptr + features, mask=inside, other=0.0)

    # Tokens beyond the small grid have weights of 0: any token that is there stands for them.
    coarse_ptr += (sample * t * small_h * small_w + column) * d + features
    line0 = coarse_ptr + row * small_w * d
    line1 = coarse_ptr + tl.minimum(row + 1, small_h - 1) * small_w * d
    line2 = coarse_ptr + tl.minimum(row + 2, small_h - 1) * small_w * d
    line3 = coarse_ptr + tl.minimum(row + 3, small_h - 1) * small_w * d
    second = d if WIDE else tl.minimum(1, small_w - 1 - column) * d
    third = 2 * d if WIDE else tl.minimum(2, small_w - 1 - column) * d
    # Where a token is there: the last pair of a row may be one place, and what has no partner is
    # followed by -1.
    right = features < tl.where(x + 1 < w, d, 0)
    next_left = features < tl.where(next_x < 0, 0, d)
    next_right = features < tl.where((next_x < 0) | (next_x + 1 >= w), 0, d)
    below = features < tl.where(next_y < 0, 0, d)
    aside, down = tl.maximum(next_x - x, 0) * d, tl.maximum(next_y - y, 0) * w * d

    place_offset = (sample * t * h * w + y * w + x) * d
    fine_ptr += place_offset + features
    out_ptr += place_offset + features
    frame, small_frame = tl.cast(h, tl.int64) * w * d, tl.cast(small_h, tl.int64) * small_w * d
    # A frame adds to the results of the next moment, of its own and of the one before.
    total = bias, bias, bias, bias, bias, bias
    total_aside, total_below, total_both = total, total, total
    next0 = _small_tokens(line0, second, third, inside, next_left, d, PAIRS)
    next1 = _small_tokens(line1, second, third, inside, next_left, d, PAIRS)
    next2 = _small_tokens(line2, second, third, inside, next_left, d, PAIRS)
    next3 = next2 if ROWS == 1 else _small_tokens(line3, second, third, inside, next_left, d, PAIRS)
    for moment in range(t + 1):
        # All loads first, those of the next frame too: they take long, and none waits for another.
        # What is stored is the moment before, whose sums end with this frame; at first there is
        # none.
        here = tl.maximum(moment - 1, 0) * frame
        ready = features < tl.where(moment > 0, d, 0)
        ready_below = ready & below
        fine = _pair(fine_ptr + here, ready, ready & right, d)
        if PAIRS == 2:
            fine_aside = _pair(fine_ptr + here + aside, ready & next_left, ready & next_right, d)
        if ROWS == 2:
            fine_below = _pair(fine_ptr + here + down, ready_below, ready_below & right, d)
        if ROWS == 2 and PAIRS == 2:
            fine_both = _pair(
                fine_ptr + here + down + aside, ready_below & next_left, ready_below & next_right, d
            )
        s0, s1, s2, s3 = next0, next1, next2, next3
        then = tl.minimum(moment + 1, t - 1) * small_frame
        next0 = _small_tokens(line0 + then, second, third, inside, next_left, d, PAIRS)
        next1 = _small_tokens(line1 + then, second, third, inside, next_left, d, PAIRS)
        next2 = _small_tokens(line2 + then, second, third, inside, next_left, d, PAIRS)
        if ROWS == 2:
            next3 = _small_tokens(line3 + then, second, third, inside, next_left, d, PAIRS)
        if moment < t:
            total = _add_all(total, weights, s0, s1, s2, 0)
            if PAIRS == 2:
                total_aside = _add_all(total_aside, weights, s0, s1, s2, 1)
            if ROWS == 2:
                total_below = _add_all(total_below, weights, s1, s2, s3, 0)
            if ROWS == 2 and PAIRS == 2:
                total_both = _add_all(total_both, weights, s1, s2, s3, 1)
        out = out_ptr + here
        _store(out, ready, ready & right, d, total, fine, gate)
        total = _next(bias, total)
        if PAIRS == 2:
            _store(
                out + aside, ready & next_left, ready & next_right, d, total_aside, fine_aside, gate
            )
            total_aside = _next(bias, total_aside)
        if ROWS == 2:
            _store(
                out + down, ready_below, ready_below & right, d, total_below, fine_below,
                gate,
            )  # fmt: skip
            total_below = _next(bias, total_below)
        if ROWS == 2 and PAIRS == 2:
            _store(
                out + down + aside, ready_below & next_left, ready_below & next_right, d,
                total_both, fine_both, gate,
            )  # fmt: skip
            total_both = _next(bias, total_both)


@torch.library.custom_op("ultragen::decompress_and_fuse", mutates_args=())
def _fusion(
    fine: Tensor,
    coarse: Tensor,
    taps: Tensor,
    bias: Tensor,
    gate: Tensor,
    rows: list[Tensor],
    columns: list[Tensor],
    adjoints: list[Tensor],
) -> Tensor:
    """Grids b t h w d, taps 27 d, bias d and gate b d, all but the grids in float32; an axis is
    what an `Axis` holds, and the adjoints what those of both axes do."""
    fine, coarse, (b, t, h, w, d) = fine.contiguous(), coarse.contiguous(), fine.shape
    out = torch.empty_like(fine)
    (row_programs, row_shares), (column_programs, column_shares) = rows, columns
    weights = taps.new_empty((len(row_shares) * len(column_shares) * 54, d))
    parts, pairs = triton.cdiv(d, CHANNELS), triton.cdiv(w, 2)
    number = row_programs.shape[1], column_programs.shape[1]
    with torch.cuda.device_of(fine):
        _join[(len(weights) // 9, parts)](
            row_shares, column_shares, taps, weights, len(column_shares), d, CHANNELS
        )
        _decompress_and_fuse[(number[0] * number[1] * parts, b)](
            fine, coarse, weights, bias, gate, out, row_programs, column_programs, *number,
            len(column_shares), t, h, w, coarse.shape[2], coarse.shape[3], d,
            1 + (number[0] < h), 1 + (number[1] < pairs), coarse.shape[3] > 2, CHANNELS,
            num_warps=WARPS,
        )  # fmt: skip
    return out


@_fusion.register_fake
def _(fine, coarse, taps, bias, gate, rows, columns, adjoints):
    return fine.new_empty(fine.shape)


@torch.library.custom_op("ultragen::decompress_and_fuse_gradients", mutates_args=())
def _backward(
    grad: Tensor,
    fine: Tensor,
    coarse: Tensor,
    taps: Tensor,
    bias: Tensor,
    gate: Tensor,
    adjoints: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of both grids, taps, bias and gate, in this order."""
    grad, fine, coarse = grad.contiguous(), fine.contiguous(), coarse.contiguous()
    of_fine, total, by_fine = gradient_of_fine(grad, fine, gate)
    rest, axes = 1 - gate, (Adjoint(*adjoints[:2]), Adjoint(*adjoints[2:]))
    of_coarse, of_taps = gradients_of_coarse(grad, coarse, taps, rest, *axes)
    # The sum of the gradient by what was decompressed, which is not there any more.
    by_coarse = (of_taps * taps).sum(1) + bias * total
    of_taps = (of_taps * rest[:, None]).sum(0)
    return of_fine, of_coarse, of_taps, (rest * total).sum(0), by_fine - by_coarse


@_backward.register_fake
def _(grad, fine, coarse, taps, bias, gate, adjoints):
    return tuple(x.new_empty(x.shape) for x in (fine, coarse, taps, bias, gate))


def _remember(ctx, inputs, output) -> None:
    *tensors, _, _, adjoints = inputs
    ctx.adjoints = len(adjoints)
    ctx.save_for_backward(*tensors, *adjoints)


def _differentiate(ctx, grad):
    saved = ctx.saved_tensors
    if not ctx.adjoints:
        raise ValueError("Without adjoints of both axes decompression has no gradient.")
    tensors, adjoints = saved[: -ctx.adjoints], saved[-ctx.adjoints :]
    gradients = _backward(grad, *tensors, list(adjoints))
    return *gradients, [None] * 2, [None] * 2, [None] * ctx.adjoints


_fusion.register_autograd(_differentiate, setup_context=_remember)


def decompress_and_fuse(
    fine: Tensor,
    coarse: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],  # noqa: UP045
    gate: Tensor,
    rows: Axis,
    columns: Axis,
    adjoints: Sequence[Adjoint] = (),
) -> Tensor:
    """gate · fine + (1 − gate) · coarse, upsampled and convolved.

    Args:
        fine: b t h w d.
        coarse: b t h' w' d.
        weight: d 1 3 3 3, as `nn.Conv3d` keeps it.
        bias: d, or None.
        gate: b d or 1 d.
        rows: In groups of 1.
        columns: In groups of 2.
        adjoints: Of both axes, where a gradient is wanted.

    Returns:
        b t h w d in the precision of `fine`; sums are taken in float32.
    """
    taps = weight.flatten(1).t().float().contiguous()
    bias = gate.new_zeros(len(weight)) if bias is None else bias
    # Named one by one: torch 2.11's compiler can't iterate over a constant.
    axes = ([axis.programs, axis.shares] for axis in (rows, columns))
    backwards = [tensor for axis in adjoints for tensor in (axis.first, axis.shares)]
    gate = gate.float().expand(len(fine), -1).contiguous()
    return _fusion(fine, coarse, taps, bias.float(), gate, *axes, backwards)


def try_on(device: torch.device) -> None:
    """Runs the kernels on next to nothing; raises where they do not run."""
    x = torch.ones(1, 1, 1, 1, 1, device=device, requires_grad=True)
    rows, columns = (plan_axis(torch.ones(1, 1, device=device), group) for group in (1, 2))
    adjoint = Adjoint(*(part.to(device) for part in plan_adjoint(torch.ones(1, 1))))
    taps = x.expand(1, 1, 3, 3, 3)
    with torch.enable_grad():
        layer = taps, x[0, 0, 0, 0], x[0, 0, 0]
        decompress_and_fuse(x, x, *layer, rows, columns, [adjoint] * 2).sum().backward()
