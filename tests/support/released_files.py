"""Small files of the released layout, and files that no one should load."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from released_reference import Sizes, released_weights
from safetensors.torch import save_file
from torch import Tensor

DENSE = Sizes(layers=2, full=(0, 1))


SMALL = Sizes(dim=128, ffn=32, text=8, freq=32, rank=2, layers=3, full=(0,))


def error(value: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return ((value.double() - expected).abs().max() / expected.abs().max()).item()


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a
    )


def dense_weights(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return released_weights(DENSE, dtype=dtype)


def sharded(weights: dict[str, Tensor], folder: Path, shards: int = 3) -> Path:
    """Writes the index and the shards of a model, as the large Wan models come."""
    folder.mkdir(exist_ok=True)
    keys, files = sorted(weights), {}
    for i in range(shards):
        name = f"diffusion_pytorch_model-{i + 1:05}-of-{shards:05}.safetensors"
        part = keys[i::shards]
        save_file({key: weights[key] for key in part}, folder / name)
        files |= dict.fromkeys(part, name)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    return index


class Code:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)
