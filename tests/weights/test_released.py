"""Foreign weights: what is loaded, what comes out of it, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import warnings
import zipfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch
from commands import ultragen
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from released_reference import (
    TRUE,
    Sizes,
    released_forward,
    released_shapes,
    released_weights,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.model.wan_1_3b import RELEASED
from ultragen.training.build import TINY_SIZE, build_pipeline
from ultragen.weights.keys import TOLD
from ultragen.weights.read import read_weights
from ultragen.weights.released import (
    load_dense,
    load_released,
    load_transformer,
    load_ultragen,
    save_released,
)

DENSE = Sizes(layers=2, full=(0, 1))
SMALL = Sizes(dim=128, ffn=32, text=8, freq=32, rank=2, layers=3, full=(0,))


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return released_weights()


@pytest.fixture(scope="module")
def model(weights) -> UltraGenTransformer3DModel:
    return load_released(weights)


@pytest.fixture
def small() -> dict[str, Tensor]:
    """A released state dictionary that a test may change."""
    return released_weights(SMALL)


def inputs(grid: tuple[int, int, int], seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timesteps that bfloat16 does not hold, and text."""
    generator = torch.Generator().manual_seed(seed)
    t, h, w = grid
    latents = torch.randn((2, 4, t, 2 * h, 2 * w), generator=generator)
    text = torch.randn((2, 7, Sizes().text), generator=generator)
    return latents, torch.tensor([993.2, 431.7]), text


@torch.no_grad()
def run(model: WanTransformer3DModel, arguments: tuple[Tensor, Tensor, Tensor], **extra) -> Tensor:
    return model(*arguments, **extra).sample


def error(value: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return ((value.double() - expected).abs().max() / expected.abs().max()).item()


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a
    )


# What the released weights are


def test_the_true_layout_has_1881_keys_and_is_read_from_shapes_alone():
    shapes = released_shapes(TRUE)
    assert len(shapes) == 1881
    assert len(released_shapes(Sizes(layers=30, full=tuple(range(30))))) == 825
    meta = {key: torch.empty(s, device="meta", dtype=torch.bfloat16) for key, s in shapes.items()}
    model = load_released(meta)
    expected = {
        "num_layers": 30,
        "num_attention_heads": 12,
        "attention_head_dim": 128,
        "ffn_dim": 8960,
        "text_dim": 4096,
        "freq_dim": 256,
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": (1, 2, 2),
        "lora_rank": 64,
        "gate_dim": 1536,
        "full_attention_layers": (0, 1, 2, 27, 28, 29),
        "branches": ("hierarchical", "global"),
        "crossing": "grow",
        "uneven": "resize",
        "global_keys_from": "query",
        "timestep_dtype": "bfloat16",
        "eps": 1e-6,
    }
    assert {key: model.config[key] for key in expected} == expected
    assert model.resolve_windows("auto", 68, 120) == 4
    assert {key: value.shape for key, value in save_released(model).items()} == shapes


