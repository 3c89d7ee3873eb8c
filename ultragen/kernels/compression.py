"""What makes a branch's grid small and large again in one pass each, in Triton: the compressing
convolution, and decompression with the fusion that follows it. Without gradients: where they are
needed, the plain code runs.

Upsampling by 2 or more and the 3 × 3 × 3 convolution after it are one linear map, in which a token
of the full grid sees 3 × 3 tokens of the small one at three moments. A program takes one place of
the full grid, joins both maps into its 27 weights, and goes through the frames with them: neither
the upsampled grid nor the decompressed one is ever written.
"""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

TOKENS, FEATURES = 4, 256  # of one program of the compression
CHANNELS = 512  # of one program of the decompression


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
def _joined(taps_ptr, rows_ptr, columns_ptr, d, features, inside, sy, sx):
    """The weights of the small grid's token (sy, sx), one for each of the three moments."""
    first = tl.zeros_like(features).to(tl.float32)
    second, third = first, first
    for tap in tl.static_range(9):
        share = tl.load(rows_ptr + tap // 3 * 3 + sy) * tl.load(columns_ptr + tap % 3 * 3 + sx)
        at = taps_ptr + tap * d + features
        first += share * tl.load(at, mask=inside, other=0.0)
        second += share * tl.load(at + 9 * d, mask=inside, other=0.0)
        third += share * tl.load(at + 18 * d, mask=inside, other=0.0)
    return first, second, third


@triton.jit
def _decompress_and_fuse(
    fine_ptr, coarse_ptr, taps_ptr, bias_ptr, gate_ptr, out_ptr,
    first_row_ptr, rows_ptr, first_column_ptr, columns_ptr,
    t, h, w, small_h, small_w, d, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: one place of the full grid, all moments, CHANNELS features."""
    x, y = tl.program_id(0) % w, tl.program_id(0) // w
    sample = tl.program_id(2).to(tl.int64)
    features = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = features < d
    rows_ptr += y * 9
    columns_ptr += x * 9
    a0, a1, a2 = _joined(taps_ptr, rows_ptr, columns_ptr, d, features, inside, 0, 0)
    b0, b1, b2 = _joined(taps_ptr, rows_ptr, columns_ptr, d, features, inside, 0, 1)
    c0, c1, c2 = _joined(taps_ptr, rows_ptr, columns_ptr, d, features, inside, 0, 2)
    d0, d1, d2 = _joined(taps_ptr, rows_ptr, columns_ptr, d, features, inside, 1, 0)
    e0, e1, e2 = _joined(taps_ptr, rows_ptr, columns_ptr, d, features, inside, 1, 1)
    f0, f1, f2 = _joined(taps_ptr, rows_ptr, columns_ptr, d, features, inside, 1, 2)
    g0, g1, g2 = _joined(taps_ptr, rows_ptr, columns_ptr, d, features, inside, 2, 0)
    h0, h1, h2 = _joined(taps_ptr, rows_ptr, columns_ptr, d, features, inside, 2, 1)
    i0, i1, i2 = _joined(taps_ptr, rows_ptr, columns_ptr, d, features, inside, 2, 2)

    # Tokens beyond the small grid have weights of 0: any token that is there stands for them.
    row, column = tl.load(first_row_ptr + y), tl.load(first_column_ptr + x)
    row1, row2 = tl.minimum(row + 1, small_h - 1), tl.minimum(row + 2, small_h - 1)
    right1 = tl.minimum(column + 1, small_w - 1) * d + features
    right2 = tl.minimum(column + 2, small_w - 1) * d + features
    right0 = column * d + features
    gate = tl.load(gate_ptr + sample * d + features, mask=inside, other=0.0)
    bias = tl.load(bias_ptr + features, mask=inside, other=0.0)
    # Frame s adds to the results of the moments s − 1, s and s + 1.
    before = tl.zeros((CHANNELS,), dtype=tl.float32)
    now = tl.zeros((CHANNELS,), dtype=tl.float32)
    for moment in range(t + 1):
        after = tl.zeros((CHANNELS,), dtype=tl.float32)
        if moment < t:
            frame = coarse_ptr + (sample * t + moment) * small_h * small_w * d
            line0, line1 = frame + row * small_w * d, frame + row1 * small_w * d
            line2 = frame + row2 * small_w * d
            s = tl.load(line0 + right0, mask=inside, other=0.0).to(tl.float32)
            after, now, before = after + a0 * s, now + a1 * s, before + a2 * s
            s = tl.load(line0 + right1, mask=inside, other=0.0).to(tl.float32)
            after, now, before = after + b0 * s, now + b1 * s, before + b2 * s
            s = tl.load(line0 + right2, mask=inside, other=0.0).to(tl.float32)
            after, now, before = after + c0 * s, now + c1 * s, before + c2 * s
            s = tl.load(line1 + right0, mask=inside, other=0.0).to(tl.float32)
            after, now, before = after + d0 * s, now + d1 * s, before + d2 * s
            s = tl.load(line1 + right1, mask=inside, other=0.0).to(tl.float32)
            after, now, before = after + e0 * s, now + e1 * s, before + e2 * s
            s = tl.load(line1 + right2, mask=inside, other=0.0).to(tl.float32)
            after, now, before = after + f0 * s, now + f1 * s, before + f2 * s
            s = tl.load(line2 + right0, mask=inside, other=0.0).to(tl.float32)
            after, now, before = after + g0 * s, now + g1 * s, before + g2 * s
            s = tl.load(line2 + right1, mask=inside, other=0.0).to(tl.float32)
            after, now, before = after + h0 * s, now + h1 * s, before + h2 * s
            s = tl.load(line2 + right2, mask=inside, other=0.0).to(tl.float32)
            after, now, before = after + i0 * s, now + i1 * s, before + i2 * s
        if moment > 0:
            at = (((sample * t + moment - 1) * h + y) * w + x) * d + features
            fine = tl.load(fine_ptr + at, mask=inside, other=0.0).to(tl.float32)
            coarse = before + bias
            tl.store(out_ptr + at, coarse + gate * (fine - coarse), mask=inside)
        before, now = now, after


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
    first_row: Tensor,
    rows: Tensor,
    first_column: Tensor,
    columns: Tensor,
) -> Tensor:
    """Grids b t h w d, taps 27 d, bias d and gate b d, all but the grids in float32."""
    fine, coarse, (b, t, h, w, d) = fine.contiguous(), coarse.contiguous(), fine.shape
    out = torch.empty_like(fine)
    grid = (h * w, triton.cdiv(d, CHANNELS), b)
    with torch.cuda.device_of(fine):
        _decompress_and_fuse[grid](
            fine, coarse, taps, bias, gate, out, first_row, rows, first_column, columns,
            t, h, w, coarse.shape[2], coarse.shape[3], d, CHANNELS,
        )  # fmt: skip
    return out


@_compression.register_fake
def _(x, taps, bias, factor):
    b, t, h, w, d = x.shape
    return x.new_empty((b, t, -(-h // factor), -(-w // factor), d))


@_fusion.register_fake
def _(fine, coarse, taps, bias, gate, first_row, rows, first_column, columns):
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


def neighbours(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """What the upsampled neighbours of each place of an axis are made of.

    Args:
        matrix: Length of the full axis × length of the small one, of the upsampling.

    Returns:
        The first of three neighbouring small tokens, int32, for each place of the full axis; and
        the shares that the neighbour before, at and after this place have of the three, place × 3
        × 3. Beyond the edges there is nothing.

    Raises:
        ValueError: if a place needs more than three, as upsampling by less than 2 may.
    """
    around = F.pad(matrix.float(), (0, 2, 1, 1)).unfold(0, 3, 1)  # place small neighbour
    first = (around.sum(-1) > 0).int().argmax(1)
    three = first[:, None] + torch.arange(3, device=matrix.device)
    shares = around.gather(1, three[..., None].expand(-1, -1, 3))
    if not torch.allclose(shares.sum(), around.sum()):
        raise ValueError(
            f"Upsampling {matrix.shape[1]} tokens to {matrix.shape[0]} needs more than three."
        )
    return first.int(), shares.transpose(1, 2).contiguous()


def decompress_and_fuse(
    fine: Tensor,
    coarse: Tensor,
    weight: Tensor,
    bias: Tensor,
    gate: Tensor,
    rows: tuple[Tensor, Tensor],
    columns: tuple[Tensor, Tensor],
) -> Tensor:
    """gate · fine + (1 − gate) · coarse, upsampled and convolved.

    Args:
        fine: b t h w d.
        coarse: b t h' w' d.
        weight: d 1 3 3 3, as `nn.Conv3d` keeps it.
        bias: d.
        gate: b d.
        rows: What `neighbours` gives for the rows.
        columns: The same for the columns.

    Returns:
        b t h w d in the precision of `fine`; sums are taken in float32.
    """
    taps = weight.flatten(1).t().float().contiguous()
    return _fusion(fine, coarse, taps, bias.float(), gate.float().contiguous(), *rows, *columns)


def try_on(device: torch.device) -> None:
    """Runs the kernels on next to nothing; raises where they do not run."""
    x = torch.ones(1, 1, 1, 1, 1, device=device)
    axis = neighbours(torch.ones(1, 1, device=device))
    small = compress(x, x, None)
    decompress_and_fuse(x, small, x.expand(1, 1, 3, 3, 3), x[0, 0, 0, 0], x[0, 0, 0], axis, axis)
