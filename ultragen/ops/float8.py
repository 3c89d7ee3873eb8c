"""Tokens and weights in FP8 (Micikevicius et al., 2022, arXiv 2209.05433; e4m3), each row with a
factor of its own: a token's, or an output feature's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .layer_checks import is_unhooked

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3
SMALLEST = 1e-12  # of a row's largest value, so that nothing is divided by zero


@dataclass(frozen=True, eq=False)
class Float8:
    """Rows of numbers in FP8, in the place of a tensor that layers are given.

    Attributes:
        values: … d in e4m3.
        scale: What to multiply each row by, … 1 in float32.
        dtype: The precision of the numbers that they stand for, and of what is computed of them.
    """

    values: Tensor
    scale: Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        """Of the numbers, … d."""
        return self.values.shape

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.values.device

    @property
    def is_cuda(self) -> bool:
        """Whether that is a GPU."""
        return self.values.is_cuda

    def rows(self) -> Float8:
        """… d → n d."""
        return replace(self, values=self.values.flatten(0, -2), scale=self.scale.flatten(0, -2))

    def __getitem__(self, here: slice) -> Float8:
        """Some of the rows n d."""
        return replace(self, values=self.values[here], scale=self.scale[here])

    def dequantise(self) -> Tensor:
        """The numbers, … d, computed in float32 and rounded once."""
        # Every e4m3 number is one of bfloat16 and float16, too.
        return self.values.to(self.dtype).mul_(self.scale)


Tokens = Tensor | Float8


def takes_float8(module: Any) -> bool:
    """Whether a module may be given `Float8` now: it says so, nothing is done to it, and no
    gradients are wanted."""
    if torch.is_grad_enabled() or not getattr(module, "takes_float8", False):
        return False
    return is_unhooked(module)


def all_take_float8(modules: Iterable[Any]) -> bool:
    """Whether all of several modules may."""
    return all(map(takes_float8, modules))
