"""What diffusers' caches and guidance in an interval save on the embedded model, and how far the
clips drift: seconds of denoising, and the distance to the same clips without either.

    OMP_NUM_THREADS=1 python benchmarks/caching.py --json caching.json --markdown caching.md

Each prompt is run with every variant in turn, and without any first and last, so that what slows
the machine slows all of them. On a CPU with one thread, seconds are those of this program alone.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from diffusers import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from PIL import Image
from torch import Tensor

from ultragen.benchmark.machine import card_name
from ultragen.pipeline import UltraGenPipeline
from ultragen.presets import CACHES, EMBEDDED, EMBEDDED_MODEL, PROMPTS
from ultragen.sampling.caches import cache_config, computed_passes
from ultragen.training.stages.losses import psnr

NONE = "none"
CALIBRATION = "golden dunes at noon, a clear sky"  # none of the prompts that are measured
FEATURES = [r"blocks\.\d+\.(attn[12]|ffn)"]


@dataclass(frozen=True, eq=False)
class Variant:
    """One way to save passes or blocks.

    Attributes:
        name: In the table.
        cache: Configuration of a cache, or None.
        settings: Of the run, beside those that all share.
    """

    name: str
    cache: Any = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Row:
    """What a variant did, a number for each run.

    Attributes:
        name: Of the variant.
        seconds: Of denoising.
        blocks: Blocks whose feed-forward network was computed, as a share of those without cache.
        error: Of the latents, relative to those without cache.
        psnr: Of the frames, in dB, over those without cache; None where they are the same.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    blocks: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    psnr: list[float | None] = field(default_factory=list)


class Runner:
    """Runs one size with the embedded model.

    Args:
        arguments: Of the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pipe = UltraGenPipeline.from_pretrained(EMBEDDED_MODEL).to(self.device)
        self.pipe.set_progress_bar_config(disable=True)
        self.settings = {
            "height": arguments.height,
            "width": arguments.width,
            "num_frames": arguments.frames,
            "num_inference_steps": arguments.steps,
            "guidance_scale": arguments.guidance,
            "negative_prompt": EMBEDDED.negative_prompt,
            "output_type": "latent",
        }
        self.calls = 0
        for block in self.pipe.transformer.blocks:
            # Inside of all that a cache replaces.
            block.ffn.net[0].register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.calls += 1

    def seconds(self) -> float:
        """A clock that has waited for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return process_time() if one_thread(self.device) else perf_counter()

    def __call__(self, prompt: str, variant: Variant) -> tuple[Tensor, float, int]:
        """Latents, seconds and computed blocks of a clip."""
        if variant.cache is not None:
            self.pipe.transformer.enable_cache(variant.cache)
        self.calls, began = 0, self.seconds()
        latents = self.pipe(
            prompt,
            **(self.settings | variant.settings),
            generator=torch.Generator().manual_seed(0),
        ).frames
        seconds = self.seconds() - began
        if variant.cache is not None:
            self.pipe.transformer.disable_cache()
        return latents, seconds, self.calls

    def magnitudes(self) -> list[float]:
        """How the blocks' sum changes from step to step, for MagCache: the mean of the passes with
        and without prompt."""
        steps, printed = self.settings["num_inference_steps"], io.StringIO()
        with redirect_stdout(printed):  # diffusers gives them away in no other way
            config = MagCacheConfig(num_inference_steps=steps, calibrate=True)
            self(CALIBRATION, Variant("calibration", config))
        lines = printed.getvalue().splitlines()
        found = [json.loads(line) for line in lines if line.startswith("[1.0,")]
        return [fmean(step) for step in zip(*found, strict=True)]


def one_thread(device: str) -> bool:
    return device == "cpu" and torch.get_num_threads() == 1


def variants(runner: Runner) -> list[Variant]:
    """All that is measured, in order."""
    steps, ratios = runner.settings["num_inference_steps"], runner.magnitudes()

    def mag(threshold: float) -> MagCacheConfig:
        return MagCacheConfig(threshold, num_inference_steps=steps, mag_ratios=ratios)

    def taylor(interval: int, **options: Any) -> TaylorSeerCacheConfig:
        return TaylorSeerCacheConfig(interval, taylor_factors_dtype=torch.float32, **options)

    def guided(low: float, high: float, cache: Any = None, name: str = "") -> Variant:
        settings = {"guidance_interval": (low, high)}
        return Variant(f"guidance in ({low:g}, {high:g}]{name}", cache, settings)

    none, fewer = Variant(NONE), computed_passes("taylor-2", steps)
    by_choice = [Variant(cache, cache_config(cache)) for cache in CACHES if cache != "off"]
    return [
        none,
        Variant("first block, 0.2", FirstBlockCacheConfig(0.2)),
        Variant("first block, 0.3", FirstBlockCacheConfig(0.3)),
        Variant("MagCache, 0.06", mag(0.06)),
        Variant("MagCache, 0.24", mag(0.24)),
        Variant("SeaCache, 0.25", SeaCacheConfig(0.25)),
        Variant("TaylorSeer, attention", taylor(2)),
        Variant("TaylorSeer, attention and FFN", taylor(2, cache_identifiers=FEATURES)),
        Variant("TaylorSeer, whole model", taylor(2, use_lite_mode=True)),
        *by_choice,
        Variant(f"{fewer} steps", settings={"num_inference_steps": fewer}),
        guided(0, 0.98),
        guided(0.3, 1),
        guided(0.6, 1),
        guided(0.6, 1, taylor(2, cache_identifiers=FEATURES), ", TaylorSeer, attention and FFN"),
        *(guided(0.6, 1, choice.cache, f", {choice.name}") for choice in by_choice),
        none,
    ]


