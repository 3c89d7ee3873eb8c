"""Every fused kernel beside its plain twin, at the true shapes: milliseconds and difference.

    python benchmarks/fused.py --height 1088 --width 1920 --frames 81

bfloat16, without gradients, with random values; needs a CUDA GPU. The last column is what one
reading of the inputs and one writing of the results take at the rate at which this card copies.
`--tiny` runs on a CPU, with what is faster there in place of the kernels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor, nn

from ultragen.benchmark.machine import sustained
from ultragen.model.attention import UltraGenAttention
from ultragen.model.block import PatchEmbedding, UltraGenBlock
from ultragen.model.window_plan import AttentionLayout, WindowRule, plan_layout
from ultragen.ops.axes import Axis, plan_axis
from ultragen.ops.dispatch import use
from ultragen.ops.interpolation import interpolation
from ultragen.ops.modulation import modulated_norm
from ultragen.ops.window_order import merge_windows, split_windows


@dataclass(frozen=True)
class Comparison:
    """One piece of work, done by the same code with and without kernels.

    Attributes:
        name: Of the table.
        work: Gives a tensor or several.
        moved: Bytes that have to be read and written at least.
    """

    name: str
    work: Callable[[], Any]
    moved: int


def tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [x for v in value for x in tensors(v)]


def size(*values: Tensor) -> int:
    return sum(value.numel() * value.element_size() for value in values)


def attention_work(
    attention: UltraGenAttention, grid: Tensor, even: AttentionLayout, odd: AttentionLayout
) -> Iterable[Comparison]:
    """What lies around the attention."""
    for name, layout in (("even", even), ("odd", odd)):
        partition = layout.local.partition
        yield Comparison(
            f"norm, positions, windows ({name} layer)",
            lambda at=layout.local: attention.norm_q(grid, at, attention.heads),
            2 * size(grid),
        )
        windows = split_windows(grid, partition.rectangles)
        yield Comparison(
            f"values into windows ({name} layer)",
            lambda p=partition: split_windows(grid, p.rectangles),
            2 * size(grid),
        )
        yield Comparison(
            f"windows into the grid ({name} layer)",
            lambda w=windows, p=partition: merge_windows(w, p.rectangles, p.size),
            2 * size(grid),
        )
    for name, branch in attention.branches.items():
        small = branch.compression(grid)
        yield Comparison(
            f"compression ({name})",
            lambda b=branch: b.compression(grid),
            size(grid, small),
        )
        yield Comparison(
            f"decompression and fusion ({name})",
            lambda b=branch, s=small: b.fuse(even.timestep, grid, s),
            2 * size(grid) + size(small),
        )


PROGRAMS = ((32, 1), (64, 1), (64, 2), (128, 2), (128, 4), (256, 4))  # features, warps


def upsampled_axes(grid: Tensor, small: Tensor, factor: int, partners: bool) -> list[Axis]:
    """What decompression needs to know of rows and columns, with programs that may take two groups
    or take one each."""
    axes = []
    for full, length, group in zip(grid.shape[2:4], small.shape[2:4], (1, 2), strict=True):
        matrix = interpolation(length, length * factor, grid.device, torch.float64)[:full]
        axes.append(plan_axis(matrix, group, partners))
    return axes


def print_other_programs(attention: UltraGenAttention, grid: Tensor, timestep: Tensor) -> None:
    """Decompression by programs that take one pair of tokens each, and by programs of other numbers
    of features, for comparison."""
    from ultragen.ops import triton_decompress

    usual = triton_decompress.CHANNELS, triton_decompress.WARPS
    for name, branch in attention.branches.items():
        small, layer = branch.compression(grid), branch.decompression
        of_layer = layer.weight, layer.bias, branch.gate(timestep.type_as(grid))
        for partners, features, warps in ((False, *usual), *((True, *x) for x in PROGRAMS)):
            axes = upsampled_axes(grid, small, branch.factor, partners)
            work = partial(triton_decompress.decompress_and_fuse, grid, small, *of_layer, *axes)
            triton_decompress.CHANNELS, triton_decompress.WARPS = features, warps
            try:
                milliseconds = 1e3 * sustained(work, "cuda", 0.2)
            finally:
                triton_decompress.CHANNELS, triton_decompress.WARPS = usual
            pairs = "" if partners else ", a pair a program"
            what = f"decompression ({name}), {features} features, {warps} warps{pairs}"
            print(f"{what:72}{milliseconds:9.3f}", flush=True)


def print_whole_tiles(
    attention: UltraGenAttention, grid: Tensor, layouts: list[AttentionLayout]
) -> None:
    """Attention in windows, and windows into the grid, with and without whole tiles of tokens."""
    for name, layout in zip(("even", "odd"), layouts, strict=True):
        at, found = layout.local, []
        for tile in dict.fromkeys((1, attention.tile(grid, at))):
            query, key = (attention.norm_q(grid, at, attention.heads, tile) for _ in range(2))
            value = split_windows(grid, at.partition.rectangles, tile)
            work = partial(attention.processor, attention, query, key, value, at)
            found.append(work())
            milliseconds = 1e3 * sustained(work, "cuda", 1.0)
            what = f"attention in windows and into the grid ({name} layer), tiles of {tile}"
            print(f"{what:72}{milliseconds:9.3f}", flush=True)
        error = (found[-1].float() - found[0].float()).abs().max() / found[0].float().abs().max()
        print(f"{'… difference':72}{error.item():9.1e}", flush=True)


class Same(nn.Module):
    """Stands for an attention: gives what it gets."""

    def forward(self, x: Tensor, *_: object) -> Tensor:
        return x


def block_work(block: WanTransformerBlock, tokens: Tensor) -> Iterable[Comparison]:
    """What lies between a block's layers, and its activation."""
    modulation = torch.randn(1, 6, tokens.shape[-1], device=tokens.device)
    hidden = tokens.new_empty(*tokens.shape[:2], block.ffn.net[0].proj.out_features)
    yield Comparison(
        "feed-forward network's first half",
        lambda: block.ffn.net[0](tokens),
        size(tokens, hidden),
    )
    block.attn1, block.attn2, block.ffn = Same(), Same(), Same()
    yield Comparison(
        "norms and sums of a block",
        lambda: block(tokens, tokens, modulation, None),
        11 * size(tokens),
    )


