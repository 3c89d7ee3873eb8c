"""What tests of kernels share: on a GPU they run there, elsewhere in Triton's interpreter."""

from __future__ import annotations

import torch
from torch import Tensor

from ultragen.model.attention import RotaryNorm
from ultragen.model.window_plan import WindowLayout
from ultragen.ops.dispatch import use

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# One moment, but on a GPU two, for the sake of the library's convolution on grids this small.
GRID = (1, 4, 6) if DEVICE == "cpu" else (2, 4, 6)
# The library's convolutions count with fewer digits on a GPU than its matrix products otherwise.
torch.backends.cudnn.allow_tf32 = False


def angles(grid: tuple[int, int, int], half: int) -> tuple[Tensor, Tensor]:
    angle = torch.randn(*grid, half, device=DEVICE)
    return angle.cos(), angle.sin()


def plain_rotary_norm(x, weight, rotary, heads, partition):
    norm = RotaryNorm(x.shape[-1], eps=1e-6).to(DEVICE)
    del norm.weight
    norm.weight = weight
    with use("plain"):
        return norm(x, WindowLayout(x.shape[2:4], partition, rotary), heads)
