"""What diffusers offers for our pipeline: saving, loading, caches, LoRAs."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FirstBlockCacheConfig
from paths import ROOT
from peft import LoraConfig, get_peft_model_state_dict
from pipelines import RUN, latents_of, seed
from safetensors.torch import load_file, save_file

from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.pipeline import UltraGenPipeline
from ultragen.presets import EMBEDDED_MODEL
from ultragen.training.build import TINY_SIZE

# What diffusers offers


def test_saving_and_loading(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, max_shard_size="500KB")
    loaded = UltraGenPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.transformer) is UltraGenTransformer3DModel
    assert loaded.config.max_sequence_length == TINY_SIZE.text_length
    assert loaded.vae.config.latents_mean == pipe.vae.config.latents_mean
    assert loaded.unknown_words("a calm zorgon") == ["zorgon"]
    expected, found = (p(**RUN, generator=seed()).frames for p in (pipe, loaded))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    expected, found = (
        p.base_pipeline()(**{**RUN, "windows": None}, generator=seed()).frames
        for p in (pipe, loaded)
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.fixture
def cached(changeable: UltraGenPipeline) -> Iterator[UltraGenPipeline]:
    yield changeable
    changeable.transformer.disable_cache()


def test_a_cache_that_never_answers_changes_nothing(cached):
    expected = latents_of(cached)
    cached.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    assert torch.equal(latents_of(cached), expected)


def test_a_cache_that_always_answers_skips_the_later_blocks(cached):
    expected, calls = latents_of(cached), []
    cached.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    cached.transformer.blocks[1].attn1.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        found = latents_of(cached)
        # The first step of each run, with and without the prompt.
        assert len(calls) == 2
        calls.clear()
    assert not torch.allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("end", ["frames", "latent", "interrupt", "error"])
def test_a_cache_does_not_outlive_its_run(cached, end):
    """However a run ends, the next one, of another size, does not meet its leftovers."""
    cached.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))

    def stop(pipeline, *_):
        if end == "error":
            raise KeyboardInterrupt
        pipeline.interrupt = end == "interrupt"

    try:
        cached(**RUN, callback_on_step_end=stop, output_type="latent" if end == "latent" else "np")
    except KeyboardInterrupt:
        assert end == "error"
    other = {**RUN, "width": 160}
    assert cached(**other, generator=seed()).frames.shape == (1, 5, 96, 160, 3)


def test_a_lora_is_saved_and_loaded(pipe, changeable, tmp_path):
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    changeable.transformer.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False)
    )
    expected = latents_of(changeable)
    adapter = get_peft_model_state_dict(changeable.transformer)
    # The compressed branches' own updates are part of the model, not of the adapter.
    assert not any(".branches." in name for name in adapter)
    UltraGenPipeline.save_lora_weights(tmp_path, transformer_lora_layers=adapter)
    fresh = copy.deepcopy(pipe)
    plain = latents_of(fresh)
    fresh.load_lora_weights(tmp_path, adapter_name="style")
    assert fresh.get_list_adapters() == {"transformer": ["style"]}
    torch.testing.assert_close(latents_of(fresh), expected, rtol=1e-4, atol=1e-4)
    assert (expected - plain).abs().max() > 1e-2
    fresh.set_adapters("style", 0.0)
    torch.testing.assert_close(latents_of(fresh), plain, rtol=1e-4, atol=1e-4)
    fresh.unload_lora_weights()
    assert torch.equal(latents_of(fresh), plain)


def test_a_lora_of_the_original_names_is_loaded(changeable):
    """Published LoRAs of Wan name its parts as the authors did."""
    a, b = torch.randn(2, 64, generator=seed()), torch.randn(64, 2, generator=seed(1))
    key = "diffusion_model.blocks.{}.{}.lora_{}.weight"
    names = [f"{part}.{x}" for part in ("self_attn", "cross_attn") for x in "qkvo"]
    lora = {
        key.format(i, name, side): value.clone()
        for i in range(TINY_SIZE.layers)
        for name in names
        for side, value in (("A", a), ("B", b))
    }
    plain = latents_of(changeable)
    changeable.load_lora_weights(lora)
    adapted = changeable.transformer.blocks[1].attn1.to_q.lora_A["default_0"].weight
    assert torch.equal(adapted, a)
    assert (latents_of(changeable) - plain).abs().max() > 1e-2


# Folders


@pytest.fixture(scope="module")
def saved(built, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    built.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("part", ["text_encoder", "vae", "transformer", "base_transformer"])
@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen"])
def test_a_part_that_lacks_a_weight_is_refused(part, damage, saved, tmp_path):
    """Loaders alone would make one up, or stumble over it much later."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    [path] = (tmp_path / part).glob("*.safetensors")
    weights = load_file(path)
    name = next(key for key in sorted(weights) if weights[key].ndim > 1)
    if damage == "missing":
        del weights[name]
    elif damage == "unexpected":
        name = "stranger.weight"
        weights[name] = torch.zeros(1)
    else:
        weights[name] = weights[name][:-1].contiguous()
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{part} does not fit its config.json: {damage}") as error:
        UltraGenPipeline.from_pretrained(tmp_path)
    assert name in str(error.value)
    given = {part: getattr(UltraGenPipeline.from_pretrained(saved), part)}
    assert UltraGenPipeline.from_pretrained(tmp_path, **given)  # it is not taken from there


def test_a_folder_says_how_diffusers_loads_it(saved, tmp_path, monkeypatch):
    card = (saved / "README.md").read_text(encoding="utf-8")
    with pytest.raises(AttributeError):  # diffusers imports nothing of ours
        DiffusionPipeline.from_pretrained(saved)
    lines = card.split("```python\n")[2].split("```")[0]
    monkeypatch.setattr(diffusers, "UltraGenPipeline", None, raising=False)  # taken back at the end
    exec(lines, {})
    assert type(DiffusionPipeline.from_pretrained(saved)) is UltraGenPipeline
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert lines.splitlines()[-1] in readme
    assert (EMBEDDED_MODEL / "README.md").read_text(encoding="utf-8") == card
    # A page that is there stays.
    (tmp_path / "README.md").write_text("mine")
    UltraGenPipeline.from_pretrained(saved).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_memory_that_runs_out_says_what_takes_less(changeable, monkeypatch):
    def full(*arguments, **options):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(changeable.transformer, "forward", full)
    says = r"for 5 frames of 96 × 128: .* pipe\.enable_model_cpu_offload\(\)\. .* 20 GiB"
    with pytest.raises(torch.OutOfMemoryError, match=says):
        changeable(**RUN)
