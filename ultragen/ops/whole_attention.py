"""Attention over all tokens with absolute positions, as Wan's layers have it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import Tensor, nn
from torch.nn import functional as F

from .dispatch import fused_runs
from .float8 import Tokens
from .layer_checks import is_untouched
from .rotary_norm import Rotary
from .tiles import attend_to_tiles, tile_of
from .window_attention import keeps_little, window_attention
from .window_order import split_windows


def full_attention(
    processor: WanAttnProcessor, attn: WanAttention, x: Tokens, rotary_emb: tuple[Tensor, Tensor]
) -> Tensor:
    """Self-attention of one of Wan's layers; on a GPU with norm and positions in one pass.

    Args:
        processor: Whose back end attends.
        attn: The layer.
        x: b n d; in FP8 where `attn` takes that.
        rotary_emb: Wan's cos and sin, 1 n 1 and the head size each.

    Returns:
        b n d.
    """
    norms, tokens = (attn.norm_q, attn.norm_k), x.shape[1]
    whole = [(0, 1, 1, 0, 1, tokens)]  # as one window
    known = all(is_untouched(norm, nn.RMSNorm) for norm in norms) and not attn.fused_projections
    if known and keeps_little(processor, type(processor), x, attn.heads, norms, nn.RMSNorm):
        query, key, value = (y[:, None, None] for y in (attn.to_q(x), attn.to_k(x), attn.to_v(x)))
        at = _halves(rotary_emb), attn.heads, whole
        out = window_attention(query, key, value, norms, *at)[:, 0, 0]
        return attn.to_out[1](attn.to_out[0](out))
    if torch.is_grad_enabled() or not known or not fused_runs("triton_rotary_norm", x.device):
        return WanAttnProcessor.__call__(processor, attn, x, None, None, rotary_emb)
    from .triton_rotary_norm import rotary_norm

    cos, sin = _halves(rotary_emb)
    tile = tile_of(processor, x, attn.heads, [tokens])
    query, key = (
        rotary_norm(y[:, None, None], norm.weight, (cos, sin), norm.eps, whole, tile)[0]
        for y, norm in ((attn.to_q(x), attn.norm_q), (attn.to_k(x), attn.norm_k))
    )
    value = attn.to_v(x)
    if tile > 1:
        (filled,) = split_windows(value[:, None, None], whole, query.shape[1])
        size = (1, 1, tokens)
        out = attend_to_tiles([query], [key], [filled], attn.heads, whole, size)[:, 0, 0]
    else:
        out = _attend(processor, query[:, 0, 0], key[:, 0, 0], value, attn.heads)
    return attn.to_out[1](attn.to_out[0](out.type_as(query)))


def attend_whole(processor: Any, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attention of all tokens to all tokens, without gradients, through a processor's back end.

    Args:
        processor: Whose back end attends.
        query: With norm and positions, b n d.
        key: The same.
        value: b n d.
        heads: Attention heads.

    Returns:
        b n d.
    """
    tokens = query.shape[1]
    tile = tile_of(processor, query, heads, [tokens])
    if tile == 1:
        return _attend(processor, query, key, value, heads)
    room = -tokens % tile
    query, key = (torch.cat([x, x[:, :1].expand(-1, room, -1)], dim=1) for x in (query, key))
    filled, whole = F.pad(value, (0, 0, 0, room)), [(0, 1, 1, 0, 1, tokens)]
    size = (1, 1, tokens)
    return attend_to_tiles([query], [key], [filled], heads, whole, size)[:, 0, 0]


def _halves(rotary_emb: tuple[Tensor, Tensor]) -> Rotary:
    """Wan's cos and sin without what they say twice: n × half the head size each."""
    return rotary_emb[0][0, :, 0, ::2].contiguous(), rotary_emb[1][0, :, 0, 1::2].contiguous()


def _attend(processor: Any, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    return dispatch_attention_fn(
        *(x.unflatten(-1, (heads, -1)) for x in (query, key, value)),
        backend=processor._attention_backend,
        parallel_config=processor._parallel_config,
    ).flatten(2)
