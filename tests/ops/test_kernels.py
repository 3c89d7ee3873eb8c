"""Fused kernels against their plain twins: on a GPU, elsewhere in Triton's interpreter."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from accelerate import cpu_offload
from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from tiny import inputs, tiny_ultragen
from torch import Tensor
from torch.nn import functional as F

from ultragen.model.attention import CompressedBranch, RotaryNorm, TimeGate, WindowAttnProcessor
from ultragen.model.block import FusedGELU, UltraGenBlock
from ultragen.model.compression import Compression
from ultragen.model.window_plan import WindowLayout
from ultragen.model.windows import even_partition
from ultragen.ops import dispatch, key_parts, tiles
from ultragen.ops.axes import plan_axis
from ultragen.ops.decompress import padded, upsampled_axis
from ultragen.ops.dispatch import use
from ultragen.ops.interpolation import interpolation, resampled_axis, resize
from ultragen.ops.tiles import attend_to_tiles
from ultragen.ops.window_order import split_windows
from ultragen.world import land, sky
from ultragen.world.noise import texture

pytest.importorskip("triton", reason="Triton is not installed: it comes with CUDA builds of torch")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The library's convolutions count with fewer digits on a GPU than its matrix products otherwise.
torch.backends.cudnn.allow_tf32 = False


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


# Norm, positions and windows


@pytest.fixture(scope="module")
def rotary_norm():
    from ultragen.ops import triton_rotary_norm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_rotary_norm, "PROGRAMS", 3)
        yield triton_rotary_norm.rotary_norm


def angles(grid: tuple[int, int, int], half: int) -> tuple[Tensor, Tensor]:
    angle = torch.randn(*grid, half, device=DEVICE)
    return angle.cos(), angle.sin()


def plain_rotary_norm(x, weight, rotary, heads, partition):
    norm = RotaryNorm(x.shape[-1], eps=1e-6).to(DEVICE)
    del norm.weight
    norm.weight = weight
    with use("plain"):
        return norm(x, WindowLayout(x.shape[2:4], partition, rotary), heads)


@pytest.mark.parametrize("windows", [1, 2])
def test_norm_positions_and_windows_with_their_gradients(rotary_norm, windows):
    """A grid whose windows have four sizes, and as many features as no power of two."""
    torch.manual_seed(0)
    x = torch.randn(2, 2, 3, 5, 12, device=DEVICE, requires_grad=True)
    weight = torch.randn(12, device=DEVICE, requires_grad=True)
    rotary, partition = angles((2, 3, 5), 2), even_partition(3, 5, windows)
    found = rotary_norm(x, weight, rotary, 1e-6, partition.rectangles)
    expected = plain_rotary_norm(x, weight, rotary, 3, partition)
    assert [f.shape for f in found] == [e.shape for e in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    gradients = [torch.randn_like(f) for f in found]
    for one, other in zip(
        torch.autograd.grad(found, (x, weight), gradients),
        torch.autograd.grad(expected, (x, weight), gradients),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_norm_in_two_precisions(rotary_norm):
    """Queries in bfloat16 and a weight in float32, as autocast mixes them."""
    x = torch.randn(1, 1, 2, 2, 8, device=DEVICE).bfloat16()
    weight = torch.randn(8, device=DEVICE)
    rotary, partition = angles((1, 2, 2), 4), even_partition(2, 2, 1)
    (found,) = rotary_norm(x, weight, rotary, 1e-6, partition.rectangles)
    (expected,) = plain_rotary_norm(x.float(), weight, rotary, 1, partition)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("windows", [1, 2])
def test_windows_and_back_with_their_gradients(windows):
    from ultragen.ops.triton_windows import merge, split

    torch.manual_seed(0)
    partition = even_partition(3, 5, windows)
    grid = torch.randn(2, 2, 3, 5, 12, device=DEVICE, requires_grad=True)
    found, expected = split(grid, partition.rectangles), split_windows(grid, partition.rectangles)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    whole = merge([3 * one for one in found], partition.rectangles, partition.size)
    assert torch.equal(whole, 3 * grid)
    gradient = torch.randn_like(whole)
    whole.backward(gradient)
    torch.testing.assert_close(grid.grad, 3 * gradient)


# Whole tiles of tokens


def test_windows_are_filled_up_to_whole_tiles(rotary_norm):
    """With the first query or key again, and with values of zero."""
    from ultragen.ops.triton_windows import split

    torch.manual_seed(0)
    partition, rotary = even_partition(3, 5, 2), angles((2, 3, 5), 2)
    grid, weight = torch.randn(2, 2, 3, 5, 12, device=DEVICE), torch.randn(12, device=DEVICE)
    with torch.no_grad():
        of_one = rotary_norm(grid, weight, rotary, 1e-6, partition.rectangles)
        of_all = rotary_norm(grid, weight, rotary, 1e-6, partition.rectangles, 8)
    values = split(grid, partition.rectangles, 8)
    for one, more, value, plain in zip(
        of_one, of_all, values, split_windows(grid, partition.rectangles), strict=True
    ):
        tokens = one[0, ..., 0].numel()
        assert more.shape[1] == value.shape[1] == tokens + -tokens % 8
        assert torch.equal(more[:, :tokens], one.flatten(1, 3))
        assert torch.equal(more[:, tokens:], more[:, :1].expand_as(more[:, tokens:]))
        assert torch.equal(value[:, :tokens], plain.flatten(1, 3))
        assert not value[:, tokens:].any()
    with pytest.raises(ValueError, match="no gradients"):
        rotary_norm(grid, weight, rotary, 1e-6, partition.rectangles, 8)


@pytest.mark.parametrize("offset", [0.0, -4.0, 4.0], ids=["plain", "small sums", "large sums"])
def test_what_fills_the_tiles_has_no_part_in_the_result(rotary_norm, offset):
    """Whatever the keys have in common, which moves all sums: windows of four sizes."""
    from ultragen.ops import triton_whole_tiles
    from ultragen.ops.triton_windows import split

    torch.manual_seed(0)
    heads, head = (2, 128) if DEVICE == "cuda" else (3, 8)
    d, dtype = heads * head, torch.bfloat16 if DEVICE == "cuda" else torch.float32
    partition, tile = even_partition(3, 5, 2), 128 if DEVICE == "cuda" else 8
    rotary = (
        torch.ones(2, 3, 5, head // 2, device=DEVICE),
        torch.zeros(2, 3, 5, head // 2, device=DEVICE),
    )
    query, key, value = torch.randn(3, 2, 2, 3, 5, d, device=DEVICE, dtype=dtype).unbind()
    query, key = query.abs() * 4, key + offset
    weight = torch.full((d,), 4.0, device=DEVICE)
    given = weight, rotary, 1e-6, partition.rectangles, tile
    with torch.no_grad():
        queries, keys = (rotary_norm(x, *given) for x in (query, key))
        groups = zip(queries, keys, split(value, partition.rectangles, tile), strict=True)
        found = [triton_whole_tiles.attention(*group, heads) for group in groups]
        windows, sums = ([*part] for part in zip(*found, strict=True))
        merged = triton_whole_tiles.merge(
            windows, queries, keys, sums, heads, partition.rectangles, (2, 3, 5)
        )
        plain = [
            [w.flatten(1, 3).unflatten(-1, (heads, head)).transpose(1, 2).double() for w in x]
            for x in (
                plain_rotary_norm(query, weight, rotary, heads, partition),
                plain_rotary_norm(key, weight, rotary, heads, partition),
                split_windows(value, partition.rectangles),
            )
        ]
    expected = [F.scaled_dot_product_attention(*group) for group in zip(*plain, strict=True)]
    for one, other in zip(split_windows(merged, partition.rectangles), expected, strict=True):
        other = other.transpose(1, 2).flatten(2).view_as(one).to(dtype)
        close = dict(rtol=2e-2, atol=2e-2) if DEVICE == "cuda" else dict(rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(one, other, **close)


@pytest.mark.parametrize("first", [0.0, 0.5, 2.0], ids=["like the others", "large", "dominates"])
@pytest.mark.parametrize("tokens", [257, 300, 384])
def test_very_many_keys_come_in_parts(rotary_norm, monkeypatch, tokens, first):
    """Into parts of one tile, the last of them with what fills it, in full attention: also where
    the first key, which fills it up to 127 times, has nearly all the weight."""
    from ultragen.ops import triton_whole_tiles

    torch.manual_seed(0)
    monkeypatch.setattr(triton_whole_tiles, "LONG", 256)
    monkeypatch.setattr(triton_whole_tiles, "PART", 128)
    heads, head, dtype = 2, 128, torch.bfloat16 if DEVICE == "cuda" else torch.float32
    query, key, value = torch.randn(3, 2, tokens, heads * head, device=DEVICE)
    if first:
        query, key[:, 0] = query.abs(), first
    query, key, value = (x.to(dtype) for x in (query, key, value))
    filled = [torch.cat((x, x[:, :1].expand(-1, -tokens % 128, -1)), 1) for x in (query, key)]
    whole = [(0, 1, 1, 0, 1, tokens)]
    with use("triton"):
        values = split_windows(value[:, None, None], whole, filled[0].shape[1])
    query_key = ([x] for x in filled)
    found = attend_to_tiles(*query_key, values, heads, whole, (1, 1, tokens))[:, 0, 0]
    query, key, value = (
        x.double().unflatten(-1, (heads, head)).transpose(1, 2) for x in (query, key, value)
    )
    expected = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    # What is taken out is 127 of 128 there, and with it all but the last digits of a float32 sum.
    exact = dict(rtol=4e-3, atol=4e-3) if first > 1 else dict(rtol=1e-3, atol=1e-4)
    close = dict(rtol=2e-2, atol=2e-2) if DEVICE == "cuda" else exact
    torch.testing.assert_close(found, expected.to(dtype), **close)


# Compression and decompression


@pytest.fixture(scope="module")
def triton_compress():
    from ultragen.ops import triton_compress

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_compress, "FEATURES", 8)
        yield triton_compress


@pytest.fixture(scope="module")
def triton_decompress():
    from ultragen.ops import triton_decompress

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_decompress, "CHANNELS", 16)
        yield triton_decompress


@pytest.mark.parametrize("factor, height, width", [(2, 3, 4), (4, 5, 2), (2, 1, 1)])
@pytest.mark.parametrize("biased", [True, False])
def test_compression(triton_compress, factor, height, width, biased):
    torch.manual_seed(0)
    convolution = Compression(10, 10, factor, stride=factor, groups=10, bias=biased).to(DEVICE)
    x = torch.randn(2, 2, height, width, 10, device=DEVICE)
    found = triton_compress.compress(x, convolution.weight, convolution.bias)
    with use("plain"):
        torch.testing.assert_close(found, convolution(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "factor, size, small",
    [
        (2, (3, 4), None),
        (4, (5, 2), None),
        (2, (1, 1), None),
        (2, (4, 5), (2, 2)),
        (2, (3, 11), None),
        (2, (10, 4), None),
        (2, (10, 11), None),
    ],
    ids=["halves", "quarters", "one", "resized", "two pairs", "two rows", "both"],
)
def test_decompression_and_fusion(triton_decompress, factor, size, small):
    """Also from a small grid that has been resized to fewer tokens (the released weights)."""
    torch.manual_seed(0)
    gate = TimeGate(4, 4, 10, 0.7)
    branch = CompressedBranch(10, factor, 0, gate, "key").to(DEVICE)
    for parameter in branch.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    small = small or tuple(-(-length // factor) for length in size)
    fine = torch.randn(2, 3, *size, 10, device=DEVICE)
    coarse = torch.randn(2, 3, *small, 10, device=DEVICE)
    timestep = torch.randn(2, 4, device=DEVICE)
    sizes = zip(size, padded(size, factor), small, (1, 2), strict=True)
    rows, columns = (upsampled_axis(*axis, fine.device) for axis in sizes)
    convolution = branch.decompression
    with torch.no_grad(), use("plain"):
        found = triton_decompress.decompress_and_fuse(
            fine, coarse, convolution.weight, convolution.bias, branch.gate(timestep), rows, columns
        )
        expected = branch.fuse(timestep, fine, coarse)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("length, group", [(1, 1), (4, 1), (8, 2), (68, 1), (119, 2)])
def test_every_group_of_places_is_taken_once(factor, length, group):
    whole = length + -length % factor
    matrix = interpolation(whole // factor, whole, torch.device("cpu"), torch.float64)
    programs, _ = plan_axis(matrix[:length], group)
    starts, partners, _, _ = programs.tolist()
    taken = [*starts, *(partner for partner in partners if partner >= 0)]
    assert sorted(taken) == [*range(0, length, group)]
    for start, partner in zip(starts, partners, strict=True):
        if partner >= 0:
            for k in range(group):
                assert torch.equal(matrix[partner + k, 1:], matrix[start + k, :-1])
    if length > 60:
        assert len(starts) < 0.6 * len(taken)


def test_upsampling_by_less_than_two_is_left_to_the_plain_code():
    cpu = torch.device("cpu")
    assert upsampled_axis(7, 8, 7, 1, cpu) is None
    matrix = interpolation(7, 8, cpu, torch.float64)
    with pytest.raises(ValueError, match="7 tokens to 8"):
        plan_axis(matrix, 1)


@pytest.mark.parametrize("size, to", [((3, 4), (5, 4)), ((5, 3), (4, 7)), ((1, 2), (2, 1))])
def test_resampling(size, to):
    from ultragen.ops.triton_resampling import resample

    x = torch.randn(1, 2, *size, 10, device=DEVICE)
    rows, columns = (resampled_axis(*axis, x.device) for axis in zip(size, to, strict=True))
    with use("plain"):
        expected = resize(x, to)
    torch.testing.assert_close(resample(x, rows, columns), expected, rtol=1e-4, atol=1e-5)


# Norms and sums of a block


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


# Whole models

# One moment, but on a GPU two, for the sake of the library's convolution (see `plain`).
GRID = (1, 4, 6) if DEVICE == "cpu" else (2, 4, 6)


@pytest.fixture
def forced(monkeypatch):
    """Kernels wherever there are some, in the interpreter as on a GPU."""
    from ultragen.ops import triton_decompress, triton_rotary_norm

    monkeypatch.setattr(triton_decompress, "CHANNELS", 32)
    monkeypatch.setattr(triton_rotary_norm, "PROGRAMS", 3)
    with use("triton"):
        yield


def both_ways(model, **arguments) -> tuple[Tensor, Tensor]:
    """What a model gives with kernels and without."""
    with torch.no_grad():
        found = model(**arguments).sample
        with use("plain"):
            return found, model(**arguments).sample


KINDS = {
    "untouched": lambda model: model,
    "one weight at a time": lambda model: cpu_offload(model, torch.device(DEVICE)),
    "leaf by leaf": lambda model: model.enable_group_offload(
        torch.device(DEVICE), offload_type="leaf_level"
    ),
    "block by block": lambda model: model.enable_group_offload(
        torch.device(DEVICE), offload_type="block_level", num_blocks_per_group=1
    ),
    "stored in half": lambda model: model.enable_layerwise_casting(torch.float16, torch.float32),
    "stored in eighths": lambda model: model.enable_layerwise_casting(
        torch.float8_e4m3fn, torch.float32
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_model_with_kernels_is_the_one_without(forced, kind):
    """Also where its weights lie elsewhere, or in another precision, until a layer is called."""
    model = tiny_ultragen(full_attention_layers=(0,), num_layers=3, cross_attn_norm=True).to(DEVICE)
    KINDS[kind](model)
    given = {k: v.to(DEVICE) for k, v in inputs(GRID, 1).items()}
    found, expected = both_ways(model, **given, windows=2)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.slow
def test_a_whole_model_with_whole_tiles_is_the_one_without(forced, monkeypatch):
    """In windows of every branch and in a layer of full attention."""
    dtype, tile, head = (torch.bfloat16, 128, 128) if DEVICE == "cuda" else (torch.float32, 8, 16)
    asked = []

    def tile_of(processor, x, heads, windows):
        asked.append(windows)
        return 1 if dispatch.plain_is_forced() else tile

    for module in ("model.attention", "ops.whole_attention"):
        monkeypatch.setattr(f"ultragen.{module}.tile_of", tile_of)
    model = tiny_ultragen(
        full_attention_layers=(0,), num_layers=3, cross_attn_norm=True, attention_head_dim=head
    ).to(DEVICE, dtype)
    given = {k: v.to(DEVICE, dtype) for k, v in inputs(GRID, 1).items()}
    found, expected = both_ways(model, **given, windows=2)
    assert any(tokens % tile for windows in asked for tokens in windows)
    close = dict(rtol=5e-2, atol=5e-2) if DEVICE == "cuda" else dict(rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(found, expected, **close)
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    with torch.no_grad():
        compiled = model(**given, windows=2).sample
    torch.testing.assert_close(compiled, found, **close)


def test_kernels_are_tried_with_gradients_whatever_the_caller_does(monkeypatch):
    """The first call may come in inference mode: what is found then holds for the process."""

    def try_on(device):
        with torch.enable_grad():
            torch.ones(1, requires_grad=True).sum().backward()

    monkeypatch.setattr(dispatch, "import_module", lambda *_: SimpleNamespace(try_on=try_on))
    with torch.inference_mode():
        assert dispatch.fused_runs("in inference mode", torch.device("cuda"))


def test_a_processor_that_is_derived_from_ours_gets_windows_as_they_are(monkeypatch):
    class Other(WindowAttnProcessor):
        pass

    monkeypatch.setattr("ultragen.model.attention.tile_of", lambda *_: 128)
    attention = tiny_ultragen(num_layers=1).blocks[0].attn1
    partition = even_partition(3, 5, 2)
    at = WindowLayout((3, 5), partition, angles((2, 3, 5), 2))
    grid = torch.empty(1, 2, 3, 5, 8)
    assert attention.tile(grid, at) == 128
    attention.set_processor(Other())
    assert attention.tile(grid, at) == 1


def test_tiles_are_filled_only_where_that_was_measured(monkeypatch):
    """On Hopper, in half precision, with cuDNN, without gradients, where little room is needed."""
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(tiles, "fused_runs", lambda *_: True)
    processor = WindowAttnProcessor()

    class OnGpu(Tensor):
        is_cuda = True

    def tile(windows, heads=12, dtype=torch.bfloat16):
        x = torch.empty(1, 12 * 128, dtype=dtype).as_subclass(OnGpu)
        return tiles.tile_of(processor, x, heads, windows)

    with torch.no_grad():
        assert tile([10710]) == tile([16384, 10710]) == 128
        assert tile([16384]) == tile([600, 10710]) == tile([600]) == 1
        assert tile([key_parts.LONG]) == 1 and tile([key_parts.LONG + tiles.TILE]) == 128
        assert tile([10710], heads=24) == tile([10710], dtype=torch.float32) == 1
        assert tiles.tile_of(processor, torch.empty(1, 1536).bfloat16(), 12, [10710]) == 1
        processor._attention_backend = "flash"
        assert tile([10710]) == 1
        processor._attention_backend = None
        with attention_backend("_native_flash"):
            assert tile([10710]) == 1
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))
        assert tile([10710]) == 1
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
        assert tile([10710]) == 128
    assert tile([10710]) == 1


@pytest.mark.slow
def test_blocks_are_compiled_with_their_kernels(forced):
    """In one graph each: what the kernels need to know of the grid is a constant."""
    model = tiny_ultragen(cross_attn_norm=True).to(DEVICE)
    given = {k: v.to(DEVICE) for k, v in inputs(GRID, 1).items()}
    expected, _ = both_ways(model, **given, windows=2)
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    with torch.no_grad():
        found = model(**given, windows=2).sample
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.skipif(DEVICE == "cpu", reason="autocast on a CPU knows the operators")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_whole_model_under_autocast(dtype):
    """As a training's samples and a teacher are computed."""
    model = tiny_ultragen(cross_attn_norm=True).to(DEVICE, dtype)
    given = {k: v.to(DEVICE) for k, v in inputs(GRID, 1).items()}
    with torch.autocast("cuda", torch.bfloat16):
        found, expected = both_ways(model, **given, windows=2)
    torch.testing.assert_close(found, expected, rtol=5e-2, atol=5e-2)


