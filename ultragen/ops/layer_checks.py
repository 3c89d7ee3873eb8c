"""Layers whose arithmetic may be done in another way."""

from __future__ import annotations

from torch import Tensor, nn


def is_unhooked(module: nn.Module) -> bool:
    """Whether a module's call is its class's `forward` and nothing else. Hooks marked `passive`
    only watch, and may be passed over."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return "forward" not in vars(module) and all(getattr(hook, "passive", False) for hook in hooks)


def is_untouched(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is just what its class makes it: neither adapted, quantised, offloaded nor
    hooked. Only then may its parameters be read without calling it."""
    own = [parameter for parameter in layer._parameters.values() if parameter is not None]
    plain = all(type(parameter) is nn.Parameter for parameter in own)
    return type(layer) is kind and plain and is_unhooked(layer)


def is_bare(layer: nn.Module) -> bool:
    """Whether a layer is nothing but a linear layer's weight and bias."""
    return is_untouched(layer, nn.Linear) and layer.bias is not None


def dense_weight(layer: nn.Module) -> Tensor | None:
    """The weight of a linear layer, out of FP8 if it is in it: out d. None if the layer is another
    one, or something is done to it, see `is_bare`."""
    if is_bare(layer):
        return layer.weight  # type: ignore[return-value]
    if hasattr(layer, "dense_weight") and is_unhooked(layer):  # `model.fp8.Float8Linear`
        return layer.dense_weight()  # type: ignore[operator]
    return None
