"""What a benchmark found, as a file, and beside an earlier one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .machine import Machine, Trial


@dataclass(frozen=True)
class Part:
    """One part of a forward pass.

    Attributes:
        seconds: What it took.
        operations: Multiplications and additions.
        floor: Seconds of these operations at the rates of the machine.
    """

    seconds: float
    operations: int
    floor: float


@dataclass(frozen=True)
class Measurement:
    """One variant of a case.

    Attributes:
        variant: Its name.
        seconds: Median of the repeats, without marks inside.
        repeats: How often it ran; 1 where the first run was measured, for its length.
        peak_bytes: Most device memory, weights included; None on a CPU.
        operations: Multiplications and additions; 0 where they are not counted.
        floor: Seconds of the operations at the rates of the machine; 0 where not counted.
        parts: Seconds by part, from one more pass with marks.
    """

    variant: str
    seconds: float
    repeats: int
    peak_bytes: int | None = None
    operations: int = 0
    floor: float = 0.0
    parts: dict[str, Part] = field(default_factory=dict)

    @property
    def remainder(self) -> float:
        """Seconds that the parts don't explain; negative where the marks themselves cost more."""
        return self.seconds - sum(part.seconds for part in self.parts.values())


@dataclass(frozen=True)
class CaseResult:
    """All variants of a case.

    Attributes:
        name: What the command line and the tables call it.
        kind: `forward`, `train`, `vae` or `run`.
        family: Whose widths.
        tokens: Tokens of the transformer.
        baseline: Variant that the others are compared with.
        measurements: What ran, in the order of running.
    """

    name: str
    kind: str
    family: str
    tokens: int
    baseline: str
    measurements: tuple[Measurement, ...] = ()

    def speed_up(self, measurement: Measurement) -> float | None:
        """How many times as long the baseline takes; None without a baseline."""
        for other in self.measurements:
            if other.variant == self.baseline:
                return other.seconds / measurement.seconds
        return None


@dataclass
class Report:
    """A whole benchmark, so far.

    Attributes:
        command: That makes it again.
        machine: Where it ran.
        cases: What was measured.
        left_out: What was not, and why, a line each.
    """

    command: str
    machine: Machine
    cases: list[CaseResult] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """All of it, for `load`."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def load(cls, path: Path) -> Report:
        """Reads what `to_json` gave.

        Raises:
            OSError: if the file can't be read.
            ValueError: if it is something else.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                command=content["command"],
                machine=_machine(content["machine"]),
                cases=[_case(case) for case in content["cases"]],
                left_out=content["left_out"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not the JSON of a benchmark of this version ({error!r:.80}): choose a "
                "file that `benchmark --json` has written."
            ) from error


def _machine(content: dict[str, Any]) -> Machine:
    trials = tuple(Trial(**trial) for trial in content["attention"])
    return Machine(**{**content, "attention": trials})


def _case(content: dict[str, Any]) -> CaseResult:
    measurements = tuple(
        Measurement(**{**m, "parts": {name: Part(**part) for name, part in m["parts"].items()}})
        for m in content["measurements"]
    )
    return CaseResult(**{**content, "measurements": measurements})


@dataclass(frozen=True)
class Change:
    """A ratio, now and earlier. Lower is better.

    Attributes:
        case: Name of the case.
        variant: Name of the variant.
        ratio: What the seconds are divided by: `baseline` or `floor`.
        earlier: The ratio in the earlier report.
        now: The ratio in this one.
    """

    case: str
    variant: str
    ratio: str
    earlier: float
    now: float

    @property
    def factor(self) -> float:
        return self.now / self.earlier

    def is_worse(self, tolerance: float) -> bool:
        """Whether the ratio grew by more than a share of itself."""
        return self.factor > 1 + tolerance


def ratios(report: Report) -> Iterator[tuple[tuple[str, str, str], float]]:
    """Case, variant and divisor, and the seconds over that divisor: what can be compared between
    machines and days, unlike seconds."""
    for case in report.cases:
        for measurement in case.measurements:
            at = case.name, measurement.variant
            speed_up = case.speed_up(measurement)
            if speed_up and measurement.variant != case.baseline:
                yield (*at, "baseline"), 1 / speed_up
            if measurement.floor:
                yield (*at, "floor"), measurement.seconds / measurement.floor


def compare_reports(earlier: Report, now: Report) -> list[Change]:
    """All ratios that both reports hold.

    Raises:
        ValueError: if there is none.
    """
    before = dict(ratios(earlier))
    changes = [Change(*at, before[at], ratio) for at, ratio in ratios(now) if at in before]
    if not changes:
        raise ValueError(
            f"The earlier benchmark ({', '.join(case.name for case in earlier.cases) or 'no case'})"
            f" shares no case with this one "
            f"({', '.join(case.name for case in now.cases) or 'no case'}): "
            "measure the same cases with --case."
        )
    return changes
