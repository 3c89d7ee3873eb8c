"""Previews of a model that ships no map: fitted to its autoencoder, kept, and only where seen."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ultragen.dataset.encoders import load_autoencoder
from ultragen.model.autoencoder import CompactAutoencoder
from ultragen.presets import EMBEDDED_MODEL
from ultragen.runs import fitted_colours
from ultragen.runs.fitted_colours import (
    EDITION,
    FRAMES,
    LEAST,
    SHOWN,
    FittedColours,
    examples,
    explained,
    fit,
    least_squares,
    scenes,
)
from ultragen.runs.progress import Cancelled
from ultragen.world.renderer import render
from ultragen.world.scene import sample_scene

MEAN, STD = 0.3, 0.7


class MeanColours(nn.Module):
    """Groups of four frames b (4 · 3) h w in [-1, 1] → the mean colours of 4 × 4 pixels in the one
    that is shown, b 48 h/16 w/16, turned."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        turn = torch.linalg.qr(torch.randn(48, 48, generator=generator)).Q
        self.turn = nn.Parameter(turn)

    def forward(self, groups: Tensor) -> Tensor:
        [shown] = SHOWN
        frame = groups.unflatten(1, (4, 3))[:, shown - 1]
        cells = rearrange(F.avg_pool2d(frame, 4), "b c (h y) (w x) -> b (y x c) h w", y=4, x=4)
        return torch.einsum("oi,bihw->bohw", self.turn, cells)


def linear_autoencoder() -> CompactAutoencoder:
    vae = CompactAutoencoder(latents_mean=(MEAN,) * 48, latents_std=(STD,) * 48)
    vae.encoder = MeanColours()
    return vae.requires_grad_(False)


class Pipe:
    """A pipeline as the fit sees it, which counts how often its parts went back."""

    def __init__(self, vae: nn.Module) -> None:
        self.vae, self.freed = vae, 0

    def maybe_free_model_hooks(self) -> None:
        self.freed += 1


def source(folder: Path, content: str = "{}") -> Path:
    """A model's folder, as far as a fingerprint reads it."""
    (folder / "vae").mkdir(parents=True)
    (folder / "vae" / "config.json").write_text(content)
    return folder


@pytest.fixture
def counted(monkeypatch) -> list[nn.Module]:
    """The autoencoders that were fitted to; a fit itself takes no time."""
    made = []

    def quick(vae, check=lambda: None):
        check()
        made.append(vae)
        return torch.arange(49 * 48).view(49, 48) / 7000, 0.9

    monkeypatch.setattr(fitted_colours, "fit", quick)
    return made


# The fit


def test_latents_that_are_linear_in_the_colours_are_solved_exactly():
    vae = linear_autoencoder()
    matrix, part = fit(vae)
    assert part > 0.9999
    # colours = (1 + the turn back of (std · latent + mean)) / 2
    back = vae.encoder.turn.T
    assert torch.allclose(matrix[:-1], STD / 2 * back.T, atol=0.01)  # latents are bfloat16
    assert torch.allclose(matrix[-1], 0.5 + MEAN / 2 * back.sum(1), atol=0.03)


def test_all_colours_are_in_the_scenes():
    vae = SimpleNamespace(config=SimpleNamespace(scale_factor_spatial=8))
    *fitted, checked = scenes(vae)
    assert checked.shape == (3, FRAMES, 64, 96)
    means = torch.stack([clip.mean((1, 2, 3)) for clip in fitted])
    assert set(means.argmax(1).tolist()) == {0, 1, 2}  # of red, green and blue each leads once
    assert means.min() < 0.4 and means.max() > 0.6
    pixels = torch.cat([clip.flatten(1) for clip in fitted], dim=1)
    assert (pixels.std(1) > 0.15).all()


def test_what_is_explained_is_one_for_all_and_nothing_for_the_mean():
    colours = torch.rand(20, 12, generator=torch.Generator().manual_seed(1))
    inputs = torch.cat([colours, torch.ones(20, 1)], 1)
    exact = torch.cat([torch.eye(12), torch.zeros(1, 12)])
    assert explained(exact, (inputs, colours)) == pytest.approx(1)
    mean = torch.cat([torch.zeros(12, 12), colours.view(-1, 3).mean(0).repeat(4)[None]])
    assert explained(mean, (inputs, colours)) == pytest.approx(0, abs=1e-5)
    assert explained(mean + 5, (inputs, colours)) < -10


def test_the_embedded_model_s_autoencoder_is_fitted_well_by_so_few_scenes():
    vae = load_autoencoder("embedded", EMBEDDED_MODEL, torch.device("cpu"))
    matrix, part = fit(vae)
    assert part > 0.8
    shipped = torch.from_numpy(np.load(EMBEDDED_MODEL / "latent_colours.npy"))
    other = examples(vae, render([sample_scene(7, EDITION)], 128, 192, FRAMES)[0])
    assert explained(matrix, other) > explained(shipped, other) - 0.15 > 0.6


def test_a_fit_can_be_stopped_between_two_scenes():
    seen = []

    def check():
        seen.append(1)
        if len(seen) == 2:
            raise Cancelled("stopped")

    colours = FittedColours(Pipe(linear_autoencoder()), EMBEDDED_MODEL, Path("nowhere"))
    with pytest.raises(Cancelled):
        colours.find(check)
    assert len(seen) == 2
    assert colours.pipe.freed == 1  # it went back


