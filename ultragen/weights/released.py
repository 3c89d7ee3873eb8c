"""Loading foreign weights, and writing them: the authors' released UltraGen file, the original Wan
file, diffusers' folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_type_hints

import torch
from accelerate import init_empty_weights
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor, nn

from ..files import whole_file
from ..model.quantised import Quantised, StateDict
from ..model.strict_loading import wrong_keys
from ..model.transformer import UltraGenTransformer3DModel
from ..model.wan_1_3b import RELEASED
from .headers import empty_model, without_ignored
from .json_files import check_fields, corrupt, read_object
from .keys import (
    CONDITIONED,
    TOLD,
    branched_layers,
    depth,
    is_original,
    model_keys,
    plain_keys,
    read_config,
    unwrapped,
)
from .layouts import LAYOUT_SETTINGS, check_layout, check_t3, layout_of, published_file
from .read import check_tensors, fill, read_header, read_stored

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
    "distilled_steps",
    "distilled_shift",
}
"""What that entry may tell: no name or shape depends on it."""

Source = str | Path | Mapping[str, Tensor]
Model = TypeVar("Model", UltraGenTransformer3DModel, WanTransformer3DModel)

_DENSE = (
    "dense Wan without UltraGen's branches: take ultragen_1080p.ckpt, say that the file is "
    "T3-Video's with ULTRAGEN_LAYOUT=t3, or make a start for training with "
    "`python -m ultragen convert`"
)


def load_released(source: Source) -> UltraGenTransformer3DModel:
    """Loads the authors' UltraGen weights with the settings that they were trained with.

    Depth, widths and which layers are hierarchical come from the names and shapes alone; the
    heads are of 128 features. Tensors keep the type they have in the file; those of quantised files
    become bfloat16, and what diffusers keeps in float32 is so.

    Args:
        source: A file, a folder or the index of shards, or a state dictionary, with original names;
            in FP8 as ComfyUI has it, in GGUF, or as `torch.distributed.checkpoint` writes it too.

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
    branched = [i for i, kind in enumerate(model.layer_kinds) if kind in ("even", "odd")]
    names = model_keys(len(model.layer_kinds), branched)
    ours = model.state_dict()
    if wrong := wrong_keys(names.values(), ours):
        raise ValueError(f"The model has other parts than the released one; {wrong}.")
    layers = "T3-Video's windows" if model.config.t3_windows else "full attention in all layers"
    other = _untold(model) if branched else f"{layers} from dense Wan"
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


def load_transformer(
    source: Source, device: str = "cpu", layout: str | None = None
) -> WanTransformer3DModel:
    """Loads UltraGen, T3-Video or a dense Wan text-to-video transformer of any size, whichever it
    is.

    Args:
        source: A file, shards or a state dictionary with original names; or a folder in diffusers'
            layout, our own among them, of the transformer or of the whole pipeline.
        device: Where files are read to, as in `read_weights`: on `meta` they are only checked.
        layout: `t3` for T3-Video's weights, where no name of a file or folder says that.

    Raises:
        OSError: if a file is missing, incomplete or damaged.
        ValueError: if it is another model; missing, unexpected and misshapen keys are listed.
    """
    if not isinstance(source, Mapping):
        source = published_file(Path(source))
        layout = layout_of(source, layout)
    model = _load(source, device, LAYOUT_SETTINGS[check_layout(layout)] if layout else {})
    if layout:
        check_t3(model.config.in_channels, _name(source))
    return model


def _load(source: Path | Mapping[str, Tensor], device: str, settings: Mapping[str, Any]) -> Any:
    """The transformer, with settings that its weights don't tell."""
    if isinstance(source, Path):
        if (source / "model_index.json").is_file():
            source /= "transformer"
        if (source / "config.json").is_file():
            config = read_object(source / "config.json")
            # The original Wan folders have such a file too, which says less than their names.
            if config.get("_class_name") != "WanModel":
                return _with_settings(_load_folder(source, config, device), source, settings)
    weights, where = _open(source, device)
    branched = bool(branched_layers(weights))
    if branched and settings:
        raise ValueError(f"{where} has UltraGen's branches, which T3-Video has not.")
    if branched:
        return _build(UltraGenTransformer3DModel, weights, where, _settings(source))
    if settings:
        return _build(UltraGenTransformer3DModel, weights, where, settings)
    return _build(WanTransformer3DModel, weights, where)


