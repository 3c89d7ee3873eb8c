"""The page's own pictures and messages, as HTML. Everything that a visitor typed is escaped."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from time import monotonic

from ..estimates.cost import STAGES, fitting_tiers, full_pairs, gpu_duration, native_pairs
from ..model.windows import attention_pairs, even_partition, fitting_counts
from ..ops.strided_windows import Counts
from ..runs.progress import Progress, seconds_left
from . import about

FOLDER = Path(__file__).parent
KINDS = {
    "text": ("k-text", "prompt"),
    "denoise": ("k-native", "native"),
    "decode": ("k-native", "native"),
    "base_denoise": ("k-base", "base"),
    "base_decode": ("k-base", "base"),
    "upscale": ("k-upscale", "upscaling"),
    "base_native_denoise": ("k-full", "base at full size"),
    "base_native_decode": ("k-full", "base at full size"),
    "encode": ("k-encode", "files"),
}


def asset(name: str) -> str:
    """A file of the page's own, as text."""
    return (FOLDER / name).read_text(encoding="utf-8")


def duration(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss; what takes any time takes a second."""
    whole = max(1, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def header(model: str) -> str:
    """The page's head: what it shows, where more is told, and what runs here and why."""
    links = "".join(f'<a href="{address}">{name}</a>' for name, address in about.links().items())
    return (
        '<header class="ug-head"><h1>Ultra<span>Gen</span></h1>'
        "<p>Text to video, drawn twice from one prompt and seed: at the full size, and small, then "
        "enlarged.</p>"
        f'<nav class="ug-links" aria-label="About UltraGen">{links}'
        f'<details class="ug-model"><summary>Which model is this?</summary><p>{model}</p></details>'
        "</nav></header>"
    )


def estimate(stages: Mapping[str, float], machine: str, zero_gpu: bool) -> str:
    """What a run will take, before the click."""
    total = sum(stages.values()) or 1.0
    groups: dict[tuple[str, str], float] = {}
    for stage, seconds in stages.items():
        groups[KINDS[stage]] = groups.get(KINDS[stage], 0.0) + seconds
    bar = "".join(
        f'<i class="{css}" style="flex:{seconds / total:.4f}"></i>'
        for (css, _), seconds in groups.items()
    )
    key = "".join(
        f'<span><i class="{css}"></i>{name} {duration(seconds)}</span>'
        for (css, name), seconds in groups.items()
    )
    tiers = ""
    if zero_gpu:
        asked = gpu_duration(stages)
        fits = fitting_tiers(asked)
        who = f"fits the daily quota of {', '.join(fits)}" if fits else "exceeds every daily quota"
        tiers = f'<div class="sub">Asks for {asked} GPU seconds: {who}.</div>'
    return (
        f'<div class="ug-card" id="estimate-card"><div class="top"><span class="big">'
        f'About {duration(total)}</span><span class="sub">on {escape(machine)}</span></div>'
        f'<div class="ug-split">{bar}</div><div class="ug-key">{key}</div>{tiers}</div>'
    )


def resolution_labels(
    sizes: Sequence[tuple[int, int]], seconds: Sequence[float] | None = None
) -> str:
    """How large each resolution is and what it takes, written onto the choices by a style sheet.

    New labels for the choices would do too, but they would set the choice back that a visitor
    made while they were under way.

    Args:
        sizes: Rows and columns in pixels of each.
        seconds: What each takes; None as long as that is not known.
    """
    costs = [f"\\A ≈ {duration(each)}" for each in seconds] if seconds else [""] * len(sizes)
    rules = "".join(
        f"#resolution label:nth-of-type({number}) span::after "
        f'{{ content: "\\A {columns}×{rows}{cost}"; }}'
        for number, ((rows, columns), cost) in enumerate(zip(sizes, costs, strict=True), 1)
    )
    return f"<style>{rules}</style>"


def length(frames: int, fps: int) -> str:
    """How long so many frames are shown."""
    return f'<p class="ug-note">{frames / fps:.1f} s at {fps} a second</p>'


def windows(grid: tuple[int, int, int], count: int, asked: str, full_share: float = 0.0) -> str:
    """The windows on the frame, in even and odd layers, and what they save."""
    _, rows, columns = grid
    share = native_pairs(grid, count) / full_pairs(grid)
    share += full_share * (1 - share)
    if asked == "auto":
        why = f"<b>auto</b> takes K = {count} here: windows of the size that the model learnt with."
    else:
        why = f"<b>K = {count}</b>: more windows are smaller and cheaper, and see less at a time."
    return (
        '<div class="ug-windows">'
        + _frame(rows, columns, count, "even layers")
        + _frame(rows, columns, count + 1, "odd layers")
        + f"<p>{why} Attention stays inside a window, across all frames; the borders move from "
        f"layer to layer, and two coarse branches see the whole frame. That compares "
        f"<b>{100 * share:.0f} %</b> of the pairs of full attention"
        + (f", which {100 * full_share:.0f} % of the layers keep" if full_share else "")
        + ".</p></div>"
    )


def t3_windows(grid: tuple[int, int, int], layers: Sequence[Counts]) -> str:
    """What T3-Video's windows are on this grid, and what they save."""
    share = fmean(attention_pairs(grid, counts) for counts in layers) / full_pairs(grid)
    exact = all(fitting_counts(grid, counts) == counts for counts in layers)
    other = "" if exact else " Here it takes the nearest that fit, for which it was not trained."
    return (
        '<div class="ug-windows"><p>T3-Video cuts the clip in time, rows and columns, in five ways '
        "that take turns from layer to layer. Each layer attends within windows of neighbours, and "
        f"within windows that sample the whole clip.{other} That compares <b>{100 * share:.1f} "
        "%</b> of the pairs of full attention.</p></div>"
    )


def _frame(rows: int, columns: int, count: int, name: str) -> str:
    """One frame with its windows, drawn in tokens."""
    partition = even_partition(rows, columns, count)
    across, down = list(accumulate(partition.columns)), list(accumulate(partition.rows))
    lines = "".join(f'<line x1="{x}" y1="0" x2="{x}" y2="{rows}"/>' for x in across[:-1])
    lines += "".join(f'<line x1="0" y1="{y}" x2="{columns}" y2="{y}"/>' for y in down[:-1])
    c, r = (len(across) - 1) // 2, (len(down) - 1) // 2
    left, top = across[c] - partition.columns[c], down[r] - partition.rows[r]
    size = f'width="{partition.columns[c]}" height="{partition.rows[r]}"'
    hills = (
        f"M0 {rows * 0.62} L{columns * 0.2} {rows * 0.34} L{columns * 0.34} {rows * 0.5} "
        f"L{columns * 0.55} {rows * 0.24} L{columns * 0.8} {rows * 0.54} "
        f"L{columns} {rows * 0.44} V{rows * 0.7} H0 Z"
    )
    label = f"{count} × {count} windows in {name}"
    return (
        f'<figure><svg viewBox="-0.2 -0.2 {columns + 0.4} {rows + 0.4}" role="img" '
        f'aria-label="{label}"><rect class="sky" width="{columns}" height="{rows}"/>'
        f'<path class="hill" d="{hills}"/><rect class="water" y="{rows * 0.7}" '
        f'width="{columns}" height="{rows * 0.3}"/>{lines}'
        f'<rect class="one" x="{left}" y="{top}" {size}/>'
        f'<rect class="edge" width="{columns}" height="{rows}"/></svg>'
        f"<figcaption>{label}, {partition.columns[c]} × {partition.rows[r]} tokens each"
        "</figcaption></figure>"
    )


def running(progress: Progress, stages: Mapping[str, float], elapsed: float, note: str) -> str:
    """Progress by stage and step."""
    percent = 100 * progress.fraction
    remaining = seconds_left(sum(stages.values()), progress.fraction, elapsed)
    names = list(stages)
    now = names.index(progress.stage) if progress.stage in names else 0
    items = "".join(
        f'<li class="{"done" if i < now else "now" if i == now else "next"}">{STAGES[name]}'
        + (f" {progress.step}/{progress.steps}" if i == now else "")
        + "</li>"
        for i, name in enumerate(names)
    )
    picture = b64encode(progress.preview).decode() if progress.preview else ""
    preview = (
        f'<img class="ug-preview" alt="Preview of the clip" src="data:image/jpeg;base64,{picture}">'
        if picture
        else ""
    )
    return (
        '<div class="ug-card" role="status"><div class="top"><span class="big">'
        f'{escape(note or progress.message)}</span><span class="sub">{duration(elapsed)} gone, '
        f"about {duration(remaining)} to go</span></div>"
        f'<div class="ug-track" role="progressbar" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent:.0f}"><i style="width:{percent:.1f}%"></i></div>'
        f'<ol class="ug-stages">{items}</ol>{preview}</div>'
    )


def notice(kind: str, title: str, text: str, more: str = "") -> str:
    """A card that says how things stand: `good`, `bad`, `stopped` or `idle`; `more` is HTML."""
    below = f'<div class="sub">{f"{escape(text)} {more}".strip()}</div>' if text or more else ""
    return (
        f'<div class="ug-card {kind}" role="status"><div class="top"><span class="big">'
        f"{escape(title)}</span></div>{below}</div>"
    )


def stopped(elapsed: float | None, at: str = "") -> str:
    """How far a run came that was cancelled.

    Args:
        elapsed: Seconds for which it computed; None if it had not begun.
        at: What it did last; empty if that tells nothing.
    """
    if elapsed is None:
        return "Its turn had not come: nothing was computed."
    return f"Stopped after {duration(elapsed)}{f' at: {at}' if at else ''}."


def waiting(ahead: int, seconds: float) -> str:
    """Where a run waits, and how it can be left; `page.js` counts the seconds down."""
    if not ahead:
        text = "It is the next one, and starts in a moment."
    else:
        runs = "1 run comes" if ahead == 1 else f"{ahead} runs come"
        left = (
            f'<span class="ug-left" role="timer" data-seconds="{seconds:.1f}" '
            f'data-told="{monotonic():.3f}">{duration(seconds)}</span>'
        )
        text = (
            f"{runs} before yours, for about {left}. Your place is kept if you reload; Cancel "
            "gives it up."
        )
    return notice("idle", f"Waiting: place {ahead + 1}", "", text)


def kept_until(moment: float) -> str:
    """Until when files are kept that are removed at a time in seconds since 1970, as HTML;
    `page.js` writes the time as it is where the visitor is."""
    until = datetime.fromtimestamp(moment, UTC)
    return (
        f'Files are kept until <time class="ug-until" datetime="{until:%Y-%m-%dT%H:%MZ}">'
        f"{until.day} {until:%B, %H:%M} UTC</time>: download what you like to keep."
    )


def remarks(title: str, texts: Sequence[str]) -> str:
    """A card with several things to look at."""
    lines = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return (
        f'<div class="ug-card stopped" role="status"><div class="top"><span class="big">'
        f'{escape(title)}</span></div><ul class="sub">{lines}</ul></div>'
    )


def finished(metadata: Mapping, kept: str = "") -> str:
    """What a finished run took, and until when its files are kept, see `kept_until`."""
    measured = metadata["seconds"]["measured"]
    estimated = sum(metadata["seconds"]["estimated"].values())
    groups: dict[str, float] = {}
    for stage, seconds in measured.items():
        name = KINDS[stage][1]
        groups[name] = groups.get(name, 0.0) + seconds
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in groups.items())
    total = sum(measured.values())
    text = f"Took {duration(total)} (estimated {duration(estimated)}): {parts}."
    request = metadata["request"]
    title = f"Done: {request['resolution']}, seed {request['seed']}"
    return notice("good", title, text, kept)


def caption(metadata: Mapping) -> str:
    """A few words on a run."""
    request = metadata["request"]
    prompt = request["prompt"]
    return f"{request['resolution']}: {prompt if len(prompt) < 60 else prompt[:57] + '...'}"
