"""Foreign weights: what is loaded, what is saved, and what does not fit."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from unittest.mock import ANY

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from released_files import SMALL, dense_weights, equal
from released_reference import TRUE, Sizes, released_shapes, released_weights
from safetensors.torch import load_file, save_file

from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.model.wan_1_3b import RELEASED
from ultragen.weights.keys import TOLD
from ultragen.weights.read import read_weights
from ultragen.weights.released import (
    load_dense,
    load_released,
    load_transformer,
    load_ultragen,
    save_released,
)


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


@pytest.mark.parametrize("name", ["Wan2.1.pth", "Wan2.1.safetensors"])
def test_the_original_file_gives_diffusers_weights(name, tmp_path):
    path = tmp_path / name
    weights = dense_weights(torch.bfloat16)
    (save_file if path.suffix == ".safetensors" else torch.save)(weights, path)
    wan = load_dense(path)
    assert type(wan) is WanTransformer3DModel
    assert wan.config.num_attention_heads == 2
    assert equal(wan.state_dict(), convert_wan_transformer_to_diffusers(dict(weights)))


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
