"""The names that training tools give to the parts of a LoRA, and which layer each is for.

A name has three parts: what a tool puts first (`diffusion_model.`, `lora_unet_`, `pipe.dit.`), the
layer, by Wan's authors' name or by diffusers', with dots or with underscores; and which tensor of
the update it is (`lora_down.weight`, `alpha`, `diff_b`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from .keys import model_keys

_PREFIX = re.compile(
    r"^((base_model|model|diffusion_model|module|_orig_mod|transformer|pipe|dit|unet)\."
    r"|(lora_unet|lora_transformer|lycoris)__?)+"
)

# The end of a name, and which tensor that is. Some tools put the adapter's name into it.
_NAMED = r"(\.(?P<adapter>(?!weight$|bias$)[^.]+))?"
_TENSORS = (
    (rf"(lora_A|lora_down|lora\.down|lora_linear_layer\.down){_NAMED}\.weight", "down"),
    (rf"(lora_B|lora_up|lora\.up|lora_linear_layer\.up){_NAMED}\.weight", "up"),
    (rf"(lora_B|lora_up){_NAMED}\.bias", "up_bias"),
    (r"alpha", "alpha"),
    (rf"dora_scale|lora_magnitude_vector{_NAMED}(\.weight)?", "magnitude"),
    (r"diff|w_norm", "weight_difference"),
    (r"diff_b|b_norm", "bias_difference"),
    (r"diff_m", "table_difference"),
    *((rf"{name}", name) for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")),
    *((rf"lokr_w{n}{side}", f"lokr_w{n}{side}") for n in "12" for side in ("", "_a", "_b")),
)
_ENDS = tuple((re.compile(rf"(?P<layer>.+?)\.({pattern})"), tensor) for pattern, tensor in _TENSORS)

# Updates that are of another kind than W + ΔW with ΔW in the file.
_METHODS = (
    (r"\.[ab][12]\.weight$", "GLoRA, which multiplies the weights that it changes"),
    (r"\.(oft_|boft_)|\.oft_", "OFT, which rotates the weights that it changes"),
    (r"\.on_input$", "(IA)³, which scales features"),
    (r"lora_mid\.|\.lokr_t2$|\.hada_t[12]$", "a convolution in three factors"),
    (r"\.(set_weight|reshape_weight)$", "weights of another shape in place of the model's"),
)

# Names that only another model's LoRA has, or what is no LoRA, and what it is.
_RELATED = (
    (r"vace", "VACE, Wan conditioned on video"),
    (r"[kv]_img|img_emb|add_[kv]_proj|image_embedder", "image-to-video Wan"),
)
_SECOND_ENCODER = r"lora_te2_|text_encoder_2|label_emb|add_embedding|transformer_blocks[._][1-9]"
_UNET = r"(down|up|mid|input|output|middle)_blocks?[._]"
_OTHERS = (
    (r"alpha_time_|_lora_[12]\.|upsample_conv|\.branches\.", "UltraGen's own weights, not a LoRA"),
    (_SECOND_ENCODER, "Stable Diffusion XL"),
    (_UNET, "Stable Diffusion"),
    (r"(double|single)_(transformer_)?blocks", "Flux or HunyuanVideo"),
    (r"transformer_blocks", "another transformer of diffusers"),
    (r"lora_te|text_encoder|text_model", "a text encoder"),
)
_WIDTHS = {1536: "Wan 1.3B", 3072: "Wan 2.2 5B", 5120: "Wan 14B"}
_WIDE = re.compile(r"(self_attn|cross_attn|attn[12])[._](to_)?[qkvo](ut)?\b")
_LISTED = 4  # names in a message


@dataclass
class LayerTensors:
    """What a file holds for one layer.

    Attributes:
        tensors: By kind: `down`, `up`, `alpha`, `weight_difference`, `hada_w1_a` and so on.
        names: The layer's names in the file, without what the tool puts first.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)


