"""One clip by several processes, each with some of the tokens (context parallelism).

The layers and their weights are those of one process. What differs is where a token is when it is
attended to, see `shared_layouts`; all else is done where the process has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch.distributed as dist
from diffusers import FirstBlockCacheConfig, SeaCacheConfig
from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig
from diffusers.models.transformers.transformer_wan import WanAttention
from einops import rearrange
from torch import Tensor

from ..ops.decompress import decompress_part_and_fuse
from ..ops.exchange import Member, check_alike
from ..ops.float8_linear import for_layers
from ..ops.rotary_norm import rotary_norm
from ..ops.whole_attention import attend_whole
from .attention import CompressedBranch, Projection, UltraGenAttention, WindowAttnProcessor
from .compression import Decompression
from .full_attention import FullAttnProcessor
from .shared_layouts import HeadsAttend, SharedHeads, SharedLayout, SharedWindows, Shares
from .t3_attention import T3Attention, T3AttnProcessor, T3Layout
from .token_shares import check_heads
from .window_plan import AttentionLayout

PROCESSORS = (WindowAttnProcessor, FullAttnProcessor, T3AttnProcessor)
"""Whose attention is shared out."""


class SharedAttention(UltraGenAttention):
    """UltraGen's self-attention on the tokens of one process; a layout is a `SharedLayout`."""

    def local(self, grid: Tensor, at: SharedWindows) -> Tensor:  # type: ignore[override]
        """The process's own tokens, b t h w d → b t h w d."""
        return self._share(grid, self.to_q, self.to_k, self.to_v, at)

    def compressed(  # type: ignore[override]
        self, branch: CompressedBranch, grid: Tensor, at: SharedWindows | SharedHeads
    ) -> Tensor:
        """The process's own tokens, b t h w d → those of the small grid that these are made of,
        b t h' w' d."""
        query, key, value = self.projections(branch)
        return self._share(branch.compression(grid), query, key, value, at)

    def fuse(  # type: ignore[override]
        self, branch: CompressedBranch, layout: SharedLayout, fine: Tensor, coarse: Tensor
    ) -> Tensor:
        """What `CompressedBranch.fuse` gives for the process's own tokens."""
        gate, axes = branch.gate(layout.timestep.type_as(fine)), layout.upsampling[branch.factor]
        return decompress_part_and_fuse(
            fine, coarse, gate, *axes, branch.decompression, Decompression
        )

    def _share(
        self,
        x: Tensor,
        to_q: Projection,
        to_k: Projection,
        to_v: Projection,
        at: SharedWindows | SharedHeads,
    ) -> Tensor:
        if isinstance(at, SharedWindows):
            return at.attend(x, lambda batch, window: self.attend(batch, to_q, to_k, to_v, window))
        tokens = for_layers(x, to_q, to_k, to_v)
        (query,) = self.norm_q(to_q(tokens), at.at, self.heads)  # b t h w d each
        (key,) = self.norm_k(to_k(tokens), at.at, self.heads)
        return at.attend(attention_of(self.processor), query, key, to_v(tokens))


class SharedFullAttnProcessor(FullAttnProcessor):
    """Attention over all tokens, of which a process has some."""

    def __call__(  # type: ignore[override]
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        rotary_emb: SharedHeads | None = None,
    ) -> Tensor:
        """b n d → b n d."""
        if rotary_emb is None:
            raise ValueError("rotary_emb must be what `Shares.full` gives.")
        at = rotary_emb.at
        h, w = at.size
        grid = rearrange(hidden_states, "b (t h w) d -> b t h w d", h=h, w=w)
        tokens = for_layers(grid, attn.to_q, attn.to_k, attn.to_v)
        (query,), (key,) = (
            rotary_norm(
                linear(tokens),
                norm.weight,
                norm.eps,
                at.rotary,
                attn.heads,
                at.partition.rectangles,
            )
            for linear, norm in ((attn.to_q, attn.norm_q), (attn.to_k, attn.norm_k))
        )
        out = rotary_emb.attend(attention_of(self), query, key, attn.to_v(tokens))
        out = rearrange(out, "b t h w d -> b (t h w) d")
        return attn.to_out[1](attn.to_out[0](out))


@dataclass(eq=False)
class SharedT3Layout(T3Layout):
    """What `T3Layout` says, for the tokens of one process.

    Attributes:
        clip: The layout of all tokens.
        heads: Those of each process.
    """

    clip: T3Layout
    heads: SharedHeads


class SharedT3AttnProcessor(T3AttnProcessor):
    """Attention within close and remote windows, by each process with some of the heads.

    A remote window has tokens of the whole clip: processes that had windows would exchange as
    much for the remote ones alone as heads do for both kinds.
    """

    def __call__(  # type: ignore[override]
        self, attn: T3Attention, query: Tensor, key: Tensor, value: Tensor, at: SharedT3Layout
    ) -> Tensor:
        """The process's own tokens, b t h w d each → b t h w d."""

        def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
            return T3AttnProcessor.__call__(self, attn, query, key, value, at.clip)

        return at.heads.attend(attend, query, key, value)


def attention_of(processor: Any) -> HeadsAttend:
    """Attention of all tokens of a grid to all, through a processor's back end."""

    def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        shape = query.shape
        query, key, value = (x.flatten(1, 3) for x in (query, key, value))
        return attend_whole(processor, query, key, value, heads).view(shape)

    return attend


