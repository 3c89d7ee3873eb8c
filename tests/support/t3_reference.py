"""T3-Video's self-attention as its paper tells it: slow, plain and in float64.

One clip, one window and one head at a time; a window is a list of places on each axis. Nothing here
is shared with `ultragen.model.t3_attention`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import torch
from reference import linear, positions, rms_norm, rotate
from torch import Tensor


def t3_attention(
    weights: dict[str, Tensor],
    tokens: Tensor,
    grid: tuple[int, int, int],
    counts: tuple[int, int, int],
    heads: int,
    eps: float = 1e-6,
) -> Tensor:
    """One layer for a batch of tokens, b (t h w) d; the numbers of windows divide the grid."""
    weights = {name: value.double() for name, value in weights.items()}
    return torch.stack([_layer(weights, x, grid, counts, heads, eps) for x in tokens.double()])


def _layer(weights, x, grid, counts, heads, eps) -> Tensor:
    query = rms_norm(linear(weights, "to_q", x), weights["norm_q.weight"], eps)
    key = rms_norm(linear(weights, "to_k", x), weights["norm_k.weight"], eps)
    value = linear(weights, "to_v", x)
    turn = positions(*grid, x.shape[1] // heads)
    query, key = (by_head(y, lambda head: rotate(head, turn), heads) for y in (query, key))
    close, remote = (
        within(windows(grid, counts, strided), query, key, value, heads)
        for strided in (False, True)
    )
    return linear(weights, "to_out.0", (close + remote) / 2)


def by_head(x: Tensor, function, heads: int) -> Tensor:
    return torch.cat([function(head) for head in x.chunk(heads, dim=1)], dim=1)


def windows(grid, counts, strided: bool) -> Iterator[list[int]]:
    """The tokens of each window."""
    for window in product(*(range(count) for count in counts)):
        places = [
            [
                p * count + i if strided else i * (length // count) + p
                for p in range(length // count)
            ]
            for length, count, i in zip(grid, counts, window, strict=True)
        ]
        yield [(t * grid[1] + h) * grid[2] + w for t, h, w in product(*places)]


def within(found: Iterator[list[int]], query: Tensor, key: Tensor, value: Tensor, heads: int):
    out = torch.full_like(value, math.nan)
    for tokens in found:
        parts = [x[tokens].chunk(heads, dim=1) for x in (query, key, value)]
        attended = []
        for q, k, v in zip(*parts, strict=True):
            weights = (q @ k.T / math.sqrt(q.shape[1])).softmax(dim=1)
            attended.append(weights @ v)
        out[tokens] = torch.cat(attended, dim=1)
    return out
