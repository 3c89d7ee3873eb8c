"""Tensors that autograd keeps, in the host's memory until they are needed.

They are copied beside the computation, in a stream of their own. Those of one layer come back
together, and while it is computed those of the layer before it: the backward pass wants them in the
reverse order. Copies are pinned, and their room is taken again for the next step.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import AbstractContextManager
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

SMALLEST = 2**24  # bytes: less is not worth a copy


class HostMemory:
    """Holds what autograd keeps while `holding`."""

    def __init__(self) -> None:
        self.free: dict[Any, list[Tensor]] = defaultdict(list)
        self.group = _Group(None)
        self.streams: dict[torch.device, torch.cuda.Stream] = {}

    def holding(self) -> AbstractContextManager[None]:
        """A context for one layer, in which what autograd keeps goes to the host: large tensors
        that are on a GPU."""
        self.group = _Group(self.group)
        return torch.autograd.graph.saved_tensors_hooks(self.park, self.fetch)  # type: ignore[return-value]

    def is_worth_it(self, x: Tensor) -> bool:
        """Whether a tensor is to go: no weights, which stay where they are."""
        return x.is_cuda and not isinstance(x, nn.Parameter) and x.nbytes >= SMALLEST

    def park(self, x: Tensor) -> Tensor | _Parked:
        """Copies a tensor of the layer that is computed to the host, if that is worth it."""
        return _Parked(self, x, self.group) if self.is_worth_it(x) else x

    def fetch(self, parked: Tensor | _Parked) -> Tensor:
        """The tensor that was parked, on its device."""
        if isinstance(parked, Tensor):
            return parked
        parked.group.start()
        return parked.back()

    def stream(self, device: torch.device) -> torch.cuda.Stream:
        """The stream of the copies."""
        if device not in self.streams:
            self.streams[device] = torch.cuda.Stream(device)
        return self.streams[device]


class _Group:
    """The tensors of one layer."""

    def __init__(self, before: _Group | None) -> None:
        self.before = None if before is None else ref(before)
        self.parked: list[ref[_Parked]] = []

    def start(self) -> None:
        """Begins to bring them back, and those of the layer before."""
        before = self.before and self.before()
        for parked in [*self.parked, *(before.parked if before else [])]:
            if (one := parked()) is not None:
                one.start()


class _Parked:
    """One tensor on the host."""

    def __init__(self, memory: HostMemory, x: Tensor, group: _Group) -> None:
        self.memory, self.device, self.group = memory, x.device, group
        group.parked.append(ref(self))
        # Of tensors of one size whatever their shape; of one device, whose stream puts in order
        # what is copied out of it and into it.
        self.free = memory.free[x.numel(), x.dtype, x.device]
        if self.free:
            self.room = self.free.pop()
        else:
            pinned = x.is_cuda
            self.room = torch.empty(x.numel(), dtype=x.dtype, device="cpu", pin_memory=pinned)
        self.host = self.room.view(x.shape)
        self.coming: Tensor | None = None
        if not x.is_cuda:
            self.host.copy_(x)
            return
        side = memory.stream(x.device)
        side.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(side):
            self.host.copy_(x, non_blocking=True)
        x.record_stream(side)  # its memory is not given away before it is copied

    def start(self) -> None:
        """Begins to bring it back."""
        if self.coming is not None:
            return
        if self.device.type != "cuda":
            self.coming = self.host.clone()
            return
        side = self.memory.stream(self.device)
        with torch.cuda.stream(side):
            self.coming = self.host.to(self.device, non_blocking=True)
            self.arrived = side.record_event()

    def back(self) -> Tensor:
        """The tensor on its device, for the stream that asks."""
        self.start()
        x = self.coming
        assert x is not None
        if x.is_cuda:
            here = torch.cuda.current_stream(self.device)
            here.wait_event(self.arrived)
            x.record_stream(here)
        return x

    def __del__(self) -> None:
        # Later copies into it are made in the same stream, after those out of it.
        self.free.append(self.room)
