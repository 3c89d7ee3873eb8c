"""Names of weights: those of every foreign file that is known, and what else a file may hold."""

from __future__ import annotations

import re

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from released_files import equal
from released_reference import TRUE, Sizes, released_shapes, released_weights
from safetensors.torch import save_file

from ultragen.weights.released import (
    load_dense,
    load_released,
    load_transformer,
    load_ultragen,
    save_released,
)


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


def test_all_dense_names_are_those_of_diffusers_converter():
    shapes = released_shapes(Sizes(**{**TRUE.__dict__, "full": tuple(range(30))}))
    meta = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    found = {key: x.shape for key, x in load_dense(meta).state_dict().items()}
    converted = convert_wan_transformer_to_diffusers({key: key for key in shapes})
    assert found == {ours: shapes[theirs] for ours, theirs in converted.items()}


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
        (("lycoris_blocks_0_self_attn_q.hada_w1_a",), "a LoRA"),
        (("blocks.0.self_attn.q.lokr_w1",), "a LoRA"),
        (("diffusion_model.blocks.0.self_attn.q.diff",), "a LoRA"),
        (("diffusion_model.blocks.0.self_attn.q.diff_b",), "a LoRA"),
        (("blocks.0.diff_m",), "a LoRA"),
        (("blocks.0.ffn.0.dora_scale",), "a LoRA"),
        (("blocks.0.ffn.0.a1.weight",), "a LoRA"),
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
