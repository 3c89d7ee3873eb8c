"""How many strips a frame is decoded in: counted memory against what is really allocated."""

from __future__ import annotations

from math import inf

import pytest
import torch
from allocations import Allocations
from diffusers import AutoencoderKLWan
from torch.nn import functional as F

from ultragen.hardware import GIB
from ultragen.sampling import wan_blocks
from ultragen.sampling.wan_decoding import decode_in_strips
from ultragen.sampling.wan_encoding_strips import EncodedClip
from ultragen.sampling.wan_strips import (
    Clip,
    Strips,
    choose_strips,
    shorter_strips,
    shortest_strips,
)

HD, UHD = Clip(1088, 1920, 21), Clip(2176, 3840, 8)


@pytest.fixture(scope="module")
def wan() -> AutoencoderKLWan:
    """Wan2.1's autoencoder without values: what it allocates shows without computing."""
    with torch.device("meta"):
        return AutoencoderKLWan().bfloat16().eval()


@pytest.mark.parametrize(
    ("clip", "strips"),
    [
        (Clip(480, 832, 3), Strips()),
        (Clip(480, 832, 3), Strips(2, 2)),
        (Clip(480, 832, 6), Strips(4, 1)),
        (Clip(480, 832, 6, batch=2), Strips(5, 3)),
        (Clip(1088, 1920, 5), Strips(4, 1)),
        (Clip(1088, 1920, 4), Strips(17, 4)),
        (UHD, Strips(4, 1)),
    ],
    ids=str,
)
def test_the_count_is_what_is_allocated(clip, strips, wan, monkeypatch):
    # On a GPU both are one kernel without working memory in the frame's size.
    monkeypatch.setattr(wan_blocks, "rms_silu", lambda norm, x, out: None)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: torch.empty_like(q))
    shape = (clip.batch, 16, clip.latent_frames, clip.height // 8, clip.width // 8)
    z = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    with Allocations() as allocations:
        for piece in decode_in_strips(wan, z, strips):
            piece = (piece.float() / 2 + 0.5).clamp(0, 1)
            del piece
    counted = clip.memory(strips.number, strips.resident)
    assert 0.85 * counted < allocations.peak <= 1.01 * counted


def test_few_strips_where_memory_is_free():
    small = Clip(480, 832, 21)
    assert choose_strips(small, small.usual_memory) == Strips(1, 1)
    assert choose_strips(HD, HD.usual_memory) == choose_strips(UHD, UHD.usual_memory) == Strips(4)
    assert choose_strips(HD, inf) == Strips(1, 1)


def test_usual_memory():
    """With the weights and a convolution's workspace below 8 and 24 GiB."""
    assert HD.usual_memory < 7.3 * GIB
    assert UHD.usual_memory < 22 * GIB


@pytest.mark.parametrize("clip", [HD, UHD, Clip(544, 960, 9, 4), Clip(64, 64, 1)], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, 1.5, 3.0, 6.0])
def test_what_is_chosen_fits(clip, share):
    memory = share * clip.least_memory
    strips = choose_strips(clip, memory)
    assert 1 <= strips.resident <= strips.number <= clip.most_strips
    assert clip.indexable(strips.number)
    if share >= 1:
        assert clip.memory(strips.number, strips.resident) <= memory
    else:
        assert strips == shortest_strips(clip)


@pytest.mark.parametrize("frames", [1, 21, 81, 151, 301])
@pytest.mark.parametrize("size", [(128, 128), (544, 960), (1088, 1920), (2176, 3840)])
@pytest.mark.parametrize("kind", [Clip, EncodedClip])
def test_shorter_strips_end_with_the_least_memory(kind, size, frames):
    """Also for long clips, where many strips take more: each try takes less than the one before."""

    def memory(strips):
        return clip.memory(strips.number, strips.resident)

    clip = kind(*size, frames)
    strips, tried = choose_strips(clip, inf), []
    while strips not in tried:
        tried.append(strips)
        strips = shorter_strips(clip, strips)
    counted = [memory(strips) for strips in tried]
    assert counted == sorted(counted, reverse=True) and len(set(counted)) == len(counted)
    assert counted[-1] == clip.least_memory
    numbers = [n for n in range(1, clip.most_strips + 1) if clip.indexable(n)]
    assert counted[-1] == min(clip.memory(n, r) for n in numbers for r in clip.residents(n))
    assert all(clip.indexable(strips.number) for strips in tried)


def test_as_many_strips_as_can_be_are_resident():
    """And of what is encoded all or none, by what takes less."""
    assert list(HD.residents(3)) == [3, 2, 1]
    assert list(EncodedClip(1088, 1920, 21).residents(3)) == [0, 3]
    assert list(EncodedClip(1088, 1920, 81).residents(3)) == [3, 0]


def test_strips_that_fit_what_is_left():
    first = choose_strips(UHD, inf)
    left = 0.3 * UHD.memory(first.number, first.resident)
    strips = shorter_strips(UHD, first, left)
    assert UHD.memory(strips.number, strips.resident) <= left
    assert shorter_strips(UHD, first, 0) == shortest_strips(UHD)


def test_large_frames_are_cut_whatever_is_free():
    """6 frames of 96 channels would have more values than 32 bits count."""
    strips = choose_strips(UHD, inf)
    assert strips.number == strips.resident == 3


@pytest.mark.parametrize(("rows", "number"), [(272, 4), (11, 3), (5, 7), (1, 1)])
def test_strips_are_all_rows_once(rows, number):
    ranges = Strips(number).ranges(rows)
    assert [row for strip in ranges for row in strip] == list(range(rows))
    assert len(ranges) == min(number, rows)
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_float32_and_batches_take_more():
    assert Clip(1088, 1920, 21, 4).memory(4, 2) == 2 * HD.memory(4, 2)
    assert Clip(1088, 1920, 21, batch=2).memory(4, 2) == 2 * HD.memory(4, 2)
