"""What runs on a CPU in fewer passes, against the plain arithmetic."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import quality
import torch
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from paths import ROOT
from torch import Tensor
from torch.nn import functional as F

from ultragen.model.attention import RotaryNorm
from ultragen.model.block import UltraGenBlock
from ultragen.model.compression import Compression, Decompression
from ultragen.model.window_plan import WindowLayout
from ultragen.model.windows import even_partition
from ultragen.ops import cpu_modulation
from ultragen.ops.dispatch import fused_runs, use
from ultragen.ops.window_order import split_windows
from ultragen.presets import Resolution
from ultragen.runs import request

CPU = torch.device("cpu")
ERROR = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
DTYPES = pytest.mark.parametrize("dtype", list(ERROR), ids=str)


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    error = (found.double() - expected.double()).norm() / expected.double().norm()
    assert error < ERROR[dtype]


def test_they_run_on_a_cpu_alone():
    assert fused_runs("cpu_modulation", CPU) and not fused_runs(
        "cpu_modulation", torch.device("meta")
    )
    with use("plain"):
        assert not fused_runs("cpu_modulation", CPU)


@DTYPES
@pytest.mark.parametrize("batch", [1, 3])
def test_norms_and_sums(dtype, batch):
    torch.manual_seed(0)
    x, update = torch.randn(2, batch, 5, 8, dtype=dtype)
    gate, factor, offset = torch.randn(3, batch, 1, 8)
    total = x.double() + update.double() * gate.double()
    assert_near(cpu_modulation.gated_sum(x, update, gate), total, dtype)
    for gate_, expected in ((gate, total), (None, x.double() + update.double())):
        found, normed = cpu_modulation.sum_and_norm(x, update, gate_, factor, offset, 1e-6)
        assert_near(found, expected, dtype)
        wanted = F.layer_norm(expected, (8,), eps=1e-6) * factor.double() + offset.double()
        assert_near(normed, wanted, dtype)
    shared = cpu_modulation.modulated_norm(x, factor[0, 0], offset[:1], 1e-6)
    wanted = F.layer_norm(x.double(), (8,), eps=1e-6) * factor[0].double() + offset[0].double()
    assert_near(shared, wanted, dtype)


@DTYPES
def test_a_linear_layer_with_its_activation(dtype):
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(s).to(dtype) for s in ((2, 5, 8), (12, 8), (12,)))
    expected = F.gelu(F.linear(x.double(), weight.double(), bias.double()), approximate="tanh")
    assert_near(cpu_modulation.linear_gelu(x, weight, bias), expected, dtype)


@DTYPES
@pytest.mark.parametrize("batch", [1, 2])
def test_a_whole_block(dtype, batch, monkeypatch):
    torch.manual_seed(0)
    block = WanTransformerBlock(16, 24, 2, cross_attn_norm=True)
    inputs = (torch.randn(batch, 5, 16), torch.randn(batch, 3, 16), torch.randn(batch, 6, 16))
    angle = torch.randn(1, 5, 1, 4).repeat_interleave(2, dim=-1)
    with torch.no_grad():
        rotary = angle.cos(), angle.sin()
        expected = block.double()(*(x.double() for x in inputs), tuple(x.double() for x in rotary))
        block.to(dtype)
        UltraGenBlock.take_over(block)
        calls = []
        for name in ("sum_and_norm", "linear_gelu"):
            real = getattr(cpu_modulation, name)
            monkeypatch.setattr(
                cpu_modulation,
                name,
                lambda *a, real=real, name=name: calls.append(name) or real(*a),
            )
        found = block(*(x.to(dtype) for x in inputs), rotary)
    assert_near(found, expected, dtype)
    assert calls == ["sum_and_norm", "sum_and_norm", "linear_gelu"]


def test_with_gradients_the_plain_code_runs(monkeypatch):
    monkeypatch.setattr(cpu_modulation, "sum_and_norm", None)
    monkeypatch.setattr(cpu_modulation, "linear_gelu", None)
    block = WanTransformerBlock(16, 24, 2, cross_attn_norm=True)
    UltraGenBlock.take_over(block)
    angle = torch.zeros(1, 5, 1, 8)
    x, text, time = torch.randn(1, 5, 16), torch.randn(1, 3, 16), torch.randn(1, 6, 16)
    block(x, text, time, (angle.cos(), angle.sin())).sum().backward()
    assert all(p.grad is not None for p in block.parameters())


@DTYPES
def test_norm_and_positions(dtype):
    """The norm's factor turns with the positions: the same as one after the other (eq. 6)."""
    torch.manual_seed(0)
    t, h, w, d, heads = 2, 4, 6, 16, 2
    x, weight = torch.randn(2, t, h, w, d).to(dtype), torch.randn(d).to(dtype)
    norm = RotaryNorm(d, eps=1e-6, dtype=dtype)
    angle, partition = torch.randn(t, h, w, d // heads // 2), even_partition(h, w, 2)
    with torch.no_grad():
        norm.weight.copy_(weight)
        found = norm(x, WindowLayout((h, w), partition, (angle.cos(), angle.sin())), heads)
    normed = F.rms_norm(x.double(), (d,), weight.double(), 1e-6).unflatten(-1, (heads, -1, 2))
    cos, sin = (table.double()[..., None, :] for table in (angle.cos(), angle.sin()))
    real, imaginary = normed.unbind(-1)
    turned = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
    expected = split_windows(turned.flatten(-3), partition.rectangles)
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, dtype)