def sort_by_layer(
    weights: Mapping[str, Tensor], transformer: nn.Module, where: str
) -> dict[str, LayerTensors]:
    """The tensors of a LoRA by the layer that they are for; all of them, or none.

    Args:
        weights: A file's tensors by name.
        transformer: The model that it is to be loaded into.
        where: What to call the file in errors.

    Returns:
        The layer's name in the transformer → its tensors. Tables that are added to, such as
        `blocks.0.scale_shift_table`, stand under their own name.

    Raises:
        ValueError: if a name fits no layer, counting and naming those that don't, with what the
            file looks like; or if a tensor is there twice.
    """
    if method := next((what for end, what in _METHODS if _any(end, weights)), None):
        raise ValueError(
            f"{where} holds {method}: only updates that are added to the weights are read. Merge "
            "it into the model with the tool that trained it, or take a LoRA."
        )
    layers = layer_names(transformer)
    found: dict[str, LayerTensors] = {}
    homeless = []
    for key, tensor in weights.items():
        name, kind = _split(key)
        layer = layers.get(name)
        if kind is None or layer is None:
            homeless.append(key)
            continue
        of_layer = found.setdefault(layer, LayerTensors())
        if kind in of_layer.tensors:
            raise ValueError(
                f"{where} holds the {kind} of {layer} twice, the second time as {key}: it has two "
                "LoRAs in one file. Load one of them."
            )
        of_layer.tensors[kind] = tensor
        of_layer.names.add(name)
    if homeless:
        some = ", ".join(homeless[:_LISTED]) + (" …" if len(homeless) > _LISTED else "")
        raise ValueError(
            f"{where}: {len(homeless)} of {len(weights)} keys fit no layer of this model, so "
            f"nothing is loaded ({some}). {looks_like(weights, len(homeless) == len(weights))}"
        )
    return found


def looks_like(weights: Mapping[str, Tensor], foreign: bool) -> str:
    """A sentence on what a file is that does not fit.

    Args:
        weights: Its tensors by name.
        foreign: Whether no name at all fits.
    """
    size = _WIDTHS.get(told_width(weights) or 0)
    for patterns in (_RELATED, _OTHERS):
        what = next((what for pattern, what in patterns if _any(pattern, weights)), None)
        if what and not foreign and patterns is _OTHERS:
            return f"It looks like two models in one file: this one, and {what}."
        if what:
            return f"It looks like {what}" + (f" ({size})." if size else ".")
    if size:
        return f"It looks like {size}."
    if not any(_split(key)[1] for key in weights):
        return "It looks like no LoRA, but perhaps a whole model: ULTRAGEN_WEIGHTS takes those."
    return "It looks like the LoRA of another model."


def told_width(weights: Mapping[str, Tensor]) -> int | None:
    """The features of a token in the model that a LoRA was made for, told by its attention; None
    if nothing tells them."""
    for key, tensor in weights.items():
        kind = _split(key)[1]
        if _WIDE.search(key) and kind in ("down", "up") and tensor.ndim == 2:
            return tensor.shape[1 if kind == "down" else 0]
    return None


def known_width(width: int) -> str:
    """The model that has so many features, as far as it is known."""
    return _WIDTHS.get(width, "another model")


def layer_names(transformer: nn.Module) -> dict[str, str]:
    """All names of a model's layers and tables, by its authors, by diffusers, and both with
    underscores → that in the model."""
    own = _own_names(transformer)
    blocks = len(transformer.blocks)  # type: ignore[arg-type]
    original = {
        theirs.removesuffix(".weight"): ours.removesuffix(".weight")
        for theirs, ours in model_keys(blocks, ()).items()
        if ours.removesuffix(".weight") in own
    }
    known = {name: name for name in own} | original
    return {name.replace(".", "_"): layer for name, layer in known.items()} | known


def _own_names(transformer: nn.Module) -> set[str]:
    """Names of what a LoRA can change: layers with weights, and tables. Of a layer that has an
    adapter already, its own name and not that of its parts."""
    found = set()
    for name, _ in transformer.named_parameters():
        name = re.sub(r"\.(lora_(A|B|magnitude_vector))\.[^.]+\.(weight|bias)$", "", name)
        name = name.replace(".base_layer.", ".")
        if ".branches." not in name:
            found.add(re.sub(r"\.(weight|bias)$", "", name))
    return found


def _split(key: str) -> tuple[str, str | None]:
    """A layer's name in a file, and which tensor of it that is; None if it is none of a LoRA."""
    for pattern, kind in _ENDS:
        if found := pattern.fullmatch(key):
            layer = _PREFIX.sub("", found["layer"])
            return (f"{layer}.modulation" if kind == "table_difference" else layer), kind
    return _PREFIX.sub("", key), None


def _any(pattern: str, keys: Iterable[str]) -> bool:
    return any(re.search(pattern, key) for key in keys)
