"""Bytes of tensors, followed as they are made and dropped, and devices that run out of memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ultragen.sampling.wan_strips import Strips

NO_ENGINE = RuntimeError("GET was unable to find an engine to execute this computation")
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


def run_out_of_memory(
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    name: str,
    holds: Callable[[Strips], bool],
    error: Exception,
) -> list[Strips]:
    """A device that runs out of memory with its second piece, unless it holds the strips.

    Args:
        monkeypatch: The test's.
        module: Where the function is.
        name: Of a function that computes piece by piece, in the strips that it is given last.
        holds: Whether the device has memory enough for strips.
        error: What it says if not.

    Returns:
        The strips that are tried, as they are.
    """
    tried, compute = [], getattr(module, name)

    def watched(vae, source, strips):
        tried.append(strips)
        for number, piece in enumerate(compute(vae, source, strips)):
            if number == 1 and not holds(strips):
                raise error
            yield piece

    monkeypatch.setattr(module, name, watched)
    return tried


class Allocations(TorchDispatchMode):
    """Follows the bytes of all tensors that are made inside.

    Attributes:
        now: Bytes that live.
        peak: The most that did at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.add(tensor.untyped_storage())
        return out

    def add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.remove, key, size)

    def remove(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size
