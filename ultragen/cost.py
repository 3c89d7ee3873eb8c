"""What a run costs, in seconds by stage: an estimate before the click, from measured coefficients.

A denoising step costs a part that grows with the tokens (linear layers, norms, gates) and a part
that grows with the query-key pairs of attention, which is where windows save (§4.3, eq. 12-13).
Decoding, upscaling and encoding grow with the pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from math import ceil, exp, log
from threading import Lock
from time import perf_counter

import numpy as np

from .windows import axis_sizes

STAGES = {
    "text": "Prompt: encoding",
    "denoise": "Native clip: denoising",
    "decode": "Native clip: decoding",
    "base_denoise": "Base clip: denoising",
    "base_decode": "Base clip: decoding",
    "upscale": "Base clip: upscaling",
    "base_native_denoise": "Base model at full size: denoising",
    "base_native_decode": "Base model at full size: decoding",
    "encode": "Writing the files",
}
"""Stages of a run in order, with what they are called for people."""

ZEROGPU_TIERS = (("anonymous visitors", 80), ("free accounts", 200), ("PRO accounts", 1600))
"""Longest request in GPU seconds that an untouched daily quota starts, for a `large` GPU."""

PROCESSOR = {"lanczos", "encode"}  # coefficients of what no GPU does
MULTIPLY = {"cpu": 1024, "cuda": 8192}  # rows of the probe's square matrices
ATTEND = (1, 12, 16384, 128)  # b h n d of the probe's attention, on GPUs alone
ZERO_GPU = 4.0
"""Times that ZeroGPU's `large` takes as long as the H100 whose coefficients are below: half of an
RTX PRO 6000 Blackwell has 252 of an H100's 989 TFLOP/s in bfloat16 (NVIDIA's data sheets, dense).
Counted, not measured: a Space's finished and stopped runs correct it."""


@dataclass(frozen=True)
class Job:
    """Everything about a run that its cost depends on.

    Attributes:
        height: Generated rows in pixels.
        width: Generated columns in pixels.
        base_height: Rows in pixels of the base clip.
        base_width: Columns in pixels of the base clip.
        num_frames: Frames, 4n + 1.
        windows: K, windows on each axis in even layers.
        steps: Denoising steps.
        passes: Forward passes a step, one after the other: 2 with guidance, 1 without or where a
            second device takes the other one.
        upscaler: `lanczos`, `network` or a file.
        base_native: `on` where the base model also runs at the full size.
        pixels_per_token: Rows, and columns, of pixels that a token covers.
        full_share: Share of the native model's layers that keep attention over all tokens.
    """

    height: int
    width: int
    base_height: int
    base_width: int
    num_frames: int
    windows: int
    steps: int
    passes: int
    upscaler: str
    base_native: str
    pixels_per_token: int
    full_share: float = 0.0

    def grid(self, height: int, width: int) -> tuple[int, int, int]:
        """Tokens of a clip of this size: t h w."""
        size = self.pixels_per_token
        return (self.num_frames + 3) // 4, height // size, width // size

    @property
    def pixels(self) -> int:
        """Pixels of the full-size clip, all frames."""
        return self.num_frames * self.height * self.width

    @property
    def base_pixels(self) -> int:
        """Pixels of the base clip, all frames."""
        return self.num_frames * self.base_height * self.base_width


@dataclass(frozen=True)
class Coefficients:
    """Seconds that a unit of work takes on one device.

    Attributes:
        device: Kind of device, `cpu` or `cuda`.
        probe: Seconds of `probe` on the machine that was measured, to scale to another one.
        text: For each run, once: encoding the prompts.
        token: For each token of one native forward pass.
        pair: For each query-key pair of one native forward pass (mean over the layers).
        base_token: For each token of one forward pass of the base model.
        base_pair: For each query-key pair of one forward pass of the base model.
        decode: For each pixel decoded.
        lanczos: For each pixel that Lanczos resampling makes.
        network: For each pixel that the upscaling network is given.
        encode: For each pixel written to a video file.
        dtype: What the probe's matrices hold.
    """

    device: str
    probe: float
    text: float
    token: float
    pair: float
    base_token: float
    base_pair: float
    decode: float
    lanczos: float
    network: float
    encode: float
    dtype: str = "float32"

    def scaled(self, factor: float) -> Coefficients:
        """The same coefficients for a device that takes `factor` times as long. What the processor
        beside a GPU does stays as it is."""
        kept = {"device", "dtype"} | (PROCESSOR if self.device == "cuda" else set())
        names = [f.name for f in fields(self) if f.name not in kept]
        return replace(self, **{name: getattr(self, name) * factor for name in names})


