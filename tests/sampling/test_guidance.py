"""Guidance: in an interval of noise levels, and with its second pass on a second device."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from threading import Barrier, current_thread, main_thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from paths import ROOT
from peft import LoraConfig
from tiny import tiny_pipeline

from ultragen.pipeline import UltraGenPipeline
from ultragen.presets import EMBEDDED
from ultragen.runs.clip import mean_passes
from ultragen.runs.request import Request
from ultragen.sampling import sampler
from ultragen.sampling.guidance import Guidance
from ultragen.sampling.parallel_guidance import TransformerCopy

STEPS = 5
RUN = {
    "prompt": "a calm lake",
    "negative_prompt": "the sea",
    "height": 96,
    "width": 128,
    "num_frames": 5,
    "windows": 2,
    "num_inference_steps": STEPS,
    "output_type": "latent",
}


@pytest.fixture(scope="module")
def built() -> UltraGenPipeline:
    return tiny_pipeline()


@pytest.fixture
def pipe(built: UltraGenPipeline) -> UltraGenPipeline:
    return copy.deepcopy(built)


def latents_of(pipe: UltraGenPipeline, **changes) -> torch.Tensor:
    return pipe(**{**RUN, "generator": torch.Generator().manual_seed(0), **changes}).frames


def passes_of(pipe: UltraGenPipeline, **changes) -> list[int]:
    """Passes of the pipeline's own transformer in each step."""
    calls, after, own = [], [0], pipe.transformer
    hook = own.register_forward_hook(lambda m, *_: calls.append(1) if m is own else None)
    latents_of(pipe, callback_on_step_end=lambda *_: after.append(len(calls)), **changes)
    hook.remove()
    return [later - earlier for earlier, later in pairwise(after)]


def levels_of(pipe: UltraGenPipeline) -> list[float]:
    return pipe.prepare_schedule(STEPS, 12, torch.device("cpu"))[1].tolist()[:-1]


# In an interval of noise levels


def test_the_estimate_counts_the_passes_that_a_run_takes(pipe, monkeypatch):
    monkeypatch.setattr(Request, "token_grid", lambda request, preset: (3, 4))
    models, levels = (
        SimpleNamespace(native=pipe, preset=EMBEDDED, guidance_device=None),
        levels_of(pipe),
    )
    asked = Request("a lake", num_inference_steps=STEPS, guidance_scale=3.0)
    for low, high in ((levels[3], levels[1]), (levels[1], 1.0), (0.0, 1.0)):
        seen = passes_of(pipe, guidance_scale=3.0, guidance_interval=(low, high))
        request = replace(asked, guidance_interval=f"{low}-{high}")
        before = pipe.scheduler.sigmas.tolist()
        assert mean_passes(request, models) == pytest.approx(sum(seen) / STEPS)
        assert pipe.scheduler.sigmas.tolist() == before
    assert mean_passes(replace(request, guidance_scale=1.0), models) == 1


def test_the_scale_at_a_noise_level():
    guidance = Guidance(3.0, (0.2, 0.8))
    found = {sigma: guidance.scale_at(sigma) for sigma in (1.0, 0.81, 0.8, 0.21, 0.2, 0.0)}
    assert found == {1.0: 1.0, 0.81: 1.0, 0.8: 3.0, 0.21: 3.0, 0.2: 1.0, 0.0: 1.0}
    assert Guidance(3.0).scale_at(1.0) == Guidance(3.0).scale_at(1e-6) == 3.0
    assert Guidance(0.5).scale_at(0.5) == 1.0


def test_only_steps_in_the_interval_take_a_second_pass(pipe):
    levels = levels_of(pipe)
    assert passes_of(pipe) == [2] * STEPS
    assert passes_of(pipe, guidance_interval=(levels[3], levels[1])) == [1, 2, 2, 1, 1]
    assert passes_of(pipe, guidance_interval=(0.0, levels[-1])) == [1, 1, 1, 1, 2]
    assert passes_of(pipe, guidance_interval=(levels[1], 1)) == [2, 1, 1, 1, 1]
    assert passes_of(pipe, guidance_interval=(levels[1], 1), guidance_scale=1.0) == [1] * STEPS


