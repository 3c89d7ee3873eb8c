"""The strict loader: weights that don't fit a model are refused, and errors tell how they differ.

The loaders of diffusers and transformers fill what a file lacks with noise, and go on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from diffusers import ModelMixin

from ..files import first_line
from ..hardware import is_out_of_memory

WAY_OUT = "Take the weights that belong to its config.json, or download the model again."
_LISTED = 50  # keys in an error


class StrictLoading(ModelMixin):
    """Put before a model of diffusers, makes its loader refuse weights that don't fit.

    Attributes:
        way_out: The end of an error: what to do about a folder that can't be loaded.
    """

    way_out = WAY_OUT

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, output_loading_info: bool = False, **options: Any
    ) -> Any:
        """Loads a model as diffusers does, but strictly.

        Args:
            pretrained_model_name_or_path: A folder, or a repository on the Hub.
            output_loading_info: Whether to return diffusers' report beside the model.
            options: As for diffusers' `ModelMixin.from_pretrained`.

        Raises:
            OSError: if a file of a folder is missing or damaged; with `device_map`, which brings
                weights to their place first, diffusers may refuse missing ones so too.
            ValueError: listing the keys that are missing, unexpected or misshapen.
        """
        source = pretrained_model_name_or_path
        model, report = _load(cls, super().from_pretrained, source, (), options)
        return (model, report) if output_loading_info else model


def load_strictly(kind: Any, folder: Path, tied: Collection[str] = (), **options: Any) -> Any:
    """Loads a model of diffusers' or transformers' own classes from a folder on this machine.

    Args:
        kind: The model's class.
        folder: Holds `config.json` and the weights.
        tied: Keys that the file may lack, because they are the same tensors as others.
        options: As for the class's `from_pretrained`.

    Raises:
        OSError: if a file is missing or damaged.
        ValueError: listing the keys that are missing, unexpected or misshapen.
    """
    options["local_files_only"] = True
    return _load(kind, kind.from_pretrained, folder, tied, options)[0]


def _load(
    kind: Any,
    load: Callable[..., tuple[Any, dict[str, Any]]],
    source: Any,
    tied: Collection[str],
    options: dict[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """What a library's loader `load` gives, model and report, if the report has no complaint."""
    folder = Path(source, options.get("subfolder") or "")
    way_out = getattr(kind, "way_out", WAY_OUT)
    local = isinstance(source, Path) or folder.is_dir()  # else a repository on the Hub
    if local and not (folder / "config.json").is_file():
        # transformers would take a configuration of its own.
        raise FileNotFoundError(
            f"The model in {folder} can't be loaded: there is no config.json. {way_out}"
        )
    try:
        quantised = _quantised(kind, source, options)
        # Only then are all misshapen keys reported, and not the first alone. Of quantised weights
        # the shapes, and the tensors beside them, are the quantiser's own business.
        asked = {} if quantised else {"ignore_mismatched_sizes": True}
        model, report = load(source, output_loading_info=True, **{**asked, **options})
    except (ImportError, AssertionError):  # what a library lacks, such as CUDA
        raise
    except Exception as error:  # the readers of a damaged file raise whatever they like
        if not local or is_out_of_memory(error):
            raise
        reason = first_line(error).rstrip(".")
        raise OSError(f"The model in {folder} can't be loaded: {reason}. {way_out}") from error
    found = {"missing": sorted(set(report.get("missing_keys", ())) - set(tied))}
    if not quantised:
        found["unexpected"] = sorted(report.get("unexpected_keys", ()))
    if not options.get("ignore_mismatched_sizes"):
        found["misshapen"] = [
            misshapen(*each) for each in sorted(report.get("mismatched_keys", ()))
        ]
    if wrong := listed(**found):
        raise ValueError(f"{folder} does not fit {kind.__name__}: {wrong}. {way_out}")
    return model, report


def _quantised(kind: Any, source: Any, options: dict[str, Any]) -> bool:
    """Whether weights are quantised, or will be as they are loaded; told of diffusers' models."""
    saved = kind.load_config(source, **options) if hasattr(kind, "load_config") else {}
    return any(each.get("quantization_config") is not None for each in (options, saved))


def wrong_keys(expected: Iterable[str], found: Iterable[str]) -> str:
    """The names that are missing and those that are not expected; empty if there are none."""
    expected, found = dict.fromkeys(expected), dict.fromkeys(found)
    return listed(
        missing=[key for key in expected if key not in found],
        unexpected=[key for key in found if key not in expected],
    )


def differences(expected: Mapping[str, Iterable[int]], found: Mapping[str, Iterable[int]]) -> str:
    """The weights, name → shape, that are missing, not expected or misshapen; empty if none is."""
    other = [
        misshapen(key, found[key], shape)
        for key, shape in expected.items()
        if key in found and tuple(found[key]) != tuple(shape)
    ]
    return "; ".join(filter(None, (wrong_keys(expected, found), listed(misshapen=other))))


def listed(**kinds: list[str]) -> str:
    """Each kind with its number and its keys, the first of them where there are many."""
    return "; ".join(
        f"{kind} ({len(keys)}): {', '.join(keys[:_LISTED])}"
        + (f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else "")
        for kind, keys in kinds.items()
        if keys
    )


def misshapen(key: str, found: Iterable[int], expected: Iterable[int]) -> str:
    """What a tensor's shape is and what it should be."""
    return f"{key} is {shape_text(found)}, not {shape_text(expected)}"


def shape_text(shape: Iterable[int]) -> str:
    return " × ".join(map(str, shape)) or "a scalar"
