"""The attention against a slow reference, its gradients, and the settings it refuses."""

from __future__ import annotations

from itertools import accumulate, product
from typing import Any

import pytest
import torch
from reference import Reference
from tiny import inputs, randomise, tiny_ultragen
from torch import Tensor, nn

from ultragen.model.attention import UltraGenAttention
from ultragen.model.compression import Compression
from ultragen.model.window_plan import WindowRule, compressed_size, nearest_multiple, plan_layout
from ultragen.model.windows import even_partition
from ultragen.ops.compress import weighted_sum
from ultragen.ops.decompress import decompress
from ultragen.ops.interpolation import interpolation, resize, resize_by_products
from ultragen.ops.rotary_norm import apply_rotary

GRIDS = {
    "square": (2, 8, 8),
    "wide": (2, 5, 13),
    "tall": (1, 12, 6),
    "prime": (3, 7, 11),
    "halves": (2, 10, 6),
    "thirds": (1, 9, 15),
}
CONFIGS: dict[str, dict[str, Any]] = {
    "paper": {},
    "crossing-none": {"crossing": "none"},
    "crossing-shift": {"crossing": "shift"},
    "resize": {"uneven": "resize"},
    "resize-shift": {"uneven": "resize", "crossing": "shift"},
    "keys-from-query": {"global_keys_from": "query"},
    "released": {"uneven": "resize", "global_keys_from": "query"},
    "local-only": {"branches": ()},
    "no-global": {"branches": ("hierarchical",)},
    "no-hierarchical": {"branches": ("global",)},
    "no-lora": {"lora_rank": 0},
}


def compare(grid: tuple[int, int, int], batch: int, windows: int, config: dict[str, Any]) -> None:
    """Runs a transformer of one even and one odd layer, and each layer's input through the
    reference: so parity, positions and time reach the layers as they do in earnest."""
    model = tiny_ultragen(**config)
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    for i, block in enumerate(model.blocks):
        block.attn1.register_forward_hook(
            lambda _, args, output, i=i: seen.__setitem__(i, (args[0], output))
        )
    arguments = inputs(grid, batch)
    with torch.no_grad():
        model(**arguments, windows=windows)
    assert sorted(seen) == [0, 1]
    for i, (tokens, output) in seen.items():
        reference = Reference(heads=2, windows=windows, odd=i == 1, **config)
        expected = reference(
            model.blocks[i].attn1.state_dict(), tokens, grid, arguments["timestep"]
        )
        error = (output.double() - expected).abs().max() / expected.abs().max()
        assert error < 1e-5, f"layer {i}: {error:.1e}"


@pytest.mark.parametrize("windows", [2, 4])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_every_grid_matches_the_reference(grid, batch, windows):
    compare(grid, batch, windows, {})


