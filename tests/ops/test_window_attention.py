"""Attention in windows as one operation with a gradient of its own."""

from __future__ import annotations

from copy import deepcopy
from functools import partial

import pytest
import torch
from kernels import DEVICE, angles
from tiny import inputs, tiny_ultragen
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ultragen.model.attention import RotaryNorm, UltraGenAttention
from ultragen.model.window_plan import WindowLayout
from ultragen.model.windows import even_partition
from ultragen.ops import window_attention
from ultragen.ops.dispatch import use
from ultragen.ops.gradients import Recomputation
from ultragen.ops.host_memory import HostMemory
from ultragen.ops.key_parts import attend, attend_backward

pytest.importorskip("triton", reason="Triton is not installed: it comes with CUDA builds of torch")
# On a GPU what cuDNN takes, and few of the tokens fill up.
HEADS, HEAD, TILE = (2, 128, 128) if DEVICE == "cuda" else (3, 8, 8)
SIZE = (2, 40, 41) if DEVICE == "cuda" else (2, 3, 5)
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
MODEL_HEAD = 128 if DEVICE == "cuda" else 16
CLOSE = 4e-2 if DEVICE == "cuda" else 1e-4


@pytest.fixture
def few_programs(monkeypatch):
    if DEVICE == "cpu":  # the interpreter runs program by program
        from ultragen.ops import triton_rotary_norm

        monkeypatch.setattr(triton_rotary_norm, "PROGRAMS", 3)


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("tile", [1, TILE], ids=["as they are", "filled"])
@pytest.mark.parametrize("offset", [0.0, 4.0], ids=["plain", "large sums"])
@pytest.mark.parametrize("around", ["plainly", "checkpointed"])
def test_value_and_gradients_in_float64(tile, offset, around, monkeypatch):
    """Windows of four sizes; what fills their last tiles has no part in any of it."""
    monkeypatch.setattr(window_attention, "tile_for", lambda windows: tile)
    torch.manual_seed(0)
    d, partition, rotary = HEADS * HEAD, even_partition(*SIZE[1:], 2), angles(SIZE, HEAD // 2)
    given = [x.requires_grad_() for x in torch.randn(3, 2, *SIZE, d, device=DEVICE, dtype=DTYPE)]
    given[1].data += offset
    norms = [RotaryNorm(d, eps=1e-6).to(DEVICE, DTYPE) for _ in range(2)]
    for norm in norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    weights = torch.linspace(-1, 1, given[0].numel(), device=DEVICE).view_as(given[0])

    def found(*given, norms):
        arguments = given, norms, rotary, HEADS, partition.rectangles
        return window_attention.window_attention(*arguments[0], *arguments[1:])

    call = partial(found, norms=norms)
    with use("triton"):
        out = checkpoint(call, *given, use_reentrant=False) if around != "plainly" else call(*given)
        (out.double() * weights).sum().backward()
    parameters = [*given, *(norm.weight for norm in norms)]
    gradients = [p.grad.double() for p in parameters]

    doubles = [x.detach().double().requires_grad_() for x in given]
    precise = [deepcopy(norm).double() for norm in norms]
    at = WindowLayout(SIZE[1:], partition, tuple(x.double() for x in rotary))
    with use("plain"):
        layer = UltraGenAttention(d, HEADS, 1e-6, (), 0, 8, 0.5, 8, "key").double().to(DEVICE)
        layer.norm_q, layer.norm_k = precise
        expected = layer.attend(
            torch.zeros(2, 2, 3, 5, d), *(lambda _, x=x: x for x in doubles), at
        )
        (expected * weights).sum().backward()
    assert (out.double() - expected).abs().max() < CLOSE * expected.abs().max()
    for one, other in zip(
        gradients, [x.grad for x in (*doubles, *(norm.weight for norm in precise))], strict=True
    ):
        assert (one - other).abs().max() < CLOSE * other.abs().max()


def small_attention(change) -> list[torch.Tensor]:
    """The gradients of queries, keys and values, whose grids are changed in memory alone."""
    torch.manual_seed(0)
    d, partition, rotary = HEADS * HEAD, even_partition(*SIZE[1:], 2), angles(SIZE, HEAD // 2)
    given = torch.randn(3, 1, *SIZE, d, device=DEVICE, dtype=DTYPE)
    grids = [change(x).requires_grad_() for x in given]
    norms = [RotaryNorm(d, eps=1e-6).to(DEVICE, DTYPE) for _ in range(2)]
    with use("triton"):
        out = window_attention.window_attention(*grids, norms, rotary, HEADS, partition.rectangles)
        out.float().sin().sum().backward()
    return [x.grad for x in grids]


@pytest.mark.usefixtures("few_programs")
def test_grids_may_lie_in_memory_in_another_order():
    expected = small_attention(lambda x: x)
    found = small_attention(lambda x: x.mT.contiguous().mT)
    assert all(map(same, found, expected))


@pytest.mark.usefixtures("few_programs")
def test_windows_make_room_once_their_gradients_are_there(monkeypatch):
    """Queries, keys, values, results and their gradients: as much as what the layer keeps."""
    from ultragen.ops import triton_rotary_norm, triton_whole_tiles

    used, room = [], []
    attention, rotation = triton_whole_tiles.attention_gradients, triton_rotary_norm.gradients

    def attend(*given):
        used.extend(map(StorageWeakRef, (x.untyped_storage() for x in given[:5])))
        return attention(*given)

    def rotate(*given):
        room.append([reference.expired() for reference in used])
        return rotation(*given)

    monkeypatch.setattr(triton_whole_tiles, "attention_gradients", attend)
    monkeypatch.setattr(triton_rotary_norm, "gradients", rotate)
    small_attention(lambda x: x)
    assert room == [[True] * len(used)] * 2 and used


@pytest.mark.usefixtures("few_programs")
def test_a_model_attends_with_it_in_all_branches_and_full_layers(monkeypatch):
    """As a GPU of the kind that it was measured on would."""
    called = []
    real = window_attention.window_attention
    for module in ("model.attention", "ops.whole_attention"):
        monkeypatch.setattr(f"ultragen.{module}.keeps_little", lambda *_: way == "triton")
        monkeypatch.setattr(
            f"ultragen.{module}.window_attention", lambda *given: called.append(1) or real(*given)
        )
    if DEVICE == "cpu":  # a GPU's tiles would be filled by two tokens and 126 that are none
        monkeypatch.setattr(window_attention, "tile_for", lambda windows: TILE)
    model = tiny_ultragen(full_attention_layers=(0,), num_layers=2, attention_head_dim=MODEL_HEAD)
    model.to(DEVICE, DTYPE).enable_gradient_checkpointing()
    given = {name: value.to(DEVICE, DTYPE) for name, value in inputs((1, 4, 6)).items()}
    found = {}
    for way in ("plain", "triton"):
        model.zero_grad()
        with use(way):
            out = model(**given, windows=2).sample
            out.square().mean().backward()
        found[way] = [out.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    assert len(called) == 2 * 4  # one layer of three branches and one of one, each computed twice
    assert len(found["plain"]) == len(found["triton"])
    for one, other in zip(*found.values(), strict=True):
        close = 0.1 if DEVICE == "cuda" else 2e-3  # of the whole: in bfloat16 single ones differ
        assert (one - other).norm() < close * other.norm() + 1e-3


@pytest.fixture
def as_on_a_gpu(monkeypatch, few_programs):
    """Has models attend as on a GPU of the kind that it was measured on; gives the calls."""
    called = []
    for module in ("model.attention", "ops.whole_attention"):
        monkeypatch.setattr(f"ultragen.{module}.keeps_little", lambda *_: True)
    monkeypatch.setattr(window_attention, "tile_for", lambda windows: TILE)
    real = window_attention._attend
    monkeypatch.setattr(
        window_attention, "_attend", lambda *given: called.append(1) or real(*given)
    )
    with use("triton"):
        yield called


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """To the last bit; cuDNN's gradients of the queries are not the same twice."""
    if DEVICE == "cpu":
        return torch.equal(one, other)
    return bool((one - other).norm() <= 0.02 * other.norm() + 1e-3)


def gradients(model) -> list[torch.Tensor]:
    model.zero_grad()
    dtype = model.dtype
    given = {name: value.to(DEVICE, dtype) for name, value in inputs((1, 4, 6)).items()}
    model(**given, windows=2).sample.square().mean().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("results, again", [("none", 7), ("whole", 3), ("all", 0)])
def test_attention_whose_result_is_kept_is_not_computed_again(results, again, as_on_a_gpu):
    """Three layers: one of full attention, two of three branches, of which the global one sees all,
    and with K = 2 the hierarchical one of the even layer too."""
    model = tiny_ultragen(full_attention_layers=(0,), num_layers=3, attention_head_dim=MODEL_HEAD)
    model.to(DEVICE, DTYPE)
    expected = gradients(model)
    assert len(as_on_a_gpu) == 7
    model.enable_gradient_checkpointing(Recomputation(results=results))
    found = gradients(model)
    assert len(as_on_a_gpu) == 7 + 7 + again
    assert all(map(same, found, expected))


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_graph_that_is_kept_has_a_second_backward_pass():
    model = tiny_ultragen(full_attention_layers=(0,), num_layers=2, attention_head_dim=MODEL_HEAD)
    model.to(DEVICE, DTYPE).enable_gradient_checkpointing(Recomputation(results="all"))
    given = {name: value.to(DEVICE, DTYPE) for name, value in inputs((1, 4, 6)).items()}
    loss = model(**given, windows=2).sample.square().mean()
    wanted = [p for name, p in model.named_parameters() if "to_q.weight" in name]
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    assert all(map(same, torch.autograd.grad(loss, wanted), first))


def test_every_second_layer_may_keep_all_it_needs(as_on_a_gpu):
    model = tiny_ultragen(full_attention_layers=(0, 1), num_layers=2, attention_head_dim=MODEL_HEAD)
    model.to(DEVICE, DTYPE)
    expected = gradients(model)
    model.enable_gradient_checkpointing(Recomputation(every=2, results="none"))
    assert all(map(same, gradients(model), expected))
    assert len(as_on_a_gpu) == 2 + 2 + 1
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Recomputation(every=0)
    with pytest.raises(ValueError, match="none, whole or all, not 'some'"):
        Recomputation(results="some")


def test_what_layers_are_given_may_wait_in_the_hosts_memory(monkeypatch):
    """And the room that it took is taken again in the next step."""
    monkeypatch.setattr(HostMemory, "is_worth_it", lambda self, x: x.ndim == 3 and x.nbytes > 2000)
    model = tiny_ultragen(num_layers=3).to(DEVICE)
    expected = gradients(model)
    recomputation = Recomputation(host_memory=True)
    model.enable_gradient_checkpointing(recomputation)
    for _ in range(2):
        for one, other in zip(gradients(model), expected, strict=True):
            torch.testing.assert_close(one, other)
        [held] = recomputation._host.free.values()
        assert len(held) == 3


def test_room_on_the_host_is_taken_again_by_other_shapes_of_the_same_size(monkeypatch):
    monkeypatch.setattr(HostMemory, "is_worth_it", lambda self, x: True)
    memory, x = HostMemory(), torch.arange(24.0, device=DEVICE)
    for shape in ((2, 3, 4), (4, 3, 2)):
        assert torch.equal(memory.fetch(memory.park(x.view(shape))), x.view(shape))
    [held] = memory.free.values()
    assert len(held) == 1


def test_a_norm_of_another_class_is_called(monkeypatch):
    """Its parameters alone do not say what it computes."""

    class Other(RotaryNorm):
        pass

    monkeypatch.setattr(window_attention, "is_cudnns", lambda *_: True)
    monkeypatch.setattr(window_attention, "suits", lambda device: True)
    kind, x = object, torch.zeros(1, 8)
    for norm, known in ((RotaryNorm(8), True), (Other(8), False)):
        given = kind(), kind, x, 1, [norm, norm], RotaryNorm
        assert window_attention.keeps_little(*given) is known


@pytest.mark.parametrize("tokens", [1, 7])
def test_gradients_of_windows_of_one_token_are_those_of_any_window(tokens):
    """cuDNN 9 as torch 2.11 calls it has no gradient of one query's attention to one key."""
    torch.manual_seed(0)
    query, key, value, grad = torch.randn(
        4, 3, 2, tokens, HEAD, device=DEVICE, dtype=DTYPE
    ).unbind()
    given = [x.requires_grad_() for x in (query, key, value)]
    wanted = torch.autograd.grad(F.scaled_dot_product_attention(*given), given, grad)
    with torch.no_grad():
        out, sums = attend(*given)
        found = attend_backward(grad, *given, out, sums)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=CLOSE, rtol=CLOSE)
