"""Wan's transformer block and patch embedding, written as the operations that they consist of.

The parameters, their names and the arithmetic are Wan's (diffusers' `WanTransformerBlock`); only
the way is another one, see `ops`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from diffusers import TaylorSeerCacheConfig
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.activations import GELU
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor, nn

from ..ops.feed_forward import feed_forward, runs_in_pieces
from ..ops.float8 import Tokens
from ..ops.gradients import compiled_in_training
from ..ops.linear import linear_gelu, patch_embedding
from ..ops.modulation import gated_sum, modulated_norm, sum_and_modulated_norm, sum_and_norm
from .full_attention import FullAttnProcessor

Modulation = tuple[Tensor, ...]
"""Gate of the self-attention; shift, scale and gate of the feed-forward network: b 1 d each."""


def enter(block: UltraGenBlock, x: Tensor, temb: Tensor) -> tuple[Tokens, Modulation]:
    """What comes before the self-attention: its input, and the modulation of what follows."""
    shift, scale, *others = (block.scale_shift_table + temb.float()).chunk(6, dim=1)  # b 1 d each
    return modulated_norm(block.norm1, x, scale, shift, block.attn1), tuple(others)  # b n d


def leave(
    block: UltraGenBlock, x: Tensor, handed: list[Tensor], text: Tensor, modulation: Modulation
) -> Tensor:
    """What comes after the self-attention: attention to the text, and the feed-forward network.

    What the self-attention gave is handed over in a list, out of which it is taken: a caller that
    still held it would hold 2 GiB of a 4K clip beside the network's hidden features.
    """
    gate, ffn_shift, ffn_scale, ffn_gate = modulation
    x, normed = sum_and_norm(block.norm2, x, handed.pop(), gate, block.attn2)  # b n d each
    update = block.attn2(normed, text, None, None)  # b n d
    if runs_in_pieces(block.norm3, x, update, block.ffn):
        return feed_forward(block.norm3, x, update, ffn_scale, ffn_shift, block.ffn, ffn_gate)
    # Not a function of its own: while it ran, x and normed would still be held here.
    x, normed = sum_and_modulated_norm(block.norm3, x, update, ffn_scale, ffn_shift, block.ffn)
    return gated_sum(x, block.ffn(normed), ffn_gate)  # b n d


ATTENTION = r"blocks\.\d+\.attn[12]"
"""Names of both attentions of all blocks in the transformer."""


class UltraGenBlock(WanTransformerBlock):
    """Self-attention, attention to the text, feed-forward network."""

    enter: Callable[..., tuple[Tokens, Modulation]] = staticmethod(enter)
    leave: Callable[..., Tensor] = staticmethod(leave)

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

    def compile_for_training(self) -> None:
        """Compiles what lies around the self-attention in training steps, once for all blocks. The
        self-attention, whose windows come in many sizes, stays as it is."""
        self.enter, self.leave = compiled_in_training(enter), compiled_in_training(leave)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        rotary_emb: object,
    ) -> Tensor:
        """Tokens b n d, text b m d, modulation b 6 d, and what the self-attention needs to know of
        the input → tokens b n d."""
        normed, modulation = self.enter(self, hidden_states, temb)  # b n d
        handed = [self.attn1(normed, None, None, rotary_emb)]  # b n d
        del normed  # see `leave`
        return self.leave(self, hidden_states, handed, encoder_hidden_states, modulation)


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


class PatchEmbedding(nn.Conv3d):
    """Wan's patch embedding, a convolution whose stride is its size, as one matrix product."""

    @classmethod
    def take_over(cls, layer: nn.Module) -> None:
        """Makes Wan's layer one of these: it keeps its parameters."""
        layer.__class__ = cls

    def forward(self, x: Tensor) -> Tensor:
        """Latents b c t h w → d features of each patch, b d t' h' w'."""
        return patch_embedding(x, self.weight, self.bias, self.kernel_size)


class FusedGELU(GELU):
    """Linear layer and GELU (tanh) as one matrix product."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """b n d → b n hidden."""
        return linear_gelu(hidden_states, self)
