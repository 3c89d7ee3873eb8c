"""What this machine can do at best: matrix products, attention by every back end, and its name."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from statistics import median
from time import perf_counter

import torch
from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn
from torch import Tensor

from .. import __version__
from ..files import first_line
from .parts import ATTENTION, device_clock

# What keeps the numbers of a bf16 attention. Each is tried, because whether it imports says little
# about whether it runs here; `flex` is left out, since it has to be compiled to be of any use.
BACKENDS = (
    "native",
    "_native_cudnn",
    "_native_flash",
    "_native_efficient",
    "flash",
    "_flash_3",
    "xformers",
)
LARGEST_ERROR = 0.05  # of the largest value, where a back end counts as wrong
LIBRARIES = ("torch", "diffusers", "transformers")


@dataclass(frozen=True)
class Probe:
    """Sizes that keep a device busy for a moment.

    Attributes:
        matrix: Rows of the square matrices.
        tokens: Queries, and keys, of the attention.
        heads: Attention heads.
        head_dim: Features of a head.
        seconds: Shortest time to measure for, so that the clock frequency settles.
    """

    matrix: int
    tokens: int
    heads: int
    head_dim: int
    seconds: float


# Heads as Wan and the embedded model have them.
PROBES = {
    "cuda": Probe(matrix=8192, tokens=65536, heads=12, head_dim=128, seconds=1.0),
    "cpu": Probe(matrix=768, tokens=1024, heads=5, head_dim=64, seconds=0.05),
}


@dataclass(frozen=True)
class Trial:
    """One attention back end on this machine.

    Attributes:
        backend: Its name in diffusers.
        rate: Operations a second; 0 where it can't be used.
        reason: Why it can't be used.
    """

    backend: str
    rate: float
    reason: str = ""


@dataclass(frozen=True)
class Machine:
    """Where and with what a benchmark ran.

    Attributes:
        device: `cpu` or `cuda`.
        card: Name of the accelerator or processor.
        date: When it began, UTC.
        versions: Each library's version, by its name.
        dtype: What the models compute in.
        matrix_rate: Operations a second of a matrix product.
        attention: All back ends that were tried, the fastest first.
    """

    device: str
    card: str
    date: str
    versions: dict[str, str]
    dtype: str
    matrix_rate: float
    attention: tuple[Trial, ...]

    @property
    def backend(self) -> str:
        """The fastest attention back end."""
        return self.attention[0].backend

    def floor(self, operations: dict[str, int]) -> float:
        """Seconds that operations by part take at the rates of this machine, if nothing else took
        any time."""
        return sum(count / self.rate(part) for part, count in operations.items())

    def rate(self, part: str) -> float:
        """Operations a second that a part could reach."""
        return self.attention[0].rate if part.endswith(ATTENTION) else self.matrix_rate


def default_dtype(device: str) -> torch.dtype:
    """What the models compute in on a device, with or without its number."""
    return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32


def survey(device: str) -> Machine:
    """Measures what the machine can do; takes some seconds on a GPU."""
    probe, dtype = PROBES[device], default_dtype(device)
    names = {library: version(library) for library in LIBRARIES}
    if device == "cuda":
        names["cuda"] = str(torch.version.cuda)
    return Machine(
        device=device,
        card=card_name(device),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        versions={"ultragen": __version__, "python": platform.python_version(), **names},
        dtype=str(dtype).removeprefix("torch."),
        matrix_rate=matrix_rate(device, dtype, probe),
        attention=try_backends(device, dtype, probe),
    )


def card_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    threads, cores = torch.get_num_threads(), os.cpu_count()
    return f"CPU {platform.machine()}, {threads} threads on {cores} cores"


def sustained(call: Callable[[], object], device: str, seconds: float) -> float:
    """Median seconds of a call that is repeated for a while, after a warm-up."""
    clock = device_clock(device)
    call()
    clock.finish()
    times: list[float] = []
    began = perf_counter()
    while len(times) < 3 or perf_counter() - began < seconds:
        first = clock.mark()
        call()
        second = clock.mark()
        clock.finish()
        times.append(clock.between(first, second))
    return median(times)


def matrix_rate(device: str, dtype: torch.dtype, probe: Probe) -> float:
    """Operations a second of a square matrix product."""
    a, b = torch.randn(2, probe.matrix, probe.matrix, device=device, dtype=dtype).unbind()
    return 2 * probe.matrix**3 / sustained(lambda: a @ b, device, probe.seconds)


def try_backends(device: str, dtype: torch.dtype, probe: Probe) -> tuple[Trial, ...]:
    """Runs every attention back end once it gives what the first one gives; the fastest first.

    Raises:
        RuntimeError: if none of them works.
    """
    qkv = torch.randn(3, 1, probe.tokens, probe.heads, probe.head_dim, device=device, dtype=dtype)
    query, key, value = qkv.unbind()
    operations = 4 * probe.tokens**2 * probe.heads * probe.head_dim
    expected: Tensor | None = None
    trials = []
    for name in BACKENDS:
        try:
            with attention_backend(name):
                found = dispatch_attention_fn(query, key, value)
                expected = found if expected is None else expected
                error = ((found - expected).abs().max() / expected.abs().max()).item()
                if not error < LARGEST_ERROR:
                    raise ValueError(f"differs from {BACKENDS[0]} by {error:.2g}")
                seconds = sustained(
                    lambda: dispatch_attention_fn(query, key, value), device, probe.seconds
                )
            trials.append(Trial(name, operations / seconds))
        except Exception as error:  # each library raises kinds of its own
            trials.append(Trial(name, 0.0, first_line(error)[:120]))
    trials.sort(key=lambda trial: -trial.rate)
    if not trials[0].rate:
        raise RuntimeError(f"No attention back end works here: {trials[0].reason}.")
    return tuple(trials)
