"""The names that foreign files give to weights, and what names and shapes tell of a model.

The only file that knows foreign key names. The tables map each original name to ours; diffusers'
own converter goes that way only, and the files that are written need the way back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from math import prod
from statistics import mode
from typing import Any

from ..model.strict_loading import shape_text
from ..model.wan_1_3b import HEAD_DIM, RELEASED
from ..presets import TEXT_ENCODER_VARIABLE

Shapes = Mapping[str, tuple[int, ...]]


def _both(modules: Mapping[str, str]) -> dict[str, str]:
    """The weight and the bias of every module."""
    return {
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in modules.items()
        for kind in ("weight", "bias")
    }


# Outside the layers.
_MODEL = {
    "head.modulation": "scale_shift_table",
    **_both(
        {
            "patch_embedding": "patch_embedding",
            "text_embedding.0": "condition_embedder.text_embedder.linear_1",
            "text_embedding.2": "condition_embedder.text_embedder.linear_2",
            "time_embedding.0": "condition_embedder.time_embedder.linear_1",
            "time_embedding.2": "condition_embedder.time_embedder.linear_2",
            "time_projection.1": "condition_embedder.time_proj",
            "head.head": "proj_out",
        }
    ),
}

# In every layer, below `blocks.N.`. Wan's numbering of the norms is not diffusers'.
_LAYER = {
    "modulation": "scale_shift_table",
    **{
        f"{theirs}.norm_{part}.weight": f"{ours}.norm_{part}.weight"
        for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for part in "qk"
    },
    **_both(
        {
            f"{theirs}.{part}": f"{ours}.to_{'out.0' if part == 'o' else part}"
            for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
            for part in "qkvo"
        }
    ),
    **_both({"norm3": "norm2", "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2"}),
}

# What UltraGen adds to the layers that are not full.
_BRANCHES = _both(
    {
        f"self_attn.{theirs}": f"attn1.branches.{ours}"
        for branch, update, gate, convolution in (
            ("global", "1", "", ""),
            # Gate 2 weighs local against hierarchical, gate 1 the two against global; "hierachcal"
            # is the authors' spelling.
            ("hierarchical", "2", "2", "_hierachcal"),
        )
        for theirs, ours in {
            **{
                f"{part}_lora_{update}.lora_{side}": f"{branch}.lora_{part}.lora_{side}"
                for part in "qkv"
                for side in "AB"
            },
            f"alpha_time_embedding{gate}.0": f"{branch}.gate.embedding.0",
            f"alpha_time_embedding{gate}.2": f"{branch}.gate.embedding.2",
            f"alpha_time_projection{gate}.1": f"{branch}.gate.projection.1",
            f"downsample_conv{convolution}": f"{branch}.compression",
            f"upsample_conv{convolution}": f"{branch}.decompression",
        }.items()
    }
)

# Setting: the weight whose shape tells it, how many axes that has, and which of them it is.
_SIZES = {
    "in_channels": ("patch_embedding.weight", 5, 1),
    "text_dim": ("text_embedding.0.weight", 2, 1),
    "freq_dim": ("time_embedding.0.weight", 2, 1),
    "ffn_dim": ("ffn.0.weight", 2, 0),
}
_BRANCH_SIZES = {
    "lora_rank": ("self_attn.q_lora_1.lora_A.weight", 2, 0),
    "gate_dim": ("self_attn.alpha_time_embedding.0.weight", 2, 0),
}

# umT5's word embeddings: one tensor under two names, of which files hold either or both.
WORD_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")

# What llama.cpp calls the parts of umT5's encoder, as city96's GGUF files have them (ComfyUI-GGUF,
# `loader.py`), and what Wan's authors call them (`wan/modules/t5.py`); ours is transformers' name.
_UMT5_MODEL = {
    "shared": ("token_embd", "token_embedding"),
    "encoder.final_layer_norm": ("enc.output_norm", "norm"),
}
_UMT5_LAYER = {
    "layer.0.layer_norm": ("attn_norm", "norm1"),
    "layer.0.SelfAttention.q": ("attn_q", "attn.q"),
    "layer.0.SelfAttention.k": ("attn_k", "attn.k"),
    "layer.0.SelfAttention.v": ("attn_v", "attn.v"),
    "layer.0.SelfAttention.o": ("attn_o", "attn.o"),
    "layer.0.SelfAttention.relative_attention_bias": ("attn_rel_b", "pos_embedding.embedding"),
    "layer.1.layer_norm": ("ffn_norm", "norm2"),
    "layer.1.DenseReluDense.wi_0": ("ffn_gate", "ffn.gate.0"),
    "layer.1.DenseReluDense.wi_1": ("ffn_up", "ffn.fc1"),
    "layer.1.DenseReluDense.wo": ("ffn_down", "ffn.fc2"),
}
_UMT5_LAYERS = ("enc.blk", "blocks")  # what both put before a layer's number

TOKENIZER = "spiece_model"
"""ComfyUI's text encoders carry their tokenizer in a tensor of bytes; ours is in the base model."""

