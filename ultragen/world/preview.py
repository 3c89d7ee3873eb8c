"""The procedural world to look at: clips, captions, a contact sheet, and how fast it renders."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..files import write_json
from ..pictures import contact_sheet, to_frames
from ..video import encode_video
from .captions import caption
from .renderer import FRAMES_PER_SECOND, render
from .scene import Scene, sample_scene

CELL = 400  # columns of a picture on the contact sheet
MOST_CELLS = 64
BENCHMARK = (256, 448, 17)  # rows, columns, frames


def write_scenes(
    scenes: list[Scene],
    height: int,
    width: int,
    num_frames: int,
    folder: Path,
    report: Callable[[float, str], None] = lambda fraction, text: None,
) -> None:
    """Writes `scene-SEED.mp4` for each scene, `captions.json` and `contact_sheet.jpg`.

    Args:
        scenes: What to draw.
        height: Rows in pixels, even.
        width: Columns in pixels, even.
        num_frames: Frames of each clip, at 12 a second.
        folder: An existing folder.
        report: Called with the fraction that is done and a text.

    Raises:
        ValueError: for sizes that a video can't have.
        OSError: if the folder can't be written to.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pictures: list[Image.Image] = []
    entries: list[dict[str, object]] = []
    for number, scene in enumerate(scenes):
        report(number / len(scenes), f"scene {number + 1} of {len(scenes)}")
        frames = _frames(scene, height, width, num_frames, device)
        path = encode_video(frames, folder / f"scene-{scene.seed:06}.mp4", FRAMES_PER_SECOND)
        text = caption(scene, seed=scene.seed)
        entries.append(
            {
                "file": path.name,
                "seed": scene.seed,
                "caption": text,
                "attributes": asdict(scene.attributes),
            }
        )
        if len(pictures) < MOST_CELLS:
            picture = Image.fromarray(frames[num_frames // 2])
            pictures.append(picture.resize((CELL, max(1, round(height * CELL / width)))))
    write_json(folder / "captions.json", entries)
    labels = [str(entry["caption"]) for entry in entries[: len(pictures)]]
    columns = min(4 if len(pictures) > 12 else 3, len(pictures))
    contact_sheet(pictures, columns, labels).save(folder / "contact_sheet.jpg", quality=85)


def _frames(
    scene: Scene, height: int, width: int, num_frames: int, device: torch.device
) -> np.ndarray:
    """Frames t h w 3, uint8."""
    video = render([scene], height, width, num_frames, device=device)[0]
    return to_frames(video)


def benchmark(
    seconds: float = 10.0, size: tuple[int, int, int] = BENCHMARK, edition: int = 1
) -> dict[str, str | float]:
    """Measures how many clips a second this machine renders, after a first batch.

    Args:
        seconds: How long to measure, at least one batch.
        size: Rows, columns and frames of a clip.
        edition: Of the world.
    """
    began = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = 32 if device == "cuda" else 1
    height, width, num_frames = size

    def one(first: int) -> None:
        scenes = [sample_scene(first + i, edition) for i in range(batch)]
        render(scenes, height, width, num_frames, device=device)
        if device == "cuda":
            torch.cuda.synchronize()

    one(0)
    first = time.perf_counter() - began
    clips, began = 0, time.perf_counter()
    while clips == 0 or time.perf_counter() - began < seconds:
        one(clips + batch)
        clips += batch
    rate = clips / (time.perf_counter() - began)
    return {
        "clip": f"{num_frames}×{height}×{width}",
        "clips_per_second": round(rate, 3),
        "first_batch_seconds": round(first, 1),
        "megapixels_per_second": round(rate * num_frames * height * width / 1e6, 1),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {_threads()}",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _threads() -> str:
    number = torch.get_num_threads()
    return f"{number} thread{'s' if number > 1 else ''}"
