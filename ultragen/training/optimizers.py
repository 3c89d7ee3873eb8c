"""The optimisers that a training can have, and their states."""

from __future__ import annotations

from importlib.util import find_spec
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .muon import MuonAdamW, hidden_matrices
from .stage import TrainingConfig


def build_optimizer(
    model: nn.Module, config: TrainingConfig, learning_rate: float
) -> torch.optim.Optimizer:
    """The optimiser of a model's trained parameters.

    Raises:
        ValueError: Muon is asked for parameters that lie in parts: it needs whole matrices.
        OSError: A package is missing.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    settings: dict[str, Any] = {
        "lr": learning_rate,
        "weight_decay": config.weight_decay,
        "betas": config.betas,
    }
    if config.optimizer == "adamw8bit":
        return adamw_8bit(parameters, **settings)
    fused = torch.cuda.is_available()
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=fused, **settings)
    if any(isinstance(p, DTensor) for p in parameters):
        raise ValueError(
            "Muon needs whole matrices, and this model's lie in parts: choose adamw or adamw8bit."
        )
    hidden = hidden_matrices(model)
    inside = set(map(id, hidden))
    others = [p for p in parameters if id(p) not in inside]
    return MuonAdamW(hidden, others, fused=fused, **settings)


def adamw_8bit(parameters: list[nn.Parameter], **settings) -> torch.optim.Optimizer:
    """torchao's AdamW with moments of 8 bits (Dettmers et al., "8-bit Optimizers via Block-wise
    Quantization", 2022), of matrices alone whose rows are whole blocks."""
    if find_spec("torchao") is None:
        raise OSError(
            "AdamW with 8-bit states needs one more package: pip install -e '.[fp8]' in the "
            "clone's folder."
        )
    from torchao.optim import AdamW8bit

    class RowwiseAdamW8bit(AdamW8bit):
        """Checkpoints are cut between rows when the number of processes changes, and a block can't
        be cut; and all parts of a tensor must be kept alike."""

        def _new_buffer(self, p: Tensor, signed: bool) -> Tensor:
            processes = p.device_mesh.size() if isinstance(p, DTensor) else 1
            row = p.shape[1:].numel()
            fewest = p.shape[0] - (processes - 1) * ceil(p.shape[0] / processes) if p.ndim else 0
            # Below so many numbers torchao keeps a part as it is.
            if p.ndim <= 1 or row % self.block_size or fewest * row < 4096:
                return torch.zeros_like(p)
            state: Any = super()._new_buffer(p, signed)
            if signed:
                # torchao 0.18's values for signed numbers go from -0.993 to 1: a block's largest
                # moment would shrink by 0.7 % in each step if it is negative, see
                # findings/adamw8bit_raises_weights_less_than_it_lowers_them.sh.
                local: Any = state.to_local() if isinstance(state, DTensor) else state
                values = local.qmap
                values[values.argmin()] = -1.0
            return state

    return RowwiseAdamW8bit(parameters, **settings)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of all groups."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # a part of torchao's compiled step
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
