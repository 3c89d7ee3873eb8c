"""What clips are measured by: HD-FVD, HD-MSE, HD-LPIPS, CLIP score and temporal consistency.

Definitions are those of the paper's appendix D (arXiv 2510.18775); `docs/metrics.md` says what each
number means and what it does not. Everything takes frames one at a time, uint8, h w 3, and keeps no
more of them than one feature needs. A frame that is a tensor on a network's device already is not
copied there again: measures that see the same clip share it. What frames gave stays on the device
until it is asked for, so that nothing waits for a GPU between frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

DETAIL_LEVELS = (3, 4, 5)  # k in appendix D: a frame is made 2^k times smaller
TILE = 512  # rows and columns of a frame that a perceptual network sees at once
PATCH_BATCH = 16  # tiles that it computes at once

Frame = np.ndarray | Tensor  # uint8, h w 3


@dataclass(frozen=True)
class TubeNetwork:
    """A network that gives features of short clips, for HD-FVD.

    Attributes:
        name: What results call it, with the weights that it has.
        embed: Maps `b 3 t h w` in [0, 1] to features `b d`.
        num_frames: Frames of a tube.
        least_frames: Frames that do for a clip that is shorter than a tube.
        height: Rows of a patch in pixels.
        width: Columns of a patch in pixels.
        device: Where it computes.
    """

    name: str
    embed: Callable[[Tensor], Tensor]
    num_frames: int
    least_frames: int
    height: int
    width: int
    device: torch.device | str = "cpu"


@dataclass(frozen=True)
class FrameNetwork:
    """A network that gives features of single frames, for temporal consistency.

    Attributes:
        name: What results call it, with the weights that it has.
        embed: Maps a frame of any size, `1 3 h w` in [0, 1], to features `1 d`.
        device: Where it computes.
    """

    name: str
    embed: Callable[[Tensor], Tensor]
    device: torch.device | str = "cpu"


@dataclass(frozen=True)
class TextFrameNetwork(FrameNetwork):
    """A network whose features of frames and of texts can be compared, for the CLIP score.

    Attributes:
        embed_text: Maps a text to features `1 d`.
    """

    embed_text: Callable[[str], Tensor] = field(kw_only=True)


@dataclass(frozen=True)
class PerceptualDistance:
    """A distance of two pictures, for HD-LPIPS.

    Attributes:
        name: What results call it, with the weights that it has.
        distance: Maps two pictures `1 3 h w` in [0, 1] to a scalar.
        device: Where it computes.
    """

    name: str
    distance: Callable[[Tensor, Tensor], Tensor]
    device: torch.device | str = "cpu"


def to_tensor(frame: Frame, device: torch.device | str = "cpu") -> Tensor:
    """A frame, uint8, h w 3 → `1 3 h w` in [0, 1].

    Raises:
        ValueError: for another type or shape.
    """
    pixels = torch.as_tensor(frame)
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"frames to measure are uint8, h w 3, not {frame.dtype} of {frame.shape}")
    return rearrange(pixels.to(device), "h w c -> 1 c h w").float() / 255


# Distances of distributions


@dataclass(frozen=True)
class Gaussian:
    """Mean `d` and covariance `d d` of a set of features, in float64."""

    mean: Tensor
    covariance: Tensor

    @cached_property
    def root(self) -> Tensor:
        """The covariance's symmetric square root."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def fit_gaussian(features: Tensor) -> Gaussian:
    """Features `n d` → their mean and unbiased covariance.

    Raises:
        ValueError: There are fewer than two, or some are not finite.
    """
    _check_samples(features)
    features = features.double()
    mean = features.mean(0)
    deviations = (features - mean) / (len(features) - 1) ** 0.5
    return Gaussian(mean, deviations.T @ deviations)


