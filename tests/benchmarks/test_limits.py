"""`benchmarks/limits.py` and `autoencoder_shapes.py`: what they measure, and what they are told."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import limits
import pytest
import torch
from autoencoder_shapes import Variant, operations
from limits import LEVELS, Measurement, Model, bands, detail, losses, markdown
from tiny import TINY_SIZE, tiny_pipeline

from ultragen.model.autoencoder import CompactAutoencoder
from ultragen.presets import Resolution
from ultragen.world.heldout import held_out_clips


def test_detail_is_that_of_each_half():
    """A checkerboard of two greys has a Laplacian of eight times half their distance."""
    video = torch.zeros(1, 3, 2, 42, 20)
    rows, columns = torch.meshgrid(torch.arange(42), torch.arange(20), indexing="ij")
    video[..., 22:, :] = (((rows + columns) % 2)[22:] * 10) / 255
    above, below = detail(video)
    assert above == pytest.approx(0)
    assert below == pytest.approx(40, rel=0.06)  # but for the row where it begins


def test_white_noise_has_as_much_power_in_both_halves_and_most_at_high_frequencies():
    noise = torch.randn(1, 48, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    found = bands(noise)
    torch.testing.assert_close(found[0], found[1], rtol=0.1, atol=0)
    low, middle, high = found[0].tolist()
    assert low < middle < high
    waves = torch.cos(torch.arange(64) * 2 * torch.pi * 0.125).expand(1, 1, 1, 64, 64)
    assert bands(waves)[0].argmax() == 1


def test_rows_are_parts_of_the_real_clips():
    to = Measurement((64, 64), 2, "cpu")
    picture = torch.rand(1, 3, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    latents = torch.randn(1, 4, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    to.add("real", picture, latents)
    to.add("half", picture / 2, latents / 2)
    rows = to.rows()
    assert rows["half"]["detail above of real"] == pytest.approx(0.5)
    assert rows["half"]["bands below"] == pytest.approx([0.25] * 3)
    assert markdown(rows).splitlines()[-1].startswith("| half |")
    assert [crop.size for crop in to.crop("half", picture)] == [(64, 64)] * 2


def test_the_loss_by_noise_level_is_the_velocitys():
    pipe, case = tiny_pipeline(), held_out_clips(1)[0]
    clean = torch.randn(1, TINY_SIZE.z_dim, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = losses(pipe, case, clean)
    assert len(found) == 2 * len(LEVELS) and all(value > 0 for value in found.values())


@pytest.mark.parametrize(("asked", "edition"), [([], 2), (["--edition", "1"], 1)])
def test_scenes_are_of_the_models_edition(monkeypatch, tmp_path, asked, edition):
    """Unless an edition is named."""
    pipe = tiny_pipeline()
    monkeypatch.setattr(type(pipe), "edition", 2)
    monkeypatch.setattr(type(pipe), "from_pretrained", lambda *_, **options: pipe)
    monkeypatch.setitem(limits.RESOLUTIONS, "tiny", Resolution("tiny", 128, 160, 120))
    file = tmp_path / "limits.json"
    arguments = ["--clips", "1", "--frames", "1", "--resolution", "tiny", "--json", str(file)]
    assert limits.main([*arguments, *asked]) == 0
    found = json.loads(file.read_text())
    assert found["captions"] == [held_out_clips(1, edition=edition)[0].caption]


def test_models_and_variants_are_read():
    model = Model.read("teacher=some/folder:20:3")
    assert model == Model("teacher", Path("some/folder"), 20, 3.0)
    assert Model.read("own=folder") == Model("own", Path("folder"))
    with pytest.raises(argparse.ArgumentTypeError, match="NAME=FOLDER"):
        Model.read("nothing")
    variant = Variant.read("wide encoder_channels=16,32,64 z_dim=8 stage.adversarial=0.5")
    assert variant.model == {"encoder_channels": (16, 32, 64), "z_dim": 8}
    assert variant.stage == {"adversarial": 0.5}
    with pytest.raises(argparse.ArgumentTypeError, match="z_dim=many"):
        Variant.read("odd z_dim=many")


def test_operations_of_decoding_are_counted():
    settings = {"decoder_channels": (16, 8, 8), "decoder_blocks": (0, 0, 0)}
    few = operations(CompactAutoencoder(8, **settings))
    more = operations(CompactAutoencoder(8, **{**settings, "decoder_blocks": (0, 0, 1)}))
    # Two convolutions of 3 × 3 × 8 × 8 at a quarter of the size, for four frames at once.
    assert more - few == pytest.approx(2 * 2 * 9 * 8 * 8 / (16 * 4))
