"""Weights that don't fit a model: how errors tell of them, and a loader that refuses them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from diffusers import ModelMixin

_LISTED = 50  # keys in an error


class StrictLoading(ModelMixin):
    """Put before a model of diffusers, makes its loader refuse weights that don't fit."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, output_loading_info: bool = False, **options: Any
    ) -> Any:
        """Loads a model as diffusers does, which alone would fill gaps with noise and go on.

        Args:
            pretrained_model_name_or_path: A folder, or a repository on the Hub.
            output_loading_info: Whether to return diffusers' report beside the model.
            options: As in diffusers' `ModelMixin.from_pretrained`.

        Raises:
            ValueError: listing the keys that are missing, unexpected or misshapen; with
                `device_map`, which brings weights to their place first, diffusers may be the one
                to refuse missing ones.
        """
        source = pretrained_model_name_or_path
        quantised = any(
            settings.get("quantization_config") is not None
            for settings in (options, cls.load_config(source, **options))
        )
        # Only then are all misshapen keys reported, and not the first alone. Of quantised weights
        # the shapes, and the tensors beside them, are the quantiser's own business.
        asked = {} if quantised else {"ignore_mismatched_sizes": True}
        model, report = super().from_pretrained(
            source, output_loading_info=True, **{**asked, **options}
        )
        found = {"missing": sorted(report.get("missing_keys", ()))}
        if not quantised:
            found["unexpected"] = sorted(report.get("unexpected_keys", ()))
        if not options.get("ignore_mismatched_sizes"):
            found["misshapen"] = [
                misshapen(*each) for each in sorted(report.get("mismatched_keys", ()))
            ]
        if wrong := listed(**found):
            raise ValueError(
                f"{source} does not fit {cls.__name__}: {wrong}. Take the weights that belong to "
                "its config.json, or download the model again."
            )
        return (model, report) if output_loading_info else model


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
