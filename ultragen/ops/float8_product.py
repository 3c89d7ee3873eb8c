"""The product of matrices in FP8 whose rows have factors, by the library's own kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from .dispatch import NotMeant
from .float8 import E4M3, Float8

OLDEST = (8, 9)
"""Compute capability of the first cards that multiply in FP8: Ada."""
MULTIPLE = 16
"""What the widths of both matrices must be multiples of."""


def product(x: Float8, weight: Float8, bias: Tensor, out: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias; as `float8_linear.product`, in bfloat16."""
    return torch._scaled_mm(
        x.values,
        weight.values.t(),
        x.scale,
        weight.scale.t(),
        bias=bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
        out=out,
    )


def try_on(device: torch.device) -> None:
    """Runs the product on little; raises where it does not run or gives something else, because not
    every release of torch has it for every card."""
    if torch.cuda.get_device_capability(device) < OLDEST:
        raise NotMeant("for compute capability 8.9 and newer alone")
    sizes = torch.arange(1, MULTIPLE + 1, device=device)
    factors, bias = 0.5 * sizes[:, None].float(), sizes.bfloat16()
    rows = Float8(torch.eye(MULTIPLE, device=device).to(E4M3), factors, torch.bfloat16)
    found = product(rows, rows, bias)
    if not torch.allclose(found.float(), (factors**2).view(-1).diag() + sizes, rtol=0.01):
        raise RuntimeError("the numbers are wrong")