@pytest.mark.parametrize(
    "size",
    [SMALL, Sizes(dim=384, full=(1,), rank=3), Sizes(layers=2, full=(), channels=6, text=24)],
    ids=["three layers", "one full layer", "no full layer"],
)
def test_every_size_is_inferred(size):
    model = load_released(released_weights(size))
    config = model.config
    assert (config.num_layers, config.num_attention_heads) == (size.layers, size.dim // 128)
    assert (config.ffn_dim, config.text_dim, config.freq_dim) == (size.ffn, size.text, size.freq)
    assert (config.lora_rank, config.in_channels) == (size.rank, size.channels)
    assert config.full_attention_layers == size.full
    assert [kind == "full" for kind in model.layer_kinds] == [
        i in size.full for i in range(size.layers)
    ]


# The forward pass


GRIDS = [
    pytest.param((2, 12, 20), 4, id="whole"),
    pytest.param((2, 8, 12), 4, id="every axis resized, to more and to fewer"),
    pytest.param((1, 16, 28), 4, id="local up, hierarchical both ways"),
    pytest.param((1, 12, 28), 8, id="a tie goes down"),
    pytest.param((1, 17, 30), 4, id="a quarter of 1080p, which 4 does not divide"),
    pytest.param((1, 7, 9), 2, id="odd"),
]


@pytest.mark.parametrize("grid, windows", GRIDS)
def test_the_forward_is_the_authors(model, weights, grid, windows):
    arguments = inputs(grid)
    expected = released_forward(weights, *arguments, windows)
    assert error(run(model, arguments, windows=windows), expected) < 1e-5


@pytest.mark.slow
def test_the_forward_is_the_authors_at_1080p_proportions(model, weights):
    """Half of 68 × 120."""
    arguments = inputs((1, 34, 60))
    assert error(run(model, arguments, windows=4), released_forward(weights, *arguments)) < 1e-5


def error_in_bfloat16(size: Sizes, grid: tuple[int, int, int], windows: int) -> float:
    """Of weights and inputs that are so rounded, against float64 on the same."""
    weights = released_weights(size, dtype=torch.bfloat16)
    model = load_released(weights)
    assert model.dtype == torch.bfloat16
    latents, time, text = inputs(grid)
    arguments = (latents.bfloat16(), time, text.bfloat16())
    expected = released_forward(weights, *arguments, windows)
    return error(run(model, arguments, windows=windows), expected)


@pytest.mark.parametrize("grid, windows", GRIDS)
def test_in_bfloat16_too(grid, windows):
    assert error_in_bfloat16(Sizes(), grid, windows) < 2e-2


@pytest.mark.parametrize(
    "layers, full", [(1, ()), (2, (0,)), (2, ())], ids=["even layer", "odd layer", "both"]
)
@pytest.mark.parametrize("grid", [(1, 7, 9), (2, 5, 8), (3, 9, 6)], ids=str)
def test_layers_of_both_kinds_in_bfloat16_on_odd_grids(layers, full, grid):
    size = Sizes(dim=128, ffn=32, rank=2, layers=layers, full=full)
    assert error_in_bfloat16(size, grid, windows=2) < 2e-2


@pytest.mark.parametrize(
    "quirk",
    [
        {"global_keys_from": "key"},
        {"uneven": "split"},
        {"timestep_dtype": "float32"},
        {"crossing": "none"},
    ],
    ids=str,
)
def test_every_quirk_matters(model, weights, quirk):
    """Or else the comparison above would not tell whether it is kept."""
    other = UltraGenTransformer3DModel.from_config({**model.config, **quirk})
    other.load_state_dict(model.state_dict())
    arguments = inputs((2, 8, 12))
    expected = released_forward(weights, *arguments)
    assert error(run(other, arguments, windows=4), expected) > 3e-4


def test_an_unknown_precision_is_refused(small):
    config = {**load_released(small).config, "timestep_dtype": "float8"}
    with pytest.raises(ValueError, match=r"timestep_dtype must be float32 or bfloat16.*float8"):
        UltraGenTransformer3DModel.from_config(config)


@pytest.mark.parametrize("part", ["alpha_time_projection.1", "alpha_time_projection2.1"])
def test_the_gates_weigh_the_finer_side(weights, part):
    """Open gates leave the local branch alone, whatever the coarse ones hold."""
    opened = {
        key: torch.full_like(value, 50.0)
        if "alpha_time_projection" in key and key.endswith("bias")
        else value
        for key, value in weights.items()
    }
    arguments = inputs((1, 8, 12))
    local = run(load_released(opened), arguments, windows=4)
    branch = "_hierachcal" if part.endswith("2.1") else ""
    for key in opened:
        if f"upsample_conv{branch}." in key:
            opened[key] = opened[key] + 1
    torch.testing.assert_close(run(load_released(opened), arguments, windows=4), local)
    for key in opened:
        if key.endswith(f"{part}.bias"):
            opened[key] = -opened[key]
    assert error(run(load_released(opened), arguments, windows=4), local) > 1e-2


# There and back


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [None, "ultragen.ckpt", "ultragen.safetensors"])
def test_the_round_trip_keeps_every_bit(dtype, name, tmp_path):
    weights = released_weights(SMALL, dtype=dtype)
    if name is None:
        assert equal(save_released(load_released(weights)), weights)
        return
    path = tmp_path / name
    save_released(load_released(weights), path)
    assert equal(read_weights(path), weights)
    # The file that a model lies in can be written anew.
    save_released(load_released(path), path)
    assert equal(save_released(load_released(path)), weights)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_mixed_types_become_the_widest(small):
    mixed = {key: x if "norm" in key else x.bfloat16() for key, x in small.items()}
    saved = save_released(load_released(mixed))
    assert {x.dtype for x in saved.values()} == {torch.float32}
    assert all(torch.equal(saved[key], mixed[key].float()) for key in mixed)


