"""A block's last part: the sum with the attention's update, its modulated norm, the feed-forward
network of that, and the gated sum.

In training the network's hidden features would take six times the memory of the tokens, several
times over. So it goes through the tokens in pieces, forward and backward, and keeps nothing but the
sum, from which norm and hidden features are computed again. With gradient checkpointing, which
computes a block again until it has all that was kept, the network is computed once less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.models.activations import GELU
from diffusers.models.attention import FeedForward
from diffusers.models.normalization import FP32LayerNorm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .dispatch import fused_runs, left_to_the_compiler
from .layer_checks import is_bare, is_unhooked, is_untouched

PIECE = 16_384
"""Most tokens of a piece: enough to keep a GPU's matrix products at their best rate."""


def feed_forward(
    norm: FP32LayerNorm,
    x: Tensor,
    update: Tensor,
    scale: Tensor,
    shift: Tensor,
    network: FeedForward,
    gate: Tensor,
) -> Tensor:
    """y + gate · network(norm(y) · (1 + scale) + shift), where y = x + update and what
    `runs_in_pieces` asks for holds.

    Args:
        norm: Layer norm without weights of its own.
        x: b n d.
        update: What the attention to the text gives, b n d.
        scale: b 1 d.
        shift: b 1 d.
        network: Linear layer with GELU, linear layer.
        gate: b 1 d.

    Returns:
        b n d in the precision of `x`.
    """
    first, second = network.net[0].proj, network.net[2]
    # Autocast does not see into a function of one's own.
    name, on = x.device.type, torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(name) if on else x.dtype
    weights = (w.to(dtype) for layer in (first, second) for w in (layer.weight, layer.bias))
    factor = 1 + scale
    kept = _Kept.apply(x + update, factor, shift, gate)
    return _FeedForward.apply(kept, factor, shift, gate, norm.eps, *weights)


def runs_in_pieces(norm: FP32LayerNorm, x: Tensor, update: Tensor, network: FeedForward) -> bool:
    """Whether gradients are wanted, the kernels run, and nothing is done to the layers; arguments
    as for `feed_forward`."""
    if not torch.is_grad_enabled() or left_to_the_compiler():
        return False
    if not (x.requires_grad or update.requires_grad):
        return False
    if norm.weight is not None or not is_untouched(norm, FP32LayerNorm):
        return False
    if type(network) is not FeedForward or not is_unhooked(network) or len(network.net) != 3:
        return False
    activation, dropout, last = network.net
    plain = isinstance(activation, GELU) and activation.approximate == "tanh"
    plain = plain and is_unhooked(activation) and is_bare(activation.proj) and is_bare(last)
    if not plain or not isinstance(dropout, nn.Dropout) or dropout.p:
        return False
    names = ("triton_modulation", "triton_gelu")
    return all(fused_runs(name, x.device) for name in names)


Place = tuple[slice, slice]
Shared = Callable[..., list[Tensor]]


