#!/usr/bin/env bash
# torch 2.13.0: a distributed checkpoint that can't be written or read raises CheckpointException,
# which is a BaseException: `except Exception` around dcp.save() or dcp.load() doesn't see it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

cat > "$work/shown.py" <<'PY'
import logging
import sys
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp


def caught_by(action):
    """The clause that catches what the action raises, the type raised, and its cause."""
    try:
        action()
    except Exception as error:
        return "except Exception", type(error).__name__, None
    except BaseException as error:
        cause, _ = error.failures[0]
        return "except BaseException", type(error).__name__, type(cause).__name__
    return "nothing raised", None, None


# A checkpoint that is missing is also logged with a traceback, which is not the point here.
logging.disable(logging.ERROR)
folder = Path(sys.argv[1])
(folder / "file").write_text("no folder")
weights = {"weight": torch.zeros(2)}
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
found = {
    "torch.save into a file's 'folder'": caught_by(
        lambda: torch.save(weights, folder / "file" / "saved.pt")
    ),
    "dcp.save into a file's 'folder'": caught_by(
        lambda: dcp.save(weights, checkpoint_id=folder / "file" / "saved")
    ),
    "torch.load of a missing file": caught_by(lambda: torch.load(folder / "missing.pt")),
    "dcp.load of a missing folder": caught_by(
        lambda: dcp.load(weights, checkpoint_id=folder / "missing")
    ),
}
dist.destroy_process_group()

print(f"torch {version('torch')}")
print("What catches a failed save or load, the type raised, and for DCP the error inside:")
for action, (clause, raised, cause) in found.items():
    print(f"  {action:<34} {clause:<21} {raised}" + (f" of {cause}" if cause else ""))
clauses = [clause for clause, _, _ in found.values()]
raised = [name for _, name, _ in found.values()]
same = clauses == ["except Exception", "except BaseException"] * 2
same = same and raised[1::2] == ["CheckpointException"] * 2
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py" "$work"
