"""The longest clips that a card takes, found by trying."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hardware_memory import allocated, forward, one_of_each
from hardware_plan import PIECES, Clip, Plan
from hardware_results import Entry, Results
from hardware_tables import fitted_values

from ultragen.benchmark.bench import free_memory
from ultragen.benchmark.machine import default_dtype
from ultragen.estimates.memory import RESERVE, VALUES_PER_TOKEN, WAN_PARAMETERS, Memory, Weights
from ultragen.hardware import is_out_of_memory
from ultragen.pipeline import UltraGenPipeline
from ultragen.weights.random import Noise, builders
from ultragen.weights.released import cast_weights


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
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
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
