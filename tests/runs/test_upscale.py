"""Exact sizes, the network's start, its files, and the messages for what can't be loaded."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from patterns import waves
from torch import nn
from torch.nn import functional

from ultragen.model.upscaler import UpscalerNetwork
from ultragen.runs.upscale import NetworkUpscaler, Upscaler, load_upscaler
from ultragen.sampling.sampler import GenerationError


@pytest.fixture
def model_root(tmp_path: Path) -> Path:
    """A model folder whose small network has weights that do something."""
    torch.manual_seed(0)
    network = UpscalerNetwork(channels=8, num_blocks=1)
    nn.init.normal_(network.conv_out.weight, std=0.05)
    network.save_pretrained(tmp_path / "upscaler")
    return tmp_path


@pytest.mark.parametrize("name", ["lanczos", "network"])
@pytest.mark.parametrize(("height", "width"), [(34, 60), (72, 128), (136, 240), (18, 32), (33, 61)])
def test_result_has_the_exact_size(model_root: Path, name: str, height: int, width: int) -> None:
    result = load_upscaler(name, model_root).upscale(waves(2, 18, 32), height, width)
    assert result.shape == (2, height, width, 3)
    assert result.dtype == np.uint8


def test_a_fresh_network_interpolates() -> None:
    images = torch.rand(2, 3, 9, 16)
    expected = functional.interpolate(images, scale_factor=4, mode="bicubic")
    assert torch.equal(UpscalerNetwork()(images), expected)


def test_network_is_small() -> None:
    assert sum(parameter.numel() for parameter in UpscalerNetwork().parameters()) <= 500_000


def test_every_weight_learns() -> None:
    """One step from the fresh start moves the last convolution, the next one all of them."""
    torch.manual_seed(0)
    network = UpscalerNetwork(channels=8, num_blocks=2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    large = torch.rand(1, 3, 32, 32)
    small = functional.interpolate(large, scale_factor=0.25, mode="area")
    losses = []
    for _ in range(3):
        loss = functional.mse_loss(network(small), large)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_frames_are_independent(model_root: Path) -> None:
    upscaler, frames = load_upscaler("network", model_root), waves(3, 18, 32)
    alone = [upscaler.upscale(frame[None], 50, 90)[0] for frame in frames]
    assert np.array_equal(upscaler.upscale(frames, 50, 90), np.stack(alone))


def test_frames_are_enlarged_only_when_asked_for() -> None:
    taken = []

    def frames():
        for index, frame in enumerate(waves(4, 18, 32)):
            taken.append(index)
            yield frame

    stream = Upscaler().stream(frames(), 36, 64)
    next(stream)
    assert taken == [0]
    next(stream)
    assert taken == [0, 1]


def test_flat_colours_and_extremes_stay(model_root: Path) -> None:
    for value in (0, 128, 255):
        frames = np.full((1, 8, 8, 3), value, np.uint8)
        fresh = NetworkUpscaler(UpscalerNetwork(), "fresh")
        assert (fresh.upscale(frames, 30, 30) == value).all()
        assert (Upscaler().upscale(frames, 30, 30) == value).all()


def test_out_of_range_values_are_clamped() -> None:
    class Overshoot(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(3.0))

        def forward(self, images):
            return (images - 0.5) * self.gain + 0.5

    frames = np.array([0, 128, 255], np.uint8).reshape(1, 1, 3, 1).repeat(3, axis=3)
    result = NetworkUpscaler(Overshoot(), "overshoot").upscale(frames, 1, 3)
    assert result[0, 0, :, 0].tolist() == [0, 129, 255]


def test_bfloat16_is_close(model_root: Path, caplog) -> None:
    frames = waves(2, 18, 32)
    exact = load_upscaler("network", model_root).upscale(frames, 72, 128)
    coarse = load_upscaler("network", model_root).to("cpu", torch.bfloat16)
    assert np.abs(coarse.upscale(frames, 72, 128).astype(int) - exact).mean() < 2
    assert not caplog.records  # nothing that a run's log would wonder about


def test_what_is_no_number_is_no_picture() -> None:
    """It would be black, and count as a success."""
    network = UpscalerNetwork(8, 1)
    network.conv_in.weight.data[0, 0, 0, 0] = float("nan")
    upscaler = NetworkUpscaler(network, "sharp")
    with pytest.raises(GenerationError, match=r"upscaler sharp .* not finite.*lanczos"):
        upscaler.upscale(waves(1, 16, 16), 64, 64)


def test_saved_network_is_the_same(model_root: Path) -> None:
    images = torch.rand(1, 3, 6, 7)
    one = UpscalerNetwork.from_pretrained(model_root / "upscaler")
    other = load_upscaler("network", model_root)
    assert isinstance(other, NetworkUpscaler)
    assert torch.allclose(one(images), other.network(images), atol=1e-6)


@pytest.mark.parametrize(
    ("frames", "height", "width", "says"),
    [
        (waves(0, 18, 32), 36, 64, "no frames"),
        (waves(2, 18, 32).astype(np.float32), 36, 64, "float32"),
        (waves(2, 18, 32)[..., :1], 36, 64, r"\(18, 32, 1\)"),
        (waves(2, 18, 32), 0, 64, "0×64"),
        (waves(2, 18, 32), 36, -2, "36×-2"),
    ],
)
def test_bad_input_is_refused(frames: np.ndarray, height: int, width: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Upscaler().upscale(frames, height, width)


def test_unknown_name_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'esrgan': choose one of lanczos, network"):
        load_upscaler("esrgan", tmp_path)


def test_missing_weights_name_the_folder(model_root: Path) -> None:
    with pytest.raises(OSError, match=r"nowhere.*config\.json.*lanczos"):
        load_upscaler("network", model_root / "nowhere")
    weights = next((model_root / "upscaler").glob("*.safetensors"))
    weights.unlink()
    with pytest.raises(OSError, match=r"upscaler can't be loaded.*choose the upscaler lanczos"):
        load_upscaler("network", model_root)


def test_damaged_weights_name_the_folder(model_root: Path) -> None:
    weights = next((model_root / "upscaler").glob("*.safetensors"))
    whole = weights.read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"\x00" * 100):
        weights.write_bytes(data)
        with pytest.raises(OSError, match=r"upscaler can't be loaded.*choose the upscaler lanczos"):
            load_upscaler("network", model_root)


def test_weights_of_another_layout_are_refused(model_root: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = next((model_root / "upscaler").glob("*.safetensors"))
    state = load_file(weights)
    state["renamed"] = state.pop("conv_in.weight")
    save_file(state, weights)
    says = r"missing \(1\): conv_in\.weight; unexpected \(1\): renamed\. Restore the folder, or ch"
    with pytest.raises(ValueError, match=says):
        load_upscaler("network", model_root)


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch) -> Path:
    """A file, and a stand-in for the package that loads it: a ×2 network of any input size."""

    class Descriptor:
        input_channels = 3

        def __init__(self) -> None:
            self.model = nn.Conv2d(3, 3, 1)
            nn.init.dirac_(self.model.weight)
            nn.init.zeros_(self.model.bias)

        def __call__(self, images):
            return functional.interpolate(self.model(images), scale_factor=2)

    class Loader:
        def load_from_file(self, path: Path) -> object:
            if path.read_bytes() != b"weights":
                raise RuntimeError("not a zip archive\nand much more")
            return Descriptor()

    package = types.ModuleType("spandrel")
    package.ImageModelDescriptor = Descriptor
    package.ModelLoader = Loader
    monkeypatch.setitem(sys.modules, "spandrel", package)
    path = tmp_path / "x2.pth"
    path.write_bytes(b"weights")
    return path


def test_foreign_file_is_used(foreign: Path) -> None:
    upscaler = load_upscaler(foreign, Path("unused"))
    assert upscaler.name == "x2"
    frames = waves(2, 18, 32)
    assert np.array_equal(
        upscaler.upscale(frames, 36, 64), frames.repeat(2, axis=1).repeat(2, axis=2)
    )


def test_damaged_foreign_file_is_named(foreign: Path) -> None:
    foreign.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"x2\.pth is no .*not a zip archive$"):
        load_upscaler(foreign, Path("unused"))


def foreign_network(monkeypatch, network: nn.Module, **says: bool) -> None:
    """Lets the stand-in load this network, which says what it can do."""

    def load_from_file(self, path: Path) -> object:
        descriptor = sys.modules["spandrel"].ImageModelDescriptor()
        descriptor.model = network
        vars(descriptor).update(says)
        return descriptor

    monkeypatch.setattr(sys.modules["spandrel"].ModelLoader, "load_from_file", load_from_file)


class Float32Only(nn.Conv2d):
    """As spandrel's SwinIR: a part of it stays in float32, whatever the weights are in."""

    def __init__(self, damage: str) -> None:
        super().__init__(3, 3, 1)
        self.damage = damage

    def forward(self, images):
        if images.dtype == torch.float32:
            return images * self.weight.abs().sum().clamp(1, 1)
        if self.damage == "raises":
            raise RuntimeError("expected scalar type Float but found BFloat16")
        return images * float(self.damage)


