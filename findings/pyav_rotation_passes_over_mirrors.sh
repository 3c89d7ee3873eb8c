#!/usr/bin/env bash
# PyAV 18.1.0: frame.rotation passes over mirrors. A video that is to be shown flipped left to right
# says -180, one flipped upside down says 0. frame.side_data has the whole matrix.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet av==18.1.0 numpy==2.4.6 imageio-ffmpeg==0.8.1

cat > "$work/shown.py" <<'PY'
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np

FOLDER = Path(sys.argv[1])
SIZE = 64


def ffmpeg(*arguments):
    """Runs FFmpeg's own command and gives what it writes to its output."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def white_quarter(picture):
    """Which quarter of a grey picture is the white one."""
    half = SIZE // 2
    quarters = {
        f"{row} {column}": picture[y : y + half, x : x + half].mean()
        for row, y in (("top", 0), ("bottom", half))
        for column, x in (("left", 0), ("right", half))
    }
    return max(quarters, key=quarters.get)


def look(*options):
    """The angle, the matrix, and where white is: shown by FFmpeg, and turned by that angle."""
    path = FOLDER / "marked.mp4"
    ffmpeg(*options, "-i", FOLDER / "plain.mp4", "-c", "copy", path)
    with av.open(path) as container:
        frame = next(container.decode(video=0))
    matrix = np.frombuffer(frame.side_data["DISPLAYMATRIX"], np.int32).reshape(3, 3)[:2, :2]
    raw = ffmpeg("-i", path, "-frames:v", 1, "-f", "rawvideo", "-pix_fmt", "gray", "-")
    shown = white_quarter(np.frombuffer(raw, np.uint8).reshape(SIZE, SIZE))
    turned = np.rot90(frame.to_ndarray(format="gray"), round(frame.rotation / 90))
    return frame.rotation, (matrix // 65536).tolist(), shown, white_quarter(turned)


picture = np.zeros((SIZE, SIZE, 3), np.uint8)
picture[: SIZE // 2, : SIZE // 2] = 255
with av.open(FOLDER / "plain.mp4", "w") as container:
    stream = container.add_stream("libx264", rate=24)
    stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(stream.encode())
found = {
    "-display_rotation 90": look("-display_rotation", 90),
    "-display_hflip": look("-display_hflip"),
    "-display_vflip": look("-display_vflip"),
}

names = ("av", "imageio-ffmpeg", "numpy")
print(", ".join(f"{name} {version(name)}" for name in names))
print("White is in the top left quarter. The file is then marked by FFmpeg with:")
for mark, (angle, matrix, shown, turned) in found.items():
    print(f"  {mark:20}  frame.rotation {angle:4}, matrix {matrix}")
    print(f"{'':24}FFmpeg shows white {shown}; the frame turned by that angle: {turned}")
same = list(found.values()) == [
    (90, [[0, -1], [1, 0]], "bottom left", "bottom left"),
    (-180, [[-1, 0], [0, 1]], "top right", "bottom right"),
    (0, [[1, 0], [0, -1]], "bottom left", "top left"),
]
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py" "$work"