# Beside an FP8 weight lie its scale and that of its layer's inputs; the first of each pair is the
# name of ComfyUI's older "scaled" files, the second that of its newer ones (`QUANTIZATION.md`).
WEIGHT_SCALES = ("scale_weight", "weight_scale")
INPUT_SCALES = ("scale_input", "input_scale")
EMBEDDINGS = re.compile(
    r"(?<![^.])(shared|embed_tokens|token_embedding|pos_embedding\.embedding|"
    r"relative_attention_bias)\.weight"
)
"""Tables of umT5, which ComfyUI gives no scale even where layers have one."""
FORMAT = "comfy_quant"  # a layer's kind of quantisation, as JSON in bytes
SCALED = "scaled_fp8"  # marks an older file: an empty tensor, or one of two values

# What repackaging, training and distillation put before all names,
_PREFIX = re.compile(
    r"^((model|module|diffusion_model|transformer|pipe|dit|state_dict|ema|ema_model|generator|"
    r"generator_ema)\.)+"
)
# and what the wrappers of single layers put between them: compilation, FSDP, checkpointing.
_WRAPPER = re.compile(
    r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module)\."
)

# What a training's checkpoint holds beside its models.
TRAINING = re.compile(r"(optim|optimizers?|schedulers?|lr_schedulers?|dataloader|train_state)\b")

# All settings that names and shapes tell.
TOLD = {
    *_SIZES,
    *_BRANCH_SIZES,
    "patch_size",
    "num_attention_heads",
    "num_layers",
    "full_attention_layers",
}

# Names that only another kind of model has, and what it is.
CONDITIONED = "Wan conditioned on images or video: take text-to-video"
_OF_WAN = (
    (
        r"^condition_embedder\.(\w+\.linear_\d|time_proj)\.(weight|bias)$",
        "diffusers' Wan: take its folder, with config.json",
    ),
    (
        # Or a LyCORIS, or a difference of two models.
        r"(?<!_lora_[12])\.lora_[AB]\.|lora_(up|down)\.|^lora_|\.(hada|lokr)_|\.diff(_[bm])?$"
        r"|\.dora_scale$|^lycoris_|\.oft_|\.[ab][12]\.weight$",
        "a LoRA: `pipe.load_lora_weights`",
    ),
    (r"^vace_|\.k_img\.|^img_emb\.", CONDITIONED),
)
_OTHERS = (
    (r"^conditioner\.|label_emb\.|add_embedding\.", "Stable Diffusion XL"),
    (r"^(encoder|decoder)\.(conv|mid|up|down)", "a VAE: the transformer is another file"),
    (r"input_blocks\.|^(down|up|mid)_block", "a Stable Diffusion UNet"),
    (r"double_blocks\.|single_transformer_blocks\.", "Flux or HunyuanVideo"),
    (
        r"^(encoder\.block|enc\.blk|shared|token_embd|token_embedding|text_model|visual)\.",
        f"a text or image encoder: umT5's goes into {TEXT_ENCODER_VARIABLE}",
    ),
    (r"transformer_blocks\.", "another video or image transformer of diffusers"),
    (r"^(vae|first_stage_model)\.", "a VAE"),
    (r"^(text_encoders?|cond_stage_model|clip)\.", "a text encoder"),
)


