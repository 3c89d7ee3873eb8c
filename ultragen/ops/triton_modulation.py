"""The norms, shifts, scales and gated sums between a block's layers in one pass each, in Triton.

One by one, in float32 as Wan computes them, they move eight times as much memory. Without
gradients: where they are needed, the plain code runs.
"""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _sum_and_norm(
    x_ptr, update_ptr, gate_ptr, factor_ptr, offset_ptr, sum_ptr, out_ptr, tokens, d, eps,
    gate_stride, factor_stride, offset_stride,
    UPDATED: tl.constexpr, GATED: tl.constexpr, NORMED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one token."""
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
        tl.store(out_ptr + row * d + features, y, mask=inside)


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
    x, (b, n, d) = x.contiguous(), x.shape
    total = x.new_empty(0) if update is None else torch.empty_like(x)
    out = x.new_empty(0) if factor is None else torch.empty_like(x)
    update = x if update is None else update.contiguous()
    # What all samples share has a stride of 0.
    gate_, factor_, offset_ = (
        x if value is None else value.expand(b, 1, d) for value in (gate, factor, offset)
    )
    with torch.cuda.device_of(x):  # Triton takes the current device, wherever the tensors are
        _sum_and_norm[(b * n,)](
            x, update, gate_, factor_, offset_, total, out, n, d, eps,
            gate_.stride(0), factor_.stride(0), offset_.stride(0),
            bool(total.numel()), gate is not None, factor is not None, triton.next_power_of_2(d),
        )  # fmt: skip
    return total, out


@_operator.register_fake
def _(x, update, gate, factor, offset, eps):
    empty, like = x.new_empty(0), x.new_empty(x.shape)
    return empty if update is None else like, empty if factor is None else torch.empty_like(like)


def modulated_norm(x: Tensor, factor: Tensor, offset: Tensor, eps: float) -> Tensor:
    """Layer norm, then · factor + offset, computed in float32.

    Args:
        x: b n d.
        factor: b 1 d or 1 1 d.
        offset: As `factor`.
        eps: What the norm adds to the variance.

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
    """Runs the kernel on next to nothing; raises where it does not run."""
    x = torch.ones(1, 1, 2, device=device)
    sum_and_norm(x, x, x, x, x, 1e-6)
