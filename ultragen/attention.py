"""UltraGen's self-attention: the paper's section 4.

Three branches share W_Q, W_K, W_V, the query and key norms and the output projection:

- local (§4.3, eq. 6-9): attention within K × K windows, (K + 1) × (K + 1) in odd layers;
- hierarchical (§4.3, eq. 10-11): the same on a grid compressed 2 × 2, with half as many windows;
- global (§4.2, eq. 2, 4, 5): attention over the whole grid, compressed 4 × 4.

The two compressed branches add a low-rank update to W_Q, W_K and W_V. Gates that depend on the
diffusion timestep fuse the branches (eq. 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import log
from typing import Literal, cast

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .compression import Compression, Decompression, resize, upsampled_axis
from .fp8 import plain_weight
from .kernels import kernel_works
from .layout import GLOBAL_FACTOR, HIERARCHICAL_FACTOR, AttentionLayout, Rotary, WindowLayout
from .linear import is_bare, is_untouched
from .tiles import tile_of
from .windows import Partition, merge_windows, split_windows


def apply_rotary(x: Tensor, rotary: Rotary, scale: Tensor | None = None) -> Tensor:
    """Rotates pairs of neighbouring features by their position's angles.

    Args:
        x: b … heads d, in float32 or float64.
        rotary: cos and sin, … × d/2 each.
        scale: b … 1 1, multiplied in.
    """
    # As complex numbers: one product in one pass.
    turn = torch.complex(*(table.to(x.dtype) for table in rotary))[..., None, :]
    turn = turn if scale is None else turn * scale
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn
    return torch.view_as_real(turned).flatten(-2)


def cut(grid: Tensor, partition: Partition, tile: int = 1) -> list[Tensor]:
    """`split_windows`, in one pass where that works; with tiles (b windows) n d."""
    if not kernel_works("windows", grid.device):
        return split_windows(grid, partition)
    from .kernels.windows import split

    return split(grid, partition.rectangles, tile)


def join(windows: list[Tensor], partition: Partition) -> Tensor:
    """`merge_windows`, in one pass where that works."""
    if not kernel_works("windows", windows[0].device):
        return merge_windows(windows, partition)
    from .kernels.windows import merge

    return merge(windows, partition.rectangles, partition.size)


class RotaryNorm(nn.RMSNorm):
    """The norm of queries or keys across heads, the rotation by their positions, and the cut into
    windows."""

    def forward(  # type: ignore[override]
        self, x: Tensor, at: WindowLayout, heads: int, tile: int = 1
    ) -> list[Tensor]:
        """b t h w d → windows, see `split_windows`; with tiles (b windows) n d."""
        if kernel_works("rotary_norm", x.device):
            from .kernels.rotary_norm import rotary_norm

            eps = cast(float, self.eps)
            return rotary_norm(x, self.weight, at.rotary, eps, at.partition.rectangles, tile)
        # The norm's factor, one a token, turns with the positions: a pass less over all features.
        precise = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=precise)
        factor = torch.rsqrt(norm.square() / x.shape[-1] + cast(float, self.eps))
        weighted = (x * self.weight.to(precise)).unflatten(-1, (heads, -1))
        turned = apply_rotary(weighted, at.rotary, factor[..., None])
        return split_windows(turned.flatten(-2).type_as(x), at.partition)


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

    def forward(self, x: Tensor) -> Tensor:
        return self.lora_B(self.lora_A(x))


class NoUpdate(nn.Module):
    """Rank 0: the compressed branch uses the shared projection as it is (the paper's ablation)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


def updated(linear: nn.Linear, update: nn.Module, x: Tensor) -> Tensor:
    """A shared projection with a branch's low-rank update, x·(W + A·B) (eq. 4).

    Without gradients the update goes into the weight first: fewer tokens pass through the factors
    than through memory.
    """
    if torch.is_grad_enabled() or not isinstance(update, LowRankUpdate):
        return linear(x) + update(x)
    down, up, base = update.lora_A, update.lora_B, plain_weight(linear)
    if base is None or not (is_bare(down) and is_bare(up)):
        return linear(x) + update(x)
    weight = torch.addmm(base, up.weight, down.weight)
    return F.linear(x, weight, linear.bias + F.linear(down.bias, up.weight, up.bias))


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

    lora_q: nn.Module
    lora_k: nn.Module
    lora_v: nn.Module

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

    def decompress(self, grid: Tensor, height: int, width: int) -> Tensor:
        """Inverse of `compression` in shape (eq. 5): b t h' w' d → b t height width d."""
        volume = resize(grid, self.padded(height, width))[:, :, :height, :width]
        return self.decompression(volume)

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns rounded up to what the compression covers."""
        return height + -height % self.factor, width + -width % self.factor

    def fuse(self, timestep: Tensor, fine: Tensor, coarse: Tensor) -> Tensor:
        """The sum of the finer branches and of this one, decompressed, weighted by the gate
        (eq. 3): timestep b d, fine b t h w d, coarse b t h' w' d → b t h w d."""
        gate = self.gate(timestep.type_as(fine))
        plain = torch.is_grad_enabled() or not is_untouched(self.decompression, Decompression)
        if not plain and kernel_works("compression", fine.device):
            full, small = fine.shape[2:4], coarse.shape[2:4]
            sizes = zip(full, self.padded(*full), small, (1, 2), strict=True)
            rows, columns = (upsampled_axis(*axis, fine.device) for axis in sizes)
            if rows and columns:
                from .kernels.compression import decompress_and_fuse

                convolution = self.decompression
                return decompress_and_fuse(
                    fine, coarse, convolution.weight, convolution.bias, gate, rows, columns
                )
        coarse = self.decompress(coarse, *fine.shape[2:4])
        gate = gate[:, None, None, None]
        return torch.lerp(coarse, fine.type_as(coarse), gate.type_as(coarse))


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
        groups = zip(query, key, value, strict=True)
        if query[0].ndim == 3:
            from .kernels import whole_tiles

            found = [whole_tiles.attention(*group, attn.heads) for group in groups]
            windows, sums = ([*part] for part in zip(*found, strict=True))
            size = (at.rotary[0].shape[0], *at.size)
            return whole_tiles.merge(
                windows, query, key, sums, attn.heads, at.partition.rectangles, size
            )
        windows = [self._attend(attn.heads, *group) for group in groups]
        return join(windows, at.partition)

    def _attend(self, heads: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        shape = query.shape
        query, key, value = (
            rearrange(x, "b t h w (n d) -> b (t h w) n d", n=heads) for x in (query, key, value)
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
        eps: Of the query and key norms.
        branches: Any of `hierarchical` and `global`, beside the local branch that is always there;
            leaving one out is the paper's ablation.
        lora_rank: Rank of the compressed branches' updates; 0 leaves them out.
        gate_dim: Hidden width of the time gates.
        gate_init: Weight of the finer branches in each fusion before training.
        freq_dim: Width of the sinusoidal timestep embedding.
        global_keys_from: Which projection makes the global branch's keys.
        resize_antialias: Whether features that `WindowRule(uneven="resize")` shrinks are filtered.
    """

    processor: WindowAttnProcessor
    _default_processor_cls = WindowAttnProcessor
    _available_processors = [WindowAttnProcessor]  # noqa: RUF012

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
        resize_antialias: bool,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.resize_antialias = resize_antialias
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

        fused = self.local(grid, layout.local)
        for branch, at in self.fusion(layout):
            fused = branch.fuse(layout.timestep, fused, self.compressed(branch, grid, at))

        out = rearrange(fused.type_as(hidden_states), "b t h w d -> b (t h w) d")
        return self.to_out[1](self.to_out[0](out))

    def tile(self, grid: Tensor, at: WindowLayout) -> int:
        """Of what number the tokens of each window become a multiple, see `tile_of`."""
        if type(self.processor) is not WindowAttnProcessor:  # it may know nothing of tiles
            return 1
        frames = grid.shape[1]
        windows = [frames * rows.size * columns.size for rows, columns in at.partition.groups]
        return tile_of(self.processor, grid, self.heads, windows)

    def local(self, grid: Tensor, at: WindowLayout) -> Tensor:
        """Windows at full resolution with the base weights (eq. 6-9)."""
        x = resize(grid, at.size, self.resize_antialias)
        tile = self.tile(x, at)
        query = self.norm_q(self.to_q(x), at, self.heads, tile)
        key = self.norm_k(self.to_k(x), at, self.heads, tile)
        value = cut(self.to_v(x), at.partition, tile)
        out = self.processor(self, query, key, value, at)
        return resize(out, (grid.shape[2], grid.shape[3]), self.resize_antialias)

    def compressed(self, branch: CompressedBranch, grid: Tensor, at: WindowLayout) -> Tensor:
        """Windows, or one window, of the compressed grid with updated weights (eq. 2, 4, 10, 11):
        b t h w d → b t h' w' d."""
        x = resize(branch.compression(grid), at.size, self.resize_antialias)
        to_key = {"key": self.to_k, "query": self.to_q}[branch.keys_from]
        tile = self.tile(x, at)
        query = self.norm_q(updated(self.to_q, branch.lora_q, x), at, self.heads, tile)
        key = self.norm_k(updated(to_key, branch.lora_k, x), at, self.heads, tile)
        value = cut(updated(self.to_v, branch.lora_v, x), at.partition, tile)
        return self.processor(self, query, key, value, at)
