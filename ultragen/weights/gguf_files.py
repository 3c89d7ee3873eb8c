"""Reading GGUF files, the format of llama.cpp, with city96's additions for video models.

Shapes are stored with the last axis first. ComfyUI-GGUF (`tools/convert.py`) keeps the original
names of Wan's weights, and tells in `comfy.gguf.orig_shape.NAME` the shape of a weight that was
rearranged so that it could be cut into blocks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..model.quantised import HALVES, Quantised, StateDict, block_kinds

_ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
_PLAIN = ("F32", "F64")


def read_gguf(path: Path) -> StateDict:
    """Reads a file's weights by name. Values stay in the file until they are used.

    Raises:
        ValueError: if the package gguf is not there, or a weight is of a kind that can't be read;
            and whatever else gguf raises for a damaged file.
    """
    kinds = block_kinds()
    from gguf import GGUFReader

    reader = GGUFReader(path, "c")  # whose tensors may be changed in memory, as torch's may
    weights: StateDict = {}
    for stored in reader.tensors:
        kind, name = stored.tensor_type.name, stored.name
        if kind not in (*_PLAIN, *HALVES, *kinds):
            raise UnreadableKind(
                f"{path} holds {name} as {kind}: take a file in one of "
                f"{', '.join(sorted(kinds))}, or the .safetensors file of this model."
            )
        values, shape = torch.from_numpy(stored.data), _shape(reader, stored)
        if kind in _PLAIN:
            weights[name] = values.view(shape)
        else:  # halves too: the few weights beside them in float32 shall not make all others so
            weights[name] = Quantised(values.view(torch.uint8), kind, shape)
    return weights


class UnreadableKind(ValueError):
    """A kind of blocks that only ggml itself reads."""


def _shape(reader: Any, stored: Any) -> tuple[int, ...]:
    original = reader.get_field(f"{_ORIGINAL_SHAPE}{stored.name}")
    sizes = stored.shape[::-1] if original is None else original.contents()
    return tuple(int(size) for size in sizes)
