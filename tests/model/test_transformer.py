"""The transformer: conversion of a dense model, and what diffusers offers for Wan."""

from __future__ import annotations

import json
import pickle
import re
import weakref
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from diffusers import FirstBlockCacheConfig, TorchAoConfig, WanTransformer3DModel
from diffusers.models import modeling_utils
from diffusers.models.normalization import FP32LayerNorm
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from tiny import ULTRAGEN, inputs, randomise, tiny_pipeline, tiny_ultragen, tiny_wan

from ultragen.model import block as block_module
from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.ops import gradients
from ultragen.ops.dispatch import use
from ultragen.ops.modulation import modulated_norm
from ultragen.pipeline import UltraGenPipeline

GRID = (2, 6, 10)


@torch.no_grad()
def run(model: WanTransformer3DModel, arguments: dict, **extra) -> torch.Tensor:
    return model(**arguments, **extra).sample


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    return ((value - expected).norm() / expected.norm()).item()


# Training


def test_compiled_ends_of_blocks_give_the_same_outputs_and_gradients(monkeypatch):
    """One piece of code for all blocks and sizes, traced as a GPU's is, but without a compiler."""
    traced = {}

    def compiled(function):
        if function not in traced:
            options = {"backend": "aot_eager", "dynamic": True, "fullgraph": True}
            traced[function] = torch.compile(function, **options)
        return traced[function]

    monkeypatch.setattr(gradients, "_compiled", compiled)
    model = tiny_ultragen(num_layers=2)
    results = []
    for _ in range(2):
        model.zero_grad()
        outputs = [model(**inputs(grid, batch=2)).sample for grid in (GRID, (1, 8, 12))]
        sum(output.square().mean() for output in outputs).backward()
        results.append((outputs, [p.grad for p in model.parameters() if p.grad is not None]))
        for part in model.blocks:
            part.compile_for_training()
    assert set(traced) == {block_module.enter, block_module.leave}
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)
    pickle.loads(pickle.dumps(model))  # as a training that spawns processes does
    with torch.no_grad():  # where nothing is trained, the blocks are what they were
        monkeypatch.setattr(gradients, "_compiled", None)
        model(**inputs(GRID, batch=2))


# Conversion


def test_with_all_layers_full_it_is_the_dense_model():
    wan = tiny_wan(num_layers=3)
    model = UltraGenTransformer3DModel.from_wan(wan, full_attention_layers=(0, 1, 2), **ULTRAGEN)
    arguments = inputs(GRID, batch=2)
    torch.testing.assert_close(run(model, arguments), run(wan, arguments), rtol=1e-5, atol=1e-5)
    with use("plain"):
        assert torch.equal(run(model, arguments), run(wan, arguments))


@pytest.mark.parametrize("windows", [2, 4])
@pytest.mark.parametrize("grid", [(2, 8, 12), (2, 5, 7)], ids=["even", "uneven"])
def test_local_windows_alone_are_the_dense_model_on_each_crop(grid, windows):
    """Eq. 6-9: within a window the base weights do what they do on a small frame."""
    wan = tiny_wan(num_layers=3)
    model = UltraGenTransformer3DModel.from_wan(wan, branches=(), crossing="none", **ULTRAGEN)
    arguments = inputs(grid)
    whole = run(model, arguments, windows=windows)
    latents = arguments["hidden_states"]
    rows, columns = (torch.arange(length).tensor_split(windows) for length in grid[1:])
    for row in rows:
        for column in columns:
            pixels = (
                ...,
                slice(2 * int(row[0]), 2 * int(row[-1]) + 2),
                slice(2 * int(column[0]), 2 * int(column[-1]) + 2),
            )
            alone = run(wan, {**arguments, "hidden_states": latents[pixels].contiguous()})
            torch.testing.assert_close(whole[pixels], alone, rtol=1e-4, atol=1e-5)


