"""diffusers' caches on the transformer: nothing skipped changes nothing, what is skipped saves
calls, and no run meets what an earlier one has left."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from tiny import tiny_pipeline

from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.pipeline import UltraGenPipeline

STEPS = 8
RUN = {
    "prompt": "a calm lake",
    "height": 96,
    "width": 128,
    "num_frames": 5,
    "windows": 2,
    "num_inference_steps": STEPS,
    "output_type": "latent",
}
RATIOS = [1.0] + [0.99] * (STEPS - 1)
FEATURES = [r"blocks\.\d+\.(attn[12]|ffn)"]


def mag(threshold: float) -> MagCacheConfig:
    return MagCacheConfig(threshold=threshold, num_inference_steps=STEPS, mag_ratios=RATIOS)


def taylor(interval: int, **options: Any) -> TaylorSeerCacheConfig:
    return TaylorSeerCacheConfig(interval, disable_cache_before_step=2, **options)


NEVER: dict[str, Callable[[], Any]] = {
    "first block": lambda: FirstBlockCacheConfig(threshold=0.0),
    "magnitudes": lambda: mag(0.0),
    "magnitudes, calibration": lambda: MagCacheConfig(num_inference_steps=STEPS, calibrate=True),
    "taylor": lambda: taylor(1),
    "spectrum": lambda: SeaCacheConfig(threshold=0.0),
}
# Also the calls of the last block's query projection that are left, of 2 × 8.
SOMETIMES: dict[str, tuple[Callable[[], Any], int | None]] = {
    "first block": (lambda: FirstBlockCacheConfig(threshold=0.5), None),
    "magnitudes": (lambda: mag(0.3), None),
    "taylor": (lambda: taylor(3), 2 * 4),
    "taylor, features": (lambda: taylor(3, cache_identifiers=FEATURES), 2 * 4),
    "taylor, lite": (lambda: taylor(3, use_lite_mode=True), 2 * 4),
    "spectrum": (lambda: SeaCacheConfig(threshold=100.0), None),
}


@pytest.fixture(scope="module")
def built() -> UltraGenPipeline:
    """Without coordinates as the 1.3B model: SeaCache reads the input, and wants latents alone."""
    pipe = tiny_pipeline()
    config = dict(pipe.transformer.config)
    torch.manual_seed(0)
    transformer = UltraGenTransformer3DModel.from_config(
        {**config, "in_channels": config["out_channels"]}
    )
    weights = pipe.transformer.state_dict()
    del weights["patch_embedding.weight"]
    transformer.load_state_dict(weights, strict=False)
    pipe.register_modules(transformer=transformer.eval())
    return pipe


@pytest.fixture
def pipe(built: UltraGenPipeline) -> UltraGenPipeline:
    return copy.deepcopy(built)


def latents_of(pipe: UltraGenPipeline, **changes) -> torch.Tensor:
    return pipe(**{**RUN, "generator": torch.Generator().manual_seed(0), **changes}).frames


@contextmanager
def cached(pipe: UltraGenPipeline, config: Any) -> Iterator[None]:
    pipe.transformer.enable_cache(config)
    yield
    pipe.transformer.disable_cache()


@contextmanager
def counted(pipe: UltraGenPipeline) -> Iterator[list[int]]:
    """Calls of the last block's self-attention, or of what of it a cache lets run."""
    calls: list[int] = []
    projection = pipe.transformer.blocks[-1].attn1.to_q
    hook = projection.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


@pytest.mark.parametrize("make", NEVER.values(), ids=NEVER)
def test_a_cache_that_never_answers_changes_nothing(pipe, make):
    with counted(pipe) as calls:
        expected, all_calls = latents_of(pipe), len(calls)
        calls.clear()
        with cached(pipe, make()):
            assert torch.equal(latents_of(pipe), expected)
    assert len(calls) == all_calls


