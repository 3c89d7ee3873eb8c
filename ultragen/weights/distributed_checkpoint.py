"""Reading what `torch.distributed.checkpoint` writes: a folder with shards of tensors, `*.distcp`,
and a pickled index of them, `.metadata` (torch 2.13, `torch/distributed/checkpoint/filesystem.py`).

torch unpickles the index without looking at it. Here it is unpickled first by a reader that makes
nothing but what torch itself puts there. Of the shards only tensors are asked for, which torch
reads without running code.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from .keys import TRAINING

METADATA = ".metadata"
_CALLED_UP = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "WindowsPath"},
}


def read_distributed(folder: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Reads the weights of a checkpoint by name, in one process. What a training keeps for itself
    is left out: optimisers and the like, by their names, and whole numbers, which count steps.

    Args:
        folder: Holds the index.
        device: For `meta`, the index alone is read, and whether the shards are as long as it says.

    Raises:
        ValueError: if the index would call up anything but torch's own.
        OSError: if a shard is missing or too short; and whatever torch raises for a damaged one.
    """
    with (folder / METADATA).open("rb") as file:
        index = _IndexReader(file).load()
    for stored in index.storage_data.values():
        shard = folder / stored.relative_path
        if not shard.is_file() or shard.stat().st_size < stored.offset + stored.length:
            raise FileNotFoundError(f"{shard.name} is missing or cut off")
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device=device)
        for name, entry in index.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
        and entry.properties.dtype.is_floating_point
        and not TRAINING.match(name)
    }
    if device != "meta":
        checkpoint.load(tensors, checkpoint_id=folder, no_dist=True)
    return tensors


class _IndexReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        plain = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        size = (module, name) == ("torch", "Size")
        if not plain and not size and name not in _CALLED_UP.get(module, ()):
            raise ValueError(
                f"{METADATA} holds code ({module}.{name}), and only weights are loaded: unpickling "
                "it could run code, so it is refused."
            )
        return super().find_class(module, name)