def test_moved_windows_are_the_dense_model_on_each_of_them():
    """By half of one: 4 × 6 tokens and K = 2 give 1, 2 and 1 rows, and 1, 3 and 2 columns."""
    wan = tiny_wan(num_layers=1)
    model = UltraGenTransformer3DModel.from_wan(wan, branches=(), **ULTRAGEN)
    arguments = inputs((2, 4, 6))
    whole = run(model, arguments, windows=2, moved=True)
    latents = arguments["hidden_states"]
    for rows in (slice(0, 2), slice(2, 6), slice(6, 8)):
        for columns in (slice(0, 2), slice(2, 8), slice(8, 12)):
            pixels = (..., rows, columns)
            alone = run(wan, {**arguments, "hidden_states": latents[pixels].contiguous()})
            torch.testing.assert_close(whole[pixels], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [GRID, (1, 5, 7)], ids=["halves", "prime"])
def test_a_fresh_conversion_keeps_a_uniform_clip(grid):
    """On latents that are the same everywhere every branch gives what full attention gives: pooled,
    interpolated and fused, they are what they were."""
    wan = tiny_wan()
    model = UltraGenTransformer3DModel.from_wan(wan, **ULTRAGEN)
    arguments = inputs(grid)
    latents = arguments["hidden_states"]
    arguments["hidden_states"] = latents[..., :1, :1, :1].expand_as(latents).contiguous()
    torch.testing.assert_close(
        run(model, arguments, windows=2), run(wan, arguments), rtol=1e-4, atol=1e-5
    )
    randomise(model.blocks[0].attn1.branches)
    assert relative_error(run(model, arguments, windows=2), run(wan, arguments)) > 1e-2


def test_a_fresh_conversion_is_close_to_the_dense_model():
    wan = tiny_wan(num_layers=4)
    arguments = inputs((2, 8, 12))
    dense = run(wan, arguments)
    model = UltraGenTransformer3DModel.from_wan(wan, **ULTRAGEN)
    fresh = relative_error(run(model, arguments, windows=2), dense)
    for block in model.blocks:
        randomise(block.attn1.branches)
    assert 0 < fresh < 0.5 * relative_error(run(model, arguments, windows=2), dense)


def test_conversion_keeps_weights_and_type():
    wan = tiny_wan().bfloat16()
    model = UltraGenTransformer3DModel.from_wan(wan, **ULTRAGEN)
    assert model.dtype == torch.bfloat16
    weights = model.state_dict()
    for name, value in wan.state_dict().items():
        assert torch.equal(weights.pop(name), value), name
    assert weights and all(".attn1.branches." in name for name in weights)
    assert torch.isfinite(run(model, {k: v.bfloat16() for k, v in inputs(GRID).items()})).all()


def test_an_image_model_is_refused():
    wan = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=12, num_layers=1, ffn_dim=8, image_dim=8,
        text_dim=8, freq_dim=8, added_kv_proj_dim=12,
    )  # fmt: skip
    with pytest.raises(ValueError, match="text-to-video only"):
        UltraGenTransformer3DModel.from_wan(wan)


def test_layers_beyond_the_model_are_refused():
    with pytest.raises(ValueError, match=r"\[2, -1\] are not among 2 layers"):
        tiny_ultragen(full_attention_layers=(0, 2, -1))


# Layers that stay full, as in the released weights


def test_first_and_last_layer_full():
    wan = tiny_wan(num_layers=5)
    model = UltraGenTransformer3DModel.from_wan(wan, full_attention_layers=(0, 4), **ULTRAGEN)
    assert model.layer_kinds == ["full", "odd", "even", "odd", "full"]
    branched = {name.split(".")[1] for name in model.state_dict() if ".branches." in name}
    assert branched == {"1", "2", "3"}

    def after_first_block(transformer: WanTransformer3DModel) -> torch.Tensor:
        seen = []
        hook = transformer.blocks[0].register_forward_hook(lambda *call: seen.append(call[2]))
        run(transformer, inputs(GRID))
        hook.remove()
        return seen[0]

    # Absolute positions over the whole grid.
    expected = after_first_block(wan)
    torch.testing.assert_close(after_first_block(model), expected, rtol=1e-5, atol=1e-5)
    with use("plain"):
        assert torch.equal(after_first_block(model), expected)


# Windows at run time


