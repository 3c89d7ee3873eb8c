"""The depthwise convolution against the library's, with its gradients."""

from __future__ import annotations

import pytest
import torch
from kernels import DEVICE
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton", reason="Triton is not installed: it comes with CUDA builds of torch")


@pytest.fixture(scope="module")
def depthwise():
    from ultragen.ops import triton_depthwise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_depthwise, "GROUPS", 2)
        patch.setattr(triton_depthwise, "FEATURES", 16)
        yield triton_depthwise


def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # On a CPU: of grids this small, torch 2.11's own convolution reads memory that is not its own
    # on a GPU.
    x_, weight_, bias_ = (v if v is None else v.cpu() for v in (x, weight, bias))
    volume = F.conv3d(x_.permute(0, 4, 1, 2, 3), weight_, bias_, padding=1, groups=x.shape[-1])
    return volume.permute(0, 2, 3, 4, 1).to(x.device)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 3), (2, 3, 4, 5, 8), (1, 2, 3, 17, 20)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.slow
def test_the_convolution_and_its_gradients(depthwise, shape, biased):
    torch.manual_seed(0)
    d = shape[-1]
    x = torch.randn(shape, device=DEVICE, requires_grad=True)
    weight = torch.randn(d, 1, 3, 3, 3, device=DEVICE, requires_grad=True)
    bias = torch.randn(d, device=DEVICE, requires_grad=True) if biased else None
    inputs = [value for value in (x, weight, bias) if value is not None]
    out = depthwise.depthwise_conv3d(x, weight, bias)
    expected = plain(*(v.double() if v is not None else None for v in (x, weight, bias)))
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    gradient = torch.randn_like(out)
    found = torch.autograd.grad(out, inputs, gradient)
    wanted = torch.autograd.grad(expected, inputs, gradient.double())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_only_the_gradients_that_are_needed(depthwise):
    x = torch.randn(1, 2, 3, 4, 5, device=DEVICE, requires_grad=True)
    weight = torch.randn(5, 1, 3, 3, 3, device=DEVICE)
    depthwise.depthwise_conv3d(x, weight, None).sum().backward()
    assert x.grad is not None and weight.grad is None


def test_tokens_in_another_order(depthwise):
    x = torch.randn(1, 5, 2, 3, 4, device=DEVICE).permute(0, 2, 3, 4, 1)
    weight = torch.randn(5, 1, 3, 3, 3, device=DEVICE)
    found = depthwise.depthwise_conv3d(x, weight, None)
    torch.testing.assert_close(found, plain(x, weight, None), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_torch_compile_takes_it_as_it_is(depthwise):
    """One operator in the graph, with its shapes and its gradient known."""
    x = torch.randn(1, 2, 3, 4, 6, device=DEVICE, requires_grad=True)
    weight = torch.randn(6, 1, 3, 3, 3, device=DEVICE, requires_grad=True)
    compiled = torch.compile(
        lambda x, weight: depthwise.depthwise_conv3d(x, weight, None) * 2,
        fullgraph=True,
        backend="aot_eager",
    )
    out = compiled(x, weight)
    torch.testing.assert_close(out, 2 * plain(x, weight, None), rtol=1e-4, atol=1e-4)
    out.sum().backward()
    wanted = torch.autograd.grad(2 * plain(x, weight, None).sum(), (x, weight))
    for one, other in zip((x.grad, weight.grad), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
