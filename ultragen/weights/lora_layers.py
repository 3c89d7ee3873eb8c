"""What a LoRA file says of one layer → a pair of factors, whatever the method it was trained with.

Every update that is added to a weight is a product of two matrices: of low rank for a LoRA, of the
rank's square for a LoHa, of the weight's own rank for a difference. So peft's LoRA layers hold all
of them exactly, several files of different methods can be loaded together, and strengths, merging
and swapping work as they do for any LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn

from ..model.strict_loading import shape_text
from .lora_keys import LayerTensors, known_width

_KRONECKER, _HADAMARD = "lokr_", "hada_"


@dataclass
class Update:
    """What is added to one linear layer or patch embedding: W + up·down, b + bias.

    Attributes:
        down: rank × in.
        up: out × rank.
        bias: out; None leaves it.
        magnitude: The length of each of the new weight's rows, out (DoRA); None leaves them.
    """

    down: Tensor
    up: Tensor
    bias: Tensor | None = None
    magnitude: Tensor | None = None


@dataclass
class Lora:
    """A LoRA that fits a model.

    Attributes:
        updates: By layer, in the model's names.
        differences: What is added to other parameters, such as those of norms, by name.
    """

    updates: dict[str, Update] = field(default_factory=dict)
    differences: dict[str, Tensor] = field(default_factory=dict)


def build_lora(
    layers: Mapping[str, LayerTensors], transformer: nn.Module, scale_of: Mapping[str, float]
) -> Lora:
    """Settles what is added to which layer, in float32.

    Args:
        layers: From `sort_by_layer`.
        transformer: The model.
        scale_of: α / rank by layer, of files that say it beside their tensors.

    Raises:
        ValueError: if a tensor is missing, does not fit its layer, or is not finite.
    """
    lora = Lora()
    parameters = _base_parameters(transformer)
    for name, found in layers.items():
        if bad := next((k for k, x in found.tensors.items() if not x.isfinite().all()), None):
            raise ValueError(f"the {bad} of {name} is not finite: the file is damaged.")
        if f"{name}.weight" in parameters and parameters[f"{name}.weight"].ndim > 1:
            shape = tuple(parameters[f"{name}.weight"].shape)
            biased = f"{name}.bias" in parameters
            lora.updates[name] = _update(name, found.tensors, shape, biased, scale_of.get(name))
        else:
            lora.differences |= _differences(name, found.tensors, parameters)
    if any(update.magnitude is not None for update in lora.updates.values()):
        _check_dora(lora)
    return lora


def state_dict(lora: Lora, transformer: nn.Module) -> dict[str, Tensor]:
    """The updates as peft names and shapes them. α is in the factors, so that their scale is 1."""
    biased = any(update.bias is not None for update in lora.updates.values())
    weights = {}
    for name, update in lora.updates.items():
        shape = _base_parameters(transformer.get_submodule(name))["weight"].shape
        ones = (1,) * (len(shape) - 2)
        weights[f"{name}.lora_A.weight"] = update.down.reshape(-1, *shape[1:])
        weights[f"{name}.lora_B.weight"] = update.up.reshape(*update.up.shape, *ones)
        # peft gives all layers a bias or none, and one that is not filled has no memory.
        if biased:
            bias = update.bias if update.bias is not None else update.up.new_zeros(shape[0])
            weights[f"{name}.lora_B.bias"] = bias
        if update.magnitude is not None:
            weights[f"{name}.lora_magnitude_vector"] = update.magnitude
    # Copies: what is loaded moves and changes, and the file's tensors may be the caller's.
    return {
        key: value.clone(memory_format=torch.contiguous_format) for key, value in weights.items()
    }


def _base_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by the names that they have without adapters."""
    return {
        name.replace("base_layer.", ""): parameter for name, parameter in module.named_parameters()
    }


