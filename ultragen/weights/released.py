"""Loading foreign weights, and writing them: the authors' released UltraGen file, the original Wan
file, diffusers' folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch
from accelerate import init_empty_weights
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor, nn

from ..files import whole_file
from ..model.strict_loading import wrong_keys
from ..model.transformer import UltraGenTransformer3DModel
from ..model.wan_1_3b import RELEASED
from .headers import empty_model, without_ignored
from .json_files import check_fields, corrupt, read_object
from .keys import CONDITIONED, TOLD, branched_layers, depth, model_keys, plain_keys, read_config
from .read import check_tensors, fill, read_header, read_weights

SETTINGS = "ultragen"
"""The entry of a safetensors header that holds settings as JSON."""
HEADER_SETTINGS = {
    "crossing",
    "uneven",
    "global_keys_from",
    "timestep_dtype",
    "window_size",
    "eps",
    "rope_max_seq_len",
}
"""What that entry may tell: no name or shape depends on it."""

Source = str | Path | Mapping[str, Tensor]
Model = TypeVar("Model", UltraGenTransformer3DModel, WanTransformer3DModel)

_DENSE = (
    "dense Wan without UltraGen's branches: take ultragen_1080p.ckpt, or make a start for training "
    "with `python -m ultragen convert`"
)


def load_released(source: Source) -> UltraGenTransformer3DModel:
    """Loads the authors' UltraGen weights with the settings that they were trained with.

    Depth, widths and which layers are hierarchical come from the names and shapes alone; the
    heads are of 128 features. Tensors keep the type they have in the file.

    Args:
        source: A file, a folder or the index of shards, or a state dictionary, with original names.

    Raises:
        OSError: if a file is missing, incomplete or damaged.
        ValueError: if it is another model; missing, unexpected and misshapen keys are listed.
    """
    weights, where = _open(source)
    if not branched_layers(weights):
        raise ValueError(f"{where} is {_DENSE}.")
    return _build(UltraGenTransformer3DModel, weights, where, _settings(source))


def save_released(
    model: UltraGenTransformer3DModel, path: str | Path | None = None
) -> dict[str, Tensor]:
    """The inverse of `load_released`: the model's tensors under the authors' names.

    Args:
        model: With the parts of the released weights. Settings that differ from theirs and change
            no shape, as those of the paper's layout do, go into the header of a safetensors file.
        path: Where to write them too: safetensors, or by PyTorch for other suffixes.

    Raises:
        ValueError: if the model has a part or a setting that what is written can't tell.
    """
    branched = [i for i, kind in enumerate(model.layer_kinds) if kind != "full"]
    names = model_keys(len(model.layer_kinds), branched)
    ours = model.state_dict()
    if wrong := wrong_keys(names.values(), ours):
        raise ValueError(f"The model has other parts than the released one; {wrong}.")
    other = _untold(model) if branched else "full attention in all layers from dense Wan"
    has_header = path is not None and Path(path).suffix == ".safetensors"
    told = has_header and not isinstance(other, str) and other.keys() <= HEADER_SETTINGS
    if other and not told:
        raise ValueError(
            f"The released layout can't tell {other}: save the model with `save_pretrained`."
        )
    weights = {key: ours[name] for key, name in names.items()}
    if path is not None:
        # The tensors may still lie in the very file that is replaced.
        with whole_file(path) as unfinished:
            if has_header:
                header = {SETTINGS: json.dumps(other)} if other else None
                save_file(weights, unfinished, header)
            else:
                torch.save(weights, unfinished)
    return weights


def _untold(model: UltraGenTransformer3DModel) -> dict[str, Any]:
    """Settings of a model that `load_released` would not give back."""
    default = {key: x.default for key, x in signature(type(model).__init__).parameters.items()}
    loaded = default | RELEASED | {"out_channels": model.config.in_channels}
    # How the gates began is in their weights.
    return {
        key: model.config[key]
        for key in default
        if key in model.config.keys() - TOLD - {"gate_init"}
        # What was loaded from JSON has lists in place of tuples.
        and json.dumps(model.config[key]) != json.dumps(loaded[key])
    }


def load_transformer(source: Source, device: str = "cpu") -> WanTransformer3DModel:
    """Loads UltraGen or a dense Wan text-to-video transformer of any size, whichever it is.

    Args:
        source: A file, shards or a state dictionary with original names; or a folder in diffusers'
            layout, our own among them, of the transformer or of the whole pipeline.
        device: Where files are read to, as in `read_weights`: on `meta` they are only checked.

    Raises:
        OSError: if a file is missing, incomplete or damaged.
        ValueError: if it is another model; missing, unexpected and misshapen keys are listed.
    """
    if not isinstance(source, Mapping):
        source = Path(source)
        if (source / "model_index.json").is_file():
            source /= "transformer"
        if (source / "config.json").is_file():
            config = read_object(source / "config.json")
            # The original Wan folders have such a file too, which says less than their names.
            if config.get("_class_name") != "WanModel":
                return _load_folder(source, config, device)
    weights, where = _open(source, device)
    if branched_layers(weights):
        return _build(UltraGenTransformer3DModel, weights, where, _settings(source))
    return _build(WanTransformer3DModel, weights, where, {})


def load_ultragen(source: Source, device: str = "cpu") -> UltraGenTransformer3DModel:
    """Loads UltraGen: the released weights or a folder of our own; else as `load_transformer`."""
    model = load_transformer(source, device)
    if not isinstance(model, UltraGenTransformer3DModel):
        raise ValueError(f"{_name(source)} is {_DENSE}.")
    return model


def load_dense(source: Source) -> WanTransformer3DModel:
    """Loads dense Wan, original or in diffusers' layout; else as `load_transformer`."""
    model = load_transformer(source)
    if isinstance(model, UltraGenTransformer3DModel):
        raise ValueError(f"{_name(source)} is UltraGen, where dense Wan is needed.")
    return model


