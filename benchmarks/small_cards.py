"""What fits on cards of 12, 16 and 24 GB: the text encoder in four forms, and the longest clips.

    python benchmarks/small_cards.py --json small_cards.json --markdown small_cards.md

Weights of the true sizes without values, on one GPU whose memory is capped: neither memory nor time
depends on them. The parts come to the GPU in turn, as they do on such cards. First each form of the
text encoder reads a prompt, then one forward pass and the first pieces of the decoding are run for
1080p with 81 frames, then for the longest clips of each size. Rows are printed as they are found;
what there is no time for is left out. On a CPU, where nothing is capped, `--tiny` shows that it
runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import FlowMatchEulerDiscreteScheduler
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from hardware_frames import Trials, fits
from hardware_memory import Watch, allocated, one_of_each
from hardware_plan import TINY, TRUE, Clip, Plan, sized
from transformers import UMT5Config, UMT5EncoderModel

from ultragen.benchmark.bench import free_memory
from ultragen.benchmark.machine import default_dtype
from ultragen.estimates.memory import (
    WAN_PARAMETERS,
    Memory,
    values_per_token,
)
from ultragen.hardware import GIB, find_hardware
from ultragen.model.quantised import FLOAT8, Quantised
from ultragen.pipeline import UltraGenPipeline
from ultragen.presets import RESOLUTIONS, WAN
from ultragen.weights.random import Noise, builders
from ultragen.weights.released import cast_weights
from ultragen.weights.umt5 import fill_umt5

Row = dict[str, Any]

CARDS = {"12 GB": 11 * GIB, "16 GB": 29 * GIB // 2, "24 GB": 22 * GIB}
"""Bytes for tensors: less than a card has, of which driver, libraries and a desktop keep some."""
FORMS = {"bfloat16": None, "FP8": "float8_e4m3fn", "GGUF Q8_0": "Q8_0", "GGUF Q4_K": "Q4_K"}
"""The text encoder's files, and what their matrices are quantised as."""


def text_encoder(settings: dict[str, Any], kind: str | None, device: str) -> UMT5EncoderModel:
    """umT5's encoder of zeros, as a file in one of `FORMS` gives it."""
    with init_empty_weights():
        model = UMT5EncoderModel(UMT5Config(**settings))
    dtype = default_dtype(device)
    weights = {
        name: stored(name, tuple(value.shape), kind, device)
        for name, value in model.state_dict().items()
        if name != "encoder.embed_tokens.weight"
    }
    return fill_umt5(model, weights, dtype)


