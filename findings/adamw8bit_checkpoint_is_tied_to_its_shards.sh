#!/usr/bin/env bash
# torchao 0.18.0 with torch 2.13.0: a distributed checkpoint of AdamW8bit that one process saved
# can't be loaded by two if a cut between their shards falls inside a block of 256 values.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/env/bin/pip" install --quiet torchao==0.18.0

cat > "$work/shown.py" <<'PY'
import json
import logging
import sys
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as multiprocessing
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

FOLDER = Path(sys.argv[1])


def work(rank, processes, block_size):
    """One process saves the state of the optimiser, more load it and note what they met."""
    # torchao notes which of its GPU extensions are not for this machine.
    logging.disable(logging.WARNING)
    from torchao.optim import AdamW8bit

    # The same arithmetic without a C++ compiler.
    torch.compiler.set_stance("force_eager")
    meeting = FOLDER / f"meeting-{processes}-{block_size}"
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes
    )
    # As many features as the feed-forward layers of the 1.3B Wan model have.
    model = nn.Linear(256, 8960)
    fully_shard(model, mesh=init_device_mesh("cpu", (processes,)))
    optimizer = AdamW8bit(model.parameters(), block_size=block_size)
    model(torch.ones(1, 256)).sum().backward()
    optimizer.step()
    state = {"optimizer": get_optimizer_state_dict(model, optimizer)}
    checkpoint = FOLDER / f"checkpoint-{block_size}"
    result = "loaded"
    if processes == 1:
        dcp.save(state, checkpoint_id=checkpoint)
        result = "saved"
    else:
        try:
            dcp.load(state, checkpoint_id=checkpoint)
        except dcp.CheckpointException as error:
            result = str(error.failures[rank][0])
    kind = type(optimizer.state[model.bias]["exp_avg"].to_local()).__name__
    note = FOLDER / f"note-{processes}-{block_size}-{rank}.json"
    note.write_text(json.dumps([kind, result]))
    dist.destroy_process_group()


def notes(processes, block_size):
    """What each of these processes met: the type of its part of the bias's state, the result."""
    multiprocessing.spawn(work, (processes, block_size), nprocs=processes)
    return [
        json.loads((FOLDER / f"note-{processes}-{block_size}-{rank}.json").read_text())
        for rank in range(processes)
    ]


if __name__ == "__main__":
    print(f"torch {version('torch')}, torchao {version('torchao')}")
    print("A layer of 8960 features under fully_shard(); one process saves, two load:")
    results = {}
    for block_size in (256, 128):
        print(f"  AdamW8bit(block_size={block_size})")
        results[block_size] = []
        for processes in (1, 2):
            for kind, result in notes(processes, block_size):
                print(f"    {processes} process(es), the bias's state a {kind}: {result}")
                results[block_size].append((kind, result))
    kinds = [kind for kind, _ in results[256]]
    same = kinds == ["OptimState8bit", "Tensor", "Tensor"]
    same = same and all("Invalid start or end" in result for _, result in results[256][1:])
    same = same and [result for _, result in results[128]] == ["saved", "loaded", "loaded"]
    print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
    sys.exit(not same)
PY
OMP_NUM_THREADS=1 "$work/env/bin/python" "$work/shown.py" "$work"