def cast_weights(model: nn.Module, dtype: torch.dtype) -> Any:
    """Casts in place as `from_pretrained` does: what diffusers keeps in float32 is so."""
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, parameter in model.named_parameters():
        wide = not kept.isdisjoint(name.split("."))
        parameter.data = parameter.data.to(torch.float32 if wide else dtype)
    return model


def _load_folder(folder: Path, config: dict[str, Any], device: str) -> WanTransformer3DModel:
    """diffusers' layout; its own loader fills weights that are missing with noise."""
    kinds = {kind.__name__: kind for kind in (UltraGenTransformer3DModel, WanTransformer3DModel)}
    name = config.get("_class_name", config.get("architectures"))
    if name not in tuple(kinds):
        raise ValueError(f"{folder} holds {name}, not one of {', '.join(kinds)}.")
    if config.get("image_dim") or config.get("added_kv_proj_dim"):
        raise ValueError(f"{folder} holds {CONDITIONED}.")
    check_fields(config, get_type_hints(kinds[name].__init__), folder / "config.json")
    weights = without_ignored(kinds[name], read_weights(folder, device))
    model = empty_model(kinds[name], folder)
    return fill(model, weights, {key: key for key in model.state_dict()}, str(folder))


def _open(source: Source, device: str = "cpu") -> tuple[dict[str, Tensor], str]:
    """Weights with original names, and what to call them in errors."""
    where = _name(source)
    weights = (
        check_tensors(source, where)
        if isinstance(source, Mapping)
        else read_weights(source, device)
    )
    return {plain: weights[key] for key, plain in plain_keys(weights, where).items()}, where


def _settings(source: Source) -> dict[str, Any]:
    """Settings that `save_released` wrote beside the weights; none in the authors' own files."""
    text = None if isinstance(source, Mapping) else read_header(source).get(SETTINGS)
    if text is None:
        return {}
    where = Path(source)  # type: ignore[arg-type]
    try:
        settings = json.loads(text)
        unknown = settings.keys() - HEADER_SETTINGS
    except (ValueError, AttributeError, RecursionError) as error:
        raise corrupt(where, error) from error
    if unknown:
        raise corrupt(where, f"its header has settings of another kind, {sorted(unknown)}")
    check_fields(settings, get_type_hints(UltraGenTransformer3DModel.__init__), where)
    return {key: tuple(x) if isinstance(x, list) else x for key, x in settings.items()}


def _name(source: Source) -> str:
    return "The state dictionary" if isinstance(source, Mapping) else str(source)


def _build(
    kind: type[Model], weights: dict[str, Tensor], where: str, settings: dict[str, Any]
) -> Model:
    """The model that original names and shapes tell, with the settings that a header adds."""
    try:
        layers = depth(weights)
    except ValueError as error:
        raise ValueError(f"{where} does not fit the model: {error}") from error
    names = model_keys(layers, branched_layers(weights))
    try:
        with init_empty_weights():
            config = read_config({key: tuple(x.shape) for key, x in weights.items()})
            model = kind(**config | settings)
    except ValueError as error:
        wrong = filter(None, (wrong_keys(names, weights), str(error)))
        raise ValueError(f"{where} does not fit the model: {'; '.join(wrong)}") from error
    return fill(model, weights, names, where)
