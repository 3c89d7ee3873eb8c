"""Metrics: closed forms, what blur and noise do, and memory that does not grow with the clip."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from ultragen.evaluation import metrics, networks
from ultragen.evaluation.metrics import (
    DetailError,
    FrameFeatures,
    FrameNetwork,
    Gaussian,
    PatchFeatures,
    PerceptualDistance,
    SampleDistance,
    TubeNetwork,
    clip_score,
    fit_gaussian,
    frechet_distance,
    temporal_consistency,
    tiled_distance,
    without_detail,
)
from ultragen.model.classifier import AttributeClassifier, load_classifier, spread


def noise_frame(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth_frame(height: int, width: int) -> np.ndarray:
    x, y = np.linspace(0, 9, width), np.linspace(0, 7, height)[:, None]
    waves = 0.5 + 0.2 * np.sin(x + y) + 0.2 * np.sin(5 * x - 3 * y)
    return np.repeat((255 * waves)[..., None], 3, axis=-1).astype(np.uint8)


# Fréchet distance


def test_identical_sets_have_no_distance():
    samples = torch.randn(50, 8)
    assert frechet_distance(fit_gaussian(samples), fit_gaussian(samples.flip(0))) < 1e-9


def test_fewer_samples_than_features_are_no_trouble():
    samples = torch.randn(5, 30)
    gaussian = fit_gaussian(samples)
    assert frechet_distance(gaussian, gaussian) < 1e-6
    assert frechet_distance(gaussian, fit_gaussian(samples + 2)) == pytest.approx(30 * 4, rel=1e-6)


def test_gaussians_whose_covariances_commute():
    """Then the distance is the sum of (μ₁ − μ₂)² + (σ₁ − σ₂)² along the common axes."""
    axes, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    first, second = torch.tensor([1.0, 2, 3, 0.5]), torch.tensor([2.0, 2, 0.1, 0])
    means = torch.zeros(4).double(), torch.tensor([0.3, -1, 2, 0]).double()
    one, other = (
        Gaussian(mean, axes @ torch.diag(deviation.double() ** 2) @ axes.T)
        for mean, deviation in zip(means, (first, second), strict=True)
    )
    expected = ((means[0] - means[1]) ** 2).sum() + ((first - second) ** 2).sum()
    assert frechet_distance(one, other) == pytest.approx(expected.item(), rel=1e-6)
    assert frechet_distance(other, one) == pytest.approx(expected.item(), rel=1e-6)


def test_the_distance_is_that_of_torchmetrics():
    from torchmetrics.image.fid import _compute_fid

    one, other = (
        fit_gaussian(torch.randn(80, 6, generator=torch.Generator().manual_seed(i)) * (i + 1) + i)
        for i in range(2)
    )
    expected = _compute_fid(one.mean, one.covariance, other.mean, other.covariance)
    assert frechet_distance(one, other) == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("number", [5, 60])
def test_few_samples_and_many_have_their_gaussians_distance(number):
    draw = torch.Generator().manual_seed(number)
    reference = fit_gaussian(torch.randn(100, 16, generator=draw))
    samples = 2 * torch.randn(number, 16, generator=draw) + 1
    of_draw = SampleDistance(reference, samples)
    expected = frechet_distance(reference, fit_gaussian(samples))
    assert of_draw(torch.ones(number)) == pytest.approx(expected, rel=1e-6)
    counts = torch.randint(3, (number,), generator=draw)
    repeated = samples.repeat_interleave(counts, 0)
    expected = frechet_distance(reference, fit_gaussian(repeated))
    assert of_draw(counts) == pytest.approx(expected, rel=1e-6)


def test_samples_find_the_distance_of_their_gaussians():
    draw = torch.Generator().manual_seed(0)
    first = torch.randn(200_000, 2, generator=draw)
    second = 2 * torch.randn(200_000, 2, generator=draw) + torch.tensor([3.0, 0.0])
    distance = frechet_distance(fit_gaussian(first), fit_gaussian(second))
    assert distance == pytest.approx(9 + 2 * (2 - 1) ** 2, rel=0.02)


@pytest.mark.parametrize(
    ("samples", "words"),
    [(torch.zeros(1, 3), "at least 2"), (torch.full((4, 3), float("nan")), "not finite")],
)
def test_features_that_have_no_distribution(samples, words):
    with pytest.raises(ValueError, match=words):
        fit_gaussian(samples)


def test_features_of_two_networks_are_not_compared():
    with pytest.raises(ValueError, match=r"3 features .* with 4"):
        frechet_distance(fit_gaussian(torch.randn(9, 3)), fit_gaussian(torch.randn(9, 4)))
    with pytest.raises(ValueError, match=r"3 features .* with 4"):
        SampleDistance(fit_gaussian(torch.randn(9, 3)), torch.randn(9, 4))


# Patches


def corner_network(num_frames: int = 2, least: int = 1, size: int = 4) -> TubeNetwork:
    """Gives the first frame's top left pixel and the number of frames."""

    def embed(video: Tensor) -> Tensor:
        length = torch.full((len(video), 1), float(video.shape[2]))
        return torch.cat([video[:, :, 0, 0, 0] * 255, length], dim=1)

    return TubeNetwork("corner", embed, num_frames, least, size, size)


