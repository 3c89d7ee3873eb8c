"""What adapters of peft must not do to a model, and what can't be done to a model with them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import Tensor, nn


def is_adapted(model: nn.Module) -> bool:
    """Whether layers of a model are wrapped for adapters, which may be merged or deleted."""
    return any(hasattr(module, "base_layer") for module in model.modules())


def check_unadapted(model: nn.Module, what: str) -> None:
    """Checks that a model's weights have the names that its class gives them.

    Raises:
        ValueError: if adapters have put others in their place, with the way out.
    """
    if is_adapted(model):
        raise ValueError(
            f"{what} has LoRA adapters, and a folder that is saved now can't be loaded: take them "
            "off with pipe.unload_lora_weights(), after pipe.fuse_lora() if the weights shall keep "
            "what they do. The adapter alone is saved by transformer.save_lora_adapter(folder, "
            "adapter_name=...)."
        )


def check_no_adapter_is_lost(model: nn.Module) -> None:
    """Checks that projections can be fused: they are copied without what adapters add to them.

    Raises:
        ValueError: if there are adapters, with the way out.
    """
    if is_adapted(model):
        raise ValueError(
            "Fused projections would leave out what LoRA adapters add to them: merge these first, "
            "with pipe.fuse_lora() and pipe.unload_lora_weights()."
        )


@contextmanager
def only_tensors_of(model: Any, adapter_name: str) -> Iterator[None]:
    """While it lasts, a model's `state_dict` has the tensors of one adapter and no others.

    Before peft swaps an adapter it sets to zero what the new one lacks, and finds that by names
    that hold `lora_` and, anywhere, the adapter's name: `a`, `lora` and `global` are in the names
    of UltraGen's own low-rank updates, and `style` is in those of an adapter `style2`.
    """
    layers = [name for name, module in model.named_modules() if hasattr(module, "base_layer")]
    its = re.compile(
        rf"({'|'.join(map(re.escape, layers))})\.lora_\w+\.{re.escape(adapter_name)}(\.\w+)?"
    )
    everything = model.state_dict

    def only_its(*arguments: Any, **options: Any) -> dict[str, Any]:
        tensors = everything(*arguments, **options)
        return {key: tensor for key, tensor in tensors.items() if its.fullmatch(key)}

    outer = vars(model).get("state_dict")
    model.state_dict = only_its
    try:
        yield
    finally:
        del model.state_dict
        if outer is not None:
            model.state_dict = outer


@contextmanager
def swapped(model: nn.Module, adapter_name: str) -> Iterator[None]:
    """While it lasts, another LoRA may take an adapter's place: it keeps the adapter's strength.

    peft (0.21.2, `hotswap_adapter_from_state_dict`) gives it the strength 1, and forgets its alpha
    at the next `set_adapters`.
    """
    layers = [m for _, m in _layers(model) if adapter_name in getattr(m, "lora_alpha", ())]
    strengths = []
    for layer in layers:  # peft leaves layers alone that the other one does not have
        strengths.append(float(adapter_strength(layer, adapter_name)))
        _scale(layer, adapter_name, adapter_scale(layer, adapter_name))
    try:
        with only_tensors_of(model, adapter_name):
            yield
    finally:
        for layer, strength in zip(layers, strengths, strict=True):
            scaling = float(layer.scaling[adapter_name])
            layer.lora_alpha[adapter_name] = scaling * _divisor(layer, adapter_name)
            _scale(layer, adapter_name, scaling * strength)


def _scale(layer: Any, adapter_name: str, scaling: float) -> None:
    """Sets what an adapter is multiplied by; a tensor, of a model that is compiled for swapping,
    stays the same one."""
    if isinstance(layer.scaling[adapter_name], Tensor):
        layer.scaling[adapter_name].fill_(scaling)
    else:
        layer.scaling[adapter_name] = scaling


def adapter_scale(layer: Any, adapter_name: str) -> float:
    """What an adapter's product is multiplied by in a layer at a strength of 1."""
    return float(layer.lora_alpha[adapter_name]) / _divisor(layer, adapter_name)


