"""The norms, shifts, scales and gated sums between a block's layers in one pass each, in Triton.

One by one, in float32 as Wan computes them, they move eight times as much memory. So do their
gradients, which are one pass too: of what has a value for each token, and of what a clip's tokens
share, as sums that each program begins and a small reduction ends.
"""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.knobs import runtime

from .triton_rounding import factor_of, to_float8

PROGRAMS = 1056  # of the gradients' sums over tokens: eight for each multiprocessor of an H200


@triton.jit
def _sum_and_norm(
    x_ptr, update_ptr, gate_ptr, factor_ptr, offset_ptr, sum_ptr, out_ptr, scale_ptr, tokens, d,
    eps, gate_stride, factor_stride, offset_stride,
    UPDATED: tl.constexpr, GATED: tl.constexpr, NORMED: tl.constexpr, FLOAT8: tl.constexpr,
    BLOCK: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program: one token. FLOAT8: the norm is put into FP8."""
    row = tl.program_id(0).to(tl.int64)
    sample = row // tokens
    features = tl.arange(0, BLOCK)
    inside = features < d
    x = tl.load(x_ptr + row * d + features, mask=inside, other=0.0).to(tl.float32)
    if UPDATED:
        update = tl.load(update_ptr + row * d + features, mask=inside, other=0.0).to(tl.float32)
        if GATED:
            gate = tl.load(gate_ptr + sample * gate_stride + features, mask=inside, other=0.0)
            update *= gate.to(tl.float32)
        # What the norm sees is rounded like what is kept.
        x = (x + update).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * d + features, x, mask=inside)
        x = x.to(tl.float32)
    if NORMED:
        centred = tl.where(inside, x - tl.sum(x, axis=0) / d, 0.0)
        unit = centred * tl.rsqrt(tl.sum(centred * centred, axis=0) / d + eps)
        factor = tl.load(factor_ptr + sample * factor_stride + features, mask=inside, other=0.0)
        offset = tl.load(offset_ptr + sample * offset_stride + features, mask=inside, other=0.0)
        y = unit * factor.to(tl.float32) + offset.to(tl.float32)
        if FLOAT8:
            into, scale = factor_of(tl.max(tl.abs(y), axis=0))
            tl.store(scale_ptr + row, scale)
            y = to_float8(y * into, INTERPRETED)
        tl.store(out_ptr + row * d + features, y, mask=inside)


@triton.jit
def _gradients(
    of_sum_ptr, of_out_ptr, sum_ptr, update_ptr, gate_ptr, factor_ptr, of_x_ptr, of_update_ptr,
    partial_ptr, tokens, d, eps, gate_stride, factor_stride,
    SUMMED: tl.constexpr, GATED: tl.constexpr, NORMED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: every so many tokens of a sample."""
    sample, first, stride = tl.program_id(1).to(tl.int64), tl.program_id(0), tl.num_programs(0)
    features = tl.arange(0, BLOCK)
    inside = features < d
    gate, factor = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    if GATED:
        gate += tl.load(gate_ptr + sample * gate_stride + features, mask=inside, other=0.0)
    if NORMED:
        factor += tl.load(factor_ptr + sample * factor_stride + features, mask=inside, other=0.0)
    of_gate, of_factor = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    of_offset = tl.zeros((BLOCK,), tl.float32)
    for token in range(first, tokens, stride):
        at = (sample * tokens + token) * d + features
        of_x = tl.zeros((BLOCK,), tl.float32)
        if SUMMED:
            of_x += tl.load(of_sum_ptr + at, mask=inside, other=0.0)
        if NORMED:
            x = tl.load(sum_ptr + at, mask=inside, other=0.0).to(tl.float32)
            of_out = tl.load(of_out_ptr + at, mask=inside, other=0.0).to(tl.float32)
            centred = tl.where(inside, x - tl.sum(x, axis=0) / d, 0.0)
            scale = tl.rsqrt(tl.sum(centred * centred, axis=0) / d + eps)
            unit = centred * scale
            of_factor += of_out * unit
            of_offset += of_out
            of_unit = of_out * factor
            along = tl.sum(of_unit * unit, axis=0) / d
            of_x += scale * (of_unit - tl.sum(of_unit, axis=0) / d - unit * along)
        tl.store(of_x_ptr + at, of_x, mask=inside)
        if GATED:
            of_gate += of_x * tl.load(update_ptr + at, mask=inside, other=0.0).to(tl.float32)
            tl.store(of_update_ptr + at, of_x * gate, mask=inside)
    at = ((sample * stride + first) * 3) * d + features
    tl.store(partial_ptr + at, of_gate, mask=inside)
    tl.store(partial_ptr + at + d, of_factor, mask=inside)
    tl.store(partial_ptr + at + 2 * d, of_offset, mask=inside)


def compute(
    x: Tensor,
    update: Tensor | None,
    gate: Tensor | None,
    factor: Tensor | None,
    offset: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum, empty without an update, and its norm, empty without a factor, in a type of its own;
    in FP8 also what to multiply each token by, b n 1, which is empty otherwise."""
    x, (b, n, d) = x.contiguous(), x.shape
    float8 = factor is not None and dtype == torch.float8_e4m3fn
    total = x.new_empty(0) if update is None else torch.empty_like(x)
    out = x.new_empty(0) if factor is None else torch.empty_like(x, dtype=dtype)
    scale = x.new_empty((b, n, 1) if float8 else 0, dtype=torch.float32)
    update = x if update is None else update.contiguous()
    # What all samples share has a stride of 0.
    gate_, factor_, offset_ = (
        x if value is None else value.expand(b, 1, d) for value in (gate, factor, offset)
    )
    with torch.cuda.device_of(x):  # Triton takes the current device, wherever the tensors are
        _sum_and_norm[(b * n,)](
            x, update, gate_, factor_, offset_, total, out, scale, n, d, eps,
            gate_.stride(0), factor_.stride(0), offset_.stride(0),
            bool(total.numel()), gate is not None, factor is not None, float8,
            triton.next_power_of_2(d), runtime.interpret,
        )  # fmt: skip
    return total, out, scale


@torch.library.custom_op("ultragen::sum_and_norm", mutates_args=())
def _operator(
    x: Tensor,
    update: Optional[Tensor],  # noqa: UP045
    gate: Optional[Tensor],  # noqa: UP045
    factor: Optional[Tensor],  # noqa: UP045
    offset: Optional[Tensor],  # noqa: UP045
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The sum, empty without an update, and its norm, empty without a factor."""
    return compute(x, update, gate, factor, offset, eps, x.dtype)[:2]


@_operator.register_fake
def _(x, update, gate, factor, offset, eps):
    empty, like = x.new_empty(0), x.new_empty(x.shape)
    return empty if update is None else like, empty if factor is None else torch.empty_like(like)


@torch.library.custom_op("ultragen::sum_and_norm_gradients", mutates_args=())
def _backward(
    of_sum: Optional[Tensor],  # noqa: UP045
    of_out: Optional[Tensor],  # noqa: UP045
    total: Tensor,
    update: Optional[Tensor],  # noqa: UP045
    gate: Optional[Tensor],  # noqa: UP045
    factor: Optional[Tensor],  # noqa: UP045
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x and, with a gate, of the update, b n d each; and those of gate, factor and
    offset of each sample, b 3 d in float32."""
    total, (b, n, d) = total.contiguous(), total.shape
    of_x = torch.empty_like(total)
    of_update = total.new_empty(0) if gate is None else torch.empty_like(total)
    gradients = [of_x if g is None else g.contiguous() for g in (of_sum, of_out)]
    gate_, factor_ = (total if value is None else value.expand(b, 1, d) for value in (gate, factor))
    programs = min(n, -(-PROGRAMS // b))
    partial = total.new_empty((b, programs, 3, d), dtype=torch.float32)
    with torch.cuda.device_of(total):
        _gradients[(programs, b)](
            *gradients, total, total if update is None else update.contiguous(), gate_, factor_,
            of_x, of_update, partial, n, d, eps, gate_.stride(0), factor_.stride(0),
            of_sum is not None, gate is not None, factor is not None, triton.next_power_of_2(d),
        )  # fmt: skip
    return of_x, of_update, partial.sum(1)


@_backward.register_fake
def _(of_sum, of_out, total, update, gate, factor, eps):
    b, _, d = total.shape
    of_update = total.new_empty(0) if gate is None else total.new_empty(total.shape)
    sums = total.new_empty((b, 3, d), dtype=torch.float32)
    return total.new_empty(total.shape), of_update, sums


def _remember(ctx, inputs, output) -> None:
    x, update, gate, factor, offset, ctx.eps = inputs
    ctx.updated = update is not None
    # Of the update itself only the gate's gradient depends.
    kept = update if gate is not None else None
    ctx.save_for_backward(output[0] if ctx.updated else x, kept, gate, factor)
    ctx.offset = None if offset is None else (offset.shape, offset.dtype)


def _differentiate(ctx, of_sum, of_out):
    total, update, gate, factor = ctx.saved_tensors
    of_sum = of_sum if ctx.updated else None
    of_out = None if factor is None else of_out
    of_x, of_update, sums = _backward(of_sum, of_out, total, update, gate, factor, ctx.eps)
    if ctx.updated and gate is None:
        of_update = of_x

    def shared(number, shape, dtype):
        """What all samples share has the sum of their gradients."""
        found = sums[:, number, None]
        return found.sum_to_size(*((1,) * (3 - len(shape))), *shape).view(shape).to(dtype)

    return (
        of_x,
        of_update if ctx.updated else None,
        None if gate is None else shared(0, gate.shape, gate.dtype),
        None if factor is None else shared(1, factor.shape, factor.dtype),
        None if ctx.offset is None else shared(2, *ctx.offset),
        None,
    )


_operator.register_autograd(_differentiate, setup_context=_remember)


def modulated_norm(x: Tensor, factor: Tensor, offset: Tensor, eps: float) -> Tensor:
    """Layer norm, then · factor + offset, computed in float32.

    Args:
        x: b n d.
        factor: b 1 d or 1 1 d.
        offset: As `factor`.
        eps: Added to the variance, so that nothing is divided by zero.

    Returns:
        b n d in the precision of `x`.
    """
    return _operator(x, None, None, factor, offset, eps)[1]


def gated_sum(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + update · gate, computed in float32.

    Args:
        x: b n d.
        update: b n d.
        gate: b 1 d or 1 1 d.

    Returns:
        b n d in the precision of `x`.
    """
    return _operator(x, update, gate, None, None, 0.0)[0]


def gradients(
    of_sum: Tensor, of_out: Tensor, x: Tensor, factor: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of `modulated_norm` and of what `x` goes into beside it.

    Args:
        of_sum: What the gradient of `x` is without the norm, b n d.
        of_out: The gradient of the norm, b n d.
        x: b n d.
        factor: b 1 d or 1 1 d.
        eps: As in `modulated_norm`.

    Returns:
        The gradient of `x`, b n d; and b 3 d in float32, whose second and third are those of factor
        and offset.
    """
    of_x, _, sums = _backward(of_sum, of_out, x, None, None, factor, eps)
    return of_x, sums


def sum_and_norm(
    x: Tensor,
    update: Tensor,
    gate: Optional[Tensor],  # noqa: UP045
    factor: Tensor,
    offset: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """`gated_sum`, without a gate where there is none, and the `modulated_norm` of it."""
    return _operator(x, update, gate, factor, offset, eps)


def try_on(device: torch.device) -> None:
    """Runs the kernels on next to nothing; raises where they do not run."""
    x = torch.ones(1, 1, 2, device=device, requires_grad=True)
    with torch.enable_grad():
        sum_and_norm(x, x, x, x, x, 1e-6)[1].sum().backward()
