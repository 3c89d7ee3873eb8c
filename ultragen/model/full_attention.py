"""Attention over all tokens with absolute positions: the layers that the released weights keep
full."""

from __future__ import annotations

from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import Tensor

from ..ops.float8 import Tokens
from ..ops.whole_attention import full_attention


class FullAttnProcessor(WanAttnProcessor):
    """Wan's processor for self-attention, through our operation."""

    def __call__(  # type: ignore[override]
        self,
        attn: WanAttention,
        hidden_states: Tokens,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Tokens b n d and Wan's cos and sin, 1 n 1 and the head size → b n d."""
        if rotary_emb is None:
            return super().__call__(attn, hidden_states)
        return full_attention(self, attn, hidden_states, rotary_emb)