def _update(
    name: str,
    tensors: Mapping[str, Tensor],
    shape: tuple[int, ...],
    biased: bool,
    scale: float | None,
) -> Update:
    tensors = {kind: value.float() for kind, value in tensors.items()}
    out, features = shape[0], prod(shape[1:])
    pairs = []
    if "down" in tensors or "up" in tensors:
        pairs.append(_low_rank(name, tensors, scale))
    if any(kind.startswith(_HADAMARD) for kind in tensors):
        pairs.append(_hadamard(name, tensors))
    if any(kind.startswith(_KRONECKER) for kind in tensors):
        pairs.append(_kronecker(name, tensors, shape))
    for kind, value in tensors.items():
        if kind == "weight_difference":
            _check_shape(name, kind, value, shape)
            pairs.append(_full_rank(value.reshape(out, features)))
    for up, down in pairs:
        _check_size(name, up.shape[0], down.shape[1], out, features)
    up, down = _joined(pairs, out, features)
    bias, magnitude = _bias(name, tensors, out, scale), tensors.get("magnitude")
    if not pairs and bias is None and magnitude is None:
        raise ValueError(f"{name} has {', '.join(tensors)} alone: the file is incomplete.")
    if bias is not None and not biased:
        raise ValueError(f"{name} has no bias that could be changed.")
    if magnitude is not None:
        magnitude = _magnitude(name, magnitude, shape)
    return Update(down, up, bias, magnitude)


def _low_rank(
    name: str, tensors: Mapping[str, Tensor], scale: float | None
) -> tuple[Tensor, Tensor]:
    """LoRA: up · down · α / rank."""
    for kind in ("down", "up"):
        if kind not in tensors:
            raise ValueError(f"{name} has no {kind} factor: the file is incomplete.")
    down, up = tensors["down"].flatten(1), tensors["up"].flatten(1)
    if down.shape[0] != up.shape[1]:
        raise ValueError(f"the factors of {name} have ranks {down.shape[0]} and {up.shape[1]}.")
    return up, down * _scale(name, tensors, down.shape[0], scale)


