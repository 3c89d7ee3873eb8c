"""Operations with gradients, where layers are computed a second time in the backward pass."""

from __future__ import annotations

import threading
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tiny import inputs, tiny_ultragen
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ultragen.model.windows import even_partition
from ultragen.ops import dispatch
from ultragen.ops.compress import compress
from ultragen.ops.depthwise import depthwise_conv3d
from ultragen.ops.dispatch import use
from ultragen.ops.interpolation import resize
from ultragen.ops.rotary_norm import rotary_norm
from ultragen.ops.strided_windows import merge_close, merge_remote, split_close, split_remote
from ultragen.ops.window_order import merge_windows, split_windows

pytest.importorskip("triton", reason="Triton is not installed: it comes with CUDA builds of torch")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GRID = (1, 4, 6) if DEVICE == "cpu" else (2, 4, 6)
LAYOUTS = {
    "paper": {},
    "released": {
        "full_attention_layers": (0,),
        "uneven": "resize",
        "global_keys_from": "query",
    },
    "t3": {"t3_windows": ((1, 2, 3), (1, 1, 2))},
}


def gradients(model, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The output, and the gradients of all parameters."""
    model.zero_grad()
    given = {name: value.to(DEVICE, dtype) for name, value in inputs(GRID).items()}
    out = model(**given, windows="auto" if model.config.t3_windows else 2).sample
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


# Each operation alone

SIZE, PARTS, HEADS = (2, 3, 5), 2, 2
RECTANGLES = even_partition(*SIZE[1:], PARTS).rectangles


def turned() -> tuple[Tensor, Tensor]:
    angle = torch.arange(2 * 3 * 5 * 3, device=DEVICE).view(2, 3, 5, 3) / 7
    return angle.cos(), angle.sin()


def joined(windows: list[Tensor]) -> Tensor:
    return merge_windows(windows, RECTANGLES, SIZE[1:])


# What each takes beside tokens b t h w d of 12 features: weights that learn, of these shapes.
OPERATIONS = {
    "window order": (lambda x: joined([w.sin() for w in split_windows(x, RECTANGLES)]), []),
    "close windows": (lambda x: merge_close(split_close(x, (2, 3, 1)).sin(), (2, 3, 1)), []),
    "remote windows": (lambda x: merge_remote(split_remote(x, (2, 3, 5)).sin(), (2, 3, 5)), []),
    "rotary norm": (
        lambda x, weight: joined(rotary_norm(x, weight, 1e-6, turned(), HEADS, RECTANGLES)),
        [(12,)],
    ),
    "depthwise": (depthwise_conv3d, [(12, 1, 3, 3, 3), (12,)]),
    "compression": (compress, [(12, 1, 2, 2), (12,)]),
    "resizing": (lambda x: resize(x, (4, 4)), []),
}


def plainly(function):
    return function


def checkpointed(function):
    return partial(checkpoint, function, use_reentrant=False)


def compiled(function):
    return torch.compile(function, backend="aot_eager", fullgraph=True)


def autocast(function):
    def call(*arguments: Tensor) -> Tensor:
        with torch.autocast(DEVICE, torch.bfloat16):
            return function(*arguments)

    return call


def value_and_gradients(function, arguments: list[Tensor]) -> list[Tensor]:
    for argument in arguments:
        argument.requires_grad_().grad = None
    out = function(*arguments)
    (out * torch.linspace(-1, 1, out.numel(), device=DEVICE).view_as(out)).sum().backward()
    return [out.detach(), *(argument.grad for argument in arguments)]


@pytest.mark.parametrize("around", [plainly, checkpointed, compiled, autocast])
@pytest.mark.parametrize("name", OPERATIONS)
def test_value_and_gradients_are_those_of_the_plain_form_in_float64(name, around, monkeypatch):
    from ultragen.ops import triton_depthwise, triton_rotary_norm

    if DEVICE == "cpu":  # the interpreter runs program by program
        monkeypatch.setattr(triton_depthwise, "GROUPS", 2)
        monkeypatch.setattr(triton_rotary_norm, "PROGRAMS", 2)
    torch.manual_seed(0)
    function, shapes = OPERATIONS[name]
    given = [torch.randn(shape, device=DEVICE) for shape in ((1, *SIZE, 12), *shapes)]
    with use("plain"):
        expected = value_and_gradients(function, [value.double() for value in given])
    with use("triton"):
        found = value_and_gradients(around(function), given)
    close = 3e-2 if around is autocast else 1e-4
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).abs().max() < close * other.abs().max()


# Trials of kernels


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


def test_what_is_not_meant_for_a_device_is_no_failure(monkeypatch, recwarn):
    """Whole tiles pay on Hopper alone: elsewhere they are not tried, and nobody is warned."""
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(dispatch, "find_spec", lambda name: True)
    reason = dispatch.why_not.__wrapped__("triton_whole_tiles", torch.device("cuda"))
    assert reason == "for Hopper alone, where it was found to pay"
    assert not [warning for warning in recwarn if "slower code" in str(warning.message)]
