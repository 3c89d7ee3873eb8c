"""The tables of a report, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .parts import PARTS
from .records import CaseResult, Change, Measurement, Report

NOTHING = "–"
PIPE_WIDTH = 160  # columns where there is no terminal to ask


@dataclass(frozen=True)
class Table:
    """Rows of text under a title.

    Attributes:
        title: What it shows.
        headers: One text for each column, above it.
        rows: One text for each column.
        words: Columns of words; the others hold figures.
    """

    title: str
    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    words: tuple[int, ...] = (0,)


def tables(report: Report) -> Iterator[Table]:
    """All tables of a report; those without rows are left out."""
    found = [machine_table(report)]
    for case in report.cases:
        found += [case_table(case), parts_table(case)]
    found.append(growth_table(report))
    yield from (table for table in found if table.rows)


def machine_table(report: Report) -> Table:
    """What the floors are made of."""
    machine = report.machine
    rows: list[tuple[str, ...]] = [("matrix product", tera(machine.matrix_rate), "")]
    for trial in machine.attention:
        rate = tera(trial.rate) if trial.rate else NOTHING
        rows.append((f"attention, {trial.backend}", rate, trial.reason))
    return Table("Rates of this machine", ("", "TFLOP/s", "can't be used because"), rows, (0, 2))


def case_table(case: CaseResult) -> Table:
    """Every variant as a whole."""
    headers = ("", "seconds", "runs", "peak GiB", "TFLOP", "floor, s", "over floor", "speed-up")
    rows = []
    for m in case.measurements:
        speed_up = case.speed_up(m)
        rows.append(
            (
                m.variant,
                seconds(m.seconds),
                str(m.repeats),
                f"{m.peak_bytes / 2**30:.1f}" if m.peak_bytes else NOTHING,
                tera(m.operations) if m.operations else NOTHING,
                seconds(m.floor) if m.floor else NOTHING,
                over(m.seconds, m.floor),
                f"{speed_up:.2f}×" if speed_up else NOTHING,
            )
        )
    against = f", speed-up over {case.baseline}" if case.baseline else ""
    return Table(f"{case.name}: {case.tokens:,} tokens{against}", headers, rows)


def parts_table(case: CaseResult) -> Table:
    """Milliseconds by part, and how many times its floor that is."""
    measured = [m for m in case.measurements if m.parts]
    headers = ("", *(f"{m.variant}, ms" for m in measured))
    rows: list[tuple[str, ...]] = [
        (part, *(part_text(m, part) for m in measured))
        for part in PARTS
        if any(part in m.parts for m in measured)
    ]
    if measured:
        rows.append(("remainder", *(f"{1000 * m.remainder:.2f}" for m in measured)))
        rows.append(("whole", *(f"{1000 * m.seconds:.2f}" for m in measured)))
    return Table(f"{case.name} by part (times its floor)", headers, rows)


def part_text(measurement: Measurement, name: str) -> str:
    part = measurement.parts.get(name)
    if part is None:
        return NOTHING
    # A few operations among much else, such as the gates', would only make the ratio absurd.
    times = f" ({part.seconds / part.floor:.2f}×)" if part.floor > part.seconds / 20 else ""
    return f"{1000 * part.seconds:.2f}{times}"


def growth_table(report: Report) -> Table:
    """Microseconds a token of each variant, and relative to the family's smallest case."""
    cases = [case for case in report.cases if case.kind == "forward"]
    cases = [case for case in cases if sum(c.family == case.family for c in cases) > 1]
    cases.sort(key=lambda case: (case.family, case.tokens))
    names = dict.fromkeys(m.variant for case in cases for m in case.measurements)
    rows = []
    for name in names:
        row, smallest = [name], dict[str, float]()
        for case in cases:
            each = [m.seconds / case.tokens for m in case.measurements if m.variant == name]
            if each:
                first = smallest.setdefault(case.family, each[0])
                row.append(f"{1e6 * each[0]:.2f} ({each[0] / first:.2f}×)")
            else:
                row.append(NOTHING)
        rows.append(tuple(row))
    return Table("Microseconds a token", ("", *(case.name for case in cases)), rows)


def changes_table(changes: Sequence[Change], tolerance: float) -> Table:
    """Ratios now and earlier."""
    rows = [
        (
            f"{change.case}, {change.variant}, over {change.ratio}",
            f"{change.earlier:.3f}",
            f"{change.now:.3f}",
            f"{change.factor - 1:+.1%}",
            "worse" if change.is_worse(tolerance) else "",
        )
        for change in changes
    ]
    headers = ("", "earlier", "now", "change", f"tolerance {tolerance:.0%}")
    return Table("Against the earlier benchmark (lower is better)", headers, rows)


def heading(report: Report) -> list[str]:
    """Where and with what the report was made, a line each."""
    machine = report.machine
    versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
    return [
        f"{machine.card}, {machine.dtype}, {machine.date} UTC",
        versions,
        f"attention by {machine.backend}, the fastest here",
    ]


def print_report(report: Report) -> None:
    """Prints everything to the terminal."""
    print(*heading(report), "", sep="\n")
    for table in tables(report):
        print_table(table)
    for line in report.left_out:
        print(f"Left out: {line}")


def print_table(table: Table) -> None:
    """Prints to the terminal."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    rich = RichTable(title=table.title, title_justify="left")
    for i, header in enumerate(table.headers):
        rich.add_column(Text(header), justify="left" if i in table.words else "right")
    for row in table.rows:
        rich.add_row(*(Text(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    console.print(rich)


def markdown(report: Report, changes: Table | None = None) -> str:
    """The whole report as Markdown."""
    pieces = ["# Benchmark", "  \n".join([*heading(report), f"`{report.command}`"])]
    pieces += [_markdown_table(table) for table in tables(report)]
    if changes:
        pieces.append(_markdown_table(changes))
    if report.left_out:
        pieces.append("\n".join(["## Left out", "", *(f"- {line}" for line in report.left_out)]))
    return "\n\n".join(pieces) + "\n"


def _markdown_table(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', ' ') for cell in cells)} |"

    rule = line(["---" if i in table.words else "---:" for i in range(len(table.headers))])
    rows = [line(table.headers), rule, *(line(row) for row in table.rows)]
    return "\n".join([f"## {table.title}", "", *rows])


def seconds(value: float) -> str:
    """Seconds with three significant digits."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def tera(value: float) -> str:
    return f"{value / 1e12:.3g}" if value < 1e15 else f"{value / 1e12:,.0f}"


def over(value: float, floor: float) -> str:
    return f"{value / floor:.2f}×" if floor else NOTHING