def join(transformer: Any, config: Any) -> None:
    """Has a transformer compute each clip together with those of other processes, without
    gradients. There is no way back.

    Args:
        transformer: UltraGen's; all processes have the same weights.
        config: How many processes, as diffusers has it: the product of both degrees. What each
            of them does is said here, whichever of the two it is.

    Raises:
        ValueError: if this transformer or these processes can't, with what can.
    """
    group = group_of(config)
    check_fitting(transformer, dist.get_world_size(group))
    check_alike(transformer.device, group)
    _compute_with(transformer, group)


@contextmanager
def among(transformer: Any, group: dist.ProcessGroup) -> Iterator[None]:
    """Has a transformer that others compute with do so with some of them for a while; with none,
    where the group is this process alone."""
    everyone = transformer.parallel_group
    _compute_with(transformer, group)
    try:
        yield
    finally:
        _compute_with(transformer, everyone)


def _compute_with(transformer: Any, group: dist.ProcessGroup) -> None:
    """The layers keep their parameters, which are the same."""
    shared = dist.get_world_size(group) > 1
    transformer.parallel_group = group if shared else None
    for block in transformer.blocks:
        layer = block.attn1
        if isinstance(layer, UltraGenAttention):
            layer.__class__ = SharedAttention if shared else UltraGenAttention
        elif isinstance(layer, T3Attention):
            layer.processor.__class__ = SharedT3AttnProcessor if shared else T3AttnProcessor
        else:
            layer.processor.__class__ = SharedFullAttnProcessor if shared else FullAttnProcessor


def group_of(config: Any) -> dist.ProcessGroup:
    """The processes that a configuration of diffusers names.

    Raises:
        ValueError: if it is of another kind, or if there are none, or others than it says.
    """
    if isinstance(config, ParallelConfig):
        config = config.context_parallel_config
    if not isinstance(config, ContextParallelConfig):
        raise ValueError(
            "UltraGen's tokens can be shared out among GPUs, its layers' weights can't: config "
            f"must be a ContextParallelConfig, not {type(config).__name__}."
        )
    if not dist.is_initialized():
        raise ValueError(
            "One process can't compute a clip with others: start several, for example with "
            "torchrun --nproc_per_node 2, and call torch.distributed.init_process_group."
        )
    if config.mesh is not None:
        return config.mesh["ring", "ulysses"]._flatten().get_group()
    asked, there = config.ring_degree * config.ulysses_degree, dist.get_world_size()
    if asked != there:
        raise ValueError(
            f"The configuration is for {asked} processes, and there are {there}: set "
            f"ulysses_degree={there}, or name some of them by its mesh."
        )
    return cast(dist.ProcessGroup, dist.group.WORLD)


def check_fitting(transformer: Any, processes: int) -> None:
    """Checks that a transformer can be run by so many processes together.

    Raises:
        ValueError: if it can't, with what can.
    """
    check_heads(transformer.config.num_attention_heads, processes)
    check_cache(transformer._cache_config)
    for block in transformer.blocks:
        layer = block.attn1
        if type(layer.processor) not in PROCESSORS:
            raise ValueError(
                f"The self-attention is computed by {type(layer.processor).__name__}, which can't "
                "be shared out among processes: leave UltraGen's own processors, once."
            )
        if getattr(layer, "fused_projections", False):
            raise ValueError(
                "Fused projections can't be shared out among processes: call "
                "unfuse_qkv_projections() first."
            )


def check_cache(config: Any) -> None:
    """Checks that a cache goes the same way in all processes.

    Raises:
        ValueError: if it decides by values, which differ between their tokens.
    """
    if isinstance(config, FirstBlockCacheConfig | SeaCacheConfig):
        name = type(config).__name__.removesuffix("Config")
        raise ValueError(
            f"{name} decides by values, and each process has others: take a cache that "
            "decides by steps, such as TaylorSeerCacheConfig or PyramidAttentionBroadcastConfig."
        )


def share_out(
    transformer: Any, layouts: dict[Any, Any], grid: tuple[int, int, int]
) -> tuple[Shares, dict[Any, Any]]:
    """Shares the tokens of a clip out among the transformer's processes.

    Args:
        transformer: UltraGen's, after `join`.
        layouts: Of one process, for each kind of layer.
        grid: Latent frames, token rows and token columns.

    Returns:
        What each process has, and the layouts for this one's tokens.

    Raises:
        ValueError: if there are too many processes for the grid.
    """
    shares = Shares.of(Member.of(transformer.parallel_group), grid)
    heads = transformer.config.num_attention_heads
    dim = heads * transformer.config.attention_head_dim

    def shared(layout: Any) -> SharedLayout | SharedT3Layout | SharedHeads:
        if isinstance(layout, AttentionLayout):
            return shares.windows(layout, dim, heads)
        if isinstance(layout, T3Layout):
            by_heads = shares.by_heads(layout.whole, heads)
            own = (grid[0], *shares.home.size)
            return SharedT3Layout(own, by_heads.at, layout.counts, layout, by_heads)
        return shares.full(layout, heads)

    return shares, {kind: shared(layout) for kind, layout in layouts.items()}
