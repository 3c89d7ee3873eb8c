"""The compressing convolution of a branch in one pass, in Triton, and its gradients in one."""

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


@triton.jit
def _gradients(
    x_ptr, taps_ptr, grad_ptr, of_x_ptr, partial_ptr, small_h, small_w, d,
    FACTOR: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """One program: a row of the small grid, FEATURES features. The grid is a multiple of it."""
    row = tl.program_id(0).to(tl.int64)  # (b t small_h)
    features = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    inside = features < d
    taps = tl.arange(0, FACTOR * FACTOR)
    mask = (taps >= 0)[:, None] & inside[None, :]
    weights = tl.load(taps_ptr + taps[:, None] * d + features[None, :], mask=mask, other=0.0)
    weights = weights.to(tl.float32)
    w = small_w * FACTOR
    first = (row * FACTOR + taps // FACTOR) * w + taps % FACTOR
    of_taps = tl.zeros((FACTOR * FACTOR, FEATURES), tl.float32)
    of_bias = tl.zeros((FEATURES,), tl.float32)
    for column in range(small_w):
        at = row * small_w + column
        grad = tl.load(grad_ptr + at * d + features, mask=inside, other=0.0).to(tl.float32)
        places = (first + column * FACTOR)[:, None] * d + features[None, :]
        x = tl.load(x_ptr + places, mask=mask, other=0.0).to(tl.float32)
        of_taps += x * grad[None, :]
        of_bias += grad
        tl.store(of_x_ptr + places, weights * grad[None, :], mask=mask)
    partial_ptr += row * (FACTOR * FACTOR + 1) * d
    tl.store(partial_ptr + taps[:, None] * d + features[None, :], of_taps, mask=mask)
    tl.store(partial_ptr + FACTOR * FACTOR * d + features, of_bias, mask=inside)


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


@torch.library.custom_op("ultragen::compress_gradients", mutates_args=())
def _backward(x: Tensor, taps: Tensor, grad: Tensor, factor: int) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the tokens, of the taps and of the bias, the latter two in float32."""
    x, taps, grad = x.contiguous(), taps.contiguous(), grad.contiguous()
    b, t, small_h, small_w, d = grad.shape
    of_x = torch.empty_like(x)
    rows, features = b * t * small_h, 128
    partial = x.new_empty((rows, factor**2 + 1, d), dtype=torch.float32)
    with torch.cuda.device_of(x):
        _gradients[(rows, triton.cdiv(d, features))](
            x, taps, grad, of_x, partial, small_h, small_w, d, factor, features
        )
    sums = partial.sum(0)
    return of_x, sums[:-1].clone(), sums[-1].clone()


@_backward.register_fake
def _(x, taps, grad, factor):
    d = x.shape[-1]
    sums = (x.new_empty(shape, dtype=torch.float32) for shape in ((factor**2, d), (d,)))
    return x.new_empty(x.shape), *sums


def _remember(ctx, inputs, output) -> None:
    x, taps, bias, ctx.factor = inputs
    ctx.save_for_backward(x, taps)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _differentiate(ctx, grad):
    x, taps = ctx.saved_tensors
    if any(length % ctx.factor for length in x.shape[2:4]):
        raise ValueError("The compression of grids whose edges are repeated has no gradient.")
    of_x, of_taps, of_bias = _backward(x, taps, grad, ctx.factor)
    biased = ctx.bias_dtype is not None
    return of_x, of_taps.to(taps.dtype), of_bias.to(ctx.bias_dtype) if biased else None, None


_compression.register_autograd(_differentiate, setup_context=_remember)


def compress(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:  # noqa: UP045
    """Convolution of each feature whose stride is its size; edges are repeated where needed, which
    has no gradient.

    Args:
        x: b t h w d.
        weight: d 1 factor factor, as `nn.Conv2d` keeps it; may be of another precision than `x`.
        bias: d, or None.

    Returns:
        b t ⌈h/factor⌉ ⌈w/factor⌉ d in the precision of `x`; sums are taken in float32.
    """
    return _compression(x, weight.flatten(1).t(), bias, weight.shape[-1])


def try_on(device: torch.device) -> None:
    """Runs the kernels on next to nothing; raises where they do not run."""
    x = torch.ones(1, 1, 2, 2, 1, device=device, requires_grad=True)
    with torch.enable_grad():
        compress(x, x.detach()[0], None).sum().backward()
