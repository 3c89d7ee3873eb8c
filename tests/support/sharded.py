"""One of several processes that train `Numbered` stages together; `test_sharded_training.py` and
`test_training_failures.py` start them.

Takes a JSON list of trainings, one after the other: options of `Numbered` under `stage`, those of
`numbered_settings` under `settings`, whose `out` is a folder. What a training ends with, if not by
itself, is written to OUT/RANK.txt.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from training_stages import Numbered, numbered_settings, run


def main() -> None:
    # torchao's step is compiled anew in each process, for longer than all of this takes.
    torch.compiler.set_stance("force_eager")
    for training in json.loads(sys.argv[1]):
        out = Path(training["settings"].pop("out"))
        try:
            run(Numbered(**training["stage"]), numbered_settings(out, **training["settings"]))
        except Exception as error:
            if "fails" not in training:
                raise
            (out / f"{os.environ['RANK']}.txt").write_text(f"{type(error).__name__}: {error}")
    if dist.is_initialized():
        # As the commands do: a process whose group lives on can be aborted where it ends.
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
