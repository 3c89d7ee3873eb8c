"""T3-Video's layers against a slow reference; their windows on grids of any size; memory."""

from __future__ import annotations

import weakref
from functools import partial
from itertools import chain
from math import prod
from typing import Any

import pytest
import torch
from t3_reference import t3_attention, windows
from tiny import inputs, tiny_ultragen, tiny_wan
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from ultragen.model import attention, wan_1_3b
from ultragen.model import t3_attention as ours
from ultragen.model.t3_attention import T3Attention
from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.model.windows import (
    attends_once,
    attention_pairs,
    fitting_counts,
    nearest_divisor,
)
from ultragen.ops.dispatch import use

GRID = (4, 6, 12)
# One that attends once, on each axis alone, on several, on all.
PATTERNS = ((4, 1, 1), (1, 2, 3), (1, 3, 4), (2, 2, 4), (2, 3, 2), (1, 1, 6), (2, 1, 1), (4, 6, 1))
TRAINED = (21, 136, 240)


def tiny_t3(**config: Any) -> UltraGenTransformer3DModel:
    return tiny_ultragen(**{"t3_windows": PATTERNS, "num_layers": len(PATTERNS), **config})


def layers_of(model, grid, batch: int = 1) -> dict[int, tuple[Tensor, Tensor]]:
    """What goes into each layer's attention in a pass, and what comes out."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    for i, block in enumerate(model.blocks):
        block.attn1.register_forward_hook(
            lambda _, args, output, i=i: seen.__setitem__(i, (args[0], output))
        )
    with torch.no_grad():
        model(**inputs(grid, batch))
    return seen


def compare(model, grid, counts, batch: int = 1) -> None:
    seen = layers_of(model, grid, batch)
    assert len(seen) == len(model.blocks)
    for i, (tokens, output) in seen.items():
        weights = model.blocks[i].attn1.state_dict()
        expected = t3_attention(weights, tokens, grid, counts[i % len(counts)], heads=2)
        error = (output.double() - expected).abs().max() / expected.abs().max()
        assert error < 1e-5, f"layer {i}: {error:.1e}"


@pytest.mark.parametrize("batch", [1, 2])
def test_every_pattern_matches_the_reference(batch):
    compare(tiny_t3(), GRID, PATTERNS, batch)


def test_patterns_return_in_turn_and_the_published_ones_are_the_papers():
    """A grid that the published numbers divide, beside its own a small one."""
    model = tiny_t3(**wan_1_3b.T3, num_layers=6)
    assert model.layer_kinds == [*wan_1_3b.T3["t3_windows"], (21, 1, 1)]
    sizes = [prod(TRAINED) // prod(counts) for counts in wan_1_3b.T3["t3_windows"]]
    assert sizes == [32_640, 1_344, 2_142, 1_680, 2_040]
    for counts in wan_1_3b.T3["t3_windows"]:
        assert fitting_counts(TRAINED, counts) == counts


def test_the_reference_tells_patterns_and_cuts_apart():
    tokens = torch.randn((1, prod(GRID), 24), generator=torch.Generator().manual_seed(0))
    weights = tiny_t3().blocks[0].attn1.state_dict()
    found = [t3_attention(weights, tokens, GRID, counts, heads=2) for counts in PATTERNS[:5]]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert (one - other).abs().max() > 1e-3 * one.abs().max()
    close, remote = ([*windows(GRID, (2, 3, 2), strided)] for strided in (False, True))
    assert close[0] != remote[0]
    assert sorted(chain(*close)) == sorted(chain(*remote)) == [*range(prod(GRID))]


@pytest.mark.parametrize("grid", [(3, 7, 10), (1, 5, 9), (6, 4, 8)])
def test_other_grids_take_the_nearest_divisors_exactly(grid):
    counts = [fitting_counts(grid, pattern) for pattern in PATTERNS]
    assert counts != [*PATTERNS]
    compare(tiny_t3(), grid, counts)


def test_nearest_divisors():
    """As ratios: of 8 rows in 46, both 2 and 23 are possible, and 23 is less far."""
    assert [nearest_divisor(46, count) for count in (1, 8, 6, 100)] == [1, 23, 2, 46]
    assert nearest_divisor(16, 8) == 8
    assert nearest_divisor(36, 5) == 6  # as a difference, 4 is as near


def test_where_both_cuts_are_the_same_one_is_attended_to(monkeypatch):
    calls = []
    real = ours.T3AttnProcessor._attend
    monkeypatch.setattr(
        ours.T3AttnProcessor, "_attend", lambda *a: (calls.append(a[2].shape), real(*a))[1]
    )
    with torch.no_grad():
        tiny_t3()(**inputs(GRID))
    once = [attends_once(GRID, counts) for counts in PATTERNS]
    assert once == [True, False, False, False, False, False, False, True]
    assert len(calls) == 2 * len(PATTERNS) - sum(once)


def test_one_window_is_wans_full_attention():
    """Nothing but the windows differs from dense Wan."""
    dense = tiny_wan()
    model = UltraGenTransformer3DModel.from_wan(dense, t3_windows=((1, 1, 1),)).eval()
    assert model.state_dict().keys() == dense.state_dict().keys()
    given = inputs((2, 3, 4))
    with torch.no_grad():
        torch.testing.assert_close(model(**given).sample, dense(**given).sample)


def test_another_back_end_can_be_chosen(monkeypatch):
    asked = []
    real = attention.dispatch_attention_fn

    def dispatch(*qkv: Tensor, backend: Any, **options: Any) -> Tensor:
        asked.append(getattr(backend, "value", backend))
        return real(*qkv, backend=backend, **options)

    monkeypatch.setattr(attention, "dispatch_attention_fn", dispatch)
    model = tiny_t3(num_layers=2)
    model.set_attention_backend("_native_math")
    with torch.no_grad():
        model(**inputs(GRID))
    assert asked == ["_native_math"] * 3


def test_layers_that_stay_full_do():
    model = tiny_t3(full_attention_layers=(1,), num_layers=3)
    assert model.layer_kinds == [PATTERNS[0], "full", PATTERNS[2]]
    assert [isinstance(block.attn1, T3Attention) for block in model.blocks] == [True, False, True]


def test_the_windows_are_saved_with_the_model(tmp_path):
    model = tiny_t3()
    model.save_pretrained(tmp_path)
    again = UltraGenTransformer3DModel.from_pretrained(tmp_path).eval()
    assert again.layer_kinds == model.layer_kinds
    with torch.no_grad():
        given = inputs(GRID)
        torch.testing.assert_close(again(**given).sample, model(**given).sample)


@pytest.mark.parametrize("wrong", [(1, 2), (0, 1, 1), (1, 1, 2.0), (True, 1, 1), 3, "111"])
def test_numbers_that_are_no_windows_are_refused(wrong):
    with pytest.raises(ValueError, match=r"t3_windows must hold three whole numbers.*not"):
        tiny_ultragen(t3_windows=(wrong,))


def test_k_and_motion_are_refused():
    model = tiny_t3()
    with pytest.raises(ValueError, match="windows must be 'auto', not 4"):
        model(**inputs(GRID), windows=4)
    with pytest.raises(ValueError, match="window_motion must be none"):
        model(**inputs(GRID), moved=True)


def test_pairs_are_those_of_all_windows():
    for grid in (GRID, (6, 4, 8)):
        for pattern in PATTERNS:
            counts = fitting_counts(grid, pattern)
            every = [
                {(tuple(tokens)) for tokens in windows(grid, counts, strided)}
                for strided in (False, True)
            ]
            found = [every[0]] if every[0] == every[1] else every
            pairs = sum(len(tokens) ** 2 for cut in found for tokens in cut)
            assert attention_pairs(grid, pattern) == pairs
    published = wan_1_3b.T3["t3_windows"]
    assert sum(attention_pairs(TRAINED, counts) for counts in published) / 5 == pytest.approx(
        prod(TRAINED) ** 2 / 72.8, rel=1e-3
    )


# Gradients


def test_gradients_are_those_of_finite_differences():
    model = tiny_t3(num_layers=2, t3_windows=((2, 1, 3), (1, 2, 1))).double()
    attention = model.blocks[0].attn1
    grid, dim = (2, 2, 3), 24
    layouts = ours.plan_t3(grid, {(2, 1, 3)}, model._rotary(*grid))
    tokens = torch.randn(1, prod(grid), dim, dtype=torch.float64, requires_grad=True)

    def call(tokens: Tensor) -> Tensor:
        return attention(tokens, None, None, layouts[2, 1, 3])

    assert torch.autograd.gradcheck(call, (tokens,))


def plainly(function):
    return function


def checkpointed(function):
    return partial(checkpoint, function, use_reentrant=False)


def compiled(function):
    return torch.compile(function, backend="aot_eager")


def autocast(function):
    def call(*arguments: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return function(*arguments)

    return call


@pytest.mark.parametrize("around", [plainly, checkpointed, compiled, autocast])
def test_a_layer_can_be_trained_however_it_is_called(around):
    model = tiny_t3(num_layers=1, t3_windows=((2, 1, 3),))
    grid, attention = (2, 2, 3), model.blocks[0].attn1
    tokens = torch.randn(1, prod(grid), 24, generator=torch.Generator().manual_seed(0))

    def gradients(function, x: Tensor) -> list[Tensor]:
        model.zero_grad()
        layout = ours.plan_t3(grid, {(2, 1, 3)}, model._rotary(*grid))[2, 1, 3]
        out = function(x, None, None, layout)
        out.float().square().mean().backward()
        return [out.detach(), *(parameter.grad for parameter in attention.parameters())]

    found = gradients(around(attention), tokens)
    found = [value.double() for value in found]
    expected = gradients(attention.double(), tokens.double())
    assert len(found) == 11
    close = 0.15 if around is autocast else 1e-4  # of sums in bfloat16
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() < close * max(other.abs().max(), 1e-2)


# Memory


class Alive(TorchDispatchMode):
    """Bytes of the tensors that are alive, and the most that were."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.held: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.watch(tensor)
        self.peak = max(self.peak, self.bytes)
        return out

    def watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.held:
            self.held[key] = 0
            self.bytes += size
        self.held[key] += 1
        weakref.finalize(tensor, self.release, key, size)

    def release(self, key: int, size: int) -> None:
        self.held[key] -= 1
        if not self.held[key]:
            del self.held[key]
            self.bytes -= size


def test_a_layer_at_4k_holds_ten_tensors_of_all_tokens_at_most(monkeypatch):
    """With the fused kernels, which are not run: shapes are enough."""
    pytest.importorskip("triton", reason="the fused forms are Triton's")
    monkeypatch.setattr(
        "ultragen.model.attention.dispatch_attention_fn", lambda q, k, v, **_: torch.empty_like(q)
    )
    width, tokens = wan_1_3b.WIDTH, prod(TRAINED)
    with torch.device("meta"):
        settings = wan_1_3b.TRANSFORMER | wan_1_3b.T3 | {"num_layers": 5}
        model = UltraGenTransformer3DModel(**settings).to(torch.bfloat16)
    for block, counts in zip(model.blocks, model.layer_kinds, strict=True):
        layout = ours.plan_t3(TRAINED, {counts}, model._rotary(*TRAINED))[counts]
        with torch.no_grad(), use("triton"), Alive() as alive:
            stream, normed = (
                torch.empty(1, tokens, width, dtype=torch.bfloat16, device="meta") for _ in "xy"
            )
            block.attn1(normed, None, None, layout)
        held = alive.peak / (2 * tokens * width)
        assert held < 10.1, f"{counts}: {held:.1f}"
        del stream
