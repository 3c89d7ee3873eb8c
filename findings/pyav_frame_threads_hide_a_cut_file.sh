#!/usr/bin/env bash
# PyAV 18.1.0: with thread_type "FRAME" or "AUTO" an MP4 that is cut off in the middle decodes to
# its end without an error. With "SLICE", the default, the same frames come, then InvalidDataError.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet av==18.1.0 numpy==2.4.6

cat > "$work/shown.py" <<'PY'
import io
import sys
from importlib.metadata import version
from pathlib import Path

import av
import numpy as np

PATH = Path(sys.argv[1]) / "whole.mp4"
FRAMES = 48


def write():
    """Writes an MP4 of noise whose index comes first, so that its start can be read alone."""
    noise = np.random.default_rng(0)
    with av.open(PATH, "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for _ in range(FRAMES):
            picture = noise.integers(0, 256, (96, 128, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def decode(data, kind):
    """How many frames come, and the error that ends them."""
    frames = 0
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.thread_type = kind
        stream.codec_context.thread_count = 4
        try:
            for _ in container.decode(stream):
                frames += 1
        except av.error.InvalidDataError as error:
            return frames, type(error).__name__
    return frames, None


write()
whole = PATH.read_bytes()
cut = whole[: len(whole) * 6 // 10]
kinds = ("SLICE", "FRAME", "AUTO")
found = {kind: decode(cut, kind) for kind in kinds}
complete = {kind: decode(whole, kind) for kind in kinds}
with av.open(io.BytesIO(cut)) as container:
    corrupt = sum(packet.is_corrupt for packet in container.demux(video=0))

names = ("av", "numpy")
print(", ".join(f"{name} {version(name)}" for name in names))
print(f"An MP4 of {FRAMES} frames, cut at 60 % of its bytes, decoded with four threads:")
for kind, (frames, error) in found.items():
    print(f"  thread_type {kind:5}: {frames} frames, then {error or 'the end, no error'}")
print(f"The cut packet is marked all the while: packets with is_corrupt: {corrupt}")
counts = {frames for frames, _ in found.values()}
same = len(counts) == 1 and 0 < counts.pop() < FRAMES and corrupt == 1
same = same and [error for _, error in found.values()] == ["InvalidDataError", None, None]
same = same and set(complete.values()) == {(FRAMES, None)}
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py" "$work"
