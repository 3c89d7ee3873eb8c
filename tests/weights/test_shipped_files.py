"""Damage to the files that ship is noticed when they are first loaded, and told by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from time import process_time

import pytest
import torch

from ultragen.dataset.encoders import load_autoencoder
from ultragen.evaluation.instruments import load_instruments
from ultragen.pipeline import UltraGenPipeline
from ultragen.presets import EMBEDDED_MODEL
from ultragen.runs.upscale import load_upscaler
from ultragen.weights import fingerprint
from ultragen.weights.fingerprint import DIGESTS, check_shipped, write_digests

CPU = torch.device("cpu")
LOADERS: dict[str, Callable[[Path], object]] = {
    "transformer": UltraGenPipeline.from_pretrained,
    "text_encoder": UltraGenPipeline.from_pretrained,
    "upscaler": lambda folder: load_upscaler("network", folder),
    "vae": lambda folder: load_autoencoder("embedded", folder, CPU),
    "classifier": lambda folder: load_instruments(folder, device=CPU),
}


@pytest.fixture
def copy(tmp_path: Path, monkeypatch) -> Path:
    """A copy of the embedded model, which counts as the one that ships."""
    folder = Path(shutil.copytree(EMBEDDED_MODEL, tmp_path / "embedded"))
    monkeypatch.setattr(fingerprint, "EMBEDDED_MODEL", folder)
    return folder


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)


def test_the_embedded_model_is_checked_in_no_time() -> None:
    fingerprint._read_digest.cache_clear()
    began = process_time()
    check_shipped(EMBEDDED_MODEL)
    first = process_time()
    check_shipped(EMBEDDED_MODEL)
    fingerprint.fingerprint(EMBEDDED_MODEL)
    print(f"{first - began:.2f} s, and {process_time() - first:.3f} s once more")
    assert process_time() - first < 0.05  # a file is read once
    listed = {line.split("  ")[1] for line in (EMBEDDED_MODEL / DIGESTS).read_text().splitlines()}
    files = {p.relative_to(EMBEDDED_MODEL).as_posix() for p in EMBEDDED_MODEL.rglob("*.*")}
    assert listed == files - {"README.md"}


@pytest.mark.parametrize("part", LOADERS)
def test_a_flipped_bit_is_noticed(copy: Path, part: str) -> None:
    path = max((copy / part).glob("*.safetensors"))
    flip_a_bit(path)
    with pytest.raises(OSError, match="damaged") as caught:
        LOADERS[part](copy)
    assert str(path) in str(caught.value)


def test_a_lost_file_and_a_changed_setting_are_noticed(copy: Path) -> None:
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("1000", "1001"))
    with pytest.raises(OSError, match=r"scheduler_config\.json is damaged"):
        check_shipped(copy)
    config.unlink()
    with pytest.raises(FileNotFoundError, match=r"scheduler_config\.json is missing"):
        check_shipped(copy)


def test_other_models_are_their_owners(tmp_path: Path) -> None:
    """Also a copy of the embedded one, with its list of hashes, that somebody has changed."""
    folder = Path(shutil.copytree(EMBEDDED_MODEL, tmp_path / "mine"))
    flip_a_bit(folder / "upscaler" / "diffusion_pytorch_model.safetensors")
    load_upscaler("network", folder)


def test_hashes_are_written_anew(copy: Path) -> None:
    flip_a_bit(copy / "upscaler" / "diffusion_pytorch_model.safetensors")
    (copy / "model_index.json").write_text(json.dumps({}))
    write_digests(copy)
    check_shipped(copy)
