"""The compressing convolution of a branch in one pass, in Triton. Without gradients: where they are
needed, the plain code runs."""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS, FEATURES = 4, 256  # of one program


@triton.jit(do_not_specialize=("h", "w", "small_h", "small_w"))
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


@_compression.register_fake
def _(x, taps, bias, factor):
    b, t, h, w, d = x.shape
    return x.new_empty((b, t, -(-h // factor), -(-w // factor), d))


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


def try_on(device: torch.device) -> None:
    """Runs the kernel on next to nothing; raises where it does not run."""
    x = torch.ones(1, 1, 1, 1, 1, device=device)
    compress(x, x, None)
