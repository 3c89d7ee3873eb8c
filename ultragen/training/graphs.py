"""Steps as CUDA graphs: a small model's step is thousands of short kernels, and starting them one
by one takes a processor longer than the GPU needs to run them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP = 3  # steps that let libraries choose their ways before one is recorded


@dataclass
class Recording:
    """One kind of step.

    Attributes:
        graph: What is replayed.
        inputs: Where it reads the batch.
        losses: Where it leaves the losses.
    """

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    losses: dict[str, Tensor]


class GraphedGradients:
    """Losses and gradients of a stage, recorded once for each kind of batch and then replayed.

    Gradients are written over by each replay: the optimizer must not set them to None.

    Args:
        loss: Gives losses by name for a batch; `loss` is the one whose gradients are taken.
        parameters: Whose gradients.
        autocast: Gives the context in which losses are computed.
    """

    def __init__(
        self,
        loss: Callable[[Any], dict[str, Tensor]],
        parameters: Sequence[nn.Parameter],
        autocast: Callable[[], AbstractContextManager],
    ) -> None:
        self.loss, self.parameters, self.autocast = loss, parameters, autocast
        self.recordings: dict[Any, Recording] = {}
        self.pool: Any = None

    def __call__(self, batch: tuple[Any, ...]) -> dict[str, Tensor]:
        """Losses of a batch, a tuple of tensors and of what tells its kind; gradients are in the
        parameters."""
        key = tuple(x.shape if isinstance(x, Tensor) else x for x in batch)
        tensors = [x for x in batch if isinstance(x, Tensor)]
        if key not in self.recordings:
            self.recordings[key] = self.record(batch, [x.clone() for x in tensors])
        recording = self.recordings[key]
        for static, given in zip(recording.inputs, tensors, strict=True):
            static.copy_(given)
        recording.graph.replay()
        return recording.losses

    def record(self, batch: tuple[Any, ...], inputs: list[Tensor]) -> Recording:
        """Records the step of one kind of batch."""
        left = iter(inputs)
        static = tuple(next(left) if isinstance(x, Tensor) else x for x in batch)
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self.compute(static)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # All graphs share their memory: only one runs at a time, and gradients lie outside.
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        # Threads that render or log must not end the recording.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            losses = self.compute(static)
        return Recording(graph, inputs, losses)

    def compute(self, batch: tuple[Any, ...]) -> dict[str, Tensor]:
        torch._foreach_zero_([p.grad for p in self.parameters if p.grad is not None])
        with self.autocast():
            losses = self.loss(batch)
        losses["loss"].backward()
        return {name: value.detach() for name, value in losses.items()}
