"""Forward passes of the transformers: as a whole, and by part."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch.nn import Module

from .bench import PARTS_STEP, Bench
from .cases import VARIANTS, Case, Variant, arguments, build
from .machine import default_dtype
from .parts import PartMeter, count_operations, device_clock
from .records import Measurement, Part

PASSES = 3  # with marks inside, of which the median one is shown


def measure_forward(bench: Bench, case: Case) -> None:
    """Measures every variant's forward pass."""
    for variant in VARIANTS[case.family]:
        bench.attempt(case, variant.name, partial(measure_variant, bench, case, variant))


def measure_variant(bench: Bench, case: Case, variant: Variant) -> None:
    """Measures one variant as a whole, then by part."""
    operations = operations_of(case, variant)
    floor = bench.report.machine.floor(operations)
    bench.require(floor)
    dtype = default_dtype(bench.device)
    model = build(case.family, variant, bench.device, dtype)
    given = arguments(case, variant, bench.device, dtype)

    def call() -> None:
        model(**given)

    measured = bench.measure(variant.name, call, sum(operations.values()), floor)
    bench.record(case, measured)
    if PARTS_STEP in bench.budget.skip:
        return
    bench.attempt(
        case,
        f"{variant.name} by part",
        partial(measure_parts, bench, case, measured, model, given, operations),
    )


def measure_parts(
    bench: Bench,
    case: Case,
    measured: Measurement,
    model: Module,
    given: dict[str, Any],
    operations: dict[str, int],
) -> None:
    """Adds the parts to a measurement: those of the median of a few more passes."""
    passes = min(measured.repeats, PASSES)
    bench.require(passes * measured.seconds)
    found = sorted((parts_of(bench, model, given) for _ in range(passes)), key=total)
    machine = bench.report.machine
    parts = {
        part: Part(seconds, operations.get(part, 0), machine.floor({part: operations.get(part, 0)}))
        for part, seconds in found[passes // 2].items()
    }
    bench.record(case, replace(measured, parts=parts))


def parts_of(bench: Bench, model: Module, given: dict[str, Any]) -> dict[str, float]:
    """Seconds of one forward pass by part."""
    with PartMeter(model, device_clock(bench.device)) as meter:
        model(**given)
    return meter.totals()


def total(parts: dict[str, float]) -> float:
    return sum(parts.values())


@cache
def operations_of(case: Case, variant: Variant) -> dict[str, int]:
    """Operations of one forward pass by part, counted without computing it."""
    model = build(case.family, variant, "meta", torch.float32)
    return count_operations(model, arguments(case, variant, "meta", torch.float32))