def _check_samples(features: Tensor) -> None:
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"at least 2 features n d are needed, not {tuple(features.shape)}")
    if not torch.isfinite(features).all():
        raise ValueError("some features are not finite: the clip or its network is damaged")


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁^½ Σ₂ Σ₁^½)^½), as in FID (arXiv 1706.08500) and FVD.

    The symmetric form has real eigenvalues, also of covariances that are singular because there
    are fewer samples than features.

    Raises:
        ValueError: The features differ in number.
    """
    _check_comparable(first.mean, second.mean)
    product = first.root @ second.covariance @ first.root
    traces = first.covariance.trace() + second.covariance.trace()
    return _distance(first.mean - second.mean, traces, product)


class SampleDistance:
    """The same, of a reference and samples that are drawn again and again with repetitions.

    Draws share all that does not depend on them, a sample that is drawn twice is computed with
    once, and no matrix `d d` is decomposed where there are fewer of them.

    Args:
        reference: What is compared with.
        features: What a network makes of each sample, `n d`.

    Raises:
        ValueError: as `fit_gaussian` and `frechet_distance`.
    """

    def __init__(self, reference: Gaussian, features: Tensor) -> None:
        _check_samples(features)
        _check_comparable(reference.mean, features[0])
        self.trace = reference.covariance.trace()
        self.features = features.double() - reference.mean  # n d
        self.rooted = self.features @ reference.root  # n d

    def __call__(self, counts: Tensor) -> float:
        """The distance of a draw: how often each sample is in it, `n`, together at least 2."""
        drawn, total = counts > 0, counts.sum()
        counts = counts[drawn, None].double()
        mean, deviations = _weighted(self.features[drawn], counts, total)
        _, rooted = _weighted(self.rooted[drawn], counts, total)
        # Both products have the same eigenvalues but for zeros.
        few = len(rooted) < len(mean)
        product = rooted @ rooted.T if few else rooted.T @ rooted
        return _distance(mean, self.trace + deviations.square().sum(), product)


def _weighted(features: Tensor, counts: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `d`, and deviations `n d` whose products sum up to the covariance, of features `n d`
    that are there `n 1` times."""
    mean = (counts * features).sum(0) / total
    return mean, (features - mean) * (counts / (total - 1)).sqrt()


def _check_comparable(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} features can't be compared with {len(second)}")


def _distance(shift: Tensor, traces: Tensor, product: Tensor) -> float:
    roots = torch.linalg.eigvalsh(product).clamp(min=0).sqrt().sum()
    return max(0.0, (shift.square().sum() + traces - 2 * roots).item())


class PatchFeatures:
    """Features of a clip's patches at full resolution: the samples of HD-FVD.

    Frames are cut into a centred grid of patches of the network's input size, none resized, and
    the clip into tubes of the network's length; what remains at borders and at the end is left
    out.

    Args:
        network: What gives the features.
    """

    def __init__(self, network: TubeNetwork) -> None:
        self.network = network
        self.frames: list[Tensor] = []
        self.features: list[Tensor] = []

    def update(self, frame: Frame) -> None:
        """Adds the clip's next frame.

        Raises:
            ValueError: The frame is smaller than a patch.
        """
        height, width = frame.shape[:2]
        if height < self.network.height or width < self.network.width:
            raise ValueError(
                f"frames of {width}×{height} are smaller than a patch of {self.network.name}, "
                f"{self.network.width}×{self.network.height}: choose a larger resolution, or "
                "another feature network."
            )
        self.frames.append(torch.as_tensor(frame).to(self.network.device))
        if len(self.frames) == self.network.num_frames:
            self._embed()

    def compute(self) -> Tensor:
        """Features `n d` of all patches, float32.

        Raises:
            ValueError: The clip is too short for the network.
        """
        if not self.features:
            if len(self.frames) < self.network.least_frames:
                raise ValueError(
                    f"{self.network.name} needs {self.network.least_frames} frames, the clip has "
                    f"{len(self.frames)}: make longer clips, or choose another feature network."
                )
            self._embed()
        return torch.cat(self.features).cpu()

    @torch.inference_mode()
    def _embed(self) -> None:
        places = list(self._places(*self.frames[0].shape[:2]))
        rows, columns = self.network.height, self.network.width
        for start in range(0, len(places), PATCH_BATCH):
            tubes = torch.stack(
                [
                    torch.stack([frame[y : y + rows, x : x + columns] for frame in self.frames])
                    for y, x in places[start : start + PATCH_BATCH]
                ]
            )
            patches = rearrange(tubes, "b t h w c -> b c t h w").float() / 255
            self.features.append(self.network.embed(patches).float())
        self.frames = []

    def _places(self, height: int, width: int) -> Iterator[tuple[int, int]]:
        """Top left corners of a centred grid."""
        down, across = height // self.network.height, width // self.network.width
        top = (height - down * self.network.height) // 2
        left = (width - across * self.network.width) // 2
        for row in range(down):
            for column in range(across):
                yield top + row * self.network.height, left + column * self.network.width