def test_a_stopped_fit_begins_anew(tmp_path, counted):
    colours = FittedColours(Pipe(linear_autoencoder()), source(tmp_path / "a"), tmp_path)

    def stop():
        raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        colours.find(stop)
    assert colours.find() is not None


def test_random_weights_of_wan_s_autoencoder_show_nothing(tmp_path, files, capsys):
    from ultragen.weights.wan import load_vae

    vae = load_vae(files.base / "vae", torch.float32)
    matrix, part = fit(vae)
    assert matrix.shape == (17, 12)  # 2 × 2 pixels for a position of 8 × 8
    assert torch.isfinite(matrix).all()
    assert part < LEAST - 0.2
    colours = FittedColours(Pipe(vae), files.base, tmp_path / "kept")
    assert colours.find() is None
    assert len(list((tmp_path / "kept").iterdir())) == 1  # so that no process looks again
    assert capsys.readouterr().err == ""


def test_dependent_latents_are_fitted_too():
    inputs = torch.rand(40, 3, generator=torch.Generator().manual_seed(2))
    inputs = torch.cat([inputs, inputs[:, :1], torch.ones(40, 1)], 1)
    colours = inputs[:, :3] * 0.5
    matrix = least_squares([(inputs, colours)])
    assert torch.allclose(inputs @ matrix, colours, atol=1e-5)


# What is kept


def test_the_second_process_reads_what_the_first_has_kept(tmp_path, counted):
    model, kept = source(tmp_path / "model"), tmp_path / "kept"
    first = FittedColours(Pipe(linear_autoencoder()), model, kept)
    made = first.find()
    assert first.find() is made and len(counted) == 1 and first.pipe.freed == 1
    second = FittedColours(Pipe(linear_autoencoder()), model, kept)
    assert torch.equal(second.find().matrix, made.matrix)
    assert len(counted) == 1
    assert second.pipe.freed == 0  # nothing was brought to a device
    assert [path.suffix for path in kept.iterdir()] == [".npz"]


def test_what_was_kept_is_not_taken_for_another_autoencoder(tmp_path, counted):
    kept = tmp_path / "kept"
    for name in ("one", "other"):
        model = source(tmp_path / name, f'{{"name": "{name}"}}')
        FittedColours(Pipe(linear_autoencoder()), model, kept).find()
    assert len(counted) == 2
    one, other = kept.iterdir()
    shutil.copyfile(one, other)  # a file of another one, under this one's name
    for name in ("one", "other"):
        FittedColours(Pipe(linear_autoencoder()), tmp_path / name, kept).find()
    assert len(counted) == 3


def test_the_weights_count_not_the_configuration_alone(tmp_path, counted):
    model, kept = source(tmp_path / "model"), tmp_path / "kept"
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    for content in (b"some", b"other"):
        weights.write_bytes(content)
        FittedColours(Pipe(linear_autoencoder()), model, kept).find()
    assert len(counted) == 2


@pytest.mark.parametrize(
    "damage",
    ["empty", "text", "cut", "an array", "other names", "shape", "not finite", "objects", "folder"],
)
def test_a_damaged_file_is_made_anew(tmp_path, counted, damage):
    model, kept = source(tmp_path / "model"), tmp_path / "kept"
    FittedColours(Pipe(linear_autoencoder()), model, kept).find()
    [path] = kept.iterdir()
    content = path.read_bytes()
    with np.load(path) as file:
        values = dict(file)
    if damage in ("empty", "text", "cut"):
        path.write_bytes({"empty": b"", "text": b"no map", "cut": content[:-100]}[damage])
    elif damage == "an array":
        with path.open("wb") as file:
            np.save(file, np.zeros((49, 48), np.float32))
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        changed = {
            "other names": {"values": values["matrix"]},
            "shape": values | {"matrix": values["matrix"][1:]},
            "not finite": values | {"matrix": values["matrix"] * np.float32("nan")},
            "objects": values | {"matrix": np.array([None])},
        }[damage]
        np.savez(path, **changed)
    assert FittedColours(Pipe(linear_autoencoder()), model, kept).find() is not None
    assert len(counted) == 2
    if damage != "folder":
        assert FittedColours(Pipe(linear_autoencoder()), model, kept).find() is not None
        assert len(counted) == 2  # it is whole again


def test_a_folder_that_takes_no_files_is_no_error(tmp_path, counted, capsys):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder would be")
    colours = FittedColours(Pipe(linear_autoencoder()), source(tmp_path / "model"), blocked)
    assert colours.find() is not None
    assert colours.find() is not None
    assert len(counted) == 1
    assert capsys.readouterr().err == ""


def test_a_fit_that_fails_is_told_once_and_shows_nothing(tmp_path, monkeypatch, capsys):
    def fails(vae, check):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried much.")

    monkeypatch.setattr(fitted_colours, "fit", fails)
    colours = FittedColours(Pipe(linear_autoencoder()), source(tmp_path / "model"), tmp_path)
    assert colours.find() is None and colours.find() is None
    assert colours.pipe.freed == 1
    assert capsys.readouterr().err == "There are no previews: CUDA out of memory. Tried much.\n"
