"""Where the cost of a forward pass goes: hooks on modules, and a profile function that sees which
functions are called. The model's code stays as it is.

Every moment belongs to the innermost part that is being computed, so that parts never overlap and
sum to the pass they were taken from.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from contextlib import ExitStack
from itertools import pairwise
from time import perf_counter
from types import FrameType
from typing import Any, Protocol

import torch
from diffusers.models.attention_dispatch import attention_backend
from torch.nn import Module
from torch.utils.flop_counter import FlopCounterMode

from ..model.attention import UltraGenAttention
from ..model.t3_attention import T3Attention

ATTENTION = " attention"
REST = "embeddings, layout and head"
PARTS = (
    "projections",
    "low-rank updates",
    "full attention",
    "local attention",
    "hierarchical attention",
    "global attention",
    "T3 attention",
    "compression",
    "decompression",
    "resizing",
    "gates and fusion",
    "query and key norms",
    "rotary positions",
    "window order",
    "cross attention",
    "cross-attention projections",
    "feed-forward",
    "modulation and norms",
    REST,
)
"""All parts, in the order of the tables."""

MODULES = (
    (r"blocks\.\d+", "modulation and norms"),
    (r"blocks\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)", "projections"),
    (r"blocks\.\d+\.attn1\.norm_[qk]", "query and key norms"),
    (r"blocks\.\d+\.attn1\.branches\.\w+\.lora_[qkv]\.lora_[AB]", "low-rank updates"),
    (r"blocks\.\d+\.attn1\.branches\.\w+\.compression", "compression"),
    (r"blocks\.\d+\.attn1\.branches\.\w+\.decompression", "decompression"),
    (r"blocks\.\d+\.attn2", "cross-attention projections"),
    (r"blocks\.\d+\.ffn", "feed-forward"),
)
"""Names of modules, and the parts that they are."""

FUNCTIONS = {
    "diffusers.models.attention_dispatch.dispatch_attention_fn": ATTENTION,
    "ultragen.ops.triton_whole_tiles.attention": ATTENTION,
    "ultragen.ops.triton_whole_tiles.merge": "window order",
    "diffusers.models.transformers.transformer_wan.WanAttnProcessor.__call__.<locals>."
    "apply_rotary_emb": "rotary positions",
    "ultragen.ops.rotary_norm.apply_rotary": "rotary positions",
    "ultragen.ops.interpolation.resize": "resizing",
    "ultragen.ops.decompress.decompress": "decompression",
    "ultragen.model.attention.WindowAttnProcessor._attend": "window order",
    "ultragen.ops.linear.updated_linear": "projections",
    "ultragen.ops.window_order.split_windows": "window order",
    "ultragen.ops.window_order.merge_windows": "window order",
    "ultragen.ops.triton_decompress.decompress_and_fuse": "decompression",
    "ultragen.ops.triton_rotary_norm.rotary_norm": "query and key norms",
}
"""Functions, and the parts that they are; the attention belongs to the branch that calls it."""

SHORT_NAMES = {name.rpartition(".")[2] for name in FUNCTIONS}


class Clock(Protocol):
    """Something that grows while a model computes."""

    def mark(self) -> Any:
        """A reading, taken without waiting for the device."""

    def between(self, first: Any, second: Any) -> float:
        """What lies between two readings, once the device is done."""

    def finish(self) -> None:
        """Waits for the device."""


class CpuClock:
    """Seconds on a CPU."""

    def mark(self) -> float:
        return perf_counter()

    def between(self, first: float, second: float) -> float:
        return second - first

    def finish(self) -> None:
        """A CPU is done when the call returns."""


class CudaClock:
    """Seconds on a CUDA device, from events in its stream."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: torch.cuda.Event, second: torch.cuda.Event) -> float:
        return first.elapsed_time(second) / 1000

    def finish(self) -> None:
        torch.cuda.synchronize()


