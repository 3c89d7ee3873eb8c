"""A whole benchmark: all cases, in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from diffusers.models.attention_dispatch import attention_backend

from .bench import Bench, Budget
from .cases import Case, Kind, choose_cases
from .forward import measure_forward
from .machine import survey
from .records import Report
from .training_step import measure_training
from .whole_clips import measure_decoding, measure_run

MEASURES: dict[Kind, Callable[[Bench, Case], None]] = {
    "forward": measure_forward,
    "train": measure_training,
    "vae": measure_decoding,
    "run": measure_run,
}


def run_benchmark(
    names: Iterable[str],
    budget: Budget,
    command: str,
    save: Callable[[Report], None] = lambda report: None,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Measures cases with the fastest attention of this machine.

    Args:
        names: Cases or groups; none takes all that the machine can do.
        budget: How much is measured.
        command: That makes the report again, to be noted in it.
        save: Called after every measurement, so that a run that is killed keeps what it has.
        say: Called with a line on what comes next, or was left out.

    Raises:
        ValueError: for an unknown case.
        OSError: if nothing could be measured.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cases = choose_cases(names, device)
    say("Rates of this machine")
    bench = Bench(Report(command, survey(device)), budget, save, say)
    with torch.no_grad(), attention_backend(bench.report.machine.backend):
        for case in cases:
            if case.needs_cuda and device != "cuda":
                bench.leave_out(f"{case.name}: needs a CUDA GPU, and this machine has none")
            else:
                MEASURES[case.kind](bench, case)
    if not bench.report.cases:
        raise OSError(f"Nothing was measured: {'; '.join(bench.report.left_out)}.")
    return bench.report
