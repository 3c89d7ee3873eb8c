"""Reading GGUF files, the format of llama.cpp, with city96's additions for video models. It needs
the package gguf, and so is only imported where such a file is there.

Shapes are stored with the last axis first. ComfyUI-GGUF (`tools/convert.py`) keeps the original
names of Wan's weights, and tells in `comfy.gguf.orig_shape.NAME` the shape of a weight that was
rearranged so that it could be cut into blocks.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, GGUFValueType

from ..model.quantised import Quantised, StateDict

_ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
_PLAIN = ("F32", "F64")
_LONG = 1000  # items of an array that is no shape


def read_gguf(path: Path) -> StateDict:
    """Reads a file's weights by name. Values stay in the file until they are used.

    Raises:
        Exception: whatever gguf raises for a damaged file.
    """
    reader = _WeightReader(path, "c")  # its tensors may be changed in memory, as torch expects
    weights: StateDict = {}
    for stored in reader.tensors:
        kind, values = stored.tensor_type.name, torch.from_numpy(stored.data)
        original = reader.get_field(f"{_ORIGINAL_SHAPE}{stored.name}")
        sizes = stored.shape[::-1] if original is None else original.contents()
        shape = tuple(int(size) for size in sizes)
        if kind in _PLAIN:
            weights[stored.name] = values.view(shape)
        else:  # halves too: the few weights beside them in float32 shall not make all others so
            weights[stored.name] = Quantised(values.view(torch.uint8), kind, shape)
    return weights


class _WeightReader(GGUFReader):
    """gguf's reader, but for long arrays, which it passes over: of the three of umT5's 256,384
    pieces, gguf 0.19.0 makes numpy arrays one by one, in half a minute and half a gigabyte."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        head = "<IQ"  # type of the items, and their number
        if raw_type == GGUFValueType.ARRAY and self.byte_order == "I":
            item, length = struct.unpack_from(head, self.data.data, orig_offs)
            start = orig_offs + struct.calcsize(head)
            scalar = self.gguf_scalar_to_np.get(item)
            if length > _LONG and scalar is not None:
                return start - orig_offs + length * scalar().nbytes, [], [], []
            if length > _LONG and item == GGUFValueType.STRING:
                return self._end_of_strings(start, length) - orig_offs, [], [], []
        return super()._get_field_parts(orig_offs, raw_type)

    def _end_of_strings(self, place: int, number: int) -> int:
        for _ in range(number):
            (size,) = struct.unpack_from("<Q", self.data.data, place)
            place += 8 + size
        return place
