"""Attention in 8 bits, against attention in float32."""

from __future__ import annotations

import pytest
import torch
from kernels import DEVICE
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed: it comes with CUDA builds of torch")
if DEVICE == "cuda" and torch.cuda.get_device_capability()[0] != 9:
    pytest.skip("for Hopper GPUs", allow_module_level=True)
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
WAYS = [
    ("int8", "bf16", 0.015),
    ("fp8", "bf16", 0.05),
    ("int8", "fp8", 0.045),
    ("fp8", "fp8", 0.06),
]


def inputs(queries: int, keys: int, d: int, offset: float = 2.0) -> list[Tensor]:
    """Keys have an offset in common, as those of video models do."""
    torch.manual_seed(0)
    sizes = [(1, 2, queries, d), (1, 2, keys, d), (1, 2, keys, d)]
    found = [torch.randn(size, device=DEVICE, dtype=DTYPE) for size in sizes]
    found[1] += offset * torch.randn(1, 2, 1, d, device=DEVICE, dtype=DTYPE)
    return found


def expected(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    logits = query.double() @ key.double().mT * query.shape[-1] ** -0.5
    return logits.softmax(-1) @ value.double(), logits.logsumexp(-1, keepdim=True)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("logits", "values", "bound"), WAYS)
@pytest.mark.parametrize("d", [32, 128])
def test_error_against_float64(logits, values, bound, d):
    """Neither queries nor keys fill their last block."""
    from ultragen.ops.triton_fp8_attention import attend

    given = inputs(150, 203, d)
    out, sums = attend(*given, logits, values)
    wanted, of_wanted = expected(*given)
    assert error(out, wanted) < bound
    assert out.dtype == DTYPE
    assert (sums.double() - of_wanted).abs().max() < (0.1 if logits == "int8" else 0.3)


@pytest.mark.parametrize("values", ["bf16", "fp8"])
def test_parts_of_keys_become_the_whole(values):
    """Each part has a mean of its own, which its sums must have."""
    from ultragen.ops.triton_fp8_attention import attend

    query, key, value = inputs(40, 192, 32)
    key[:, :, 128:] -= 1.0
    (first, one), (second, two) = (
        attend(query, key[:, :, part], value[:, :, part], "int8", values)
        for part in (slice(0, 128), slice(128, None))
    )
    found = first.float().lerp(second.float(), (two - torch.logaddexp(one, two)).exp())
    assert error(found, expected(query, key, value)[0]) < (0.015 if values == "bf16" else 0.045)


def test_zeros_stay_zeros():
    from ultragen.ops.triton_fp8_attention import attend

    zeros = torch.zeros(1, 1, 5, 32, device=DEVICE, dtype=DTYPE)
    for logits, values, _ in WAYS:
        assert not attend(zeros, zeros, zeros, logits, values)[0].any()


def test_refuses_gradients_and_odd_heads():
    from ultragen.ops.triton_fp8_attention import attend

    query, key, value = inputs(4, 4, 32)
    with pytest.raises(ValueError, match="no gradients"):
        attend(query.requires_grad_(), key, value)
    odd = torch.ones(1, 1, 4, 48, device=DEVICE, dtype=DTYPE)
    with pytest.raises(ValueError, match="not 48"):
        attend(odd, odd, odd)


def test_runs_only_where_it_is_asked_for():
    """As the kernels for whole tiles call it, with heads beside each other in memory."""
    from ultragen.ops import key_parts
    from ultragen.ops.triton_fp8_attention import attend

    given = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs(70, 70, 128)]
    before, of_before = key_parts.attend(*given)
    with torch.no_grad(), key_parts.in_8_bits(attend):
        found = key_parts.attend(*given)
    assert all(map(torch.equal, found, attend(*given, "int8", "bf16")))
    assert not torch.equal(found[0], before)
    with key_parts.in_8_bits(attend):  # gradients are wanted
        assert all(map(torch.equal, key_parts.attend(*given), (before, of_before)))
    assert all(map(torch.equal, key_parts.attend(*given), (before, of_before)))
