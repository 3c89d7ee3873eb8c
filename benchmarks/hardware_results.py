"""What `hardware.py` has found so far: one JSON file, written after every measurement."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ultragen.benchmark.machine import card_name
from ultragen.files import write_text

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate")
Entry = dict[str, Any]


def machine(device: str) -> Entry:
    """What measurements can only be compared on: the card and the versions."""
    memory = torch.cuda.get_device_properties(0).total_memory if device == "cuda" else None
    versions = {name: version(name) for name in LIBRARIES}
    return {
        "card": card_name(device),
        "memory_bytes": memory,
        "versions": {"python": platform.python_version(), **versions},
    }


class Results:
    """Measurements by part and name.

    Args:
        path: The JSON file, which may hold earlier ones; None keeps nothing.
        device: `cpu` or `cuda`.
        again: Whether earlier ones are measured anew.

    Raises:
        ValueError: if the file is something else.
    """

    def __init__(self, path: Path | None, device: str, again: bool = False) -> None:
        self.path, self.machine, self.again = path, machine(device), again
        self.parts = read_results([path])["parts"] if path and path.exists() else {}

    def check(self, part: str) -> None:
        """Checks that a part's earlier measurements are of this machine.

        Raises:
            ValueError: if they are of another one.
        """
        earlier = self.parts.get(part, {"machine": self.machine})["machine"]
        if earlier != self.machine:
            raise ValueError(
                f"{self.path} holds the part '{part}' from {earlier['card']} with "
                f"{earlier['versions']}, and this is {self.machine['card']} with "
                f"{self.machine['versions']}: choose another --json."
            )

    def wants(self, part: str, name: str) -> bool:
        """Whether something is still to be measured."""
        return self.again or name not in self.entries(part)

    def entries(self, part: str) -> dict[str, Entry]:
        """All that was measured of a part, by name."""
        return self.parts.get(part, {}).get("entries", {})

    def add(self, part: str, name: str, entry: Entry) -> None:
        """Keeps a measurement, in place of an earlier one of this name, and prints it."""
        known = self.parts.setdefault(part, {"machine": self.machine, "entries": {}})
        known["date"] = datetime.now(UTC).strftime("%Y-%m-%d")
        known["entries"][name] = entry
        print(f"{part}, {name}: {json.dumps(entry, ensure_ascii=False)}", flush=True)
        if self.path:
            write_text(self.path, json.dumps({"parts": self.parts}, indent=1) + "\n")


def read_results(paths: Sequence[Path]) -> Entry:
    """Reads the files of `Results`. A part that several hold from the same machine is joined; of
    parts from different ones, and of entries of one name, the last counts.

    Raises:
        OSError: if a file can't be read.
        ValueError: if a file is something else.
    """
    parts: dict[str, Entry] = {}
    for path in paths:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            for name, part in content["parts"].items():
                found = {key: part[key] for key in ("machine", "date", "entries")}
                earlier = parts.get(name, found)
                if earlier["machine"] == found["machine"]:
                    found["entries"] = {**earlier["entries"], **found["entries"]}
                parts[name] = found
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not the JSON of benchmarks/hardware.py ({error!r:.60}): choose a file "
                "that it has written with --json."
            ) from error
    return {"parts": parts}
