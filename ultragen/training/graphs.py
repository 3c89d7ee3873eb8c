"""Steps as CUDA graphs: a small model's step is thousands of short kernels, and starting them one
by one takes a processor longer than the GPU needs to run them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP = 3  # steps that let libraries choose their ways before one is recorded


@dataclass
class Recording:
    """One kind of call.

    Attributes:
        graph: What is replayed.
        inputs: Where it reads the batch.
        outputs: Where it leaves what the function returns.
    """

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: Any


class Recorded:
    """A function of a batch, recorded once for each kind of batch and then replayed. A kind for
    which the memory does not suffice is computed step by step.

    Args:
        function: Takes a tuple of tensors and of what tells their kind; depends on its tensors
            and on parameters alone, and never asks the device for a value.
    """

    def __init__(self, function: Callable[[tuple[Any, ...]], Any]) -> None:
        self.function = function
        self.recordings: dict[Any, Recording | None] = {}
        self.pool: Any = None

    def __call__(self, batch: tuple[Any, ...]) -> Any:
        """What the function returns, in tensors that the next call may write over."""
        key = tuple(x.shape if isinstance(x, Tensor) else x for x in batch)
        tensors = [x for x in batch if isinstance(x, Tensor)]
        if key not in self.recordings:
            self.recordings[key] = self.try_recording(batch, tensors)
        recording = self.recordings[key]
        if recording is None:
            return self.function(batch)
        for static, given in zip(recording.inputs, tensors, strict=True):
            static.copy_(given)
        recording.graph.replay()
        return recording.outputs

    def try_recording(self, batch: tuple[Any, ...], tensors: list[Tensor]) -> Recording | None:
        """Records one kind of batch; None where that fails, most likely for want of memory."""
        stream = torch.cuda.current_stream()
        generator = torch.cuda.default_generators[stream.device_index]
        randomness = generator.clone_state()
        shapes, began = [tuple(x.shape) for x in tensors], time.monotonic()
        try:
            recording = self.record(batch, [x.clone() for x in tensors])
            torch.cuda.synchronize()
            seconds = time.monotonic() - began
            print(f"steps of {shapes[0]} recorded in {seconds:.1f} s", flush=True)
            return recording
        except RuntimeError as error:  # of memory while recording, CUDA says other things too
            reason = str(error).split("\n")[0]
        torch.cuda.set_stream(stream)
        # A recording that was broken off leaves the generator in it, refusing to draw numbers.
        generator.graphsafe_set_state(randomness)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        warnings.warn(f"Steps of {shapes} are not recorded, but slower: {reason}", stacklevel=3)
        return None

    def record(self, batch: tuple[Any, ...], inputs: list[Tensor]) -> Recording:
        """Records one kind of batch."""
        left = iter(inputs)
        static = tuple(next(left) if isinstance(x, Tensor) else x for x in batch)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self.function(static)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # All graphs share their memory: only one runs at a time, and nothing in it is needed
        # afterwards but what the caller takes out before the next one.
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        # Threads that render or log must not end the recording.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            outputs = self.function(static)
        return Recording(graph, inputs, outputs)


class GraphedGradients(Recorded):
    """Losses and gradients of a stage, recorded.

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
        super().__init__(self.compute)
        self.loss, self.parameters, self.autocast = loss, parameters, autocast

    def record(self, batch: tuple[Any, ...], inputs: list[Tensor]) -> Recording:
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return super().record(batch, inputs)

    def compute(self, batch: tuple[Any, ...]) -> dict[str, Tensor]:
        torch._foreach_zero_([p.grad for p in self.parameters if p.grad is not None])
        with self.autocast():
            losses = self.loss(batch)
        losses["loss"].backward()
        return {name: value.detach() for name, value in losses.items()}
