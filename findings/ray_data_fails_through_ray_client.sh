#!/usr/bin/env bash
# Ray 2.60.0: a Ray Data pipeline with a pool of actors, written as its documentation shows it, runs
# on a cluster that is joined directly, and ends in an AttributeError of Ray's own where the same
# cluster is joined through Ray Client (ray://). Inside an actor of that cluster it runs.
set -euo pipefail
work=$(mktemp -d)
trap '"$work/env/bin/ray" stop --force >/dev/null 2>&1 || true; rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet 'ray[data,client]==2.60.0'
export RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 HOME="$work"

cat > "$work/shown.py" <<'PY'
import logging
import sys
from importlib.metadata import version

import ray

PORT, CLIENT = 26379, 26001


class Doubled:
    def __call__(self, batch):
        return {"clip": batch["clip"] * 2}


def pipeline():
    clips = ray.data.from_items([{"clip": number} for number in range(4)])
    pool = ray.data.ActorPoolStrategy(size=1)
    doubled = clips.map_batches(Doubled, batch_size=1, compute=pool)
    return sorted(row["clip"] for row in doubled.iter_rows())


@ray.remote
class Inside:
    def run(self):
        return pipeline()


def found(action):
    try:
        return str(action())
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"


def joined(address, action):
    ray.init(address, logging_level=logging.ERROR)
    try:
        return found(action)
    finally:
        ray.shutdown()


client = f"ray://127.0.0.1:{CLIENT}"
lines = [
    f"joined directly:            {joined(f'127.0.0.1:{PORT}', pipeline)}",
    f"through ray://:             {joined(client, pipeline)}",
    f"through ray://, in an actor: {joined(client, lambda: ray.get(Inside.remote().run.remote()))}",
]
print("ray", version("ray"))
print(*lines, sep="\n")
right = "[0, 2, 4, 6]"
as_told = right in lines[0] and "AttributeError" in lines[1] and right in lines[2]
sys.exit(0 if as_told else 1)
PY

"$work/env/bin/ray" start --head --port=26379 --ray-client-server-port=26001 --num-cpus=2 \
    --include-dashboard=false --disable-usage-stats >"$work/started" 2>&1 || { tail -5 "$work/started"; exit 1; }
"$work/env/bin/python" "$work/shown.py" 2>"$work/errors" || { tail -5 "$work/errors"; exit 1; }
echo "As told: the same pipeline fails through Ray Client, and runs where Ray Client is not."