def test_windows_are_chosen_at_run_time():
    model = tiny_ultragen(window_size=(3.0, 3.0))
    arguments = inputs((1, 12, 12))
    two, four = (run(model, arguments, windows=k) for k in (2, 4))
    assert relative_error(two, four) > 1e-3
    assert torch.equal(run(model, arguments, windows="auto"), four)
    assert torch.equal(run(model, arguments), four)


@pytest.mark.parametrize(
    "windows, hint",
    [(3, "Choose 2 or 4"), (6, "even number up to 4"), (0, "at least 2"), ("4", "whole number")],
)
def test_windows_that_do_not_fit_are_refused(windows, hint):
    with pytest.raises(ValueError, match=hint):
        run(tiny_ultragen(), inputs(GRID), windows=windows)


@pytest.mark.parametrize("shape", [(1, 4, 2, 13, 20), (1, 4, 2, 12, 21)], ids=["rows", "columns"])
def test_latents_that_patches_do_not_divide_are_refused(shape):
    arguments = {**inputs(GRID), "hidden_states": torch.zeros(shape)}
    with pytest.raises(ValueError, match="multiples"):
        run(tiny_ultragen(), arguments)


# What diffusers offers for Wan


@pytest.mark.parametrize("shard", ["10GB", "20KB"], ids=["one-file", "shards"])
def test_saving_and_loading(tmp_path, shard):
    model = tiny_ultragen(
        full_attention_layers=(0,), num_layers=3, crossing="shift", global_keys_from="query"
    )
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    loaded = UltraGenTransformer3DModel.from_pretrained(tmp_path)
    assert loaded.layer_kinds == model.layer_kinds
    weights = loaded.state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    arguments = inputs(GRID)
    # Not bit for bit: kernels differ with the alignment of the weights in memory.
    torch.testing.assert_close(run(loaded, arguments), run(model, arguments), rtol=1e-4, atol=1e-5)


def change_weights(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """Puts other tensors into the one file of a saved model; None takes one out."""
    path = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(path) | changes
    kept = {key: value for key, value in weights.items() if value is not None}
    save_file(kept, path, metadata={"format": "pt"})


@pytest.mark.parametrize("options", [{}, {"torch_dtype": torch.bfloat16}], ids=str)
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"proj_out.bias": None}, "missing (1): proj_out.bias. Take the weights that belong to"),
        ({"other": torch.zeros(2)}, "unexpected (1): other."),
        (
            {"proj_out.bias": torch.zeros(3), "scale_shift_table": torch.zeros(2, 24)},
            "misshapen (2): proj_out.bias is 3, not 16, scale_shift_table is 2 × 24, not 1 × 2 × ",
        ),
        (
            {"proj_out.weight": None, "other": torch.zeros(2), "proj_out.bias": torch.zeros(3)},
            "missing (1): proj_out.weight; unexpected (1): other; misshapen (1): proj_out.bias is",
        ),
    ],
    ids=["missing", "unexpected", "misshapen", "all"],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, changes, says, options):
    tiny_ultragen().save_pretrained(tmp_path)
    change_weights(tmp_path, changes)
    with pytest.raises(
        ValueError, match=re.escape(f"UltraGenTransformer3DModel: {says}")
    ) as caught:
        UltraGenTransformer3DModel.from_pretrained(tmp_path, **options)
    assert str(tmp_path) in str(caught.value)


def test_a_shard_without_some_of_its_weights_is_refused(tmp_path):
    tiny_ultragen().save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["proj_out.bias"]
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"missing \(1\): proj_out\.bias"):
        UltraGenTransformer3DModel.from_pretrained(tmp_path)