CPU = Coefficients(  # the embedded model on two cores, float32
    device="cpu",
    probe=0.0113,
    text=0.05,
    token=3.0e-4,
    pair=1.1e-7,
    base_token=2.1e-4,
    base_pair=1.0e-7,
    decode=2.7e-7,
    lanczos=2.0e-8,
    network=3.2e-6,
    encode=2.2e-8,
)
CPU_BFLOAT16_AMX = Coefficients(  # the same with AMX: Intel Xeon, torch 2.13.0, 2026-11-26
    device="cpu",
    probe=0.00147,
    text=0.094,
    token=8.2e-5,
    pair=1.4e-8,
    base_token=9.9e-5,
    base_pair=1.4e-8,
    decode=7.1e-8,
    lanczos=1.2e-8,
    network=9.9e-7,
    encode=3.3e-8,
    dtype="bfloat16",
)
CPU_BFLOAT16_AVX512 = Coefficients(  # without AMX: AMD EPYC, torch 2.13.0, 2026-11-27
    device="cpu",
    probe=0.00483,
    text=0.18,
    token=1.67e-4,
    pair=3.1e-8,
    base_token=2.04e-4,
    base_pair=6.6e-8,
    decode=1.17e-7,
    lanczos=1.7e-8,
    network=1.78e-6,
    encode=3.3e-8,
    dtype="bfloat16",
)
# The embedded model on an H100 80GB HBM3, torch 2.11.0, 2026-11-28 (`measuring.measure`). Passes
# are so short that launching kernels is what takes time: pairs cost nothing yet.
CUDA = Coefficients(
    device="cuda",
    probe=3.58e-3,
    text=0.018,
    token=2.1e-5,
    pair=0.0,
    base_token=8.4e-6,
    base_pair=0.0,
    decode=9.7e-9,
    lanczos=3.4e-8,
    network=3.0e-7,
    encode=2.0e-8,
    dtype="bfloat16",
)
# The 1.3B model on an H100 80GB HBM3 with torch 2.11.0 and diffusers 0.42.1, bfloat16, random
# weights. Native passes: nine of docs/benchmarks.md (1.53 to 41.8 s, with and without full layers,
# K = 4 and 8), 2026-11-27 and 28; all lie within 3 %. Dense passes of 32,760 to 685,440 tokens lie
# within 7 % of 30 layers × (2.6e-7 s a token + 1.07e-11 s a pair), 2026-11-23 to 27. Text and
# decoding are the slower ones of two whole runs (docs/hardware.md), the probe the median of three,
# 2026-11-28. The rest is what `measuring.measure` found, 2026-11-27: there as well, with what it
# found for passes, and why that is not taken.
WAN_CUDA = replace(
    CUDA,
    probe=3.69e-3,
    text=0.86,
    token=5.4e-6,
    pair=3.13e-10,
    base_token=7.8e-6,
    base_pair=3.2e-10,
    decode=6.0e-8,
    lanczos=2.1e-8,
    network=3.2e-7,
    encode=3.3e-8,
)
# Operations counted on the layers' widths, at the 100 GFLOP/s that two cores were measured to keep
# up. Decoding is a lower bound: what a far narrower autoencoder of the same layout took.
WAN_CPU = replace(
    CPU,
    text=10.0,
    token=2.6e-2,
    pair=1.84e-6,
    base_token=2.6e-2,
    base_pair=1.84e-6,
    decode=7e-6,
)
COEFFICIENTS = {
    "embedded": {
        "cpu": CPU,
        "cpu bfloat16": CPU_BFLOAT16_AVX512,
        "cpu bfloat16 AMX": CPU_BFLOAT16_AMX,
        "cuda": CUDA,
    },
    "wan": {"cpu": WAN_CPU, "cuda": WAN_CUDA},
}


def coefficients(
    preset: str, device: str, dtype: str = "float32", amx: bool = False
) -> Coefficients:
    """What a unit of work of a preset's model takes on a kind of device, in the type that is
    computed in, with a CPU's units for that (AMX) or without, where that was measured."""
    kinds = COEFFICIENTS[preset]
    known = kinds.get(f"{device} {dtype}", kinds[device])
    return kinds.get(f"{device} {dtype} AMX", known) if amx else known


