"""What a second GPU saves of a guided step: both passes, with and without prompt, at once.

    python benchmarks/two_gpus.py --json two_gpus.json
    python benchmarks/two_gpus.py --case 1088x1920x81 --variant auto
    python benchmarks/two_gpus.py --tiny

Weights are random, in the true shapes of the 1.3B model. The first step of a run, which also copies
the weights and builds kernels, is not counted. The difference is that of the latents after all
steps, of which the largest is given too.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.attention_dispatch import attention_backend
from torch import Tensor

from ultragen.benchmark.cases import CASES, VARIANTS, Case, Family, Variant, arguments, build
from ultragen.benchmark.machine import card_name, default_dtype
from ultragen.pipeline import UltraGenPipeline
from ultragen.presets import WAN
from ultragen.sampling.guidance import Guidance

SIZES = ("2176x3840x29", "1088x1920x81")
LAYOUTS = ("auto", "released")


@dataclass(frozen=True)
class Result:
    """One size and layout, on one and on two devices.

    Attributes:
        case: Name of the size.
        variant: Name of the layout.
        one: Seconds of a guided step on one device.
        two: On two.
        difference: Largest difference of the latents.
        largest: Largest latent.
        peaks: Most bytes of memory on each GPU, on one and on two.
    """

    case: str
    variant: str
    one: float
    two: float
    difference: float
    largest: float
    peaks: tuple[list[int], list[int]]


def synchronize() -> None:
    for device in range(torch.cuda.device_count()):
        torch.cuda.synchronize(device)


def memory_peaks() -> list[int]:
    """Most bytes on each GPU since the last call."""
    peaks = []
    for device in range(torch.cuda.device_count()):
        peaks.append(torch.cuda.max_memory_allocated(device))
        torch.cuda.reset_peak_memory_stats(device)
    return peaks


def sample(
    pipe: UltraGenPipeline, case: Case, variant: Variant, device: str, steps: int
) -> tuple[Tensor, float]:
    """Latents after some guided steps, and the median seconds of a step but the first."""
    torch.manual_seed(0)
    given = arguments(case, variant, device, pipe.transformer.dtype)
    text = given["encoder_hidden_states"]
    embeds = {"prompt_embeds": text, "negative_prompt_embeds": torch.randn_like(text)}
    per_frame = case.tokens // case.latents[0]
    timesteps, sigmas = pipe.prepare_schedule(steps, per_frame, torch.device(device))
    synchronize()
    marks = [perf_counter()]

    def after_step(step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        synchronize()
        marks.append(perf_counter())
        return tensors

    latents = pipe.denoise(
        given["hidden_states"].float(),
        timesteps,
        sigmas,
        embeds,
        Guidance(WAN.guidance_scale),
        {"windows": variant.windows},
        after_step,
    )
    return latents, median([later - earlier for earlier, later in pairwise(marks)][1:])


def measure(
    pipe: UltraGenPipeline, case: Case, variant: Variant, devices: tuple[str, str], steps: int
) -> Result:
    """The same steps on one device and on two."""
    memory_peaks()
    expected, one = sample(pipe, case, variant, devices[0], steps)
    peaks = [memory_peaks()]
    pipe.enable_parallel_guidance(devices[1])
    found, two = sample(pipe, case, variant, devices[0], steps)
    peaks.append(memory_peaks())
    pipe.disable_parallel_guidance()
    difference = (found - expected).abs().max().item()
    return Result(
        case.name,
        variant.name,
        one,
        two,
        difference,
        expected.abs().max().item(),
        (peaks[0], peaks[1]),
    )


def sampler(variant: Variant, family: Family, device: str) -> UltraGenPipeline:
    """A pipeline that can do nothing but sample."""
    pipe = UltraGenPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        transformer=build(family, variant, device, default_dtype(device)),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def line(result: Result) -> str:
    """A result for people."""
    memory = (" + ".join(f"{peak / 2**30:.1f}" for peak in peaks) for peaks in result.peaks)
    return (
        f"{result.case}, {result.variant}: {result.one:.3f} s a guided step on one device, "
        f"{result.two:.3f} s on two, {result.one / result.two:.2f}×; difference "
        f"{result.difference:.2g} of {result.largest:.2g}; GiB {' → '.join(memory)}"
    )


def save(results: list[Result], options: argparse.Namespace, card: str) -> None:
    content = {
        "card": card,
        "torch": torch.__version__,
        "attention": options.attention,
        "steps": options.steps,
        "results": [asdict(result) for result in results],
    }
    options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--case", choices=SIZES, action="append", help="May be repeated.")
    parser.add_argument("--variant", choices=LAYOUTS, action="append", help="May be repeated.")
    parser.add_argument("--steps", type=int, default=2, help="Of each run; the first is no result.")
    parser.add_argument("--attention", default="native", help="One of diffusers' back ends.")
    parser.add_argument("--tiny", action="store_true", help="Toys, on a CPU.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.steps < 2:
        parser.error(f"--steps {options.steps} measures nothing: choose 2 or more.")
    if not options.tiny and torch.cuda.device_count() < 2:
        parser.error(f"{torch.cuda.device_count()} GPUs are here, 2 are needed: choose --tiny.")
    return options


def main() -> None:
    options = parse()
    family: Family = "tiny" if options.tiny else "wan"
    names = ["tiny"] if options.tiny else options.case or SIZES
    devices = ("cpu", "cpu") if options.tiny else ("cuda:0", "cuda:1")
    card = card_name(torch.device(devices[0]).type)
    print(f"{' and '.join(devices)}: {card}, torch {torch.__version__}", flush=True)
    results: list[Result] = []
    with torch.no_grad(), attention_backend(options.attention):
        for variant in VARIANTS[family]:
            if variant.name not in (options.variant or LAYOUTS):
                continue
            pipe = sampler(variant, family, devices[0])
            for name in names:
                results.append(measure(pipe, CASES[name], variant, devices, options.steps))
                print(line(results[-1]), flush=True)
                if options.json:
                    save(results, options, card)


if __name__ == "__main__":
    main()
