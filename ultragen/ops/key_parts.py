"""Attention over very many keys, some of them at a time.

The library's attention becomes slower where there are hundreds of thousands of keys. There it runs
over parts of them one after the other, and the results are averaged by the sums of their weights,
whose logarithms the attention gives too: exact, but for rounding. Queries come in parts as well, so
that only a part of the results is kept in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil

import torch
from torch import Tensor

TILE = 128  # keys of a tile; as many queries fill theirs too
PART = 131_072
"""Tokens of a part."""
HOPPER = 9  # compute capability
LONG = 2 * PART
"""Up to that many keys are one part."""
_other: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None


def is_measured(device: torch.device) -> bool:
    """Whether a GPU is of the kind on which filling tiles, and taking keys in parts, was found to
    pay: Hopper."""
    return not torch.version.hip and torch.cuda.get_device_capability(device)[0] == HOPPER


@contextmanager
def in_8_bits(
    other: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None,
) -> Iterator[None]:
    """Has another function, such as `triton_fp8_attention.attend`, do what `attend` does where no
    gradients are wanted; None for attention as it is without this."""
    global _other
    before, _other = _other, other
    try:
        yield
    finally:
        _other = before


def runs_in_8_bits() -> bool:
    """Whether `in_8_bits` holds, and no gradients are wanted."""
    return _other is not None and not torch.is_grad_enabled()


def attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Attention, b heads n d each, and the logarithms of the sums of weights, b heads n 1: by cuDNN
    on a GPU, unless `in_8_bits` holds."""
    if _other is not None and runs_in_8_bits():
        return _other(query, key, value)
    if query.is_cuda:
        out, sums = torch.ops.aten._scaled_dot_product_cudnn_attention(
            query, key, value, None, compute_log_sumexp=True
        )[:2]
    else:  # for the tests
        out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    return out, sums.reshape(*query.shape[:3], 1)


def attend_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of queries, keys and values: all b heads n d, and the sums that `attend` gives,
    b heads n."""
    if query.shape[2] == key.shape[2] == 1:
        # The one weight is 1. cuDNN with torch 2.11 takes such windows forwards alone.
        return torch.zeros_like(query), torch.zeros_like(key), grad
    sums = sums.reshape(*query.shape[:3], 1)
    if query.is_cuda:
        # Without dropout, and with all sequences equally long.
        none = torch.zeros((), dtype=torch.int64, device=query.device)
        return torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            grad, query, key, value, out, sums, none, none, None, None, None, query.shape[2],
            key.shape[2], 0.0, False,
        )  # fmt: skip
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(  # for the tests
        grad, query, key, value, out, sums[..., 0], 0.0, False
    )


def attend_in_parts(query: Tensor, key: Tensor, value: Tensor, part: int) -> tuple[Tensor, Tensor]:
    """The same as `attend`, to so many keys at a time at most, for as many queries; all parts have
    about the same size."""
    count = ceil(key.shape[2] / part)
    part = ceil(key.shape[2] / count / TILE) * TILE
    out = torch.empty_like(query)
    sums = query.new_empty((*query.shape[:3], 1), dtype=torch.float32)
    for rows, total_out, total in zip(
        *(x.split(part, dim=2) for x in (query, out, sums)), strict=True
    ):
        parts = zip(key.split(part, dim=2), value.split(part, dim=2), strict=True)
        first, of_first = attend(rows, *next(parts))
        mean, so_far = first.float(), of_first
        for keys, values in parts:
            found, of_part = attend(rows, keys, values)
            both = torch.logaddexp(so_far, of_part)
            mean.lerp_(found.float(), (of_part - both).exp())
            so_far = both
        total_out.copy_(mean)
        total.copy_(so_far)
    return out, sums
