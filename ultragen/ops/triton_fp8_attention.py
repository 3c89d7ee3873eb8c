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

QUERIES, KEYS = 128, 64  # of a block, each with a scale
SHIFT = 8  # weights are up to 2 ** SHIFT in FP8, whose smallest numbers are not fine enough
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
EIGHT_BITS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


@triton.jit
def _rounded(x):
    """Positive numbers with the four significant bits of FP8, to the nearest even (Veltkamp)."""
    large = x * 1048577.0  # 2 ** 20 + 1
    return large - (large - x)


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
                weights = _rounded(weights)
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


def quantize(x: Tensor, block: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Tokens … n d in 8 bits, and what to multiply each block of them by, … blocks in float32."""
    n = x.shape[-2]
    room = -n % block
    blocks = torch.nn.functional.pad(x.float(), (0, 0, 0, room)).unflatten(-2, (-1, block))
    scale = blocks.abs().amax((-2, -1)).clamp(min=1e-12) / LARGEST[dtype]
    blocks = blocks / scale[..., None, None]
    if dtype == torch.int8:
        blocks = blocks.round()
    return blocks.flatten(-3, -2)[..., :n, :].to(dtype).contiguous(), scale


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
    *batch, n, d = query.shape
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        raise ValueError("Attention in 8 bits has no gradients: train in bfloat16.")
    if d < 32 or d & (d - 1):
        raise ValueError(f"Attention in 8 bits needs heads of 32, 64, 128 … features, not {d}.")
    mean = key.float().mean(-2, keepdim=True)
    dtype = EIGHT_BITS[logits]
    queries, query_scale = quantize(query, QUERIES, dtype)
    keys, key_scale = quantize(key.float() - mean, KEYS, dtype)
    query_scale *= d**-0.5 / log(2)  # weights are powers of two
    fp8 = values == "fp8"
    in_values, value_scale = quantize_features(value) if fp8 else (value.contiguous(), query_scale)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    sums = query.new_empty((*batch, n, 1), dtype=torch.float32)
    programs = triton.cdiv(n, QUERIES), query[..., 0, 0].numel()
    with torch.cuda.device_of(query):  # Triton takes the current device, wherever the tensors are
        _attend[programs](
            queries, keys, in_values, query_scale, key_scale, value_scale, out, sums, n,
            key.shape[-2], d, QUERIES, KEYS, SHIFT, logits == "int8", fp8, runtime.interpret,
            num_warps=8, num_stages=3,
        )  # fmt: skip
    # What the mean would have added to every logit of a query: parts of keys have other means.
    return out, sums * log(2) + query.float() @ mean.mT * d**-0.5


def try_on(device: torch.device) -> None:
    """Runs the kernels on next to nothing; raises where they do not run."""
    if not is_measured(device):
        raise NotMeant("attention in 8 bits is for Hopper GPUs")
    x = torch.ones(1, 1, 1, 128, device=device, dtype=torch.bfloat16)
    attend(x, x, x, "int8", "bf16")
    attend(x, x, x, "fp8", "fp8")
