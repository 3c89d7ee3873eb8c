"""How layers are called while their gradients are computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn


def call_layer(model: Any, layer: nn.Module, *arguments: Any) -> Tensor:
    """A layer of a diffusers model; in training it is computed again in the backward pass where the
    model's gradient checkpointing is on."""
    if torch.is_grad_enabled() and model.gradient_checkpointing:
        return model._gradient_checkpointing_func(layer, *arguments)
    return layer(*arguments)


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