# Octaves of noise


@pytest.fixture(scope="module")
def renderer():
    from ultragen.world import triton_loops

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_loops, "BLOCK", 64)
        yield triton_loops


def random_inputs(spread: list[tuple[float, float, bool]]) -> list[Tensor]:
    """Values for 2 frames of 5 × 19 pixels; those of whole frames are 2 1 1."""
    torch.manual_seed(0)
    return [
        low + (high - low) * torch.rand((2, 1, 1) if whole else (2, 5, 19), device=DEVICE)
        for low, high, whole in spread
    ]


PLACE = ((-200.0, 200.0, False), (-70.0, 70.0, False), (0.0, 0.2, False))


@pytest.mark.parametrize(
    "name, module, others",
    [
        ("cloud_octaves", sky, [(-1, 1, False), (-1, 1, True), (-0.5, 0.5, False)]),
        ("relief_octaves", land, [(0, 0.3, False), (0, 1, True), (0.4, 0.8, True)]),
        ("wave_octaves", land, [(0, 3, True)]),
    ],
)
@pytest.mark.parametrize("number", [1, 4])
def test_octaves_add_up_to_what_the_plain_sums_are(renderer, name, module, others, number):
    tile = texture(torch.device(DEVICE))
    inputs = random_inputs([*PLACE, *others])
    found = getattr(renderer, name)(tile, *inputs, number)
    expected = getattr(module, name)(tile, *inputs, number)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert other.std() > 0.05
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-3)


