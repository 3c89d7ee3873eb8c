"""Muon for hidden matrices, AdamW for everything else."""

from __future__ import annotations

import torch
from torch import nn

from ultragen.training.build import TINY_SIZE, build_pipeline
from ultragen.training.muon import MuonAdamW, hidden_matrices, orthogonalize
from ultragen.training.stages.transformer_stage import TextToLatents


def test_orthogonalised_matrices_have_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((3, 8, 20), (2, 20, 8), (1, 12, 12)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert values.min() > 0.3 and values.max() < 1.3


def test_matrices_of_one_shape_do_not_touch_each_other():
    torch.manual_seed(0)
    together = [nn.Parameter(torch.randn(6, 4)) for _ in range(3)]
    alone = [nn.Parameter(p.detach().clone()) for p in together]
    gradients = torch.randn(3, 6, 4)
    both = [MuonAdamW(together, [], lr=0.01), *(MuonAdamW([p], [], lr=0.01) for p in alone)]
    for _ in range(3):
        for parameters in (together, alone):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
        for optimizer in both:
            optimizer.step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b)


def test_muon_leaves_other_parameters_to_adamw():
    torch.manual_seed(0)
    hidden, bias = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))
    plain = nn.Parameter(bias.detach().clone())
    ours = MuonAdamW([hidden], [bias], lr=0.01, weight_decay=0.1)
    adamw = torch.optim.AdamW([plain], lr=0.01, weight_decay=0.1)
    start = hidden.detach().clone()
    for _ in range(5):
        hidden.grad, bias.grad = torch.randn(4, 4), torch.randn(4)
        plain.grad = bias.grad.clone()
        ours.step()
        adamw.step()
    assert torch.equal(bias, plain)
    assert not torch.equal(hidden, start) and hidden.grad is not None


def test_hidden_matrices_are_those_of_the_blocks():
    pipe = build_pipeline(TINY_SIZE, ["a", "lake"])
    model = TextToLatents(pipe.text_encoder, pipe.transformer)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)] for p in hidden_matrices(model)}
    assert "transformer.blocks.0.attn1.to_q.weight" in found
    assert any(name.startswith("text_encoder.encoder.block.0") for name in found)
    assert not any(
        word in name
        for name in found
        for word in ("lora", "gate", "embed", "proj_out", "norm", "table", "conv")
    )
