"""Fused gradients where FSDP2 gathers a block's weights, computes, and lets them go again."""

from __future__ import annotations

import copy

import pytest
import torch
from kernels import DEVICE
from tiny import inputs, tiny_ultragen
from torch import Tensor, distributed
from torch.distributed.fsdp import fully_shard

from ultragen.ops import feed_forward
from ultragen.ops.dispatch import use
from ultragen.ops.gradients import Recomputation

pytest.importorskip("triton", reason="Triton is not installed: it comes with CUDA builds of torch")


@pytest.fixture
def alone(monkeypatch):
    """A group of this process; and few programs, because the interpreter runs one by one."""
    from ultragen.ops import triton_decompress_gradients, triton_depthwise, triton_modulation
    from ultragen.ops import triton_rotary_norm as rotary_norm

    monkeypatch.setattr(triton_depthwise, "GROUPS", 2)
    for module in (triton_decompress_gradients, triton_modulation, rotary_norm):
        monkeypatch.setattr(module, "PROGRAMS", 2)
    backend = "nccl" if DEVICE == "cuda" else "gloo"
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    given = {name: value.to(DEVICE) for name, value in inputs((1, 4, 6)).items()}
    model(**given, windows=2).sample.square().mean().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: getattr(g, "full_tensor", lambda g=g: g)() for name, g in found.items()}


def test_kernels_on_sharded_weights_give_the_gradients_of_whole_ones(alone, monkeypatch):
    """The feed-forward network keeps its weights by reference, over the time that they are gone."""
    monkeypatch.setattr(feed_forward, "PIECE", 8)
    pieces, hidden = [], feed_forward._hidden
    monkeypatch.setattr(feed_forward, "_hidden", lambda *given: pieces.append(1) or hidden(*given))
    model = tiny_ultragen(num_layers=2, full_attention_layers=(0,)).to(DEVICE)
    expected = gradients(copy.deepcopy(model))
    model.enable_gradient_checkpointing(Recomputation(results="all"))
    for block in model.blocks:
        fully_shard(block, reshard_after_forward=True)
    fully_shard(model)
    with use("triton"):
        found = gradients(model)
    assert len(pieces) == 2 * 3  # 24 tokens in three pieces, in two blocks, once
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        scale = max(1e-3, expected[name].abs().max().item())
        assert (gradient - expected[name]).abs().max() < 1e-4 * scale, name
