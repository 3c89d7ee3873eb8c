"""Flow matching: its loss, its noise levels, and which clips a step is trained on."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from latent_files import write_embedded
from training_stages import SMALL, flow_stage

from ultragen.dataset.shards import LatentDataset
from ultragen.training import data
from ultragen.training.build import TINY_SIZE
from ultragen.training.stages import flow_matching


def test_the_flow_matching_loss_is_of_noise_minus_data(monkeypatch):
    """At x_σ = (1 − σ)x + σε, a model that answers ε − x has no loss."""
    stage = flow_stage((SMALL,))
    stage.pipeline.register_to_config(prediction="velocity")
    clean, noise = torch.randn(2, 8, 2, 6, 8), torch.randn(2, 8, 2, 6, 8)
    monkeypatch.setattr(torch, "randn_like", lambda *_: noise)
    seen = {}

    def perfect(noisy, timestep, ids, **extra):
        sigma = timestep.view(-1, 1, 1, 1, 1) / 1000
        torch.testing.assert_close(noisy[:, :8], (1 - sigma) * clean + sigma * noise)
        seen.update(extra)
        return noise - clean

    losses = stage.loss(perfect, (SMALL, 2, clean, torch.zeros(2, 64, dtype=torch.long)))
    assert losses["loss"] == 0
    assert seen == {"windows": 2}


@pytest.mark.parametrize("side", [1, 2, 4])
def test_noise_levels_are_shifted_as_the_schedule_is(side):
    """The median is the shifted half: where the pipeline's schedule has its middle."""
    stage = flow_stage((SMALL,))
    size = replace(SMALL, height=288 * side, width=512 * side)
    sigmas = stage.draw_sigmas(20_001, size, torch.device("cpu"))
    _, schedule = stage.pipeline.prepare_schedule(2, 144 * side**2, torch.device("cpu"))
    assert sigmas.min() > 0 and sigmas.max() < 1
    assert sigmas.median().item() == pytest.approx(schedule[1].item(), abs=0.02)


def test_a_preconditioned_model_without_error_has_no_loss(monkeypatch):
    """Its output, made from the data, gives the data's velocity."""
    stage = flow_stage((SMALL,))
    clean, noise = torch.randn(2, 8, 2, 6, 8), torch.randn(2, 8, 2, 6, 8)
    monkeypatch.setattr(torch, "randn_like", lambda *_: noise)

    def perfect(noisy, timestep, ids, **extra):
        sigma = timestep.view(-1, 1, 1, 1, 1) / 1000
        signal = TINY_SIZE.data_std**2 * (1 - sigma)
        square = signal * (1 - sigma) + sigma**2
        return (clean - signal / square * noisy[:, :8]) * square.sqrt() / sigma

    losses = stage.loss(perfect, (SMALL, 2, clean, torch.zeros(2, 64, dtype=torch.long)))
    assert losses["loss"].item() < 1e-6


def test_all_processes_choose_the_same_clips():
    sizes = tuple(replace(SMALL, height=96 + 32 * i, windows=(2, 4)) for i in range(3))
    stages = [flow_stage(()) for _ in range(2)]
    for seed, stage in enumerate(stages):
        stage.sizes, stage.seed = sizes, seed
    choices = [[stage.choose(step) for step in range(40)] for stage in stages]
    assert choices[0] == choices[1]
    assert len(set(choices[0])) == 6


def test_text_encoder_and_transformer_learn_together():
    stage = flow_stage((SMALL,))
    stage.loss(stage.model, stage.batch(0))["loss"].backward()
    for part in ("text_encoder", "transformer"):
        assert any(p.grad is not None and p.grad.any()
                   for p in getattr(stage.model, part).parameters()), part  # fmt: skip
    assert all(p.grad is None for p in stage.pipeline.vae.parameters())


@pytest.mark.parametrize("world, devices", [(1, 1), (2, 4), (4, 8), (3, 5)])
def test_no_two_processes_see_the_same_scenes(monkeypatch, world, devices):
    seen: list[int] = list(range(world))  # those that train

    class Listed:
        def __init__(self, makers, weights, first, devices):
            seen.extend(makers.rank + makers.stride * number for number in range(len(devices)))

    monkeypatch.setattr(flow_matching, "Renderers", Listed)
    for rank in range(world):
        stage = flow_stage((SMALL,), tuple(f"cuda:{i}" for i in range(devices)))
        stage.start_rendering(torch.device("cpu"), rank, world)
    assert len(set(seen)) == len(seen) == world + devices


def test_fewer_devices_than_processes_are_refused():
    stage = flow_stage((SMALL,), ("cuda:1",))
    with pytest.raises(ValueError, match="at least 2 devices"):
        stage.start_rendering(torch.device("cpu"), 0, 2)


CLIPS = [("a lake",), ("a lake", "lake"), ("lake a",), ("a",), ("lake",)]


def stored(tmp_path) -> LatentDataset:
    return LatentDataset(write_embedded(tmp_path / "data", (96, 128, 5), CLIPS))


@pytest.mark.parametrize("pool", [2, 100])
def test_a_dataset_takes_the_place_of_the_renderer(tmp_path, monkeypatch, pool):
    """All its clips come, with all their captions, whether the pool holds them or not."""
    dataset = stored(tmp_path)
    clock = count()  # by which other clips come about three times a step
    monkeypatch.setattr(data, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(flow_matching, "READING", 0.3)
    stage = flow_stage((replace(SMALL, pool=pool, chunk=2),), dataset=dataset)
    assert stage.pipeline.tokenizer is not None
    seen = set()
    for step in range(60):
        _, _, latents, ids = stage.batch(step)
        for one, text in zip(latents, ids, strict=True):
            [clip] = [i for i in range(5) if torch.equal(one, dataset.latents(i).float())]
            if text.equal(stage.empty):
                continue
            said = stage.pipeline.tokenizer.decode(text, skip_special_tokens=True)
            assert said in CLIPS[clip]
            seen.add((clip, said))
    assert seen == {(i, said) for i, captions in enumerate(CLIPS) for said in captions}


def test_only_the_sizes_that_a_dataset_has_are_trained(tmp_path):
    dataset = stored(tmp_path)
    other = replace(SMALL, height=160)
    assert flow_stage((other, SMALL), dataset=dataset).sizes == (SMALL,)
    with pytest.raises(ValueError, match=r"clips of 96x128x5.*trained on 160x128x5"):
        flow_stage((other,), dataset=dataset)