def full_pairs(grid: tuple[int, int, int]) -> int:
    """Query-key pairs of full attention over a grid t h w."""
    t, h, w = grid
    return (t * h * w) ** 2


def window_pairs(grid: tuple[int, int, int], windows: int) -> int:
    """Query-key pairs of windows × windows tubes over a grid t h w (eq. 6)."""
    t, h, w = grid
    rows = sum(size**2 for size in axis_sizes(h, min(windows, h)))
    columns = sum(size**2 for size in axis_sizes(w, min(windows, w)))
    return t * t * rows * columns


def native_pairs(grid: tuple[int, int, int], windows: int) -> float:
    """Query-key pairs of the three branches, mean of an even and an odd layer (eq. 12)."""
    t, h, w = grid
    half, quarter = (t, ceil(h / 2), ceil(w / 2)), (t, ceil(h / 4), ceil(w / 4))
    local = window_pairs(grid, windows) + window_pairs(grid, windows + 1)
    hierarchical = window_pairs(half, windows // 2) + window_pairs(half, windows // 2 + 1)
    return (local + hierarchical) / 2 + full_pairs(quarter)


def mean_pairs(job: Job) -> float:
    """Query-key pairs of a native forward pass, mean over all layers."""
    grid = job.grid(job.height, job.width)
    native = native_pairs(grid, job.windows)
    return native + job.full_share * (full_pairs(grid) - native)


def work(job: Job) -> dict[str, dict[str, float]]:
    """Units of work of each stage, named as in `Coefficients`."""
    forwards = job.steps * job.passes
    grid, base_grid = job.grid(job.height, job.width), job.grid(job.base_height, job.base_width)

    def denoise(grid: tuple[int, int, int], pairs: float, prefix: str) -> dict[str, float]:
        tokens = grid[0] * grid[1] * grid[2]
        return {f"{prefix}token": forwards * tokens, f"{prefix}pair": forwards * pairs}

    upscale: dict[str, float] = {"lanczos": job.pixels}
    if job.upscaler != "lanczos":  # the network comes first, Lanczos brings its result to size
        upscale["network"] = job.base_pixels
    stages: dict[str, dict[str, float]] = {
        "text": {"text": 1},
        "denoise": denoise(grid, mean_pairs(job), ""),
        "decode": {"decode": job.pixels},
        "base_denoise": denoise(base_grid, full_pairs(base_grid), "base_"),
        "base_decode": {"decode": job.base_pixels},
        "upscale": upscale,
    }
    if job.base_native == "on":
        stages["base_native_denoise"] = denoise(grid, full_pairs(grid), "base_")
        stages["base_native_decode"] = {"decode": job.pixels}
    # native, upscaled and both side by side, which is never wider than one 4K frame
    together = min(2 * job.pixels, 3840 * 1080 * job.num_frames)
    stages["encode"] = {"encode": 2 * job.pixels + together}
    if job.base_native == "on":
        stages["encode"]["encode"] += job.pixels
    return stages


def estimate(job: Job, coefficients: Coefficients) -> dict[str, float]:
    """Seconds of each stage of a run, in order."""
    return {
        stage: sum(units * getattr(coefficients, name) for name, units in parts.items())
        for stage, parts in work(job).items()
    }


def gpu_seconds(stages: Mapping[str, float]) -> float:
    """Seconds of the stages that need the accelerator: all but writing the files."""
    return sum(seconds for stage, seconds in stages.items() if stage != "encode")


def gpu_duration(stages: Mapping[str, float]) -> int:
    """Whole GPU seconds to ask for: the estimate with a margin for a slow start."""
    return ceil(10 + 1.3 * gpu_seconds(stages))


def fitting_tiers(duration: float) -> list[str]:
    """Kinds of visitors whose untouched daily quota starts a request of this many GPU seconds."""
    return [name for name, seconds in ZEROGPU_TIERS if duration <= seconds]


def fit(runs: Sequence[tuple[Job, Mapping[str, float]]], start: Coefficients) -> Coefficients:
    """Coefficients that explain measured runs best, relative to their length.

    Args:
        runs: Jobs and the seconds that each of their stages took.
        start: Coefficients that stay where no run has measured them.

    Raises:
        ValueError: without any run.
    """
    if not runs:
        raise ValueError("There is nothing to fit: give at least one measured run.")
    found: dict[str, float] = {}
    for names in (
        ("text",),
        ("token", "pair"),
        ("base_token", "base_pair"),
        ("decode",),
        ("network", "lanczos"),
        ("encode",),
    ):
        rows = [
            ([parts.get(name, 0.0) for name in names], seconds[stage])
            for job, seconds in runs
            for stage, parts in work(job).items()
            if names[-1] in parts and seconds.get(stage, 0.0) > 0
        ]
        if rows:
            found = dict(zip(names, _nonnegative(rows), strict=True)) | found
    return replace(start, **found)  # type: ignore[arg-type]


def _nonnegative(rows: Sequence[tuple[list[float], float]]) -> list[float]:
    """Least squares of the relative error without negative solutions: tries every subset."""
    matrix = np.array([units for units, _ in rows]) / np.array([[s] for _, s in rows])
    scale = np.maximum(matrix.max(axis=0), 1e-300)
    best, best_error = np.zeros(matrix.shape[1]), float(len(rows))
    for count in range(1, matrix.shape[1] + 1):
        for subset in combinations(range(matrix.shape[1]), count):
            columns = list(subset)
            part, *_ = np.linalg.lstsq(
                matrix[:, columns] / scale[columns], np.ones(len(rows)), rcond=1e-6
            )
            solution = np.zeros(matrix.shape[1])
            solution[columns] = part / scale[columns]
            error = float(((matrix @ solution - 1) ** 2).sum())
            if (part >= 0).all() and error < best_error - 1e-12:
                best, best_error = solution, error
    return [float(value) for value in best]


def probe(device: str, dtype: str = "float32") -> float:
    """Seconds that this machine takes for the work of which most of a model's is made, the best of
    several: a matrix product, on a GPU a large one, and attention."""
    import torch
    from torch.nn import functional

    rows, kind = MULTIPLY[device], getattr(torch, dtype)
    matrix = torch.ones(rows, rows, device=device, dtype=kind)
    heads = torch.ones(ATTEND, device=device, dtype=kind) if device == "cuda" else None
    best = float("inf")
    for _ in range(9 if heads is None else 4):
        began = perf_counter()
        result = matrix @ matrix
        if heads is not None:
            result = result.flatten()[0] + functional.scaled_dot_product_attention(
                heads, heads, heads
            )
        float(result.flatten()[0])  # reading a value waits for the device
        best = min(best, perf_counter() - began)
    return best


class Estimator:
    """Estimates for this machine: shipped coefficients, scaled by a probe and by finished runs."""

    def __init__(self, coefficients: Coefficients) -> None:
        self._coefficients = coefficients
        self._lock = Lock()

    @property
    def coefficients(self) -> Coefficients:
        return self._coefficients

    def calibrate(self, dtype: str | None = None) -> None:
        """Scales by a short probe of this machine, a fraction of a second.

        Args:
            dtype: What is computed in; None takes what the coefficients were measured in.
        """
        known = self._coefficients
        factor = probe(known.device, dtype or known.dtype) / known.probe
        self._rescale(min(max(factor, 0.2), 20.0))

    def expect(self, factor: float) -> None:
        """Scales by what is known of this machine without a probe."""
        self._rescale(factor)

    def observe(self, estimated: Mapping[str, float], measured: Mapping[str, float]) -> None:
        """Moves half of the way, in the logarithm, to what a finished run has taken."""
        on_gpu = self._coefficients.device == "cuda"
        stages = [
            stage
            for stage in estimated
            if measured.get(stage, 0) > 0 and not (on_gpu and stage == "encode")
        ]
        before, after = (sum(times[stage] for stage in stages) for times in (estimated, measured))
        if before > 0 and after > 0:
            self._rescale(exp(log(min(max(after / before, 0.1), 10.0)) / 2))

    def observe_stopped(
        self, estimated: Mapping[str, float], seconds: float, fraction: float
    ) -> None:
        """Learns from a run that was stopped because it took longer than it had asked for.

        Args:
            estimated: Seconds of its stages.
            seconds: How long it ran.
            fraction: How much of it was done then, by estimated time.
        """
        # A run that did not get through its first step tells little more than that it is slow.
        expected = sum(estimated.values()) * max(fraction, 0.1)
        if seconds > expected > 0:
            self._rescale(min(seconds / expected, 10.0))

    def estimate(self, job: Job) -> dict[str, float]:
        """Seconds of each stage of a run on this machine."""
        return estimate(job, self._coefficients)

    def _rescale(self, factor: float) -> None:
        with self._lock:
            self._coefficients = self._coefficients.scaled(factor)