def test_patches_are_cut_at_full_resolution_and_centred():
    clip = [noise_frame(10, 14, seed) for seed in range(5)]
    patches = PatchFeatures(corner_network())
    for frame in clip:
        patches.update(frame)
    found = patches.compute()
    # 2 × 3 patches with a margin of one pixel, two tubes of two frames, the fifth left out.
    assert found.shape == (12, 4)
    expected = [clip[t][1 + 4 * i, 1 + 4 * j] for t in (0, 2) for i in range(2) for j in range(3)]
    np.testing.assert_allclose(found[:, :3].numpy(), np.stack(expected), atol=1e-3)
    assert set(found[:, 3].tolist()) == {2}


def test_a_short_clip_is_one_tube_where_the_network_allows_it():
    patches = PatchFeatures(corner_network(num_frames=16, least=2))
    patches.update(noise_frame(4, 4))
    with pytest.raises(ValueError, match="needs 2 frames, the clip has 1"):
        patches.compute()
    patches.update(noise_frame(4, 4))
    assert patches.compute()[:, 3].tolist() == [2]


def test_frames_smaller_than_a_patch_name_the_way_out():
    with pytest.raises(ValueError, match="14×3 are smaller than a patch of corner, 4×4: choose a"):
        PatchFeatures(corner_network()).update(noise_frame(3, 14))


# Detail


def upsampled(frame: np.ndarray, level: int) -> np.ndarray:
    image = metrics.to_tensor(frame)
    return without_detail(image, level)[0].permute(1, 2, 0).mul(255).round().byte().numpy()


def detail(frame: np.ndarray) -> float:
    error = DetailError()
    error.update(frame)
    return error.compute()[0]


def test_a_uniform_frame_has_no_detail():
    assert detail(np.full((64, 96, 3), 77, np.uint8)) == pytest.approx(0, abs=1e-3)


def test_blur_lowers_and_noise_raises_hd_mse():
    """Why it is never read alone: noise counts as detail."""
    frame = smooth_frame(128, 192)
    noisy = np.clip(frame + np.random.default_rng(0).normal(0, 20, frame.shape), 0, 255)
    values = [detail(x) for x in (upsampled(frame, 3), frame, noisy.astype(np.uint8))]
    assert values[0] < 0.8 * values[1] < 0.8 * values[2]


def test_hd_mse_of_noise_is_three_times_its_variance():
    """What is averaged over 64 pixels and more is nearly flat, at each of the three levels."""
    frame = noise_frame(256, 256)
    variance = frame.astype(float).var()
    assert detail(frame) == pytest.approx(3 * variance, rel=0.03)


def test_hd_mse_is_the_sum_over_three_levels_and_the_mean_over_frames():
    frames = [noise_frame(70, 101), smooth_frame(70, 101)]
    expected = []
    for frame in frames:
        image = torch.tensor(frame).permute(2, 0, 1)[None].double()
        sizes = {k: (round(70 / 2**k), round(101 / 2**k)) for k in (3, 4, 5)}
        small = [functional.interpolate(image, sizes[k], mode="bilinear", antialias=True)
                 for k in (3, 4, 5)]  # fmt: skip
        again = [functional.interpolate(x, (70, 101), mode="bilinear") for x in small]
        expected.append(sum((x - image).square().mean().item() for x in again))
    error = DetailError()
    for frame in frames:
        error.update(frame)
    assert error.compute() == (pytest.approx(np.mean(expected), rel=1e-4), None)