def _with_settings(model: Any, folder: Path, settings: Mapping[str, Any]) -> Any:
    """A transformer in diffusers' layout: dense Wan's weights may be meant for other layers."""
    if not isinstance(model, UltraGenTransformer3DModel):
        return UltraGenTransformer3DModel.from_wan(model, **settings) if settings else model
    if settings and not model.config.t3_windows:
        raise ValueError(f"{folder} has UltraGen's layers, which T3-Video has not.")
    return model


def load_ultragen(
    source: Source, device: str = "cpu", layout: str | None = None
) -> UltraGenTransformer3DModel:
    """Loads UltraGen or T3-Video: published weights or a folder of our own; else as
    `load_transformer`."""
    model = load_transformer(source, device, layout)
    if not isinstance(model, UltraGenTransformer3DModel):
        raise ValueError(f"{_name(source)} is {_DENSE}.")
    return model


def load_dense(source: Source, device: str = "cpu") -> WanTransformer3DModel:
    """Loads dense Wan, original or in diffusers' layout; else as `load_transformer`."""
    model = load_transformer(source, device)
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
    stored = read_stored(folder, device)
    plain = unwrapped(stored, str(folder))
    if name == WanTransformer3DModel.__name__ and is_original(plain.values()):
        # ComfyUI's or a GGUF file in place of diffusers' own.
        return _build(WanTransformer3DModel, *_original(stored, str(folder)))
    weights = without_ignored(kinds[name], {plain[key]: stored[key] for key in stored})
    model = empty_model(kinds[name], folder)
    return _fill(model, weights, {key: key for key in model.state_dict()}, str(folder))


def _open(source: Source, device: str = "cpu") -> tuple[StateDict, str]:
    """StateDict with original names, and what to call them in errors."""
    where = _name(source)
    weights = (
        check_tensors(source, where) if isinstance(source, Mapping) else read_stored(source, device)
    )
    return _original(weights, where)


def _original(weights: StateDict, where: str) -> tuple[StateDict, str]:
    return {plain: weights[key] for key, plain in plain_keys(weights, where).items()}, where


def _settings(source: Source) -> dict[str, Any]:
    """What `header_settings` gives; nothing for a state dictionary."""
    return {} if isinstance(source, Mapping) else header_settings(source)


def header_settings(source: str | Path) -> dict[str, Any]:
    """Settings that `save_released` wrote beside the weights; none in the authors' own files.

    Raises:
        OSError: if they are damaged.
    """
    text = read_header(source).get(SETTINGS)
    if text is None:
        return {}
    where = Path(source)
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
    kind: type[Model],
    weights: StateDict,
    where: str,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> Model:
    """The model that original names and shapes tell, with settings that they don't."""
    try:
        layers = depth(weights)
    except ValueError as error:
        raise ValueError(f"{where} does not fit the model: {error}") from error
    names = model_keys(layers, branched_layers(weights))
    try:
        with init_empty_weights():
            told = read_config({key: tuple(x.shape) for key, x in weights.items()})
            model = kind(**{**told, **settings})
    except ValueError as error:
        wrong = filter(None, (wrong_keys(names, weights), str(error)))
        raise ValueError(f"{where} does not fit the model: {'; '.join(wrong)}") from error
    return _fill(model, weights, names, where)


def _fill(model: Model, weights: StateDict, names: Mapping[str, str], where: str) -> Model:
    """A model with its weights, in bfloat16 if any of them was quantised."""
    model = fill(model, weights, names, where)
    quantised = any(isinstance(value, Quantised) for value in weights.values())
    return cast_weights(model, torch.bfloat16) if quantised else model
