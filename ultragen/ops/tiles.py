"""Attention that fills its last tile of tokens, see `triton_whole_tiles`, which also takes very
many tokens in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor

from .dispatch import fused_runs
from .float8 import Tokens
from .key_parts import LONG, TILE, is_measured, runs_in_8_bits
from .window_order import Rectangle

LARGEST_ROOM = 0.03  # of a window's tokens, up to which it pays
HEAD_DIM = 128  # where it was measured
CUDNN = (AttentionBackendName.NATIVE, AttentionBackendName._NATIVE_CUDNN)


@torch.compiler.assume_constant_result
def suits(device: torch.device) -> bool:
    """Whether attention on a device is cuDNN's on a card where whole tiles were measured, and the
    kernels run that it takes."""
    if not is_measured(device):
        return False
    names = ("triton_windows", "triton_rotary_norm", "triton_whole_tiles")
    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    return enabled and all(fused_runs(name, device) for name in names)


def tile_of(processor: Any, x: Tokens, heads: int, windows: Sequence[int]) -> int:
    """The number that a window's tokens are to become a multiple of where no gradients are wanted:
    1 leaves them, and their attention, as they are.

    Args:
        processor: Attends; its back end must be cuDNN, as torch chooses it on these GPUs.
        x: What queries are made of, … d.
        heads: Attention heads.
        windows: Tokens of each group's windows.
    """
    if torch.is_grad_enabled() or not is_cudnns(processor, x, heads):
        return 1
    in_parts = max(windows) > LONG or runs_in_8_bits()  # whatever `key_parts` alone can do
    tile = TILE if in_parts else tile_for(windows)
    return tile if tile == 1 or suits(x.device) else 1


def tile_for(windows: Sequence[int]) -> int:
    """The number that the tokens of windows are to become a multiple of, if their attention is
    cuDNN's: 1 where all are, or where it takes too many."""
    ragged = [tokens for tokens in windows if tokens % TILE]
    small = all(-tokens % TILE <= LARGEST_ROOM * tokens for tokens in ragged)
    return TILE if ragged and small else 1


def is_cudnns(processor: Any, x: Tokens, heads: int) -> bool:
    """Whether a processor's attention, of what queries are made of and so many heads, is cuDNN's if
    torch chooses it."""
    if not x.is_cuda or x.shape[-1] != heads * HEAD_DIM:
        return False
    asked = getattr(processor, "_attention_backend", None)
    backend = asked or _AttentionBackendRegistry.get_active_backend()[0]
    fits = backend in CUDNN and getattr(processor, "_parallel_config", None) is None
    return fits and x.dtype in (torch.bfloat16, torch.float16)


def attend_to_tiles(
    query: list[Tensor],
    key: list[Tensor],
    value: list[Tensor],
    heads: int,
    rectangles: Sequence[Rectangle],
    size: tuple[int, int, int],
) -> Tensor:
    """Attention within windows whose last tile is filled, and their grid.

    Args:
        query: Queries of each group of windows, (b windows) n d, as `rotary_norm` makes them with
            tiles.
        key: The same.
        value: As `split_windows` makes them with tiles.
        heads: Attention heads.
        rectangles: The groups of equal windows.
        size: Frames, rows and columns of the grid.

    Returns:
        b t h w d.
    """
    from . import triton_whole_tiles

    groups = zip(query, key, value, strict=True)
    found = [triton_whole_tiles.attention(*group, heads) for group in groups]
    windows, sums = ([*part] for part in zip(*found, strict=True))
    return triton_whole_tiles.merge(windows, query, key, sums, heads, rectangles, size)
