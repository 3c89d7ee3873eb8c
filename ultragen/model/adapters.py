"""What adapters of peft must not do to a model, and what can't be done to a model with them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


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
