"""What a dataset holds, to look at: clips decoded from their latents, with their captions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ..files import whole_file
from ..pictures import contact_sheet, to_uint8
from ..sampling.decoding import decode_pieces
from .encoders import Autoencoder
from .shard_files import size_text
from .shards import LatentDataset

PREVIEW = "preview.jpg"
MOST_CLIPS, COLUMNS = 12, 2
FRAMES = 3  # of each clip: the first, the middle and the last one
PANEL = (320, 180)  # columns and rows of one of them
GAP = 4
MOST_LETTERS = 220  # of a caption


def write_preview(
    dataset: LatentDataset,
    vae: Autoencoder,
    show: Callable[[float, str], None] = lambda fraction, text: None,
) -> Path:
    """Writes a contact sheet into a dataset's folder: of some clips of every size the first, middle
    and last frame, as the latents decode to, and the first caption.

    Args:
        dataset: The clips.
        vae: The autoencoder that encoded them.
        show: Called with the fraction that is done and a text.

    Raises:
        OSError: A shard is damaged, or the folder can't be written to.
    """
    numbers = choose(dataset)
    pictures, labels = [], []
    for done, number in enumerate(numbers):
        show(done / len(numbers), f"decoding clip {done + 1} of {len(numbers)}")
        clip = dataset.clips[number]
        pictures.append(strip(frames_of(vae, dataset.latents(number), clip.num_frames)))
        caption = " ".join(clip.captions[0].split())
        if len(caption) > MOST_LETTERS:
            caption = f"{caption[:MOST_LETTERS]}…"
        more = f" (1 of {len(clip.captions)} captions)" if len(clip.captions) > 1 else ""
        labels.append(f"{clip.name}, {clip.start:.1f} s, {size_text(clip.size)}: {caption}{more}")
    sheet = contact_sheet(pictures, min(COLUMNS, len(pictures)), labels)
    with whole_file(dataset.folder / PREVIEW) as partial:
        sheet.save(partial, quality=88)
    return dataset.folder / PREVIEW


def choose(dataset: LatentDataset) -> list[int]:
    """Numbers of clips from all over the dataset, of each size about equally many."""
    queues = [list(numbers) for numbers in dataset.by_size().values()]
    share = max(1, MOST_CLIPS // len(queues))
    chosen: list[int] = []
    for queue in queues[:MOST_CLIPS]:
        places = np.linspace(0, len(queue) - 1, min(share, len(queue)))
        chosen += [queue[round(place)] for place in places]
    return chosen


def frames_of(vae: Autoencoder, latents: torch.Tensor, num_frames: int) -> list[np.ndarray]:
    """The first, middle and last frame of a clip's latents c t h w, uint8, h w 3; of a still the
    one that it has."""
    wanted = sorted({0, num_frames // 2, num_frames - 1})
    found, before = [], 0
    for piece in decode_pieces(vae, latents[None].to(vae.device).float()):
        inside = [index - before for index in wanted if 0 <= index - before < piece.shape[2]]
        found += [to_uint8(piece[0, :, index]).permute(1, 2, 0).cpu().numpy() for index in inside]
        before += piece.shape[2]
    return found


def strip(frames: list[np.ndarray]) -> Image.Image:
    """Frames beside each other, each whole within a panel of one size."""
    width, height = PANEL
    sheet = Image.new("RGB", (FRAMES * (width + GAP) - GAP, height), (250, 250, 250))
    for place, frame in enumerate(frames):
        panel = ImageOps.pad(
            Image.fromarray(frame), PANEL, Image.Resampling.LANCZOS, color=(250, 250, 250)
        )
        sheet.paste(panel, (place * (width + GAP), 0))
    return sheet
