"""Steps that are recorded as CUDA graphs."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from ultragen.training.graphs import GraphedGradients, Recorded


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_recorded_steps_give_the_gradients_of_steps_one_by_one():
    model = torch.nn.Linear(4, 3).cuda()
    parameters = list(model.parameters())
    recorded = GraphedGradients(
        lambda batch: {"loss": model(batch[1]).square().mean() * batch[0]},
        parameters,
        nullcontext,
    )
    for factor, number in ((1, 2), (3, 2), (1, 5), (3, 2)):
        x = torch.randn(number, 4, device="cuda")
        loss = recorded((factor, x))["loss"]
        expected = model(x).square().mean() * factor
        torch.testing.assert_close(loss, expected.detach())
        wanted = torch.autograd.grad(expected, parameters)
        for parameter, gradient in zip(parameters, wanted, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
    assert len(recorded.recordings) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_recorded_function_gives_what_it_gave_for_every_kind_of_batch():
    recorded = Recorded(lambda batch: batch[0] * batch[1].sin())
    for factor, number in ((1, 2), (3, 2), (1, 5), (3, 2)):
        x = torch.randn(number, 4, device="cuda")
        torch.testing.assert_close(recorded((factor, x)), factor * x.sin())
    assert len(recorded.recordings) == 3
