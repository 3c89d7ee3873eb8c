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

# What repackaging, parallel training and compilation put before all names.
_PREFIX = re.compile(r"^((model|module|diffusion_model|_orig_mod)\.)+")

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
_OTHERS = (
    (
        # Or a LyCORIS, or a difference of two models.
        r"(?<!_lora_[12])\.lora_[AB]\.|lora_(up|down)\.|^lora_|\.(hada|lokr)_|\.diff(_[bm])?$"
        r"|\.dora_scale$|^lycoris_|\.oft_|\.[ab][12]\.weight$",
        "a LoRA: `pipe.load_lora_weights`",
    ),
    (r"^vace_|\.k_img\.|^img_emb\.", CONDITIONED),
    (r"^conditioner\.|label_emb\.|add_embedding\.", "Stable Diffusion XL"),
    (r"^(encoder|decoder)\.(conv|mid|up|down)", "a VAE: the transformer is another file"),
    (r"input_blocks\.|^(down|up|mid)_block", "a Stable Diffusion UNet"),
    (r"double_blocks\.|single_transformer_blocks\.", "Flux or HunyuanVideo"),
    (r"^(encoder\.block|shared|token_embedding|text_model|visual)\.", "a text or image encoder"),
    (r"transformer_blocks\.", "another video or image transformer of diffusers"),
    (r"^condition_embedder\.", "diffusers' Wan: take its folder, with config.json"),
)


def plain_keys(keys: Iterable[str], where: str) -> dict[str, str]:
    """The names in a file → those of the original model, without prefixes.

    Raises:
        ValueError: naming what the file looks like, if it is another model; or if two names differ
            in their prefix alone.
    """
    plain = {key: _PREFIX.sub("", key) for key in keys}
    first: dict[str, str] = {}
    for key, name in plain.items():
        if first.setdefault(name, key) != key:
            raise ValueError(
                f"{where} holds {name} twice, as {first[name]} and as {key}: take out the one that "
                "does not belong to the model."
            )
    for pattern, kind in _OTHERS:
        if any(re.search(pattern, key) for key in plain.values()):
            raise ValueError(f"{where} looks like {kind}.")
    if not any(_within(key) in _MODEL | _LAYER for key in plain.values()):
        some = ", ".join(sorted(plain)[:4])
        raise ValueError(f"{where} is no Wan or UltraGen transformer: it holds {some}.")
    return plain


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