class _Kept(torch.autograd.Function):
    """Keeps what the network's gradient needs, in a node of its own before the network: within a
    checkpointed region nothing that comes behind the last thing that is kept is computed again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, offset: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, factor, offset, gate)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return grad, None, None, None


class _FeedForward(torch.autograd.Function):
    """The network in pieces; `feed_forward` says the rest."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        factor: Tensor,
        offset: Tensor,
        gate: Tensor,
        eps: float,
        *weights: Tensor,
    ) -> Tensor:
        from .triton_modulation import gated_sum, modulated_norm

        first, first_bias, second, second_bias = weights
        # Weights stay where they are until the step is over: kept here they need no second node.
        ctx.kept, ctx.eps, ctx.weights = x.grad_fn, eps, weights
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for here, of_sample in _pieces(x):
            one, (factor_, offset_, gate_) = x[here], of_sample(factor, offset, gate)
            normed = modulated_norm(one, factor_, offset_, eps).to(first.dtype)
            hidden = _hidden(normed[0], first, first_bias)
            update = torch.addmm(second_bias, hidden, second.t())
            out[here] = gated_sum(one, update[None], gate_)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        # Sums of pieces stay in float32 where the backward pass is called within autocast.
        with torch.autocast(grad.device.type, enabled=False):
            return _FeedForward.gradients(ctx, grad)

    @staticmethod
    def gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """What `backward` gives."""
        from .triton_gelu import gelu_gradients
        from .triton_modulation import gradients, modulated_norm

        x, factor, offset, gate = ctx.kept.saved_tensors
        first, first_bias, second, second_bias = ctx.weights
        of_second_wanted = ctx.needs_input_grad[3] or ctx.needs_input_grad[7]
        of_x, (b, _, d) = torch.empty_like(grad), x.shape
        of_norm = x.new_zeros((b, 3, d), dtype=torch.float32)
        of_first = _zeros(first) if ctx.needs_input_grad[5] else None
        of_first_bias = _zeros(first_bias)
        # The second layer's, before the gate, of each sample: the gate's gradient is a sum over
        # them, so that what the network gave need not be there.
        of_second = [_zeros(second) if of_second_wanted else None for _ in range(b)]
        sums = grad.sum(1, dtype=torch.float32)  # b d
        gates = gate.expand(b, 1, d).float()
        for i in range(b):
            gated = (gates[i, 0, :, None] * second).to(second.dtype)
            for here, of_sample in _pieces(x, i):
                one, (factor_, offset_) = x[here], of_sample(factor, offset)
                normed = modulated_norm(one, factor_, offset_, ctx.eps)[0].to(first.dtype)
                of_out = grad[here][0].to(first.dtype)
                hidden = torch.addmm(first_bias, normed, first.t())
                of_hidden = of_out @ gated
                # Both in place: the hidden features themselves, and the first layer's gradient.
                of_first_bias += gelu_gradients(hidden, of_hidden)
                of_second[i] = _add_product(of_second[i], of_out, hidden)
                of_first = _add_product(of_first, of_hidden, normed)
                of_normed = (of_hidden @ first)[None]
                of_x[here], sums_ = gradients(grad[here], of_normed, one, factor_, ctx.eps)
                of_norm[i] += sums_[0]
                del hidden, of_hidden, of_normed
        return (of_x, *_of_shared(ctx, of_norm, (factor, offset, gate), sums, of_second), None,
                _as(of_first, first), of_first_bias.to(first_bias.dtype),
                *_of_second_layer(of_second, sums, gates, second, second_bias))  # fmt: skip


def _pieces(x: Tensor, sample: int | None = None) -> Iterator[tuple[Place, Shared]]:
    """Where each piece of the tokens b n d lies, and a function that gives its sample's part of
    tensors b 1 d; of all samples or of one."""
    b, n, _ = x.shape
    number = -(-n // PIECE)
    size = -(-n // number)
    for i in range(b) if sample is None else (sample,):

        def of_sample(*shared: Tensor, i: int = i) -> list[Tensor]:
            return [value[i : i + 1] if len(value) > 1 else value for value in shared]

        for start in range(0, n, size):
            yield (slice(i, i + 1), slice(start, start + size)), of_sample


def _hidden(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Linear layer and GELU (tanh): n d → n hidden."""
    if x.is_cuda:
        return torch._addmm_activation(bias, x, weight.t(), use_gelu=True)
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")  # the operator above is another


def _zeros(x: Tensor) -> Tensor:
    return torch.zeros_like(x, dtype=torch.float32)


def _as(gradient: Tensor | None, like: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.to(like.dtype)


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor | None:
    """total + leftᵀ · right, summed in float32; total is k m, left n k, right n m."""
    if total is None:
        return None
    if left.is_cuda and left.dtype != torch.float32:
        return torch.addmm(total, left.t(), right, out_dtype=torch.float32)
    return torch.addmm(total, left.t().float(), right.float())


def _of_shared(
    ctx: Any,
    of_norm: Tensor,
    shared: tuple[Tensor, ...],
    sums: Tensor,
    of_second: list[Tensor | None],
) -> list[Tensor | None]:
    """The gradients of factor, offset and gate, which may be the same for all samples."""
    found: list[Tensor | None] = [of_norm[:, None, 1], of_norm[:, None, 2], None]
    if ctx.needs_input_grad[3]:
        _, _, second, bias = ctx.weights
        by_weight = torch.stack([(second * x).sum(1) for x in of_second])
        found[2] = (by_weight + bias * sums)[:, None]
    return [
        None if gradient is None else gradient.sum_to_size(value.shape).to(value.dtype)
        for gradient, value in zip(found, shared, strict=True)
    ]


def _of_second_layer(
    of_second: list[Tensor | None], sums: Tensor, gates: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor | None, Tensor]:
    """The gradients of its weight and bias."""
    of_bias = (gates[:, 0] * sums).sum(0).to(bias.dtype)
    if of_second[0] is None:
        return None, of_bias
    parts = (gate.t() * x for gate, x in zip(gates, of_second, strict=True))
    return sum(parts).to(weight.dtype), of_bias
