"""How layers are called while their gradients are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint


def call_layer(model: Any, layer: nn.Module, *arguments: Any) -> Tensor:
    """A layer of a diffusers model; in training it is computed again in the backward pass where the
    model's gradient checkpointing is on."""
    if torch.is_grad_enabled() and model.gradient_checkpointing:
        return model._gradient_checkpointing_func(layer, *arguments)
    return layer(*arguments)


def recompute_layers(model: Any, layers: Iterable[nn.Module], on_host: bool = False) -> None:
    """Lets layers of a diffusers model be computed again in the backward pass, so that of each only
    the input is kept for it.

    Args:
        model: With gradient checkpointing.
        layers: Those of its layers that are; the others keep all that their gradients need.
        on_host: Whether the inputs are kept in the host's memory instead of the device's.
    """
    chosen = set(map(id, layers))

    def call(layer: nn.Module, *arguments: Any) -> Tensor:
        if id(layer) not in chosen:
            return layer(*arguments)
        with kept_on_host() if on_host else nullcontext():
            return checkpoint(layer, *arguments, use_reentrant=False)

    model.enable_gradient_checkpointing(call)


def kept_on_host() -> AbstractContextManager:
    """Within it, what the backward pass needs is kept in the host's memory."""
    # Within a checkpoint nothing is kept, and of the call itself only its arguments are.
    return save_on_cpu(pin_memory=torch.cuda.is_available())


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
