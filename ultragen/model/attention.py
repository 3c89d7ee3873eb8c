"""UltraGen's self-attention: the paper's section 4.

Three branches share W_Q, W_K, W_V, the query and key norms and the output projection:

- local (§4.3, eq. 6-9): attention within K × K windows, (K + 1) × (K + 1) in odd layers;
- hierarchical (§4.3, eq. 10-11): the same on a grid compressed 2 × 2, with half as many windows;
- global (§4.2, eq. 2, 4, 5): attention over the whole grid, compressed 4 × 4.

The two compressed branches add a low-rank update to W_Q, W_K and W_V. Gates that depend on the
diffusion timestep fuse the branches (eq. 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import log
from typing import Any, Literal, cast

from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from einops import rearrange
from torch import Tensor, nn

from ..ops.decompress import decompress_and_fuse
from ..ops.float8_linear import for_layers
from ..ops.interpolation import resize
from ..ops.linear import updated_linear
from ..ops.rotary_norm import rotary_norm
from ..ops.tiles import attend_to_tiles, tile_of
from ..ops.window_attention import keeps_little, window_attention
from ..ops.window_order import merge_windows, split_windows
from .compression import Compression, Decompression
from .window_plan import GLOBAL_FACTOR, HIERARCHICAL_FACTOR, AttentionLayout, WindowLayout

Projection = Callable[[Any], Tensor]
"""Tokens … d, which may be in FP8 → queries, keys or values of all heads, … d."""


class RotaryNorm(nn.RMSNorm):
    """The norm of queries or keys across heads, the rotation by their positions, and the cut into
    windows."""

    def forward(  # type: ignore[override]
        self, x: Tensor, at: WindowLayout, heads: int, tile: int = 1
    ) -> list[Tensor]:
        """b t h w d → windows, see `split_windows`; with tiles (b windows) n d."""
        eps, rectangles = cast(float, self.eps), at.partition.rectangles
        return rotary_norm(x, self.weight, eps, at.rotary, heads, rectangles, tile)


def zero_bias(layer: nn.Linear | nn.Conv2d | nn.Conv3d) -> None:
    """Starts a layer without an offset."""
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class LowRankUpdate(nn.Module):
    """The domain-aware update x·A·B of a projection (eq. 4); B starts at zero.

    Both factors carry biases, because the released weights do.
    """

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.lora_A = nn.Linear(dim, rank)
        self.lora_B = nn.Linear(rank, dim)
        zero_bias(self.lora_A)
        nn.init.zeros_(self.lora_B.weight)
        zero_bias(self.lora_B)

    # No `forward`: hooks that accelerate puts around a module's call move what it is given, and
    # would move the shared projection, which may lie on no device yet.
    def project(self, x: Tensor, linear: nn.Linear) -> Tensor:
        """x·(W + A·B), with the shared projection W: … d → … d."""
        return updated_linear(x, linear, self.lora_A, self.lora_B)

    def projection(self, linear: nn.Linear) -> Projection:
        """`project` with this shared projection."""
        return partial(self.project, linear=linear)


class NoUpdate(nn.Module):
    """Rank 0: the compressed branch uses the shared projection as it is (the paper's ablation)."""

    def projection(self, linear: nn.Linear) -> Projection:
        """x·W: … d → … d."""
        return linear


class TimeGate(nn.Module):
    """A gate in (0, 1) for each feature from the diffusion timestep (eq. 3).

    Args:
        freq_dim: Width of the sinusoidal embedding.
        hidden_dim: Width of the hidden layers.
        dim: Number of features.
        initial: The gate's value before training, the same for all timesteps.
    """

    def __init__(self, freq_dim: int, hidden_dim: int, dim: int, initial: float) -> None:
        super().__init__()
        self.embedding = nn.Sequential(
            nn.Linear(freq_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, hidden_dim)
        )
        last = nn.Linear(hidden_dim, dim)
        self.projection = nn.Sequential(nn.SiLU(), last)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, log(initial / (1 - initial)))

    def forward(self, timestep: Tensor) -> Tensor:
        """Timestep b freq_dim, in the type that is computed in → weights of the finer branches,
        b d."""
        return self.projection(self.embedding(timestep)).sigmoid()