def test_hd_lpips_uses_its_distance_at_each_level():
    error = DetailError(PerceptualDistance("mse", functional.mse_loss))
    error.update(noise_frame(64, 64))
    square, distance = error.compute()
    assert distance == pytest.approx(square / 255**2, rel=1e-5)


def test_tiles_give_the_whole_frames_distance(monkeypatch):
    first, second = torch.rand(1, 3, 50, 70), torch.rand(1, 3, 50, 70)
    monkeypatch.setattr(metrics, "TILE", 32)
    sizes = []

    def distance(a: Tensor, b: Tensor) -> Tensor:
        sizes.append(a.shape[-2:])
        return functional.mse_loss(a, b)

    found = tiled_distance(PerceptualDistance("mse", distance), first, second)
    assert found == pytest.approx(functional.mse_loss(first, second).item(), rel=1e-5)
    assert len(sizes) == 6 and max(max(size) for size in sizes) == 32


def test_frames_that_are_on_the_device_already_are_shared():
    clip = [noise_frame(9, 13, seed) for seed in range(4)]
    shared = [torch.from_numpy(frame) for frame in clip]
    network = FrameNetwork("colours", lambda frame: frame.mean((2, 3)))
    for measure in (lambda: PatchFeatures(corner_network()), lambda: FrameFeatures(network)):
        of_arrays, of_tensors = measure(), measure()
        for frame, tensor in zip(clip, shared, strict=True):
            of_arrays.update(frame)
            of_tensors.update(tensor)
        assert torch.equal(of_arrays.compute(), of_tensors.compute())
    patches = PatchFeatures(corner_network())
    patches.update(shared[0])
    assert patches.frames[0].data_ptr() == shared[0].data_ptr()


@pytest.mark.parametrize(
    "frame",
    [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), torch.zeros(3, 4, 4, dtype=torch.uint8)],
)
def test_what_is_no_frame_is_refused(frame):
    with pytest.raises(ValueError, match="uint8, h w 3, not"):
        DetailError().update(frame)


def test_no_frames_no_detail():
    with pytest.raises(ValueError, match="without frames"):
        DetailError().compute()


# Frames and texts


def test_temporal_consistency_is_the_neighbours_cosine():
    assert temporal_consistency(torch.tensor([[1.0, 0], [1, 0], [0, 1]])) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="at least 2 frames, not 1"):
        temporal_consistency(torch.ones(1, 3))


def test_a_flickering_clip_is_less_consistent():
    network = FrameNetwork("colours", lambda frame: frame.mean((2, 3)))
    still, flickering = FrameFeatures(network), FrameFeatures(network)
    for number in range(4):
        frame = smooth_frame(16, 16)
        still.update(frame)
        flickering.update(frame * np.array([1, number % 2, 1], np.uint8))
    assert temporal_consistency(still.compute()) == pytest.approx(1)
    assert temporal_consistency(flickering.compute()) < 0.9


def test_clip_score_is_the_cosine_without_its_negative_part():
    frames = torch.tensor([[3.0, 0], [0, 2], [-1, 0]])
    assert clip_score(frames, torch.tensor([[2.0, 0]])) == pytest.approx(1 / 3)


# Memory


class CountedFrame(np.ndarray):
    """A frame that is counted while it lives."""


def counted_clip(number: int, height: int, width: int, counts: list[int]):
    alive: weakref.WeakSet = weakref.WeakSet()
    for seed in range(number):
        frame = noise_frame(height, width, seed).view(CountedFrame)
        # Arrays are compared by value, which a set can't use: their buffers stand for them.
        holder = Holder()
        frame.holder = holder
        alive.add(holder)
        counts.append(len(alive))
        yield frame
        del frame, holder


class Holder:
    pass


def test_no_more_frames_live_than_one_tube_needs():
    """A tube of 17 frames at 2176×3840 takes 0.4 GiB, and all else works frame by frame."""
    measures = (
        PatchFeatures(corner_network(num_frames=4)),
        DetailError(PerceptualDistance("mse", functional.mse_loss)),
        FrameFeatures(FrameNetwork("colours", lambda frame: frame.mean((2, 3)))),
    )
    counts: list[int] = []
    for frame in counted_clip(30, 32, 32, counts):
        for measure in measures:
            measure.update(frame)
    del frame
    assert len(counts) == 30 and max(counts) <= 5


