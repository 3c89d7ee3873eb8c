"""What is told about a training: means over steps and processes, speed, memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate.utils import gather_object
from torch import Tensor


class Means:
    """Means of scalars over all steps and processes since they were taken last. A scalar that a
    step lacks, such as the loss of a noise level, does not count for that step."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Adds a step's scalars, without waiting for the device."""
        for name, value in values.items():
            value = value.detach().float()
            # A new tensor: a recorded step writes its losses over.
            self.sums[name] = self.sums.get(name, 0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The means, the same in all processes; starts anew."""
        mine = {name: (float(total), self.counts[name]) for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for part in gather_object([mine]):
            for name, (total, count) in part.items():
                sums[name] = sums.get(name, 0.0) + total
                counts[name] = counts.get(name, 0) + count
        return {name: total / counts[name] for name, total in sums.items()}


class Speed:
    """Seconds a step, tokens a second, the peak of memory, and what of it weights, gradients and
    states take, since they were taken last."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.tokens, self.steps, self.seconds, self.states = 0, 0, 0.0, 0.0

    def hold(self) -> None:
        """Notes what is allocated: between a step of the optimiser and the end of its gradients,
        when nothing lies there but weights, gradients and states."""
        if self.device.type == "cuda":
            self.states = torch.cuda.memory_allocated(self.device) / 2**30

    def step(self, tokens: int, seconds: float) -> None:
        """Counts a step of this process."""
        self.steps += 1
        self.tokens += tokens
        self.seconds += seconds

    def take(self) -> dict[str, float]:
        """Figures of all processes together, memory of the fullest one; starts anew."""
        peak = 0.0
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device) / 2**30
            torch.cuda.reset_peak_memory_stats(self.device)
        parts = gather_object([(self.tokens, peak, self.states)])
        counts, peaks, held = zip(*parts, strict=True)
        tokens, peak, states = sum(counts), max(peaks), max(held)
        figures = {"seconds_per_step": self.seconds / max(self.steps, 1)}
        if tokens:
            figures["tokens_per_second"] = tokens / max(self.seconds, 1e-9)
        if peak:
            figures["memory_gib"] = peak
        if states:
            figures["states_gib"] = states
        self.tokens, self.steps, self.seconds, self.states = 0, 0, 0.0, 0.0
        return figures
