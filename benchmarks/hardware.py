"""What the 1.3B model takes of a GPU: memory, the longest clips, whole runs, units of work.

    python scripts/make_random_wan.py models/random --jobs 4
    python benchmarks/hardware.py --json hardware.json --wan models/random/wan \
        --ultragen models/random/ultragen_1080p.ckpt
    python benchmarks/hardware.py --render hardware.json

Weights are random, in the true shapes: what they cost does not depend on their values. The JSON
file is written after every measurement; the same command goes on where it was stopped. `--render`
puts the tables into docs/hardware.md.

Part          what it measures                                              seconds on an H100
tokens        memory of a forward pass at several sizes                     20
memory        peaks of the whole pipeline by stage, whole and in turn       150
frames        the longest clips that cards of 24, 48 and 80 GB take         150
runs          prompt to MP4 by the command line: 1080p, then 4K             330 and 560
dense         the same by diffusers' own WanPipeline, one or two steps      130 and 180
coefficients  what a unit of work costs, for both models                    350

`runs`, `dense` and `coefficients` read files, the others build their weights on the GPU. `--clip`
and `--only` split the work; `--steps` shortens the runs, and the tables then say so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from hardware_results import Entry, Results
from hardware_tables import DOC, coefficients_code, fitted_values, render

from ultragen import console, measuring
from ultragen.autoencoder import denormalize
from ultragen.benchmark.bench import free_memory, what_failed
from ultragen.benchmark.machine import default_dtype
from ultragen.benchmark.random_weights import SIZES, Noise, Sizes, builders, make_tokenizer
from ultragen.checkpoint import cast_weights
from ultragen.hardware import (
    GIB,
    RESERVE,
    VALUES_PER_TOKEN,
    WAN_PARAMETERS,
    Memory,
    Placement,
    Weights,
    weights_of,
)
from ultragen.models import load_models, take_turns
from ultragen.pipeline import UltraGenPipeline
from ultragen.presets import RESOLUTIONS, ULTRAGEN_SOURCE, WAN, WAN_SOURCE
from ultragen.wan import SHIFT, load_text_encoder

ROOT = Path(__file__).parents[1]
PROMPT = "a calm lake under snowy mountains at sunset"
PLACEMENTS: tuple[Placement, ...] = ("whole", "in turn")
PIECES = 3  # of a clip, after which decoding takes no more memory: its caches are full


@dataclass(frozen=True)
class Clip:
    """A size.

    Attributes:
        resolution: As users type it.
        height: Rows in pixels.
        width: Columns in pixels.
        frames: Frames, 4n + 1.
    """

    resolution: str
    height: int
    width: int
    frames: int

    @property
    def name(self) -> str:
        return f"{self.height}×{self.width}×{self.frames}"

    @property
    def tokens(self) -> int:
        return (self.frames + 3) // 4 * (self.height // 16) * (self.width // 16)


def sized(resolution: str, frames: int) -> Clip:
    size = RESOLUTIONS[resolution]
    return Clip(resolution, size.height, size.width, frames)


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        weights: Widths and depths of the models.
        clips: By the name that `--clip` takes.
        tokens: Clips of the part `tokens`, the smallest first.
        cards: Name and bytes for tensors: less than the card has, because the driver, the
            libraries and, on some cards, the error correction keep some.
        limits: Clips, by resolution, of the part `frames`, each with the most frames to try.
        runs: Clips of the parts `runs` and `dense`, as those of `clips`.
        measured: Runs of the part `coefficients`; None for each model's own.
        steps: Denoising steps of a run.
        dense_steps: Steps of the dense model that are timed, after a first one.
    """

    weights: Sizes
    clips: dict[str, Clip]
    tokens: tuple[Clip, ...]
    cards: dict[str, int]
    limits: tuple[Clip, ...]
    runs: dict[str, Clip]
    measured: tuple[dict[str, Any], ...] | None
    steps: int = WAN.num_inference_steps
    dense_steps: int = 2


