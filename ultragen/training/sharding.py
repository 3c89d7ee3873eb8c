"""Weights, gradients and optimiser states in parts, one on each process: PyTorch's FSDP2.

accelerate starts the processes, but `fully_shard` is called here: accelerate's plugin for it is
left out without a word on CPUs and in a training of one process, and it chooses what is gathered
together by the names of classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor


def shard(
    model: nn.Module, blocks: Sequence[nn.Module], device: torch.device, dtype: torch.dtype
) -> None:
    """Distributes a model over all processes, with the first one's weights.

    One process too is a group: a block's weights are there in the type that is computed in only
    while the block runs, where autocast keeps such a copy of all weights at once.

    Args:
        model: In the memory of each process; its parameters become `DTensor`s on the device.
        blocks: Whose weights are gathered together; the rest of the model is gathered once.
        device: Of this process.
        dtype: What is computed in. Inputs are not cast to it: a timestep does not survive that.
    """
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for unit in (*blocks, model):
        for parameter in unit.parameters():
            if not isinstance(parameter, DTensor):
                parameter.data = parameter.data.to(device)
                dist.broadcast(parameter.data, src=0)
        fully_shard(unit, mesh=mesh, mp_policy=policy)


def part_again(model: nn.Module) -> None:
    """Drops what a forward pass gathered. Without a backward pass after it, the weights beside the
    blocks stay gathered, and the next pass would take them as they were."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, in the same memory; a whole tensor as it is."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


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
        weights = get_model_state_dict(model, options=options)
    return {name: weight for name, weight in weights.items() if isinstance(weight, Tensor)}


class ShardedState:
    """Trained weights and optimiser states under the parameters' names, as
    `torch.distributed.checkpoint` takes them: any number of processes loads what another saved."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer

    def state_dict(self) -> dict[str, Any]:
        options = StateDictOptions(ignore_frozen_params=True)
        untouched = not self.optimizer.state
        weights, states = get_state_dict(self.model, self.optimizer, options=options)
        if untouched:
            # torch 2.13.0 makes missing states, to save or to load, by a step without gradients
            # (`_init_optim_state` of torch.distributed.checkpoint.state_dict, PyTorch issue
            # 164929): AdamW's moments stay 0, but it counts the step.
            for state in self.optimizer.state.values():
                state["step"].zero_()
        return {"weights": weights, "optimizer": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["weights"],
            optim_state_dict=state["optimizer"],
            # Not strict: frozen weights are not in it.
            options=StateDictOptions(ignore_frozen_params=True, strict=False),
        )
