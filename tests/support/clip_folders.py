"""A folder of small clips with captions, as people keep them, with some that can't be taken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from ultragen.video import encode_video

RATE = 12
BUCKETS = ("64x96x5", "96x64x5", "64x96x1")
TAKEN = {"lying.mp4": (64, 96, 5), "standing.mp4": (96, 64, 5), "still.png": (64, 96, 1)} | {
    "sub/large.mp4": (64, 96, 5)
}
LEFT_OUT = {
    "broken.mp4": "not a video, or cut before its index",
    "no caption.mp4": "no caption",
    "short.mp4": "too short for any bucket",
    "small.mp4": "too small for any bucket",
}


def moving(num_frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth pattern that moves: uint8, t h w 3."""
    t, y, x = np.ogrid[:num_frames, :height, :width]
    waves = [np.sin(x / (9 + c + seed) + y / (7 + 2 * c) + 0.4 * t * (c + 1)) for c in range(3)]
    return np.stack([(127 + 90 * wave).astype(np.uint8) for wave in waves], axis=-1)


def make_clips(folder: Path) -> Path:
    """Writes `TAKEN` and `LEFT_OUT`, each with a caption beside it."""
    (folder / "sub").mkdir(parents=True)
    for name, frames, height, width in (
        ("lying.mp4", 17, 64, 96),
        ("standing.mp4", 6, 120, 80),
        ("sub/large.mp4", 12, 128, 192),
        ("no caption.mp4", 6, 64, 96),
        ("short.mp4", 3, 64, 96),
        ("small.mp4", 6, 48, 64),
    ):
        encode_video(moving(frames, height, width, len(name)), folder / name, RATE)
    (folder / "broken.mp4").write_bytes(b"no video " * 50)
    Image.fromarray(moving(1, 70, 110)[0]).save(folder / "still.png")
    for name in {*TAKEN, *LEFT_OUT} - {"no caption.mp4"}:
        (folder / name).with_suffix(".txt").write_text(f"a clip called {name}, in waves")
    return folder


def dataset_process(*words: object, launcher: tuple[str, ...] = (), before: str = "") -> list[str]:
    """A command line that runs `dataset` in an interpreter of its own.

    Args:
        words: Arguments of `dataset`.
        launcher: What starts it, after `python -m`; nothing for Python alone.
        before: Code that runs first.
    """
    code = f"import sys; {before}; from ultragen.cli import main; sys.argv[0] = 'ultragen'; main()"
    own = ("-c", code) if not launcher else ("-m", *launcher, "-m", "ultragen")
    return [sys.executable, *own, "dataset", *map(str, words)]


def run_to_end(command: list[str], **environment: str) -> str:
    """What a process prints that has to end well."""
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout
