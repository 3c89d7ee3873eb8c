"""The renderer's loops in Triton against their plain forms."""

from __future__ import annotations

import pytest
import torch
from kernels import DEVICE
from torch import Tensor

from ultragen.world import land, sky
from ultragen.world.noise import texture

pytest.importorskip("triton", reason="Triton is not installed: it comes with CUDA builds of torch")


@pytest.fixture(scope="module")
def renderer():
    from ultragen.world import triton_loops

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_loops, "BLOCK", 64)
        yield triton_loops


def random_inputs(spread: list[tuple[float, float, bool]]) -> list[Tensor]:
    """Values for 2 frames of 5 × 19 pixels; those of whole frames are 2 1 1."""
    torch.manual_seed(0)
    return [
        low + (high - low) * torch.rand((2, 1, 1) if whole else (2, 5, 19), device=DEVICE)
        for low, high, whole in spread
    ]


PLACE = ((-200.0, 200.0, False), (-70.0, 70.0, False), (0.0, 0.2, False))


@pytest.mark.parametrize(
    "name, module, others",
    [
        ("cloud_octaves", sky, [(-1, 1, False), (-1, 1, True), (-0.5, 0.5, False)]),
        ("relief_octaves", land, [(0, 0.3, False), (0, 1, True), (0.4, 0.8, True)]),
        ("relief_octaves", land, [(0, 0.3, False), (0, 1, True), (0.4, 0.9, False)]),
        ("wave_octaves", land, [(0, 3, True)]),
    ],
)
@pytest.mark.parametrize("number", [1, 4])
def test_octaves_add_up_to_what_the_plain_sums_are(renderer, name, module, others, number):
    tile = texture(torch.device(DEVICE))
    inputs = random_inputs([*PLACE, *others])
    found = getattr(renderer, name)(tile, *inputs, number)
    expected = getattr(module, name)(tile, *inputs, number)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert other.std() > 0.05
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-3)


def test_octaves_of_rows_and_of_whole_coordinates(renderer):
    """What is the same along a row, and places exactly on texels and on the tile's border."""
    tile = texture(torch.device(DEVICE))
    u = torch.tensor([0.0, 64.0, -64.0, 63.999, 0.125, -0.125], device=DEVICE).expand(1, 2, 6)
    v = torch.tensor([[0.0], [64.0]], device=DEVICE).expand(1, 2, 6)
    footprint = torch.tensor([[0.0], [0.1]], device=DEVICE)[None]
    drift = torch.zeros(1, 1, 1, device=DEVICE)
    found = renderer.wave_octaves(tile, u, v, footprint, drift, 2)
    expected = land.wave_octaves(tile, u, v, footprint.expand(1, 2, 6), drift, 2)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_layers_cover_each_other_as_in_the_plain_loop(renderer):
    torch.manual_seed(0)
    top = torch.linspace(0.3, 0.6, 4, device=DEVICE)[:, None] + 0.2 * torch.rand(2, 4, 19).to(
        DEVICE
    )
    base = torch.tensor([0.5, 0.6, 0.7, 2.0], device=DEVICE)[None, :, None].expand(2, 4, 1)
    ripple = 0.05 * torch.randn(2, 13, 19).to(DEVICE)
    y = torch.linspace(0, 1, 13, device=DEVICE).reshape(1, -1, 1)
    found = renderer.cover_layers(top, base, ripple, y, 1 / 13)
    expected = land.cover_layers(top, base, ripple, y, 1 / 13)
    for one, other in zip(found, expected, strict=True):
        assert len(other.unique()) > 2
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