def adapter_strength(layer: Any, adapter_name: str) -> Any:
    """How strongly an adapter acts in a layer; 1 for one whose own scale is 0, which does nothing.
    A tensor, where the model is compiled for swapping."""
    own = adapter_scale(layer, adapter_name)
    return layer.scaling[adapter_name] / own if own else 1.0


def _divisor(layer: Any, adapter_name: str) -> float:
    """What an adapter's alpha is divided by in a layer: its rank, or with rsLoRA the root of it."""
    rank = layer.r[adapter_name]
    return rank**0.5 if layer.use_rslora.get(adapter_name, False) else rank


@contextmanager
def others_stay(model: nn.Module, deleted: list[str] | str) -> Iterator[None]:
    """While it lasts, these adapters may be deleted: those that are left act as before, or do not.

    peft (0.21.2, `delete_adapter`) switches another one on in each layer whose only active one
    goes.
    """
    gone = [deleted] if isinstance(deleted, str) else deleted
    before = [(layer, list(layer.active_adapters)) for _, layer in _layers(model)]
    yield
    for layer, names in before:
        wanted = [name for name in names if name not in gone]
        if list(layer.active_adapters) != wanted:
            layer.set_adapter(wanted)


Strengths = dict[tuple[str, str], float]
"""What each adapter's product is multiplied by, by the layer's name and the adapter's."""


def _layers(model: nn.Module) -> list[tuple[str, Any]]:
    """The layers of a model that carry adapters, by name."""
    return [(name, module) for name, module in model.named_modules() if is_layer(module)]


def adapter_strengths(model: nn.Module) -> Strengths:
    """The strengths of all adapters in all layers of a model."""
    return {
        (name, adapter): strength
        for name, layer in _layers(model)
        for adapter, strength in layer.scaling.items()
    }


def set_adapter_strengths(model: nn.Module, strengths: Mapping[tuple[str, str], float]) -> None:
    """Gives adapters the strengths that they had."""
    for (name, adapter), strength in strengths.items():
        layer: Any = model.get_submodule(name)
        layer.scaling[adapter] = strength


def strengths_by_layer(strengths: Mapping[str, float], model: nn.Module) -> dict[str, float]:
    """The strengths of a model's adapted layers, from those of parts of its names, such as
    `blocks.1` or `attn`; 1 for a layer in no such part, as in diffusers.

    diffusers (0.42.1, `set_weights_and_activate_adapters`) asks whether a layer's name contains a
    part's, by which `blocks.1` is also `blocks.10`, and ends in an IndexError at layers outside the
    blocks that no part names.

    Raises:
        ValueError: if no adapted layer has a part in its name.
    """
    layers = [name for name, _ in _layers(model)]
    layers.sort(key=len, reverse=True)  # one name may be the end of another
    found = dict.fromkeys(layers, 1.0)
    for part, strength in reversed(list(strengths.items())):  # the first one counts
        name = part.strip(".")
        end = r"(?!\d)" if name[-1:].isdigit() else ""
        wanted = re.compile(rf"(?<![^.]){re.escape(name)}{end}")
        inside = [layer for layer in layers if name and wanted.search(layer)]
        if not inside:
            known = sorted({".".join(layer.split(".")[:2]) for layer in layers})
            raise ValueError(
                f"No layer with a LoRA has {part!r} in its name: choose from {', '.join(known)}, "
                "or from parts of their layers' names."
            )
        found |= dict.fromkeys(inside, strength)
    return found


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a layer that adapters of peft are put beside."""
    return hasattr(module, "base_layer") and hasattr(module, "scaling")


def keeps_adapter_strengths(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward pass whose `attention_kwargs` weigh adapters for itself alone.

    After a scale of 0, diffusers (0.42.1, `unscale_lora_layers`) gives every adapter the strength
    1, whatever it had.
    """

    @wraps(forward)
    def kept(self: nn.Module, *arguments: Any, **options: Any) -> Any:
        if not options.get("attention_kwargs"):
            return forward(self, *arguments, **options)
        strengths = adapter_strengths(self)
        try:
            return forward(self, *arguments, **options)
        finally:
            set_adapter_strengths(self, strengths)

    return kept
