"""Norm, positions and the order of windows against their plain forms, with gradients."""

from __future__ import annotations

import pytest
import torch
from kernels import DEVICE, angles, plain_rotary_norm

from ultragen.model.windows import even_partition
from ultragen.ops.window_order import split_windows

pytest.importorskip("triton", reason="Triton is not installed: it comes with CUDA builds of torch")


@pytest.mark.parametrize("windows", [1, 2])
def test_norm_positions_and_windows_with_their_gradients(rotary_norm, windows):
    """A grid whose windows have four sizes, and as many features as no power of two."""
    torch.manual_seed(0)
    x = torch.randn(2, 2, 3, 5, 12, device=DEVICE, requires_grad=True)
    weight = torch.randn(12, device=DEVICE, requires_grad=True)
    rotary, partition = angles((2, 3, 5), 2), even_partition(3, 5, windows)
    found = rotary_norm(x, weight, rotary, 1e-6, partition.rectangles)
    expected = plain_rotary_norm(x, weight, rotary, 3, partition)
    assert [f.shape for f in found] == [e.shape for e in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    gradients = [torch.randn_like(f) for f in found]
    for one, other in zip(
        torch.autograd.grad(found, (x, weight), gradients),
        torch.autograd.grad(expected, (x, weight), gradients),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_norm_in_two_precisions(rotary_norm):
    """Queries in bfloat16 and a weight in float32, as autocast mixes them."""
    x = torch.randn(1, 1, 2, 2, 8, device=DEVICE).bfloat16()
    weight = torch.randn(8, device=DEVICE)
    rotary, partition = angles((1, 2, 2), 4), even_partition(2, 2, 1)
    (found,) = rotary_norm(x, weight, rotary, 1e-6, partition.rectangles)
    (expected,) = plain_rotary_norm(x.float(), weight, rotary, 1, partition)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("windows", [1, 2])
def test_windows_and_back_with_their_gradients(windows):
    from ultragen.ops.triton_windows import merge, split

    torch.manual_seed(0)
    partition = even_partition(3, 5, windows)
    grid = torch.randn(2, 2, 3, 5, 12, device=DEVICE, requires_grad=True)
    found, expected = split(grid, partition.rectangles), split_windows(grid, partition.rectangles)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    whole = merge([3 * one for one in found], partition.rectangles, partition.size)
    assert torch.equal(whole, 3 * grid)
    gradient = torch.randn_like(whole)
    whole.backward(gradient)
    torch.testing.assert_close(grid.grad, 3 * gradient)
