"""What several GPUs save of one clip: forward passes and decoding, each beside one GPU.

    torchrun --nproc_per_node 2 benchmarks/context_parallel.py --json context_parallel.json
    torchrun --nproc_per_node 2 benchmarks/context_parallel.py --case 1088x1920x81 --variant paper
    torchrun --nproc_per_node 2 benchmarks/context_parallel.py --tiny
    torchrun --nproc_per_node 4 benchmarks/context_parallel.py --only together
    torchrun --nproc_per_node 4 benchmarks/context_parallel.py --guided --no-decoding
    python benchmarks/context_parallel.py --only one
    python benchmarks/context_parallel.py --plan 2 3 4 8
    python benchmarks/context_parallel.py --step 2 4 8

Weights are random, in the true shapes of the 1.3B model. The first process runs alone, then all
run together; the difference is that of the results, as a share of their size. `--only` measures one
of both, as `scaling.py` does. `--plan` needs no GPU: it counts what so many processes exchange and
how even their work is. Nor does `--step`, which makes seconds of a guided step of that.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan, ContextParallelConfig
from torch import Tensor

from ultragen.benchmark.cases import CASES, VARIANTS, Case, Variant, arguments, build
from ultragen.benchmark.machine import card_name, default_dtype
from ultragen.cli import console
from ultragen.model import wan_1_3b
from ultragen.model.shared_layouts import Move, SharedHeads, SharedWindows, Shares
from ultragen.model.window_plan import WindowRule, plan_layout
from ultragen.model.windows import attention_pairs
from ultragen.ops.exchange import Member
from ultragen.runs.process_group import joined, processes
from ultragen.sampling.process_halves import ProcessHalves
from ultragen.sampling.wan_decoding import decode_wan

SIZES = ("1088x1920x81", "2176x3840x29", "2176x3840x81")
MEASURED = ("1088x1920x81", "2176x3840x81")
LAYOUTS = ("paper", "released")
HEADS = wan_1_3b.TRANSFORMER["num_attention_heads"]
ALONE = {
    ("1088x1920x81", "paper"): 1.57,
    ("1088x1920x81", "released"): 3.24,
    ("2176x3840x81", "paper"): 12.9,
    ("2176x3840x81", "t3"): 5.42,
    ("2176x3840x81", "released"): 41.8,
}
"""Seconds of a forward pass of one H200 (2026-11-29, docs/wan.md), the last one of an H100
(docs/benchmarks.md)."""
EXCHANGE_RATE = 300.0
"""Gigabytes a second that each of two H200s got from the other one in an all-to-all of half of
685,440 tokens, over NVLink: 1.64 ms (2026-11-29)."""
ATTENTION_RATE = 600e12
"""Operations a second of cuDNN's attention there (docs/benchmarks.md)."""
TINY_VAE = {"base_dim": 8, "z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}


@dataclass(frozen=True)
class Result:
    """One thing that is computed, by one process and by all.

    Attributes:
        case: Name of the size.
        what: Name of the layout, or `decoding`.
        processes: How many they are.
        one: Seconds of one; None if that was left out.
        all: Seconds of all together; None if that was left out.
        difference: Root mean square of the difference, as a share of the result's; None without
            both.
        peaks: Most bytes of memory on the first GPU, for what was measured.
    """

    case: str
    what: str
    processes: int
    one: float | None
    all: float | None
    difference: float | None
    peaks: tuple[int, ...]

    def __str__(self) -> str:
        words = [f"{self.one:.4g} s by one"] if self.one else []
        words += [f"{self.all:.4g} s by {self.processes}"] if self.all else []
        if self.one and self.all:
            words += [f"{self.one / self.all:.2f}×", f"difference {self.difference:.1e}"]
        memory = " → ".join(f"{peak / 2**30:.1f}" for peak in self.peaks)
        return f"{self.case}, {self.what}: {', '.join(words)}; GiB {memory}"


# Measuring


def timed(call: Callable[[], Tensor], runs: int, cuda: bool) -> tuple[Tensor, float, int]:
    """The result, the median seconds of some runs after a first one, and most bytes of memory."""
    seconds = []
    for number in range(runs + 1):
        if cuda and number == 1:
            torch.cuda.reset_peak_memory_stats()
        began = perf_counter()
        found = call()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(perf_counter() - began)
    return found, median(seconds[1:]), torch.cuda.max_memory_allocated() if cuda else 0


def beside_one(
    case: Case,
    what: str,
    one: Callable[[], Tensor],
    together: Callable[[], Tensor],
    options: argparse.Namespace,
) -> Result | None:
    """Measures both, or the one that was asked for; a result in the first process alone."""
    cuda, rank, count = torch.cuda.is_available(), 0, 1
    alone = everyone = None
    if dist.is_initialized():
        rank, count = dist.get_rank(), dist.get_world_size()
    if rank == 0 and options.only != "together":
        alone = timed(one, options.runs, cuda)
    if options.only != "one":
        dist.barrier()
        everyone = timed(together, options.runs, cuda)
    if rank > 0:
        return None
    difference = None
    if alone and everyone:
        expected = alone[0].float()
        apart = (everyone[0].float() - expected).square().mean() / expected.square().mean()
        difference = float(apart) ** 0.5
    measured = [found for found in (alone, everyone) if found]
    return Result(
        case.name,
        what,
        count,
        alone[1] if alone else None,
        everyone[1] if everyone else None,
        difference,
        tuple(peak for _, _, peak in measured),
    )


def forward(
    case: Case, variant: Variant, device: str, options: argparse.Namespace
) -> Result | None:
    """A forward pass, or both of a guided step."""
    torch.manual_seed(0)
    model = build(case.family, variant, device, default_dtype(device))
    given = arguments(case, variant, device, model.dtype)
    other = given | {"encoder_hidden_states": -given["encoder_hidden_states"]}
    shared, halves = False, None

    def cond() -> Tensor:
        return model(**given)[0]

    def uncond() -> Tensor:
        return model(**other)[0]

    def call() -> Tensor:
        return torch.stack([cond(), uncond()]) if options.guided else cond()

    def together() -> Tensor:
        nonlocal shared, halves
        if not shared:
            config = ContextParallelConfig(ulysses_degree=dist.get_world_size())
            model.enable_parallelism(config=config)
            halves = ProcessHalves.of_all() if options.guided else None
            shared = True
        return call() if halves is None else torch.stack(halves.guided(model, cond, uncond))

    what = f"{variant.name}, guided" if options.guided else variant.name
    return beside_one(case, what, call, together, options)


def decoding(case: Case, device: str, options: argparse.Namespace) -> Result | None:
    """The way from latents to frames by Wan's autoencoder."""
    torch.manual_seed(0)
    settings = TINY_VAE if case.family == "tiny" else wan_1_3b.VAE
    vae = AutoencoderKLWan(**settings).to(device, default_dtype(device)).eval()
    latents = torch.randn(1, vae.config.z_dim, *case.latents, device=device, dtype=vae.dtype)

    def call(group: dist.ProcessGroup | None = None) -> Tensor:
        # Frames leave the GPU as they come, as in a run.
        pieces = [piece.cpu() for piece in decode_wan(vae, latents, group)]
        return torch.cat(pieces, dim=2)

    return beside_one(case, "decoding", call, lambda: call(dist.group.WORLD), options)


# Planning


def moved(move: Move, rank: int) -> int:
    """Tokens that a process gets from others."""
    meetings = (
        source.meet(target)
        for giver, sources in enumerate(move.sources)
        for source in sources
        for target in move.targets[rank]
        if giver != rank
    )
    return sum(area.size[0] * area.size[1] for area in meetings if area)


def exchanged(at: SharedWindows | SharedHeads, rank: int, frames: int) -> float:
    """Tokens, of all features, that a process gets from others in one branch or full layer."""
    if isinstance(at, SharedWindows):
        return frames * (moved(at.given, rank) + moved(at.taken, rank))
    heads, own = at.heads[-1].stop, len(at.heads[rank])
    height, width = at.homes[rank].size
    back, forth = at.wanted[rank].size, at.size[0] * at.size[1] - height * width
    return frames * (3 * forth * own + back[0] * back[1] * (heads - own)) / heads


@dataclass(frozen=True)
class Planned:
    """What processes that share out a frame exchange, and how even their work is.

    Attributes:
        exchanged: Gigabytes that the process which gets most gets in an even, an odd or a full
            layer, in bfloat16.
        windows: Most attention within windows that one has in an even and in an odd layer, beside
            the mean.
        tokens: Most tokens that one has, beside the mean.
    """

    exchanged: dict[str, float]
    windows: dict[str, float]
    tokens: float

    @classmethod
    def of(cls, case: Case, count: int, rule: WindowRule) -> Planned:
        """For so many processes, and K = 4."""
        frames, height, width = case.latents
        grid = (frames, height // 2, width // 2)
        shares = [Shares.of(Member(None, rank, count), grid) for rank in range(count)]
        tokens, windows = {}, {}
        for parity in ("even", "odd"):
            layout = plan_layout(grid, 4, parity == "odd", rule, torch.zeros(1), no_rotary)
            layouts = [share.windows(layout, wan_1_3b.WIDTH, HEADS) for share in shares]
            tokens[parity] = [
                sum(exchanged(x, rank, frames) for x in (at.local, at.hierarchical, at.global_))
                for rank, at in enumerate(layouts)
            ]
            work = [
                sum(
                    (frames * area.size[0] * area.size[1]) ** 2
                    for x in (at.local, at.hierarchical)
                    for area in x.windows[rank]
                )
                for rank, at in enumerate(layouts)
            ]
            windows[parity] = max(work) * count / sum(work)
        full = [share.full(no_rotary(*grid), HEADS) for share in shares]
        tokens["full"] = [exchanged(at, rank, frames) for rank, at in enumerate(full)]
        homes = [home.size[0] * home.size[1] for home in shares[0].homes]
        return cls(
            {kind: max(each) * 2 * wan_1_3b.WIDTH / 1e9 for kind, each in tokens.items()},
            windows,
            max(homes) * count / sum(homes),
        )


def plan(case: Case, count: int) -> str:
    """What the processes exchange a layer, and how uneven their work is."""
    found = Planned.of(case, count, WindowRule())
    layers = "; ".join(
        f"{parity} {found.exchanged[parity]:.3f} GB, windows {uneven:.2f}"
        for parity, uneven in found.windows.items()
    )
    return (
        f"{case.name}, {count} processes: a layer brings each at most: {layers}; full "
        f"{found.exchanged['full']:.3f} GB; tokens {found.tokens:.2f}"
    )


def step(case: Case, variant: Variant, count: int, alone: float) -> str:
    """A guided step by so many GPUs, beside two passes of one.

    Attention by heads is taken at its usual rate, and waits for the process with most heads; of
    all else, for the one with most tokens or windows.

    Args:
        case: The size.
        variant: The layout.
        count: GPUs.
        alone: Seconds of a forward pass of one, as measured.
    """
    halves = 2 - count % 2
    each, passes = count // halves, 2 // halves
    settings = {**wan_1_3b.TRANSFORMER, **variant.config}
    full, t3 = settings.get("full_attention_layers", ()), settings.get("t3_windows", ())
    planned = Planned.of(case, each, WindowRule(uneven=settings.get("uneven", "split")))
    layers = range(settings["num_layers"])
    kinds = ["full" if t3 or i in full else ("even", "odd")[i % 2] for i in layers]
    frames, height, width = case.latents
    grid = (frames, height // 2, width // 2)
    pairs = [
        attention_pairs(grid, t3[i % len(t3)]) if t3 else case.tokens**2
        for i, kind in enumerate(kinds)
        if kind == "full"
    ]
    by_heads = 4 * sum(pairs) * wan_1_3b.WIDTH / ATTENTION_RATE
    uneven = planned.tokens if t3 else max(planned.tokens, *planned.windows.values())
    computed = by_heads * -(-HEADS // each) / HEADS + (alone - by_heads) * uneven / each
    output = 2 * settings["out_channels"] * frames * height * width / 1e9
    moved = sum(planned.exchanged[kind] for kind in kinds) + output * (each - 1) / each
    moved = passes * moved + output * (halves - 1)
    seconds = passes * computed + moved / EXCHANGE_RATE
    return (
        f"{case.name}, {variant.name}: a guided step by {count}, {halves} × {each}: "
        f"{moved:.2f} GB in {1000 * moved / EXCHANGE_RATE:.0f} ms, together {seconds:.2f} s, "
        f"{2 * alone / seconds:.2f}×"
    )


def no_rotary(frames: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    table = torch.zeros(frames * height * width, 1)
    return table, table


# The command


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--case", choices=SIZES, action="append", help="May be repeated.")
    parser.add_argument("--variant", choices=LAYOUTS, action="append", help="May be repeated.")
    parser.add_argument("--runs", type=int, default=3, help="Of which the median counts.")
    parser.add_argument("--no-decoding", action="store_true", help="Forward passes alone.")
    parser.add_argument("--no-layers", action="store_true", help="Decoding alone.")
    parser.add_argument("--guided", action="store_true", help="Both passes of a guided step.")
    parser.add_argument("--only", choices=("one", "together"), help="Not the other beside it.")
    parser.add_argument("--tiny", action="store_true", help="Toys, on a CPU too.")
    parser.add_argument("--plan", type=int, nargs="+", help="Counts for so many processes.")
    parser.add_argument("--step", type=int, nargs="+", help="A guided step by so many.")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(words)


@torch.no_grad()
def main(words: Sequence[str]) -> int:
    """Reads the command line; returns the exit code."""
    options = parse(words)
    cases = [CASES[name] for name in (["tiny"] if options.tiny else options.case or MEASURED)]
    if options.plan:
        for case in cases:
            for count in options.plan:
                print(plan(case, count))
        return 0
    if options.step:
        for case in cases:
            for variant in VARIANTS[case.family]:
                if (case.name, variant.name) in ALONE:
                    for count in options.step:
                        print(step(case, variant, count, ALONE[case.name, variant.name]))
        return 0
    if (processes() == 1) != (options.only == "one"):
        raise ValueError(
            "Start it with torchrun --nproc_per_node 2, with --only one by itself, or choose "
            "--plan 2 or --step 2."
        )
    with joined() if options.only != "one" else nullcontext(0) as rank:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        results: list[dict[str, Any]] = []
        for result in measure(cases, options, device):
            if rank == 0 and result is not None:
                print(result, flush=True)
                results.append(asdict(result))
        if rank == 0 and options.json:
            content = {"card": card_name(device), "torch": torch.__version__, "results": results}
            options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(cases: Sequence[Case], options: argparse.Namespace, device: str) -> Any:
    """One result after the other."""
    for case in cases:
        for variant in VARIANTS[case.family]:
            if variant.name in (options.variant or LAYOUTS) and not options.no_layers:
                yield forward(case, variant, device, options)
        if not options.no_decoding:
            yield decoding(case, device, options)


if __name__ == "__main__":
    sys.exit(console.run(lambda: main(sys.argv[1:])))
