"""Bilinear resampling of tokens in Triton, for windows that the released weights resize. Without
gradients: where they are needed, the plain code runs.

The library goes through tokens in channels-first order, value by value; here a program makes one
token of four neighbours.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=("h", "w", "new_h", "new_w"))  # windows come in many sizes
def _resample(
    x_ptr, out_ptr, row_ptr, row_share_ptr, column_ptr, column_share_ptr,
    h, w, new_h, new_w, d, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one token of the result."""
    row = tl.program_id(0)
    column, line = row % new_w, row // new_w % new_h
    frame = (row // (new_w * new_h)).to(tl.int64)  # (b t)
    features = tl.arange(0, BLOCK)
    inside = features < d
    y, down = tl.load(row_ptr + line), tl.load(row_share_ptr + line)
    x, across = tl.load(column_ptr + column), tl.load(column_share_ptr + column)
    below, right = tl.minimum(y + 1, h - 1), tl.minimum(x + 1, w - 1)
    upper, lower = (frame * h + y) * w, (frame * h + below) * w
    a = tl.load(x_ptr + (upper + x) * d + features, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + (upper + right) * d + features, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(x_ptr + (lower + x) * d + features, mask=inside, other=0.0).to(tl.float32)
    e = tl.load(x_ptr + (lower + right) * d + features, mask=inside, other=0.0).to(tl.float32)
    a += across * (b - a)
    c += across * (e - c)
    tl.store(out_ptr + row.to(tl.int64) * d + features, a + down * (c - a), mask=inside)


@torch.library.custom_op("ultragen::resample", mutates_args=())
def _operator(
    x: Tensor, row: Tensor, row_share: Tensor, column: Tensor, column_share: Tensor
) -> Tensor:
    """Tokens b t h w d; an axis as `plan_axis` gives it."""
    x, (b, t, h, w, d) = x.contiguous(), x.shape
    out = x.new_empty((b, t, len(row), len(column), d))
    with torch.cuda.device_of(x):  # Triton takes the current device, wherever the tensors are
        _resample[(b * t * len(row) * len(column),)](
            x, out, row, row_share, column, column_share, h, w, len(row), len(column), d,
            triton.next_power_of_2(d),
        )  # fmt: skip
    return out


@_operator.register_fake
def _(x, row, row_share, column, column_share):
    b, t, _, _, d = x.shape
    return x.new_empty((b, t, len(row), len(column), d))


def plan_axis(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The first of the two tokens that each new token is made of, int32, and the second one's
    share, float32.

    Args:
        matrix: What resamples an axis: new length × old length.
    """
    first = (matrix > 0).int().argmax(1)
    share = 1 - matrix.gather(1, first[:, None])[:, 0]
    return first.int(), share.float()


def resample(x: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> Tensor:
    """Bilinear resampling.

    Args:
        x: b t h w d.
        rows: What `plan_axis` gives for the rows.
        columns: The same for the columns.

    Returns:
        b t h' w' d in the precision of `x`.
    """
    return _operator(x, *rows, *columns)


def try_on(device: torch.device) -> None:
    """Runs the kernel on next to nothing; raises where it does not run."""
    axis = plan_axis(torch.ones(1, 1, device=device))
    resample(torch.ones(1, 1, 1, 1, 1, device=device), axis, axis)
