"""Hashes of a model's files: which model it is, and whether the one that ships is undamaged."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from ..presets import EMBEDDED_MODEL
from .folders import DISTRIBUTED, SUFFIXES
from .json_files import WAY_OUT

DIGESTS = "SHA256SUMS"
"""File of a pipeline's folder with the hash of each other one, as `sha256sum -c` reads it."""

_LARGE = 2**28  # bytes from which a fingerprint reads only both ends of a file
_END = 2**20  # bytes that it reads of each end


def fingerprint(*sources: Path) -> str:
    """SHA-256 over the names and contents of weight and configuration files, of folders or alone.

    Of files too large to be read at every start, the length and both ends count.
    """
    digest = hashlib.sha256()
    for source in sources:
        files = sorted(source.rglob("*")) if source.is_dir() else [source]
        for path in files:
            if path.suffix in (*SUFFIXES, DISTRIBUTED, ".json", ".txt") and path.is_file():
                name = path.relative_to(source).as_posix() if source.is_dir() else path.name
                digest.update(name.encode() + b"\0")
                digest.update(_digest(path))
    return digest.hexdigest()


def write_digests(folder: Path) -> None:
    """Writes `SHA256SUMS`, by which damage to weights, configurations and vocabularies is noticed.

    Args:
        folder: A pipeline's, with all of its parts.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    lines = [
        f"{_digest(path).hex()}  {path.relative_to(folder).as_posix()}\n"
        for path in files
        if path.suffix in (*SUFFIXES, ".json", ".npy")  # the last one: of previews
    ]
    (folder / DIGESTS).write_text("".join(lines), encoding="utf-8", newline="\n")


def check_shipped(folder: Path) -> None:
    """Checks that what ships with the package is undamaged: the embedded model's folder, or a
    part's below it. Of other folders nothing is read.

    Raises:
        OSError: naming the first file that is missing or has another content.
    """
    root, folder = EMBEDDED_MODEL.resolve(), folder.resolve()
    if not folder.is_relative_to(root):
        return
    for line in (root / DIGESTS).read_text(encoding="utf-8").splitlines():
        digest, name = line.split("  ", 1)
        path = root / name
        if not path.is_relative_to(folder):
            continue
        if not path.is_file():
            raise FileNotFoundError(f"The model's file {path} is missing.{WAY_OUT}")
        if _digest(path).hex() != digest:
            raise OSError(
                f"The model's file {path} is damaged: its SHA-256 is not the one that {DIGESTS} "
                f"gives.{WAY_OUT}"
            )


def _digest(path: Path) -> bytes:
    state = path.stat()
    return _read_digest(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _read_digest(path: Path, size: int, changed: int) -> bytes:
    """The hash of a file of this length and time, which a process reads once.

    Args:
        path: The file.
        size: Its bytes.
        changed: When it was changed, in nanoseconds.
    """
    with path.open("rb") as file:
        if size < _LARGE:
            return hashlib.file_digest(file, "sha256").digest()
        ends = str(size).encode() + file.read(_END)
        file.seek(-_END, 2)
        return hashlib.sha256(ends + file.read(_END)).digest()