def test_a_legacy_file_and_a_repackaged_one(small, tmp_path):
    path = tmp_path / "old.pth"
    torch.save(small, path, _use_new_zipfile_serialization=False)
    assert equal(save_released(load_released(path)), small)


@pytest.mark.parametrize(
    "prefix", ["diffusion_model.", "model.diffusion_model.", "model.", "module.", "_orig_mod."]
)
def test_prefixes_of_all_keys(small, prefix):
    packed = {f"{prefix}{key}": value for key, value in small.items()}
    assert equal(save_released(load_released(packed)), small)


def test_one_key_with_two_prefixes(small):
    key = "blocks.1.self_attn.q.weight"
    small[f"model.{key}"] = small[key] + 1
    with pytest.raises(ValueError, match=rf"{key} twice, as {key} and as model\.{key}: take out"):
        load_released(small)


def test_only_the_released_settings_can_be_saved(model, small):
    config = {**load_released(small).config, "uneven": "split"}
    with pytest.raises(ValueError, match=r"uneven.*split.*save_pretrained"):
        save_released(UltraGenTransformer3DModel.from_config(config))
    for changes in (
        {"eps": 1e-5},
        {"rope_max_seq_len": 512},
        {"eps": 1e-5, "rope_max_seq_len": 2048},
        {"window_size": (8.0, 8.0)},
        {"attention_head_dim": 64, "num_attention_heads": 2},
        {"out_channels": 2},
    ):
        # Not by `from_config`, which takes what was a default for one still.
        known = {k: v for k, v in load_released(small).config.items() if not k.startswith("_")}
        other = UltraGenTransformer3DModel(**{**known, **changes})
        with pytest.raises(ValueError, match="save the model with `save_pretrained`") as caught:
            save_released(other)
        assert all(f"'{key}': " in str(caught.value) for key in changes.keys() - TOLD)
    dense = {**load_released(small).config, "full_attention_layers": (0, 1, 2)}
    with pytest.raises(ValueError, match=r"full attention in all layers.*save_pretrained"):
        save_released(UltraGenTransformer3DModel.from_config(dense))
    config = {**load_released(small).config, "lora_rank": 0}
    with pytest.raises(ValueError, match=r"missing \(48\): blocks\.1\.attn1\.branches\.global"):
        save_released(UltraGenTransformer3DModel.from_config(config))


def test_what_is_saved_comes_back_with_all_settings(small, tmp_path):
    """Whatever the defaults are that it was made with."""
    config = {"num_layers": 3, "num_attention_heads": 1, "ffn_dim": 32, "text_dim": 8}
    config |= {"lora_rank": 2, "full_attention_layers": (1,), "gate_init": 0.5}
    model = UltraGenTransformer3DModel(**{**RELEASED, **config})
    save_released(model, tmp_path / "model.safetensors")
    back = load_released(tmp_path / "model.safetensors")
    assert equal(back.state_dict(), model.state_dict())
    made = {"gate_dim": 128, "gate_init": 0.75}  # told by shapes; told by the gates' weights
    assert dict(back.config) == {**model.config, **made, "_use_default_values": ANY}


# Dense Wan, folders, shards


def dense_weights(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return released_weights(DENSE, dtype=dtype)


@pytest.mark.parametrize("name", ["Wan2.1.pth", "Wan2.1.safetensors"])
def test_the_original_file_gives_diffusers_weights(name, tmp_path):
    path = tmp_path / name
    weights = dense_weights(torch.bfloat16)
    (save_file if path.suffix == ".safetensors" else torch.save)(weights, path)
    wan = load_dense(path)
    assert type(wan) is WanTransformer3DModel
    assert wan.config.num_attention_heads == 2
    assert equal(wan.state_dict(), convert_wan_transformer_to_diffusers(dict(weights)))


def test_all_dense_names_are_those_of_diffusers_converter():
    shapes = released_shapes(Sizes(**{**TRUE.__dict__, "full": tuple(range(30))}))
    meta = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    found = {key: x.shape for key, x in load_dense(meta).state_dict().items()}
    converted = convert_wan_transformer_to_diffusers({key: key for key in shapes})
    assert found == {ours: shapes[theirs] for ours, theirs in converted.items()}


def sharded(weights: dict[str, Tensor], folder: Path, shards: int = 3) -> Path:
    """Writes the index and the shards of a model, as the large Wan models come."""
    folder.mkdir(exist_ok=True)
    keys, files = sorted(weights), {}
    for i in range(shards):
        name = f"diffusion_pytorch_model-{i + 1:05}-of-{shards:05}.safetensors"
        part = keys[i::shards]
        save_file({key: weights[key] for key in part}, folder / name)
        files |= dict.fromkeys(part, name)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    return index


def test_shards_need_their_index(small, tmp_path):
    index = sharded(small, tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    with pytest.raises(ValueError, match=rf"one of the model's 3 shards: choose.*{index.name}, or"):
        load_released(shards[0])
    index.unlink()
    for path in shards:  # all of them, and then one alone
        with pytest.raises(FileNotFoundError, match=rf"without their index, {index.name}: get"):
            load_released(tmp_path)
        if path != shards[-1]:
            path.unlink()
    whole = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(small, whole)  # beside which the last shard is a leftover
    assert equal(save_released(load_released(tmp_path)), small)


def test_shards_are_put_together(small, tmp_path):
    index = sharded(small, tmp_path / "released")
    for source in (index, index.parent, str(index.parent)):
        assert equal(save_released(load_released(source)), small)


def test_an_original_wan_folder(tmp_path):
    """Its config.json is not diffusers', and other weights lie beside the transformer's."""
    weights = dense_weights()
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "Wan2.1_VAE.pth")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "WanModel", "dim": 256}))
    expected = load_dense(weights).state_dict()
    assert equal(load_dense(tmp_path).state_dict(), expected)


@pytest.mark.parametrize("max_shard_size", ["10GB", "500KB"])
def test_diffusers_folders_of_both_kinds(small, tmp_path, max_shard_size):
    released, dense = load_released(small), load_dense(dense_weights())
    for kind, model in (("ultragen", released), ("dense", dense)):
        model.save_pretrained(tmp_path / kind / "transformer", max_shard_size=max_shard_size)
    assert (max_shard_size == "500KB") == any(tmp_path.rglob("*.index.json"))
    ultragen = load_ultragen(tmp_path / "ultragen" / "transformer")
    assert equal(save_released(ultragen), small)
    # A whole pipeline's folder.
    (tmp_path / "dense" / "model_index.json").write_text("{}")
    assert equal(load_dense(tmp_path / "dense").state_dict(), dense.state_dict())
    with pytest.raises(ValueError, match="is UltraGen, where dense Wan is needed"):
        load_dense(tmp_path / "ultragen" / "transformer")
    with pytest.raises(ValueError, match="dense Wan without UltraGen's branches: take ultragen_"):
        load_ultragen(tmp_path / "dense")
    with pytest.raises(ValueError, match="dense Wan without UltraGen's branches"):
        load_released(dense_weights())


def test_a_folder_with_a_missing_weight_is_not_filled_with_noise(small, tmp_path):
    load_released(small).save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    kept = load_file(path)
    del kept["proj_out.bias"]
    save_file(kept, path)
    with pytest.raises(ValueError, match=r"does not fit.*missing \(1\): proj_out\.bias"):
        load_ultragen(tmp_path)


# What does not fit


def test_missing_unexpected_and_misshapen_keys_are_listed_together(small):
    del small["blocks.2.self_attn.upsample_conv_hierachcal.bias"]
    del small["head.modulation"]
    small["blocks.1.ffn.4.weight"] = torch.zeros(3)
    small["blocks.2.ffn.0.weight"] = torch.zeros(16, 128)
    small["blocks.1.self_attn.downsample_conv.weight"] = torch.zeros(128, 1, 2, 2)
    with pytest.raises(ValueError) as caught:
        load_released(small)
    text = str(caught.value)
    for part in (
        "The state dictionary does not fit",
        "missing (2): head.modulation, blocks.2.self_attn.upsample_conv_hierachcal.bias",
        "unexpected (1): blocks.1.ffn.4.weight",
        "misshapen (2): blocks.1.self_attn.downsample_conv.weight is 128 × 1 × 2 × 2, "
        "not 128 × 1 × 4 × 4, blocks.2.ffn.0.weight is 16 × 128, not 32 × 128",
    ):
        assert part in text


def test_every_single_missing_key_is_named():
    weights = released_weights(replace(SMALL, layers=2))
    for key in weights:
        rest = {name: value for name, value in weights.items() if name != key}
        with pytest.raises(ValueError, match=rf"missing \(1\): {re.escape(key)}\b"):
            load_released(rest)


def test_a_long_list_is_cut(weights):
    rest = {key: x for key, x in weights.items() if ".cross_attn." not in key}
    with pytest.raises(ValueError, match=r"missing \(50\): blocks.0.cross_attn.norm_q.*bias\.$"):
        load_released(rest)
    del rest["blocks.1.norm3.bias"]
    with pytest.raises(ValueError, match=r"missing \(51\): blocks.0.cross_attn.* and 1 more\."):
        load_released(rest)


@pytest.mark.parametrize(
    "stray, missing", [("blocks.30000.norm3.bias", 5), ("blocks.6.self_attn.q_lora_1.x", 5)]
)
def test_a_stray_layer_is_named_without_a_model_of_that_depth(weights, stray, missing):
    layer = stray.split(".")[1]
    says = rf"has 6 layers, among them blocks\.{layer}, but no blocks\.{missing}\."
    for load in (load_released, load_transformer):
        with pytest.raises(ValueError, match=says):
            load({**weights, stray: torch.zeros(256)})


def test_a_layer_that_is_missing_is_named(weights):
    rest = {key: x for key, x in weights.items() if not key.startswith(("blocks.1.", "blocks.2."))}
    with pytest.raises(ValueError, match=r"3 layers, among them blocks\.3, but no blocks\.1\."):
        load_released(rest)