# Detail


def without_detail(images: Tensor, level: int) -> Tensor:
    """Pictures `b c h w` made 2^level times smaller and as large again, both bilinearly.

    The smaller one is averaged over the pixels that it stands for, and its size rounded where
    2^level does not divide the picture's.
    """
    height, width = images.shape[-2:]
    small = (max(1, round(height / 2**level)), max(1, round(width / 2**level)))
    reduced = functional.interpolate(images, small, mode="bilinear", antialias=True)
    return functional.interpolate(reduced, (height, width), mode="bilinear")


class DetailError:
    """HD-MSE and HD-LPIPS of a clip: what is lost when its frames are made small and large again,
    summed over `DETAIL_LEVELS`, averaged over frames.

    HD-MSE is in squared steps of 8-bit colour.

    Args:
        perceptual: The distance of HD-LPIPS, or None without one.
        device: Where HD-MSE is computed.
    """

    def __init__(
        self, perceptual: PerceptualDistance | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.perceptual, self.device = perceptual, perceptual.device if perceptual else device
        self.squares: list[Tensor] = []
        self.distances: list[float] = []

    @torch.inference_mode()
    def update(self, frame: Frame) -> None:
        """Adds a frame."""
        image = to_tensor(frame, self.device)
        square, distance = image.new_zeros((), dtype=torch.float64), 0.0
        for level in DETAIL_LEVELS:
            plain = without_detail(image, level)
            square = square + 255**2 * functional.mse_loss(plain, image).double()
            if self.perceptual is not None:
                distance += tiled_distance(self.perceptual, image, plain)
        self.squares.append(square)
        self.distances.append(distance)

    def compute(self) -> tuple[float, float | None]:
        """HD-MSE, and HD-LPIPS or None.

        Raises:
            ValueError: There was no frame.
        """
        if not self.squares:
            raise ValueError("a clip without frames has no detail to measure")
        distance = float(np.mean(self.distances)) if self.perceptual is not None else None
        return torch.stack(self.squares).mean().item(), distance


def tiled_distance(perceptual: PerceptualDistance, first: Tensor, second: Tensor) -> float:
    """A perceptual distance, tile by tile and weighted by their area: a 4K frame's activations
    would take gigabytes."""
    total = first.new_zeros((), dtype=torch.float64)
    for rows in zip(first.split(TILE, -2), second.split(TILE, -2), strict=True):
        for a, b in zip(*(part.split(TILE, -1) for part in rows), strict=True):
            area = a.shape[-2] * a.shape[-1]
            total = total + area * perceptual.distance(a, b).double()
    return total.item() / (first.shape[-2] * first.shape[-1])


# Frames and texts


class FrameFeatures:
    """Features of a clip's frames, one after the other: `t d`, of unit length.

    Args:
        network: What gives the features.
    """

    def __init__(self, network: FrameNetwork) -> None:
        self.network = network
        self.features: list[Tensor] = []

    @torch.inference_mode()
    def update(self, frame: Frame) -> None:
        """Adds a frame."""
        features = self.network.embed(to_tensor(frame, self.network.device))
        self.features.append(functional.normalize(features.float(), dim=-1))

    def compute(self) -> Tensor:
        """Features `t d`."""
        return torch.cat(self.features).cpu()


def temporal_consistency(features: Tensor) -> float:
    """Mean cosine similarity of neighbouring frames' features `t d`, as VBench has it
    (arXiv 2311.17982).

    Raises:
        ValueError: There are fewer than two frames.
    """
    if len(features) < 2:
        raise ValueError(f"temporal consistency needs at least 2 frames, not {len(features)}")
    return functional.cosine_similarity(features[1:], features[:-1]).mean().item()


def clip_score(features: Tensor, text: Tensor) -> float:
    """Mean cosine similarity of frames' features `t d` with their text's, `1 d`, negative ones
    counted as zero (arXiv 2104.08718, without its factor of 2.5)."""
    return functional.cosine_similarity(features, text.to(features)).clamp(min=0).mean().item()