CLIPS = {"1080p": sized("1080p", 81), "4k": sized("4k", 29)}
TRUE = Plan(
    SIZES["true"],
    CLIPS,
    (
        sized("544p", 17),
        sized("544p", 81),
        sized("1080p", 33),
        sized("1080p", 81),
        sized("2k", 81),
        sized("4k", 29),
        sized("4k", 49),
    ),
    {"24 GB": 22 * GIB, "48 GB": 44 * GIB, "80 GB": 78 * GIB},
    tuple(sized(name, WAN.max_frames) for name in ("544p", "1080p", "2k", "4k")),
    CLIPS,
    None,
)
SHORT = {"resolution": "544p", "num_frames": 1, "num_inference_steps": 1, "upscaler": "lanczos"}
TINY = Plan(
    SIZES["tiny"],
    {"1080p": Clip("1080p", 64, 96, 5), "4k": Clip("4k", 64, 128, 5)},
    (Clip("544p", 64, 96, 5), Clip("1080p", 64, 128, 9)),
    TRUE.cards,
    (Clip("544p", 64, 96, 5),),
    {"1080p": sized("544p", 1)},
    (SHORT, SHORT),
    steps=1,
    dense_steps=1,
)


@dataclass(frozen=True)
class Files:
    """Weights on this machine.

    Attributes:
        wan: The base model's folder.
        ultragen: The released UltraGen weights, or a file of that layout.
    """

    wan: Path
    ultragen: Path

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make all commands take them."""
        return {
            WAN_SOURCE.variable: str(self.wan.resolve()),
            ULTRAGEN_SOURCE.variable: str(self.ultragen.resolve()),
            "HF_HUB_OFFLINE": "1",
        }


class Watch:
    """Memory and time since it was last asked."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.lap()

    def lap(self) -> Entry:
        """Bytes that tensors took at most, and that the allocator held for them; None on a CPU."""
        if self.device != "cuda":
            return {"peak_bytes": None, "reserved_bytes": None}
        torch.cuda.synchronize()
        found = {
            "peak_bytes": torch.cuda.max_memory_allocated(),
            "reserved_bytes": torch.cuda.max_memory_reserved(),
        }
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return found


