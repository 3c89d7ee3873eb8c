"""Wan's transformer block, and its patch embedding, with their elementwise work in few passes.

A block is Wan's; only the way is another one. Without gradients, what lies between the matrix
products and the attention runs in fused kernels, and the feed-forward network's activation in the
matrix product before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from diffusers import TaylorSeerCacheConfig
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.activations import GELU
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import (
    WanAttention,
    WanAttnProcessor,
    WanTransformerBlock,
)
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .kernels import kernel_works, wants_plain_code
from .linear import is_bare, is_untouched
from .tiles import tile_of


class FullAttnProcessor(WanAttnProcessor):
    """Attention over all tokens with absolute positions, as Wan's; on a GPU, without gradients,
    with norm and positions in one pass."""

    def __call__(  # type: ignore[override]
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Tokens b n d and Wan's cos and sin, 1 n 1 and the head size → b n d."""
        norms = attn.norm_q, attn.norm_k
        plain = torch.is_grad_enabled() or attn.fused_projections
        plain = plain or not all(is_untouched(norm, nn.RMSNorm) for norm in norms)
        works = kernel_works("rotary_norm", hidden_states.device)
        if plain or rotary_emb is None or not works:
            return super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb
            )
        from .kernels.rotary_norm import rotary_norm

        cos, sin = rotary_emb[0][0, :, 0, ::2].contiguous(), rotary_emb[1][0, :, 0, 1::2]
        tables, tokens = (cos, sin.contiguous()), hidden_states.shape[1]
        whole = [(0, 1, 1, 0, 1, tokens)]  # as one window
        tile = tile_of(self, hidden_states, attn.heads, [tokens])
        query, key = (
            rotary_norm(x[:, None, None], norm.weight, tables, norm.eps, whole, tile)[0]
            for x, norm in (
                (attn.to_q(hidden_states), attn.norm_q),
                (attn.to_k(hidden_states), attn.norm_k),
            )
        )
        value = attn.to_v(hidden_states)
        if tile > 1:
            out = attend_to_whole_tiles(query, key, value, attn.heads)
        else:
            out = dispatch_attention_fn(
                *(x.unflatten(-1, (attn.heads, -1)) for x in (query[:, 0, 0], key[:, 0, 0], value)),
                backend=self._attention_backend,
                parallel_config=self._parallel_config,
            ).flatten(2)
        return attn.to_out[1](attn.to_out[0](out.type_as(query)))


def attend_to_whole_tiles(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attention over all tokens: query and key b n d with whole tiles, value and result without."""
    from .kernels import whole_tiles
    from .kernels.windows import split

    tokens = value.shape[1]
    whole = [(0, 1, 1, 0, 1, tokens)]
    (filled,) = split(value[:, None, None], whole, query.shape[1])
    out, sums = whole_tiles.attention(query, key, filled, heads)
    groups = [out], [query], [key], [sums]
    return whole_tiles.merge(*groups, heads, whole, (1, 1, tokens))[:, 0, 0]


def fused_modulation(device: torch.device) -> Any:
    """The module whose functions do a block's norms, shifts, scales and sums in few passes on a
    device; None where there is none."""
    if kernel_works("modulation", device):
        from .kernels import modulation

        return modulation
    if kernel_works("cpu", device):
        from .kernels import cpu

        return cpu
    return None


Modulation = tuple[Tensor, ...]


def _enter(block: UltraGenBlock, x: Tensor, temb: Tensor) -> tuple[Tensor, Modulation]:
    """What comes before the self-attention: its input, and the shifts, scales and gates."""
    shift, scale, *others = (block.scale_shift_table + temb.float()).chunk(6, dim=1)
    return (block.norm1(x.float()) * (1 + scale) + shift).type_as(x), tuple(others)


def _leave(
    block: UltraGenBlock, x: Tensor, update: Tensor, text: Tensor, modulation: Modulation
) -> Tensor:
    """What comes after the self-attention."""
    gate, ffn_shift, ffn_scale, ffn_gate = modulation
    x = (x.float() + update * gate).type_as(x)
    x = x + block.attn2(block.norm2(x.float()).type_as(x), text, None, None)
    normed = (block.norm3(x.float()) * (1 + ffn_scale) + ffn_shift).type_as(x)
    return (x.float() + block.ffn(normed).float() * ffn_gate).type_as(x)


@cache
def compiled_ends() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`_enter` and `_leave`, compiled once for all blocks."""
    return torch.compile(_enter, dynamic=True), torch.compile(_leave, dynamic=True)


ATTENTION = r"blocks\.\d+\.attn[12]"
"""Names of both attentions of all blocks in the transformer."""


class UltraGenBlock(WanTransformerBlock):
    """Self-attention, attention to the text, feed-forward network.

    Attributes:
        compiled: Whether training steps compile what lies around the self-attention, whose
            windows come in many sizes, and which therefore stays as it is.
    """

    compiled = False

    @classmethod
    def register(cls) -> None:
        """Tells diffusers' caches how to call a block. Not on import: it makes diffusers import all
        of its transformers."""
        TransformerBlockRegistry.register(
            cls, TransformerBlockMetadata(return_hidden_states_index=0)
        )

    @classmethod
    def take_over(cls, block: WanTransformerBlock) -> None:
        """Makes a block of Wan's one of these: it keeps its parameters, which are the same."""
        block.__class__ = cls
        block.attn1.set_processor(FullAttnProcessor())
        activation = block.ffn.net[0]
        if isinstance(activation, GELU) and activation.approximate == "tanh":
            activation.__class__ = FusedGELU

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        rotary_emb: object,
    ) -> Tensor:
        """Tokens b n d, text b m d, modulation b 6 d, and what the self-attention needs to know of
        the input → tokens b n d."""
        if self.compiled and torch.is_grad_enabled():
            enter, leave = compiled_ends()
            normed, modulation = enter(self, hidden_states, temb)
            update = self.attn1(normed, None, None, rotary_emb)
            return leave(self, hidden_states, update, encoder_hidden_states, modulation)
        # Wan without the norm before cross-attention has nothing there to fuse.
        norms = self.norm1, self.norm2, self.norm3
        plain = not all(is_untouched(norm, FP32LayerNorm) for norm in norms)
        plain = plain or torch.is_grad_enabled()
        fused = None if plain else fused_modulation(hidden_states.device)
        if fused is None:
            return super().forward(hidden_states, encoder_hidden_states, temb, rotary_emb)
        x, (weight, bias) = hidden_states, (self.norm2.weight, self.norm2.bias)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (
            self.scale_shift_table + temb.float()
        ).chunk(6, dim=1)
        normed = fused.modulated_norm(x, 1 + scale, shift, self.norm1.eps)
        update = self.attn1(normed, None, None, rotary_emb)
        x, normed = fused.sum_and_norm(x, update, gate, weight, bias, self.norm2.eps)
        update = self.attn2(normed, encoder_hidden_states, None, None)
        x, normed = fused.sum_and_norm(x, update, None, 1 + ffn_scale, ffn_shift, self.norm3.eps)
        return fused.gated_sum(x, self.ffn(normed), ffn_gate)


