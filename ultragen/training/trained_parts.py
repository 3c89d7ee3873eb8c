"""Which weights of an UltraGen transformer are trained, or the adapter in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..model.transformer import UltraGenTransformer3DModel
from ..weights.released import cast_weights
from .wan_options import LoraOptions, Trained

ADAPTER = "default"
"""peft's own name. It finds an adapter's weights by its name and `lora_`, which the branches' own
updates have in theirs: no other name may be a part of one of their names."""
BRANCHES = ".branches."


def choose_trained(
    model: UltraGenTransformer3DModel,
    trained: Trained,
    lora: LoraOptions,
    frozen_dtype: torch.dtype,
) -> None:
    """Marks what is trained, in float32, and what stays, in another type.

    Args:
        model: Gets an adapter, where that is what is trained.
        trained: All weights, those alone that UltraGen adds, or the adapter.
        lora: Its settings.
        frozen_dtype: Type of weights that stay.

    Raises:
        ValueError: if there is nothing of what is to be trained.
    """
    before = set(map(id, model.parameters()))
    if trained == "lora":
        model.add_adapter(adapter_config(model, lora), ADAPTER)
    for name, parameter in model.named_parameters():
        # peft leaves everything trained whose name holds `lora_`, the branches' updates too.
        parameter.requires_grad_(
            {
                "all": True,
                "new": BRANCHES in name,
                "lora": id(parameter) not in before,
            }[trained]
        )
    masters = [(p, p.data.float()) for p in model.parameters() if p.requires_grad]
    cast_weights(model, frozen_dtype)
    for parameter, master in masters:
        parameter.data = master
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("The model has no parts that Wan lacks: train all of it, or a LoRA.")


def adapter_config(model: UltraGenTransformer3DModel, lora: LoraOptions) -> LoraConfig:
    """peft's settings, with the full names of all layers that are adapted: its own search by the
    ends of names would find layers of the branches' own low-rank updates.

    Raises:
        ValueError: if a target is the end of no linear layer's name.
    """
    known = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and BRANCHES not in f".{name}."
    ]
    found: dict[str, list[str]] = {
        target: [name for name in known if f".{name}".endswith(f".{target}")]
        for target in lora.targets
    }
    if unknown := [target for target, names in found.items() if not names]:
        ends = sorted({name.split(".", 2)[-1] for name in known if name.startswith("blocks.")})
        raise ValueError(
            f"No linear layer is called {', '.join(unknown)}: choose from {', '.join(ends)}, or "
            "from the ends of these names."
        )
    names = sorted({name for names in found.values() for name in names})
    alpha = lora.rank if lora.alpha is None else lora.alpha
    return LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=names)


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """While it lasts, a model's layers compute as they did before they got an adapter.

    peft's own switch also says of the adapter's weights that they are not trained, which FSDP2
    takes for good if it gathers them first then.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