@pytest.mark.parametrize(("make", "left"), SOMETIMES.values(), ids=SOMETIMES)
def test_a_cache_that_answers_saves_calls_and_does_not_outlive_its_run(pipe, make, left):
    expected = latents_of(pipe)
    with counted(pipe) as calls:
        latents_of(pipe)
        all_calls = len(calls)
        with cached(pipe, make()):
            calls.clear()
            found = latents_of(pipe)
            saved = all_calls - len(calls)
            assert left is None or len(calls) == left * all_calls // (2 * STEPS)
            assert 0 < saved < all_calls
            assert found.isfinite().all() and not torch.equal(found, expected)
            # The same again, also after a run of another size.
            assert latents_of(pipe, width=160).isfinite().all()
            assert torch.equal(latents_of(pipe), found)
    assert torch.equal(latents_of(pipe), expected)


def test_taylor_keeps_the_parts_that_are_named(pipe):
    config = taylor(3, skip_predict_identifiers=[r"blocks\.1"])
    with cached(pipe, config):
        assert pipe.transformer._cache_config is config
    config = taylor(3)
    with cached(pipe, config):
        assert config.cache_identifiers is None
        hooked = {
            name
            for name, module in pipe.transformer.named_modules()
            if getattr(getattr(module, "_diffusers_hook", None), "hooks", None)
        }
    assert hooked == {f"blocks.{i}.attn{j}" for i in range(2) for j in (1, 2)}


def test_a_cache_beside_guidance_in_an_interval(pipe):
    level = pipe.prepare_schedule(STEPS, 12, torch.device("cpu"))[1].tolist()[3]
    for make, _ in SOMETIMES.values():
        with cached(pipe, make()):
            found = latents_of(pipe, guidance_interval=(0.0, level))
            assert found.isfinite().all()
            assert torch.equal(latents_of(pipe, guidance_interval=(0.0, level)), found)


def broadcast(pipe: UltraGenPipeline, every: int) -> PyramidAttentionBroadcastConfig:
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=every,
        cross_attention_block_skip_range=every,
        spatial_attention_timestep_skip_range=(100, 900),
        cross_attention_timestep_skip_range=(100, 900),
        current_timestep_callback=lambda: pipe.current_timestep,
    )


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_pyramid_attention_broadcast(pipe, scale):
    expected, found = latents_of(pipe, guidance_scale=scale), []
    for every in (1, 2):
        with cached(pipe, broadcast(pipe, every)):
            found.append(latents_of(pipe, guidance_scale=scale))
            assert torch.equal(latents_of(pipe, guidance_scale=scale), found[-1])
    assert torch.equal(found[0], expected)
    assert found[1].isfinite().all() and not torch.equal(found[1], expected)


def test_pyramid_attention_broadcast_keeps_the_passes_of_guidance_apart(pipe):
    """diffusers 0.42.1 has one memory for both: the second pass gets the first one's attention,
    though nothing else of the two differs (`hooks/pyramid_attention_broadcast.py`)."""
    where = {"hidden_states": torch.randn(1, pipe.transformer.config.in_channels, 2, 12, 16)}
    where |= {"timestep": torch.tensor([500.0]), "windows": 2, "return_dict": False}
    texts = {name: torch.randn(1, 5, pipe.transformer.config.text_dim) for name in ("a", "b")}
    config = broadcast(pipe, 2)
    config.current_timestep_callback = lambda: 500

    @torch.no_grad()
    def passes() -> list[torch.Tensor]:
        found = []
        for name, text in texts.items():
            with pipe.transformer.cache_context(name):
                found += pipe.transformer(encoder_hidden_states=text, **where)
        return found

    expected = passes()
    assert not torch.equal(*expected)
    with cached(pipe, config):
        first, second = passes(), passes()
    assert all(map(torch.equal, first, expected))
    assert all(map(torch.equal, second, expected))


def test_the_timestep_is_known_during_a_step(pipe):
    seen, asked = [], []
    pipe.transformer.register_forward_hook(lambda *_: seen.append(pipe.current_timestep))
    latents_of(pipe, callback_on_step_end=lambda p, i, time, _: asked.append(time.item()))
    assert seen[::2] == seen[1::2]
    assert seen[::2] == pytest.approx(asked)
