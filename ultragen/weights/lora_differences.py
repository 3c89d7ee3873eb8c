"""What a LoRA adds to the parameters of norms and to tables, for which peft has no layers.

Distillation LoRAs that were extracted as a difference of two models change these too. They are
added with the strength that the adapter's layers have, just before the model runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_NAME = "_lora_differences"


class ParameterDifferences:
    """A forward pre-hook that keeps parameters at their own values plus weighted differences.

    Attributes:
        own: The parameters' own values, on the CPU.
        adapters: Adapter → differences, by the parameter's name.
    """

    def __init__(self) -> None:
        self.own: dict[str, Tensor] = {}
        self.adapters: dict[str, dict[str, Tensor]] = {}
        self.applied: dict[str, float] = {}

    @classmethod
    def of(cls, transformer: nn.Module) -> ParameterDifferences | None:
        """Those of a model, or None if it has none."""
        return getattr(transformer, _NAME, None)

    @classmethod
    def set(cls, transformer: nn.Module, adapter: str, values: Mapping[str, Tensor]) -> None:
        """Sets what an adapter adds, in place of what it added."""
        found = cls.of(transformer)
        if found is None:
            if not values:
                return
            found = cls()
            setattr(transformer, _NAME, found)
            transformer.register_forward_pre_hook(found, with_kwargs=True)
        found.refresh(transformer, dict.fromkeys(found.adapters, 0.0))
        found.adapters[adapter] = {name: value.clone() for name, value in values.items()}
        for name in values:
            value = transformer.get_parameter(name).detach()
            found.own.setdefault(name, value.to("cpu", copy=True))
        found.refresh(transformer)

    @classmethod
    def remove(cls, transformer: nn.Module, keep_merged: bool) -> None:
        """Forgets all adapters: before their layers are taken away.

        Args:
            transformer: The model.
            keep_merged: Whether what is merged into the weights stays in them.
        """
        found = cls.of(transformer)
        if found is None:
            return
        merged = any(getattr(module, "merged_adapters", ()) for module in transformer.modules())
        strengths = found.strengths(transformer) if merged and keep_merged else {}
        found.refresh(transformer, strengths)
        for key, hook in list(transformer._forward_pre_hooks.items()):
            if hook is found:
                del transformer._forward_pre_hooks[key]
                del transformer._forward_pre_hooks_with_kwargs[key]
        delattr(transformer, _NAME)

    def __call__(self, transformer: nn.Module, arguments: Any, options: dict[str, Any]) -> None:
        """Before each forward pass; `attention_kwargs` may weigh all adapters."""
        scale = (options.get("attention_kwargs") or {}).get("scale", 1.0)
        strengths = self.strengths(transformer)
        self.refresh(transformer, {name: scale * value for name, value in strengths.items()})

    def strengths(self, transformer: nn.Module) -> dict[str, float]:
        """The strength with which each adapter's layers act now."""
        found = dict.fromkeys(self.adapters, 0.0)
        layers: list[Any] = [m for m in transformer.modules() if hasattr(m, "base_layer")]
        for module in layers:
            active = () if module.disable_adapters else module.active_adapters
            for name in module.merged_adapters or active:
                if name in found and name in module.scaling:
                    found[name] = float(module.scaling[name])
        return found

    @torch.no_grad()
    def refresh(self, transformer: nn.Module, strengths: Mapping[str, float] | None = None) -> None:
        """Sets the parameters to what these strengths give; None takes those of now."""
        if strengths is None:
            strengths = self.strengths(transformer)
        active = {name: value for name, value in strengths.items() if value}
        if active == self.applied:
            return
        for name, own in self.own.items():
            parameter = transformer.get_parameter(name)
            changes = [
                strength * self.adapters[adapter][name]
                for adapter, strength in active.items()
                if name in self.adapters[adapter]
            ]
            # Without a change the very bits come back.
            value = own.float() + sum(changes) if changes else own
            parameter.data = value.to(parameter.device, parameter.dtype)
        self.applied = active
