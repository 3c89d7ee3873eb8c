"""Operations with gradients, where layers are computed a second time in the backward pass."""

from __future__ import annotations

import threading
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention import FeedForward
from diffusers.models.normalization import FP32LayerNorm
from tiny import inputs, tiny_ultragen
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ultragen.model.compression import Decompression
from ultragen.model.windows import even_partition
from ultragen.ops import dispatch
from ultragen.ops.compress import compress
from ultragen.ops.decompress import decompress_and_fuse
from ultragen.ops.depthwise import depthwise_conv3d
from ultragen.ops.dispatch import use
from ultragen.ops.feed_forward import feed_forward, runs_in_pieces
from ultragen.ops.interpolation import resize
from ultragen.ops.modulation import (
    gated_sum,
    modulated_norm,
    sum_and_modulated_norm,
    sum_and_norm,
)
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
    from ultragen.ops import triton_depthwise, triton_modulation, triton_rotary_norm

    if DEVICE == "cpu":  # the interpreter runs program by program
        monkeypatch.setattr(triton_depthwise, "GROUPS", 2)
        monkeypatch.setattr(triton_modulation, "PROGRAMS", 2)
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


def normed(x: Tensor, function, *weights: Tensor) -> Tensor:
    """A function of a norm without weights and of tokens b n d."""
    norm = FP32LayerNorm(12, elementwise_affine=False)
    out = function(norm, x.flatten(1, 3), *weights)
    return torch.cat(out) if isinstance(out, tuple) else out


WITH_WEIGHTS = FP32LayerNorm(12).to(DEVICE).requires_grad_(False)


# What each takes beside tokens b t h w d of 12 features: weights that learn, of these shapes.
OPERATIONS = {
    "modulated norm": (
        lambda x, scale, shift: normed(x, modulated_norm, scale, shift),
        [(1, 1, 12), (1, 1, 12)],
    ),
    "sum and norm": (
        lambda x, *others: torch.cat(sum_and_norm(WITH_WEIGHTS, x.flatten(1, 3), *others)),
        [(1, 30, 12), (1, 1, 12)],
    ),
    "sum and modulated norm": (
        lambda x, update, scale, shift: normed(x, sum_and_modulated_norm, update, scale, shift),
        [(1, 30, 12), (1, 1, 12), (1, 1, 12)],
    ),
    "gated sum": (
        lambda x, update, gate: gated_sum(x.flatten(1, 3), update, gate),
        [(1, 30, 12), (1, 1, 12)],
    ),
    "window order": (lambda x: joined([w.sin() for w in split_windows(x, RECTANGLES)]), []),
    "close windows": (lambda x: merge_close(split_close(x, (2, 3, 1)).sin(), (2, 3, 1)), []),
    "remote windows": (lambda x: merge_remote(split_remote(x, (2, 3, 5)).sin(), (2, 3, 5)), []),
    "rotary norm": (
        lambda x, weight: joined(rotary_norm(x, weight, 1e-6, turned(), HEADS, RECTANGLES)),
        [(12,)],
    ),
    "depthwise": (depthwise_conv3d, [(12, 1, 3, 3, 3), (12,)]),
    "compression": (compress, [(12, 1, 2, 2), (12,)]),
    "compression that fits": (
        lambda x, *layer: compress(torch.cat([x[:, :, :2, :4], x[:, :, 1:, 1:]], 2), *layer),
        [(12, 1, 2, 2), (12,)],
    ),
    "resizing": (lambda x: resize(x, (4, 4)), []),
}


def plainly(function):
    return function


def checkpointed(function):
    return partial(checkpoint, function, use_reentrant=False)


def compiled(function):
    return torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=False)


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
    from ultragen.ops import triton_depthwise, triton_modulation, triton_rotary_norm

    if DEVICE == "cpu":  # the interpreter runs program by program
        monkeypatch.setattr(triton_depthwise, "GROUPS", 2)
        monkeypatch.setattr(triton_modulation, "PROGRAMS", 2)
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


@pytest.mark.parametrize("around", [plainly, checkpointed, compiled, autocast])
@pytest.mark.parametrize(
    "factor, size, small",
    [(2, (3, 4), (2, 2)), (4, (5, 11), (2, 3)), (2, (4, 5), (2, 2)), (2, (1, 1), (1, 1))],
    ids=["halves", "quarters", "resized", "one"],
)
def test_decompression_and_fusion_in_float64(around, factor, size, small, monkeypatch):
    from ultragen.ops import triton_decompress, triton_decompress_gradients

    if DEVICE == "cpu":  # the interpreter runs program by program
        monkeypatch.setattr(triton_decompress, "CHANNELS", 16)
        monkeypatch.setattr(triton_decompress_gradients, "CHANNELS", 16)
        monkeypatch.setattr(triton_decompress_gradients, "COLUMNS", 2)
        monkeypatch.setattr(triton_decompress_gradients, "PROGRAMS", 4)
    torch.manual_seed(0)
    layer = Decompression(12, 12, 3, padding=1, groups=12).to(DEVICE)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    shapes = (2, 3, *size, 12), (2, 3, *small, 12), (2, 12)
    given = [torch.randn(shape, device=DEVICE) for shape in shapes]
    found = {}
    for way, convolution in (("plain", deepcopy(layer).double()), ("triton", layer)):

        def fused(fine: Tensor, coarse: Tensor, gate: Tensor, convolution=convolution) -> Tensor:
            gate = gate.sigmoid()
            return decompress_and_fuse(fine, coarse, gate, factor, convolution, Decompression)

        inputs = [x.to(convolution.weight.dtype, copy=True) for x in given]
        with use(way):
            function = around(fused) if way == "triton" else fused
            found[way] = value_and_gradients(function, inputs)
        found[way] += [p.grad for p in convolution.parameters()]
    close = 5e-2 if around is autocast else 1e-4
    assert len(found["plain"]) == 6
    for other, one in zip(*found.values(), strict=True):
        assert (one.double() - other).abs().max() < close * other.abs().max()


