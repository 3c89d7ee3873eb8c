"""Wan's transformer block with its elementwise work in few passes.

A block is Wan's; only the way is another one. On a GPU, without gradients, what lies between the
matrix products and the attention runs in fused kernels, and the feed-forward network's activation
in the matrix product before it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers import TaylorSeerCacheConfig
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.activations import GELU
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor, nn

from .kernels import kernel_works

ATTENTION = r"blocks\.\d+\.attn[12]"
"""Names of both attentions of all blocks in the transformer."""


class UltraGenBlock(WanTransformerBlock):
    """Self-attention, attention to the text, feed-forward network."""

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
        # Wan without the norm before cross-attention has nothing there to fuse.
        plain = torch.is_grad_enabled() or not isinstance(self.norm2, FP32LayerNorm)
        if plain or not kernel_works("modulation", hidden_states.device):
            return super().forward(hidden_states, encoder_hidden_states, temb, rotary_emb)
        from .kernels.modulation import gated_sum, modulated_norm, sum_and_norm

        x, (weight, bias) = hidden_states, (self.norm2.weight, self.norm2.bias)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (
            self.scale_shift_table + temb.float()
        ).chunk(6, dim=1)
        normed = modulated_norm(x, 1 + scale, shift, self.norm1.eps)
        update = self.attn1(normed, None, None, rotary_emb)
        x, normed = sum_and_norm(x, update, gate, weight, bias, self.norm2.eps)
        update = self.attn2(normed, encoder_hidden_states, None, None)
        x, normed = sum_and_norm(x, update, None, 1 + ffn_scale, ffn_shift, self.norm3.eps)
        return gated_sum(x, self.ffn(normed), ffn_gate)


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


class FusedGELU(GELU):
    """Linear layer and GELU (tanh), on a GPU as one matrix product."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """b n d → b n hidden."""
        if torch.is_grad_enabled() or not hidden_states.is_cuda or not is_bare(self.proj):
            return super().forward(hidden_states)
        rows = hidden_states.flatten(0, -2)
        out = torch._addmm_activation(self.proj.bias, rows, self.proj.weight.t(), use_gelu=True)
        return out.unflatten(0, hidden_states.shape[:-1])


def is_bare(layer: nn.Module) -> bool:
    """Whether a linear layer is nothing but its weight and bias: neither adapted, quantised nor
    hooked, so that its forward may be replaced by its arithmetic."""
    hooks = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    return (
        type(layer) is nn.Linear
        and layer.bias is not None
        and type(layer.weight) is nn.Parameter
        and not hooks
    )
