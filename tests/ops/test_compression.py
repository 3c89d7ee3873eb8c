"""Compression, decompression and resampling against their plain forms."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from kernels import DEVICE
from torch import Tensor

from ultragen.model.attention import CompressedBranch, TimeGate
from ultragen.model.compression import Compression, Decompression
from ultragen.ops.axes import plan_axis
from ultragen.ops.decompress import (
    decompress_part_and_fuse,
    padded,
    upsampled,
    upsampled_axis,
)
from ultragen.ops.dispatch import use
from ultragen.ops.interpolation import (
    interpolation,
    resampled_axis,
    resize,
    resize_part,
    span_of,
)

pytest.importorskip("triton", reason="Triton is not installed: it comes with CUDA builds of torch")


@pytest.fixture(scope="module")
def triton_compress():
    from ultragen.ops import triton_compress

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_compress, "FEATURES", 8)
        yield triton_compress


@pytest.fixture(scope="module")
def triton_decompress():
    from ultragen.ops import triton_decompress

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_decompress, "CHANNELS", 16)
        yield triton_decompress


@pytest.mark.parametrize("factor, height, width", [(2, 3, 4), (4, 5, 2), (2, 1, 1)])
@pytest.mark.parametrize("biased", [True, False])
def test_compression(triton_compress, factor, height, width, biased):
    torch.manual_seed(0)
    convolution = Compression(10, 10, factor, stride=factor, groups=10, bias=biased).to(DEVICE)
    x = torch.randn(2, 2, height, width, 10, device=DEVICE)
    found = triton_compress.compress(x, convolution.weight, convolution.bias)
    with use("plain"):
        torch.testing.assert_close(found, convolution(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "factor, size, small",
    [
        (2, (3, 4), None),
        (4, (5, 2), None),
        (2, (1, 1), None),
        (2, (4, 5), (2, 2)),
        (2, (3, 11), None),
        (2, (10, 4), None),
        (2, (10, 11), None),
    ],
    ids=["halves", "quarters", "one", "resized", "two pairs", "two rows", "both"],
)
def test_decompression_and_fusion(triton_decompress, factor, size, small):
    """Also from a small grid that has been resized to fewer tokens (the released weights)."""
    torch.manual_seed(0)
    gate = TimeGate(4, 4, 10, 0.7)
    branch = CompressedBranch(10, factor, 0, gate, "key").to(DEVICE)
    for parameter in branch.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    small = small or tuple(-(-length // factor) for length in size)
    fine = torch.randn(2, 3, *size, 10, device=DEVICE)
    coarse = torch.randn(2, 3, *small, 10, device=DEVICE)
    timestep = torch.randn(2, 4, device=DEVICE)
    sizes = zip(size, padded(size, factor), small, (1, 2), strict=True)
    rows, columns = (upsampled_axis(*axis, fine.device) for axis in sizes)
    convolution = branch.decompression
    with torch.no_grad(), use("plain"):
        found = triton_decompress.decompress_and_fuse(
            fine, coarse, convolution.weight, convolution.bias, branch.gate(timestep), rows, columns
        )
        expected = branch.fuse(timestep, fine, coarse)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", ["plain", "triton"])
@pytest.mark.parametrize(
    "factor, size, small, cuts",
    [
        (2, (3, 12), None, (0, 4, 8, 12)),
        (4, (5, 11), None, (0, 4, 8, 11)),
        (2, (4, 13), (2, 5), (0, 8, 13)),
    ],
    ids=["halves", "quarters", "resized"],
)
def test_parts_are_decompressed_and_fused_as_the_whole(
    triton_decompress, implementation, factor, size, small, cuts
):
    """Parts of the columns, of the rows, and of both; each gets the small tokens that it needs."""
    torch.manual_seed(0)
    branch = CompressedBranch(10, factor, 0, TimeGate(4, 4, 10, 0.7), "key").to(DEVICE)
    for parameter in branch.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    small = small or tuple(-(-length // factor) for length in size)
    fine = torch.randn(1, 2, *size, 10, device=DEVICE)
    coarse = torch.randn(1, 2, *small, 10, device=DEVICE)
    timestep = torch.randn(1, 4, device=DEVICE)
    with torch.no_grad(), use("plain"):
        whole = branch.fuse(timestep, fine, coarse)
        gate = branch.gate(timestep)
    for pair in pairwise(cuts):
        spans = (
            upsampled(length, factor, least, *places)
            for length, least, places in zip(size, small, ((0, size[0]), pair), strict=True)
        )
        rows, columns = spans
        seen = coarse[:, :, rows.low : rows.high, columns.low : columns.high]
        part = fine[:, :, :, slice(*pair)]
        for turned in (False, True):
            given = [part, seen, rows, columns]
            convolution = branch.decompression
            if turned:
                given = [part.transpose(2, 3), seen.transpose(2, 3), columns, rows]
                convolution = deepcopy(convolution)
                convolution.weight.data = convolution.weight.data.transpose(3, 4).contiguous()
            grids, axes = given[:2], given[2:]
            with torch.no_grad(), use(implementation):
                found = decompress_part_and_fuse(*grids, gate, *axes, convolution, Decompression)
            found = found.transpose(2, 3) if turned else found
            expected = whole[:, :, :, slice(*pair)]
            # The kernel has the shares of places to five digits.
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("length, group", [(1, 1), (4, 1), (8, 2), (68, 1), (119, 2)])
def test_every_group_of_places_is_taken_once(factor, length, group):
    whole = length + -length % factor
    matrix = interpolation(whole // factor, whole, torch.device("cpu"), torch.float64)
    programs, _ = plan_axis(matrix[:length], group)
    starts, partners, _, _ = programs.tolist()
    taken = [*starts, *(partner for partner in partners if partner >= 0)]
    assert sorted(taken) == [*range(0, length, group)]
    for start, partner in zip(starts, partners, strict=True):
        if partner >= 0:
            for k in range(group):
                assert torch.equal(matrix[partner + k, 1:], matrix[start + k, :-1])
    if length > 60:
        assert len(starts) < 0.6 * len(taken)


def test_upsampling_by_less_than_two_is_left_to_the_plain_code():
    cpu = torch.device("cpu")
    assert upsampled_axis(7, 8, 7, 1, cpu) is None
    matrix = interpolation(7, 8, cpu, torch.float64)
    with pytest.raises(ValueError, match="7 tokens to 8"):
        plan_axis(matrix, 1)


@pytest.mark.parametrize("size, to", [((3, 4), (5, 4)), ((5, 3), (4, 7)), ((1, 2), (2, 1))])
def test_resampling(size, to):
    from ultragen.ops.triton_resampling import resample

    x = torch.randn(1, 2, *size, 10, device=DEVICE)
    rows, columns = (resampled_axis(*axis, x.device) for axis in zip(size, to, strict=True))
    with use("plain"):
        expected = resize(x, to)
    torch.testing.assert_close(resample(x, rows, columns), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", ["plain", "triton"])
@pytest.mark.parametrize("size, to", [((7, 4), (5, 4)), ((5, 3), (8, 7)), ((6, 2), (6, 2))])
def test_parts_are_resampled_as_the_whole(implementation, size, to):
    torch.manual_seed(0)
    x = torch.randn(1, 2, *size, 10, device=DEVICE)
    with use("plain"):
        whole = resize(x, to)
    for places in ((0, 2), (1, 4), (3, 5)):
        rows, columns = span_of(size[0], to[0], *places), span_of(size[1], to[1], 1, 2)
        seen = x[:, :, rows.low : rows.high, columns.low : columns.high]
        with torch.no_grad(), use(implementation):
            found = resize_part(seen, rows, columns)
        expected = whole[:, :, slice(*places), 1:2]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_convolution_that_somebody_changed_is_called(triton_decompress):
    """Its parameters alone would not tell what it computes."""

    class Doubled(Decompression):
        def forward(self, grid: Tensor) -> Tensor:
            return 2 * super().forward(grid)

    branch = CompressedBranch(10, 2, 0, TimeGate(4, 4, 10, 0.7), "key").to(DEVICE)
    torch.nn.init.normal_(branch.decompression.weight)
    fine, coarse = (torch.randn(1, 2, n, n, 10, device=DEVICE) for n in (4, 2))
    timestep = torch.randn(1, 4, device=DEVICE)
    with torch.no_grad(), use("triton"):
        before = branch.fuse(timestep, fine, coarse)
        branch.decompression.__class__ = Doubled
        found = branch.fuse(timestep, fine, coarse)
        gate = branch.gate(timestep)[:, None, None, None]
    torch.testing.assert_close(found, 2 * before - gate * fine, rtol=1e-4, atol=1e-4)
