"""Norms and sums of a block against Wan's own block; normalisation of Wan's autoencoder."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from kernels import DEVICE, angles
from torch.nn import functional as F

from ultragen.model.block import FusedGELU, UltraGenBlock
from ultragen.ops.dispatch import use

pytest.importorskip("triton", reason="Triton is not installed: it comes with CUDA builds of torch")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_in_few_passes_is_wans_block(dtype):
    torch.manual_seed(0)
    block = WanTransformerBlock(24, 32, 2, cross_attn_norm=True).to(DEVICE, dtype).eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    inputs = [torch.randn(2, n, 24, device=DEVICE, dtype=dtype) for n in (5, 3, 6)]
    rotary = tuple(x.repeat_interleave(2, -1).view(1, 5, 1, 12) for x in angles((5, 1, 1), 6))
    with torch.no_grad():
        *arguments, cos, sin = (x.double() for x in (*inputs, *rotary))
        expected = deepcopy(block).double()(*arguments, (cos, sin))
        UltraGenBlock.take_over(block)
        assert type(block.ffn.net[0]) is FusedGELU
        with use("triton"):
            found = block(*inputs, rotary)
    error = (found - expected).abs().max() / expected.abs().max()
    assert found.dtype == dtype
    assert error < {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert not torch.equal(found, torch.zeros_like(found))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [4, 20])
def test_normalisation_of_frames_cut_out_of_larger_ones(dtype, channels):
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm

    from ultragen.ops import triton_rms_silu

    torch.manual_seed(0)
    norm = WanRMS_norm(channels, images=False).to(DEVICE, dtype)
    torch.nn.init.uniform_(norm.gamma, 0.5, 1.5)
    whole = torch.randn(2, channels, 3, 9, 4, device=DEVICE, dtype=dtype)
    whole[0, :, 0, 3, 1] = 0
    x = whole.contiguous(memory_format=torch.channels_last_3d)[..., 2:7, :]
    frames = torch.zeros((2, channels, 5, 5, 4), device=DEVICE, dtype=dtype).contiguous(
        memory_format=torch.channels_last_3d
    )
    with torch.no_grad():
        triton_rms_silu.rms_silu(x, norm.gamma, frames[:, :, 2:])
        expected = F.silu(norm(x))
    assert (frames[:, :, :2] == 0).all()
    # Four roundings; the interpreter cuts digits off instead.
    tolerance = 1e-6 if dtype == torch.float32 else 2**-5
    torch.testing.assert_close(frames[:, :, 2:], expected, rtol=tolerance, atol=tolerance)
