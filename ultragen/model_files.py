"""Checks of a pipeline's folder that read no weights: all parts there, all files whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from .presets import WAN_SOURCE

_WAY_OUT = " Restore it with git, or download the model again."
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
_LARGE = 2**28  # bytes from which a fingerprint reads only both ends of a file
_END = 2**20


def check_model_files(folder: Path) -> None:
    """Checks that every file the model's indexes name is there and whole.

    Raises:
        OSError: naming the first file that is missing, truncated or corrupt.
    """
    index = read_index(folder)
    for component, kind in index.items():
        if not isinstance(kind, list) or kind[0] is None:
            continue
        if not (folder / component).is_dir():
            raise FileNotFoundError(f"The model's part {folder / component} is missing.{_WAY_OUT}")
    for path in sorted(folder.rglob("*.json")):
        content = _read_json(path)
        for shard in sorted(set(content.get("weight_map", {}).values())):
            if not (path.parent / shard).is_file():
                raise FileNotFoundError(
                    f"The weights file {path.parent / shard} is missing.{_WAY_OUT}"
                )
    for path in sorted(folder.rglob("*.safetensors")):
        _check_safetensors(path)


def check_base(folder: Path) -> None:
    """Checks that a folder is text-to-video Wan in diffusers' layout, with all of its files.

    Raises:
        ValueError: if it is another model, naming what it looks like.
        OSError: if a file is missing, truncated or corrupt.
    """
    wanted = f"take {WAN_SOURCE.repository}, or a copy of it, in {WAN_SOURCE.variable}"
    if folder.is_file():
        raise ValueError(f"{folder} is a file, and the base model is a folder: {wanted}.")
    if not (folder / "model_index.json").is_file() and (folder / "Wan2.1_VAE.pth").is_file():
        raise ValueError(f"{folder} is Wan in its authors' own layout, not diffusers': {wanted}.")
    kind = read_index(folder).get("_class_name")
    if kind != "WanPipeline":
        raise ValueError(f"{folder} looks like {kind}, not text-to-video Wan: {wanted}.")
    check_model_files(folder)
    for part in ("text_encoder", "transformer", "vae"):
        check_weights(folder / part)
    # Without either, transformers would make up a vocabulary.
    tokenizer = [folder / "tokenizer" / name for name in ("tokenizer.json", "spiece.model")]
    if not any(path.is_file() for path in tokenizer):
        raise FileNotFoundError(f"{tokenizer[0]} is missing: download the model again.")


def check_weights(folder: Path) -> None:
    """Checks that a part's folder has weights at all.

    Raises:
        OSError: if it has none, or half a download.
    """
    files = [path.name for path in sorted(folder.iterdir())] if folder.is_dir() else []
    if not any(name.endswith(_WEIGHTS) for name in files):
        part = [name for name in files if name.endswith((".incomplete", ".part"))]
        what = f"holds half a download ({part[0]})" if part else "holds no weights"
        raise FileNotFoundError(f"The model's part {folder} {what}.{_WAY_OUT}")


def read_index(folder: Path) -> dict[str, Any]:
    """What a pipeline's folder says of itself.

    Raises:
        OSError: if the file is missing or corrupt.
    """
    return _read_json(folder / "model_index.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"The model's file {path} is missing.{_WAY_OUT}") from error
    except ValueError as error:
        raise OSError(f"The model's file {path} is corrupt: {error}.{_WAY_OUT}") from error
    return content if isinstance(content, dict) else {}


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
                (entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"),
                default=0,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OSError(f"The weights file {path} is corrupt.{_WAY_OUT}") from error
    if size != 8 + length + end:
        raise OSError(
            f"The weights file {path} is truncated: {size:,} of {8 + length + end:,} bytes."
            f"{_WAY_OUT}"
        )


def fingerprint(*sources: Path) -> str:
    """SHA-256 over the names and contents of weight and configuration files, of folders or alone.

    Of files too large to be read at every start, the length and both ends count.
    """
    digest = hashlib.sha256()
    for source in sources:
        files = sorted(source.rglob("*")) if source.is_dir() else [source]
        for path in files:
            if path.suffix in (*_WEIGHTS, ".json", ".txt") and path.is_file():
                name = path.relative_to(source).as_posix() if source.is_dir() else path.name
                digest.update(name.encode() + b"\0")
                digest.update(_digest(path))
    return digest.hexdigest()


def _digest(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size < _LARGE:
            return hashlib.file_digest(file, "sha256").digest()
        ends = str(size).encode() + file.read(_END)
        file.seek(-_END, 2)
        return hashlib.sha256(ends + file.read(_END)).digest()


def weight_bytes(source: Path) -> int:
    """Bytes of all weights in a folder, or of one file."""
    files = source.rglob("*") if source.is_dir() else [source]
    return sum(path.stat().st_size for path in files if path.suffix in _WEIGHTS)
