"""Which files a model's folder must have: all parts there, all files whole. Reads no weights."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from ..presets import WAN_SOURCE
from .json_files import WAY_OUT, corrupt, fits, read_json, read_object

SHARD = re.compile(r"(?P<name>.+)-\d{5}-of-(?P<number>\d{5})(?P<suffix>\.\w+)")
_PART = tuple[str | None, str | None]  # library and class
_PARTS = ("tokenizer", "text_encoder", "vae", "scheduler", "transformer", "base_transformer")
SUFFIXES = (".safetensors", ".ckpt", ".pth", ".pt", ".bin", ".gguf")
DISTRIBUTED = ".distcp"  # the shards of `torch.distributed.checkpoint`


def check_model_files(folder: Path, without: Collection[str] = ()) -> None:
    """Checks that every file the model's indexes name is there and whole.

    Args:
        folder: A pipeline's, in diffusers' layout.
        without: Parts that need not be there.

    Raises:
        OSError: naming the first file that is missing, truncated or corrupt.
    """
    index = read_index(folder)
    for component, kind in index.items():
        if component in without or not fits(kind, _PART) or kind[0] is None:
            continue
        if not (folder / component).is_dir():
            raise FileNotFoundError(f"The model's part {folder / component} is missing.{WAY_OUT}")
        if lacking := missing_index(path.name for path in (folder / component).iterdir()):
            raise FileNotFoundError(
                f"The model's part {folder / component} holds shards, and their index {lacking} is "
                f"missing.{WAY_OUT}"
            )
    for path in sorted(folder.rglob("*.json")):
        read_json(path)
        if ".index." not in f".{path.name}":
            continue
        for shard in sorted(set(weight_map(path).values())):
            if not (path.parent / shard).is_file():
                raise FileNotFoundError(
                    f"The weights file {path.parent / shard} is missing.{WAY_OUT}"
                )
    for path in sorted(folder.rglob("*.safetensors")):
        _check_safetensors(path)


def check_base(folder: Path, without: Collection[str] = ()) -> None:
    """Checks that a folder is text-to-video Wan in diffusers' layout, with all of its files.

    Args:
        folder: The base model's.
        without: Parts that need not be there.

    Raises:
        ValueError: as in `check_kind`.
        OSError: if a file is missing, truncated or corrupt.
    """
    check_kind(folder)
    check_model_files(folder, without)
    for part in ("text_encoder", "transformer", "vae"):
        if part not in without:
            check_weights(folder / part)
    # Without either, transformers would make up a vocabulary.
    tokenizer = [folder / "tokenizer" / name for name in ("tokenizer.json", "spiece.model")]
    if not any(path.is_file() for path in tokenizer):
        raise FileNotFoundError(f"{tokenizer[0]} is missing: download the model again.")


def check_kind(folder: Path) -> None:
    """Checks what a folder says it is, which must be text-to-video Wan in diffusers' layout.

    Raises:
        ValueError: if it is another model, naming what it looks like.
        OSError: if its index is missing or corrupt.
    """
    wanted = f"take {WAN_SOURCE.repository}, or a copy of it, in {WAN_SOURCE.variable}"
    if folder.is_file():
        raise ValueError(f"{folder} is a file, and the base model is a folder: {wanted}.")
    if not (folder / "model_index.json").is_file() and (folder / "Wan2.1_VAE.pth").is_file():
        raise ValueError(f"{folder} is Wan in its authors' own layout, not diffusers': {wanted}.")
    kind = read_index(folder).get("_class_name")
    if kind != "WanPipeline":
        raise ValueError(f"{folder} looks like {kind}, not text-to-video Wan: {wanted}.")


def check_weights(folder: Path) -> None:
    """Checks that a part's folder has weights at all.

    Raises:
        OSError: if it has none, or half a download.
    """
    files = [path.name for path in sorted(folder.iterdir())] if folder.is_dir() else []
    if not any(name.endswith(SUFFIXES) for name in files):
        part = [name for name in files if name.endswith((".incomplete", ".part"))]
        what = f"holds half a download ({part[0]})" if part else "holds no weights"
        raise FileNotFoundError(f"The model's part {folder} {what}.{WAY_OUT}")


def first_weights(folder: Path) -> str | None:
    """Name of a weights file right in a folder, not in a part's; None if there is none."""
    return min((path.name for path in folder.iterdir() if path.suffix in SUFFIXES), default=None)


def weight_bytes(source: Path) -> int:
    """Bytes of all weights in a folder, or of one file."""
    files = source.rglob("*") if source.is_dir() else [source]
    return sum(path.stat().st_size for path in files if path.suffix in (*SUFFIXES, DISTRIBUTED))


def read_index(folder: Path) -> dict[str, Any]:
    """What a pipeline's folder says of itself.

    Raises:
        OSError: if the file is missing or corrupt.
    """
    parts = dict.fromkeys(_PARTS, _PART)
    return read_object(folder / "model_index.json", {"_class_name": str, **parts})


def weight_map(index: Path) -> dict[str, str]:
    """Name of each tensor of a model in shards → the shard's file name.

    Raises:
        OSError: if the index is missing or corrupt.
    """
    content = read_object(index, {"weight_map": dict[str, str]})
    if "weight_map" not in content:
        raise corrupt(index, "no weight_map")
    return content["weight_map"]


def missing_index(names: Iterable[str]) -> str | None:
    """The index that a folder with these files lacks: its weights are all shards, and none tells
    which tensor lies where."""
    names = list(names)
    weights = [name for name in names if name.endswith(SUFFIXES)]
    shards = [found for name in weights if (found := SHARD.fullmatch(name))]
    if len(shards) < max(len(weights), 1) or any(".index." in name for name in names):
        return None
    return f"{shards[0]['name']}{shards[0]['suffix']}.index.json"


def _check_safetensors(path: Path) -> None:
    """Compares the length of a file with its header, which tells where each tensor ends."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start.startswith(b"version "):
            raise OSError(f"The weights file {path} is only a pointer: run 'git lfs pull'.")
        try:
            if len(start) < 8 or length > size:
                raise ValueError("no header")
            header = json.loads(file.read(length))
            end = max(
                (
                    int(entry["data_offsets"][1])
                    for name, entry in header.items()
                    if name[:2] != "__"
                ),
                default=0,
            )
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise OSError(f"The weights file {path} is corrupt.{WAY_OUT}") from error
    if size != 8 + length + end:
        raise OSError(
            f"The weights file {path} is truncated: {size:,} of {8 + length + end:,} bytes."
            f"{WAY_OUT}"
        )