def test_samples_may_share_the_gate_of_a_fusion():
    layer = Decompression(12, 12, 3, padding=1, groups=12).to(DEVICE)
    fine, coarse = (torch.randn(2, 1, *size, 12, device=DEVICE) for size in ((3, 4), (2, 2)))
    found = {}
    for way in ("plain", "triton"):
        gate = torch.full((1, 12), 0.3, device=DEVICE, requires_grad=True)
        with use(way):
            out = decompress_and_fuse(fine, coarse, gate, 2, layer, Decompression)
        out.square().sum().backward()
        found[way] = out.detach(), gate.grad
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def last_part(norm, x: Tensor, update: Tensor, scale, shift, network, gate) -> Tensor:
    """A block's, as it computes it."""
    if runs_in_pieces(norm, x, update, network):
        return feed_forward(norm, x, update, scale, shift, network, gate)
    x, normed = sum_and_modulated_norm(norm, x, update, scale, shift)
    return gated_sum(x, network(normed), gate)


def feed_forward_and_gradients(around, network, given: list[Tensor]) -> list[Tensor]:
    norm = FP32LayerNorm(12, eps=1e-6, elementwise_affine=False)

    def function(x: Tensor, update: Tensor, scale: Tensor, shift: Tensor, gate: Tensor) -> Tensor:
        # What comes before it is computed again too.
        return last_part(norm, x.sin(), update.cos(), scale, shift, network, gate)

    network.zero_grad()
    found = value_and_gradients(around(function), given)
    return [*found, *(p.grad.clone() for p in network.parameters())]


@pytest.mark.parametrize("shared", [False, True], ids=["by sample", "shared"])
@pytest.mark.parametrize("around", [plainly, checkpointed, compiled, autocast])
def test_the_feed_forward_network_in_pieces_is_the_whole_in_float64(around, shared, monkeypatch):
    """Pieces that do not divide the tokens; modulation of each sample, and the same for all."""
    monkeypatch.setattr("ultragen.ops.feed_forward.PIECE", 4)
    torch.manual_seed(0)
    network = FeedForward(12, inner_dim=20, activation_fn="gelu-approximate").to(DEVICE)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    shapes = [(2, 7, 12)] * 2 + [(1 if shared else 2, 1, 12)] * 3
    given = [torch.randn(shape, device=DEVICE) for shape in shapes]
    with use("plain"):
        doubles = [value.double() for value in given]
        expected = feed_forward_and_gradients(plainly, deepcopy(network).double(), doubles)
    with use("triton"):
        found = feed_forward_and_gradients(around, network, given)
    close = 3e-2 if around is autocast else 1e-4
    assert len(found) == len(expected) == 10
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).abs().max() < close * other.abs().max()


def test_checkpointing_computes_the_feed_forward_network_once_less(monkeypatch):
    """What it keeps is had before it runs: computing again stops there."""
    from ultragen.ops import feed_forward as module

    ran = []
    hidden = module._hidden
    monkeypatch.setattr(module, "_hidden", lambda *given: ran.append(1) or hidden(*given))
    network = FeedForward(12, inner_dim=20, activation_fn="gelu-approximate").to(DEVICE)
    given = [torch.randn(1, n, 12, device=DEVICE) for n in (5, 5, 1, 1, 1)]
    with use("triton"):
        feed_forward_and_gradients(checkpointed, network, given)
    assert len(ran) == 1


@pytest.mark.parametrize("trained", [("2.weight",), ("0.proj.bias",), ()], ids=str)
def test_the_feed_forward_network_with_weights_that_stay(trained, monkeypatch):
    network = FeedForward(12, inner_dim=20, activation_fn="gelu-approximate").to(DEVICE)
    norm = FP32LayerNorm(12, elementwise_affine=False)
    shapes = [(1, 7, 12)] * 2 + [(1, 1, 12)] * 3
    x, *others = (torch.randn(shape, device=DEVICE) for shape in shapes)
    found = {}
    for name, parameter in network.net.named_parameters():
        parameter.requires_grad_(name in trained)
    for way in ("plain", "triton"):
        network.zero_grad()
        given = x.clone().requires_grad_()
        with use(way):
            last_part(norm, given, *others[:3], network, others[3]).square().sum().backward()
        found[way] = [given.grad, *(p.grad for p in network.parameters() if p.requires_grad)]
    assert all(p.grad is None for p in network.parameters() if not p.requires_grad)
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_feed_forward_networks_backward_pass_within_autocast_and_a_second_derivative():
    network = FeedForward(12, inner_dim=20, activation_fn="gelu-approximate").to(DEVICE)
    norm = FP32LayerNorm(12, elementwise_affine=False)
    given = [torch.randn(1, n, 12, device=DEVICE, requires_grad=n > 1) for n in (5, 5, 1, 1, 1)]
    weight = network.net[2].weight
    with use("triton"):
        out = last_part(norm, *given[:4], network, given[4]).square().sum()
    (expected,) = torch.autograd.grad(out, weight, retain_graph=True)
    with torch.autocast(DEVICE, torch.bfloat16):
        (found,) = torch.autograd.grad(out, weight, retain_graph=True)
    assert torch.equal(found, expected)
    (first,) = torch.autograd.grad(out, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


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