@pytest.mark.parametrize("windows", [2, 4])
@pytest.mark.parametrize("grid", [GRIDS["wide"], GRIDS["prime"]], ids=["wide", "prime"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_setting_matches_the_reference(config, grid, windows):
    compare(grid, 1, windows, config)


@pytest.mark.parametrize("heads, size", [(1, 8), (3, 16), (2, 6)])
def test_every_head_size_matches_the_reference(heads, size):
    model = tiny_ultragen(num_attention_heads=heads, attention_head_dim=size)
    seen = []
    model.blocks[1].attn1.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    arguments = inputs((2, 5, 7))
    with torch.no_grad():
        model(**arguments, windows=2)
    [(tokens, output)] = seen
    expected = Reference(heads=heads, windows=2, odd=True)(
        model.blocks[1].attn1.state_dict(), tokens, (2, 5, 7), arguments["timestep"]
    )
    assert (output.double() - expected).abs().max() / expected.abs().max() < 1e-5


@pytest.mark.parametrize("config", [c for c in CONFIGS if c != "paper"])
def test_the_reference_tells_settings_apart(config):
    """Each setting changes the reference itself, so that agreeing with it means something."""
    grid, time = (2, 7, 11), torch.tensor([3.0])
    attention = tiny_ultragen().blocks[1].attn1
    weights = attention.state_dict()
    tokens = torch.randn((1, 2 * 7 * 11, 24), generator=torch.Generator().manual_seed(0))
    paper = Reference(heads=2, windows=4, odd=True)(weights, tokens, grid, time)
    other = Reference(heads=2, windows=4, odd=True, **CONFIGS[config])(weights, tokens, grid, time)
    assert (paper - other).abs().max() > 1e-3 * paper.abs().max()


# Gradients


def small_attention(**config: Any) -> UltraGenAttention:
    settings: dict[str, Any] = {
        "dim": 6,
        "heads": 1,
        "eps": 1e-6,
        "branches": ("hierarchical", "global"),
        "lora_rank": 2,
        "gate_dim": 3,
        "gate_init": 0.75,
        "freq_dim": 4,
        "global_keys_from": "key",
    }
    torch.manual_seed(0)
    attention = UltraGenAttention(**{**settings, **config}).double()
    randomise(attention)
    return attention


@pytest.mark.parametrize("height, width, windows", [(17, 30, 2), (34, 60, 4), (68, 120, 8)])
def test_no_columns_of_moved_windows_meet_where_others_do(height, width, windows):
    """At the embedded model's sizes, between even and odd layers, at rest and moved."""
    borders = []
    for odd in (False, True):
        for moved in (False, True):
            cut = WindowRule().partition(height, width, windows, odd, moved)
            assert cut.size == (height, width)
            assert len(cut.rows) == len(cut.columns) == windows + odd + moved
            borders += list(accumulate(cut.columns))[:-1]
    assert len(borders) == len(set(borders))


def test_a_single_window_does_not_move():
    assert WindowRule().partition(9, 15, 1, False, True) == even_partition(9, 15, 1)


def small_layout(grid: tuple[int, int, int], odd: bool, rule: WindowRule, timestep: Tensor):
    def rotary(t: int, h: int, w: int) -> tuple[Tensor, Tensor]:
        angle = torch.arange(t * h * w).double()[:, None] * torch.tensor([0.3, 0.7, 1.1])
        return angle.cos(), angle.sin()

    return plan_layout(grid, 2, odd, rule, timestep, rotary)


@pytest.mark.parametrize("height, width", [(8, 12), (6, 4), (10, 6)])
def test_shifted_windows_are_swins(height, width):
    """Swin's own way: the grid is rolled by half a window, what the roll brought together is
    masked, and everything is rolled back; borders cut into smaller windows give the same."""
    t, parts, heads = 2, 2, 2
    generator = torch.Generator().manual_seed(0)
    attention = small_attention(dim=12, heads=heads, branches=())
    tokens = torch.randn((1, t * height * width, 12), generator=generator, dtype=torch.float64)
    angles = torch.rand((3, 3), generator=generator, dtype=torch.float64)

    def rotary(t: int, h: int, w: int) -> tuple[Tensor, Tensor]:
        places = torch.cartesian_prod(*(torch.arange(n).double() for n in (t, h, w)))
        return (places @ angles).cos(), (places @ angles).sin()

    rule, timestep = WindowRule("shift"), torch.zeros(1, 4, dtype=torch.float64)
    layout = plan_layout((t, height, width), parts, True, rule, timestep, rotary)
    with torch.no_grad():
        found = attention(tokens, rotary_emb=layout)

        h, w = height // parts, width // parts
        grid = tokens.view(1, t, height, width, 12)
        rolled = grid.roll((-(h // 2), -(w // 2)), (2, 3))
        rows = (torch.arange(height) >= height - h // 2).long()  # 1: came round from the other side
        columns = (torch.arange(width) >= width - w // 2).long()
        region = (2 * rows[:, None] + columns).expand(t, -1, -1)
        cos, sin = rotary(t, h, w)
        out = torch.empty_like(rolled)
        for top, left in product(range(0, height, h), range(0, width, w)):
            tube = (slice(None), slice(top, top + h), slice(left, left + w))
            x = rolled[(slice(None), *tube)].reshape(1, t * h * w, 12)
            query, key = (
                apply_rotary(rms(linear(x), norm.weight, norm.eps).unflatten(-1, (heads, 6)),
                             (cos, sin)).transpose(1, 2)
                for linear, norm in ((attention.to_q, attention.norm_q),
                                     (attention.to_k, attention.norm_k))
            )  # fmt: skip
            value = attention.to_v(x).unflatten(-1, (heads, 6)).transpose(1, 2)
            same = region[tube].flatten()[:, None] == region[tube].flatten()
            scores = (query @ key.transpose(2, 3) / 6**0.5).masked_fill(~same, -torch.inf)
            attended = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
            out[(slice(None), *tube)] = attended.view(1, t, h, w, 12)
        expected = attention.to_out[0](out.roll((h // 2, w // 2), (2, 3)).flatten(1, 3))
    torch.testing.assert_close(found, expected)


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


@pytest.mark.parametrize("uneven", ["split", "resize"])
@pytest.mark.parametrize("odd", [False, True], ids=["even", "odd"])
def test_gradients_are_right(odd, uneven):
    attention, grid = small_attention(), (2, 3, 5)
    timestep = torch.randn(1, 4, dtype=torch.float64)
    layout = small_layout(grid, odd, WindowRule(uneven=uneven), timestep)
    tokens = torch.randn(1, 30, 6, dtype=torch.float64, requires_grad=True)
    names = [
        "to_k.weight",
        "norm_q.weight",
        "branches.global.lora_k.lora_A.weight",
        "branches.hierarchical.compression.weight",
        "branches.hierarchical.gate.embedding.0.bias",
    ]
    parameters = [attention.get_parameter(name).detach().requires_grad_() for name in names]

    def layer(tokens: Tensor, *parameters: Tensor) -> Tensor:
        values = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(attention, values, (tokens, None, None, layout))

    assert torch.autograd.gradcheck(layer, (tokens, *parameters), fast_mode=True)


@pytest.mark.parametrize("windows", [2, 4])
def test_every_parameter_learns(windows):
    model = tiny_ultragen()
    model(**inputs((2, 7, 11), batch=2), windows=windows).sample.square().mean().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_a_fresh_layer_trains_its_updates_through_b():
    """B starts at zero: it has to learn first, and A then follows."""
    attention = small_attention().float()
    for name, branch in attention.branches.items():
        for update in (branch.lora_q, branch.lora_k, branch.lora_v):
            nn.init.zeros_(update.lora_B.weight)
            assert update.lora_A.weight.any(), name
    layout = small_layout((1, 4, 4), False, WindowRule(), torch.randn(1, 4))
    attention(torch.randn(1, 16, 6), rotary_emb=layout).square().mean().backward()
    for branch in attention.branches.values():
        assert branch.lora_v.lora_B.weight.grad.any()
        assert not branch.lora_v.lora_A.weight.grad.any()


# What a fresh layer is


def test_a_fresh_branch_is_average_pooling_and_bilinear_interpolation():
    branch = UltraGenAttention(
        6, 1, 1e-6, ("hierarchical", "global"), 2, 3, 0.75, 4, "key"
    ).branches["global"]
    grid = torch.randn(2, 3, 8, 12, 6)
    pooled = grid.unflatten(3, (3, 4)).unflatten(2, (2, 4)).mean((3, 5))
    torch.testing.assert_close(branch.compression(grid), pooled)
    found = decompress(pooled, (8, 12), 4, branch.decompression)
    torch.testing.assert_close(found, resize(pooled, (8, 12)))


@pytest.mark.parametrize("initial", [0.5, 0.75, 0.9])
def test_a_fresh_gate_is_constant(initial):
    attention = UltraGenAttention(6, 1, 1e-6, ("global",), 0, 3, initial, 4, "key")
    gate = attention.branches["global"].gate(torch.randn(5, 4))
    torch.testing.assert_close(gate, torch.full((5, 6), initial))


@pytest.mark.parametrize("size", [(7, 9), (8, 8), (1, 5), (13, 2)])
@pytest.mark.parametrize("factor", ["hierarchical", "global"])
def test_no_row_is_lost_in_compression(factor, size):
    branch = small_attention().branches[factor].float()
    grid = torch.randn(1, 2, *size, 6, requires_grad=True)
    compressed = branch.compression(grid)
    assert compressed.shape[2:4] == compressed_size(*size, branch.factor)
    out = decompress(compressed, size, branch.factor, branch.decompression)
    assert out.shape == grid.shape
    out.square().sum().backward()
    assert grid.grad.abs().sum((0, 1, 4)).min() > 0


# Parts


def test_rotary_keeps_lengths_and_depends_on_distance_alone():
    angle = torch.arange(9.0)[:, None] * torch.tensor([1.0, 0.1])
    x, y = torch.randn(1, 1, 1, 4), torch.randn(1, 1, 1, 4)
    x, y = (v.expand(1, 9, 1, 4) for v in (x, y))
    turned_x, turned_y = (apply_rotary(v, (angle.cos(), angle.sin())) for v in (x, y))
    torch.testing.assert_close(turned_x.norm(dim=-1), x.norm(dim=-1))
    scores = turned_x[0, :, 0] @ turned_y[0, :, 0].T
    for shift in range(1, 9):
        diagonal = scores.diagonal(shift)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "length, parts, expected",
    [
        (68, 5, 70),
        (34, 3, 33),
        (120, 5, 120),
        (6, 4, 4),
        (7, 4, 8),
        (2, 5, 5),
        (10, 4, 8),
        (1, 2, 2),
    ],
)
def test_nearest_multiple(length, parts, expected):
    assert nearest_multiple(length, parts) == expected


@pytest.mark.parametrize(
    "change, hint",
    [
        ({"branches": ("hierarchical", "temporal")}, "temporal"),
        ({"global_keys_from": "value"}, "key or query"),
    ],
    ids=["branch", "keys"],
)
def test_a_layer_refuses_unknown_settings(change, hint):
    with pytest.raises(ValueError, match=hint):
        small_attention(**change)


@pytest.mark.parametrize("field, hint", [("crossing", "grow, none or shift"), ("uneven", "split")])
def test_a_rule_refuses_unknown_settings(field, hint):
    with pytest.raises(ValueError, match=hint):
        WindowRule(**{field: "diagonal"})


# What a GPU takes in place of the library's ways while gradients are needed


@pytest.mark.parametrize("size", [(9, 16), (4, 7), (10, 24), (1, 1)], ids=str)
def test_resizing_by_products_is_the_library_s_resizing(size):
    grid = torch.randn(2, 3, 5, 8, 4, dtype=torch.float64, requires_grad=True)
    found, wanted = resize_by_products(grid, size), resize(grid, size)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    gradient = torch.randn_like(wanted)
    torch.testing.assert_close(
        *(torch.autograd.grad(out, grid, gradient)[0] for out in (found, wanted)),
        rtol=1e-6, atol=1e-6,
    )  # fmt: skip


def test_a_matrix_that_inference_asked_for_first_serves_training_too():
    interpolation.cache_clear()
    grid = torch.randn(1, 1, 3, 5, 2, requires_grad=True)
    with torch.inference_mode():
        resize_by_products(grid.detach().clone(), (6, 10))
    resize_by_products(grid, (6, 10)).sum().backward()
    assert grid.grad is not None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("factor", [2, 4])
def test_compression_by_a_weighted_sum_is_the_convolution(factor, bias):
    layer = Compression(6, 6, factor, stride=factor, groups=6, bias=bias).double()
    grid = torch.randn(2, 3, 2 * factor, 3 * factor, 6, dtype=torch.float64, requires_grad=True)
    inputs = [grid, *layer.parameters()]
    gradient = torch.randn(2, 3, 2, 3, 6, dtype=torch.float64)
    outs = [layer(grid), weighted_sum(grid, layer.weight, layer.bias)]
    torch.testing.assert_close(*outs)
    for one, other in zip(*(torch.autograd.grad(o, inputs, gradient) for o in outs), strict=True):
        torch.testing.assert_close(one, other)


def test_every_layer_of_a_branch_is_called_as_a_module():
    """Hooks of offloading and of layerwise casting must see it."""
    model = tiny_ultragen()
    own = {
        name: module
        for name, module in model.named_modules()
        if ".attn1." in name and next(module.parameters(recurse=False), None) is not None
    }
    seen = set()
    for name, module in own.items():
        module.register_forward_hook(lambda *_, name=name: seen.add(name))
    model(**inputs((2, 8, 8), 1), windows=2)
    assert seen == set(own) and any("decompression" in name for name in seen)
