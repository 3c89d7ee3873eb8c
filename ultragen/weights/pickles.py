"""What a PyTorch file would call up, found without unpickling it.

`torch.load(weights_only=True)` refuses code, but where the pickle's protocol is not PyTorch's own
it says no more than that it can't read the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from pickletools import genops
from typing import Any
from zipfile import ZipFile

# What tensors and state dictionaries are made of.
_PLAIN = re.compile(r"collections\.OrderedDict|torch\.(\w+Storage|Size|_utils\._rebuild_\w+)")
_LEGACY_PICKLES = 5  # a number, the version, the machine, the object, the names of storages


def foreign_objects(path: Path) -> tuple[int | None, list[str]]:
    """Looks through the pickles in a PyTorch file, of the zip format or the legacy one.

    Returns:
        The pickles' protocol, None where they can't be read to an end; and the dotted names of all
        that is called up beside tensors.
    """
    protocol, names = None, dict[str, None]()
    with suppress(Exception), path.open("rb") as file:  # a damaged file's readers raise anything
        stream: Any = (
            BytesIO(_read_member(path, "data.pkl"))
            if file.read(2) == b"PK"
            else mmap(file.fileno(), 0, access=ACCESS_READ)
        )
        start = stream.read(2)
        stream.seek(0)
        for _ in range(_LEGACY_PICKLES):
            names.update(dict.fromkeys(_called_up(stream)))
            protocol = start[1] if start[0] == 0x80 else 0
    return protocol, [name for name in names if not _PLAIN.fullmatch(name)]


def _read_member(path: Path, name: str) -> bytes:
    with ZipFile(path) as archive:
        return archive.read(next(each for each in archive.namelist() if each.endswith(name)))


def _called_up(stream: Any) -> Iterator[str]:
    """The names in one pickle. From protocol 4 on they lie on the stack, or come from the memo."""
    pushed: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any
    for opcode, argument, _ in genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            yield argument.replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(map(str, pushed[-2:]))
        if opcode.name.endswith("PUT") or opcode.name == "MEMOIZE":
            memo[len(memo) if argument is None else argument] = pushed[-1]
        elif opcode.name.endswith("GET"):
            pushed.append(memo.get(argument))
        elif opcode.stack_after:
            pushed.append(argument)
