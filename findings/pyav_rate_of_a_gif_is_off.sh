#!/usr/bin/env bash
# PyAV 18.1.0: stream.average_rate of a GIF is not its average: one of 16 frames a second says 50/3,
# one of 24 says 25, although the times of their frames are right. MP4 says what was asked for.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet av==18.1.0 numpy==2.4.6

cat > "$work/shown.py" <<'PY'
import sys
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path

import av
import numpy as np

FOLDER = Path(sys.argv[1])
FRAMES = 81


def rates(suffix, codec, pixels, rate):
    """Writes a clip: the rate that its stream says, and that of its frames and its length."""
    path = FOLDER / f"clip{rate}{suffix}"
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 64, pixels
        for number in range(FRAMES):
            picture = np.full((64, 64, 3), 3 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    with av.open(path) as container:
        stream = container.streams.video[0]
        said, length = stream.average_rate, stream.duration * stream.time_base
        number = sum(1 for _ in container.decode(stream))
    return said, round(float(number / length), 2)


found = {
    (rate, suffix): rates(suffix, codec, pixels, rate)
    for rate in (16, 24)
    for suffix, codec, pixels in ((".mp4", "libx264", "yuv420p"), (".gif", "gif", "rgb8"))
}

print(f"av {version('av')}, numpy {version('numpy')}")
print(f"Clips of {FRAMES} frames:")
for (rate, suffix), (said, real) in found.items():
    print(f"  {rate} a second, {suffix}  average_rate {said!s:<5} frames / duration {real}")
same = [said for said, _ in found.values()] == [16, Fraction(50, 3), 24, 25]
same = same and all(abs(real - rate) < 0.1 for (rate, _), (_, real) in found.items())
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py" "$work"
