"""How many strips a clip is encoded in: counted memory against what is really allocated."""

from __future__ import annotations

from math import inf

import pytest
import torch
from allocations import Allocations
from diffusers import AutoencoderKLWan
from torch.nn import functional as F

from ultragen.hardware import GIB
from ultragen.sampling import wan_blocks
from ultragen.sampling.wan_encoding import encode_in_strips, group_pictures
from ultragen.sampling.wan_encoding_strips import EncodedClip
from ultragen.sampling.wan_strips import Strips, choose_strips, shortest_strips

HD, UHD = EncodedClip(1088, 1920, 21), EncodedClip(2176, 3840, 8)


@pytest.fixture(scope="module")
def wan() -> AutoencoderKLWan:
    """Wan2.1's autoencoder without values: what it allocates shows without computing."""
    with torch.device("meta"):
        return AutoencoderKLWan().bfloat16().eval()


@pytest.mark.parametrize(
    ("clip", "strips"),
    [
        (EncodedClip(480, 832, 3), Strips(1, 0)),
        (EncodedClip(480, 832, 3), Strips(1, 1)),
        (EncodedClip(480, 832, 6), Strips(4, 0)),
        (EncodedClip(480, 832, 4, batch=2), Strips(5, 5)),
        (EncodedClip(480, 832, 41), Strips(4, 0)),
        (EncodedClip(1088, 1920, 21), Strips(4, 0)),
        (EncodedClip(1088, 1920, 4), Strips(3, 3)),
        (UHD, Strips(4, 0)),
    ],
    ids=str,
)
def test_the_count_is_what_is_allocated(clip, strips, wan, monkeypatch):
    # On a GPU both are one kernel without working memory in the frame's size.
    monkeypatch.setattr(wan_blocks, "rms_silu", lambda norm, x, out: None)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: torch.empty_like(q))
    shape = (clip.batch, 3, 4 * clip.latent_frames - 3, clip.height, clip.width)
    with Allocations() as allocations:
        groups = group_pictures([torch.empty(shape, dtype=torch.bfloat16, device="meta")])
        pictures = allocations.now
        torch.cat(list(encode_in_strips(wan, groups, strips)), dim=2)
    counted = clip.memory(strips.number, strips.resident)
    assert 0.85 * counted < allocations.peak - pictures <= 1.01 * counted


def test_usual_memory():
    """With the weights and a convolution's workspace below 8 and 20 GiB."""
    assert choose_strips(HD, HD.usual_memory) == choose_strips(UHD, UHD.usual_memory)
    assert choose_strips(HD, HD.usual_memory) == Strips(4, 0)
    assert HD.usual_memory < 5 * GIB
    assert UHD.usual_memory < 15 * GIB


def test_few_strips_where_memory_is_free():
    small = EncodedClip(480, 832, 21)
    assert choose_strips(small, small.usual_memory).number == 1
    assert choose_strips(HD, inf).number == 1
    assert choose_strips(UHD, inf).number == 3, "larger ones could not be indexed"


def test_long_clips_go_through_time_side_by_side():
    long = EncodedClip(1088, 1920, 81)
    assert choose_strips(HD, 5 * GIB).resident == 0
    assert choose_strips(long, 9 * GIB) == Strips(2, 2)
    longer = EncodedClip(1088, 1920, 201)
    strips = shortest_strips(longer)
    assert strips.resident == strips.number > 1
    assert longer.least_memory < 1.2 * long.least_memory


def test_float32_and_batches_take_more():
    assert EncodedClip(1088, 1920, 21, 4).memory(4, 0) == 2 * HD.memory(4, 0)
    assert EncodedClip(1088, 1920, 21, batch=2).memory(4, 0) == 2 * HD.memory(4, 0)
