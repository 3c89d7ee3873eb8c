"""Self-attention of T3-Video (arXiv 2512.13492): Wan's weights and no new ones, close and remote
windows.

Each layer attends twice with the same queries, keys and values, within contiguous and within
strided windows, see `ops.strided_windows`, and takes the mean. Positions are those of the whole
grid, as in Wan. How many windows each axis has changes from layer to layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from diffusers.models.transformers.transformer_wan import WanAttention
from einops import rearrange
from torch import Tensor

from ..ops.float8_linear import for_layers
from ..ops.strided_windows import Counts, merge_close, merge_remote, split_close, split_remote
from .attention import RotaryNorm, WindowAttnProcessor
from .window_plan import Rotary, WindowLayout
from .windows import attends_once, even_partition, fitting_counts

Cut = tuple[Callable[[Tensor, Counts], Tensor], Callable[[Tensor, Counts], Tensor]]
"""A grid b t h w d into windows, and back."""
CLOSE: Cut = (split_close, merge_close)
REMOTE: Cut = (split_remote, merge_remote)


# Not frozen, as `AttentionLayout`.
@dataclass(eq=False)
class T3Layout:
    """What layers with the same numbers of windows need to know of the input.

    Attributes:
        grid: Latent frames, token rows and token columns.
        whole: The grid as one window, with its positions.
        counts: Windows on each axis.
    """

    grid: tuple[int, int, int]
    whole: WindowLayout
    counts: Counts


def plan_t3(
    grid: tuple[int, int, int], kinds: Iterable[Counts], rotary: Rotary
) -> dict[Counts, T3Layout]:
    """Plans the windows of the layers of each kind, which is told by its numbers of windows.

    Args:
        grid: Latent frames, token rows and token columns.
        kinds: The numbers of windows that the layers have on the grid they were trained for.
        rotary: cos and sin of the grid, (t h w) × half the head size.
    """
    cos, sin = (table.unflatten(0, grid) for table in rotary)
    whole = WindowLayout(grid[1:], even_partition(*grid[1:], 1), (cos, sin))
    return {kind: T3Layout(grid, whole, fitting_counts(grid, kind)) for kind in kinds}


class T3AttnProcessor(WindowAttnProcessor):
    """Attention within close and remote windows, through diffusers' dispatcher."""

    def __call__(  # type: ignore[override]
        self, attn: T3Attention, query: Tensor, key: Tensor, value: Tensor, at: T3Layout
    ) -> Tensor:
        """b t h w d each → b t h w d."""
        close = self._within(attn, CLOSE, at.counts, query, key, value)
        if attends_once(at.grid, at.counts):
            return close
        return torch.lerp(close, self._within(attn, REMOTE, at.counts, query, key, value), 0.5)

    def _within(self, attn: T3Attention, cut: Cut, counts: Counts, *qkv: Tensor) -> Tensor:
        """The windows of queries, keys and values are gone once theirs become a grid: with all
        tokens of a 4K clip each takes 2 GiB."""
        split, merge = cut
        windows = self._attend(attn.head_dim, *(split(x, counts) for x in qkv))
        return merge(windows, counts)


class T3Attention(WanAttention):
    """Wan's self-attention, within windows."""

    processor: T3AttnProcessor
    _supports_qkv_fusion = False  # it calls its projections one by one
    _default_processor_cls = T3AttnProcessor
    _available_processors = [T3AttnProcessor]  # noqa: RUF012

    @classmethod
    def take_over(cls, layer: WanAttention) -> None:
        """Makes Wan's layer one of these: it keeps its parameters, which are the same."""
        layer.__class__ = cls
        for norm in (layer.norm_q, layer.norm_k):
            norm.__class__ = RotaryNorm
        layer.set_processor(T3AttnProcessor())

    @property
    def head_dim(self) -> int:
        """Features of a head."""
        return self.inner_dim // self.heads

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        rotary_emb: T3Layout | None = None,
    ) -> Tensor:
        """b (t h w) d → b (t h w) d; the layout takes the place of the rotary embedding, which it
        contains."""
        if rotary_emb is None:
            raise ValueError("rotary_emb must be a layout that `plan_t3` gives.")
        layout = rotary_emb
        t, h, w = layout.grid
        grid = rearrange(hidden_states, "b (t h w) d -> b t h w d", t=t, h=h, w=w)
        tokens = for_layers(grid, self.to_q, self.to_k, self.to_v)
        (query,) = self.norm_q(self.to_q(tokens), layout.whole, self.heads)  # b t h w d each
        (key,) = self.norm_k(self.to_k(tokens), layout.whole, self.heads)
        out = self.processor(self, query, key, self.to_v(tokens), layout)
        out = rearrange(out.type_as(hidden_states), "b t h w d -> b (t h w) d")
        return self.to_out[1](self.to_out[0](out))
