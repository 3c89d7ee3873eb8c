"""DoRA (arXiv 2402.09353) whose strength reaches from the model as it is to all of the adapter.

A DoRA gives the rows of a weight that it has moved other lengths: m ⊙ (W + BA) / ‖W + BA‖. peft
(0.21.2) weighs BA alone by a strength and gives rows their lengths m at any, so that 0 is not off.
Here, as in ComfyUI, the strength s weighs all of the change: W + s · (m ⊙ (W + BA) / ‖W + BA‖ − W).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.lora import LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn

from .adapters import adapter_scale, adapter_strength


class WholeDora(DoraLinearVariant):
    """peft's DoRA for linear layers, all of which is weighed by the strength."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """Adds the adapter's part to what the layer gives without it, … out for x … in."""
        dropout = module.lora_dropout[active_adapter]
        dropped = module.training and not isinstance(dropout, nn.Identity)
        change = module.lora_magnitude_vector[active_adapter](
            dropout(x) if dropped else x,
            lora_A=module.lora_A[active_adapter],
            lora_B=module.lora_B[active_adapter],
            scaling=adapter_scale(module, active_adapter),
            base_layer=module.get_base_layer(),
            base_result=None if dropped else result,
            adapter_name=active_adapter,
        )
        return result + adapter_strength(module, active_adapter) * change

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The weight, out in, with the adapter in it; as `merge_unsafe`, which changes it."""
        with _whole(module, active_adapter) as strength:
            whole = DoraLinearVariant.merge_safe(module, active_adapter, orig_weight)
        return orig_weight + strength * (whole - orig_weight)

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        before = orig_weight.data.clone()
        with _whole(module, active_adapter) as strength:
            DoraLinearVariant.merge_unsafe(module, active_adapter, orig_weight)
        orig_weight.data = before + strength * (orig_weight.data - before)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The weight, out in, as it was before."""
        merged, strength = orig_weight.data, module._cache_pop(f"{active_adapter}-strength")
        with _whole(module, active_adapter, keep=False):
            change = module.get_delta_weight(active_adapter)
        norm = module._cache_pop(f"{active_adapter}-weight_norm")
        factor = (module.lora_magnitude_vector[active_adapter].weight / norm).view(-1, 1)
        before = (merged - strength * factor * change) / (1 - strength + strength * factor)
        return before.to(orig_weight.dtype)


@contextmanager
def _whole(module: Any, adapter_name: str, keep: bool = True) -> Iterator[float]:
    """While it lasts, an adapter has its own scale; gives its strength, which unmerging needs."""
    scaling, strength = module.scaling[adapter_name], float(adapter_strength(module, adapter_name))
    if keep:
        module._cache_store(f"{adapter_name}-strength", strength)
    module.scaling[adapter_name] = adapter_scale(module, adapter_name)
    try:
        yield strength
    finally:
        module.scaling[adapter_name] = scaling


def weigh_whole_doras(model: nn.Module) -> None:
    """Has the strengths of DoRAs weigh all of what they change, in all layers of a model."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for name, variant in layer.lora_variant.items():
                if type(variant) is DoraLinearVariant:
                    layer.lora_variant[name] = WholeDora()