class OperationClock:
    """Multiplications and additions of matrix products, attention and convolutions."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self.counter = counter

    def mark(self) -> int:
        return self.counter.get_total_flops()

    def between(self, first: int, second: int) -> float:
        return second - first

    def finish(self) -> None:
        """Counting needs no device."""


def device_clock(device: str) -> Clock:
    return CudaClock() if torch.device(device).type == "cuda" else CpuClock()


class PartMeter:
    """Splits what a clock shows by part, while it is entered.

    Args:
        model: A Wan or UltraGen transformer.
        clock: What is split.
    """

    def __init__(self, model: Module, clock: Clock) -> None:
        self.model, self.clock = model, clock
        self._stack: list[str] = []
        self._marks: list[tuple[str, Any]] = []
        self._branch = "full"
        self._exits = ExitStack()

    def __enter__(self) -> PartMeter:
        self._hook(self.model, REST, None)
        for name, module in self.model.named_modules():
            branch = branch_of(name, module)
            for pattern, part in MODULES:
                if re.fullmatch(pattern, name):
                    self._hook(module, part, branch)
            if re.fullmatch(r"blocks\.\d+\.attn1", name):
                ours = "projections" if branch == "full" else "gates and fusion"
                self._hook(module, ours, branch)
        before = sys.getprofile()
        self._exits.callback(sys.setprofile, before)
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *error: object) -> None:
        self._exits.close()

    def totals(self) -> dict[str, float]:
        """What each part took, in the order of the tables; parts that were not met are left out."""
        self.clock.finish()
        found: dict[str, float] = defaultdict(float)
        for (part, first), (_, second) in pairwise(self._marks):
            if part:
                found[part] += self.clock.between(first, second)
        return {part: found[part] for part in PARTS if part in found}

    def _hook(self, module: Module, part: str, branch: str | None) -> None:
        def start(*_: object) -> None:
            self._branch = branch or self._branch
            self._push(part)

        def stop(*_: object) -> None:
            self._pop()

        # Linear layers whose arithmetic is done elsewhere stay so, see `ops.layer_checks`.
        start.passive = stop.passive = True  # type: ignore[attr-defined]
        for handle in (
            module.register_forward_pre_hook(start),
            module.register_forward_hook(stop),
        ):
            self._exits.callback(handle.remove)

    def _push(self, part: str) -> None:
        self._stack.append(part)
        self._marks.append((part, self.clock.mark()))

    def _pop(self) -> None:
        self._stack.pop()
        self._marks.append((self._stack[-1] if self._stack else "", self.clock.mark()))

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        # Called very often: the first line has to turn nearly everything away.
        if code.co_name not in SHORT_NAMES or event not in ("call", "return") or not self._stack:
            return
        part = FUNCTIONS.get(f"{frame.f_globals.get('__name__')}.{code.co_qualname}")
        if part is None:
            return
        if event == "return":
            self._pop()
        else:
            self._push(self._branch + ATTENTION if part == ATTENTION else part)


def branch_of(name: str, module: Module) -> str | None:
    """The branch whose attention follows once this module is met: each compressed branch begins
    with its compression, the local one with the layer. T3-Video's layers have no branches."""
    if found := re.fullmatch(r"blocks\.\d+\.attn1\.branches\.(\w+)\.compression", name):
        return found[1]
    if re.fullmatch(r"blocks\.\d+\.attn1", name):
        kinds = {T3Attention: "T3", UltraGenAttention: "local"}
        return next((name for kind, name in kinds.items() if isinstance(module, kind)), "full")
    return "cross" if re.fullmatch(r"blocks\.\d+\.attn2", name) else None


class PassOn(Module):
    """Stands where a layer was left out."""

    def forward(self, tokens: torch.Tensor, *_: object) -> torch.Tensor:
        return tokens


def count_operations(model: Module, arguments: dict[str, Any]) -> dict[str, int]:
    """Operations of a forward pass by part; the model's layers are lost on the way.

    Layers of one kind cost the same: one of each is counted, and the pass without layers.

    Args:
        model: On the meta device, so that nothing is computed and any size fits; kernels of a
            device's own are then counted as what they compute.
        arguments: What its forward pass takes, on the meta device too.
    """
    layers = list(model.blocks)  # type: ignore[arg-type]
    kinds: list[str] = getattr(model, "layer_kinds", ["full"] * len(layers))
    counts: dict[str, int] = defaultdict(int)

    def add(only: int | None, times: int) -> None:
        kept = [layer if i == only else PassOn() for i, layer in enumerate(layers)]
        model.blocks = torch.nn.ModuleList(kept)
        for part, operations in _count(model, arguments).items():
            counts[part] += times * operations

    for kind, times in Counter(kinds).items():
        add(kinds.index(kind), times)
    add(None, 1 - len(kinds))
    return {part: counts[part] for part in PARTS if part in counts}


def _count(model: Module, arguments: dict[str, Any]) -> dict[str, int]:
    counter = FlopCounterMode(display=False)
    meter = PartMeter(model, OperationClock(counter))
    with torch.no_grad(), attention_backend("native"), counter, meter:
        model(**arguments)
    return {part: int(count) for part, count in meter.totals().items()}