def test_an_interval_changes_nothing_before_it(pipe):
    levels, runs = levels_of(pipe), []
    settings = (
        {"guidance_scale": 1.0},
        {"guidance_scale": 3.0},
        {"guidance_scale": 3.0, "guidance_interval": (0.0, levels[2])},
    )
    for changes in settings:
        seen: list[torch.Tensor] = []
        latents_of(
            pipe, callback_on_step_end=lambda *a, s=seen: s.append(a[3]["latents"]), **changes
        )
        runs.append(seen)
    plain, guided, limited = runs
    assert torch.equal(limited[0], plain[0]) and torch.equal(limited[1], plain[1])
    assert not torch.equal(limited[2], plain[2])
    assert not torch.equal(limited[-1], guided[-1])


def test_the_whole_interval_is_guidance_everywhere(pipe):
    assert torch.equal(latents_of(pipe, guidance_interval=(0, 1)), latents_of(pipe))


# On a second device


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Not to the bit: in another thread, libraries may share out their work in another way."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def parallel(pipe: UltraGenPipeline) -> UltraGenPipeline:
    pipe.enable_parallel_guidance("cpu")
    return pipe


def test_a_copy_gives_the_same_latents(pipe):
    expected = latents_of(pipe)
    pipe.enable_parallel_guidance("cpu")
    assert passes_of(pipe) == [1] * STEPS
    assert_near(latents_of(pipe), expected)
    pipe.disable_parallel_guidance()
    assert passes_of(pipe) == [2] * STEPS
    assert torch.equal(latents_of(pipe), expected)


def test_the_copy_shares_the_weights_of_its_own_device(pipe):
    copied = TransformerCopy(pipe.transformer, torch.device("cpu")).model
    assert copied is not pipe.transformer
    pairs = zip(copied.named_parameters(), pipe.transformer.named_parameters(), strict=True)
    for (name, theirs), (other, ours) in pairs:
        assert name == other and theirs.data_ptr() == ours.data_ptr()
    assert all(block is not pipe.transformer.blocks[i] for i, block in enumerate(copied.blocks))


def test_the_copy_lies_on_the_other_device(pipe):
    copied = TransformerCopy(pipe.transformer, torch.device("meta"))
    assert {p.device.type for p in copied.model.parameters()} == {"meta"}
    assert {b.device.type for b in copied.model.buffers()} == {"meta"}
    assert {p.device.type for p in pipe.transformer.parameters()} == {"cpu"}
    out = copied.model(
        hidden_states=torch.zeros(1, pipe.transformer.config.in_channels, 2, 6, 8, device="meta"),
        timestep=torch.ones(1, device="meta"),
        encoder_hidden_states=torch.zeros(1, 4, pipe.transformer.config.text_dim, device="meta"),
        windows=2,
    ).sample
    assert out.device.type == "meta" and out.shape[2:] == (2, 6, 8)


def test_both_passes_run_at_once(parallel, monkeypatch):
    """All but those of the first step, in which libraries may compile."""
    met, together = Barrier(2, timeout=60), []

    def meet(module, arguments):
        if len(together) >= 2:  # of the first step
            met.wait()
        together.append(current_thread().name)

    parallel.transformer.blocks[0].register_forward_pre_hook(meet)
    latents_of(parallel)
    assert len(together) == 2 * STEPS and len(set(together)) == 2


def test_what_a_copy_raises_is_raised_by_the_run(parallel):
    def fail(module, arguments):
        if current_thread() is not main_thread():
            raise RuntimeError("out of memory over there")

    parallel.transformer.blocks[0].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="over there"):
        latents_of(parallel)


def test_a_copy_computes_as_the_thread_that_starts_it(pipe):
    copied = TransformerCopy(pipe.transformer, torch.device("cpu"))
    inputs = {
        "hidden_states": torch.zeros(
            1, pipe.transformer.config.in_channels, 2, 6, 8, requires_grad=True
        ),
        "timestep": torch.ones(1),
        "encoder_hidden_states": torch.zeros(1, 4, pipe.transformer.config.text_dim),
        "windows": 2,
    }
    assert copied.start("cond", {}, **inputs).result().requires_grad
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = copied.start("cond", {}, **inputs).result()
    assert not out.requires_grad and out.dtype == torch.bfloat16


