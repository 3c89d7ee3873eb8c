#!/usr/bin/env bash
# diffusers 0.42.1: UniPC with flow sigmas cuts its timesteps to whole numbers, its sigmas stay
# exact: a transformer is told up to a whole step of 1000 less noise than the latents have.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0
"$work/env/bin/pip" install --quiet diffusers==0.42.1

cat > "$work/shown.py" <<'PY'
import sys
from importlib.metadata import version

from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler


def unipc(shift):
    """UniPC as Wan's configuration has it, with this shift."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )


def missing(scheduler, steps):
    """By how many thousandths each timestep is below the noise level of the latents."""
    scheduler.set_timesteps(steps)
    below = 1000 * scheduler.sigmas[:-1].double() - scheduler.timesteps.double()
    return [round(value, 2) for value in below.tolist()]


cut, exact = unipc(5.0), FlowMatchEulerDiscreteScheduler(shift=5.0)
below = missing(cut, 8)
none = missing(exact, 8)
many = unipc(12.0)
many.set_timesteps(100)
distinct = len(set(many.timesteps.tolist()))
levels = len(set(many.sigmas[:-1].tolist()))

print(f"torch {version('torch')}, diffusers {version('diffusers')}")
print("UniPC, flow shift 5, 8 steps:")
print(f"  sigmas x 1000  {[round(1000 * float(sigma), 2) for sigma in cut.sigmas[:-1]]}")
print(f"  timesteps      {cut.timesteps.tolist()}  {cut.timesteps.dtype}")
print(f"  difference     {below}")
print("FlowMatchEulerDiscreteScheduler, shift 5, 8 steps:")
print(f"  difference     {none}  {exact.timesteps.dtype}")
print("UniPC, flow shift 12, 100 steps:")
print(f"  {levels} noise levels, {distinct} timesteps, the first: {many.timesteps[:6].tolist()}")
same = 0.99 < max(below) <= 1 and max(none) < 0.01 and levels == 100 and distinct < 100
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
