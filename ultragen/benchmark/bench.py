"""One benchmark on its way: what it may take, what it has found, what it had to leave out."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from statistics import median
from time import perf_counter

import torch

from ..files import first_line
from ..hardware import is_out_of_memory
from .cases import DENSE, PLAIN, VAE_VARIANTS, VARIANTS, Case
from .parts import device_clock
from .records import CaseResult, Measurement, Report

PARTS_STEP = "parts"
SKIPPABLE = (
    PARTS_STEP,
    *dict.fromkeys(variant.name for found in VARIANTS.values() for variant in found),
    *VAE_VARIANTS,
)
BASELINES = {"forward": DENSE, "train": DENSE, "vae": PLAIN, "run": ""}
# Seconds of a call from which on it needs no warm-up, and one run is enough. Kernels that are
# compiled and tried out in the first one have taken fifteen.
SLOW = 120.0
LONG = 60.0  # seconds of all repeats, after which no further one begins


@dataclass(frozen=True)
class Budget:
    """How much is measured.

    Attributes:
        seconds: All that the benchmark may take.
        repeats: Runs of each call, of which the median counts.
        skip: Variants to leave out, and `parts`.
    """

    seconds: float = inf
    repeats: int = 5
    skip: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if unknown := sorted(self.skip - set(SKIPPABLE)):
            raise ValueError(
                f"There is no {', '.join(unknown)} to skip: choose from {', '.join(SKIPPABLE)}."
            )
        if self.repeats < 1 or not self.seconds > 0:
            raise ValueError(
                f"A benchmark needs at least one run and some time, not {self.repeats} runs in "
                f"{self.seconds:g} s."
            )


class OverBudget(RuntimeError):
    """What comes next takes longer than is left."""


class Bench:
    """Collects measurements; whatever fails becomes a line of what was left out.

    Args:
        report: To be filled.
        budget: How much is measured.
        save: Called after every measurement.
        say: Called with a line on what comes next, or was left out.
    """

    def __init__(
        self,
        report: Report,
        budget: Budget,
        save: Callable[[Report], None],
        say: Callable[[str], None],
    ) -> None:
        self.report, self.budget, self.say = report, budget, say
        self._save, self._began = save, perf_counter()

    @property
    def device(self) -> str:
        return self.report.machine.device

    @property
    def left(self) -> float:
        """Seconds of the budget that remain."""
        return self.budget.seconds - (perf_counter() - self._began)

    def require(self, seconds: float) -> None:
        """Checks that there is time for something.

        Raises:
            OverBudget: if there is not.
        """
        if seconds > self.left:
            raise OverBudget(
                f"it takes at least {seconds:.0f} s, and {max(self.left, 0):.0f} s are left"
            )

    def leave_out(self, line: str) -> None:
        """Notes what is not measured, and why."""
        self.report.left_out.append(line)
        self.say(f"Left out: {line}")
        self._save(self.report)

    def record(self, case: Case, measurement: Measurement) -> None:
        """Adds a measurement, in place of an earlier one of the same variant."""
        known = {result.name: result for result in self.report.cases}
        result = known.get(case.name) or CaseResult(
            case.name, case.kind, case.family, case.tokens, BASELINES[case.kind]
        )
        found = {m.variant: m for m in result.measurements} | {measurement.variant: measurement}
        known[case.name] = replace(result, measurements=tuple(found.values()))
        self.report.cases = list(known.values())
        self._save(self.report)

    def attempt(self, case: Case, variant: str, measure: Callable[[], None]) -> None:
        """Measures one variant, unless it is skipped, too long or too large."""
        if variant in self.budget.skip:
            self.leave_out(f"{case.name}, {variant}: skipped")
            return
        self.say(f"{case.name}, {variant}")
        try:
            self.require(0)
            measure()
        except (RuntimeError, MemoryError) as error:
            self.leave_out(f"{case.name}, {variant}: {what_failed(error)}")
        # Out of the except clause, whose traceback keeps the model alive.
        free_memory()

    def seconds(self, call: Callable[[], object]) -> tuple[float, int]:
        """Median seconds of a call, and of how many runs; after a warm-up, except for what is
        slow or would not fit the budget a second time."""
        warm_up = once(call, self.device)
        if warm_up > SLOW or warm_up > self.left:
            return warm_up, 1
        times: list[float] = []
        while len(times) < self.budget.repeats and sum(times) < min(LONG, self.left):
            times.append(once(call, self.device))
        return (median(times), len(times)) if times else (warm_up, 1)

    def measure(
        self, variant: str, call: Callable[[], object], operations: int = 0, floor: float = 0.0
    ) -> Measurement:
        """Seconds and peak memory of a call."""
        self.reset_peak()
        seconds, repeats = self.seconds(call)
        return Measurement(variant, seconds, repeats, self.peak(), operations, floor)

    def reset_peak(self) -> None:
        """Starts to watch the device memory."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int | None:
        """Most bytes of device memory since then; None on a CPU."""
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else None


def once(call: Callable[[], object], device: str) -> float:
    """Seconds of one call, the device's work included."""
    clock = device_clock(device)
    first = clock.mark()
    call()
    second = clock.mark()
    clock.finish()
    return clock.between(first, second)


def what_failed(error: Exception) -> str:
    """One line on an error."""
    if is_out_of_memory(error):
        return f"too little memory{device_memory()}"
    return first_line(error)


def device_memory() -> str:
    if not torch.cuda.is_available():
        return ""
    return f", of {torch.cuda.mem_get_info()[1] / 2**30:.0f} GiB on this card"


def free_memory() -> None:
    """Gives the memory of what is no longer needed back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
