"""Attention over a number of tokens that does not fill its tiles, as fast as where it does.

The library's attention works on tiles of 128 keys. Where their number is no multiple of that, it
takes a slower kernel throughout, not only for the last tile: on an H100 windows of 10,710 tokens
take 9 % longer than windows of 10,752. So the last tile is filled up. A window's first key stands
there again, with a value of zero: it adds nothing to the sum of values, and to the sum of weights
what the first key itself adds. How much that is can be told from the query, the key and the
logarithm of the sum, which the attention gives too, and it is taken out where the windows become a
grid again. The first key, because its weight is part of the sum: what remains is never nothing.
Where it has nearly all of the weight, that is one of 128 parts, whose error is 128 times that of
the logarithm: 0.002 where it is 20, half of what rounding to bfloat16 does.

In the backward pass the library's kernel gets the true results and the true sums. With them all
that it finds is right, but for what the keys that fill the tile add to the gradient of the queries:
their values are zero and they are the first key, so that this can be told, and is taken out too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from .dispatch import NotMeant
from .key_parts import LONG, PART, attend, attend_backward, attend_in_parts, is_measured
from .triton_windows import SIZES, empty_grid, merge_group, place, split, unflatten


@triton.jit(do_not_specialize=SIZES)
def _merge_and_correct(
    windows_ptr, query_ptr, key_ptr, sums_ptr, grid_ptr, scale, room, heads, d, t, h, w,
    top, rows, height, left, columns, width, HEADS: tl.constexpr, HEAD: tl.constexpr,
    KEEP: tl.constexpr,
):  # fmt: skip
    """One program: one token. KEEP: the sum of its weights is corrected too, in its place."""
    row = tl.program_id(0)
    position, sample = place(row, t, h, w, top, rows, height, left, columns, width)
    tokens = t * height * width
    window, token = (row // tokens).to(tl.int64), row % tokens
    features, head = tl.arange(0, HEADS * HEAD), tl.arange(0, HEADS)
    inside = features < d
    at = (window * room + token) * d + features
    x = tl.load(windows_ptr + at, mask=inside, other=0.0).to(tl.float32)
    query = tl.load(query_ptr + at, mask=inside, other=0.0).to(tl.float32)
    key = tl.load(key_ptr + window * room * d + features, mask=inside, other=0.0).to(tl.float32)
    score = tl.sum(tl.reshape(query * key, (HEADS, HEAD)), axis=1) * scale
    sum_at = sums_ptr + (window * heads + head) * room + token
    total = tl.load(sum_at, mask=head < heads, other=0.0)
    rest = 1 - (room - tokens) * tl.exp(score - total)
    factor = 1 / rest
    if KEEP:
        tl.store(sum_at, total + tl.log(rest), mask=head < heads)
    x = tl.reshape(tl.reshape(x, (HEADS, HEAD)) * factor[:, None], (HEADS * HEAD,))
    at = (sample.to(tl.int64) * t * h * w + position) * d + features
    tl.store(grid_ptr + at, x, mask=inside)


@triton.jit(do_not_specialize=("tokens", "room", "heads", "d"))
def _correct_gradient(
    of_query_ptr, query_ptr, key_ptr, grad_ptr, out_ptr, sums_ptr, scale, tokens, room, heads, d,
    HEADS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """One program: one token."""
    number = tl.program_id(0).to(tl.int64)
    window, token = number // tokens, number % tokens
    head = tl.arange(0, HEADS)
    features = head[:, None] * HEAD + tl.arange(0, HEAD)[None, :]
    inside = features < d
    at = (window * room + token) * d + features
    query = tl.load(query_ptr + at, mask=inside, other=0.0).to(tl.float32)
    key = tl.load(key_ptr + window * room * d + features, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
    out = tl.load(out_ptr + at, mask=inside, other=0.0).to(tl.float32)
    of_query = tl.load(of_query_ptr + at, mask=inside, other=0.0).to(tl.float32)
    total = tl.load(sums_ptr + (window * heads + head) * room + token, mask=head < heads, other=0.0)
    score, along = tl.sum(query * key, axis=1) * scale, tl.sum(grad * out, axis=1)
    factor = (room - tokens) * tl.exp(score - total) * along * scale
    tl.store(of_query_ptr + at, of_query + key * factor[:, None], mask=inside)


@torch.library.custom_op("ultragen::merge_whole_tiles", mutates_args=())
def _merge(
    windows: list[Tensor],
    query: list[Tensor],
    key: list[Tensor],
    sums: list[Tensor],
    heads: int,
    groups: list[int],
    size: list[int],
) -> Tensor:
    """Windows (b windows) n d and sums (b windows) heads n; size: frames, rows and columns of the
    grid."""
    return merge_and_correct(windows, query, key, sums, heads, groups, size, keep=False)


def merge_and_correct(
    windows: list[Tensor],
    query: list[Tensor],
    key: list[Tensor],
    sums: list[Tensor],
    heads: int,
    groups: list[int],
    size: Sequence[int],
    keep: bool,
) -> Tensor:
    """What `merge` does, with all numbers of the groups of windows one after the other; `keep` also
    takes what fills the last tiles out of the sums, in their place."""
    grid = empty_grid(windows, groups, [*size])
    _, t, h, w, d = grid.shape
    for out, q, k, total, rectangle in zip(
        windows, query, key, sums, unflatten(groups), strict=True
    ):
        room, tokens = out.shape[1], t * rectangle[2] * rectangle[5]
        if room == tokens:
            merge_group(grid, out.contiguous(), rectangle)
            continue
        with torch.cuda.device_of(grid):
            _merge_and_correct[(len(out) * tokens,)](
                out.contiguous(), q, k, total, grid, (d // heads) ** -0.5, room, heads,
                d, t, h, w, *rectangle, triton.next_power_of_2(heads), d // heads, keep,
            )  # fmt: skip
    return grid


@_merge.register_fake
def _(windows, query, key, sums, heads, groups, size):
    return empty_grid(windows, groups, size)


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Attention, b n d each, and the logarithm of the sum of each query's weights, b heads n."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    long = key.shape[1] > LONG
    out, sums = attend_in_parts(q, k, v, PART) if long else attend(q, k, v)
    return out.transpose(1, 2).flatten(2), sums[..., 0].contiguous()


def attention_gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    sums: Tensor,
    heads: int,
    tokens: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of queries, keys and values.

    Args:
        grad: Of what was attended to, (b windows) n d; zero behind the last token.
        query: (b windows) n d, as for `attention`.
        key: The same.
        value: The same.
        out: What was attended to, without what fills the last tiles, (b windows) n d.
        sums: What `merge_and_correct` keeps, (b windows) heads n.
        heads: Attention heads.
        tokens: Tokens of a window.

    Returns:
        Each (b windows) n d; what they hold behind the last token means nothing.
    """
    windows, room, d = query.shape
    given = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (grad, query, key, value, out)]
    found = attend_backward(given[0], given[1], given[2], given[3], given[4], sums)
    of_query, of_key, of_value = (x.transpose(1, 2).flatten(2) for x in found)
    if room > tokens:
        of_query = of_query.contiguous()
        with torch.cuda.device_of(query):
            _correct_gradient[(windows * tokens,)](
                of_query, query, key, grad, out, sums, (d // heads) ** -0.5, tokens, room, heads, d,
                triton.next_power_of_2(heads), d // heads,
            )  # fmt: skip
    return of_query, of_key, of_value


def merge(
    windows: list[Tensor],
    query: list[Tensor],
    key: list[Tensor],
    sums: list[Tensor],
    heads: int,
    rectangles: Sequence[tuple[int, ...]],
    size: tuple[int, int, int],
) -> Tensor:
    """What windows attended to, as a grid, without the part of what fills their last tiles.

    Args:
        windows: What `attention` gave for each group of windows, (b windows) n d.
        query: What `rotary_norm` gave with tiles, in the shape of `windows`.
        key: The same.
        sums: What else `attention` gave, (b windows) heads n.
        heads: Attention heads; each has a power of two of features.
        rectangles: The groups of equal windows, as `window_order.split_windows` takes them.
        size: Frames, rows and columns of the grid.

    Returns:
        b t h w d.
    """
    groups = [number for r in rectangles for number in r]
    return _merge(windows, query, key, sums, heads, groups, list(size))


def try_on(device: torch.device) -> None:
    """Runs it on little; raises where it does not run, gives something else, or is not meant to."""
    if not is_measured(device):
        raise NotMeant("for Hopper alone, where it was found to pay")
    tokens, tile, d = 130, 128, 128
    angle = torch.arange(3 * tokens * d, device=device).view(3, 1, 1, 1, tokens, d)
    query, key, value = (3 * (angle % 977).sin()).to(torch.bfloat16).unbind()
    whole = [(0, 1, 1, 0, 1, tokens)]
    # The first token again, as `rotary_norm` leaves it.
    q, k = (
        torch.cat((x[:, 0, 0], x[:, 0, 0, :1].expand(-1, -tokens % tile, -1)), 1)
        for x in (query, key)
    )
    out, sums = attention(q, k, split(value, whole, tile)[0], 1)
    found = merge([out], [q], [k], [sums], 1, whole, (1, 1, tokens))
    q, k, v = (x[:, :, 0].float() for x in (query, key, value))
    expected = F.scaled_dot_product_attention(q, k, v)
    if not torch.allclose(found[:, :, 0].float(), expected, rtol=0.02, atol=0.02):
        raise RuntimeError("attention over whole tiles gives something else here")
