"""Muon for hidden matrices, AdamW for everything else.

Muon (Jordan et al., 2024) replaces a matrix's averaged gradient by the orthogonal matrix nearest to
it, so that all directions are learnt at one pace; the update is scaled to the size that AdamW's
have (Liu et al., "Muon is Scalable for LLM Training", 2025). `torch.optim.Muon` takes one matrix at
a time: for a small model with a hundred of them that is thousands of tiny kernels. Here matrices of
one shape are orthogonalised together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..hardware import fast_bfloat16

# Quintic Newton-Schulz iteration, tuned by Muon's author to bring singular values near 1 quickly.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
# Muon's learning rate over AdamW's (docs/training.md).
RATE = 4.0


def orthogonalize(matrices: Tensor) -> Tensor:
    """Moves the singular values of matrices n r c to about 1, in bfloat16 where that is fast."""
    x = matrices.bfloat16() if matrices.is_cuda or fast_bfloat16() else matrices
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class MuonAdamW(torch.optim.AdamW):
    """AdamW whose groups with `muon=True` are updated by Muon instead.

    Args:
        hidden: Matrices inside the network's blocks.
        others: Embeddings, heads, norms, biases, convolutions.
        lr: AdamW's learning rate.
        factor: Muon's learning rate over AdamW's.
        momentum: Muon's, with Nesterov's look ahead.
        options: Other settings of AdamW.
    """

    def __init__(
        self,
        hidden: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        lr: float,
        factor: float = RATE,
        momentum: float = 0.95,
        **options,
    ) -> None:
        groups = [
            {"params": list(parameters), "muon": muon, "factor": factor, "momentum": momentum}
            for parameters, muon in ((hidden, True), (others, False))
        ]
        super().__init__([group for group in groups if group["params"]], lr=lr, **options)

    @torch.no_grad()
    def step(self, closure=None):
        """One update of all parameters that have a gradient."""
        muon = [group for group in self.param_groups if group["muon"]]
        for group in muon:
            self._muon(group)
        # What Muon has updated is no longer AdamW's business in this step.
        kept = [(p, p.grad) for group in muon for p in group["params"]]
        for parameter, _ in kept:
            parameter.grad = None
        loss = super().step(closure)
        for parameter, gradient in kept:
            parameter.grad = gradient
        return loss

    def _muon(self, group: dict) -> None:
        shapes = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                shapes[parameter.shape].append(parameter)
        for (rows, columns), parameters in shapes.items():
            gradients = [p.grad for p in parameters]
            averages = [self._average(p) for p in parameters]
            torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, averages, group["momentum"])
            updates = orthogonalize(torch.stack(ahead))
            # AdamW's updates have a root mean square of about 0.2.
            size = 0.2 * max(rows, columns) ** 0.5
            rate = group["factor"] * group["lr"]
            torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
            torch._foreach_add_(parameters, list(updates), alpha=-rate * size)

    def _average(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
            state["step"] = torch.tensor(0.0)  # AdamW looks for it when states are loaded
        return state["momentum"]


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trained matrices inside a model's repeated blocks; low-rank updates and gates, whose
    small sides carry no more than a few directions, are left to AdamW."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and parameter.ndim == 2
        and any(part in name for part in (".blocks.", ".block."))
        and not any(part in name for part in ("lora_", ".gate."))
        and "relative_attention_bias" not in name
    ]
