"""The networks that an evaluation measures with, and the measuring of one clip."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..model.classifier import AttributeClassifier, load_classifier, spread
from ..weights.fingerprint import check_shipped
from .case import Case
from .horizons import countable, horizons
from .metrics import (
    DetailError,
    FrameFeatures,
    FrameNetwork,
    PatchFeatures,
    PerceptualDistance,
    TextFrameNetwork,
    TubeNetwork,
    clip_score,
    temporal_consistency,
    to_tensor,
)
from .networks import (
    Device,
    classifier_frames,
    digest,
    imagenet_frames,
    load_clip,
    load_perceptual,
    load_tube_network,
)
from .outlines import TERRAINS, WEATHERS, unbroken
from .scores import ClipScores
from .seams import Borders


@dataclass(frozen=True)
class Instruments:
    """What is None or empty here is not measured.

    Attributes:
        tubes: Networks that HD-FVD is computed with, a column of the table each.
        perceptual: Distance of two patches, for HD-LPIPS.
        clip: Similarity of a picture and a text, for the CLIP score.
        frames: Features of a frame, for temporal consistency.
        classifier: Tells a clip's attributes, for prompt following.
        classifier_name: What results call it.
        borders: Where windows meet; with them, what windows do to a clip is measured: seams and
            horizons.
        device: Where the other measures are computed.
    """

    tubes: tuple[TubeNetwork, ...] = ()
    perceptual: PerceptualDistance | None = None
    clip: TextFrameNetwork | None = None
    frames: FrameNetwork | None = None
    classifier: AttributeClassifier | None = None
    classifier_name: str | None = None
    borders: Borders | None = None
    device: Device = "cpu"

    def names(self) -> dict[str, list[str] | str | None]:
        """What each measure looks through."""
        return {
            "hd_fvd": [network.name for network in self.tubes],
            "hd_lpips": self.perceptual.name if self.perceptual else None,
            "clip_score": self.clip.name if self.clip else None,
            "temporal": self.frames.name if self.frames else None,
            "following": self.classifier_name,
        }


def load_instruments(
    source: Path,
    classifier: Path | None = None,
    features: Sequence[str] = (),
    lpips: str | None = None,
    clip: str | None = None,
    device: Device = "cpu",
) -> Instruments:
    """Loads the networks that are named.

    Args:
        source: The model's folder, whose subfolder `classifier` holds the attribute classifier;
            where it has none, what needs one is not measured.
        classifier: Folder of another attribute classifier.
        features: Networks of HD-FVD, see `networks.load_tube_network`; none takes the classifier,
            if there is one.
        lpips: Backbone of HD-LPIPS, see `networks.load_perceptual`.
        clip: See `networks.load_clip`; also gives temporal consistency, for which the classifier
            stands in without it.
        device: Where they compute.

    Raises:
        ValueError: A network can't be loaded.
        OSError: A package or a file of the classifier is missing, or the file is damaged.
    """
    folder = classifier or source / "classifier"
    network, name = _named(folder, device) if classifier or folder.is_dir() else (None, None)
    choices = features or (("classifier",) if network else ())
    try:
        tubes = [load_tube_network(x, lambda: _named(folder, device), device) for x in choices]
        perceptual = load_perceptual(lpips, device) if lpips else None
    except ImportError as error:
        raise OSError(str(error)) from error
    text = load_clip(clip, device) if clip else None
    frames: FrameNetwork | None = text
    if frames is None and network is not None and name is not None:
        frames = classifier_frames(network, name)
    return Instruments(tuple(tubes), perceptual, text, frames, network, name, device=device)


def _named(folder: Path, device: Device) -> tuple[AttributeClassifier, str]:
    check_shipped(folder)
    return load_classifier(folder, device), f"attribute classifier {digest(folder)}"


def load_file_instruments(
    classifier: Path,
    features: Sequence[str] | None = (),
    lpips: str | None = None,
    clip: str | None = None,
    device: Device = "cpu",
) -> Instruments:
    """Loads the networks that are named, for clips that are there: what they ask for is unknown,
    so prompt following is not measured.

    Args:
        classifier: Folder of the attribute classifier, which is only read where it is named.
        features: Networks of HD-FVD; none takes ImageNet's, and None measures no HD-FVD.
        lpips: As for `load_instruments`, like the others.
        clip: Also gives temporal consistency, for which ImageNet's features stand in.
        device: Where they compute.

    Raises:
        ValueError: A network can't be loaded.
        OSError: A package or a file of the classifier is missing, or the file is damaged.
    """
    choices = () if features is None else features or ("imagenet",)
    try:
        tubes = [load_tube_network(x, lambda: _named(classifier, device), device) for x in choices]
        perceptual = load_perceptual(lpips, device) if lpips else None
        text = load_clip(clip, device) if clip else None
        frames = text or imagenet_frames(device)
    except ImportError as error:
        raise OSError(str(error)) from error
    return Instruments(tuple(tubes), perceptual, text, frames, device=device)


def measure(
    frames: np.ndarray, case: Case, instruments: Instruments, seconds: float | None = None
) -> ClipScores:
    """Measures one clip, uint8, t h w 3, frame by frame.

    Raises:
        ValueError: The clip is too short or too small for a network.
    """
    judged = case.named.get("terrain") in TERRAINS and case.named.get("weather") in WEATHERS
    borders = instruments.borders
    return replace(
        measure_frames(frames, case.caption, instruments),
        seconds=seconds,
        seen=see(frames, instruments.classifier) if instruments.classifier else None,
        named=told_by(instruments.classifier, case.named),
        outline=unbroken(frames) if judged else None,
        seam=borders.rank(frames) if borders else None,
        horizons=horizons(frames) if borders and countable(case.named) else None,
    )


def measure_frames(
    frames: Iterable[np.ndarray], caption: str, instruments: Instruments
) -> ClipScores:
    """Measures what can be told of a clip's frames, uint8, h w 3, and its caption.

    Raises:
        ValueError: The clip is too short or too small for a network.
    """
    patches = {network.name: PatchFeatures(network) for network in instruments.tubes}
    detail = DetailError(instruments.perceptual, instruments.device)
    steady = FrameFeatures(instruments.frames) if instruments.frames else None
    text = FrameFeatures(instruments.clip) if instruments.clip else None
    if instruments.clip is instruments.frames:  # asked once for both
        text = steady
    every = dict.fromkeys((*patches.values(), detail, steady, text))
    parts = [part for part in every if part is not None]
    for frame in frames:
        pixels = torch.from_numpy(frame).to(instruments.device)  # once for all parts
        for part in parts:
            part.update(pixels)
    hd_mse, hd_lpips = detail.compute()
    score, temporal = None, None
    if text is not None and instruments.clip is not None:
        score = clip_score(text.compute(), instruments.clip.embed_text(caption).cpu())
    if steady is not None and len(every_frame := steady.compute()) > 1:
        temporal = temporal_consistency(every_frame)
    return ClipScores(
        seconds=None,
        hd_mse=hd_mse,
        hd_lpips=hd_lpips,
        clip_score=score,
        temporal=temporal,
        seen=None,
        named={},
        features={name: part.compute() for name, part in patches.items()},
    )


def told_by(classifier: AttributeClassifier | None, named: Mapping[str, str]) -> dict[str, str]:
    """Those of the named attributes whose values the classifier was trained to tell: one of the
    world's first edition knows no valleys."""
    if classifier is None:
        return dict(named)
    known = classifier.config.attributes
    return {name: value for name, value in named.items() if value in known.get(name, ())}


def see(frames: np.ndarray, classifier: AttributeClassifier) -> dict[str, str]:
    """The attributes of a clip, uint8, t h w 3."""
    chosen = frames[spread(len(frames), classifier.config.num_frames)]
    reduced = [classifier.reduce(to_tensor(frame, classifier.device)) for frame in chosen]
    return classifier.classify(torch.cat(reduced))
