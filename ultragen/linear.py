"""Layers whose arithmetic may be done in another way."""

from __future__ import annotations

from torch import nn


def is_untouched(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is just what its class makes it: neither adapted, quantised, offloaded nor
    hooked. Only then may its parameters be read without calling it. Hooks marked `passive` only
    watch, and may be passed over."""
    hooks = (*layer._forward_hooks.values(), *layer._forward_pre_hooks.values())
    return (
        type(layer) is kind
        and all(type(parameter) is nn.Parameter for parameter in layer._parameters.values()
                if parameter is not None)
        and "forward" not in vars(layer)
        and all(getattr(hook, "passive", False) for hook in hooks)
    )  # fmt: skip


def is_bare(layer: nn.Module) -> bool:
    """Whether a layer is nothing but a linear layer's weight and bias."""
    return is_untouched(layer, nn.Linear) and layer.bias is not None