def test_nothing_is_copied_where_nothing_is_guided(parallel, monkeypatch):
    made = []
    monkeypatch.setattr(sampler, "TransformerCopy", lambda *a: made.append(1) or parallel)
    levels = levels_of(parallel)
    latents_of(parallel, guidance_scale=1.0)
    latents_of(parallel, guidance_interval=(levels[1] + 1e-4, levels[0] - 1e-4))
    assert not made


def test_every_run_copies_the_transformer_as_it_is(parallel, pipe):
    """Adapters, their scales and changed weights reach the copy, whenever they come."""
    latents_of(parallel)
    parallel.transformer.add_adapter(
        LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    )
    changes = (
        lambda: None,
        lambda: parallel.transformer.set_adapters("default", 0.3),
        lambda: parallel.transformer.proj_out.weight.mul_(1.1),
        lambda: parallel.transformer.disable_adapters(),
    )
    for change in changes:
        with torch.no_grad():
            change()
        found = latents_of(parallel)
        parallel.disable_parallel_guidance()
        assert_near(found, latents_of(parallel))
        parallel.enable_parallel_guidance("cpu")


@pytest.mark.parametrize("kind", ["first block", "pyramid"])
def test_a_cache_works_on_both_devices(kind, pipe):
    """Where each pass has a transformer of its own, none can meet what another one has left."""
    config: Any = FirstBlockCacheConfig(threshold=0.3)
    if kind == "pyramid":
        config = PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            cross_attention_block_skip_range=3,
            current_timestep_callback=lambda: 500,  # of those at which it broadcasts
        )
    pipe.transformer.enable_cache(config)
    expected = latents_of(pipe)
    pipe.enable_parallel_guidance("cpu")
    assert pipe.transformer.is_cache_enabled
    for _ in range(2):
        assert_near(latents_of(pipe), expected)
    pipe.transformer.disable_cache()
    assert not torch.equal(latents_of(pipe), expected)


def test_the_base_pipeline_has_a_setting_of_its_own(parallel):
    base = parallel.base_pipeline()
    assert parallel.guidance_device == torch.device("cpu") and base.guidance_device is None
    base.set_progress_bar_config(disable=True)
    expected = latents_of(base, windows=None)
    base.enable_parallel_guidance("cpu")
    assert_near(latents_of(base, windows=None), expected)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta", 3.5])
def test_a_device_that_is_not_there(pipe, device):
    with pytest.raises(ValueError, match=r"choose from cpu|such as 'cuda:1'"):
        pipe.enable_parallel_guidance(device)
    assert pipe.guidance_device is None


def test_an_offloaded_transformer_is_refused(parallel):
    from accelerate.hooks import ModelHook, add_hook_to_module

    add_hook_to_module(parallel.transformer, ModelHook())
    with pytest.raises(ValueError, match=r"ModelHook.*disable_parallel_guidance"):
        parallel.enable_parallel_guidance("cpu")
    with pytest.raises(ValueError, match="offloaded"):
        latents_of(parallel)
    parallel.disable_parallel_guidance()
    assert latents_of(parallel).isfinite().all()


def test_a_hooked_transformer_is_refused_and_keeps_its_cache(pipe):
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.3))
    pipe.transformer.enable_layerwise_casting(torch.bfloat16, torch.float32)
    with pytest.raises(ValueError, match="layerwise_casting"):
        pipe.enable_parallel_guidance("cpu")
    assert pipe.transformer.is_cache_enabled


@pytest.mark.slow
def test_the_benchmark_of_two_gpus_as_a_toy(tmp_path):
    root, file = ROOT, tmp_path / "two.json"
    ended = subprocess.run(
        [sys.executable, root / "benchmarks" / "two_gpus.py", "--tiny", "--json", file],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    results = json.loads(file.read_text())["results"]
    assert [result["variant"] for result in results] == ["auto", "released"]
    assert all(result["difference"] < 1e-5 * result["largest"] for result in results)
    assert all(f"{result['two']:.3f} s on two" in ended.stdout for result in results)
