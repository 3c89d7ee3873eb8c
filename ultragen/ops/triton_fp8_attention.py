"""Attention with 8-bit queries and keys, and values in bfloat16 or FP8, in Triton.

Queries and keys have a scale for each block of tokens, and the keys' mean is taken out, which
changes no weight (SageAttention, Zhang et al., 2024, arXiv 2410.02367). FP8 values have a scale for
each feature; what a block of keys gives is added up in a float32 sum of its own before it comes to
the total, as FP8 products on Hopper keep few bits of long sums. Gaussian values lose 2.6 % by FP8,
and so do weights, however many are added up: bfloat16 values are for where that is too much.
"""

from __future__ import annotations

from math import log

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.knobs import runtime

from .dispatch import NotMeant
from .key_parts import is_measured
from .triton_rounding import rounded

QUERIES, KEYS = 128, 64  # of a block, each with a scale
SHIFT = 8  # weights are up to 2 ** SHIFT in FP8, whose smallest numbers are not fine enough
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
EIGHT_BITS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


@triton.jit
def _attend(
    query_ptr, key_ptr, value_ptr, query_scale_ptr, key_scale_ptr, value_scale_ptr, out_ptr,
    sums_ptr, n, m,
    D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, SHIFT: tl.constexpr,
    INTEGERS: tl.constexpr, FP8_VALUES: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program: a block of queries of one head. Values are d m in FP8, and m d otherwise."""
    head = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    features, tokens = tl.arange(0, D), tl.arange(0, KEYS)
    at = (head * n + rows)[:, None] * D + features[None, :]
    query = tl.load(query_ptr + at, mask=(rows < n)[:, None], other=0.0)
    query_scale = tl.load(query_scale_ptr + head * tl.cdiv(n, QUERIES) + tl.program_id(0))
    largest = tl.full((QUERIES,), float("-inf"), tl.float32)
    sums = tl.zeros((QUERIES,), tl.float32)
    total = tl.zeros((QUERIES, D), tl.float32)
    for first in range(0, m, KEYS):
        columns = first + tokens
        there = columns < m
        in_keys = (head * m + columns)[None, :] * D + features[:, None]
        key = tl.load(key_ptr + in_keys, mask=there[None, :], other=0.0)
        if INTEGERS:
            logits = tl.dot(query, key, out_dtype=tl.int32).to(tl.float32)
        else:
            logits = tl.dot(query, key)
        key_scale = tl.load(key_scale_ptr + head * tl.cdiv(m, KEYS) + first // KEYS)
        logits = tl.where(there[None, :], logits * (query_scale * key_scale), float("-inf"))
        now = tl.maximum(largest, tl.max(logits, 1))
        weights = tl.exp2(logits - (now - SHIFT)[:, None])
        fade = tl.exp2(largest - now)
        sums = sums * fade + tl.sum(weights, 1)
        if FP8_VALUES:
            if INTERPRETED:  # Triton 3.9's interpreter loses the carry: 1.99 becomes 1, not 2
                weights = rounded(weights)
            in_values = (head * D + features)[:, None] * m + columns[None, :]
            value = tl.load(value_ptr + in_values, mask=there[None, :], other=0.0)
            found = tl.dot(weights.to(tl.float8e4nv), tl.trans(value))
        else:
            in_values = (head * m + columns)[:, None] * D + features[None, :]
            value = tl.load(value_ptr + in_values, mask=there[:, None], other=0.0)
            found = tl.dot(weights.to(value.dtype), value)
        total = total * fade[:, None] + found
        largest = now
    total /= sums[:, None]
    if FP8_VALUES:
        total *= tl.load(value_scale_ptr + head * D + features)[None, :]
    tl.store(out_ptr + at, total, mask=(rows < n)[:, None])
    tl.store(sums_ptr + head * n + rows, largest - SHIFT + tl.log2(sums), mask=rows < n)


@triton.jit
def _quantize(
    x_ptr, mean_ptr, out_ptr, scale_ptr, n, heads, of_batch, of_head, of_token,
    D: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr, INTEGERS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program: a block of tokens of one head."""
    head = tl.program_id(1).to(tl.int64)
    rows, features = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, D)
    there = (rows < n)[:, None]
    first = (head // heads) * of_batch + (head % heads) * of_head
    at = first + rows.to(tl.int64)[:, None] * of_token + features[None, :]
    x = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32)
    x = tl.where(there, x - tl.load(mean_ptr + head * D + features)[None, :], 0.0)
    scale = tl.maximum(tl.max(tl.max(tl.abs(x), 1), 0), 1e-12) / LARGEST
    x /= scale
    if INTEGERS:
        x = tl.floor(x + 0.5)
    elif INTERPRETED:
        x = rounded(x)
    into = out_ptr + (head * n + rows)[:, None] * D + features[None, :]
    tl.store(into, x.to(out_ptr.dtype.element_ty), mask=there)
    tl.store(scale_ptr + head * tl.cdiv(n, BLOCK) + tl.program_id(0), scale)


