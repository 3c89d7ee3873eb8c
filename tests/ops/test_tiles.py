"""Attention whose last tile of tokens is filled."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend
from kernels import DEVICE, angles, plain_rotary_norm
from tiny import tiny_ultragen
from torch import Tensor
from torch.nn import functional as F

from ultragen.model.attention import WindowAttnProcessor
from ultragen.model.window_plan import WindowLayout
from ultragen.model.windows import even_partition
from ultragen.ops import key_parts, tiles
from ultragen.ops.dispatch import use
from ultragen.ops.tiles import attend_to_tiles
from ultragen.ops.window_order import split_windows

pytest.importorskip("triton", reason="Triton is not installed: it comes with CUDA builds of torch")


def test_windows_are_filled_up_to_whole_tiles(rotary_norm):
    """With the first query or key again, and with values of zero."""
    from ultragen.ops.triton_windows import split

    torch.manual_seed(0)
    partition, rotary = even_partition(3, 5, 2), angles((2, 3, 5), 2)
    grid, weight = torch.randn(2, 2, 3, 5, 12, device=DEVICE), torch.randn(12, device=DEVICE)
    with torch.no_grad():
        of_one = rotary_norm(grid, weight, rotary, 1e-6, partition.rectangles)
        of_all = rotary_norm(grid, weight, rotary, 1e-6, partition.rectangles, 8)
    values = split(grid, partition.rectangles, 8)
    for one, more, value, plain in zip(
        of_one, of_all, values, split_windows(grid, partition.rectangles), strict=True
    ):
        tokens = one[0, ..., 0].numel()
        assert more.shape[1] == value.shape[1] == tokens + -tokens % 8
        assert torch.equal(more[:, :tokens], one.flatten(1, 3))
        assert torch.equal(more[:, tokens:], more[:, :1].expand_as(more[:, tokens:]))
        assert torch.equal(value[:, :tokens], plain.flatten(1, 3))
        assert not value[:, tokens:].any()
    with pytest.raises(ValueError, match="no gradients"):
        rotary_norm(grid, weight, rotary, 1e-6, partition.rectangles, 8)


@pytest.mark.parametrize("offset", [0.0, -4.0, 4.0], ids=["plain", "small sums", "large sums"])
def test_what_fills_the_tiles_has_no_part_in_the_result(rotary_norm, offset):
    """Whatever the keys have in common, which moves all sums: windows of four sizes."""
    from ultragen.ops import triton_whole_tiles
    from ultragen.ops.triton_windows import split

    torch.manual_seed(0)
    heads, head = (2, 128) if DEVICE == "cuda" else (3, 8)
    d, dtype = heads * head, torch.bfloat16 if DEVICE == "cuda" else torch.float32
    partition, tile = even_partition(3, 5, 2), 128 if DEVICE == "cuda" else 8
    rotary = (
        torch.ones(2, 3, 5, head // 2, device=DEVICE),
        torch.zeros(2, 3, 5, head // 2, device=DEVICE),
    )
    query, key, value = torch.randn(3, 2, 2, 3, 5, d, device=DEVICE, dtype=dtype).unbind()
    query, key = query.abs() * 4, key + offset
    weight = torch.full((d,), 4.0, device=DEVICE)
    given = weight, rotary, 1e-6, partition.rectangles, tile
    with torch.no_grad():
        queries, keys = (rotary_norm(x, *given) for x in (query, key))
        groups = zip(queries, keys, split(value, partition.rectangles, tile), strict=True)
        found = [triton_whole_tiles.attention(*group, heads) for group in groups]
        windows, sums = ([*part] for part in zip(*found, strict=True))
        merged = triton_whole_tiles.merge(
            windows, queries, keys, sums, heads, partition.rectangles, (2, 3, 5)
        )
        plain = [
            [w.flatten(1, 3).unflatten(-1, (heads, head)).transpose(1, 2).double() for w in x]
            for x in (
                plain_rotary_norm(query, weight, rotary, heads, partition),
                plain_rotary_norm(key, weight, rotary, heads, partition),
                split_windows(value, partition.rectangles),
            )
        ]
    expected = [F.scaled_dot_product_attention(*group) for group in zip(*plain, strict=True)]
    for one, other in zip(split_windows(merged, partition.rectangles), expected, strict=True):
        other = other.transpose(1, 2).flatten(2).view_as(one).to(dtype)
        close = dict(rtol=2e-2, atol=2e-2) if DEVICE == "cuda" else dict(rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(one, other, **close)


@pytest.mark.parametrize("first", [0.0, 0.5, 2.0], ids=["like the others", "large", "dominates"])
@pytest.mark.parametrize("tokens", [257, 300, 384])
def test_very_many_keys_come_in_parts(rotary_norm, monkeypatch, tokens, first):
    """Into parts of one tile, the last of them with what fills it, in full attention: also where
    the first key, which fills it up to 127 times, has nearly all the weight."""
    from ultragen.ops import triton_whole_tiles

    torch.manual_seed(0)
    monkeypatch.setattr(triton_whole_tiles, "LONG", 256)
    monkeypatch.setattr(triton_whole_tiles, "PART", 128)
    heads, head, dtype = 2, 128, torch.bfloat16 if DEVICE == "cuda" else torch.float32
    query, key, value = torch.randn(3, 1, tokens, heads * head, device=DEVICE)
    if first:
        query, key[:, 0] = query.abs(), first
    query, key, value = (x.to(dtype) for x in (query, key, value))
    filled = [torch.cat((x, x[:, :1].expand(-1, -tokens % 128, -1)), 1) for x in (query, key)]
    whole = [(0, 1, 1, 0, 1, tokens)]
    with use("triton"):
        values = split_windows(value[:, None, None], whole, filled[0].shape[1])
    query_key = ([x] for x in filled)
    found = attend_to_tiles(*query_key, values, heads, whole, (1, 1, tokens))[:, 0, 0]
    query, key, value = (
        x.double().unflatten(-1, (heads, head)).transpose(1, 2) for x in (query, key, value)
    )
    expected = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    # What is taken out is 127 of 128 there, and with it all but the last digits of a float32 sum.
    exact = dict(rtol=4e-3, atol=4e-3) if first > 1 else dict(rtol=1e-3, atol=1e-4)
    close = dict(rtol=2e-2, atol=2e-2) if DEVICE == "cuda" else exact
    torch.testing.assert_close(found, expected.to(dtype), **close)


def test_a_processor_that_is_derived_from_ours_gets_windows_as_they_are(monkeypatch):
    class Other(WindowAttnProcessor):
        pass

    monkeypatch.setattr("ultragen.model.attention.tile_of", lambda *_: 128)
    attention = tiny_ultragen(num_layers=1).blocks[0].attn1
    partition = even_partition(3, 5, 2)
    at = WindowLayout((3, 5), partition, angles((2, 3, 5), 2))
    grid = torch.empty(1, 2, 3, 5, 8)
    assert attention.tile(grid, at) == 128
    attention.set_processor(Other())
    assert attention.tile(grid, at) == 1


def test_tiles_are_filled_only_where_that_was_measured(monkeypatch):
    """On Hopper, in half precision, with cuDNN, without gradients, where little room is needed."""
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(tiles, "fused_runs", lambda *_: True)
    processor = WindowAttnProcessor()

    class OnGpu(Tensor):
        is_cuda = True

    def tile(windows, heads=12, dtype=torch.bfloat16):
        x = torch.empty(1, 12 * 128, dtype=dtype).as_subclass(OnGpu)
        return tiles.tile_of(processor, x, heads, windows)

    with torch.no_grad():
        assert tile([10710]) == tile([16384, 10710]) == 128
        assert tile([16384]) == tile([600, 10710]) == tile([600]) == 1
        assert tile([key_parts.LONG]) == 1 and tile([key_parts.LONG + tiles.TILE]) == 128
        assert tile([10710], heads=24) == tile([10710], dtype=torch.float32) == 1
        assert tiles.tile_of(processor, torch.empty(1, 1536).bfloat16(), 12, [10710]) == 1
        processor._attention_backend = "flash"
        assert tile([10710]) == 1
        processor._attention_backend = None
        with attention_backend("_native_flash"):
            assert tile([10710]) == 1
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))
        assert tile([10710]) == 1
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
        assert tile([10710]) == 128
    assert tile([10710]) == 1