def measure(
    runner: Runner, found: list[Variant], prompts: list[str], pictures: Path | None
) -> list[Row]:
    """Runs every variant with every prompt; says each result as it comes."""
    rows = {variant.name: Row(variant.name) for variant in found}
    for number, prompt in enumerate(prompts):
        print(f"{number + 1} of {len(prompts)}: {prompt}", flush=True)
        expected: tuple[Tensor, np.ndarray, int] | None = None
        for variant in found:
            latents, seconds, calls = runner(prompt, variant)
            frames = runner.pipe.decode(latents, "uint8")
            plain, shown, all_calls = expected = expected or (latents, frames, calls)
            row = rows[variant.name]
            row.seconds.append(seconds)
            row.blocks.append(calls / all_calls)
            error, found_psnr = drift((latents, frames), (plain, shown))
            row.error.append(error)
            row.psnr.append(found_psnr)
            print(
                f"  {row.name:48} {seconds:6.1f} s  {row.blocks[-1]:4.0%} of the blocks  "
                f"latents {row.error[-1]:.3f}  {decibels(row.psnr[-1:])} dB",
                flush=True,
            )
            if pictures is not None:
                name = "".join(c if c.isalnum() else "-" for c in row.name)
                middle = frames[0, frames.shape[1] // 2]
                Image.fromarray(middle).save(pictures / f"{number}-{name}.png")
    return list(rows.values())


def drift(
    clip: tuple[Tensor, np.ndarray], plain: tuple[Tensor, np.ndarray]
) -> tuple[float, float | None]:
    """How far a clip is from another one, both as latents and frames in 0..255: the error of the
    latents, relative to the other's, and the frames' PSNR in dB; None where they are the same."""
    error = ((clip[0] - plain[0]).norm() / plain[0].norm()).item()
    difference = torch.from_numpy(clip[1].astype(np.float32) - plain[1]) / 255
    return error, psnr(difference).item() if difference.any() else None


def decibels(values: list[float | None]) -> str:
    """Mean of those clips that differ."""
    different = [value for value in values if value is not None]
    return f"{fmean(different):.1f}" if different else "∞"


def table(rows: list[Row]) -> str:
    """Means over the prompts, as Markdown."""
    lines = [
        "| | denoising, s | speed-up | blocks | error of the latents | PSNR, dB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    without = fmean(rows[0].seconds)
    for row in rows:
        seconds = fmean(row.seconds)
        drift = f"{fmean(row.error):.3f} | {decibels(row.psnr)}" if row.name != NONE else "– | –"
        saved = f"{seconds:.1f} | {without / seconds:.2f}× | {fmean(row.blocks):.0%}"
        lines.append(f"| {row.name} | {saved} | {drift} |")
    return "\n".join(lines) + "\n"


def save(rows: list[Row], heading: str, arguments: argparse.Namespace) -> None:
    if arguments.json:
        content = {"heading": heading, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if arguments.markdown:
        arguments.markdown.write_text(f"{heading}\n\n{table(rows)}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for name, value in (("height", 544), ("width", 960), ("frames", 5), ("prompts", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--steps", type=int, default=EMBEDDED.num_inference_steps)
    parser.add_argument("--guidance", type=float, default=EMBEDDED.guidance_scale)
    parser.add_argument("--only", help="Variants whose names match this expression.", default="")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--pictures", type=Path, help="Folder for the middle frames.")
    arguments = parser.parse_args()
    if arguments.pictures:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
    runner = Runner(arguments)
    heading = (
        f"{arguments.height} × {arguments.width} × {arguments.frames} frames, {arguments.steps} "
        f"steps, guidance {arguments.guidance:g}, {arguments.prompts} prompts; "
        f"{card_name(runner.device)}, torch {torch.__version__}"
    )
    print(heading, flush=True)
    found = [v for v in variants(runner) if v.name == NONE or re.search(arguments.only, v.name)]
    if arguments.guidance <= 1:  # an interval of it would change nothing
        found = [v for v in found if "guidance_interval" not in v.settings]
    rows = measure(runner, found, list(PROMPTS[: arguments.prompts]), arguments.pictures)
    print(table(rows))
    save(rows, heading, arguments)


if __name__ == "__main__":
    main()
