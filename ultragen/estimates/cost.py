"""What a run costs, in seconds by stage: an estimate before the click, from measured coefficients.

A denoising step costs a part that grows with the tokens (linear layers, norms, gates) and a part
that grows with the query-key pairs of attention, which is where windows save (§4.3, eq. 12-13).
Decoding, upscaling and encoding grow with the pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from statistics import fmean

from ..model.windows import attention_pairs, axis_sizes
from ..ops.strided_windows import Counts
from ..presets import EMBEDDED
from .coefficients import Coefficients

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

DECODED_BY_ALL = 0.04
"""Share of the operations of Wan's decoder that comes before its first upsampling, which each of
several processes computes for itself (counted)."""
ZEROGPU_TIERS = (("anonymous visitors", 80), ("free accounts", 200), ("PRO accounts", 1600))
"""Longest request in GPU seconds that an untouched daily quota starts, for a `large` GPU."""


def decoding_processes(model: str, processes: int) -> int:
    """How many of the processes that denoise a clip together decode it together, too.

    Args:
        model: Name of its preset: the embedded model's autoencoder is quick, and decodes in each.
        processes: That denoise.
    """
    return 1 if model == EMBEDDED.name else processes


@dataclass(frozen=True)
class Job:
    """Everything about a run that its cost depends on.

    Attributes:
        height: Generated rows in pixels.
        width: Generated columns in pixels.
        base_height: Rows in pixels of the base clip.
        base_width: Columns in pixels of the base clip.
        num_frames: Frames, 4n + 1.
        windows: K, windows on each axis in even layers; None where layers have T3-Video's.
        steps: Denoising steps.
        passes: Forward passes a step, one after the other: 2 with guidance, 1 without or where a
            second device takes the other one; a mean where guidance is computed in some steps.
        upscaler: `lanczos`, `network` or a file.
        base_native: `on` where the base model also runs at the full size.
        pixels_per_token: Rows, and columns, of pixels that a token covers.
        full_share: Share of the native model's layers that keep attention over all tokens.
        t3_windows: Numbers of windows of each layer that attends as T3-Video's do.
        processes: How many denoise the native clip together, in equal shares; what they exchange,
            and that shares are not quite equal, is not counted, see docs/parallel.md.
        decoding_processes: How many decode it together.
        base_forwards: Forward passes of a base clip, all steps; None as many as of the native one.
        composition: The smaller clip that is denoised before; None where there is none.
    """

    height: int
    width: int
    base_height: int
    base_width: int
    num_frames: int
    windows: int | None
    steps: int
    passes: float
    upscaler: str
    base_native: str
    pixels_per_token: int
    full_share: float = 0.0
    t3_windows: tuple[Counts, ...] = ()
    processes: int = 1
    decoding_processes: int = 1
    base_forwards: float | None = None
    composition: Job | None = None

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
    if job.windows is None:
        native = fmean(attention_pairs(grid, counts) for counts in job.t3_windows)
    else:
        native = native_pairs(grid, job.windows)
    return native + job.full_share * (full_pairs(grid) - native)


def work(job: Job) -> dict[str, dict[str, float]]:
    """Units of work of each stage, named as in `Coefficients`."""
    forwards = job.steps * job.passes
    base_forwards = forwards if job.base_forwards is None else job.base_forwards
    grid, base_grid = job.grid(job.height, job.width), job.grid(job.base_height, job.base_width)

    def denoise_base(grid: tuple[int, int, int]) -> dict[str, float]:
        pairs = full_pairs(grid)
        return {"base_token": base_forwards * prod(grid), "base_pair": base_forwards * pairs}

    native = {"token": forwards * prod(grid), "pair": forwards * mean_pairs(job)}
    decoded = DECODED_BY_ALL + (1 - DECODED_BY_ALL) / job.decoding_processes
    upscale: dict[str, float] = {"lanczos": job.pixels}
    if job.upscaler != "lanczos":  # the network comes first, Lanczos brings its result to size
        upscale["network"] = job.base_pixels
    stages: dict[str, dict[str, float]] = {
        "text": {"text": 1},
        "denoise": {name: units / job.processes for name, units in native.items()},
        "decode": {"decode": job.pixels * decoded},
        "base_denoise": denoise_base(base_grid),
        "base_decode": {"decode": job.base_pixels},
        "upscale": upscale,
    }
    if job.composition is not None:
        for name, units in work(job.composition)["denoise"].items():
            stages["denoise"][name] += units
    if job.base_native == "on":
        stages["base_native_denoise"] = denoise_base(grid)
        stages["base_native_decode"] = {"decode": job.pixels}
    # native, upscaled and both side by side, which is no wider and no larger than one 4K frame
    narrower = min(1.0, 1920 / job.width)
    together = min(2 * job.pixels * narrower**2, 3840 * 2160 * job.num_frames)
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
