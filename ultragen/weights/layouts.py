"""T3-Video's weights: how they are told from dense Wan's, whose names and shapes they have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

from ..model.wan_1_3b import T3
from ..presets import LAYOUT_VARIABLE, T3_SOURCE, ULTRAGEN_SOURCE, HubSource
from .hub import named
from .json_files import read_object

Layout = Literal["t3"]
"""How the layers attend, where neither names nor shapes of weights tell it."""
LAYOUT_SETTINGS = {"t3": T3}
"""What the transformer's configuration has for it."""

_T3_NAME = T3_SOURCE.repository.rpartition("/")[2].lower()
WAN_2_2_CHANNELS = 48
"""Latent channels of Wan2.2-5B, for which there are T3-Video weights too, with other windows."""


def asked_layout(layout: str | None = None) -> Layout | None:
    """The layout that someone names, by argument or by ULTRAGEN_LAYOUT; None if nobody does.

    Raises:
        ValueError: if there is no such layout.
    """
    asked = layout or os.environ.get(LAYOUT_VARIABLE)
    return check_layout(asked) if asked else None


def check_layout(layout: str) -> Layout:
    """Checks the name of a layout.

    Raises:
        ValueError: if there is no such layout.
    """
    if layout not in get_args(Layout):
        raise ValueError(
            f"There is no layout {layout!r}: choose {' or '.join(get_args(Layout))}, or leave it, "
            f"and {LAYOUT_VARIABLE}, out for UltraGen's."
        )
    return layout  # type: ignore[return-value]


def layout_of(source: str | Path, layout: str | None = None) -> Layout | None:
    """The layout of weights: what was asked for, what a folder of our own says, or what the file or
    the repository is called; None for UltraGen's, or dense Wan's.

    Args:
        source: A file, a transformer's or a pipeline's folder, or `owner/name@revision`.
        layout: What was asked for, without regard to the environment.

    Raises:
        ValueError: if there is no such layout.
        OSError: if the folder's configuration is corrupt.
    """
    if layout:
        return check_layout(layout)
    path = Path(source)
    for file in (path / "config.json", path / "transformer" / "config.json"):
        config = read_object(file) if file.is_file() else {}
        if config.get("_class_name") == "UltraGenTransformer3DModel":
            return "t3" if config.get("t3_windows") else None
    names = (path.name, _repository_name(source))
    return "t3" if any(_T3_NAME in name.lower() for name in names) else None


def published_file(path: Path) -> Path:
    """T3-Video's own file for Wan2.1-1.3B where a folder holds it, maybe beside others."""
    file = path / T3_SOURCE.files[0]
    return file if file.is_file() else path


def weights_source(given: str | Path | None = None) -> HubSource:
    """Whose files a name on the Hub stands for, in place of UltraGen's: T3-Video's."""
    name = _repository_name(named(given, ULTRAGEN_SOURCE))
    return T3_SOURCE if name.lower() == _T3_NAME else ULTRAGEN_SOURCE


def _repository_name(source: str | Path) -> str:
    """The name in `owner/name@revision`."""
    return str(source).partition("@")[0].rpartition("/")[2]


def check_t3(channels: int, where: str) -> None:
    """Checks that weights are of the model that T3-Video's windows here are for.

    Raises:
        ValueError: if they are Wan2.2-5B's.
    """
    if channels == WAN_2_2_CHANNELS:
        raise ValueError(
            f"{where} is T3-Video for Wan2.2-5B, which has other windows and another autoencoder: "
            f"take {T3_SOURCE.files[0]}."
        )
