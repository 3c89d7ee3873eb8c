"""Whole models with kernels and without."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import cpu_offload
from kernels import DEVICE, GRID
from tiny import inputs, tiny_ultragen
from torch import Tensor

from ultragen.ops import dispatch
from ultragen.ops.dispatch import use

pytest.importorskip("triton", reason="Triton is not installed: it comes with CUDA builds of torch")


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


LAYOUTS = {
    "released": ({"full_attention_layers": (0,)}, {"windows": 2}),
    "t3": ({"t3_windows": ((1, 2, 3), (1, 2, 1))}, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_model_with_kernels_is_the_one_without(forced, kind, layout):
    """Also where its weights lie elsewhere, or in another precision, until a layer is called."""
    config, windows = LAYOUTS[layout]
    model = tiny_ultragen(**config, num_layers=2, cross_attn_norm=True).to(DEVICE)
    KINDS[kind](model)
    given = {k: v.to(DEVICE) for k, v in inputs(GRID, 1).items()}
    found, expected = both_ways(model, **given, **windows)
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
        full_attention_layers=(0,), num_layers=2, cross_attn_norm=True, attention_head_dim=head
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


@pytest.mark.slow
def test_blocks_are_compiled_with_their_kernels(forced):
    """In one graph each: what the kernels need to know of the grid is a constant."""
    model = tiny_ultragen(cross_attn_norm=True).to(DEVICE)
    given = {k: v.to(DEVICE) for k, v in inputs(GRID, 1).items()}
    with torch.no_grad():
        with use("plain"):
            expected = model(**given, windows=2).sample
        model.compile_repeated_blocks(fullgraph=True, backend="eager")
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
