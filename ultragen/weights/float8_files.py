"""FP8 weights and their scales, as ComfyUI's files have them.

Three layouts: plain, where values are only cast; "scaled", with `scale_weight` beside each weight
and the marker `scaled_fp8`; and the newer one with `weight_scale` and, for each layer,
`comfy_quant` (ComfyUI's `QUANTIZATION.md` at commit 7f75cc2, and `convert_old_quants` in
`comfy/utils.py`). Scales of inputs serve products in FP8, which are not computed here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from ..model.quantised import FLOAT8, Quantised, StateDict
from ..model.strict_loading import listed, shape_text
from .keys import EMBEDDINGS, FORMAT, INPUT_SCALES, SCALED, WEIGHT_SCALES

_KINDS = {dtype: kind for kind, dtype in FLOAT8.items()}
_BESIDE = (*WEIGHT_SCALES, *INPUT_SCALES, FORMAT)
_ANOTHER = "take the bfloat16 file, or one in FP8"


def join_scales(tensors: Mapping[str, Tensor], where: str) -> StateDict:
    """The weights of a file, those in FP8 with their scales; what only describes them is gone.

    Args:
        tensors: By name, on the CPU.
        where: What to call the file in errors.

    Raises:
        ValueError: if a scale is missing, is no scale of its weight, or belongs to none; or if
            weights are quantised in another way.
    """
    plain: dict[str, Tensor] = {}
    beside: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, last = name.rpartition(".")
        if last in _BESIDE:
            beside.setdefault(layer, {})[last] = tensor
        elif last != SCALED:
            plain[name] = tensor
    if stray := sorted(layer for layer in beside if f"{layer}.weight" not in plain):
        raise ValueError(f"{where} holds scales, but not their weights: {listed(layers=stray)}.")
    weights = {
        name: _weight(tensor, beside.get(name.removesuffix(".weight"), {}), name, where)
        for name, tensor in plain.items()
    }
    quantised = {name: x for name, x in weights.items() if isinstance(x, Quantised)}
    unscaled = [
        name
        for name, weight in quantised.items()
        if weight.scale is None and len(weight.shape) == 2 and not EMBEDDINGS.search(name)
    ]
    if unscaled and any(weight.scale is not None for weight in quantised.values()):
        raise ValueError(f"{where} holds FP8 weights without scales: {listed(weights=unscaled)}.")
    return weights


def _weight(
    tensor: Tensor, described: Mapping[str, Tensor], name: str, where: str
) -> Tensor | Quantised:
    """A tensor, with what describes its layer by the last part of its name."""
    layer = name.removesuffix(".weight")
    kind = _kind(tensor, described, f"{layer}.{FORMAT}", where)
    scale = _scale(described, tensor, layer, where)
    if kind is not None:
        return Quantised(tensor.view(torch.uint8), kind, tuple(tensor.shape), scale)
    # Layers that were left in high precision may have a scale that changes nothing.
    if scale is not None and not bool((scale == 1).all()):
        raise ValueError(f"{where} holds a scale for {name}, which is not quantised: {_ANOTHER}.")
    return tensor


def _kind(tensor: Tensor, described: Mapping[str, Tensor], name: str, where: str) -> str | None:
    """The FP8 type of a weight; None if it is in none."""
    kind = _KINDS.get(tensor.dtype)
    if FORMAT not in described:
        return kind
    try:
        told = json.loads(bytes(described[FORMAT].tolist()))["format"]
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{where} is damaged: {name} is no description of a layer.") from error
    if told not in FLOAT8:
        raise ValueError(f"{where} holds quantised weights ({told}, {name}): {_ANOTHER}.")
    if kind is None and tensor.dtype != torch.uint8:  # the newer layout may keep FP8 as bytes
        raise ValueError(f"{where} is damaged: {name} tells {told}, and the weight is no such one.")
    return kind or told


def _scale(
    described: Mapping[str, Tensor], weight: Tensor, layer: str, where: str
) -> Tensor | None:
    """The scale of a weight, in float32 and of as many axes as it, or of one value."""
    names = [name for name in WEIGHT_SCALES if name in described]
    if not names:
        return None
    scale, name = described[names[0]], f"{layer}.{names[0]}"
    if len(names) > 1:
        raise ValueError(f"{where} holds two scales for {layer}.weight: {' and '.join(names)}.")
    if not scale.is_floating_point() or not bool(torch.isfinite(scale.float()).all()):
        raise ValueError(f"{where} is damaged: {name} is no finite number.")
    scale, shape = scale.float(), tuple(weight.shape)
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.shape == shape[:1]:
        scale = scale.view(-1, *(1 for _ in shape[1:]))
    if scale.ndim != len(shape) or any(
        size % parts for size, parts in zip(shape, scale.shape, strict=True)
    ):
        raise ValueError(
            f"{where} holds a scale that does not fit its weight: {name} is "
            f"{shape_text(scale.shape)}, and the weight {shape_text(shape)}."
        )
    return scale