def test_a_pipeline_whose_transformer_does_not_fit_is_refused(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    change_weights(tmp_path / "transformer", {"proj_out.bias": None})
    with pytest.raises(ValueError, match=r"missing \(1\): proj_out\.bias"):
        UltraGenPipeline.from_pretrained(tmp_path)


def test_the_loaders_options_are_diffusers(tmp_path, monkeypatch):
    model = tiny_ultragen()
    model.save_pretrained(tmp_path / "transformer", variant="fp16")
    read = []
    load = modeling_utils.load_state_dict
    monkeypatch.setattr(
        modeling_utils, "load_state_dict", lambda *a, **b: (read.append(a), load(*a, **b))[1]
    )
    loaded, report = UltraGenTransformer3DModel.from_pretrained(
        tmp_path,
        subfolder="transformer",
        variant="fp16",
        torch_dtype=torch.bfloat16,
        low_cpu_mem_usage=True,
        device_map="cpu",
        local_files_only=True,
        output_loading_info=True,
    )
    assert len(read) == 1
    assert set(report) == {"missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"}
    assert not any(report.values()) and not loaded.training
    assert loaded.proj_out.weight.dtype == torch.bfloat16
    assert loaded.scale_shift_table.dtype == torch.float32
    assert torch.equal(loaded.proj_out.weight, model.proj_out.weight.bfloat16())


def test_weights_may_be_quantised_as_they_are_loaded(tmp_path):
    quantization = pytest.importorskip("torchao.quantization")
    tiny_ultragen().save_pretrained(tmp_path)
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig(version=2))
    options = {"quantization_config": config, "torch_dtype": torch.bfloat16}
    loaded = UltraGenTransformer3DModel.from_pretrained(tmp_path, **options)
    assert type(loaded.blocks[0].attn1.to_q.weight).__name__ == "Int8Tensor"
    change_weights(tmp_path, {"proj_out.bias": None})
    with pytest.raises(ValueError, match=r"missing \(1\): proj_out\.bias"):
        UltraGenTransformer3DModel.from_pretrained(tmp_path, **options)


def test_the_saved_configuration_is_the_constructors(tmp_path):
    """What is not an argument of the class would be ignored with a warning when it is loaded."""
    model = tiny_ultragen()
    model.save_pretrained(tmp_path)
    saved = UltraGenTransformer3DModel.load_config(tmp_path)
    _, unused, _ = UltraGenTransformer3DModel.extract_init_dict(saved)
    assert not unused


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_ultragen().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(**inputs(GRID, batch=2), windows=2).sample.square().sum().backward()
        assert model.gradient_checkpointing == checkpointing
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_attention_backends_agree():
    model, arguments, outputs = tiny_ultragen(full_attention_layers=(0,)), inputs(GRID), []
    try:
        for backend in ("native", "_native_math"):
            model.set_attention_backend(backend)
            processor = model.blocks[1].attn1.processor
            assert str(processor._attention_backend.value) == backend
            outputs.append(run(model, arguments, windows=2))
    finally:
        model.reset_attention_backend()
    assert model.blocks[1].attn1.processor._attention_backend is None
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


def test_first_block_cache():
    """A repeated call is answered from the cache, without the later blocks."""
    model, arguments = tiny_ultragen(num_layers=4), inputs(GRID)
    plain = run(model, arguments, windows=2)
    calls = []
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    model.blocks[2].attn1.register_forward_hook(lambda *_: calls.append(1))
    with model.cache_context("cond"):
        first, second = (run(model, arguments, windows=2) for _ in range(2))
    assert len(calls) == 1
    torch.testing.assert_close(first, plain)
    torch.testing.assert_close(second, plain, rtol=1e-4, atol=1e-5)
    model.disable_cache()
    assert torch.equal(run(model, arguments, windows=2), plain)


def test_an_adapter_and_its_scale():
    model, arguments = tiny_ultragen(), inputs(GRID)
    plain = run(model, arguments, windows=2)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    full = run(model, arguments, windows=2)
    assert relative_error(full, plain) > 1e-3
    half = run(model, arguments, windows=2, attention_kwargs={"scale": 0.5})
    none = run(model, arguments, windows=2, attention_kwargs={"scale": 0.0})
    torch.testing.assert_close(none, plain)
    assert 1e-3 < relative_error(half, plain) < relative_error(full, plain)
    model.disable_adapters()
    torch.testing.assert_close(run(model, arguments, windows=2), plain)


def test_half_precision_stays_close():
    model, arguments = tiny_ultragen(), inputs(GRID)
    expected = run(model, arguments, windows=2)
    model.bfloat16()
    out = run(model, {k: v.bfloat16() for k, v in arguments.items()}, windows=2)
    assert out.dtype == torch.bfloat16
    assert relative_error(out.float(), expected) < 0.1