@DTYPES
@pytest.mark.parametrize("frames", [1, 3])
def test_decompression_with_gradients(dtype, frames):
    """Three convolutions of frames are the one of three dimensions, their gradients too."""
    torch.manual_seed(0)
    layer = Decompression(6, 6, 3, padding=1, groups=6, dtype=dtype)
    x = torch.randn(2, frames, 4, 5, 6).to(dtype)
    check_gradients(layer, x, lambda v, w, b: F.conv3d(v, w, b, padding=1, groups=6))


@DTYPES
@pytest.mark.parametrize("size", [(4, 8), (5, 7)])
def test_compression_with_gradients(dtype, size):
    torch.manual_seed(0)
    layer = Compression(6, 6, 4, stride=4, groups=6, dtype=dtype)
    x = torch.randn(2, 3, *size, 6).to(dtype)

    def convolve(volume: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows, columns = (-length % 4 for length in size)
        frames = F.pad(volume.transpose(1, 2).flatten(0, 1), (0, columns, 0, rows), "replicate")
        out = F.conv2d(frames, weight, bias, stride=4, groups=6)
        return out.unflatten(0, (2, 3)).transpose(1, 2)

    check_gradients(layer, x, convolve)


def check_gradients(layer, x: Tensor, convolve) -> None:
    """A convolution of tokens b t h w d against one of volumes b d t h w in float64."""
    x.requires_grad_()
    given = [x, layer.weight, layer.bias]
    double = [value.detach().double().requires_grad_() for value in given]
    out = layer(x)
    expected = convolve(double[0].permute(0, 4, 1, 2, 3), *double[1:]).permute(0, 2, 3, 4, 1)
    assert_near(out, expected, x.dtype)
    gradient = torch.randn_like(out)
    found = torch.autograd.grad(out, given, gradient)
    wanted = torch.autograd.grad(expected, double, gradient.double())
    for one, other in zip(found, wanted, strict=True):
        assert_near(one, other, x.dtype)


@pytest.mark.slow
def test_the_benchmark_as_a_toy():
    script = ROOT / "benchmarks" / "cpu.py"
    command = [sys.executable, script, "--tiny", "--height=96", "--width=128", "--repeats=1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    ways = [line.split()[:2] for line in ended.stdout.splitlines()[1:]]
    assert ways == [[d, w] for d in ("float32", "bfloat16") for w in ("plain", "fused")]


@pytest.mark.slow
def test_the_metrics_before_and_after_in_short(tmp_path, monkeypatch):
    """Two clips of the shipped model at its base model's size."""
    small = {**request.RESOLUTIONS, "small": Resolution("small", 288, 512, 288)}
    monkeypatch.setattr(request, "RESOLUTIONS", small)
    file = tmp_path / "quality.json"
    options = ["--clips=2", "--frames=5", "--steps=2", "--resolution=small", f"--json={file}"]
    monkeypatch.setattr(sys, "argv", ["quality.py", *options])
    quality.main()
    found = json.loads(file.read_text())
    before, after, real = found["rows"]
    assert [row["key"] for row in found["rows"]] == ["before", "after", "real"]
    assert found["dtypes"]["before"] == "float32"
    assert 0 < found["steps_of_colour_apart"] < 8
    assert before["hd_mse"]["value"] == pytest.approx(after["hd_mse"]["value"], rel=0.1)
    assert real["clips"] == after["clips"] == 2
