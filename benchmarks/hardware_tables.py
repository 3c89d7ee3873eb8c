"""The tables of docs/hardware.md, from what `hardware.py` has measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from math import ceil
from pathlib import Path
from typing import Any

from hardware_results import Entry, read_results

from ultragen.estimates.coefficients import Coefficients
from ultragen.estimates.memory import GROWING_VALUES_PER_TOKEN, WAN_PARAMETERS, Memory, Weights
from ultragen.files import write_text
from ultragen.hardware import GIB
from ultragen.presets import WAN

DOC = Path(__file__).parents[1] / "docs" / "hardware.md"
NOTHING = "–"
NOT_YET = "Not measured yet."
STEPS = WAN.num_inference_steps
NAMES = {"wan": "WAN_CUDA", "embedded": "CUDA"}  # of the coefficients in `estimates.coefficients`


def render(paths: Sequence[Path], doc: Path) -> None:
    """Puts the tables of measured parts between the marks of a document; what the files do not have
    stays as it is there.

    Raises:
        OSError: if a file can't be read.
        ValueError: if a file is something else, or the document lacks a mark.
    """
    parts = read_results(paths)["parts"]
    text = doc.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        needed = [part for part in (name, *ALSO.get(name, ())) if part in parts]
        lines = table(parts) if name in parts else []
        body = "\n".join([*lines, "", *(origin(part, parts[part]) for part in needed)])
        text = between_marks(text, name, body.strip("\n") if lines else None)
    write_text(doc, text)


def between_marks(text: str, name: str, body: str | None) -> str:
    """The text with another body between `<!-- name -->` and `<!-- end of name -->`; without one,
    only where nothing stands there it says so."""
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if text.count(first) != 1 or text.count(last) != 1:
        raise ValueError(f"The document must hold {first} and {last} once, around a table.")
    pattern = re.compile(f"{first}(.*){last}", re.DOTALL)

    def replaced(found: re.Match[str]) -> str:
        return f"{first}\n{(body or found[1].strip() or NOT_YET)}\n{last}"

    return pattern.sub(replaced, text)


def origin(part: str, content: Entry) -> str:
    """Where, when and how a part was measured."""
    machine = content["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    memory = f", {gib(machine['memory_bytes'])} GiB" if machine["memory_bytes"] else ""
    command = f"python benchmarks/hardware.py --only {part}"
    return f"*`{command}`, {machine['card']}{memory}, {content['date']}, {versions}.*\n"


def memory_table(parts: Mapping[str, Entry]) -> list[str]:
    """Peaks of the whole pipeline by stage, beside the rule."""
    rows = []
    for entry in parts["memory"]["entries"].values():
        stages = entry["stages"].values()
        sizes = Weights(**entry["weights"])
        rule = Memory(0, sizes, values_per_token=GROWING_VALUES_PER_TOKEN).peak(
            entry["placement"], entry["height"], entry["width"], entry["frames"]
        )
        rows.append(
            [
                size(entry),
                entry["placement"],
                *(gib(stage["peak_bytes"]) for stage in stages),
                gib(most(stage["peak_bytes"] for stage in stages)),
                gib(most(stage["reserved_bytes"] for stage in stages)),
                gib(rule),
            ]
        )
    head = [
        "Clip",
        "Parts",
        "text",
        "transformer",
        "decoding",
        "most",
        "with the allocator's slack",
    ]
    return table([*head, "rule"], rows, words=2)


def tokens_table(parts: Mapping[str, Entry]) -> list[str]:
    """A forward pass beside its weights, and the rule's constant."""
    rows = [
        [
            size(entry),
            f"{entry['tokens']:,}",
            gib(entry["peak_bytes"]),
            per_token(entry),
            gib(2 * GROWING_VALUES_PER_TOKEN * entry["tokens"]),
        ]
        for entry in parts["tokens"]["entries"].values()
    ]
    lines = table(["Clip", "tokens", "GiB", "kB a token", "rule, GiB"], rows)
    if values := fitted_values(parts["tokens"]["entries"]):
        rule = f"the rule counts {GROWING_VALUES_PER_TOKEN:,}"
        lines += ["", f"Measured: {values:,} values a token; {rule}."]
    return lines


def per_token(entry: Entry) -> str:
    """Kilobytes a token."""
    peak = entry["peak_bytes"]
    return f"{peak / entry['tokens'] / 1e3:.1f}" if peak else NOTHING


def fitted_values(entries: Mapping[str, Entry]) -> int | None:
    """Values a token, of two bytes, that a forward pass takes beside its weights: the most of all
    clips but the smallest, in which what does not grow with the clip counts too much."""
    known = [entry for entry in entries.values() if entry["peak_bytes"]]
    largest = max((entry["tokens"] for entry in known), default=0)
    large = [entry for entry in known if 4 * entry["tokens"] >= largest]
    return max((ceil(e["peak_bytes"] / e["tokens"] / 2) for e in large), default=None)


