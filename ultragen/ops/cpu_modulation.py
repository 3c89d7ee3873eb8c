"""What a block's layers do between matrix products, on a CPU, in the library's fused operators.

One by one, in float32 as Wan computes them, they move several times as much memory. Without
gradients: where they are needed, the plain code runs. The functions are those of `modulation`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def modulated_norm(x: Tensor, factor: Tensor, offset: Tensor, eps: float) -> Tensor:
    """Layer norm, then · factor + offset, computed in float32.

    Args:
        x: b n d.
        factor: b 1 d or 1 1 d, or of any shape with d values.
        offset: As `factor`.
        eps: What the norm adds to the variance.

    Returns:
        b n d in the precision of `x`.
    """
    b, _, d = x.shape
    # The library's norm has one factor for all that it gets: one sample at a time.
    factors, offsets = (value.float().reshape(-1, d).expand(b, d) for value in (factor, offset))
    samples = zip(x.split(1), factors, offsets, strict=True)
    normed = [F.layer_norm(sample, (d,), own, shift, eps) for sample, own, shift in samples]
    return normed[0] if b == 1 else torch.cat(normed)


def gated_sum(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + update · gate.

    Args:
        x: b n d.
        update: b n d.
        gate: b 1 d or 1 1 d.

    Returns:
        b n d in the precision of `x`.
    """
    return torch.addcmul(x, update, gate.type_as(x))


def sum_and_norm(
    x: Tensor, update: Tensor, gate: Tensor | None, factor: Tensor, offset: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """`gated_sum`, without a gate where there is none, and the `modulated_norm` of it."""
    total = x + update if gate is None else gated_sum(x, update, gate)
    return total, modulated_norm(total, factor, offset, eps)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Linear layer and GELU (tanh), the latter while the product is still at hand; alone it takes
    four times as long as the product in bfloat16.

    Args:
        x: … d.
        weight: hidden × d.
        bias: hidden.

    Returns:
        … hidden. In bfloat16 on a processor for which the library has no such operator, by two.
    """
    if x.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return F.gelu(F.linear(x, weight, bias), approximate="tanh")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "tanh")


def try_on(device: torch.device) -> None:
    """Runs the operators on next to nothing; raises where they do not run."""
    x = torch.ones(1, 1, 2, device=device)
    sum_and_norm(x, x, x, x, x, 1e-6)
    for dtype in (torch.float32, torch.bfloat16):
        linear_gelu(*(value.to(dtype) for value in (x, x[0].expand(3, 2), x[0, 0, :1].expand(3))))