@pytest.mark.parametrize(
    "change, says",
    [
        (
            {"patch_embedding.weight": (128, 4, 2)},
            "no patch_embedding.weight with 5 axes, but one that is 128 × 4 × 2, and it tells",
        ),
        (
            {"patch_embedding.weight": ()},
            "no patch_embedding.weight with 5 axes, but one that is a",
        ),
        (
            {"text_embedding.0.weight": ()},
            "no text_embedding.0.weight with 2 axes, but one that is",
        ),
        (
            {"patch_embedding.weight": (128, 4, 0, 2, 2)},
            "patch_embedding.weight is 128 × 4 × 0 × 2 × 2, and no axis may be empty",
        ),
        (
            {"blocks.1.self_attn.q_lora_1.lora_A.weight": (0, 128)},
            "blocks.1.self_attn.q_lora_1.lora_A.weight is 0 × 128, and no axis may be empty",
        ),
        ({"head.head.weight": (0, 128)}, "head.head.weight is 0 × 128, and no axis may be empty"),
        (
            {"blocks.1.self_attn.q.weight": ()},
            "blocks.1.self_attn.q.weight is a scalar, not 128 × 128",
        ),
        ({"head.modulation": ()}, "head.modulation is a scalar, not 1 × 2 × 128"),
        ({"patch_embedding.weight": (128, 36, 1, 2, 2)}, "36 channels go in and 4 come out"),
        ({"head.head.bias": (17,)}, "head.head.bias is 17, not 16"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_shapes_that_no_model_has(small, change, says):
    small |= {key: torch.zeros(shape) for key, shape in change.items()}
    with pytest.raises(ValueError, match=re.escape(says)):
        load_released(small)


def test_heads_are_of_128_features():
    with pytest.raises(ValueError, match="width of 192 can't be cut into heads of 128"):
        load_released(released_weights(Sizes(dim=192, layers=2, full=())))


@pytest.mark.parametrize(
    "keys, says",
    [
        (("conditioner.embedders.0.x", "model.diffusion_model.input_blocks.0.0.weight"), "XL"),
        (("down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"), "a Stable Diffusion UNet"),
        (("add_embedding.linear_1.weight", "mid_block.x"), "Stable Diffusion XL"),
        (("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.x"), "Flux"),
        (("transformer_blocks.0.x", "single_transformer_blocks.0.x"), "Flux"),
        (("transformer_blocks.0.attn1.to_q.weight",), "another video or image transformer"),
        (("diffusion_model.blocks.0.self_attn.q.lora_A.weight",), "a LoRA: `pipe.load_lora"),
        (("lora_unet_blocks_0_self_attn_q.lora_down.weight",), "a LoRA"),
        (("blocks.0.self_attn.q.weight", "img_emb.proj.0.weight"), "conditioned on images"),
        (("blocks.0.cross_attn.k_img.weight",), "conditioned on images"),
        (("vace_blocks.0.before_proj.weight", "blocks.0.modulation"), "conditioned on images"),
        (("encoder.conv1.weight", "decoder.middle.0.x", "conv1.weight"), "a VAE"),
        (("encoder.conv_in.weight", "quant_conv.weight"), "a VAE"),
        (("token_embedding.weight", "blocks.0.attn.q.weight"), "a text or image encoder"),
        (("shared.weight", "encoder.block.0.layer.0.x"), "a text or image encoder"),
        (("condition_embedder.time_proj.weight",), "diffusers' Wan: take its folder"),
        (("layers.0.weight", "layers.1.weight"), "no Wan or UltraGen.*holds layers.0.weight"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_another_model_is_named(keys, says, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({key: torch.zeros(2) for key in keys}, path)
    for load in (load_released, load_dense, load_ultragen):
        with pytest.raises(ValueError, match=says) as caught:
            load(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "config, says",
    [
        ({"_class_name": "FluxTransformer2DModel"}, "holds FluxTransformer2DModel, not one of"),
        ({"architectures": ["UMT5EncoderModel"]}, "holds .*UMT5EncoderModel"),
        ({"_class_name": "WanTransformer3DModel", "image_dim": 1280}, "conditioned on images"),
    ],
    ids=["flux", "text encoder", "image-to-video"],
)
def test_a_folder_of_another_model_is_named(config, says, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=says):
        load_transformer(tmp_path)


# Files


class Code:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def save_zip(content: object, path: Path, protocol: int) -> None:
    torch.save(content, path, pickle_protocol=protocol)


def save_legacy(content: object, path: Path, protocol: int) -> None:
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)


def save_pickle(content: object, path: Path, protocol: int) -> None:
    path.write_bytes(pickle.dumps(content, protocol=protocol))


REFUSED = r"only weights are loaded.*could run code, so it is refused; take the \.safetensors file"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("save", [save_zip, save_legacy, save_pickle])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, small, save, protocol):
    path, made = tmp_path / "ultragen.ckpt", tmp_path / "made"
    tensors = {} if save is save_pickle else small
    save({**tensors, "a": Code(made), "b": Code(made)}, path, protocol)
    with pytest.raises(ValueError, match=rf"holds code \(posix\.mkdir\), and {REFUSED}"):
        load_released(path)
    assert not made.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_weights_in_a_protocol_that_can_not_be_checked(tmp_path, small, save, protocol):
    path = tmp_path / "ultragen.ckpt"
    save(small, path, protocol)
    if protocol in (2, 3):
        assert equal(save_released(load_released(path)), small)
        return
    named = protocol if protocol > 1 else 0  # what came before 2 has no number in the file
    with pytest.raises(ValueError, match=rf"with protocol {named}, which.*saved by torch\.save"):
        load_released(path)
    # Where it is cut off within the pickle, nothing tells that it is one.
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises((OSError, ValueError), match=r"incomplete or damaged|with protocol"):
        load_released(path)


def test_a_torchscript_program_is_named(tmp_path):
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"is a TorchScript program.*take the \.safetensors"):
            load_released(path)


@pytest.mark.parametrize("members", [["a.txt", "b/c.txt"], []], ids=["files", "empty"])
def test_another_zip_archive_is_no_checkpoint(tmp_path, members):
    path = tmp_path / "model.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in members:
            archive.writestr(name, "text")
    holds = ", ".join(members) or "nothing"
    with pytest.raises(ValueError, match=rf"zip archive, but no PyTorch.*\(it holds {holds}\): ch"):
        load_released(path)


def test_a_whole_pickled_model_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match=r"torch\.nn\.modules\.linear\.Linear.*refused"):
        load_released(path)


@pytest.mark.parametrize(
    "content, says",
    [
        ({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, r"more than tensors \(state_dict, ep"),
        ({0: torch.zeros(1)}, "more than tensors"),
        ([torch.zeros(1)], "no state dictionary, but list"),
        ({}, "no state dictionary"),
        ({"a": torch.zeros(2, dtype=torch.int8)}, r"quantised weights \(int8\): take the bfloat16"),
        ({"a": torch.zeros(2).to(torch.float8_e4m3fn)}, r"quantised weights \(float8_e4m3fn\)"),
    ],
    ids=["nested", "numbers", "list", "empty", "int8", "float8"],
)
def test_a_file_of_other_things(content, says, tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=says):
        load_released(path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt", "old.pth"])
@pytest.mark.parametrize("kept", [0.9, 0.2, 0.001])
def test_half_a_download(small, tmp_path, name, kept):
    path = tmp_path / name
    if name.endswith("safetensors"):
        save_file(small, path)
    else:
        torch.save(small, path, _use_new_zipfile_serialization=name != "old.pth")
    size = int(kept * path.stat().st_size)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(OSError, match=rf"{name} is incomplete or damaged \({size:,} bytes"):
        load_released(path)


@pytest.mark.parametrize(
    "start, says",
    [
        (b"", "is empty: download it again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!doctype html><title>Access to model is restricted", "download was refused"),
        (b'{"error": "Invalid credentials"}', "download was refused"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"PK\x03\x04 not a checkpoint at all", "incomplete or damaged"),
        (b"\x80\x02}garbage", "incomplete or damaged"),
        (b"\x00" * 64, "incomplete or damaged"),
    ],
    ids=["empty", "pointer", "page", "message", "gguf", "zip", "pickle", "zeros"],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_what_is_no_weights_file(start, says, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(start)
    with pytest.raises((OSError, ValueError), match=says):
        load_released(path)


def test_a_picture_is_no_weights_file(tmp_path):
    path = tmp_path / "page.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0" * 8)
    with pytest.raises(ValueError, match=r"no weights file: choose a \.safetensors"):
        load_released(path)


def test_a_shard_is_missing_or_short(small, tmp_path):
    index = sharded(small, tmp_path / "model")
    shard = sorted(index.parent.glob("*.safetensors"))[1]
    content = load_file(shard)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 of 3 files are missing \({shard.name}\)"):
        load_released(index.parent)
    gone = content.popitem()[0]
    save_file(content, shard)
    with pytest.raises(OSError, match=f"1 of the tensors .* such as {re.escape(gone)}"):
        load_released(index)
    for text, says in (("{}", "no weight_map"), ("[]", "no object"), ('{"weight', "corrupt")):
        index.write_text(text)
        with pytest.raises(OSError, match=says):
            load_released(index)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "weight_map is null, not dict[str, str]"),
        (["a"], 'weight_map is ["a"], not dict[str, str]'),
        ({"a": 3}, 'weight_map is {"a": 3}, not dict[str, str]'),
    ],
    ids=str,
)
def test_an_index_that_names_no_files(small, tmp_path, content, says):
    index = sharded(small, tmp_path)
    index.write_text(json.dumps({"weight_map": content}))
    with pytest.raises(OSError, match=re.escape(says)) as caught:
        load_released(tmp_path)
    assert str(index) in str(caught.value) and "download the model again" in str(caught.value)


@pytest.mark.parametrize("kind", ["ultragen", "dense"])
@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("num_layers", None, "num_layers is null, not int"),
        ("num_layers", "3", 'num_layers is "3", not int'),
        ("num_layers", True, "num_layers is true, not int"),
        ("patch_size", 2, "patch_size is 2, not tuple[int, "),
        ("patch_size", [1, "2", 2], 'patch_size is [1, "2", 2], not tuple[int, '),
        ("eps", "small", 'eps is "small", not float'),
        ("ffn_dim", -1, "config.json is corrupt: "),  # what no type tells
    ],
    ids=str,
)
def test_a_damaged_config_names_the_field(small, tmp_path, kind, field, value, says):
    model = load_released(small) if kind == "ultragen" else load_dense(dense_weights())
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises((OSError, ValueError), match=re.escape(says)) as caught:
        load_transformer(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_folders_without_one_model(small, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no weights file"):
        load_released(tmp_path / "nothing.ckpt")
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        load_released(tmp_path)
    (tmp_path / "ultragen_1080p.ckpt.incomplete").touch()
    with pytest.raises(OSError, match="half a download"):
        load_released(tmp_path)
    torch.save(small, tmp_path / "a.ckpt")
    assert equal(save_released(load_released(tmp_path)), small)
    torch.save(small, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"several models \(a\.ckpt, b\.ckpt\): name one"):
        load_released(tmp_path)
    # Safetensors come first.
    save_file(small, tmp_path / "c.safetensors")
    assert equal(save_released(load_released(tmp_path)), small)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(OSError, match=r"config\.json is corrupt"):
        load_transformer(tmp_path)


# The command


def test_convert(small, tmp_path, capsys):
    source, out = tmp_path / "ultragen_1080p.ckpt", tmp_path / "models" / "ultragen"
    torch.save(small, source)
    assert ultragen("convert", source, out) == 0
    assert "3 layers, 2 with UltraGen's branches\n" in capsys.readouterr().out
    loaded = UltraGenTransformer3DModel.from_pretrained(out)
    assert equal(save_released(loaded), small)
    assert loaded.config.timestep_dtype == "bfloat16"
    assert ultragen("convert", source, out) == 1
    assert "already holds config.json" in capsys.readouterr().err
    # Shards of an earlier model don't stay.
    (out / "diffusion_pytorch_model-00001-of-00002.safetensors").touch()
    assert ultragen("convert", source, out, "--overwrite") == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    # Our own folder again.
    assert ultragen("convert", out, tmp_path / "again") == 0
    assert equal(save_released(load_ultragen(tmp_path / "again")), small)


def test_convert_makes_a_start_for_training_of_dense_wan(tmp_path, capsys):
    save_file(dense_weights(), tmp_path / "wan.safetensors")
    assert ultragen("convert", tmp_path / "wan.safetensors", tmp_path / "out") == 0
    assert "2 with UltraGen's branches, which are untrained" in capsys.readouterr().out
    model = load_ultragen(tmp_path / "out")
    assert model.layer_kinds == ["even", "odd"]
    assert torch.equal(model.proj_out.weight, dense_weights()["head.head.weight"])


def test_convert_refuses_in_one_line(small, tmp_path, capsys):
    source = tmp_path / "in" / "model.ckpt"
    source.parent.mkdir()
    torch.save({"a": Code(tmp_path / "made")}, source)
    for arguments, says, code in (
        ((source, tmp_path / "out"), "refused", 2),
        ((source, source.parent), "choose another folder", 2),
        ((tmp_path / "nothing", tmp_path / "out"), "There is no weights file", 1),
    ):
        assert ultragen("convert", *arguments) == code
        printed = capsys.readouterr()
        assert says in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert not (tmp_path / "out").exists()
    assert [path.name for path in source.parent.iterdir()] == ["model.ckpt"]
    shutil.rmtree(source.parent)


# The pipeline


@torch.no_grad()
def test_the_pipeline_samples_as_the_authors_do():
    """σ_i = 1 − i/30 shifted by 5, Euler, guidance 5; prompts cleaned, 512 tokens, padding zero."""
    torch.manual_seed(0)
    pipe = build_pipeline(TINY_SIZE, ("a", "calm", "lake", "the", "sea", "&", "sky"))
    size = Sizes(dim=128, ffn=32, text=TINY_SIZE.text_dim, channels=TINY_SIZE.z_dim, layers=2)
    weights = released_weights(Sizes(**{**size.__dict__, "full": (0,)}))
    pipe.transformer = load_released(weights)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    pipe.register_to_config(max_sequence_length=512, prediction="velocity", solver_order=1)
    pipe.tokenizer.model_max_length = 512
    pipe.set_progress_bar_config(disable=True)
    pipe.text_encoder.eval()

    def embed(words: str) -> Tensor:
        ids = torch.tensor([pipe.tokenizer(words).input_ids])
        hidden = pipe.text_encoder(ids).last_hidden_state
        return torch.cat([hidden, hidden.new_zeros(1, 512 - ids.shape[1], hidden.shape[2])], dim=1)

    sigmas = [1 - i / 30 for i in range(30)]
    sigmas = [5 * s / (1 + 4 * s) for s in sigmas] + [0.0]
    noise = torch.randn((1, TINY_SIZE.z_dim, 1, 8, 10), generator=torch.Generator().manual_seed(2))
    x, positive, negative = noise.double(), embed("a calm lake & sky"), embed("the sea")
    for sigma, following in pairwise(sigmas):
        time = torch.tensor([1000 * sigma])
        towards, away = (
            released_forward(weights, x, time, text, windows=2) for text in (positive, negative)
        )
        x = x + (following - sigma) * (away + 5 * (towards - away))

    found = pipe(
        "  a calm  lake &amp;amp; sky\n",
        negative_prompt="the sea",
        height=128,
        width=160,
        num_frames=1,
        windows=2,
        num_inference_steps=30,
        guidance_scale=5.0,
        latents=noise,
        output_type="latent",
    ).frames
    assert error(found, x) < 1e-3
