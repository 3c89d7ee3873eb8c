"""Reading a LoRA: a file, a folder, a repository on the Hub, or a dictionary of tensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .folders import SUFFIXES
from .hub_lora import locate_lora
from .json_files import read_object
from .lora_keys import LayerTensors
from .read import check_tensors, plain_tensor, read_weights

# What diffusers and peft call the file of a LoRA that they save.
_USUAL = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_NO_LORA = ("optimizer", "scheduler", "training_args")  # files that lie beside one


@dataclass(frozen=True)
class LoraFile:
    """A LoRA's tensors as they are in the file.

    Attributes:
        weights: By name.
        where: What to call it in errors.
        settings: peft's settings, where they stand beside the tensors.
    """

    weights: Mapping[str, Tensor]
    where: str
    settings: dict[str, Any] = field(default_factory=dict)

    def scales(self, layers: Mapping[str, LayerTensors]) -> dict[str, float]:
        """α / rank by layer, of a file whose α stands in its settings."""
        from peft.utils.other import get_pattern_key

        usual, patterns = self.settings.get("lora_alpha"), self.settings.get("alpha_pattern") or {}
        if not isinstance(usual, int | float):
            return {}
        found = {}
        for name, layer in layers.items():
            if "down" not in layer.tensors:
                continue
            keys = (get_pattern_key(list(patterns), each) for each in (*layer.names, name))
            alpha = next((patterns[key] for key in keys if key in patterns), usual)
            rank = layer.tensors["down"].shape[0]
            found[name] = alpha / (sqrt(rank) if self.settings.get("use_rslora") else rank)
        return found


def read_lora(
    source: str | Path | Mapping[str, Tensor], weight_name: str | None = None, **options: Any
) -> LoraFile:
    """Reads a LoRA without running code.

    Args:
        source: A file, a folder that holds one, a repository as for `hub_lora.locate_lora`, or the
            tensors by name, which are left as they are.
        weight_name: Which file of a folder or a repository.
        options: As for `locate_lora`.

    Raises:
        OSError: if the file can't be had, is incomplete or damaged.
        ValueError: if it holds no plain tensors, or if the folder holds several.
    """
    if isinstance(source, Mapping):
        stored = check_tensors(source, "The dictionary")
        tensors = {key: plain_tensor(value) for key, value in stored.items()}
        return LoraFile(tensors, "The dictionary")
    path = find_lora(source, weight_name, **options)
    return LoraFile(read_weights(path), str(path), _settings(path))


def find_lora(source: str | Path, weight_name: str | None = None, **options: Any) -> Path:
    """The file of a LoRA on this machine, downloaded if it is not there; as in `read_lora`."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    subfolder = options.pop("subfolder", None)
    if path.is_dir():
        folder = path / (subfolder or "")
        names = [each.name for each in folder.iterdir() if each.is_file()]
        return folder / choose_file(names, str(folder), weight_name)
    if weight_name and subfolder:
        weight_name = f"{subfolder}/{weight_name}"

    def choose(names: Iterable[str]) -> str:
        inside = [name for name in names if not subfolder or name.startswith(f"{subfolder}/")]
        return choose_file(inside, str(source), weight_name)

    return locate_lora(str(source), choose, weight_name, **options)


def choose_file(names: Iterable[str], where: str, wanted: str | None = None) -> str:
    """The one LoRA among a folder's files.

    Args:
        names: Their names.
        where: What to call the folder in errors.
        wanted: The name that was asked for.

    Raises:
        OSError: if there is none.
        ValueError: if there are several and none was asked for.
    """
    names = sorted(names)
    if wanted is not None:
        if wanted in names:
            return wanted
        raise FileNotFoundError(f"{where} has no {wanted}: it holds {_shown(names)}.")
    found = [
        name
        for name in names
        if name.endswith(SUFFIXES) and not any(word in name for word in _NO_LORA)
    ]
    found = [name for name in found if name.endswith(".safetensors")] or found
    found = [name for name in found if name in _USUAL] or found
    if not found:
        raise FileNotFoundError(f"{where} holds no LoRA: it has {_shown(names)}.")
    if len(found) > 1:
        raise ValueError(
            f"{where} holds several LoRAs ({_shown(found)}): name one, as {where}/{found[0]}."
        )
    return found[0]


def _shown(names: list[str]) -> str:
    return ", ".join(names[:6]) + (" …" if len(names) > 6 else "") or "no files"


def _settings(path: Path) -> dict[str, Any]:
    """peft's settings, which diffusers puts into the file and peft beside it."""
    beside = path.with_name("adapter_config.json")
    if path.name.startswith("adapter_model") and beside.is_file():
        return read_object(beside)
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("lora_adapter_metadata", "{}")
        content = json.loads(text)
    except (SafetensorError, ValueError):  # a PyTorch file, or settings of another tool
        return {}
    if not isinstance(content, dict):
        return {}
    return {key.removeprefix("transformer."): value for key, value in content.items()}