def allocated(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else 0


# A forward pass


def one_of_each(weights: Sizes, device: str) -> Any:
    """UltraGen's transformer with one full, one odd and one even layer: no layer's memory depends
    on how many follow."""
    three = replace(weights, transformer={**weights.transformer, "num_layers": 3}, full=(0,))
    model = Noise(0, device).weigh(builders(three)["transformer"])
    return cast_weights(model, default_dtype(device))


def forward(model: Any, clip: Clip, device: str) -> None:
    """One forward pass with random inputs."""
    config, dtype = model.config, default_dtype(device)
    latents = (config.in_channels, (clip.frames + 3) // 4, clip.height // 8, clip.width // 8)
    text = (WAN.max_sequence_length, config.text_dim)
    with torch.no_grad():
        model(
            hidden_states=torch.randn(1, *latents, device=device, dtype=dtype),
            timestep=torch.full((1,), 500.0, device=device),
            encoder_hidden_states=torch.randn(1, *text, device=device, dtype=dtype),
            windows="auto",
            return_dict=False,
        )


def measure_tokens(plan: Plan, results: Results, device: str) -> None:
    """What a forward pass takes beside its weights."""
    wanted = [clip for clip in plan.tokens if results.wants("tokens", clip.name)]
    if not wanted:
        return
    model = one_of_each(plan.weights, device)
    forward(model, plan.tokens[0], device)  # what libraries keep from their first call on
    for clip in wanted:
        free_memory()
        held, watch = allocated(device), Watch(device)
        forward(model, clip, device)
        found = watch.lap()
        if found["peak_bytes"] is not None:
            found = {name: size - held for name, size in found.items()}
        results.add("tokens", clip.name, {**asdict(clip), "tokens": clip.tokens, **found})


# The whole pipeline


def build_pipeline(weights: Sizes, device: str) -> UltraGenPipeline:
    """All parts with random weights, the base model among them."""
    noise, dtype = Noise(0, device), default_dtype(device)
    parts = {name: noise.weigh(build) for name, build in builders(weights).items()}
    for name, part in parts.items():  # each as its own library loads it
        part.to(dtype) if name == "text_encoder" else cast_weights(part, dtype)
    pipe = UltraGenPipeline(
        tokenizer=make_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        max_sequence_length=WAN.max_sequence_length,
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def measure_memory(plan: Plan, results: Results, device: str, clips: list[str]) -> None:
    """Peaks by stage, with all parts on the GPU and with one at a time."""
    wanted = {
        placement: {
            key: clip
            for name in clips
            if (clip := plan.clips[name])
            and results.wants("memory", key := f"{clip.name}, {placement}")
        }
        for placement in PLACEMENTS
    }
    if not any(wanted.values()):
        return
    pipe = build_pipeline(plan.weights, device)
    weights = asdict(weights_of(pipe))
    for placement in PLACEMENTS:
        if placement == "in turn":
            take_turns(pipe, pipe.base_pipeline(), device)
        for key, clip in wanted[placement].items():
            entry = {**asdict(clip), "placement": placement, "weights": weights}
            results.add("memory", key, {**entry, "stages": stage_peaks(pipe, clip, device)})


def stage_peaks(pipe: UltraGenPipeline, clip: Clip, device: str) -> Entry:
    """Peaks of text encoding, one guided step, and decoding."""
    free_memory()
    stages: Entry = {}
    watch = Watch(device)

    def text_is_done(*arguments: Any) -> None:
        if not stages:
            stages["text"] = watch.lap()

    hook = pipe.transformer.register_forward_pre_hook(text_is_done)
    try:
        latents: Any = pipe(
            PROMPT,
            height=clip.height,
            width=clip.width,
            num_frames=clip.frames,
            num_inference_steps=1,
            negative_prompt=WAN.negative_prompt,
            generator=torch.Generator("cpu").manual_seed(0),
            output_type="latent",
        ).frames
    finally:
        hook.remove()
    stages["transformer"] = watch.lap()
    for piece in islice(pipe.decode_stream(latents), PIECES):
        piece.cpu()
    stages["decoding"] = watch.lap()
    return stages


# The longest clips


@contextmanager
def card_of(size: int, held: int, device: str) -> Iterator[None]:
    """A card with this much memory for tensors, of which weights hold a part."""
    if device != "cuda":
        yield
        return
    free_memory()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(size / total, 1.0))

    def mem_get_info(device: Any = None) -> tuple[int, int]:
        return size - torch.cuda.memory_reserved(), size

    try:
        rest = torch.empty(max(held - allocated(device), 0), dtype=torch.uint8, device=device)
        with patch.object(torch.cuda, "mem_get_info", mem_get_info):
            yield
        del rest
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def fits(call: Callable[[], None], size: int, held: int, device: str) -> bool:
    """Whether a call gets along with a card's memory beside these bytes of weights."""
    try:
        with card_of(size, held, device):
            call()
    except torch.OutOfMemoryError:
        return False
    return True


def largest(fit: Callable[[int], bool], guess: int, most: int) -> int:
    """Largest n from 0 to `most` that fits, -1 if none does; a good guess needs two trials."""
    low, high, step = -1, most + 1, 1
    n = min(max(guess, 0), most)
    while high - low > 1:
        if fit(n):
            low = n
        else:
            high = n
        n = low + step if high > most else high - step if low < 0 else (low + high) // 2
        n, step = min(max(n, low + 1), high - 1), 2 * step
    return low


@dataclass
class Trials:
    """What longest clips are found with.

    Attributes:
        model: The transformer, one layer of each kind.
        pipe: A pipeline of the autoencoder alone.
        sizes: Bytes of a whole pipeline's parts.
        bytes_per_token: What a forward pass takes beside its weights, roughly.
        device: `cpu` or `cuda`.
    """

    model: Any
    pipe: UltraGenPipeline
    sizes: Weights
    bytes_per_token: float
    device: str

    def longest(self, card: int, clip: Clip) -> Entry:
        """The longest clip of a resolution that a card takes, and what it fails by."""
        sizes, (rows, columns) = self.sizes, (clip.height // 16, clip.width // 16)
        placement = Memory(card, sizes).place()
        whole = placement == "whole"
        largest_part = max(sizes.transformer, sizes.base_transformer)
        beside = sizes.together if whole else largest_part
        most = (clip.frames - 1) // 4
        guess = (card - RESERVE - beside) / (self.bytes_per_token * rows * columns)
        held = (beside, sizes.together if whole else sizes.vae)
        passes = largest(
            lambda n: self.attempt(self.forward, clip, n, card, held[0]), int(guess) - 1, most
        )
        decodes = largest(
            lambda n: self.attempt(self.decode, clip, n, card, held[1]), passes, max(passes, 0)
        )
        found = min(passes, decodes)
        ends = "nothing" if found == most else "transformer" if decodes >= passes else "decoding"
        frames = 4 * found + 1 if found >= 0 else 0
        return {"frames": frames, "placement": placement, "ended_by": ends}

    def attempt(
        self, call: Callable[[Clip], None], clip: Clip, n: int, card: int, held: int
    ) -> bool:
        """Whether 4n + 1 frames fit."""
        longer = replace(clip, frames=4 * n + 1)
        return fits(lambda: call(longer), card, held, self.device)

    def forward(self, clip: Clip) -> None:
        forward(self.model, clip, self.device)

    def decode(self, clip: Clip) -> None:
        """The first pieces: later ones take no more."""
        config = self.pipe.vae.config
        shape = (config.z_dim, (clip.frames + 3) // 4, clip.height // 8, clip.width // 8)
        latents = torch.randn(1, *shape, device=self.device)
        for piece in islice(self.pipe.decode_stream(latents), PIECES):
            piece.cpu()


def measure_frames(plan: Plan, results: Results, device: str) -> None:
    """The longest clips that a card takes, by one forward pass and by decoding at a capped memory;
    the weights that are not needed for these take their room as one block."""
    wanted = [
        (card, clip)
        for clip in plan.limits
        for card in plan.cards
        if results.wants("frames", f"{card}, {clip.resolution}")
    ]
    if not wanted:
        return
    dtype = default_dtype(device)
    vae = cast_weights(Noise(0, device).weigh(builders(plan.weights)["vae"]), dtype)
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipe = UltraGenPipeline(None, None, vae, scheduler, None)  # type: ignore[arg-type]
    guess = fitted_values(results.entries("tokens")) or VALUES_PER_TOKEN
    sizes = WAN_PARAMETERS.scaled(2)
    trials = Trials(one_of_each(plan.weights, device), pipe, sizes, 2 * guess, device)
    trials.forward(plan.tokens[0])  # what libraries keep from their first call on
    for card, clip in wanted:
        began = perf_counter()
        entry = trials.longest(plan.cards[card], clip)
        known = {"card": card, "card_bytes": plan.cards[card], **asdict(clip), "most": clip.frames}
        took = round(perf_counter() - began, 1)
        results.add(
            "frames", f"{card}, {clip.resolution}", {**known, **entry, "measured_in_s": took}
        )


# Whole runs


def measure_runs(plan: Plan, results: Results, clips: list[str], files: Files) -> None:
    """Prompt to MP4 by the command line, in a process of its own, as users run it."""
    for name in clips:
        if name in plan.runs and results.wants("runs", plan.runs[name].name):
            entry = run_command_line(plan.runs[name], plan.steps, files)
            results.add("runs", plan.runs[name].name, entry)


def run_command_line(clip: Clip, steps: int, files: Files) -> Entry:
    """Seconds by stage of `ultragen generate`."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "clip.mp4"
        command = [sys.executable, "-m", "ultragen", "generate", "--model", "wan"]
        command += ["--prompt", PROMPT, "--resolution", clip.resolution]
        command += ["--frames", str(clip.frames), "--steps", str(steps), "--out", str(out)]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        began = perf_counter()
        ended = subprocess.run(
            command, env={**os.environ, **files.environment, "PYTHONPATH": path}, check=False
        )
        whole = perf_counter() - began
        if ended.returncode:
            raise RuntimeError(f"`ultragen generate` ended with code {ended.returncode}")
        metadata = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
        return {
            **asdict(clip),
            "steps": steps,
            "placement": metadata["machine"]["placement"],
            "guidance_scale": metadata["request"]["guidance_scale"],
            "windows": metadata["windows"]["even_layers"],
            "seconds": metadata["seconds"]["measured"],
            "loading": metadata["seconds"]["loading"],
            "whole": whole,
            "file_bytes": out.stat().st_size,
        }


def measure_dense(plan: Plan, results: Results, clips: list[str], files: Files) -> None:
    """diffusers' own pipeline from the same folder."""
    wanted = [plan.runs[name] for name in clips if name in plan.runs]
    wanted = [clip for clip in wanted if results.wants("dense", clip.name)]
    if not wanted:
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = default_dtype(device)
    began = perf_counter()
    # Its own loader would keep the word embeddings twice, see `load_text_encoder`.
    text_encoder = load_text_encoder(files.wan / "text_encoder", dtype)
    pipe = WanPipeline.from_pretrained(
        files.wan, text_encoder=text_encoder, dtype=dtype, local_files_only=True
    ).to(device)
    pipe.set_progress_bar_config(disable=True)
    loading = perf_counter() - began
    for clip in wanted:
        entry = run_dense(pipe, clip, plan.dense_steps, device)
        results.add("dense", clip.name, {**asdict(clip), "loading": loading, **entry})


def run_dense(pipe: Any, clip: Clip, steps: int, device: str) -> Entry:
    """Seconds of a guided step and of decoding, and the peaks of both."""
    times: list[float] = []

    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(perf_counter())
        return tensors

    free_memory()
    watch = Watch(device)
    began = perf_counter()
    with torch.no_grad():
        pipe.encode_prompt([PROMPT, WAN.negative_prompt], do_classifier_free_guidance=False)
        text = watch.lap()  # waits for the device
        text_seconds = perf_counter() - began
        latents = pipe(
            PROMPT,
            negative_prompt=WAN.negative_prompt,
            height=clip.height,
            width=clip.width,
            num_frames=clip.frames,
            num_inference_steps=steps + 1,
            guidance_scale=WAN.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(0),
            callback_on_step_end=after_step,
            output_type="latent",
        ).frames
        transformer = watch.lap()
        decode_seconds, tiled = decode_dense(pipe.vae, latents)
    return {
        "step_seconds": (times[-1] - times[0]) / steps,
        "steps_timed": steps,
        "text_seconds": text_seconds,
        "decode_seconds": decode_seconds,
        "tiled": tiled,
        "stages": {"text": text, "transformer": transformer, "decoding": watch.lap()},
    }


def decode_dense(vae: Any, latents: Any) -> tuple[float, bool]:
    """Seconds of diffusers' decoding, and whether it had to be in tiles."""
    for tiled in (False, True):
        vae.use_tiling = tiled
        free_memory()
        began = perf_counter()
        try:
            vae.decode(denormalize(vae, latents), return_dict=False)[0][0, 0, 0, 0, 0].item()
            return perf_counter() - began, tiled
        except torch.OutOfMemoryError:
            if tiled:
                raise
    raise AssertionError("unreachable")


# Coefficients of the estimates


def measure_coefficients(plan: Plan, results: Results, files: Files) -> None:
    """What a unit of work costs, for both models."""
    for name in ("wan", "embedded"):
        if not results.wants("coefficients", name):
            continue
        began = perf_counter()
        with patch.dict(os.environ, files.environment):
            models = load_models(name)
        loading = perf_counter() - began

        def say(line: str, name: str = name) -> None:
            print(f"coefficients, {name}, {line}", flush=True)

        found = measuring.measure(models, say, plan.measured)
        took = perf_counter() - began
        entry = {**asdict(found), "loading": loading, "measured_in_s": took}
        results.add("coefficients", name, entry)
        print(coefficients_code(name, entry), flush=True)
        del models
        free_memory()


# The command line

PARTS = ("tokens", "memory", "frames", "runs", "dense", "coefficients")
NEED_FILES = ("runs", "dense", "coefficients")


def measure(part: str, plan: Plan, results: Results, clips: list[str], files: Files | None) -> bool:
    """Measures one part and returns whether all went well: what fails is said, and another part
    may not."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if part == "tokens":
            measure_tokens(plan, results, device)
        elif part == "memory":
            measure_memory(plan, results, device, clips)
        elif part == "frames":
            measure_frames(plan, results, device)
        elif files is None:  # the options were checked
            raise ValueError(f"The part '{part}' reads files: give --wan and --ultragen.")
        elif part == "coefficients":
            measure_coefficients(plan, results, files)
        else:
            (measure_runs if part == "runs" else measure_dense)(plan, results, clips, files)
    except Exception as error:
        traceback.print_exc()
        print(f"Left out: {part}: {what_failed(error)}", file=sys.stderr, flush=True)
        return False
    return True


def read_options(arguments: list[str]) -> argparse.Namespace:
    """The command line.

    Raises:
        ValueError: for a combination that can't work.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file of all results, which are added to")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--clip", nargs="+", choices=CLIPS, default=list(CLIPS))
    parser.add_argument("--wan", type=Path, help="the base model's folder")
    parser.add_argument("--ultragen", type=Path, help="the UltraGen weights")
    parser.add_argument("--steps", type=int, help="of the runs")
    parser.add_argument("--again", action="store_true", help="measure anew what is there")
    parser.add_argument("--tiny", action="store_true", help="toys, on any machine")
    parser.add_argument("--render", type=Path, nargs="+", help="results to put into the document")
    parser.add_argument("--markdown", type=Path, default=DOC, help="the document")
    options = parser.parse_args(arguments)
    missing = [part for part in options.only if part in NEED_FILES]
    if missing and not options.render and not (options.wan and options.ultragen):
        raise ValueError(
            f"{', '.join(missing)} need files: give --wan and --ultragen, as "
            "scripts/make_random_wan.py writes them, or choose other parts with --only."
        )
    return options


def main(arguments: list[str]) -> int:
    """Measures what is asked for, or renders what was measured; returns the exit code."""
    options = read_options(arguments)
    if options.render:
        render(options.render, options.markdown)
        print(f"Written: {options.markdown}")
        return 0
    console.quiet_libraries()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = Results(options.json, device, options.again)
    plan = TINY if options.tiny else TRUE
    plan = replace(plan, steps=options.steps or plan.steps)
    files = Files(options.wan, options.ultragen) if options.wan and options.ultragen else None
    for part in options.only:
        results.check(part)
    failed = False
    for part in options.only:
        began = perf_counter()
        failed |= not measure(part, plan, results, options.clip, files)
        free_memory()  # here the traceback, which keeps models alive, is gone
        print(f"{part}: {perf_counter() - began:.0f} s", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(console.run(lambda: main(sys.argv[1:])))
