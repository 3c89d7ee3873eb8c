"""Commands that measure models and machines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import console
from .options import (
    Model,
    Overwrite,
    app,
    load,
)


@app.command()
def measure(model: Model = None) -> None:
    """Measure what a unit of work costs here.

    The estimates before a run need it.
    """
    from dataclasses import asdict

    from ..runs import calibrate

    coefficients = calibrate.measure(
        load(model), lambda line: print(line, file=sys.stderr, flush=True)
    )
    print(json.dumps(asdict(coefficients), indent=2))


@app.command()
def benchmark(
    case: Annotated[
        list[str] | None,
        typer.Option(help="Case or group, may be repeated; forward, embedded, vae, run, all, …"),
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(help="dense or another variant, or parts; may be repeated.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(min=1, help="Seconds; what does not fit is left out and named.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs, of which the median counts.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="File of all results.")] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="File of the tables.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="An earlier --json file; what got worse is exit code 1.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Share by which a ratio may grow.")
    ] = 0.05,
    overwrite: Overwrite = False,
) -> None:
    """Measure speed and memory.

    Against the dense model's, and against this machine's limits.
    """
    console.quiet_libraries()
    from ..benchmark import tables
    from ..benchmark.bench import Budget
    from ..benchmark.outputs import Outputs
    from ..benchmark.records import Report, compare_reports
    from ..benchmark.suite import run_benchmark

    earlier = Report.load(against) if against else None
    outputs = Outputs(json_file, markdown_file)
    outputs.check(overwrite)
    report = run_benchmark(
        case or (),
        Budget(budget or float("inf"), repeats, frozenset(skip or ())),
        " ".join(["python -m ultragen", *sys.argv[1:]]),
        outputs.save,
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    tables.print_report(report)
    if earlier is None:
        return
    changes = compare_reports(earlier, report)
    table = tables.changes_table(changes, tolerance)
    tables.print_table(table)
    outputs.save(report, table)
    if worse := [change for change in changes if change.is_worse(tolerance)]:
        raise RuntimeError(
            f"{len(worse)} of {len(changes)} ratios got worse by more than {tolerance:.0%}."
        )
