"""Linear layers whose arithmetic may be done in another way."""

from __future__ import annotations

from torch import nn


def is_bare(layer: nn.Module) -> bool:
    """Whether a linear layer is nothing but its weight and bias: neither adapted, quantised,
    offloaded nor hooked. Hooks marked `passive` only watch, and may be passed over."""
    return (
        type(layer) is nn.Linear
        and layer.bias is not None
        and type(layer.weight) is nn.Parameter
        and is_unhooked(layer)
    )


def is_unhooked(module: nn.Module) -> bool:
    """Whether a module's call is its class's `forward` and nothing else, see `is_bare`."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return "forward" not in vars(module) and all(getattr(hook, "passive", False) for hook in hooks)
