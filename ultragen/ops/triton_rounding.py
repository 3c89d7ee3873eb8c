"""Numbers in FP8 (e4m3), in Triton."""

import triton
import triton.language as tl

from .float8 import LARGEST, SMALLEST

TOP, BOTTOM = tl.constexpr(LARGEST), tl.constexpr(SMALLEST)


@triton.jit
def rounded(x):
    """Numbers with the four significant bits of FP8, to the nearest even (Veltkamp)."""
    large = x * 1048577.0  # 2 ** 20 + 1
    return large - (large - x)


@triton.jit
def to_float8(x, INTERPRETED: tl.constexpr):
    """Float32 → e4m3; up to 448, as what is larger becomes NaN on some machines."""
    if INTERPRETED:  # Triton 3.9's interpreter loses the carry: 1.99 becomes 1, not 2
        x = rounded(x)
    return x.to(tl.float8e4nv)


@triton.jit
def factor_of(largest):
    """What rows are multiplied by to get into FP8, and what to multiply them by afterwards; from
    their largest absolute value."""
    largest = tl.maximum(largest, BOTTOM)
    return TOP / largest, largest / TOP
