#!/usr/bin/env bash
# diffusers 0.42.1: with one shift, FlowMatchEulerDiscreteScheduler and UniPC start their last step
# from other noise levels: the former starts it at its lowest level, which it shifts twice.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0
"$work/env/bin/pip" install --quiet diffusers==0.42.1

cat > "$work/shown.py" <<'PY'
import sys
from importlib.metadata import version

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

SHIFT, STEPS = 5.0, 4


def levels(scheduler, *steps, **settings):
    """The noise levels at which the steps start."""
    scheduler.set_timesteps(*steps, **settings)
    return [round(float(sigma), 3) for sigma in scheduler.sigmas[:-1]]


euler = levels(FlowMatchEulerDiscreteScheduler(shift=SHIFT), STEPS)
unipc = levels(
    UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
    ),
    STEPS,
)
later = FlowMatchEulerDiscreteScheduler()
later.set_shift(SHIFT)
later = levels(later, STEPS)
given = levels(
    FlowMatchEulerDiscreteScheduler(shift=SHIFT),
    sigmas=np.linspace(1, 0, STEPS, endpoint=False),
)

print(f"torch {version('torch')}, diffusers {version('diffusers')}")
print(f"The noise levels at which {STEPS} steps with shift {SHIFT:g} start:")
print(f"  UniPC                                                    {unipc}")
print(f"  FlowMatchEulerDiscreteScheduler(shift=5)                 {euler}")
print(f"  the same, shifted with set_shift(5)                      {later}")
print(f"  the same, shift=5, and sigmas=[1, 0.75, 0.5, 0.25] given {given}")
same = abs(unipc[-1] - 0.626) < 0.01 and abs(euler[-1] - 0.024) < 0.001
same = same and abs(later[-1] - 0.005) < 0.001 and abs(given[-1] - 0.625) < 0.001
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