def test_output_forms():
    model, arguments = tiny_ultragen(), inputs(GRID, batch=2)
    with torch.no_grad():
        output = model(**arguments)
        (sample,) = model(**arguments, return_dict=False)
    assert output.sample.shape == arguments["hidden_states"].shape
    assert torch.equal(output.sample, sample)


def patch_embeddings():
    """Wan's, and the same weights in ours."""
    torch.manual_seed(5)
    plain = torch.nn.Conv3d(5, 24, (1, 2, 2), (1, 2, 2))
    ours = torch.nn.Conv3d(5, 24, (1, 2, 2), (1, 2, 2))
    ours.load_state_dict(plain.state_dict())
    block_module.PatchEmbedding.take_over(ours)
    return plain, ours


def test_the_patch_embedding_is_wans_with_tokens_in_a_row():
    (plain, ours), x = patch_embeddings(), torch.randn(2, 5, 3, 6, 8)
    expected, found = plain(x), ours(x)
    torch.testing.assert_close(found, expected)
    assert found.flatten(2).transpose(1, 2).is_contiguous()
    assert not expected.flatten(2).transpose(1, 2).is_contiguous()
    gradients = [torch.autograd.grad(out.square().sum(), layer.weight) for out, layer in
                 ((expected, plain), (found, ours))]  # fmt: skip
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_the_patch_embedding_can_have_an_adapter():
    model, arguments = tiny_ultragen(), inputs(GRID)
    before = run(model, arguments, windows=2)
    config = LoraConfig(r=2, target_modules=["patch_embedding"], init_lora_weights=False)
    model.add_adapter(config)
    assert type(model.patch_embedding.base_layer) is block_module.PatchEmbedding
    after = run(model, arguments, windows=2)
    assert relative_error(after, before) > 1e-3
    with use("plain"):
        torch.testing.assert_close(after, run(model, arguments, windows=2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("affine", [False, True])
def test_the_last_norm_is_the_same_fused(affine):
    norm = FP32LayerNorm(16, eps=1e-6, elementwise_affine=affine)
    randomise(norm)
    x, scale, shift = torch.randn(2, 9, 16), torch.rand(2, 1, 16), torch.randn(2, 1, 16)
    with torch.no_grad():
        found = modulated_norm(norm, x, scale, shift)
    with use("plain"):
        expected = modulated_norm(norm, x, scale, shift)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("offloaded", ["blocks", "blocks.1"])
def test_layers_that_lie_on_a_disk(tmp_path, offloaded):
    """As `device_map` has it: accelerate 1.15.0 then moves whatever a module's call is given, and
    a module whose weights are on the disk can't be moved."""
    model, arguments = tiny_ultragen(), inputs(GRID)
    expected = run(model, arguments, windows=2)
    places = {name: "cpu" for name, _ in model.named_children() if name != "blocks"}
    places |= {"scale_shift_table": "cpu", offloaded: "disk"}
    if offloaded != "blocks":
        places["blocks.0"] = "cpu"
    dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    torch.testing.assert_close(run(model, arguments, windows=2), expected, rtol=1e-4, atol=1e-4)


def test_a_block_holds_no_tokens_that_are_used_up_beside_its_hidden_features(monkeypatch):
    """Those that the self-attention was given and gave, and those before and in the attention to
    the text: each takes 2 GiB for a 4K clip."""
    block, made, held = tiny_ultragen(cross_attn_norm=True).blocks[0].eval(), [], []
    real = block_module.sum_and_norm

    def watched(*given):
        found = real(*given)
        made.extend(map(weakref.ref, found))
        return found

    def attend(normed, *_):
        update = normed.cos()
        made.extend(map(weakref.ref, (normed, update)))
        return update

    monkeypatch.setattr(block_module, "sum_and_norm", watched)
    monkeypatch.setattr(block.attn1, "forward", attend)
    monkeypatch.setattr(block.attn2, "forward", lambda normed, *_: normed.sin())
    block.ffn.register_forward_pre_hook(lambda *_: held.extend(ref() for ref in made))
    with torch.no_grad():
        block(torch.randn(1, 5, 24), torch.randn(1, 2, 24), torch.randn(1, 6, 24), None)
    assert held == [None] * 4
