"""The contact sheet of a dataset."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clip_folders import moving
from PIL import Image

from ultragen.dataset.encoders import encode_clip, load_autoencoder
from ultragen.dataset.latent_preview import (
    MOST_CLIPS,
    PANEL,
    choose,
    frames_of,
    strip,
    write_preview,
)
from ultragen.dataset.shards import Clip, LatentDataset
from ultragen.presets import EMBEDDED_MODEL


@pytest.fixture(scope="module")
def vae():
    return load_autoencoder("embedded", EMBEDDED_MODEL, torch.device("cpu"))


def clip(name: str, num_frames: int, captions: tuple[str, ...] = ("waves",)) -> Clip:
    return Clip(name, captions, 64, 96, num_frames, 12.0, 0.0, "", "", "")


class Held(LatentDataset):
    """A dataset that lies in memory."""

    def __init__(self, folder, clips, latents=()) -> None:
        self.folder, self.clips, self._latents = folder, clips, latents
        self.settings = SimpleNamespace(model="embedded")

    def latents(self, number):
        return self._latents[number]


def test_frames_are_decoded_from_the_latents(vae):
    levels = np.linspace(20, 220, 9, dtype=np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (9, 64, 96, 3)).copy()
    latents = encode_clip(vae, [torch.from_numpy(frames).movedim(-1, 0) / 127.5 - 1])
    found = frames_of(vae, latents, 9)
    assert len(found) == 3
    for frame, number in zip(found, (0, 4, 8), strict=True):
        assert np.abs(levels - frame.mean()).argmin() == number
    still = encode_clip(vae, [torch.from_numpy(frames[:1]).movedim(-1, 0) / 127.5 - 1])
    assert len(frames_of(vae, still, 1)) == 1


def test_frames_of_any_shape_stand_in_panels_of_one_size():
    sizes = {strip([np.zeros((h, w, 3), np.uint8)] * n).size
             for h, w, n in ((64, 96, 3), (96, 64, 3), (64, 64, 1))}  # fmt: skip
    assert len(sizes) == 1
    tall = np.asarray(strip([np.zeros((96, 64, 3), np.uint8)]))
    columns = np.flatnonzero(tall[PANEL[1] // 2, :, 0] == 0)
    assert len(columns) == PANEL[1] * 64 // 96 and 0 < columns[0] < columns[-1] < PANEL[0]


def test_clips_of_every_size_are_shown():
    clips = [clip(f"{n:03}", 1 if n == 7 else 5) for n in range(40)]
    chosen = choose(Held(None, clips))
    assert 7 in chosen and len(chosen) <= MOST_CLIPS
    assert 0 in chosen and 39 in chosen and len(set(chosen)) == len(chosen)


def test_the_sheet(vae, tmp_path):
    video = torch.from_numpy(moving(5, 64, 96)).movedim(-1, 0) / 127.5 - 1
    latents = [encode_clip(vae, [video]), encode_clip(vae, [video[:, :1]])]
    clips = [clip("a.mp4", 5, ("words " * 100, "few")), clip("b.png", 1)]
    shown = []
    path = write_preview(Held(tmp_path, clips, latents), vae, lambda *said: shown.append(said))
    assert path == tmp_path / "preview.jpg" and len(shown) == 2
    with Image.open(path) as sheet:
        assert sheet.width > 6 * PANEL[0] and np.asarray(sheet).std() > 20