class CompressedBranch(nn.Module):
    """What a compressed branch adds to the shared attention: compression, low-rank updates,
    decompression, and the gate that fuses it with the finer branches.

    A fresh branch compresses by average pooling and decompresses by bilinear interpolation, so
    that it starts as the base model's attention on a smaller frame.

    Args:
        dim: Features of a token.
        factor: Token rows and columns that become one.
        rank: Rank of the updates; 0 leaves them out.
        gate: Fuses this branch with the finer ones.
        keys_from: Which projection makes the keys. `query` is a quirk of the released weights'
            global branch.
    """

    lora_q: LowRankUpdate | NoUpdate
    lora_k: LowRankUpdate | NoUpdate
    lora_v: LowRankUpdate | NoUpdate

    def __init__(
        self, dim: int, factor: int, rank: int, gate: TimeGate, keys_from: Literal["key", "query"]
    ) -> None:
        super().__init__()
        if keys_from not in ("key", "query"):
            raise ValueError(f"keys_from must be key or query, not {keys_from!r}.")
        self.factor = factor
        self.keys_from = keys_from
        self.lora_q, self.lora_k, self.lora_v = (
            LowRankUpdate(dim, rank) if rank else NoUpdate() for _ in range(3)
        )
        self.compression = Compression(dim, dim, factor, stride=factor, groups=dim)
        self.decompression = Decompression(dim, dim, 3, padding=1, groups=dim)
        self.gate = gate
        nn.init.constant_(self.compression.weight, 1 / factor**2)
        zero_bias(self.compression)
        nn.init.dirac_(self.decompression.weight, groups=dim)
        zero_bias(self.decompression)

    def fuse(self, timestep: Tensor, fine: Tensor, coarse: Tensor) -> Tensor:
        """The sum of the finer branches and of this one, decompressed, weighted by the gate
        (eq. 3, 5): timestep b d, fine b t h w d, coarse b t h' w' d → b t h w d."""
        gate = self.gate(timestep.type_as(fine))  # b d
        convolution = self.decompression
        return decompress_and_fuse(fine, coarse, gate, self.factor, convolution, Decompression)