def stored(
    name: str, shape: tuple[int, ...], kind: str | None, device: str
) -> torch.Tensor | Quantised:
    """A weight as files have it: ComfyUI leaves the words in two bytes, GGUF does not."""
    matrix = len(shape) == 2 and "relative" not in name
    if kind is None or not matrix or (kind in FLOAT8 and name == "shared.weight"):
        return torch.zeros(shape, dtype=torch.bfloat16, device=device)
    if kind in FLOAT8:
        codes = torch.zeros(shape, dtype=torch.uint8, device=device)
        return Quantised(codes, kind, shape, torch.ones((), device=device))
    values, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    if shape[1] % values:  # of a toy
        return torch.zeros(shape, device=device)
    rows = (shape[0], shape[1] // values * size)
    return Quantised(torch.zeros(rows, dtype=torch.uint8, device=device), kind, shape)


@torch.no_grad()
def read_prompt(model: UMT5EncoderModel, device: str) -> None:
    ids = torch.ones((1, WAN.max_sequence_length), dtype=torch.long, device=device)
    model(ids, torch.ones_like(ids))


def measure_text(settings: dict[str, Any], device: str) -> Iterator[Row]:
    """Memory and time of each form, and the cards that it fits on."""
    for form, kind in FORMS.items():
        free_memory()
        model = text_encoder(settings, kind, device)
        held, watch = allocated(device), Watch(device)
        read_prompt(model, device)
        began, peak = perf_counter(), watch.lap()["peak_bytes"]
        read_prompt(model, device)
        watch.lap()  # waits for the device
        seconds = perf_counter() - began
        cards = [
            card
            for card, size in CARDS.items()
            if fits(lambda model=model: read_prompt(model, device), size, held, device)
        ]
        del model
        yield {
            "what": f"umT5 in {form}", "form": form, "bytes": held, "peak_bytes": peak,
            "seconds": round(seconds, 3), "cards": cards,
        }  # fmt: skip


def make_trials(plan: Plan, device: str) -> Trials:
    """The transformer and the autoencoder; UltraGen's layers, one of each kind."""
    vae = Noise(0, device).weigh(builders(plan.weights)["vae"])
    vae = cast_weights(vae, default_dtype(device))
    pipe = UltraGenPipeline(None, None, vae, FlowMatchEulerDiscreteScheduler(), None)  # type: ignore[arg-type]
    values = values_per_token(find_hardware())
    model = one_of_each(plan.weights, device)
    return Trials(model, pipe, WAN_PARAMETERS.scaled(2), 2.0 * values, device)


def measure_clip(trials: Trials, card: str, clip: Clip) -> Row:
    """Whether a clip is drawn and decoded on a card, and what each takes beside its weights."""
    size, sizes, device = CARDS[card], trials.sizes, trials.device
    row: Row = {"what": f"{card}, {clip.name}", "card": card, "clip": clip.name}
    for stage, call, weights in (
        ("transformer", trials.forward, max(sizes.transformer, sizes.base_transformer)),
        ("decoding", trials.decode, sizes.vae),
    ):
        free_memory()
        watch = Watch(device)
        row[f"{stage}_fits"] = fits(lambda call=call: call(clip), size, weights, device)
        row[f"{stage}_peak_bytes"] = watch.lap()["peak_bytes"]
    return row


def measure_longest(trials: Trials, card: str, clip: Clip) -> Row:
    """The longest clip of a size, and what the program's rule lets through."""
    found = trials.longest(CARDS[card], clip)
    memory = Memory(CARDS[card], trials.sizes, 2, values_per_token(find_hardware()))
    size = RESOLUTIONS[clip.resolution]
    rule = max(
        (
            frames
            for frames in range(1, clip.frames + 1, 4)
            if memory.peak(found["placement"], size.height, size.width, frames) <= memory.free
        ),
        default=0,
    )
    name = f"{card}, {clip.resolution}, longest"
    return {"what": name, "card": card, "resolution": clip.resolution, **found, "rule": rule}


def measure(plan: Plan, device: str, budget: float) -> Iterator[Row]:
    """All rows, the most important first, until the seconds are over."""
    began = perf_counter()
    forms = []
    for row in measure_text(plan.weights.text, device):
        forms.append(row["bytes"])
        yield row
    free_memory()
    trials = make_trials(plan, device)
    trials.forward(plan.tokens[0])  # what libraries keep from their first call on
    trials.sizes = replace(trials.sizes, text_encoder=min(forms))
    tasks = [(measure_clip, card, plan.clips["1080p"]) for card in CARDS]
    tasks += [(measure_longest, card, clip) for clip in plan.limits for card in CARDS]
    longest = 0.0
    for call, card, clip in tasks:
        if perf_counter() - began + longest > budget:
            yield {"what": f"{card}, {clip.resolution}", "left_out": True}
            continue
        started = perf_counter()
        yield call(trials, card, clip)
        longest = max(longest, perf_counter() - started)


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""

    def gib(size: float | None) -> str:
        return "–" if size is None else f"{size / GIB:.1f}"

    lines = [
        "| umT5 in | on the GPU, GiB | at most, GiB | s a prompt | fits on |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    lines += [
        f"| {row['form']} | {gib(row['bytes'])} | {gib(row['peak_bytes'])} | {row['seconds']} | "
        f"{', '.join(row['cards']) or '–'} |"
        for row in rows
        if "form" in row
    ]
    lines += [
        "",
        "| Card | Clip | transformer, GiB | decoding, GiB |",
        "| --- | --- | ---: | ---: |",
    ]
    lines += [
        f"| {row['card']} | {row['clip']} | "
        + " | ".join(
            gib(row[f"{stage}_peak_bytes"]) + ("" if row[f"{stage}_fits"] else ", does not fit")
            for stage in ("transformer", "decoding")
        )
        + " |"
        for row in rows
        if "clip" in row
    ]
    found = [row for row in rows if "resolution" in row]
    lines += ["", f"| Longest clips | {' | '.join(CARDS)} |", "| --- |" + " ---: |" * len(CARDS)]
    for resolution in dict.fromkeys(row["resolution"] for row in found):
        of = {row["card"]: row for row in found if row["resolution"] == resolution}
        cells = (
            f"{of[card]['frames']} ({of[card]['placement']}); rule {of[card]['rule']}"
            if card in of
            else "–"
            for card in CARDS
        )
        lines.append(f"| {resolution} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="File that gets all rows.")
    parser.add_argument("--markdown", type=Path, help="File that gets the tables.")
    parser.add_argument("--budget", type=float, default=130, help="Seconds; a row begun is ended.")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    device = find_hardware().device  # lets the allocator's segments grow, where that can be
    card = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    print(f"{card}, torch {torch.__version__}", flush=True)
    limits = tuple(sized(name, WAN.max_frames) for name in ("1080p", "2k", "4k"))
    plan = TINY if arguments.tiny else replace(TRUE, limits=limits)
    rows: list[Row] = []
    for row in measure(plan, device, arguments.budget):
        rows.append(row)
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        if arguments.json:
            content = {"card": card, "torch": torch.__version__, "rows": rows}
            arguments.json.write_text(json.dumps(content, indent=1, ensure_ascii=False))
    print(text := table(rows))
    if arguments.markdown:
        arguments.markdown.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