def plain_keys(keys: Iterable[str], where: str) -> dict[str, str]:
    """The names in a file → those of the original model, without prefixes.

    Raises:
        ValueError: naming what the file looks like, if it is another model; or if two names differ
            in their prefix alone.
    """
    plain = unwrapped(keys, where)
    wan = any(_within(key) in _MODEL | _LAYER for key in plain.values())
    for pattern, kind in (*_OF_WAN, *_OTHERS):
        if not any(re.search(pattern, key) for key in plain.values()):
            continue
        if wan and (pattern, kind) in _OTHERS:
            raise ValueError(
                f"{where} holds two models, Wan's transformer and what looks like {kind}: take a "
                "file with the transformer alone."
            )
        raise ValueError(f"{where} looks like {kind}.")
    if not wan:
        some = ", ".join(sorted(plain)[:4])
        raise ValueError(f"{where} is no Wan or UltraGen transformer: it holds {some}.")
    return plain


def unwrapped(keys: Iterable[str], where: str) -> dict[str, str]:
    """The names in a file → those without what wrapping a model put into them.

    Raises:
        ValueError: if two names differ in that alone.
    """
    plain = {key: _WRAPPER.sub("", _PREFIX.sub("", _WRAPPER.sub("", key))) for key in keys}
    first: dict[str, str] = {}
    for key, name in plain.items():
        if first.setdefault(name, key) != key:
            raise ValueError(
                f"{where} holds {name} twice, as {first[name]} and as {key}: take out the one that "
                "does not belong to the model."
            )
    return plain


def is_original(keys: Iterable[str]) -> bool:
    """Whether names, without prefixes, are Wan's original ones and not diffusers'."""
    return any(_within(key) in _LAYER for key in keys)


def umt5_keys(keys: Iterable[str], where: str) -> dict[str, str]:
    """The names that a file gives to the parts of umT5's encoder → transformers'.

    Raises:
        ValueError: as `unwrapped`.
    """
    plain = unwrapped(keys, where)
    for scheme, layers in enumerate(_UMT5_LAYERS):
        if any(name.startswith(f"{layers}.") for name in plain.values()):
            model, layer = (
                {f"{theirs[scheme]}.weight": f"{ours}.weight" for ours, theirs in table.items()}
                for table in (_UMT5_MODEL, _UMT5_LAYER)
            )
            return {key: _umt5_key(name, layers, model, layer) for key, name in plain.items()}
    return plain


def _umt5_key(name: str, layers: str, model: dict[str, str], layer: dict[str, str]) -> str:
    found = re.fullmatch(rf"{re.escape(layers)}\.(\d+)\.(.+)", name)
    if found and found[2] in layer:
        return f"encoder.block.{found[1]}.{layer[found[2]]}"
    return model.get(name, name)


def read_umt5_config(shapes: Shapes) -> dict[str, Any]:
    """The settings of umT5's encoder that the shapes of its weights, under transformers' names,
    tell; the others are the same for all sizes.

    Raises:
        ValueError: if a weight that tells a size is missing.
    """
    first = "encoder.block.0.layer"
    told = {}
    for name in (
        "shared",
        f"{first}.0.SelfAttention.q",
        f"{first}.0.SelfAttention.relative_attention_bias",
        f"{first}.1.DenseReluDense.wi_0",
    ):
        shape = shapes.get(f"{name}.weight", ())
        if len(shape) != 2 or 0 in shape:
            some = ", ".join(sorted(shapes)[:4])
            raise ValueError(f"it has no {name}.weight with 2 axes; it holds {some}.")
        told[name.rpartition(".")[2]] = shape
    (words, width), (attended, _), (buckets, heads), (hidden, _) = told.values()
    blocks = {int(found[1]) for key in shapes if (found := re.match(r"encoder\.block\.(\d+)", key))}
    return {
        "vocab_size": words,
        "d_model": width,
        "d_kv": attended // heads,
        "d_ff": hidden,
        "num_layers": len(blocks),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
    }