def frames_table(parts: Mapping[str, Entry]) -> list[str]:
    """The longest clips by card, beside the rule."""
    entries = parts["frames"]["entries"].values()
    cards = {entry["card"]: entry["card_bytes"] for entry in entries}
    found = {(entry["resolution"], entry["card"]): entry for entry in entries}
    rows = []
    for resolution in dict.fromkeys(entry["resolution"] for entry in entries):
        row = [resolution]
        for card in cards:
            entry = found.get((resolution, card))
            row.append(frames_text(entry) if entry else NOTHING)
        rows.append(row)
    head = [f"{card} ({size / GIB:.0f} GiB for tensors)" for card, size in cards.items()]
    return table(["Resolution", *head], rows)


def frames_text(entry: Entry) -> str:
    """Frames, what ended them, how the parts lie, and what the rule says."""
    if not entry["frames"]:
        return f"none; rule {rule_frames(entry)}"
    end = "" if entry["ended_by"] == "nothing" else f", {entry['ended_by']}"
    return f"{entry['frames']} ({entry['placement']}{end}); rule {rule_frames(entry)}"


def rule_frames(entry: Entry) -> int:
    """The most frames that the rule lets through; 0 for none."""
    memory = Memory(
        entry["card_bytes"], WAN_PARAMETERS.scaled(2), values_per_token=GROWING_VALUES_PER_TOKEN
    )
    counts = [
        count
        for count in range(1, entry["most"] + 1, 4)
        if memory.peak(entry["placement"], entry["height"], entry["width"], count) <= memory.free
    ]
    return max(counts, default=0)


def runs_table(parts: Mapping[str, Entry]) -> list[str]:
    """Whole runs by stage, beside the dense model."""
    rows = []
    for name, entry in parts["runs"]["entries"].items():
        denoise, seconds = entry["seconds"]["denoise"] * STEPS / entry["steps"], entry["seconds"]
        text = seconds["text"]
        together = text + denoise + seconds["decode"]
        steps = f"{entry['steps']} steps"
        if entry["steps"] != STEPS:
            steps += f", times {STEPS / entry['steps']:g}"
        how = f"UltraGen, {steps}, {entry['placement']}"
        stages = [entry["loading"], text, denoise, seconds["decode"], seconds["encode"]]
        rows.append([size(entry), how, *map(number, stages), number(together), ""])
        dense = parts.get("dense", {"entries": {}})["entries"].get(name)
        if dense:
            rows.append(dense_row(dense, together))
    head = ["Clip", "Model", "loading", "text", "denoising", "decoding", "writing"]
    return table([*head, "without loading and writing", "UltraGen is faster by"], rows, words=2)


def dense_row(entry: Entry, ours: float) -> list[str]:
    """diffusers' dense Wan, from the seconds of a step."""
    text, denoise = entry["text_seconds"], STEPS * entry["step_seconds"]
    together = text + denoise + entry["decode_seconds"]
    timed = f"{entry['steps_timed']} step{'s' if entry['steps_timed'] > 1 else ''}"
    stages = [
        number(entry["loading"]),
        number(text),
        f"{number(denoise)} ({STEPS} × {entry['step_seconds']:.1f})",
        number(entry["decode_seconds"]) + (" (tiles)" if entry["tiled"] else ""),
        NOTHING,
    ]
    how = f"diffusers' Wan, {timed} timed, times {STEPS}"
    return [size(entry), how, *stages, number(together), f"{together / ours:.2f}×"]


def coefficients_table(parts: Mapping[str, Entry]) -> list[str]:
    """The coefficients as code."""
    entries = parts["coefficients"]["entries"]
    return ["```text", *(coefficients_code(name, entry) for name, entry in entries.items()), "```"]


def coefficients_code(name: str, entry: Entry) -> str:
    """Coefficients as `estimates.coefficients` holds them."""
    lines = [
        f"    {field.name}={entry[field.name]!r},"
        if isinstance(entry[field.name], str)
        else f"    {field.name}={entry[field.name]:.3g},"
        for field in fields(Coefficients)
    ]
    return "\n".join([f"{NAMES[name]} = Coefficients(", *lines, ")"]).replace("'", '"')


TABLES = {
    "memory": memory_table,
    "tokens": tokens_table,
    "frames": frames_table,
    "runs": runs_table,
    "coefficients": coefficients_table,
}
ALSO = {"runs": ("dense",)}  # parts that a table shows too


def table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> list[str]:
    """Markdown, of which the first columns are words and the others figures."""
    rule = ["---" if i < words else "---:" for i in range(len(head))]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def size(entry: Entry) -> str:
    return f"{entry['height']}×{entry['width']}, {entry['frames']} frames"


def most(values: Any) -> int | None:
    """The largest; None if they were not measured."""
    known = [value for value in values if value is not None]
    return max(known, default=None)


def gib(value: int | None) -> str:
    return NOTHING if value is None else f"{value / GIB:.1f}"


def number(seconds: float) -> str:
    return f"{seconds:,.1f}" if seconds < 100 else f"{seconds:,.0f}"
