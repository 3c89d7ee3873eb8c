"""Operations with gradients, where layers are computed a second time in the backward pass."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from tiny import inputs, tiny_ultragen
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ultragen.ops import dispatch
from ultragen.ops.dispatch import use

pytest.importorskip("triton", reason="Triton is not installed: it comes with CUDA builds of torch")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GRID = (1, 4, 6) if DEVICE == "cpu" else (2, 4, 6)
LAYOUTS = {
    "paper": {},
    "full layers": {"full_attention_layers": (0,)},
    "resized, keys from queries": {"uneven": "resize", "global_keys_from": "query"},
    "shifted, without the global branch": {"crossing": "shift", "branches": ("hierarchical",)},
}


def gradients(model, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The output, and the gradients of all parameters."""
    model.zero_grad()
    given = {name: value.to(DEVICE, dtype) for name, value in inputs(GRID).items()}
    out = model(**given, windows=2).sample
    out.square().mean().backward()
    return [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_kernels_under_checkpointing_give_the_plain_gradients_in_float64(layout, monkeypatch):
    """Non-reentrant, as diffusers checkpoints: saved tensors can be read once there."""
    from ultragen.ops import triton_depthwise, triton_rotary_norm

    if DEVICE == "cpu":  # the interpreter runs program by program
        monkeypatch.setattr(triton_depthwise, "GROUPS", 2)
        monkeypatch.setattr(triton_rotary_norm, "PROGRAMS", 2)
    model = tiny_ultragen(**LAYOUTS[layout]).to(DEVICE)
    with use("plain"):
        expected = gradients(model.double(), torch.float64)
    model.float().enable_gradient_checkpointing()
    with use("triton"):
        found = gradients(model)
    assert len(found) == len(expected) > 20
    for one, other in zip(found, expected, strict=True):
        scale = max(1e-3, other.abs().max().item())
        assert (one.double() - other).abs().max() / scale < 2e-3


def test_a_kernel_that_is_first_met_in_a_checkpointed_region_is_not_lost(monkeypatch):
    """Its trial runs in a thread of its own: the region's way of saving tensors is not its own."""
    asked = []

    def try_on(device):
        asked.append(threading.current_thread())
        with torch.enable_grad():
            x = torch.ones(2, requires_grad=True)
            (x * x).sum().backward()

    monkeypatch.setattr(dispatch, "import_module", lambda *_: SimpleNamespace(try_on=try_on))
    monkeypatch.setattr(dispatch, "find_spec", lambda name: True)
    ran = []

    def region(x: Tensor) -> Tensor:
        ran.append(dispatch.fused_runs("triton_first_met_here", torch.device("cuda")))
        return (x * x).sin()

    x = torch.ones(3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        checkpoint(region, x, use_reentrant=False).sum().backward()
    assert ran == [True, True]
    assert len(asked) == 1 and asked[0] is not threading.current_thread()


def test_all_fused_forms_are_tried_before_the_first_step(monkeypatch):
    tried, real = [], dispatch.why_not

    def why_not(name: str, device: torch.device) -> str | None:
        tried.append(name)
        return real(name, device)

    monkeypatch.setattr(dispatch, "why_not", why_not)
    model = tiny_ultragen(num_layers=1)
    order = []
    model.blocks[0].register_forward_pre_hook(lambda *_: order.append([*tried]))
    model(**inputs((1, 4, 6)), windows=2)
    assert order and set(order[0]) >= set(dispatch.FUSED["cpu"])


def test_what_does_not_run_says_why(monkeypatch):
    def broken(device):
        raise RuntimeError("no kernel image is available\nfor this device")

    monkeypatch.setattr(dispatch, "import_module", lambda *_: SimpleNamespace(try_on=broken))
    with pytest.warns(UserWarning, match="slower code does: no kernel image"):
        reason = dispatch.why_not.__wrapped__("cpu_modulation", torch.device("cpu"))
    assert reason == "no kernel image is available\nfor this device"