def cache_config(config: Any) -> Any:
    """The configuration of a cache with the parts named that it works on.

    TaylorSeer predicts the attentions' outputs unless other parts are named, and finds only those
    that are called `attn`: in Wan's blocks none, and nothing would be saved.
    """
    if not isinstance(config, TaylorSeerCacheConfig) or config.use_lite_mode:
        return config
    if config.cache_identifiers or config.skip_predict_identifiers:
        return config
    return replace(config, cache_identifiers=[ATTENTION])


def modulated_norm(norm: FP32LayerNorm, x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """Norm of tokens b n d, then · factor + offset, b 1 d each, computed in float32."""
    plain = torch.is_grad_enabled() or not is_untouched(norm, FP32LayerNorm)
    plain = plain or norm.weight is not None
    fused = None if plain else fused_modulation(x.device)
    if fused is None:
        return (norm(x.float()) * factor + offset).type_as(x)
    return fused.modulated_norm(x, factor, offset, norm.eps)


class PatchEmbedding(nn.Conv3d):
    """Wan's patch embedding, a convolution whose stride is its size, as one matrix product.

    Tokens come out one after the other in memory, as the blocks take them, where the convolution
    leaves feature after feature.
    """

    @classmethod
    def take_over(cls, layer: nn.Module) -> None:
        """Makes Wan's layer one of these: it keeps its parameters."""
        layer.__class__ = cls

    def forward(self, x: Tensor) -> Tensor:
        """Latents b c t h w → d features of each patch, b d t' h' w'."""
        if wants_plain_code():
            return super().forward(x)
        pt, ph, pw = self.kernel_size
        patches = rearrange(
            x, "b c (t pt) (h ph) (w pw) -> b t h w (c pt ph pw)", pt=pt, ph=ph, pw=pw
        )
        return F.linear(patches, self.weight.flatten(1), self.bias).movedim(-1, 1)


class FusedGELU(GELU):
    """Linear layer and GELU (tanh) as one matrix product."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """b n d → b n hidden."""
        plain = torch.is_grad_enabled() or not is_bare(self.proj)
        # Autocast does not know the operators, and gives tokens of another type than the weight.
        plain = plain or self.proj.weight.dtype != hidden_states.dtype
        weight, bias, device = self.proj.weight, self.proj.bias, hidden_states.device
        if not plain and hidden_states.is_cuda and kernel_works("modulation", device):
            rows = hidden_states.flatten(0, -2)
            out = torch._addmm_activation(bias, rows, weight.t(), use_gelu=True)
            return out.unflatten(0, hidden_states.shape[:-1])
        if not plain and kernel_works("cpu", device):  # there the operator above is another GELU
            from .kernels.cpu import linear_gelu

            return linear_gelu(hidden_states, weight, bias)
        return super().forward(hidden_states)
