"""The table of `whole_training.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Results = dict[str, Any]


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB"


def memory(figures: Results) -> str:
    """Of a GPU, as the log has it; of a CPU the log has none."""
    if not figures["peak_gib"]:
        return "not measured"
    return f"{figures['peak_gib']:.1f}, {figures['states_gib']:.1f} GiB"


def rows(stages: Results) -> Iterator[tuple[str, str]]:
    """The table: what, and how much."""
    if found := stages.get("weights"):
        yield "random weights", f"{found['seconds']:.1f} s, {gigabytes(found['bytes'])}"
    if found := stages.get("clips"):
        each = found["seconds"] / found["clips"]
        yield f"an MP4 file of {found['size']}, rendered and written", f"{each:.1f} s"
    if found := stages.get("dataset"):
        each = f"{found['clips_seconds'] / found['clips']:.1f} s a clip"
        yield (
            f"`dataset`, {found['clips']} clips",
            f"{found['captions_seconds']:.1f} s until the captions are encoded, then {each}",
        )
    if found := stages.get("training"):
        yield from training_rows(found)
    if found := stages.get("clip"):
        yield (
            f"a clip of the export, {found['steps']} steps",
            f"{found['size']}, {found['seconds']:.1f} s after {found['loading_seconds']:.1f} s of "
            "loading",
        )
    if found := stages.get("several-gpus"):
        yield from process_rows(found["processes"])


def process_rows(processes: Results) -> Iterator[tuple[str, str]]:
    """Those of trainings by several processes, the first of them by one."""
    for number, figures in processes.items():
        speed = f"{figures['clips_a_second']:.4f} clips a second"
        yield (
            f"{number} process{'es' if number != '1' else ''}",
            f"{speed}, {figures['step_seconds']:.2f} s a step; memory and states on each "
            f"{memory(figures)}",
        )
    one = processes["1"]
    for number, figures in list(processes.items())[1:]:
        ratio = figures["clips_a_second"] / one["clips_a_second"]
        states = f"{figures['states_gib'] / one['states_gib']:.2f}" if one["states_gib"] else "–"
        yield (
            f"{number} processes over one",
            f"{ratio:.2f} × the clips a second, {states} of the states' memory",
        )


def training_rows(found: Results) -> Iterator[tuple[str, str]]:
    """Those of the training that is killed."""
    yield "start → first step", f"{found['first_step_seconds']:.1f} s"
    yield f"a step, median of {found['steps_timed']}", f"{found['step_seconds']:.2f} s"
    yield "peak of memory, and states of it", memory(found)
    size = gigabytes(found["checkpoint_bytes"])
    at = f"after step {found['checkpoint_step']}"
    yield f"checkpoint {at}", f"{found['checkpoint_seconds']:.1f} s, {size}"
    yield "export", f"{found['export_seconds']:.1f} s, {gigabytes(found['export_bytes'])}"
    yield "SIGKILL after step", str(found["killed_after_step"])
    yield (
        "start → resumed, → first step",
        f"{found['resumed_seconds']:.1f} s, {found['first_resumed_step_seconds']:.1f} s",
    )
    yield "steps after that", f"{found['checkpoint_step'] + 1} to {found['last_step']}"
    losses = found["losses_again"].items()
    pairs = ", ".join(f"{n}: {one:.4f} {two:.4f}" for n, (one, two) in losses)
    apart = max(abs(one - two) for _, (one, two) in losses)
    yield "losses logged twice, before and after", f"{pairs}; {apart:.1g} apart at most"