def end_work(tokens: Tensor, latents: Tensor) -> Iterable[Comparison]:
    """What comes before the first block, and after the last one."""
    d = tokens.shape[-1]
    embedding = nn.Conv3d(latents.shape[1], d, (1, 2, 2), (1, 2, 2)).to(latents)
    PatchEmbedding.take_over(embedding)
    yield Comparison(
        "patch embedding",
        lambda: embedding(latents).flatten(2).transpose(1, 2).contiguous(),
        size(tokens, latents),
    )
    norm = FP32LayerNorm(d, 1e-6, elementwise_affine=False)
    factor, offset = torch.randn(2, 1, 1, d, device=tokens.device)
    yield Comparison(
        "last norm, shift and scale",
        lambda: modulated_norm(norm, tokens, factor - 1, offset),
        2 * size(tokens),
    )


def compare(work: Comparison, device: str, copy_rate: float) -> None:
    """Prints one line."""
    found = tensors(work.work())
    milliseconds = 1e3 * sustained(work.work, device, 0.2)
    with use("plain"):
        expected = tensors(work.work())
        plain = 1e3 * sustained(work.work, device, 0.2)
    error = max(
        ((f.float() - e.float()).abs().max() / e.float().abs().max()).item()
        for f, e in zip(found, expected, strict=True)
    )
    floor = 1e3 * work.moved / copy_rate
    print(
        f"{work.name:42}{plain:9.3f}{milliseconds:9.3f}{plain / milliseconds:7.1f}×{error:11.1e}"
        f"{floor:9.3f}",
        flush=True,
    )


def copy_rate(device: str) -> float:
    """Bytes that a copy reads and writes a second."""
    source = torch.empty(2**28 if device == "cuda" else 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size(source) / sustained(lambda: target.copy_(source), device, 0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--height", type=int, default=1088)
    parser.add_argument("--width", type=int, default=1920)
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    device = "cpu" if options.tiny else "cuda"
    heads, dim, ffn = (2, 32, 64) if options.tiny else (12, 1536, 8960)
    grid = (3, 8, 12) if options.tiny else (
        (options.frames + 3) // 4, options.height // 16, options.width // 16
    )  # fmt: skip
    torch.manual_seed(0)
    rate = copy_rate(device)
    card = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    print(f"{card}, torch {torch.__version__}, grid {grid}, copies at {rate / 1e12:.2f} TB/s")
    print(f"{'ms':42}{'plain':>9}{'fused':>9}{'':8}{'difference':>11}{'floor':>9}")
    dtype = torch.float32 if options.tiny else torch.bfloat16
    timestep = torch.randn(1, 256, device=device)

    def angles(*sizes: int) -> tuple[Tensor, Tensor]:
        angle = torch.randn(sizes[0] * sizes[1] * sizes[2], dim // heads // 2, device=device)
        return angle.cos(), angle.sin()

    layouts = [
        plan_layout(
            grid, 2 if options.tiny else options.windows, odd, WindowRule(), timestep, angles
        )
        for odd in (False, True)
    ]
    with torch.no_grad(), torch.device(device):
        attention = UltraGenAttention(
            dim, heads, 1e-6, ("hierarchical", "global"), 64, dim, 0.75, 256, "key"
        ).to(dtype)
        for branch in attention.branches.values():
            nn.init.normal_(branch.decompression.weight, std=0.2)
        x = torch.randn(1, *grid, dim, dtype=dtype)
        for work in attention_work(attention, x, *layouts):
            compare(work, device, rate)
        if device == "cuda":
            print_other_programs(attention, x, timestep)
            print_whole_tiles(attention, x, layouts)
        block = WanTransformerBlock(dim, ffn, heads, cross_attn_norm=True).to(dtype)
        for name in ("norm1", "norm2", "norm3"):
            getattr(block, name).float()
        UltraGenBlock.take_over(block)
        latents = torch.randn(1, 16, grid[0], 2 * grid[1], 2 * grid[2], dtype=dtype)
        tokens = x.flatten(1, 3)
        # In turn: what a comparison stands for changes the block.
        for work in chain(block_work(block, tokens), end_work(tokens, latents)):
            compare(work, device, rate)


if __name__ == "__main__":
    main()
