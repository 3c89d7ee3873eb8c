"""`benchmarks/adapters.py`: the models that it compares have the adapters that it says."""

from __future__ import annotations

import adapters
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny import tiny_ultragen


def test_each_model_has_its_adapters_in_all_linear_layers_of_its_blocks():
    plain = tiny_ultragen()
    for ranks in adapters.RANKS.values():
        model = adapters.with_adapters(plain, ranks, torch.bfloat16)
        layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
        each = 2 * 4 + 2  # self-attention, attention to text, feed-forward network
        assert len(layers) == (each * len(model.blocks) if ranks else 0)
        for layer in layers:
            assert tuple(layer.r.values()) == ranks
            assert len(layer.active_adapters) == len(ranks)
            assert layer.weight.dtype == torch.bfloat16
            assert {w.weight.dtype for w in layer.lora_A.values()} == {torch.bfloat16}
    assert not any(isinstance(m, BaseTunerLayer) for m in plain.modules())