def test_octaves_of_rows_and_of_whole_coordinates(renderer):
    """What is the same along a row, and places exactly on texels and on the tile's border."""
    tile = texture(torch.device(DEVICE))
    u = torch.tensor([0.0, 64.0, -64.0, 63.999, 0.125, -0.125], device=DEVICE).expand(1, 2, 6)
    v = torch.tensor([[0.0], [64.0]], device=DEVICE).expand(1, 2, 6)
    footprint = torch.tensor([[0.0], [0.1]], device=DEVICE)[None]
    drift = torch.zeros(1, 1, 1, device=DEVICE)
    found = renderer.wave_octaves(tile, u, v, footprint, drift, 2)
    expected = land.wave_octaves(tile, u, v, footprint.expand(1, 2, 6), drift, 2)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_layers_cover_each_other_as_in_the_plain_loop(renderer):
    torch.manual_seed(0)
    top = torch.linspace(0.3, 0.6, 4, device=DEVICE)[:, None] + 0.2 * torch.rand(2, 4, 19).to(
        DEVICE
    )
    base = torch.tensor([0.5, 0.6, 0.7, 2.0], device=DEVICE)[None, :, None].expand(2, 4, 1)
    ripple = 0.05 * torch.randn(2, 13, 19).to(DEVICE)
    y = torch.linspace(0, 1, 13, device=DEVICE).reshape(1, -1, 1)
    found = renderer.cover_layers(top, base, ripple, y, 1 / 13)
    expected = land.cover_layers(top, base, ripple, y, 1 / 13)
    for one, other in zip(found, expected, strict=True):
        assert len(other.unique()) > 2
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


# Normalisation of Wan's autoencoder


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
