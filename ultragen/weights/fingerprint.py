"""A hash that tells one model's files from another's."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .folders import DISTRIBUTED, SUFFIXES

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


def _digest(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size < _LARGE:
            return hashlib.file_digest(file, "sha256").digest()
        ends = str(size).encode() + file.read(_END)
        file.seek(-_END, 2)
        return hashlib.sha256(ends + file.read(_END)).digest()