def read_config(shapes: Shapes) -> dict[str, Any]:
    """The settings that shapes tell, and those of the released weights where there are branches.

    Raises:
        ValueError: if a weight that tells a size is missing, or the sizes are another model's.
    """
    for key, shape in shapes.items():
        if 0 in shape:
            raise ValueError(f"{key} is {shape_text(shape)}, and no axis may be empty.")
    branched, layers = branched_layers(shapes), depth(shapes)
    told = _SIZES | (_BRANCH_SIZES if branched else {})
    config: dict[str, Any] = {
        key: _shape(shapes, name, axes)[axis] for key, (name, axes, axis) in told.items()
    }
    patch_size = _shape(shapes, "patch_embedding.weight", 5)[2:]
    width = _shape(shapes, "self_attn.q.weight", 2)[0]
    out_channels = _shape(shapes, "head.head.weight", 2)[0] // prod(patch_size)
    if width % HEAD_DIM:
        raise ValueError(f"a width of {width} can't be cut into heads of {HEAD_DIM}.")
    if config["in_channels"] != out_channels:
        raise ValueError(
            f"{config['in_channels']} channels go in and {out_channels} come out: it looks like "
            f"{CONDITIONED}."
        )
    config |= {
        "patch_size": patch_size,
        "num_attention_heads": width // HEAD_DIM,
        "attention_head_dim": HEAD_DIM,
        "out_channels": out_channels,
        "num_layers": layers,
    }
    if not branched:
        return config
    full = tuple(i for i in range(layers) if i not in branched)
    return {**config, **RELEASED, "full_attention_layers": full}


def model_keys(layers: int, branched: Iterable[int]) -> dict[str, str]:
    """All names of a model, original → ours.

    Args:
        layers: Number of layers.
        branched: Those that have UltraGen's branches.
    """
    tables = [_LAYER | (_BRANCHES if i in branched else {}) for i in range(layers)]
    return _MODEL | {
        f"blocks.{i}.{theirs}": f"blocks.{i}.{ours}"
        for i, table in enumerate(tables)
        for theirs, ours in table.items()
    }


def depth(keys: Iterable[str]) -> int:
    """Number of layers.

    Raises:
        ValueError: if there is a layer without all those before it.
    """
    layers = _layers(keys)
    for before, layer in pairwise([-1, *layers]):
        if layer > before + 1:
            raise ValueError(
                f"it has {len(layers)} layers, among them blocks.{layer}, but no "
                f"blocks.{before + 1}."
            )
    return len(layers)


def branched_layers(keys: Iterable[str]) -> list[int]:
    """Layers that have at least one of the parts that UltraGen adds."""
    return _layers(key for key in keys if _within(key) in _BRANCHES)


def _layers(keys: Iterable[str]) -> list[int]:
    found = (re.match(r"blocks\.(\d+)\.", key) for key in keys)
    return sorted({int(match[1]) for match in found if match})


def _within(key: str) -> str:
    """A weight's name in its layer."""
    return re.sub(r"^blocks\.\d+\.", "", key)


def _shape(shapes: Shapes, name: str, axes: int) -> tuple[int, ...]:
    """Shape of a weight; where layers disagree, that of most of them."""
    found = [shape for key, shape in shapes.items() if _within(key) == name and len(shape) == axes]
    if not found:
        others = [shape for key, shape in shapes.items() if _within(key) == name]
        but = f"with {axes} axes, but one that is {shape_text(others[0])}" if others else "at all"
        raise ValueError(f"there is no {name} {but}, and it tells the model's sizes.")
    return mode(found)