class WindowAttnProcessor:
    """Attention within windows, through diffusers' dispatcher: the one place where the
    kernel is chosen (`set_attention_backend`)."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: UltraGenAttention,
        query: list[Tensor],
        key: list[Tensor],
        value: list[Tensor],
        at: WindowLayout,
    ) -> Tensor:
        """Query, key and value: windows, see `split_windows`, or with whole tiles (b windows) n d;
        result: b t h w d."""
        rectangles = at.partition.rectangles
        if query[0].ndim == 3:  # whole tiles
            size = (at.rotary[0].shape[0], *at.size)
            return attend_to_tiles(query, key, value, attn.heads, rectangles, size)
        groups = zip(query, key, value, strict=True)
        head_dim = value[0].shape[-1] // attn.heads
        windows = [self._attend(head_dim, *group) for group in groups]
        return merge_windows(windows, rectangles, at.size)

    def tile(self, x: Tensor, heads: int, windows: list[int]) -> int:
        """The number that each window's tokens become a multiple of; a derived class may know
        nothing of tiles."""
        return 1 if type(self) is not WindowAttnProcessor else tile_of(self, x, heads, windows)

    def _attend(self, head_dim: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        shape = query.shape
        query, key, value = (
            rearrange(x, "b t h w (n d) -> b (t h w) n d", d=head_dim) for x in (query, key, value)
        )
        out = dispatch_attention_fn(
            query,
            key,
            value,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return out.reshape(shape).type_as(value)


class UltraGenAttention(nn.Module, AttentionModuleMixin):
    """Self-attention of one layer: local, hierarchical and global branch, fused by time gates.

    The names of the shared projections are those of diffusers' `WanAttention`, so that a dense
    model's weights fit.

    Args:
        dim: Features of a token.
        heads: Attention heads.
        eps: Added to the mean square in the query and key norms.
        branches: Any of `hierarchical` and `global`, beside the local branch that is always there;
            leaving one out is the paper's ablation.
        lora_rank: Rank of the compressed branches' updates; 0 leaves them out.
        gate_dim: Hidden width of the time gates.
        gate_init: Weight of the finer branches in each fusion before training.
        freq_dim: Width of the sinusoidal timestep embedding.
        global_keys_from: Which projection makes the global branch's keys.
    """

    processor: WindowAttnProcessor
    _default_processor_cls = WindowAttnProcessor
    _available_processors = [WindowAttnProcessor]  # noqa: RUF012
    _supports_qkv_fusion = False  # each branch takes its own of the projections

    def __init__(
        self,
        dim: int,
        heads: int,
        eps: float,
        branches: tuple[str, ...],
        lora_rank: int,
        gate_dim: int,
        gate_init: float,
        freq_dim: int,
        global_keys_from: Literal["key", "query"],
    ) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim), nn.Dropout(0.0)])
        self.norm_q = RotaryNorm(dim, eps=eps)
        self.norm_k = RotaryNorm(dim, eps=eps)
        # From fine to coarse, the order of fusion (eq. 3).
        specs = {
            "hierarchical": (HIERARCHICAL_FACTOR, "key"),
            "global": (GLOBAL_FACTOR, global_keys_from),
        }
        if unknown := set(branches) - set(specs):
            raise ValueError(f"Unknown branches {sorted(unknown)}: choose from {sorted(specs)}.")
        self.branches = nn.ModuleDict(
            {
                name: CompressedBranch(
                    dim,
                    factor,
                    lora_rank,
                    TimeGate(freq_dim, gate_dim, dim, gate_init),
                    keys_from,
                )
                for name, (factor, keys_from) in specs.items()
                if name in branches
            }
        )
        AttentionModuleMixin.set_processor(self, WindowAttnProcessor())

    def fusion(self, layout: AttentionLayout) -> Iterator[tuple[CompressedBranch, WindowLayout]]:
        """The compressed branches and where they attend, in the order of fusion."""
        where = {"hierarchical": layout.hierarchical, "global": layout.global_}
        for name, branch in self.branches.items():
            yield cast(CompressedBranch, branch), where[name]

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        rotary_emb: AttentionLayout | None = None,
    ) -> Tensor:
        """b (t h w) d → b (t h w) d.

        The signature is `WanAttention`'s, so that diffusers' Wan block calls either; the layout
        takes the place of the rotary embedding, which it contains.
        """
        if rotary_emb is None:
            raise ValueError("rotary_emb must be the layout that `plan_layout` gives.")
        layout = rotary_emb
        t, h, w = layout.grid
        grid = rearrange(hidden_states, "b (t h w) d -> b t h w d", t=t, h=h, w=w)

        fused = self.local(grid, layout.local)  # b t h w d
        for branch, at in self.fusion(layout):
            coarse = self.compressed(branch, grid, at)  # b t h' w' d
            fused = self.fuse(branch, layout, fused, coarse)  # b t h w d

        out = rearrange(fused.type_as(hidden_states), "b t h w d -> b (t h w) d")
        return self.to_out[1](self.to_out[0](out))

    def tile(self, x: Tensor, at: WindowLayout) -> int:
        """The number that each window's tokens become a multiple of: what the processor likes."""
        likes = getattr(self.processor, "tile", None)
        if likes is None:  # somebody else's processor knows nothing of tiles
            return 1
        frames = x.shape[1]
        windows = [frames * rows.size * columns.size for rows, columns in at.partition.groups]
        return likes(x, self.heads, windows)

    def local(self, grid: Tensor, at: WindowLayout) -> Tensor:
        """Windows at full resolution with the base weights (eq. 6-9): b t h w d → b t h w d."""
        out = self.attend(resize(grid, at.size), self.to_q, self.to_k, self.to_v, at)
        return resize(out, (grid.shape[2], grid.shape[3]))

    def compressed(self, branch: CompressedBranch, grid: Tensor, at: WindowLayout) -> Tensor:
        """Windows, or one window, of the compressed grid with updated weights (eq. 2, 4, 10, 11):
        b t h w d → b t h' w' d."""
        x = resize(branch.compression(grid), at.size)  # b t h' w' d
        return self.attend(x, *self.projections(branch), at)

    def projections(self, branch: CompressedBranch) -> tuple[Projection, Projection, Projection]:
        """To queries, keys and values of a compressed branch, with its updates (eq. 4)."""
        to_key = {"key": self.to_k, "query": self.to_q}[branch.keys_from]
        return (
            branch.lora_q.projection(self.to_q),
            branch.lora_k.projection(to_key),
            branch.lora_v.projection(self.to_v),
        )

    def fuse(
        self, branch: CompressedBranch, layout: AttentionLayout, fine: Tensor, coarse: Tensor
    ) -> Tensor:
        """A compressed branch beside the finer ones, see `CompressedBranch.fuse`."""
        return branch.fuse(layout.timestep, fine, coarse)

    def attend(
        self, x: Tensor, to_q: Projection, to_k: Projection, to_v: Projection, at: WindowLayout
    ) -> Tensor:
        """Attention within windows: b t h w d → b t h w d."""
        norms, rectangles = (self.norm_q, self.norm_k), at.partition.rectangles
        tokens = for_layers(x, to_q, to_k, to_v)  # b t h w d
        if keeps_little(self.processor, WindowAttnProcessor, x, self.heads, norms, RotaryNorm):
            given = to_q(tokens), to_k(tokens), to_v(tokens)  # b t h w d each
            return window_attention(*given, norms, at.rotary, self.heads, rectangles)
        tile = self.tile(x, at)
        query = self.norm_q(to_q(tokens), at, self.heads, tile)  # (b windows) t h w d each
        key = self.norm_k(to_k(tokens), at, self.heads, tile)
        value = split_windows(to_v(tokens), rectangles, tile)
        return self.processor(self, query, key, value, at)
