"""One of two hosts that do not fit together; `test_nodes.py` starts them.

Takes a folder and writes there, to RANK.json, what is said of each pair.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from accelerate import PartialState

from ultragen.training import processes


@contextmanager
def another_folder(folder: Path) -> Iterator[None]:
    """As where each host has a disk of its own."""
    here = Path.cwd()
    folder.mkdir()
    os.chdir(folder)
    yield
    os.chdir(here)


def said() -> str:
    try:
        with processes.together(Path("run")):
            return "nothing"
    except (ValueError, OSError) as error:
        return str(error)


def main() -> None:
    out, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    os.chdir(out)
    found = {"alike": said()}
    with mock.patch.object(processes, "__version__", f"0.{rank}"):
        found["UltraGen"] = said()
    with mock.patch.object(torch, "__version__", f"2.{rank}"):
        found["torch"] = said()
    with another_folder(out / str(rank)):
        found["folder"] = said()
    (out / f"{rank}.json").write_text(json.dumps(found))
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
