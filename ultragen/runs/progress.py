"""How far a run is, and how it is stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Event
from time import perf_counter

from ..estimates.cost import STAGES


class Cancelled(Exception):
    """The run was stopped on request; nothing of it is left."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        stage: A key of `STAGES`.
        step: Steps, frames or frame groups of this stage that are done.
        steps: How many there are.
        fraction: Part of the whole run that is done, 0 to 1, by estimated time.
        message: For people.
        preview: What the clip looks like by now, a JPEG file; None where that is not known.
    """

    stage: str
    step: int
    steps: int
    fraction: float
    message: str
    preview: bytes | None = None


def with_last_preview(now: Progress | None, before: Progress) -> Progress:
    """How far a run is, with the picture of before where there is no newer one; while the native
    clip denoises, and no longer."""
    if now is None:
        return before
    if now.preview or now.stage != "denoise":
        return now
    return replace(now, preview=before.preview)


@dataclass
class RunState:
    """Progress, cancelling and timing of the stages of one run."""

    report: Callable[[Progress], None]
    cancelled: Event
    estimated: dict[str, float]
    seconds: dict[str, float] = field(default_factory=dict)

    def check(self) -> None:
        if self.cancelled.is_set():
            raise Cancelled("The run was cancelled.")

    def tick(
        self,
        stage: str,
        step: int,
        steps: int,
        unit: str,
        preview: bytes | None = None,
        part: float | None = None,
    ) -> None:
        """Reports that `step` of `steps` are done, unless the run was cancelled: `part` of the
        stage's time, where steps are not equally long."""
        self.check()
        total = sum(self.estimated.values()) or 1.0
        done = sum(self.estimated[name] for name in self.seconds if name in self.estimated)
        now = self.estimated.get(stage, 0.0) * (step / max(steps, 1) if part is None else part)
        message = f"{STAGES[stage]}, {unit} {step} of {steps}"
        fraction = min((done + now) / total, 1.0)
        self.report(Progress(stage, step, steps, fraction, message, preview))

    @contextmanager
    def stage(self, stage: str) -> Iterator[None]:
        began = perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + perf_counter() - began


def seconds_left(total: float, fraction: float, elapsed: float) -> float:
    """Expected seconds until a run ends.

    Args:
        total: Estimated seconds of the whole run.
        fraction: Part of it that is done, 0 to 1.
        elapsed: Seconds since it began, which tell more once there are some.
    """
    if fraction > 0.05 and elapsed > 1:
        return elapsed / fraction * (1 - fraction)
    return total * (1 - fraction)


def wait_for_devices() -> None:
    """Lets a GPU finish what it was given, so that its seconds count where they belong."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
