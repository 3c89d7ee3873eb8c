"""Weights in FP8 or in GGUF's blocks, kept as a file has them: they become a matrix of the type
that is computed in when a layer runs, and are gone after it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FLOAT8 = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
"""FP8 types by the names that torch and ComfyUI give them."""
HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}
"""ggml's names of types of two bytes, in which there is nothing to be saved."""


@dataclass(frozen=True)
class Quantised:
    """A weight as a file has it.

    Attributes:
        codes: Bytes, uint8, the first axis as the file has it.
        kind: One of `FLOAT8` or `HALVES`, or ggml's name of a kind of blocks, such as `Q4_K`.
        shape: That of the weight.
        scale: What FP8 values are multiplied by, float32: one value, one for each row (out × 1), or
            one for each block (out / rows of a block × in / columns of a block); None is 1.
    """

    codes: Tensor
    kind: str
    shape: tuple[int, ...]
    scale: Tensor | None = None

    @property
    def in_rows(self) -> bool:
        """Whether rows of the weight are rows of bytes, each by itself."""
        rows = len(self.shape) == self.codes.ndim == 2 and self.shape[0] == len(self.codes)
        return rows and (self.scale is None or self.scale.numel() in (1, self.shape[0]))

    def rows(self, places: Tensor) -> Quantised:
        """Some rows of a weight that is `in_rows`."""
        scale = self.scale
        if scale is not None and scale.numel() > 1:
            scale = scale.view(-1, 1)[places]
        shape = (len(places), self.shape[1])
        return replace(self, codes=self.codes[places], shape=shape, scale=scale)

    def copy(self) -> Quantised:
        """The same in memory of its own, where it may lie in a file that is mapped."""
        return replace(self, codes=self.codes.clone())

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """The weight, computed in float32 and rounded once."""
        if self.codes.is_meta:
            return torch.empty(self.shape, dtype=dtype, device="meta")
        if self.kind in HALVES:
            return self.codes.view(HALVES[self.kind]).view(self.shape).to(dtype)
        if self.kind not in FLOAT8:
            return blocks_to_values(self.codes, self.kind).view(self.shape).to(dtype)
        values = self.codes.view(FLOAT8[self.kind])
        if self.scale is None:  # every FP8 value is one of bfloat16, too
            return values.to(dtype)
        return (values.float() * spread(self.scale, self.shape)).to(dtype)


StateDict = dict[str, Tensor | Quantised]
"""Weights by name, as a file has them."""


def spread(scale: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Scales of blocks, one for each value of a weight; others are broadcast as they are."""
    if scale.numel() == 1:
        return scale.reshape(())
    for axis, size in enumerate(shape):
        if scale.shape[axis] not in (1, size):
            scale = scale.repeat_interleave(size // scale.shape[axis], dim=axis)
    return scale


def block_kinds() -> set[str]:
    """ggml's names of the kinds of blocks that can be read.

    Raises:
        ValueError: if the package gguf is not there.
    """
    return {kind.name for kind in _readers()}


def blocks_to_values(codes: Tensor, kind: str) -> Tensor:
    """Values in ggml's blocks, by diffusers' translation of its arithmetic.

    diffusers calls it in float16; in float32 it gives what ggml gives, bit for bit.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    number = GGMLQuantizationType[kind]
    values, size = GGML_QUANT_SIZES[number]
    return _readers()[number](codes.reshape(-1, size), values, size, dtype=torch.float32)


def _readers() -> dict[Any, Any]:
    try:
        from diffusers.quantizers.gguf.utils import dequantize_functions
    except ImportError as error:
        raise ValueError(
            "GGUF files need the package gguf: pip install 'gguf>=0.19', or take the .safetensors "
            "file of this model."
        ) from error
    return dequantize_functions


class _Kept(nn.Module):
    """A layer whose weight is `Quantised`; it can't be trained. It is saved as the plain layer that
    it stands for."""

    codes: Tensor
    scale: Tensor | None

    def __init__(self, weight: Quantised, dtype: torch.dtype) -> None:
        super().__init__()
        self.kind, self.shape, self.dtype = weight.kind, weight.shape, dtype
        self.register_buffer("codes", weight.codes)
        # As bytes, so that casting a model to another type leaves it as exact as it is.
        scale = weight.scale
        self.scale_shape = () if scale is None else tuple(scale.shape)
        self.register_buffer(
            "scale", None if scale is None else scale.float().reshape(-1).view(torch.uint8)
        )

    @property
    def stored(self) -> Quantised:
        scale = self.scale
        if scale is not None:
            scale = scale.view(torch.float32).view(self.scale_shape)
        return Quantised(self.codes, self.kind, self.shape, scale)

    @property
    def weight(self) -> Tensor:
        """The matrix, made anew. umT5's feed-forward network asks for its type."""
        return self.stored.dequantise(self.dtype)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination[f"{prefix}weight"] = self.weight


class QuantisedLinear(_Kept):
    """`nn.Linear` without a bias: … in → … out."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class QuantisedEmbedding(_Kept):
    """`nn.Embedding`, of which only the rows that are looked up become values: b n → b n d."""

    def forward(self, ids: Tensor) -> Tensor:
        found, places = ids.unique(return_inverse=True)
        return self.stored.rows(found).dequantise(self.dtype)[places]
