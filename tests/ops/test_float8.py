"""Kernels that put tokens into FP8 with what comes before, against the plain form; a model with
them."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.normalization import FP32LayerNorm
from kernels import DEVICE, GRID
from tiny import inputs, tiny_ultragen
from torch import Tensor, nn

from ultragen.model.fp8 import quantize
from ultragen.ops import dispatch, float8_linear
from ultragen.ops.dispatch import NotMeant, use
from ultragen.ops.float8 import Float8
from ultragen.ops.modulation import modulated_norm, sum_and_modulated_norm, sum_and_norm

pytest.importorskip("triton", reason="Triton is not installed: it comes with CUDA builds of torch")
if DEVICE == "cuda" and torch.cuda.get_device_capability() < (8, 9):
    pytest.skip("for GPUs that compute in FP8", allow_module_level=True)
DTYPES = [torch.float32, torch.bfloat16]


class Reader(nn.Module):
    takes_float8 = True


def step(values: Tensor) -> Tensor:
    """How far the next e4m3 number is at most, of each: an eighth of its power of two."""
    return torch.exp2(values.float().abs().clamp(min=2.0**-6).log2().floor() - 3)


def check(found: Float8, plain: Float8, apart: float = 1e-3) -> None:
    """Equal, but for a few values that rounding in float32 sends to the next number."""
    assert (found.shape, found.dtype) == (plain.shape, plain.dtype)
    torch.testing.assert_close(found.scale, plain.scale, rtol=1e-6, atol=0)
    distance = (found.values.float() - plain.values.float()).abs()
    assert (distance <= torch.maximum(step(found.values), step(plain.values))).all()
    assert (distance > 0).sum() <= max(4, apart * distance.numel())
    assert found.values.float().abs().amax(-1).max() == 448


def both_ways(call, *given):
    with torch.no_grad():
        with use("plain"):
            plain = call(*given)
        with use("triton"):
            return call(*given), plain


def tokens(d: int, dtype: torch.dtype) -> Tensor:
    """Of all magnitudes: some are zero, some small, some have one large feature."""
    torch.manual_seed(0)
    x = torch.randn(2, 9, d, device=DEVICE).to(dtype)
    x[0, 3], x[0, 4] = 0, 1e-4 * x[0, 4]
    x[1, 5, d // 2] = 300
    return x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [16, 24, 96, 560])
@pytest.mark.parametrize("name", ["quantise", "quantise_gelu"])
def test_rows_alone_and_after_gelu(name, d, dtype):
    """Widths that are a power of two, and that are two or more of them."""
    x = tokens(d, dtype)
    found, plain = both_ways(getattr(float8_linear, name), x)
    check(found, plain)
    assert not found.dequantise()[0, 3].any()
    if name == "quantise":
        error = (found.dequantise().double() - x.double()).abs()
        assert (error <= 0.07 * x.double().abs() + found.scale * 2.0**-9).all()


def test_rows_that_do_not_lie_one_after_the_other():
    x = tokens(32, torch.float32).transpose(0, 1)[..., ::2]
    check(*both_ways(float8_linear.quantise, x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [24, 96])
def test_norms(d, dtype):
    x, update, (own, none) = tokens(d, dtype), tokens(d, dtype).flip(1), norms(d)
    scale, shift, gate = torch.randn(3, 2, 1, d, device=DEVICE)
    found, plain = both_ways(modulated_norm, none, x, scale, shift, Reader())
    check(found, plain)
    assert found.dtype == dtype
    for call, given in (
        (sum_and_norm, (own, x, update, gate)),
        (sum_and_modulated_norm, (none, x, update, scale, shift)),
    ):
        (total, found), (plain_total, plain) = both_ways(call, *given, Reader())
        # Sums differ in how they are rounded, by the interpreter too, and norms of them by that.
        torch.testing.assert_close(total, plain_total, rtol=2**-7, atol=2**-7)
        if dtype == torch.float32:
            check(found, plain, apart=0.01)
        else:
            error = (found.dequantise().float() - plain.dequantise().float()).norm()
            assert error < 0.02 * plain.dequantise().float().norm()


def norms(d: int) -> tuple[FP32LayerNorm, FP32LayerNorm]:
    """With weights of its own, and without."""
    own = FP32LayerNorm(d, 1e-6, True).to(DEVICE)
    nn.init.normal_(own.weight)
    nn.init.normal_(own.bias)
    return own, FP32LayerNorm(d, 1e-6, False)


def test_a_norm_stays_as_it_is_for_those_who_take_no_fp8():
    x, (_, none) = tokens(24, torch.float32), norms(24)
    shift = torch.zeros(1, 1, 24, device=DEVICE)
    for reader in (None, nn.Linear(24, 24)):
        found, plain = both_ways(modulated_norm, none, x, shift, shift, reader)
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)


def test_a_model_with_kernels(monkeypatch):
    """Near the one in FP8 without kernels, where few values are rounded the other way; and both as
    near as FP8 is to the model without it."""
    from ultragen.ops import triton_decompress, triton_rotary_norm

    monkeypatch.setattr(triton_decompress, "CHANNELS", 32)
    monkeypatch.setattr(triton_rotary_norm, "PROGRAMS", 3)
    sizes = {"attention_head_dim": 16, "ffn_dim": 64, "full_attention_layers": (0,)}
    model = tiny_ultragen(**sizes).to(DEVICE)
    given = {name: x.to(DEVICE) for name, x in inputs(GRID).items()}
    with torch.no_grad(), use("plain"):
        expected = model(**given, windows=2).sample
    quantize(model)
    found, plain = both_ways(lambda: model(**given, windows=2).sample)
    assert (found - plain).norm() < 0.02 * plain.norm()
    for x in (found, plain):
        assert 1e-3 < (x - expected).norm() / expected.norm() < 0.1


def test_kernels_are_for_cards_that_compute_in_fp8(monkeypatch):
    from ultragen.ops import triton_float8

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(NotMeant, match=r"8\.9"):
        triton_float8.try_on(torch.device(DEVICE))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    triton_float8.try_on(torch.device(DEVICE))


def test_the_forms_for_fp8_are_told_beside_the_others():
    assert not set(dispatch.FLOAT8) & set(dispatch.report(torch.device("cpu")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "why_not", lambda name, device: None)
        assert set(dispatch.FLOAT8) <= set(dispatch.report(torch.device("cuda")))