def _hadamard(name: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """LoHa: (A₁B₁) ∘ (A₂B₂) · α / rank, whose factors are all products of a column of A₁ with one
    of A₂, and of a row of B₁ with one of B₂."""
    a1, b1, a2, b2 = _all(name, tensors, *(f"hada_w{n}_{side}" for n in "12" for side in "ab"))
    up = torch.einsum("oi,oj->oij", a1, a2).flatten(1)
    down = torch.einsum("in,jn->ijn", b1, b2).flatten(0, 1)
    return up, down * _scale(name, tensors, b1.shape[0], None)


def _kronecker(
    name: str, tensors: Mapping[str, Tensor], shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """LoKr: W₁ ⊗ W₂, each whole or a product of two: (A₁B₁) ⊗ (A₂B₂) = (A₁ ⊗ A₂)(B₁ ⊗ B₂)."""
    factors, rank = [], None
    for part in ("lokr_w1", "lokr_w2"):
        if part in tensors:
            whole = tensors[part].flatten(1)
            factors.append((whole, torch.eye(whole.shape[1])))
        else:
            a, b = _all(name, tensors, f"{part}_a", f"{part}_b")
            factors.append((a, b.flatten(1)))
            rank = b.shape[0]
    (a1, b1), (a2, b2) = factors
    # A product of two whole matrices is not scaled, whatever α says.
    scale = 1.0 if rank is None else _scale(name, tensors, rank, None)
    if a1.shape[1] * a2.shape[1] < min(shape[0], prod(shape[1:])):
        return torch.kron(a1, a2), torch.kron(b1, b2) * scale
    return _full_rank(torch.kron(a1 @ b1, a2 @ b2) * scale)


def _full_rank(difference: Tensor) -> tuple[Tensor, Tensor]:
    """A difference, out × in, as factors of which one is the identity."""
    out, features = difference.shape
    if out <= features:
        return torch.eye(out), difference
    return difference, torch.eye(features)


def _joined(pairs: list[tuple[Tensor, Tensor]], out: int, features: int) -> tuple[Tensor, Tensor]:
    """The sum of several products as one; none at all is a product of zeros."""
    if not pairs:
        return torch.zeros(out, 1), torch.zeros(1, features)
    up, down = torch.cat([up for up, _ in pairs], 1), torch.cat([down for _, down in pairs])
    return (up, down) if up.shape[1] <= min(out, features) else _full_rank(up @ down)


def _scale(name: str, tensors: Mapping[str, Tensor], rank: int, told: float | None) -> float:
    alpha = tensors.get("alpha")
    if alpha is None:
        return 1.0 if told is None else told
    if alpha.numel() != 1:
        raise ValueError(f"the alpha of {name} is {shape_text(alpha.shape)}, not one number.")
    return alpha.item() / rank


def _bias(name: str, tensors: Mapping[str, Tensor], out: int, scale: float | None) -> Tensor | None:
    found = []
    if "bias_difference" in tensors:
        found.append(tensors["bias_difference"])
    if "up_bias" in tensors:  # peft scales it like the factors
        rank = tensors["down"].shape[0] if "down" in tensors else 1
        found.append(tensors["up_bias"] * _scale(name, tensors, rank, scale))
    for bias in found:
        _check_shape(name, "bias", bias, (out,))
    return torch.stack(found).sum(0) if found else None


def _magnitude(name: str, magnitude: Tensor, shape: tuple[int, ...]) -> Tensor:
    """DoRA's lengths of rows. Some tools measure columns, for which peft has no layer."""
    out = shape[0]
    columns = magnitude.ndim > 1 and magnitude.shape[0] == 1 < out
    if len(shape) != 2 or columns or magnitude.numel() != out:
        raise ValueError(
            f"the magnitude of {name} is {shape_text(magnitude.shape)}: DoRA is read for linear "
            f"layers, with a length for each of the {out} rows of the weight. Merge it with the "
            "tool that trained it."
        )
    return magnitude.reshape(out)


def _check_dora(lora: Lora) -> None:
    """peft's DoRA is for whole adapters, and without biases."""
    updates = lora.updates.values()
    partial = any(update.magnitude is None for update in updates)
    if partial or any(update.bias is not None for update in updates):
        raise ValueError(
            "it has DoRA's magnitudes in some layers only, or with biases, which peft does not "
            "compute: merge it with the tool that trained it."
        )


def _differences(
    name: str, tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """What is added to the parameters of a norm, or to a table."""
    places = {
        "weight_difference": name if name in parameters else f"{name}.weight",
        "bias_difference": f"{name}.bias",
        "table_difference": name,
    }
    found = {}
    for kind, value in tensors.items():
        place = places.get(kind)
        if place is None or place not in parameters:
            raise ValueError(f"{name} has no place for a {kind.replace('_', ' ')}.")
        shape = tuple(parameters[place].shape)
        if value.numel() != parameters[place].numel():
            _check_shape(name, kind, value, shape)
        if value.any():  # extracted files are full of zeros
            found[place] = value.float().reshape(shape)
    return found


def _all(name: str, tensors: Mapping[str, Tensor], *kinds: str) -> list[Tensor]:
    if missing := [kind for kind in kinds if kind not in tensors]:
        raise ValueError(f"{name} has no {', '.join(missing)}: the file is incomplete.")
    return [tensors[kind] for kind in kinds]


def _check_size(name: str, out: int, features: int, rows: int, columns: int) -> None:
    if (out, features) != (rows, columns):
        raise ValueError(
            f"the update of {name} is {out} × {features}, and the layer {rows} × {columns}: it was "
            f"made for another width ({known_width(features)})."
        )


def _check_shape(name: str, kind: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(
            f"the {kind.replace('_', ' ')} of {name} is {shape_text(value.shape)}, and the layer "
            f"has {shape_text(shape)}: it was made for another width."
        )