@pytest.mark.parametrize("damage", ["raises", "nan", "0"])
def test_what_fails_in_bfloat16_runs_in_float32(foreign: Path, monkeypatch, damage: str) -> None:
    foreign_network(monkeypatch, Float32Only(damage), supports_bfloat16=True)
    upscaler = load_upscaler(foreign, Path("unused")).to("cpu", torch.bfloat16)
    assert next(upscaler.network.parameters()).dtype == torch.float32
    frames = waves(1, 18, 32)
    assert np.array_equal(upscaler.upscale(frames, 36, 64), frames.repeat(2, 1).repeat(2, 2))


@pytest.mark.parametrize("can", [True, False])
def test_bfloat16_where_the_network_can(foreign: Path, monkeypatch, can: bool) -> None:
    network = nn.Conv2d(3, 3, 1)
    nn.init.dirac_(network.weight)
    foreign_network(monkeypatch, network, supports_bfloat16=can)
    load_upscaler(foreign, Path("unused")).to("cpu", torch.bfloat16)
    assert network.weight.dtype == (torch.bfloat16 if can else torch.float32)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda image: image * float("nan"), "not finite"),
        (lambda image: image * 0, "a black one"),
        (lambda image: image[..., :8, :8], "one of 16 × 16 × 3"),
        (lambda image: image[:, :1], "one of 64 × 64 × 1"),
        (lambda image: image.missing, "can't enlarge .*missing"),
    ],
)
def test_a_network_is_tried_when_it_is_loaded(foreign: Path, monkeypatch, damage, says) -> None:
    class Damaged(nn.Conv2d):
        def forward(self, images):
            return damage(images)

    foreign_network(monkeypatch, Damaged(3, 3, 1))
    with pytest.raises(ValueError, match=f"upscaler x2 .*{says}.*Choose lanczos"):
        load_upscaler(foreign, Path("unused"))


def test_without_the_package_the_way_out_is_named(foreign: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[spandrel\]'"):
        load_upscaler(foreign, Path("unused"))