@pytest.mark.slow
def test_a_4k_frame_is_measured_in_less_than_2_gib():
    """The peak of this process, in another one that measures one frame after a small one."""
    import subprocess
    import sys

    code = """
import resource, numpy as np, torch
from ultragen.evaluation import metrics
from ultragen.evaluation.networks import LPIPS
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
metrics.DETAIL_LEVELS = (5,)  # each needs as much as the others
lpips = LPIPS("alex").eval()
network = metrics.TubeNetwork("mean", lambda v: v.mean((2, 3, 4)), 17, 1, 224, 224)
def measure(height, width, frames):
    detail = metrics.DetailError(metrics.PerceptualDistance("alex", lpips))
    patches = metrics.PatchFeatures(network)
    for _ in range(frames):
        frame = np.zeros((height, width, 3), np.uint8)
        if not detail.squares: detail.update(frame)
        patches.update(frame)
    patches.compute()
measure(256, 256, 1)
before = peak()
measure(2176, 3840, 18)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2


# Networks


def test_every_network_is_named_or_refused():
    for choice in ("", "i3d", "i3d=", "vgg", "imagenet21k"):
        with pytest.raises(
            ValueError, match=r"unknown feature network .* classifier, imagenet, i3"
        ):
            networks.load_tube_network(choice, lambda: pytest.fail("not asked for"))
    with pytest.raises(ValueError, match=r"no file nowhere\.pt: download"):
        networks.load_tube_network("i3d=nowhere.pt", lambda: pytest.fail("not asked for"))


def test_a_file_that_is_no_torchscript(tmp_path):
    (tmp_path / "i3d.pt").write_bytes(b"not a network")
    with pytest.raises(ValueError, match=r"i3d\.pt is not a TorchScript"):
        networks.i3d_tubes(tmp_path / "i3d.pt")


class LikeI3D(nn.Module):
    """Takes what the published TorchScript takes."""

    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        assert not rescale and not resize and return_features
        return torch.stack([x.amin(dim=(1, 2, 3, 4)), x.amax(dim=(1, 2, 3, 4))], dim=1)


def test_i3d_is_called_as_its_file_wants(tmp_path):
    torch.jit.script(LikeI3D()).save(str(tmp_path / "i3d.pt"))
    network = networks.load_tube_network(f"i3d={tmp_path / 'i3d.pt'}", lambda: pytest.fail())
    assert network.name.startswith("I3D i3d.pt ") and len(network.name.split()[-1]) == 8
    assert (network.num_frames, network.height) == (16, 224)
    video = torch.linspace(0, 1, 2).expand(3, 10, 224, 112, 2).flatten(3)[None]
    assert network.embed(video).tolist() == [[-1, 1]]


def test_imagenet_features_come_with_packages():
    network = networks.load_tube_network("imagenet", lambda: pytest.fail())
    frames = np.stack([smooth_frame(224, 224), noise_frame(224, 224)])
    found = network.embed(torch.tensor(frames).permute(0, 3, 1, 2)[:, :, None].float() / 255)
    assert found.shape == (2, 1280) and found.std() > 0.01
    assert "EfficientNet-Lite0" in network.name


@pytest.mark.parametrize(("net", "layers"), [("alex", 5), ("vgg", 13)])
def test_lpips_reads_torchvisions_files(tmp_path, net, layers):
    torch.manual_seed(0)
    random = networks.LPIPS(net)
    weights = {k: v for k, v in random.state_dict().items() if k.startswith("features.")}
    assert len(weights) == 2 * layers
    torch.save({**weights, "classifier.1.weight": torch.zeros(2)}, tmp_path / "net.pth")
    loaded = networks.load_perceptual(f"{net}={tmp_path / 'net.pth'}")
    assert loaded.name.startswith(f"LPIPS {net} 0.1, ")
    one, other = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert loaded.distance(one, one).item() == 0
        assert loaded.distance(one, other).item() > 0


def test_lpips_is_that_of_torchmetrics(tmp_path, monkeypatch):
    """Its own class, with the backbone's layers in place of torchvision's."""
    from torchmetrics.functional.image import lpips

    torch.manual_seed(0)
    ours = networks.LPIPS("alex")
    torch.save(ours.state_dict(), tmp_path / "alex.pth")
    loaded = networks.load_perceptual(f"alex={tmp_path / 'alex.pth'}")
    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda *_: ours.features)
    theirs = lpips._LPIPS(pretrained=True, net="alex")
    one, other = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(one, other, normalize=True).item()
        assert loaded.distance(one, other).item() == pytest.approx(expected, rel=1e-4)


def test_lpips_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="choose alex=FILE or vgg=FILE"):
        networks.load_perceptual("alex")
    with pytest.raises(ValueError, match="can't be read"):
        networks.load_perceptual(f"alex={tmp_path / 'none.pth'}")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not hold torchvision's weights of vgg"):
        networks.load_perceptual(f"vgg={tmp_path / 'other.pth'}")


def tiny_clip(folder: Path) -> Path:
    from transformers import CLIPTokenizer

    text = CLIPTextConfig(
        vocab_size=60, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, projection_dim=6, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        image_size=32, patch_size=8, projection_dim=6,
    )  # fmt: skip
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=6
    )
    CLIPModel(config).save_pretrained(folder)
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{x}</w>" for x in letters)]
    CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[]).save_pretrained(
        folder
    )
    return folder


def test_clip_from_a_folder(tmp_path):
    network = networks.load_clip(str(tiny_clip(tmp_path)))
    measure = FrameFeatures(network)
    for seed in range(2):
        measure.update(noise_frame(40, 70, seed))
    assert measure.compute().shape == (2, 6)
    assert -1 <= clip_score(measure.compute(), network.embed_text("a lake")) <= 1
    with pytest.raises(ValueError, match="name a folder that holds it"):
        networks.load_clip(str(tmp_path / "nowhere"))


# The attribute classifier as a network


@pytest.fixture
def classifier(tmp_path) -> AttributeClassifier:
    torch.manual_seed(0)
    network = AttributeClassifier(
        {"sky": ["clear", "grey"], "camera": ["still", "left", "right"]},
        channels=(8, 16), blocks=(1, 1), grid_features=4, height=16, width=24,
    )  # fmt: skip
    network.half().save_pretrained(tmp_path / "classifier")
    return load_classifier(tmp_path / "classifier")


def test_the_embedded_classifier_is_small_on_disk():
    from ultragen.world.scene import ALLOWED

    network = AttributeClassifier({name: list(values) for name, values in ALLOWED.items()})
    assert 2 * sum(p.numel() for p in network.parameters()) <= 2_000_000


def test_the_classifier_names_every_attribute(classifier):
    frames = torch.rand(17, 3, 90, 160)
    found = classifier.classify(classifier.reduce(frames))
    assert found["sky"] in ("clear", "grey") and set(found) == {"sky", "camera"}


def test_frames_are_spread_over_the_clip(classifier):
    assert spread(17, 5) == [0, 4, 8, 12, 16]
    assert spread(3, 5) == [0, 1, 2] and spread(1, 5) == [0]
    video = torch.arange(17.0).expand(1, 3, 17)[..., None, None]
    assert classifier.choose(video)[0, 0].flatten().tolist() == [0, 4, 8, 12, 16]


def test_the_order_of_frames_matters(classifier):
    """Otherwise no motion could be told from its reverse."""
    video = torch.rand(1, 3, 5, 16, 24)
    with torch.no_grad():
        one, other = classifier.embed(video), classifier.embed(video.flip(2))
    assert not torch.allclose(one, other, atol=1e-4)


def test_the_classifier_gives_tubes_and_frames(classifier):
    tubes = networks.classifier_tubes(classifier, "attribute classifier")
    patches = PatchFeatures(tubes)
    for seed in range(17):
        patches.update(noise_frame(40, 50, seed))
    assert patches.compute().shape == (4, 2 * (8 + 16) + 4)
    frames = FrameFeatures(networks.classifier_frames(classifier, "attribute classifier"))
    frames.update(noise_frame(40, 50))
    assert frames.compute().norm() == pytest.approx(1, rel=1e-5)


def test_a_classifier_that_is_missing_or_damaged(tmp_path, classifier):
    with pytest.raises(ValueError, match="run `train classifier`"):
        load_classifier(tmp_path)
    (tmp_path / "classifier/diffusion_pytorch_model.safetensors").write_bytes(b"")
    with pytest.raises(OSError, match=r"classifier can't be loaded: .*Run `train classifier`"):
        load_classifier(tmp_path / "classifier")


def test_names_tell_weights_apart(tmp_path, classifier):
    before = networks.digest(tmp_path / "classifier")
    assert before == networks.digest(tmp_path / "classifier")
    AttributeClassifier({"sky": ["a", "b"]}, channels=(8,), blocks=(1,)).save_pretrained(
        tmp_path / "classifier"
    )
    assert networks.digest(tmp_path / "classifier") != before