def quantize(x: Tensor, mean: Tensor, block: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Tokens b heads n d without a mean, b heads 1 d in float32, in 8 bits; and what to multiply
    each block of them by, b heads blocks in float32. One pass over memory."""
    b, heads, n, d = x.shape
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = x.new_empty(x.shape, dtype=dtype)
    scale = x.new_empty((b, heads, triton.cdiv(n, block)), dtype=torch.float32)
    with torch.cuda.device_of(x):  # Triton takes the current device, wherever the tensors are
        _quantize[scale.shape[-1], b * heads](
            x, mean.contiguous(), out, scale, n, heads, *x.stride()[:3], d, block, LARGEST[dtype],
            dtype == torch.int8, runtime.interpret,
        )  # fmt: skip
    return out, scale


def quantize_features(x: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens … n d as … d n in FP8, and what to multiply each feature by, … d in float32."""
    scale = x.abs().amax(-2).float().clamp(min=1e-12) / LARGEST[torch.float8_e4m3fn]
    return (x / scale[..., None, :]).mT.to(torch.float8_e4m3fn).contiguous(), scale


def attend(
    query: Tensor, key: Tensor, value: Tensor, logits: str = "int8", values: str = "bf16"
) -> tuple[Tensor, Tensor]:
    """Attention without gradients.

    Args:
        query: b heads n d, d a power of two from 32.
        key: b heads m d.
        value: b heads m d.
        logits: The type of queries and keys, `int8` or `fp8`.
        values: The type of values and weights: `fp8`, or `bf16`, which leaves values as they are.

    Returns:
        b heads n d, and the logarithms of the sums of weights, b heads n 1 in float32, as
        `key_parts.attend` gives them.

    Raises:
        ValueError: if gradients are wanted, or the size of heads does not suit.
    """
    b, heads, n, d = query.shape
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        raise ValueError("Attention in 8 bits has no gradients: train in bfloat16.")
    if d < 32 or d & (d - 1):
        raise ValueError(f"Attention in 8 bits needs heads of 32, 64, 128 … features, not {d}.")
    mean = key.mean(-2, keepdim=True, dtype=torch.float32)
    dtype = EIGHT_BITS[logits]
    queries, query_scale = quantize(query, torch.zeros_like(mean), QUERIES, dtype)
    keys, key_scale = quantize(key, mean, KEYS, dtype)
    query_scale *= d**-0.5 / log(2)  # weights are powers of two
    fp8 = values == "fp8"
    in_values, value_scale = quantize_features(value) if fp8 else (value.contiguous(), query_scale)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    sums = query.new_empty((b, heads, n, 1), dtype=torch.float32)
    programs = triton.cdiv(n, QUERIES), b * heads
    with torch.cuda.device_of(query):  # Triton takes the current device, wherever the tensors are
        _attend[programs](
            queries, keys, in_values, query_scale, key_scale, value_scale, out, sums, n,
            key.shape[-2], d, QUERIES, KEYS, SHIFT, logits == "int8", fp8, runtime.interpret,
            num_warps=8, num_stages=3,
        )  # fmt: skip
    # What the mean would have added to every logit of a query: parts of keys have other means.
    return out, sums * log(2) + (query @ mean.mT.to(query.dtype)).float() * d**-0.5


def try_on(device: torch.device) -> None:
    """Runs the kernels on next to nothing; raises where they do not run."""
    if not is_measured(device):
        raise NotMeant("attention in 8 bits is for Hopper GPUs")
    x = torch.ones(1, 1, 1, 128, device=device, dtype=torch.bfloat16)
    attend(x, x, x, "int8", "bf16")
    attend(x, x, x, "fp8", "fp8")
