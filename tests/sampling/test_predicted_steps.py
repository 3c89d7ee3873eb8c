"""Steps that a cache predicts: as many as are counted, and nothing of them in the next run."""

from __future__ import annotations

import copy
from dataclasses import replace
from threading import Event

import pytest
import torch
from diffusers import WanTransformer3DModel
from fakes import fake_models
from tiny import tiny_pipeline

from ultragen.pipeline import UltraGenPipeline
from ultragen.presets import CACHES, EMBEDDED
from ultragen.runs.clip import encode_text, make_clip, mean_passes
from ultragen.runs.progress import RunState
from ultragen.runs.request import Request
from ultragen.sampling.caches import cached, computed_passes

STEPS = 8
SIZE = (96, 128)
PREDICTED = [cache for cache in CACHES if cache != "off"]


@pytest.fixture(scope="module")
def built() -> UltraGenPipeline:
    return tiny_pipeline()


@pytest.fixture
def pipe(built: UltraGenPipeline) -> UltraGenPipeline:
    return copy.deepcopy(built)


def asked(cache: str, **changes) -> Request:
    settings = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "num_frames": 5, **changes}
    return Request("a calm lake", cache=cache, **settings).validate(EMBEDDED)


def blocks_run(pipe: UltraGenPipeline, request: Request) -> tuple[torch.Tensor, int]:
    """A run's frames, and how often its last block's feed-forward network was computed."""
    calls: list[int] = []
    ffn = pipe.transformer.blocks[-1].ffn.net[0]
    hook = ffn.register_forward_hook(lambda *_: calls.append(1))
    run = RunState(lambda progress: None, Event(), {})
    windows = {"windows": 2} if pipe.base_transformer is not None else {}
    try:
        text = encode_text(run, pipe, [request])
        frames = make_clip(run, pipe, request, text, SIZE, "", windows)
    finally:
        hook.remove()
    return torch.from_numpy(frames), len(calls)


@pytest.mark.parametrize("cache", PREDICTED)
@pytest.mark.parametrize("steps", [6, 7, 8, 12])
def test_as_many_passes_run_as_are_counted(pipe, cache, steps):
    _, calls = blocks_run(pipe, asked(cache, num_inference_steps=steps))
    assert calls == 2 * computed_passes(cache, steps) < 2 * steps


def test_the_first_steps_are_computed_whatever_the_cache():
    for cache in CACHES:
        assert [computed_passes(cache, passes) for passes in range(6)] == [0, 1, 2, 3, 4, 5]
    assert [computed_passes("taylor-2", passes) for passes in (30, 50)] == [17, 27]
    assert [computed_passes("taylor-3", passes) for passes in (30, 50)] == [13, 20]


@pytest.mark.parametrize("cache", PREDICTED)
def test_no_run_meets_what_an_earlier_one_has_left(built, pipe, cache):
    fresh, _ = blocks_run(copy.deepcopy(built), asked(cache))
    plain, _ = blocks_run(copy.deepcopy(built), asked("off"))
    assert not torch.equal(fresh, plain)
    blocks_run(pipe, asked(cache, seed=5, num_frames=1))
    assert torch.equal(blocks_run(pipe, asked(cache))[0], fresh)
    assert torch.equal(blocks_run(pipe, asked("off"))[0], plain)
    assert torch.equal(blocks_run(pipe, asked(cache))[0], fresh)


def test_a_run_that_fails_leaves_no_cache(built, pipe):
    plain, _ = blocks_run(copy.deepcopy(built), asked("off"))

    def fail(*_):
        raise RuntimeError("no more")

    hook = pipe.transformer.blocks[0].ffn.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="no more"):
        blocks_run(pipe, asked("taylor-2"))
    hook.remove()
    assert not pipe.transformer.is_cache_enabled
    assert torch.equal(blocks_run(pipe, asked("off"))[0], plain)


def test_the_dense_base_model_has_the_same_cache(pipe):
    base = pipe.base_pipeline()
    base.set_progress_bar_config(disable=True)
    assert isinstance(base.transformer, WanTransformer3DModel)
    assert blocks_run(base, asked("taylor-2"))[1] == 2 * computed_passes("taylor-2", STEPS)


def test_a_cache_is_on_for_its_block_alone(pipe):
    with cached(pipe.transformer, "off"):
        assert not pipe.transformer.is_cache_enabled
    with cached(pipe.transformer, "taylor-2"):
        assert pipe.transformer.is_cache_enabled
    assert not pipe.transformer.is_cache_enabled


@pytest.mark.parametrize("cache", list(CACHES))
def test_the_estimate_counts_them(pipe, monkeypatch, cache):
    """Also where guidance is computed in some steps: its passes have a cache of their own."""
    monkeypatch.setattr(Request, "token_grid", lambda request, preset: (3, 4))
    models = replace(fake_models(), native=pipe)
    levels = pipe.prepare_schedule(STEPS, 12, torch.device("cpu"))[1].tolist()
    for interval in ("0-1", f"{levels[6]:f}-1"):
        request = asked(cache, guidance_interval=interval)
        _, calls = blocks_run(pipe, request)
        assert mean_passes(request, models) == pytest.approx(calls / STEPS)
    alone = replace(models, guidance_device="cuda:1")
    assert mean_passes(request, alone) == computed_passes(cache, STEPS) / STEPS
