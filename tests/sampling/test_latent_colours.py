"""Previews: the shipped map beside real frames, and the clean picture behind a noisy step."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate
from transformers import AutoTokenizer

from ultragen.dataset.encoders import encode_clip, load_autoencoder
from ultragen.pictures import to_frames
from ultragen.presets import EMBEDDED_MODEL
from ultragen.sampling.latent_colours import FILE, LARGEST, DenoisingPreview, LatentColours
from ultragen.sampling.words import find_edition
from ultragen.world.renderer import render
from ultragen.world.scene import sample_scene

CHANNELS = 48


@pytest.fixture(scope="module")
def colours() -> LatentColours:
    found = LatentColours.load(EMBEDDED_MODEL, CHANNELS)
    assert found is not None
    return found


def decoded(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture))).astype(float)


def test_the_shipped_map_shows_a_scene_that_it_was_not_fitted_to(colours):
    edition = find_edition(AutoTokenizer.from_pretrained(EMBEDDED_MODEL / "tokenizer"))
    clip = render([sample_scene(7, edition)], 96, 160, 5)[0]
    vae = load_autoencoder("embedded", EMBEDDED_MODEL, torch.device("cpu"))
    latents = encode_clip(vae, [clip * 2 - 1])
    shown = colours.frame(latents[:, 1])
    true = interpolate(clip[:, 3][None], shown.shape[1:], mode="area")[0]
    assert shown.shape == (3, 24, 40)
    error = (shown - true).square().mean()
    assert error < 0.08 * true.var()
    assert error < 0.1 * (shown.flip(2) - true).square().mean()  # not upside down or mirrored
    assert error < 0.1 * (shown.flip(1) - true).square().mean()


@pytest.mark.parametrize("level", [0.9, 0.3, 0.0])
def test_the_picture_is_the_clean_one_behind_the_noise(colours, level):
    """On the straight path from noise to data, both ends of any step tell the data."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(1, CHANNELS, 3, 8, 12, generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    preview = DenoisingPreview(colours)
    sigmas = torch.tensor([1.0, 0.95, level])
    at = [(1 - sigma) * clean + sigma * noise for sigma in sigmas]
    assert preview.after_step(0, at[1], sigmas) is None
    picture = preview.after_step(1, at[2], sigmas)
    apart = [
        abs(decoded(picture) - to_frames(colours.frame(frame)[:, None])[0]).mean()
        for frame in clean[0].unbind(1)
    ]
    assert apart[1] < 0.5 * min(apart[0], apart[2])  # but for JPEG's losses


def test_a_large_clip_has_a_small_preview(colours):
    preview = DenoisingPreview(colours)
    latents = torch.zeros(1, CHANNELS, 1, 136, 240)
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    preview.after_step(0, latents, sigmas)
    picture = decoded(preview.after_step(1, latents, sigmas))
    assert picture.shape == (LARGEST * 136 // 240, LARGEST, 3)


def test_a_model_without_a_map_has_no_previews(tmp_path):
    assert LatentColours.load(tmp_path, 16) is None


def test_a_map_of_another_model_or_a_damaged_one_is_named(tmp_path):
    np.save(tmp_path / FILE, np.zeros((17, 48), np.float32))
    with pytest.raises(OSError, match="48 channels need 49 rows"):
        LatentColours.load(tmp_path, 48)
    (tmp_path / FILE).write_bytes(b"no map")
    with pytest.raises(OSError, match=f"{FILE} is damaged"):
        LatentColours.load(tmp_path, 48)
