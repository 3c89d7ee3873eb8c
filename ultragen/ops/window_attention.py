"""Norms, positions, windows and attention as one operation with a gradient of its own.

Differentiated piece by piece, it would keep queries, keys, values and what was attended to a second
time in the order of windows. Here the projections and the result are kept, as grids, and what lies
between is put in order again, which costs a hundredth of the attention. Windows whose last tile of
tokens is filled (see `triton_whole_tiles`) have gradients here alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .dispatch import left_to_the_compiler
from .float8 import Tokens
from .gradients import keep_result, kept_result
from .layer_checks import is_untouched
from .rotary_norm import Rotary
from .tiles import is_cudnns, suits, tile_for
from .window_order import Rectangle


def keeps_little(
    processor: Any,
    kind: type,
    x: Tokens,
    heads: int,
    norms: Sequence[nn.RMSNorm],
    norm_kind: type[nn.RMSNorm],
) -> bool:
    """Whether gradients are wanted, attention is cuDNN's, and processor and norms are as they were.

    Args:
        processor: Attends.
        kind: The class of a processor that nobody has changed.
        x: What queries are made of, … d.
        heads: Attention heads.
        norms: Of queries and keys.
        norm_kind: The class of norms that nobody has changed.
    """
    if not torch.is_grad_enabled() or left_to_the_compiler() or type(processor) is not kind:
        return False
    if not all(is_untouched(norm, norm_kind) for norm in norms):
        return False
    return is_cudnns(processor, x, heads) and suits(x.device)


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    norms: Sequence[nn.RMSNorm],
    rotary: Rotary,
    heads: int,
    rectangles: Sequence[Rectangle],
) -> Tensor:
    """Norm, rotation and windows of queries and keys as in `rotary_norm`, and attention in windows.

    Args:
        query: Projections of all heads, b t h w d.
        key: The same.
        value: The same.
        norms: Of queries and keys.
        rotary: cos and sin of the whole grid, t h w × half the head size each.
        heads: Attention heads.
        rectangles: The groups of equal windows.

    Returns:
        b t h w d.
    """
    windows = [query.shape[1] * height * width for _, _, height, _, _, width in rectangles]
    tile = tile_for(windows)
    plan = heads, [number for r in rectangles for number in r], norms[0].eps, tile
    weights = (norm.weight for norm in norms)
    return _Attention.apply(query, key, value, *weights, *rotary, plan)


class _Attention(torch.autograd.Function):
    """`window_attention` says what it computes."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_weight: Tensor,
        key_weight: Tensor,
        cos: Tensor,
        sin: Tensor,
        plan: tuple[int, list[int], float, int],
    ) -> Tensor:
        from .triton_windows import unflatten

        ctx.plan, given = plan, (query, key, value, query_weight, key_weight, cos, sin)
        whole = sum(rows * columns for _, rows, _, _, columns, _ in unflatten(plan[1])) == 1
        found = kept_result()
        out, sums = found or _attend(*given, plan)
        keep_result((out.detach(), sums), whole)
        ctx.save_for_backward(*given, out, *sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        from .triton_rotary_norm import gradients
        from .triton_whole_tiles import attention_gradients
        from .triton_windows import merge_group, unflatten
        from .triton_windows import split_flat as split

        query, key, value, query_weight, key_weight, cos, sin, out, *sums = ctx.saved_tensors
        heads, groups, eps, tile = ctx.plan
        windows = _in_windows(query, key, value, query_weight, key_weight, cos, sin, ctx.plan)
        outs, grads = split(out, groups, tile), split(grad, groups, tile)
        # Kernels write grids in this order, whatever that of the values was.
        of_value = torch.empty_like(value, memory_format=torch.contiguous_format)
        of_query, of_key = [], []
        for i, (rectangle, total) in enumerate(zip(unflatten(groups), sums, strict=True)):
            tokens = prod((query.shape[1], rectangle[2], rectangle[5]))
            group = (grads[i], windows[0][i], windows[1][i], windows[2][i], outs[i])
            of_q, of_k, of_v = attention_gradients(*group, total, heads, tokens)
            merge_group(of_value, of_v.contiguous(), rectangle)
            of_query.append(of_q)
            of_key.append(of_k)
            for each in (grads, *windows, outs):
                each[i] = each[i].new_empty(0)  # what has been used makes room
            del group, of_v
        at = cos, sin, eps, groups
        return (*_ordered(gradients(of_query, query, query_weight, *at),
                          gradients(of_key, key, key_weight, *at), of_value),
                None, None, None)  # fmt: skip


def _attend(*given: Any) -> tuple[Tensor, list[Tensor]]:
    """What is attended to, b t h w d, and the logarithms of the sums of weights of each group's
    windows, (b windows) heads n; arguments as for `_in_windows`."""
    from .triton_whole_tiles import attention, merge_and_correct

    (query, *_, plan) = given
    heads, groups, _, _ = plan
    windows = _in_windows(*given)
    found = [attention(*group, heads) for group in zip(*windows, strict=True)]
    outs, sums = ([*part] for part in zip(*found, strict=True))
    size, (queries, keys, _) = query.shape[1:4], windows
    return merge_and_correct(outs, queries, keys, sums, heads, groups, size, keep=True), sums


def _in_windows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    plan: tuple[int, list[int], float, int],
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Queries and keys with norm and positions, and values: (b windows) n d for each group."""
    from .triton_rotary_norm import rotate
    from .triton_windows import split_flat

    _, groups, eps, tile = plan
    queries = rotate(query, query_weight, cos, sin, eps, groups, tile)
    keys = rotate(key, key_weight, cos, sin, eps, groups, tile)
    return queries, keys, split_flat(value, groups, tile)


def _ordered(
    of_query: tuple[Tensor, Tensor], of_key: tuple[Tensor, Tensor], of_value: Tensor
) -> tuple[Tensor, ...]:
    return of_query[0], of_key[0], of_value, of_query[1], of_key[1]
