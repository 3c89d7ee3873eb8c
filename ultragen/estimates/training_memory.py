"""What training the 1.3B model takes of a GPU's memory, counted, and what would take less."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from ..hardware import RESERVE, gib

BLOCK_TENSORS = 16
"""Working memory of a block's forward and backward pass, in tensors of all tokens and features.
Measured as the peak of a step less weights, gradients and what blocks keep, in the paper's layout
on one NVIDIA H200 (docs/training-wan.md): 14 at 1088 × 1920 × 81, 16 at 2176 × 3840 × 29."""
PIECEWISE_TENSORS = 6
"""More of them where attention is not one operation: queries, keys and values in windows, and what
was attended to in both orders (counted)."""
GLOBAL_SHARE = 1 / 16
"""What a block keeps of the global branch's attention, in such tensors."""
HOST_GROUPS, RESULTS = 2, 1.31
"""With the host's memory so many blocks' inputs and results of attention, which are so many
tensors, are on the GPU: one is computed, the next one is on its way."""
HOST_TENSORS = 3  # still on their way to the host, measured
STATE_BYTES = {"muon": 4, "adamw": 8, "adamw8bit": 2}
"""Of the optimiser's state of each trained weight."""
GATHERED_BLOCKS = 2
"""So many blocks lie on a GPU whole and in the type that is computed in: one is computed, the next
one is on its way."""
OFFERED = 4  # ways to take less, in an error


@dataclass(frozen=True)
class TrainingMemory:
    """A training's sizes, which decide what it takes.

    Attributes:
        tokens: Of a batch in one process.
        parameters: All weights of the transformer.
        trained: Those that are trained.
        branches: Those that UltraGen adds.
        layers: Blocks.
        width: Features of a token.
        full_layers: Blocks that attend to all tokens.
        one_operation: Whether attention is one operation on that GPU, see `ops.window_attention`.
        recomputed: Blocks that are computed again in the backward pass: all, half, none.
        on_host: Whether what these keep lies in the host's memory.
        optimizer: As in `TrainingConfig`.
        average: Whether averaged weights are kept.
        processes: GPUs that share weights, gradients and states.
        bytes_per_value: Of the type that is computed in.
        teacher: Weights of a frozen copy beside the model, which teaches it; 0 for none.
    """

    tokens: int
    parameters: int
    trained: int
    branches: int
    layers: int
    width: int
    full_layers: int = 0
    one_operation: bool = True
    recomputed: Literal["all", "half", "none"] = "all"
    on_host: bool = False
    optimizer: str = "adamw"
    average: bool = False
    processes: int = 1
    bytes_per_value: int = 2
    teacher: int = 0

    @property
    def states(self) -> int:
        """Bytes of weights, gradients and the optimiser's states on each GPU."""
        # Weights, gradients and averaged weights are in float32.
        each = 4 + 4 + 4 * self.average + STATE_BYTES[self.optimizer]
        frozen = self.parameters - self.trained + self.teacher
        shared = each * self.trained + self.bytes_per_value * frozen
        gathered = GATHERED_BLOCKS * self.bytes_per_value * self.parameters // self.layers
        return shared // self.processes + gathered

    @property
    def activations(self) -> int:
        """Bytes of what blocks keep for the backward pass, and of the one that is computed."""
        stream = self.tokens * self.width * self.bytes_per_value
        block = BLOCK_TENSORS + (0 if self.one_operation else PIECEWISE_TENSORS)
        again = {"all": self.layers, "half": (self.layers + 1) // 2, "none": 0}[self.recomputed]
        share = again / self.layers
        kept = again + share * (self.full_layers + (self.layers - self.full_layers) * GLOBAL_SHARE)
        if self.on_host and again:
            kept = HOST_GROUPS * (1 + RESULTS) + HOST_TENSORS
        return int(stream * (kept + (self.layers - again + 1) * block))

    @property
    def peak(self) -> int:
        """Bytes of a GPU."""
        return RESERVE + self.states + self.activations

    def check(self, free: int, what: str) -> None:
        """Checks that a training fits.

        Args:
            free: Bytes of the smallest GPU.
            what: The clips, for people.

        Raises:
            ValueError: if it does not, with what would.
        """
        if self.peak <= free:
            return
        fits = [text for text, other in self.smaller() if other.peak <= free][:OFFERED]
        way_out = f"choose {' or '.join(fits)}" if fits else "take a larger GPU, or several"
        raise ValueError(
            f"Training on {what} needs about {gib(self.peak)} of GPU memory, and {gib(free)} are "
            f"there: {way_out}."
        )

    def smaller(self) -> list[tuple[str, TrainingMemory]]:
        """What takes less, the mildest first."""
        # Without its adapter the model is its own teacher.
        adapter = {"trained": self.parameters // 50, "teacher": 0}
        milder: list[tuple[str, dict[str, Any]]] = [
            ("--recompute all", {"recomputed": "all"}),
            ("--keep-on-host", {"recomputed": "all", "on_host": True}),
            ("--optimizer adamw8bit", {"optimizer": "adamw8bit"}),
            *([("--train new", {"trained": self.branches})] if self.branches else []),
            ("--train lora", adapter),
            ("half as many frames", {"tokens": self.tokens // 2}),
            ("a quarter of the frames", {"tokens": self.tokens // 4}),
        ]
        together = {"recomputed": "all", "on_host": True, **adapter}
        milder += [
            ("--train lora --keep-on-host", together),
            (
                "--train lora --keep-on-host and a quarter of the frames",
                {**together, "tokens": self.tokens // 4},
            ),
        ]
        return [
            (text, other)
            for text, changes in milder
            if (other := replace(self, **changes)).peak < self.peak
        ]
