"""How layers are called while their gradients are computed, and what is kept of them until then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from .host_memory import HostMemory

Results = Literal["none", "whole", "all"]


def call_layer(model: Any, layer: nn.Module, *arguments: Any) -> Tensor:
    """A layer of a diffusers model; in training it is computed again in the backward pass where the
    model's gradient checkpointing is on."""
    if torch.is_grad_enabled() and model.gradient_checkpointing:
        return model._gradient_checkpointing_func(layer, *arguments)
    return layer(*arguments)


@dataclass
class Recomputation:
    """Gradient checkpointing: what is kept of a layer, beside what it is given.

    An instance goes to a model's `enable_gradient_checkpointing`.

    Attributes:
        every: One layer of so many is computed again, all others keep what they need.
        results: Which results of attention are kept, so that they are not computed again: those
            over all tokens of a grid, which cost the most for what they take, or `all`. Works where
            attention is one operation, see `window_attention`.
        host_memory: Whether what layers are given, and these results, wait in the host's memory.
    """

    every: int = 1
    results: Results = "whole"
    host_memory: bool = False
    _numbers: WeakKeyDictionary[nn.Module, int] = field(
        default_factory=WeakKeyDictionary, repr=False
    )
    _host: HostMemory = field(default_factory=HostMemory, repr=False)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be at least 1, not {self.every}.")
        if self.results not in get_args(Results):
            raise ValueError(f"results must be none, whole or all, not {self.results!r}.")

    def __call__(self, layer: nn.Module, *arguments: Any) -> Tensor:
        number = self._numbers.setdefault(layer, len(self._numbers))
        if (number + 1) % self.every:
            return layer(*arguments)
        where = self._host.holding() if self.host_memory else nullcontext()
        kept = _Kept(self.results, self._host if self.host_memory else None)
        with where:
            return checkpoint(
                layer,
                *arguments,
                use_reentrant=False,
                context_fn=lambda: (kept.first(), _Again(kept)),
            )


class _Kept:
    """Results of a layer's attention, from the pass that computes them to the one that needs them
    again."""

    def __init__(self, which: Results, host: HostMemory | None) -> None:
        self.which, self.host = which, host
        self.results: list[Any] = []
        self.given: list[Any] | None = None

    @contextmanager
    def first(self) -> Iterator[None]:
        token = _kept.set(self)
        try:
            yield
        finally:
            _kept.reset(token)


class _Again:
    """A context for the pass that needs them, which comes as often as there are backward passes;
    all but the first compute the results again."""

    def __init__(self, kept: _Kept) -> None:
        self.kept = kept

    def __enter__(self) -> None:
        # Given once: after it the pass's own saved tensors hold them, as long as they are needed.
        self.kept.given, self.kept.results = self.kept.results, []
        self.token = _kept.set(self.kept)

    def __exit__(self, *_: object) -> None:
        self.kept.given = []
        _kept.reset(self.token)


_kept: ContextVar[_Kept | None] = ContextVar("kept", default=None)


def keep_result(result: Any, whole: bool) -> None:
    """Called with each result of attention, in a fixed order: keeps it where a layer is computed
    for the first time of two.

    Args:
        result: Tensors that `kept_result` is to give back, in tuples and lists.
        whole: Whether all tokens of the grid were attended to.
    """
    kept = _kept.get()
    if kept is not None and kept.given is None:
        wanted = kept.which == "all" or (whole and kept.which == "whole")
        result = result if wanted else None
        kept.results.append(tree_map(kept.host.park, result) if kept.host else result)


def kept_result() -> Any:
    """The result that was kept of the attention that is asked for now; None where none was."""
    kept = _kept.get()
    if kept is None or not kept.given:
        return None
    result = kept.given.pop(0)
    return tree_map(kept.host.fetch, result) if kept.host else result


def compiled_in_training(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled where gradients are computed: once for all that call it. Elsewhere its
    operations are fused already."""
    return partial(_call, function)  # which can be copied and saved with a model


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    chosen = _compiled(function) if torch.is_grad_enabled() else function
    return chosen(*arguments)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)
