#!/usr/bin/env bash
# accelerate 1.15.0: after a validation loop that is left by break, within an epoch, accumulate()
# takes the validation's loader for the training's: the last batches of the epoch make no step, or
# each batch makes one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/env/bin/pip" install --quiet accelerate==1.15.0

cat > "$work/shown.py" <<'PY'
import sys
from importlib.metadata import version

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.utils.data import DataLoader


def steps(validate):
    """After which of an epoch's six batches the optimiser steps; four are accumulated, and there is
    a validation after the second."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    clips = DataLoader(torch.ones(6, 1), batch_size=1)
    others = DataLoader(torch.ones(3, 1), batch_size=1)
    model, optimizer, clips, others = accelerator.prepare(model, optimizer, clips, others)
    stepped = []
    for number, batch in enumerate(clips, start=1):
        with accelerator.accumulate(model):
            before = model.weight.item()
            accelerator.backward(model(batch).mean())
            optimizer.step()
            optimizer.zero_grad()
        if model.weight.item() != before:
            stepped.append(number)
        if number == 2:
            validate(others)
    return stepped


def whole(batches):
    for _ in batches:
        pass


def until(last):
    def validate(batches):
        for number, _ in enumerate(batches, start=1):
            if number == last:
                break

    return validate


def closed(batches):
    iterator = iter(batches)
    next(iterator)
    batches.end()


found = {
    "all three batches": steps(whole),
    "break after the first": steps(until(1)),
    "break after the third, the last": steps(until(3)),
    "one batch, then batches.end()": steps(closed),
}

print(f"accelerate {version('accelerate')}, torch {version('torch')}")
print("Six batches, of which four are accumulated: a step is due after the fourth and the last.")
print("After the second comes a validation, on a loader of three batches:")
for way, numbers in found.items():
    print(f"  {way:<32} the optimiser steps after {', '.join(map(str, numbers))}")
same = list(found.values()) == [[4, 6], [4], [3, 4, 5, 6], [4, 6]]
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
