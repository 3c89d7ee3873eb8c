"""Which LoRAs a machine has, and which of them fit a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..presets import LORA_FOLDER, LORA_VARIABLE, LoraChoice, check_lora_strength
from ..weights.folders import SUFFIXES

Sorted = tuple[tuple[LoraChoice, ...], dict[str, str]]
"""LoRAs that can be used, and by name why others can't."""


def parse(text: str) -> LoraChoice:
    """`FILE_OR_REPOSITORY[:STRENGTH]` → a LoRA; a name in the folder `loras` will do, too.

    Raises:
        ValueError: if it names nothing, or the strength can't be used.
    """
    place, colon, last = text.strip().rpartition(":")
    strength = 1.0
    if colon and not Path(text).exists():
        try:
            strength = float(last)
        except ValueError:
            raise ValueError(
                f"The strength of the LoRA {text} is {last!r}, not a number: give "
                "FILE_OR_REPOSITORY:STRENGTH, such as style.safetensors:0.8."
            ) from None
        check_lora_strength(f"The strength of {place}", strength)
    else:
        place = text.strip()
    if not place:
        raise ValueError(f"{text!r} names no LoRA: give a file, a folder or a repository.")
    known = {lora.name: lora.place for lora in _in_folder(LORA_FOLDER, 0.0)}
    if not Path(place).expanduser().exists():
        place = known.get(place, place)
    return LoraChoice(_name(place), place, strength)


def asked_for(texts: Iterable[str]) -> tuple[LoraChoice, ...]:
    """The LoRAs that someone named, see `parse`.

    Raises:
        ValueError: as in `parse`, or if two have the same name.
    """
    found = tuple(map(parse, texts))
    names = [lora.name for lora in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"Two LoRAs are called {twice}: rename one of the files.")
    return found


def on_this_machine() -> tuple[LoraChoice, ...]:
    """What ULTRAGEN_LORA names, each with its strength, and what lies in the folder `loras`, which
    is used only where a run asks for it.

    Raises:
        ValueError: as in `parse`.
    """
    found: dict[str, LoraChoice] = {}
    for text in os.environ.get(LORA_VARIABLE, "").split():
        lora = parse(text)
        path = Path(lora.place).expanduser()
        many = _in_folder(path, lora.strength) if path.is_dir() else ()
        for each in many or (lora,):
            found.setdefault(each.name, each)
    for lora in _in_folder(LORA_FOLDER, 0.0):
        found.setdefault(lora.name, lora)
    return tuple(found.values())


def find_files(loras: Sequence[LoraChoice], strictly: bool) -> Sorted:
    """The LoRAs with their files on this machine, to where those of repositories are downloaded,
    and why others can't be had.

    Args:
        loras: What is looked for.
        strictly: Whether one that can't be had is an error.

    Raises:
        OSError: if one can't be had.
        ValueError: if a folder or repository holds several, and none was named.
    """
    from ..weights.lora_files import find_lora

    return _sort(loras, lambda lora: replace(lora, place=str(find_lora(lora.place))), strictly)


def find_fitting(loras: Sequence[LoraChoice], transformer: Any, strictly: bool) -> Sorted:
    """The LoRAs that fit a model, by names and width, and why others don't; see `find_files`."""
    from ..weights.lora_loading import check_fits

    def checked(lora: LoraChoice) -> LoraChoice:
        check_fits(Path(lora.place), transformer)
        return lora

    return _sort(loras, checked, strictly)


def _sort(
    loras: Sequence[LoraChoice], check: Callable[[LoraChoice], LoraChoice], strictly: bool
) -> Sorted:
    kept, left_out = [], {}
    for lora in loras:
        try:
            kept.append(check(lora))
        except (OSError, ValueError) as error:
            if strictly:
                raise
            left_out[lora.name] = str(error)
    return tuple(kept), left_out


def _in_folder(folder: Path, strength: float) -> tuple[LoraChoice, ...]:
    if not folder.is_dir():
        return ()
    files = (path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES)
    return tuple(LoraChoice(path.stem, str(path), strength) for path in files)


def _name(place: str) -> str:
    """What a LoRA is called: its file's or its repository's last name."""
    last = place.partition("@")[0].rstrip("/").rpartition("/")[2]
    return next((last.removesuffix(end) for end in SUFFIXES if last.endswith(end)), last)
