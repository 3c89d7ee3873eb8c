"""Every savable class refuses weights that don't fit, and the error tells where and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from tiny import tiny_ultragen, tiny_wan
from transformers import UMT5EncoderModel

from ultragen.model.autoencoder import CompactAutoencoder
from ultragen.model.classifier import AttributeClassifier
from ultragen.model.strict_loading import WAY_OUT, StrictLoading, load_strictly
from ultragen.model.text_encoder import ClauseTextEncoder
from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.model.upscaler import UpscalerNetwork
from ultragen.training.build import TINY_SIZE, build_autoencoder, build_classifier
from ultragen.training.vocabulary import build_text_encoder
from ultragen.weights.random import SIZES, builders

OURS = (AttributeClassifier, CompactAutoencoder, UltraGenTransformer3DModel, UpscalerNetwork)
MAKE: dict[Any, Callable[[], Any]] = {
    AttributeClassifier: lambda: build_classifier(TINY_SIZE),
    AutoencoderKLWan: builders(SIZES["tiny"])["vae"],
    ClauseTextEncoder: lambda: build_text_encoder(20, 64),
    CompactAutoencoder: lambda: build_autoencoder(TINY_SIZE),
    UltraGenTransformer3DModel: tiny_ultragen,
    UMT5EncoderModel: builders(SIZES["tiny"])["text_encoder"],
    UpscalerNetwork: lambda: UpscalerNetwork(channels=8, num_blocks=1),
    WanTransformer3DModel: tiny_wan,
}


def load(kind: Any, folder: Path) -> Any:
    return kind.from_pretrained(folder) if kind in OURS else load_strictly(kind, folder)


@pytest.fixture(params=MAKE, ids=lambda kind: kind.__name__)
def kind(request) -> Any:
    return request.param


@pytest.fixture
def saved(kind, tmp_path) -> Path:
    folder = tmp_path / "part"
    MAKE[kind]().save_pretrained(folder)
    return folder


@pytest.fixture
def way_out(kind) -> str:
    return re.escape(kind.way_out if kind in OURS else WAY_OUT)


def weights_file(folder: Path) -> Path:
    [path] = folder.glob("*.safetensors")
    return path


def two_matrices(weights: dict[str, torch.Tensor]) -> list[str]:
    """Weights that are tied to no others."""
    keys = (key for key, value in weights.items() if value.ndim > 1)
    return [key for key in sorted(keys) if not re.search("embed_tokens|shared", key)][-2:]


def test_what_was_saved_is_loaded(kind, saved):
    found, expected = load(kind, saved).state_dict(), load_file(weights_file(saved))
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert not load(kind, saved).training


def test_all_that_does_not_fit_is_listed(kind, saved, way_out):
    path = weights_file(saved)
    weights = load_file(path)
    lacking, flat = two_matrices(weights)
    weights["other"] = weights.pop(lacking)
    weights[flat] = weights[flat].flatten()
    save_file(weights, path, metadata={"format": "pt"})
    says = (
        rf"{re.escape(str(saved))} does not fit {kind.__name__}: "
        rf"missing \(1\): {re.escape(lacking)}; unexpected \(1\): other; "
        rf"misshapen \(1\): {re.escape(flat)} is \d+, not .*\. {way_out}"
    )
    with pytest.raises(ValueError, match=says):
        load(kind, saved)


@pytest.mark.parametrize("left", [0, 100, -40])
def test_a_file_that_is_cut_off_is_named(kind, saved, way_out, left):
    path = weights_file(saved)
    path.write_bytes(path.read_bytes()[:left])
    says = rf"The model in {re.escape(str(saved))} can't be loaded: \S.*[^.]\. {way_out}"
    with pytest.raises(OSError, match=says):
        load(kind, saved)


@pytest.mark.parametrize("name", ["config.json", "*.safetensors"])
def test_a_file_that_is_missing_is_named(kind, saved, way_out, name):
    for path in saved.glob(name):
        path.unlink()
    says = rf"The model in {re.escape(str(saved))} can't be loaded: .*no .*{way_out}"
    with pytest.raises(OSError, match=says):
        load(kind, saved)


def test_a_folder_that_is_missing_is_named(kind, tmp_path, way_out):
    says = rf"The model in {re.escape(str(tmp_path / 'x/y'))} can't be loaded: there is no config"
    with pytest.raises(OSError, match=rf"{says}\.json\. {way_out}"):
        load(kind, tmp_path / "x/y")


def test_the_errors_of_the_hub_stay_the_libraries_own():
    with pytest.raises(OSError) as caught:
        UltraGenTransformer3DModel.from_pretrained("nobody/nothing")
    assert "can't be loaded" not in str(caught.value)


def test_every_model_of_ours_is_loaded_strictly():
    assert all(issubclass(kind, StrictLoading) for kind in OURS)


def test_memory_that_runs_out_while_loading_is_said_as_such(tmp_path, monkeypatch):
    """Whoever moves models to a GPU looks for it, whatever class the error has."""
    (tmp_path / "config.json").write_text("{}")

    def out_of_memory(*arguments, **options):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(AutoencoderKLWan, "from_pretrained", out_of_memory)
    with pytest.raises(RuntimeError, match="CUDA error"):
        load_strictly(AutoencoderKLWan, tmp_path)
