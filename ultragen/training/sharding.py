"""Weights, gradients and optimiser states in parts, one on each process: PyTorch's FSDP2."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict


def whole_weights(model: nn.Module, trained: bool = False) -> dict[str, Tensor]:
    """The weights of a model that lies in parts; all processes call it together.

    Args:
        model: Sharded or not.
        trained: Leaves frozen weights out, and does not gather them.

    Returns:
        Tensors on the CPU by their names, in the main process; nothing in the others.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained)
    with torch.no_grad():
        return get_model_state_dict(model, options=options)
